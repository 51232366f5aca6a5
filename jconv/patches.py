"""Patches, as users call them: unfold moves every window's elements into a row, fold adds them back to their places.

    unfold    columns[n, p, (c, t)] = x[n, p*s + t*d - low, c]
    fold      x[n, a, c] = sum of columns[n, p, (c, t)] over all p and t where p*s + t*d - low = a
They are adjoint to each other, each the other's rule (pool_rules.py). Values are moved and added, never multiplied: a
NaN stays in its own column.
Source: torch.nn.Unfold and torch.nn.Fold; Chellapilla et al. 2006, High performance convolutional neural networks for
document processing, section 3.
"""

import functools
import math
from typing import Any

import jax
from jax.typing import ArrayLike

from jconv import arguments, pool_rules, pooling, value_padding
from jconv import geometry as geo
from jconv.algorithms.views import wide
from jconv.pool_rules import PatchPlan
from jconv.pooling import Integers, Layout, Padding, array_in, array_out

Array = jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_unfold(layout: Layout, plan: PatchPlan, x: Array) -> Array:
    return array_out(pool_rules.unfold(plan, array_in(x, layout)), layout)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_fold(layout: Layout, plan: PatchPlan, values: Any, columns: Array) -> Array:
    if not values:
        return array_out(pool_rules.fold(plan, array_in(columns, layout)), layout)
    unrounded = columns.astype(wide(columns.dtype))  # rounded once, when all is added
    x = value_padding.add_back(pool_rules.fold(plan, array_in(unrounded, layout)), *values)
    return array_out(x.astype(columns.dtype), layout)


def unfold(
    x: ArrayLike,
    window_shape: Integers,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    window_dilation: Integers = 1,
    data_format: str = "channels_last",
) -> Array:
    """The elements of every window, in a row: columns[n, p, (c, t)] = x[n, p*s + t*d - low, c]. Also known as im2col.

    Its rule is fold. It moves values: a NaN stays in its own column.

    Args:
      x: (batch, *space, channels), or unbatched (*space, channels), of any dtype.
      window_shape: k, an integer (x is then batched) or one a spatial axis.
      strides: s, an integer or one a spatial axis.
      padding: as in jconv.conv; zeros, or values of x.
      window_dilation: d, an integer or one a spatial axis.
      data_format: "channels_last", or "channels_first": x (batch, channels, *space).

    Returns:
      (batch, *out_space, channels * taps), of channel and tap (row-major) the channel the slower, as in
      jax.lax.conv_general_dilated_patches; channels_first (batch, channels * taps, *out_space).

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> import jax.numpy as jnp
      >>> unfold(jnp.arange(4).reshape(1, 4, 1), 3)
      Array([[[0, 1, 2],
              [1, 2, 3]]], dtype=int32)
    """
    array, geometry, layout, *_ = pooling.read(
        "unfold", x, window_shape, strides, padding, window_dilation, False, data_format
    )
    return _run_unfold(layout, PatchPlan(geometry), array)


def fold(
    columns: ArrayLike,
    output_shape: Integers,
    window_shape: Integers,
    *,
    strides: Integers = 1,
    padding: Padding = "VALID",
    window_dilation: Integers = 1,
    data_format: str = "channels_last",
) -> Array:
    """The adjoint of unfold, col2im: x[n, a, c] = sum of columns[n, p, (c, t)] over all p and t that see a.

    Its rule is unfold. float16 and bfloat16 are added in float32.

    Args:
      columns: (batch, *out_space, channels * taps), what unfold gives for x of shape (batch, *output_shape,
        channels); or unbatched.
      output_shape: spatial shape of the result, an integer or one a spatial axis.
      window_shape: as in unfold, and so are strides, padding, window_dilation and data_format.
      strides: see unfold.
      padding: see unfold.
      window_dilation: see unfold.
      data_format: see unfold.

    Returns:
      (batch, *output_shape, channels), of columns' dtype.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> import jax.numpy as jnp
      >>> fold(jnp.ones((1, 2, 3)), 4, 3).ravel()
      Array([1., 2., 2., 1.], dtype=float32)
    """
    fun = "fold"
    array = arguments.array(fun, "columns", columns)
    data_format = arguments.data_format(fun, data_format)
    given = "output_shape" if pooling.is_sequence(output_shape) else "window_shape"
    rank = pooling.rank_of(fun, "columns", array, given, output_shape if given == "output_shape" else window_shape)
    space = geo.integers(fun, "output_shape", output_shape, rank, 0)
    window = geo.integers(fun, "window_shape", window_shape, rank, 1)
    batched = arguments.batched(fun, "columns", array.shape, rank)
    geometry, values, *_ = pooling.geometry_of(
        fun,
        space,
        window,
        geo.integers(fun, "strides", strides, rank, 1),
        geo.padding_form(fun, padding, rank),
        geo.integers(fun, "window_dilation", window_dilation, rank, 1),
        False,
    )
    shape = arguments.channels_last_shape(array.shape, data_format, batched)
    if shape[int(batched) : -1] != geometry.output:
        raise ValueError(
            f"{fun}: columns must have {geometry.output} places, what unfold gives for {output_shape=} and "
            f"{window_shape=}, got shape {array.shape}, {data_format=}"
        )
    if shape[-1] % math.prod(window):
        raise ValueError(
            f"{fun}: columns must have a multiple of {math.prod(window)} channels, the taps of {window_shape=}, got "
            f"shape {array.shape}, {data_format=}"
        )
    return _run_fold(Layout(data_format, batched), PatchPlan(geometry), values, array)
