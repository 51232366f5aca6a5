"""Convolution and its gradients, as users call them.

The formulas and the rules stand in rules.py, the products in products.py; the arithmetic of windows in geometry.py.
"""

from typing import Any

import jax
from jax.typing import ArrayLike, DTypeLike

from jconv import calls

Array = jax.Array
Integers = int | tuple[int, ...] | list[int]
Padding = str | int | tuple[int | tuple[int, int], ...] | list[int | tuple[int, int]]


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """Convolution of any rank: y[n, p, o] = sum over t, c of x[n, p*s + t*d - low, c] kernel[t, c, o], plus bias[o].

    A cross-correlation, as everywhere in deep learning: the kernel is not turned. Gradients are written by hand
    (rules.py): of the kernel the valid cross-correlation of x with g, of the bias the sum of g, of x the full
    convolution of g with the kernel turned by 180 degrees. Works under every JAX transformation, forward mode too.

    Args:
      x: (batch, *space, in), or unbatched (*space, in); any number of spatial axes from 1. float32, float64, float16,
        bfloat16, complex, or integers (forward only).
      kernel: (*window, in // feature_group_count, out), of x's dtype.
      bias: (out,), of x's dtype, or None.
      strides: s, in elements; an integer or one a spatial axis, as are the dilations.
      padding: "VALID" (none), "SAME" (ceil(n / s) places, zeros on both sides, the odd one on the right), "SAME_LOWER"
        (on the left), "CAUSAL" (1-D, all on the left), "CIRCULAR", "REFLECT", "EDGE" (values of x, ceil(n / s) places),
        an integer, or an integer or (low, high) a spatial axis; negative padding crops.
      input_dilation: distance of x's elements, zeros between them.
      kernel_dilation: d, the distance of the kernel's taps.
      feature_group_count: groups that the channels are split into; equal to `in` for a depthwise convolution.
      data_format: "channels_last", or "channels_first": x (batch, in, *space), kernel (out, in // groups, *window).
      precision: as in jax.lax.
      preferred_element_type: dtype of the result and of the sums, of the same kind and at least as wide; None: x's
        dtype, with float16 and bfloat16 summed in float32.
      algorithm: "auto", a name from jconv.algorithms.choose.NAMES, or a mapping from "forward", "kernel_grad" and
        "input_grad" to names.

    Returns:
      (batch, *out_space, out), out_space = (n + low + high - d*(k-1) - 1) // s + 1, n dilated.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.6 and 9.8-9.13.

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.arange(5.0).reshape(1, 5, 1), jnp.ones((3, 1, 1))
      >>> conv(x, kernel).ravel()
      Array([3., 6., 9.], dtype=float32)
      >>> jax.grad(lambda k: conv(x, k).sum())(kernel).ravel()
      Array([3., 6., 9.], dtype=float32)
    """
    return calls.conv(
        "conv", None, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        data_format, precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv1d(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """conv with one spatial axis: x (batch, length, in), kernel (window, in // groups, out). See conv.

    Raises:
      ValueError: kernel has not 3 axes, x not 3 or, unbatched, 2; and as conv.

    Example:
      >>> import jax.numpy as jnp
      >>> conv1d(jnp.ones((2, 8, 3)), jnp.ones((3, 3, 4)), padding="SAME").shape
      (2, 8, 4)
    """
    return calls.conv(
        "conv1d", 1, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        data_format, precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv2d(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """conv with two spatial axes: x (batch, height, width, in), kernel (height, width, in // groups, out). See conv.

    Raises:
      ValueError: kernel has not 4 axes, x not 4 or, unbatched, 3; and as conv.

    Example:
      >>> import jax.numpy as jnp
      >>> conv2d(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), padding="SAME").shape
      (2, 8, 8, 4)
    """
    return calls.conv(
        "conv2d", 2, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        data_format, precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv3d(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """conv with three spatial axes; see conv.

    x (batch, depth, height, width, in), kernel (depth, height, width, in // groups, out).

    Raises:
      ValueError: kernel has not 5 axes, x not 5 or, unbatched, 4; and as conv.

    Example:
      >>> import jax.numpy as jnp
      >>> conv3d(jnp.ones((2, 8, 8, 8, 3)), jnp.ones((3, 3, 3, 3, 4)), padding="SAME").shape
      (2, 8, 8, 8, 4)
    """
    return calls.conv(
        "conv3d", 3, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        data_format, precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv_transpose(
    y: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    output_padding: Integers = 0,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """Transposed convolution, the exact adjoint of conv with the same kernel.

    <conv(x, k), y> = <x, conv_transpose(y, k)>:
    x[n, a, c] = sum over p, t, o of y[n, p, o] kernel[t, c, o] where p*s + t*d - low = a, plus bias[c]: the full
    convolution of y, dilated by the stride and zero-padded, with the kernel turned by 180 degrees. It is
    conv_input_grad under another name, and PyTorch's ConvTranspose. (lax.conv_transpose does not turn the kernel unless
    transpose_kernel is True, and pads otherwise.)

    Args:
      y: (batch, *space, out), or unbatched: what the transposed convolution gives.
      kernel: (*window, in // feature_group_count, out), that of the convolution which is transposed.
      bias: (in,), or None.
      strides: distance, in elements of the result, of y's elements.
      padding: that of the convolution which is transposed, as in conv. "SAME" gives space * strides.
      output_padding: further elements on the right, fewer than the stride; 0 with "SAME".
      kernel_dilation: as in conv.
      feature_group_count: as in conv.
      data_format: "channels_last", or "channels_first": y (batch, out, *space), kernel (out, in // groups, *window).
      precision: as in conv.
      preferred_element_type: as in conv.
      algorithm: as in conv; the product computed here is its "input_grad".

    Returns:
      (batch, *result_space, in), result_space = (space - 1)*s - low - high + d*(k-1) + 1 + output_padding.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning, chapter 4.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_transpose(jnp.array([1.0, 2.0]).reshape(1, 2, 1), jnp.ones((3, 1, 1)), strides=2).ravel()
      Array([1., 1., 3., 2., 2.], dtype=float32)
    """
    return calls.transpose(
        y, kernel, bias, strides, padding, output_padding, kernel_dilation, feature_group_count, data_format, precision,
        preferred_element_type, algorithm,
    )  # fmt: skip


def conv_kernel_grad(
    x: ArrayLike,
    g: ArrayLike,
    kernel_shape: tuple[int, ...],
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """Gradient of conv with respect to its kernel: dkernel[t] = sum over n, p of x[n, p*s + t*d - low] g[n, p].

    The valid cross-correlation of x with g, in which stride and dilation change places.

    Args:
      x: (batch, *space, in), or unbatched: what conv was given.
      g: (batch, *out_space, out), the cotangent of conv's result, of x's dtype.
      kernel_shape: the kernel's whole shape, (*window, in // feature_group_count, out).
      strides: this and the others as conv was given them.
      padding: as conv was given it.
      input_dilation: as conv was given it.
      kernel_dilation: as conv was given it.
      feature_group_count: as conv was given it.
      data_format: as in conv; it holds for kernel_shape and the result too.
      precision: as in conv.
      preferred_element_type: as in conv.
      algorithm: as in conv; the product computed here is its "kernel_grad".

    Returns:
      kernel_shape, of x's dtype; float16 and bfloat16 are summed in float32.

    Raises:
      ValueError, TypeError: an argument is wrong, or g has not the shape that conv gives for these arguments.

    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.11.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_kernel_grad(jnp.ones((1, 5, 1)), jnp.ones((1, 3, 1)), (3, 1, 1)).ravel()
      Array([3., 3., 3.], dtype=float32)
    """
    return calls.kernel_grad(
        x, g, kernel_shape, strides, padding, input_dilation, kernel_dilation, feature_group_count, data_format,
        precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv_input_grad(
    g: ArrayLike,
    kernel: ArrayLike,
    input_shape: tuple[int, ...],
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    input_dilation: Integers = 1,
    kernel_dilation: Integers = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    algorithm: Any = "auto",
) -> Array:
    """Gradient of conv with respect to x: dx[a] = sum of g[p] kernel[t] where p*s + t*d - low = a.

    The full convolution of g, dilated by the stride and zero-padded, with the kernel turned by 180 degrees.

    Args:
      g: (batch, *out_space, out), or unbatched: the cotangent of conv's result.
      kernel: (*window, in // feature_group_count, out), what conv was given, of g's dtype.
      input_shape: x's whole shape, (batch, *space, in), or unbatched; any that leads to g's shape.
      strides: this and the others as conv was given them.
      padding: as conv was given it.
      input_dilation: as conv was given it.
      kernel_dilation: as conv was given it.
      feature_group_count: as conv was given it.
      data_format: as in conv; it holds for input_shape and the result too.
      precision: as in conv.
      preferred_element_type: as in conv.
      algorithm: as in conv; the product computed here is its "input_grad".

    Returns:
      input_shape, of g's dtype; 0 where no window reached.

    Raises:
      ValueError, TypeError: an argument is wrong, or g has not the shape that conv gives for these arguments.

    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.13.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_input_grad(jnp.ones((1, 3, 1)), jnp.ones((3, 1, 1)), (1, 5, 1)).ravel()
      Array([1., 2., 3., 2., 1.], dtype=float32)
    """
    return calls.input_grad(
        g, kernel, input_shape, strides, padding, input_dilation, kernel_dilation, feature_group_count, data_format,
        precision, preferred_element_type, algorithm,
    )  # fmt: skip


def conv_bias_grad(g: ArrayLike, *, data_format: str = "channels_last") -> Array:
    """Gradient of conv with respect to its bias: dbias[o] = sum over n, p of g[n, p, o].

    The upstream gradient summed over batch and space.

    Args:
      g: (batch, *out_space, out), the cotangent of conv's result; channels_last may be unbatched.
      data_format: "channels_last", or "channels_first": g (batch, out, *out_space).

    Returns:
      (out,), of g's dtype; float16 and bfloat16 are summed in float32.

    Raises:
      ValueError, TypeError: g is no array of numbers or has fewer than 2 axes (channels_first: 3), or data_format is
        wrong.

    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, section 9.5.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_bias_grad(jnp.ones((2, 3, 4))).ravel()
      Array([6., 6., 6., 6.], dtype=float32)
    """
    return calls.bias_grad(g, data_format)
