"""jax.lax's convolutions and window reductions, with jax.lax's own signatures, computed by jconv's products.

`from jconv import lax` in the place of `from jax import lax` is all that a file needs: results, errors, shapes, dtypes
and weak types are lax's, derivatives of every order and in both modes are made of jconv's products, and every name that
is not defined here is jax.lax's. Each function below runs the one of jax.lax through the rewriting that accelerate
uses, so that lax checks its arguments and reads its defaults, and jconv computes; what jconv computes no better is left
to lax. Two differ in values: maxima where NaN or padding takes part (see jconv.max_pool), and the patches, which are
moved instead of multiplied by an identity kernel, so that a NaN stays in its own column and no precision is lost.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jconv import pool_rules
from jconv.geometry import Axis, Geometry
from jconv.pool_rules import PatchPlan
from jconv.rewriting import table, walk

Array = jax.Array
Pads = str | Sequence[tuple[int, int]]

__all__ = [
    "conv",
    "conv_general_dilated",
    "conv_general_dilated_local",
    "conv_general_dilated_patches",
    "conv_transpose",
    "conv_with_general_padding",
    "reduce_window",
]


def __getattr__(name: str) -> Any:
    """Whatever else jax.lax has."""
    return getattr(lax, name)


def __dir__() -> list[str]:
    return sorted({*dir(lax), *globals()})


_conv = walk.apply(table.BY_JCONV, lax.conv)
_conv_with_general_padding = walk.apply(table.BY_JCONV, lax.conv_with_general_padding)
_conv_general_dilated = walk.apply(table.BY_JCONV, lax.conv_general_dilated)
_conv_transpose = walk.apply(table.BY_JCONV, lax.conv_transpose)
_reduce_window = walk.apply(table.BY_JCONV, lax.reduce_window)


def conv(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """jax.lax.conv, computed by jconv: conv_general_dilated of (batch, in, *space) and a kernel (out, in, *window).

    Example:
      >>> import jax.numpy as jnp
      >>> conv(jnp.arange(5.0).reshape(1, 1, 5), jnp.ones((1, 1, 3)), (1,), "VALID").ravel()
      Array([3., 6., 9.], dtype=float32)
    """
    return _conv(lhs, rhs, window_strides, padding, precision, preferred_element_type)


def conv_with_general_padding(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Pads,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """jax.lax.conv_with_general_padding, computed by jconv: conv with any padding and both dilations.

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.arange(5.0).reshape(1, 1, 5), jnp.ones((1, 1, 3))
      >>> conv_with_general_padding(x, kernel, (1,), [(2, 0)], None, None).ravel()
      Array([0., 1., 3., 6., 9.], dtype=float32)
    """
    return _conv_with_general_padding(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, precision, preferred_element_type
    )


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Pads,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """jax.lax.conv_general_dilated, computed by jconv. Also the hook that Flax's layers take as `conv_general_dilated`.

    Any layout, stride, padding, dilation and grouping. Where out_sharding is given, lax computes it.

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 1, 4))
      >>> y = conv_general_dilated(
      ...     x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
      ... )
      >>> y.shape, float(y[0, 0, 0, 0])
      ((1, 3, 3, 4), 4.0)
    """
    return _conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        out_sharding,
    )


def conv_transpose(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: Pads,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    use_consistent_padding: bool = False,
) -> Array:
    """jax.lax.conv_transpose, computed by jconv, which never multiplies by the zeros between the elements of lhs.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_transpose(jnp.array([1.0, 2.0]).reshape(1, 2, 1), jnp.ones((3, 1, 1)), (2,), "VALID").ravel()
      Array([1., 1., 3., 2., 2.], dtype=float32)
    """
    return _conv_transpose(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation,
        dimension_numbers,
        transpose_kernel,
        precision,
        preferred_element_type,
        use_consistent_padding,
    )


def conv_general_dilated_patches(
    lhs: ArrayLike,
    filter_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Pads,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """jax.lax.conv_general_dilated_patches by moving values: a NaN stays in its own column, nothing is rounded.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_general_dilated_patches(jnp.arange(4.0).reshape(1, 1, 4), (3,), (1,), "VALID")
      Array([[[0., 1.],
              [1., 2.],
              [2., 3.]]], dtype=float32)
    """
    stock: Callable[[Array], Array] = functools.partial(
        lax.conv_general_dilated_patches,
        filter_shape=filter_shape,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    convolution = jax.make_jaxpr(stock)(lhs).jaxpr.eqns[-1]  # lax's convolution with an identity kernel, never run
    aval, given = convolution.outvars[0].aval, convolution.params
    if 0 in aval.shape or len(filter_shape) == 0:
        return stock(lhs)  # pyright: ignore[reportArgumentType]
    lhs_spec, rhs_spec, out_spec = given["dimension_numbers"]
    # The spatial axes in the order in which the kernel has them: taps are numbered row-major in that order.
    space = sorted(range(len(filter_shape)), key=lambda i: rhs_spec[2 + i])
    x = lax.transpose(jnp.asarray(lhs), (lhs_spec[0], *(lhs_spec[2 + i] for i in space), lhs_spec[1]))
    gaps = [given["lhs_dilation"][i] - 1 for i in space]
    if any(gaps):
        x = lax.pad(x, lax.full_like(x, 0, shape=()), [(0, 0, 0), *((0, 0, gap) for gap in gaps), (0, 0, 0)])
    axes = [
        Axis(
            input=x.shape[1 + place],
            window=tuple(filter_shape)[place],
            output=aval.shape[out_spec[2 + i]],
            stride=given["window_strides"][i],
            dilation=given["rhs_dilation"][i],
            low=given["padding"][i][0],
        )
        for place, i in enumerate(space)
    ]
    columns = pool_rules.unfold(PatchPlan(Geometry(tuple(axes))), x).astype(aval.dtype)
    order = [0] * columns.ndim
    order[out_spec[0]], order[out_spec[1]] = 0, columns.ndim - 1
    for place, i in enumerate(space):
        order[out_spec[2 + i]] = 1 + place
    return lax.transpose(columns, order)


def conv_general_dilated_local(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: Pads,
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: Any = None,
) -> Array:
    """jax.lax.conv_general_dilated_local: a kernel for each place, one batched matrix product of the patches.

    Example:
      >>> import jax.numpy as jnp
      >>> kernels = jnp.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).T[None]  # (out, in * taps, places)
      >>> conv_general_dilated_local(jnp.arange(4.0).reshape(1, 1, 4), kernels, (1,), "VALID", (3,))
      Array([[[3., 3.]]], dtype=float32)
    """
    window = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers)
    jax.eval_shape(
        lambda lhs, rhs: lax.conv_general_dilated_local(
            lhs, rhs, window_strides, padding, filter_shape, lhs_dilation, rhs_dilation, dimension_numbers, precision
        ),
        lhs,
        rhs,
    )  # raises what lax raises
    patches = conv_general_dilated_patches(lhs, filter_shape, *window)
    _, rhs_spec, out_spec = lax.conv_dimension_numbers(patches.shape, (1, 1, *filter_shape), dimension_numbers)
    places = sorted(zip(out_spec[2:], rhs_spec[2:], strict=True))  # the places are a batch of matrix products
    contracted, batched = ([out_spec[1]], [rhs_spec[1]]), ([p for p, _ in places], [r for _, r in places])
    y = lax.dot_general(patches, jnp.asarray(rhs), (contracted, batched), precision=precision)
    last = y.ndim - 1  # y: (*places, batch, out)
    order: list[int] = list(range(last - 1))
    for axis, at in sorted([(out_spec[0], last - 1), (out_spec[1], last)]):
        order.insert(axis, at)
    return lax.transpose(y, order)


def reduce_window(
    operand: Any,
    init_value: Any,
    computation: Callable[..., Any],
    window_dimensions: Any,
    window_strides: Sequence[int] | None = None,
    padding: Pads = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Any:
    """jax.lax.reduce_window, computed by jconv where `computation` is max, min or add, by any spelling.

    It then has derivatives whatever the initial value and the dilation of the windows; lax derives neither.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> x = jnp.array([1.0, 5.0, 5.0, 2.0])
      >>> jax.grad(lambda x: reduce_window(x, 0.0, jnp.maximum, (2,)).sum())(x)
      Array([0., 2., 1., 0.], dtype=float32)
    """
    return _reduce_window(
        operand, init_value, computation, window_dimensions, window_strides, padding, base_dilation, window_dilation
    )
