"""Pooling by taps: winners, sums and their adjoints, one axis at a time where that is exact.

A program spells out at most UNROLLED taps of an axis; the taps of a longer window run in a loop.

winner         the maximum over a window is a maximum over its rows of the maxima along each row
window_sum     so is a sum
scatter        dx[a] = sum over the windows p that see a of where(index[p] == tap of a in p, g[p], 0)
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

Array = jax.Array
UNROLLED = 16  # taps of one axis, or windows over one element, that one program spells out
GATHERED = 32  # taps of a window up to which a gather is one select a tap


def _wide(dtype: Any) -> Any:
    """The dtype of sums: float32 for float16 and bfloat16."""
    return jnp.dtype(jnp.float32) if dtype in (jnp.float16, jnp.bfloat16) else jnp.dtype(dtype)


def identity(dtype: Any, largest: bool) -> Any:
    """What loses to every element: -inf or the least integer (inf, the greatest, where the smallest wins)."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if largest else np.inf
    return jnp.iinfo(dtype).min if largest else jnp.iinfo(dtype).max


def _slide(x: Array, dim: int, axis: Axis, tap: Any) -> Array:
    """The padded x under tap `tap`, an int or in a loop a traced number, of each place along one axis."""
    start, reach = tap * axis.dilation, (axis.output - 1) * axis.stride + 1
    if isinstance(tap, int):
        return lax.slice_in_dim(x, start, start + reach, axis.stride, axis=dim)
    return lax.slice_in_dim(lax.dynamic_slice_in_dim(x, start, reach, dim), 0, reach, axis.stride, axis=dim)


def _each(count: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """step(i, carry) for i from 1 to before `count`: written out, or beyond UNROLLED in a loop."""
    if count > UNROLLED:
        return lax.fori_loop(1, count, step, carry)
    return functools.reduce(lambda carry, i: step(i, carry), range(1, count), carry)


def _sum_taps(padded: Array, dim: int, axis: Axis) -> Array:
    """The sum over the taps of one axis."""
    add = lambda tap, total: total + _slide(padded, dim, axis, tap)
    return _each(axis.window, add, _slide(padded, dim, axis, 0))


def _pad(x: Array, dim: int, low: int, high: int, value: Any) -> Array:
    if not (low or high):
        return x
    widths = [(low, high, 0) if i == dim else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.array(value, x.dtype), widths)


def _beats(rival: Array, best: Array, largest: bool) -> Array:
    """Whether rival, which comes later, takes the place of best."""
    wins = rival > best if largest else rival < best
    if jnp.issubdtype(best.dtype, jnp.floating):
        wins |= jnp.isnan(rival) & ~jnp.isnan(best)
    return wins


def _index_dtype(taps: int) -> Any:
    return jnp.uint8 if taps <= 2**8 else jnp.uint16 if taps <= 2**16 else jnp.int32


def winner(x: Array, *, geometry: Geometry, largest: bool, platform: str) -> tuple[Array, Array]:
    """(value, tap number) of the first best element of each window, row-major."""
    del platform
    lost, dtype = identity(x.dtype, largest), _index_dtype(geometry.taps)
    x, geometry = windows.crop(x, geometry)
    best, code, scale = x, jnp.zeros(x.shape, dtype), 1
    for i in reversed(range(geometry.rank)):
        best, code = _winner_along(best, code, i + 1, geometry.axes[i], scale, lost, largest)
        scale *= geometry.axes[i].window
    return best, code


def extreme(x: Array, *, geometry: Geometry, largest: bool, platform: str) -> Array:
    """The best of each window; a NaN is the best of all. Where windows overlap, one axis after the other."""
    del platform
    lost, better = identity(x.dtype, largest), lax.max if largest else lax.min
    x, geometry = windows.crop(x, geometry)
    if all(map(_apart, geometry.axes)):
        return _reduced(x, geometry, lost, better)
    for i in reversed(range(geometry.rank)):
        x = _best_along(
            _pad(x, i + 1, geometry.axes[i].low, geometry.axes[i].high, lost), i + 1, geometry.axes[i], better
        )
    return x


def _apart(axis: Axis) -> bool:
    """Whether no element is in two windows."""
    return axis.output == 1 or axis.stride >= axis.reach


def _reduced(x: Array, geometry: Geometry, initial: Any, operation: Callable[[Array, Array], Array]) -> Array:
    """lax's own, which is fast forward where windows do not overlap."""
    pads = ((0, 0), *((axis.low, axis.high) for axis in geometry.axes), (0, 0))
    sizes = ((1, *geometry.window, 1), (1, *(axis.stride for axis in geometry.axes), 1))
    dilation = (1, *(axis.dilation for axis in geometry.axes), 1)
    return lax.reduce_window(x, jnp.array(initial, x.dtype), operation, *sizes, pads, window_dilation=dilation)


def _best_along(padded: Array, dim: int, axis: Axis, better: Callable[[Array, Array], Array]) -> Array:
    challenge = lambda tap, best: better(best, _slide(padded, dim, axis, tap))
    return _each(axis.window, challenge, _slide(padded, dim, axis, 0))


def _winner_along(
    best: Array, code: Array, dim: int, axis: Axis, scale: int, lost: Any, largest: bool
) -> tuple[Array, Array]:
    """The first best of each window along one axis, and its code: its code so far plus scale * tap."""
    values, codes = _pad(best, dim, axis.low, axis.high, lost), _pad(code, dim, axis.low, axis.high, 0)
    first = np.array([min(axis.taps_inside(p), default=0) for p in range(axis.output)])
    first = first.reshape([-1 if j == dim else 1 for j in range(best.ndim)])

    def challenge(tap: Any, held: tuple[Array, Array]) -> tuple[Array, Array]:
        best, code = held
        rival = _slide(values, dim, axis, tap)
        named = _slide(codes, dim, axis, tap) + jnp.asarray(tap * scale).astype(code.dtype)
        wins = _beats(rival, best, largest)
        if not isinstance(tap, int) or (first == tap).any():
            wins |= jnp.asarray(first == tap)  # the first tap on an element: padding loses to it, even if it is -inf
        return jnp.where(wins, rival, best), jnp.where(wins, named, code)

    return _each(axis.window, challenge, (_slide(values, dim, axis, 0), _slide(codes, dim, axis, 0)))


def _codes(axis: Axis, shift: Any, scale: int) -> Any:
    """Along one axis: scale * the tap that sees element a from the shift-th last window over it; -1 if none."""
    place = np.arange(axis.input) + axis.low
    last = place // axis.stride - shift
    offset = place - last * axis.stride
    tap = offset // axis.dilation
    seen = (tap * axis.dilation == offset) & (tap < axis.window) & (last >= 0) & (last < axis.output)
    return (jnp if isinstance(last, jax.Array) else np).where(seen, tap * scale, -1)


def scatter(g: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """dx[a] = sum over the windows that see a of where(index == tap, g, 0): all but the winner get 0."""
    del platform
    scales = [math.prod(geometry.window[i + 1 :]) for i in range(geometry.rank)]
    g_wide, index = g.astype(_wide(g.dtype)), index.astype(jnp.int32)
    counts = [-(-axis.reach // axis.stride) for axis in geometry.axes]
    zero = jnp.zeros((), g_wide.dtype)

    def won(shifts: Sequence[Any]) -> Array:
        """What each element wins of the window that is shifts[i] places before the last one over it along axis i."""
        code, valid, seen, named = 0, True, g_wide, index
        for i, (axis, shift, scale) in enumerate(zip(geometry.axes, shifts, scales, strict=True)):
            codes = _codes(axis, shift, scale).reshape([-1 if j == i else 1 for j in range(geometry.rank)])
            code, valid = code + codes, valid & (codes >= 0)
            seen, named = (_spread_axis(v, i + 1, axis, shift) for v in (seen, named))
        code = jnp.where(valid, code, -1)[..., None].astype(jnp.int32)  # index's type, with x64 too
        return jnp.where(named == code, seen, zero)

    if math.prod(counts) <= UNROLLED:
        total = functools.reduce(lax.add, map(won, itertools.product(*map(range, counts))))
    else:
        add = lambda number, total: total + won(jnp.unravel_index(number, counts))
        total = lax.fori_loop(
            0, math.prod(counts), add, jnp.zeros((g.shape[0], *geometry.input, g.shape[-1]), zero.dtype)
        )
    return total.astype(g.dtype)


def _spread_axis(g: Array, dim: int, axis: Axis, shift: Any) -> Array:
    """g at the shift-th last window that sees each element along one axis; anything where there is none."""
    place = (np.arange(axis.input) + axis.low) // axis.stride - shift
    return jnp.take(g, place.clip(0, axis.output - 1), axis=dim, mode="clip")


def gather(x: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """The padded input under the tap that index names."""
    x, geometry = windows.crop(x, geometry)
    if geometry.taps > GATHERED:
        return read(x, _elements(index, geometry), platform=platform)
    padded = windows.pad(x, geometry)
    y = jnp.zeros(index.shape, x.dtype)
    for number, tap in enumerate(itertools.product(*map(range, geometry.window))):
        y = jnp.where(index == number, windows.under_tap(padded, geometry, tap), y)
    return y


def _elements(index: Array, geometry: Geometry) -> Array:
    """Tap numbers as row-major numbers of the elements of the input they name; -1 in the padding."""
    number: Any = 0
    inside: Any = True
    taps = jnp.unravel_index(index.astype(jnp.int32), geometry.window)
    for i, (axis, tap) in enumerate(zip(geometry.axes, taps, strict=True)):
        places = np.arange(axis.output, dtype=np.int32) * axis.stride - axis.low
        element = tap * axis.dilation + places.reshape([-1 if j == i + 1 else 1 for j in range(index.ndim)])
        number = number * axis.input + element
        inside = inside & (element >= 0) & (element < axis.input)
    return jnp.where(inside, number, -1)


def window_sum(x: Array, *, geometry: Geometry, dtype: Any, platform: str) -> Array:
    """The sum over each window, one axis after the other."""
    del platform
    x, geometry = windows.crop(x, geometry)
    total = x.astype(_wide(dtype))
    if all(map(_apart, geometry.axes)):
        return _reduced(total, geometry, 0, lax.add).astype(dtype)
    for i in reversed(range(geometry.rank)):
        axis, dim = geometry.axes[i], i + 1
        total = _sum_taps(_pad(total, dim, axis.low, axis.high, 0), dim, axis)
    return total.astype(dtype)


def window_spread(g: Array, *, geometry: Geometry, dtype: Any, platform: str) -> Array:
    """The sum over the windows that see each element: g, dilated by the stride, under a window turned round."""
    del platform
    if 0 in geometry.input:  # cropped to nothing: there is no element that a window could see
        return jnp.zeros((g.shape[0], *geometry.input, g.shape[-1]), dtype)
    total = g.astype(_wide(g.dtype))
    for i in range(geometry.rank):
        if geometry.axes[i].dilation == 1 and _apart(geometry.axes[i]):
            total = _repeated(total, i + 1, geometry.axes[i])
            continue
        axis, dim = geometry.axes[i].for_input_grad(), i + 1
        widths = [(axis.low, axis.high, axis.input_dilation - 1) if j == dim else (0, 0, 0) for j in range(g.ndim)]
        padded = lax.pad(total, jnp.zeros((), total.dtype), widths)
        total = _sum_taps(padded, dim, axis)
    return total.astype(dtype)


def _repeated(g: Array, dim: int, axis: Axis) -> Array:
    """Along one axis whose windows do not overlap: g at each element of its window, 0 between windows."""
    step = axis.window if axis.output == 1 else axis.stride
    shape = (*g.shape[: dim + 1], axis.window, *g.shape[dim + 1 :])
    g = lax.broadcast_in_dim(g, shape, [i for i in range(len(shape)) if i != dim + 1])
    zero = jnp.zeros((), g.dtype)
    g = lax.pad(g, zero, [(0, step - axis.window if i == dim + 1 else 0, 0) for i in range(len(shape))])
    g = g.reshape(*shape[:dim], axis.output * step, *shape[dim + 2 :])
    high = axis.input + axis.low - axis.output * step
    return lax.pad(g, zero, [(-axis.low, high, 0) if i == dim else (0, 0, 0) for i in range(g.ndim)])


def write(y: Array, indices: Array, *, space: tuple[int, ...], platform: str) -> Array:
    """The last place that names an element writes it: a maximum of place numbers, which no order can change."""
    del platform
    batch, *places, channels = y.shape
    count, length = math.prod(places), math.prod(space)
    flat, values = indices.reshape(batch, count, channels), y.reshape(batch, count, channels)
    outside = (flat < 0) | (flat >= length)
    flat = jnp.where(outside, length, flat.astype(jnp.int32))
    place = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[:, None], (count, channels))

    def one(flat: Array, values: Array) -> Array:
        channel = jnp.arange(channels, dtype=jnp.int32)
        last = jnp.full((length, channels), -1, jnp.int32).at[flat, channel].max(place, mode="drop")
        taken = jnp.take_along_axis(values, jnp.maximum(last, 0), axis=0)
        return jnp.where(last < 0, jnp.zeros((), y.dtype), taken)

    return jax.vmap(one)(flat, values).reshape(batch, *space, channels)


def read(x: Array, indices: Array, *, platform: str) -> Array:
    """x at each index."""
    del platform
    batch, *space, channels = x.shape
    length = math.prod(space)
    flat = indices.reshape(batch, math.prod(indices.shape[1:-1]), channels)
    outside = (flat < 0) | (flat >= length)
    flat = jnp.where(outside, 0, flat)
    taken = jnp.take_along_axis(x.reshape(batch, length, channels), flat, axis=1)
    return jnp.where(outside, jnp.zeros((), x.dtype), taken).reshape(indices.shape)
