"""Pooling to a given size, global pooling, and unpooling, as users call them.

The windows of adaptive pooling differ from place to place, so the elements of each are laid side by side first, along
the axes that need it; what follows is a pooling without overlap. The rules stand in pool_rules.py, the windows in
algorithms/tables.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jconv import arguments, pool_products, pool_rules, pooling
from jconv import geometry as geo
from jconv.algorithms.tables import Adaptive
from jconv.pool_rules import AdaptivePlan, ExtremePlan, SumPlan
from jconv.pooling import Integers, Layout, array_in, array_out

Array = jax.Array


def _blocks(windows: tuple[Adaptive, ...]) -> geo.Geometry:
    """The geometry of windows side by side, each as wide as the widest."""
    return geo.Geometry(tuple(geo.Axis(w.output * w.window, w.window, w.output, w.window) for w in windows))


def _side_by_side(windows: tuple[Adaptive, ...], x: Array) -> Array:
    for dim, axis in enumerate(windows, start=1):
        if not axis.even:
            x = pool_products.expand(x, dim, axis)
            x = x.reshape(*x.shape[:dim], axis.output * axis.window, *x.shape[dim + 2 :])
    return x


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_adaptive_max(layout: Layout, windows: tuple[Adaptive, ...], return_indices: bool, x: Array) -> Any:
    dtype, space = x.dtype, tuple(w.input for w in windows)
    if dtype in (jnp.float16, jnp.bfloat16) and not all(w.even for w in windows):
        x = x.astype(jnp.float32)  # an element of several windows gets the sum of their gradients
    x, plan = _side_by_side(windows, array_in(x, layout)), ExtremePlan(_blocks(windows), True)
    y = array_out(pool_rules.max_pool(plan, x).astype(dtype), layout)
    if not return_indices:
        return y
    _, tap = pool_products.winner(jax.lax.stop_gradient(x), plan.geometry)
    return y, array_out(pooling.elements_of(windows, space, tap), layout)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_adaptive_avg(layout: Layout, plan: AdaptivePlan, x: Array) -> Array:
    x = array_in(x.astype(plan.dtype), layout)
    if not all(windows.even for windows in plan.windows):
        return array_out(pool_rules.adaptive_avg_pool(plan, x), layout)
    blocks = _blocks(plan.windows)
    return array_out(pool_rules.avg_pool(SumPlan(blocks, plan.dtype, blocks.taps), x), layout)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_unpool(layout: Layout, space: tuple[int, ...], y: Array, indices: Array) -> Array:
    return array_out(pool_rules.max_unpool(space, array_in(y, layout), array_in(indices, layout)), layout)


def _read(fun: str, x: Any, output_shape: Any, data_format: Any) -> tuple[Any, Layout, tuple[Adaptive, ...]]:
    x = arguments.array(fun, "x", x)
    data_format = arguments.data_format(fun, data_format)
    rank = pooling.rank_of(fun, "x", x, "output_shape", output_shape)
    output = geo.integers(fun, "output_shape", output_shape, rank, 1)
    batched = arguments.batched(fun, "x", x.shape, rank)
    space = arguments.channels_last_shape(x.shape, data_format, batched)[int(batched) : -1]
    if 0 in space:
        raise ValueError(f"{fun}: x must have at least one element along each spatial axis, got shape {x.shape}")
    return x, Layout(data_format, batched), tuple(map(Adaptive, space, output))


def _read_global(fun: str, x: Any, data_format: Any) -> tuple[Any, Layout, tuple[Adaptive, ...]]:
    x = arguments.array(fun, "x", x)
    if x.ndim < 3:
        raise ValueError(f"{fun}: x must have at least 3 axes (batch, spatial, channels), got shape {x.shape}")
    return _read(fun, x, 1, data_format)


def adaptive_max_pool(
    x: ArrayLike, output_shape: Integers, *, return_indices: bool = False, data_format: str = "channels_last"
) -> Any:
    """Max pooling to a given size: y[n, i, c] = max of x[n, a, c] over floor(i*n/m) <= a < ceil((i+1)*n/m).

    The windows are those of PyTorch: they overlap where m does not divide n, and m may be larger than n.

    Args:
      x: (batch, *space, channels), or unbatched (*space, channels), of floats or integers.
      output_shape: m, an integer (x is then batched) or one a spatial axis.
      return_indices: return (y, indices) as max_pool does.
      data_format: "channels_last", or "channels_first": x (batch, channels, *space).

    Returns:
      (batch, *output_shape, channels); with return_indices also int32 indices of this shape.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: PyTorch, torch.nn.AdaptiveMaxPool2d.

    Example:
      >>> adaptive_max_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel()
      Array([2., 4.], dtype=float32)
    """
    fun = "adaptive_max_pool"
    array, layout, windows = _read(fun, x, output_shape, data_format)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{fun}: x must have a real dtype, since complex numbers have no order, got {array.dtype}")
    return _run_adaptive_max(layout, windows, arguments.flag(fun, "return_indices", return_indices), array)


def adaptive_avg_pool(x: ArrayLike, output_shape: Integers, *, data_format: str = "channels_last") -> Array:
    """Average pooling to a given size, over the windows of adaptive_max_pool.

    Average pooling is linear; its gradient spreads g / window size evenly.

    Args:
      x: as in adaptive_max_pool; also complex. Integers have a float average.
      output_shape: see adaptive_max_pool.
      data_format: see adaptive_max_pool.

    Returns:
      (batch, *output_shape, channels).

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: PyTorch, torch.nn.AdaptiveAvgPool2d.

    Example:
      >>> adaptive_avg_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel()
      Array([1., 3.], dtype=float32)
    """
    array, layout, windows = _read("adaptive_avg_pool", x, output_shape, data_format)
    return _run_adaptive_avg(layout, AdaptivePlan(windows, pooling.mean_dtype(array.dtype)), array)


def global_max_pool(x: ArrayLike, *, data_format: str = "channels_last") -> Array:
    """The largest element of each channel: max_pool with a window as large as the input.

    Args:
      x: (batch, *space, channels); batched, any number of spatial axes from 1.
      data_format: "channels_last", or "channels_first": x (batch, channels, *space).

    Returns:
      (batch, *(1 for each spatial axis), channels).

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> global_max_pool(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel()
      Array([6., 7.], dtype=float32)
    """
    array, layout, windows = _read_global("global_max_pool", x, data_format)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"global_max_pool: x must have a real dtype, got {array.dtype}")
    return _run_adaptive_max(layout, windows, False, array)


def global_avg_pool(x: ArrayLike, *, data_format: str = "channels_last") -> Array:
    """The mean of each channel: avg_pool with a window as large as the input.

    Args:
      x: (batch, *space, channels); batched, any number of spatial axes from 1.
      data_format: "channels_last", or "channels_first": x (batch, channels, *space).

    Returns:
      (batch, *(1 for each spatial axis), channels).

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> global_avg_pool(jnp.arange(8.0).reshape(1, 2, 2, 2)).ravel()
      Array([3., 4.], dtype=float32)
    """
    array, layout, windows = _read_global("global_avg_pool", x, data_format)
    return _run_adaptive_avg(layout, AdaptivePlan(windows, pooling.mean_dtype(array.dtype)), array)


def max_unpool(
    y: ArrayLike, indices: ArrayLike, output_shape: Integers, *, data_format: str = "channels_last"
) -> Array:
    """Writes y back to where max_pool found it: x[n, indices[n, p, c], c] = y[n, p, c], and 0 elsewhere.

    Where an index comes twice, the later place writes. Its rule is the gather, dy[n, p, c] = g[n, indices[n, p, c], c],
    as in PyTorch: right where equal indices carry equal values, as those of max_pool do. Index -1, a window wholly in
    the padding, writes nothing.

    Args:
      y: (batch, *space, channels), or unbatched (*space, channels).
      indices: integers of y's shape: elements of the result, row-major over its spatial axes.
      output_shape: spatial shape of the result, an integer (y is then batched) or one a spatial axis.
      data_format: "channels_last", or "channels_first": y (batch, channels, *space).

    Returns:
      (batch, *output_shape, channels), of y's dtype.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected. Indices out of
        range are an error where they are known; under jit, where they are not, they write nothing.

    Source: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks, section 2.1.

    Example:
      >>> max_unpool(jnp.array([5.0, 7.0]).reshape(1, 2, 1), jnp.array([1, 3]).reshape(1, 2, 1), 4).ravel()
      Array([0., 5., 0., 7.], dtype=float32)
    """
    fun = "max_unpool"
    values, places = arguments.array(fun, "y", y), arguments.array(fun, "indices", indices)
    data_format = arguments.data_format(fun, data_format)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise TypeError(f"{fun}: indices must be integers, got {places.dtype}")
    if places.shape != values.shape:
        raise ValueError(f"{fun}: indices must have y's shape {values.shape}, got {places.shape}")
    rank = pooling.rank_of(fun, "y", values, "output_shape", output_shape)
    space = geo.integers(fun, "output_shape", output_shape, rank, 1)
    batched = arguments.batched(fun, "y", values.shape, rank)
    if not isinstance(places, Tracer) and places.size:
        seen = np.asarray(places)
        low, high = int(seen.min()), int(seen.max())
        if low < -1 or high >= math.prod(space):
            raise ValueError(
                f"{fun}: indices must be from -1 to {math.prod(space) - 1}, elements of {output_shape=}, got "
                f"{low if low < -1 else high}"
            )
    return _run_unpool(Layout(data_format, batched), space, values, places)
