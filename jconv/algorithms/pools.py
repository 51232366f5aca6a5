"""Pooling by taps: winners, sums and their adjoints, one axis at a time where that is exact.

winner         the maximum over a window is a maximum over its rows of the maxima along each row
window_sum     so is a sum
scatter        dx[a] = sum over the windows p that see a of where(index[p] == tap of a in p, g[p], 0)
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

Array = jax.Array


def _wide(dtype: Any) -> Any:
    """The dtype of sums: float32 for float16 and bfloat16."""
    return jnp.dtype(jnp.float32) if dtype in (jnp.float16, jnp.bfloat16) else jnp.dtype(dtype)


def identity(dtype: Any, largest: bool) -> Any:
    """What loses to every element: -inf or the least integer (inf, the greatest, where the smallest wins)."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if largest else np.inf
    return jnp.iinfo(dtype).min if largest else jnp.iinfo(dtype).max


def _slide(x: Array, dim: int, axis: Axis, tap: int) -> Array:
    """The padded x under tap `tap` of each place along one axis."""
    start = tap * axis.dilation
    return lax.slice_in_dim(x, start, start + (axis.output - 1) * axis.stride + 1, axis.stride, axis=dim)


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
        axis, dim = geometry.axes[i], i + 1
        first = np.array([min(axis.taps_inside(p), default=0) for p in range(axis.output)])
        values, codes = _pad(best, dim, axis.low, axis.high, lost), _pad(code, dim, axis.low, axis.high, 0)
        best, code = _slide(values, dim, axis, 0), _slide(codes, dim, axis, 0)
        for tap in range(1, axis.window):
            rival, named = _slide(values, dim, axis, tap), _slide(codes, dim, axis, tap) + jnp.array(tap * scale, dtype)
            wins = _beats(rival, best, largest)
            if (first == tap).any():  # the first tap on an element: padding loses to it, even if it is -inf
                mask = (first == tap).reshape([-1 if j == dim else 1 for j in range(rival.ndim)])
                wins |= jnp.broadcast_to(mask, wins.shape)
            best, code = jnp.where(wins, rival, best), jnp.where(wins, named, code)
        scale *= axis.window
    return best, code


def _codes(axis: Axis, shift: int, scale: int) -> np.ndarray:
    """Along one axis: scale * the tap that sees element a from the shift-th last window over it; -1 if none."""
    place = np.arange(axis.input) + axis.low
    last = place // axis.stride - shift
    tap, rest = np.divmod(place - last * axis.stride, axis.dilation)
    seen = (rest == 0) & (tap < axis.window) & (last >= 0) & (last < axis.output)
    return np.where(seen, tap * scale, -1)


def scatter(g: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """dx[a] = sum over the windows that see a of where(index == tap, g, 0): all but the winner get 0."""
    del platform
    total: Any = 0
    scales = [math.prod(geometry.window[i + 1 :]) for i in range(geometry.rank)]
    g_wide, index = g.astype(_wide(g.dtype)), index.astype(jnp.int32)
    counts = [-(-axis.reach // axis.stride) for axis in geometry.axes]
    for shifts in itertools.product(*map(range, counts)):
        code, valid, seen, named = 0, True, g_wide, index
        for i, (axis, shift, scale) in enumerate(zip(geometry.axes, shifts, scales, strict=True)):
            codes = _codes(axis, shift, scale).reshape([-1 if j == i else 1 for j in range(geometry.rank)])
            code, valid = code + codes, valid & (codes >= 0)
            seen, named = (_spread_axis(v, i + 1, axis, shift) for v in (seen, named))
        code = np.where(valid, code, -1)[..., None].astype(np.int32)  # index's type, with x64 too
        total = total + jnp.where(named == code, seen, jnp.zeros((), g_wide.dtype))
    return total.astype(g.dtype)


def _spread_axis(g: Array, dim: int, axis: Axis, shift: int) -> Array:
    """g at the shift-th last window that sees each element along one axis; anything where there is none."""
    place = (np.arange(axis.input) + axis.low) // axis.stride - shift
    return jnp.take(g, np.clip(place, 0, axis.output - 1), axis=dim, mode="clip")


def gather(x: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """The padded input under the tap that index names."""
    del platform
    x, geometry = windows.crop(x, geometry)
    padded = windows.pad(x, geometry)
    y = jnp.zeros(index.shape, x.dtype)
    for number, tap in enumerate(itertools.product(*map(range, geometry.window))):
        y = jnp.where(index == number, windows.under_tap(padded, geometry, tap), y)
    return y


def window_sum(x: Array, *, geometry: Geometry, dtype: Any, platform: str) -> Array:
    """The sum over each window, one axis after the other."""
    del platform
    x, geometry = windows.crop(x, geometry)
    total = x.astype(_wide(dtype))
    for i in reversed(range(geometry.rank)):
        axis, dim = geometry.axes[i], i + 1
        padded = _pad(total, dim, axis.low, axis.high, 0)
        total = _slide(padded, dim, axis, 0)
        for tap in range(1, axis.window):
            total = total + _slide(padded, dim, axis, tap)
    return total.astype(dtype)


def window_spread(g: Array, *, geometry: Geometry, dtype: Any, platform: str) -> Array:
    """The sum over the windows that see each element: g, dilated by the stride, under a window turned round."""
    del platform
    total = g.astype(_wide(g.dtype))
    for i in range(geometry.rank):
        axis, dim = geometry.axes[i].for_input_grad(), i + 1
        widths = [(axis.low, axis.high, axis.input_dilation - 1) if j == dim else (0, 0, 0) for j in range(g.ndim)]
        padded = lax.pad(total, jnp.zeros((), total.dtype), widths)
        total = _slide(padded, dim, axis, 0)
        for tap in range(1, axis.window):
            total = total + _slide(padded, dim, axis, tap)
    return total.astype(dtype)


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
    flat = indices.reshape(batch, -1, channels)
    outside = (flat < 0) | (flat >= length)
    flat = jnp.where(outside, 0, flat)
    taken = jnp.take_along_axis(x.reshape(batch, length, channels), flat, axis=1)
    return jnp.where(outside, jnp.zeros((), x.dtype), taken).reshape(indices.shape)
