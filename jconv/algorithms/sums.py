"""Sum and average pooling, and their gradients: few taps in one loop, else axis after axis.

window_sum     y[p] = sum over t of x[a], divided by the window's size where a divisor is given
window_spread  dx[a] = sum over the windows p that see a of g[p], each divided by its window's size
Cost: one pass over x and y while few taps are to be added: no padded copy, no array between (see views.py). A window
that covers all is a reduction. A long axis takes log2(window) steps where windows share elements (long_windows.py).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import long_windows, views
from jconv.algorithms.views import Blocks, along, apart
from jconv.geometry import Axis, Geometry

Array = jax.Array
Divisor = int | tuple[tuple[int, int], ...] | None  # see size
TAPS = 27  # of a window, or windows over an element, that one loop adds up
TAPS_ALONG = 32  # the same along one axis
LONG_ROW = 256  # channels from which XLA's own reduction need not wait for one addition before the next,
FOLDED_BYTES = 16 << 20  # or of less, since it comes from the cores' caches
TAPS_APART = 64  # taps, where windows share no element, so that each is read once all the same


def size(geometry: Geometry, divisor: Divisor) -> np.ndarray:
    """What each window's sum is divided by: a number (), or an array (*output, 1) where windows differ.

    divisor: a number, or what of each axis counts, the elements in [first, end), counted from the input's first:
    padding that counts has numbers below 0 and from `input` on.
    """
    if divisor is None or isinstance(divisor, int):
        return np.array(1 if divisor is None else divisor)
    total = np.ones((), int)
    for i, (axis, (first, end)) in enumerate(zip(geometry.axes, divisor, strict=True)):
        start = np.arange(axis.output) * axis.stride - axis.low
        lowest = np.clip(-((start - first) // axis.dilation), 0, axis.window)  # taps before `first` do not count
        highest = np.clip(-((start - end) // axis.dilation), 0, axis.window)
        count = np.maximum(highest - lowest, 0)
        count = count[:1] if (count == count[:1]).all() else count
        total = total * along(count, i, geometry.rank + 1)
    return total.reshape(()) if total.size == 1 else total


def _divided(total: Array, by: np.ndarray) -> Array:
    return total if by.shape == () and by == 1 else total / jnp.asarray(by, total.dtype)


def _direct(geometry: Geometry, counts: Sequence[int], most: int = TAPS) -> bool:
    """Whether one loop adds up so many of each axis."""
    along_one = sum(n > 1 for n in counts) == 1
    return math.prod(counts) <= (TAPS_ALONG if along_one and any(map(_shares, geometry.axes)) else most)


def _shares(axis: Axis) -> bool:
    return not views.separate(axis)


def window_sum(x: Array, *, geometry: Geometry, dtype: Any, divisor: Divisor = None, platform: str) -> Array:
    """The sum over each window, divided by its size."""
    wide, by = views.wide(dtype), size(geometry, divisor)
    alone = not any(map(_shares, geometry.axes))
    stages = [range(geometry.rank)] if alone else views.stages(geometry, geometry.window, TAPS)[::-1]
    total = x
    for stage in stages:
        part, last = views.only(geometry, stage, total.shape[1:-1]), stage is stages[-1]
        one = np.array(1)
        separate = not any(map(_shares, part.axes))
        if part.taps > TAPS and long_windows.covers(part):
            if total.dtype == wide and total.shape[0] != 1 and _reduced_by_xla(total):
                total = jnp.sum(total, tuple(range(1, total.ndim - 1)), keepdims=True)
            else:
                total = long_windows.folded(lambda x, number: x.astype(wide), total, lax.add, 0, platform)
            total = _divided(total, by if last else one).astype(dtype if last else wide)
        elif separate or _direct(part, part.window):
            add = functools.partial(_sum, geometry=part, wide=wide, by=by if last else one)
            total = apart(lambda x, add=add, to=dtype if last else wide: add(x).astype(to), platform)(total)
        else:
            total = long_windows.reduced(total.astype(wide), part, lax.add, 0, platform)
            total = _divided(total, by if last else one).astype(dtype if last else wide)
    return total


def _reduced_by_xla(x: Array) -> bool:
    """Whether XLA's reduction takes no longer than one of rows that are added to each other first: see folded."""
    return x.shape[-1] >= LONG_ROW or not isinstance(x.shape[0], int) or x.size * x.dtype.itemsize < FOLDED_BYTES


def _sum(x: Array, *, geometry: Geometry, wide: Any, by: np.ndarray) -> Array:
    shape = (x.shape[0], *geometry.output, x.shape[-1])
    if 0 in geometry.input or 0 in geometry.output:
        total = jnp.zeros(shape, wide)
    elif geometry.taps <= TAPS_APART:
        seen = [views.masked(where, show(x).astype(wide), 0) for _, where, show in views.under(geometry)]
        total = functools.reduce(lax.add, seen) if seen else jnp.zeros(shape, wide)
    else:
        total = views.windowed(x, geometry, 0).astype(wide).sum(tuple(range(2, 2 * geometry.rank + 1, 2)))
    return _divided(total, by)


def window_spread(g: Array, *, geometry: Geometry, dtype: Any, divisor: Divisor = None, platform: str) -> Array:
    """The sum of g / size over the windows that see each element: g / window size, spread evenly."""
    wide, by = views.wide(g.dtype), size(geometry, divisor)
    by = np.where(by == 0, 1, by)  # a window without elements spreads nothing
    counts = [Blocks(axis).shifts for axis in geometry.axes]
    stages = views.stages(geometry, counts, TAPS)
    total = g
    if by.shape != () and math.prod(counts) > 1:  # once a place, not once for each element that it is spread to
        total, by = apart(lambda g: _divided(g.astype(wide), by), platform)(g), np.array(1)
    for stage in stages:
        part, last = views.only(geometry, stage, total.shape[1:-1]), stage is stages[-1]
        before, after = (by, np.array(1)) if by.shape != () else (np.array(1), by if last else np.array(1))
        number = [counts[i] for i in stage]
        if math.prod(number) <= TAPS or (len(number) == 1 and number[0] <= TAPS_ALONG):
            spread = functools.partial(_spread, geometry=part, wide=wide, before=before, after=after)
            total = apart(lambda g, f=spread, to=dtype if last else wide: f(g).astype(to), platform)(total)
        else:
            total = _long_spread(total.astype(wide), part, platform)
            total = _divided(total, after).astype(dtype if last else wide)
        by = by if by.shape == () else np.array(1)
    return total


def _spread(g: Array, *, geometry: Geometry, wide: Any, before: np.ndarray, after: np.ndarray) -> Array:
    shares, given = _divided(g.astype(wide), before), []
    for taps, show, end in views.over(geometry):
        seen: Any = True
        for tap in taps:
            seen = seen if (tap >= 0).all() else seen & jnp.asarray(tap >= 0)
        phases = np.broadcast_shapes(*(tap.shape for tap in taps))  # 1 in the batch, which may be symbolic
        shape = tuple(n if m == 1 else m for n, m in zip(show(shares).shape, phases, strict=True))
        given.append(end(views.masked(seen, jnp.broadcast_to(show(shares), shape), 0)))
    if not given:
        return jnp.zeros((g.shape[0], *geometry.input, g.shape[-1]), wide)
    return _divided(functools.reduce(lax.add, given), after)


def _long_spread(g: Array, geometry: Geometry, platform: str) -> Array:
    """Along an axis whose windows have a stride of 1 the window sum of g, its window turned round; else a loop."""
    back = geometry.for_input_grad()
    if all(axis.input_dilation == 1 for axis in back.axes):
        return long_windows.reduced(g, back, lax.add, 0, platform)
    return long_windows.spread(g, geometry)
