"""Max pooling: the best of each window, which element it was, and the way back to it.

winner     y[p] = max over t of x[a], and the first tap that has it: the least t with x[a] == y[p], or a NaN
extreme    y alone
scatter    dx[a] = sum over the windows p that see a of where(index[p] == tap of a in p, g[p], 0)
gather     y[p] = sum over t of where(index[p] == t, x[a], 0)
Cost: each is one pass over its operands while few taps (or windows over an element) are to be looked at: a select a
tap in one loop, nothing written down between (see views.py). Else axis after axis, which is exact: the maximum over a
window is the maximum over its rows of the maxima along each row, and the first row that has it names the column. The
way back likewise, where all windows that have won in a row at a place name the same column: 13 x 13 windows are 26
selects, not 169. A long axis is a reduction where windows share no element, else it takes log2(window) steps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import long_windows, views
from jconv.algorithms.long_windows import NONE
from jconv.algorithms.views import Blocks, along, apart
from jconv.geometry import Geometry

Array = jax.Array
TAPS = 12  # of a window that one loop looks at where windows overlap: more are dearer than an array between two axes
TAPS_ALONG = 32  # the same of a window along one axis, which has no array between to be dearer than
TAPS_APART = 64  # and where they do not, so that each element is read once all the same
FOLDED = 9  # taps of a window as large as the input, beyond which it is a reduction
SHIFTS = 27  # windows over one element that one loop of the way back looks at
GATHERED = 32  # taps of a window up to which a gather is one select a tap


def identity(dtype: Any, largest: bool) -> Any:
    """What loses to every element: -inf or the least integer (inf, the greatest, where the smallest wins)."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if largest else np.inf
    return jnp.iinfo(dtype).min if largest else jnp.iinfo(dtype).max


def _index_dtype(taps: int) -> Any:
    return jnp.uint8 if taps <= 2**8 else jnp.uint16 if taps <= 2**16 else jnp.int32


def _direct(geometry: Geometry) -> bool:
    """Whether one loop looks at all taps."""
    sliding = [axis for axis in geometry.axes if axis.window > 1]
    if all(map(views.separate, geometry.axes)):
        return geometry.taps <= TAPS_APART
    return geometry.taps <= (TAPS_ALONG if len(sliding) == 1 else TAPS)


def _stages(geometry: Geometry) -> list[range]:
    """The axes that are looked at together, the last ones first."""
    if all(map(views.separate, geometry.axes)):
        return [range(geometry.rank)]
    return views.stages(geometry, geometry.window, TAPS)[::-1]


def winner(x: Array, *, geometry: Geometry, largest: bool, platform: str) -> tuple[Array, Array]:
    """(value, tap number) of the first best element of each window, row-major; a NaN is the best of all."""
    dtype, lost, better = _index_dtype(geometry.taps), identity(x.dtype, largest), _better(largest)
    if geometry.taps > FOLDED and long_windows.covers(geometry):
        best = extreme(x, geometry=geometry, largest=largest, platform=platform)
        flat = best.reshape(best.shape[0], 1, best.shape[-1])
        named = lambda x, number, best: jnp.where(views.hit(x, best), number, jnp.int32(NONE))
        return best, long_windows.folded(named, x, lax.min, NONE, platform, flat).astype(dtype)
    best, code, scale = x, None, 1
    for stage in _stages(geometry):
        part = views.only(geometry, stage, best.shape[1:-1])
        values = best
        if _direct(part) or all(map(views.separate, part.axes)):
            best = apart(functools.partial(_best, geometry=part, largest=largest), platform)(values)
            index = functools.partial(_index, geometry=part, scale=scale, dtype=dtype)
            code = apart(index, platform)(values, best, *(() if code is None else (code,)))
        else:
            best, code = long_windows.winner(values, code, part, scale, dtype, better, lost, platform)
        scale *= part.taps
    assert code is not None
    return best, code


def extreme(x: Array, *, geometry: Geometry, largest: bool, platform: str) -> Array:
    """The best of each window; a NaN is the best of all."""
    lost, better = identity(x.dtype, largest), _better(largest)
    if geometry.taps > FOLDED and long_windows.covers(geometry):
        if x.dtype not in views.HALVES:  # XLA's own reduction, of an array as it is, is the fastest
            return (jnp.max if largest else jnp.min)(x, tuple(range(1, x.ndim - 1)), keepdims=True)
        operation, least = lax.max if largest else lax.min, _ordered_identity(x.dtype, largest)
        total = long_windows.folded(lambda x, number: views.ordered(x, largest), x, operation, least, platform)
        return views.disordered(total, x.dtype)
    for stage in _stages(geometry):
        part = views.only(geometry, stage, x.shape[1:-1])
        if _direct(part) or all(map(views.separate, part.axes)):
            x = apart(functools.partial(_best, geometry=part, largest=largest), platform)(x)
        else:
            x = long_windows.reduced(x, part, better, lost, platform)
    return x


def _better(largest: bool) -> Callable[[Array, Array], Array]:
    """The better of two, element by element."""

    def better(a: Array, b: Array) -> Array:
        operation = lax.max if largest else lax.min
        return views.disordered(operation(views.ordered(a, largest), views.ordered(b, largest)), a.dtype)

    return better


def _ordered_identity(dtype: Any, largest: bool) -> Any:
    """`identity` as views.ordered gives it."""
    lost = identity(dtype, largest)
    return views.turned(np.array(lost, dtype).view(np.int16)) if dtype in views.HALVES else lost


def _best(x: Array, *, geometry: Geometry, largest: bool) -> Array:
    operation, shape = lax.max if largest else lax.min, (x.shape[0], *geometry.output, x.shape[-1])
    if 0 in geometry.input or 0 in geometry.output:
        return jnp.full(shape, identity(x.dtype, largest), x.dtype)
    lost = _ordered_identity(x.dtype, largest)
    if not _direct(geometry):
        total = _reduced(views.windowed(views.ordered(x, largest), geometry, lost), lost, operation)
        return views.disordered(total, x.dtype)
    seen = [views.masked(where, views.ordered(show(x), largest), lost) for _, where, show in views.under(geometry)]
    if not seen:
        return jnp.full(shape, identity(x.dtype, largest), x.dtype)
    return views.disordered(functools.reduce(operation, seen), x.dtype)


def _reduced(x: Array, initial: Any, operation: Any) -> Array:
    """The reduction over the window axes of an array as views.windowed makes it."""
    return lax.reduce(x, jnp.array(initial, x.dtype), operation, tuple(range(2, x.ndim - 1, 2)))


def _index(x: Array, best: Array, code: Array | None = None, *, geometry: Geometry, scale: int, dtype: Any) -> Array:
    """The least number of a tap that is hit: scale * tap + its code so far. The last tap's where all is padding."""
    found, last = None, geometry.taps * scale - 1
    if 0 in geometry.input or 0 in geometry.output:
        return jnp.full(best.shape, last, dtype)
    none = jnp.int32(NONE)
    if _direct(geometry):
        for tap, where, show in views.under(geometry):
            number = jnp.int32(tap * scale)
            number = number if code is None else number + show(code).astype(jnp.int32)
            number = jnp.where(views.hit(show(x), best) & where, number, none)
            found = number if found is None else lax.min(found, number)
    else:
        number = jnp.asarray(_numbers(geometry, scale))
        if code is not None:
            number = number + views.windowed(code, geometry, 0).astype(jnp.int32)
        windows = views.moved(lambda x: views.windowed(x, geometry, 0), x)
        hits = views.hit(windows, lax.expand_dims(best, range(2, 2 * geometry.rank + 1, 2)))
        found = _reduced(jnp.where(hits, number, none), NONE, lax.min)
    return jnp.full(best.shape, last, dtype) if found is None else lax.min(found, jnp.int32(last)).astype(dtype)


def _numbers(geometry: Geometry, scale: int) -> np.ndarray:
    """scale * tap of every place, as views.windowed lays them out; NONE in the padding."""
    number, inside, ndim = 0, True, 2 * geometry.rank + 2
    for i, axis in enumerate(geometry.axes):
        tap = np.arange(axis.window)
        element = np.arange(axis.output)[:, None] * axis.stride + tap * axis.dilation - axis.low
        here = (element >= 0) & (element < axis.input)
        shape = [1] * ndim
        shape[2 * i + 1 : 2 * i + 3] = here.shape
        number = number * axis.window + along(tap, 2 * i + 2, ndim)
        inside = inside & (True if here.all() else here.reshape(shape))
    return np.where(inside, number * scale, NONE).astype(np.int32)


def scatter(g: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """dx[a] = sum over the windows that see a of where(index == tap, g, 0): all but the winner get 0."""
    total, code, dtype = g, index, g.dtype
    counts = [Blocks(axis).shifts for axis in geometry.axes]
    stages = views.stages(geometry, counts, SHIFTS)
    for stage in stages:
        part = views.only(geometry, stage, total.shape[1:-1])
        scale = math.prod(geometry.window[stage.stop :])
        target = dtype if stage is stages[-1] else views.wide(dtype)
        if math.prod(counts[i] for i in stage) > SHIFTS:
            total, code = long_windows.scatter(total, code, part, scale)
            total = total.astype(target)
            continue
        given = apart(functools.partial(_given, geometry=part, scale=scale, dtype=target), platform)
        rest = apart(functools.partial(_rest, geometry=part, scale=scale), platform)
        total, code = given(total, code), code if stage is stages[-1] else rest(code)
    return total


def _won(code: Array, taps: Sequence[np.ndarray], geometry: Geometry, scale: int) -> tuple[Array, Array]:
    """Whether `code` names, for each phase, its tap of the axes so far, and what it then names of the others."""
    rest, unseen = code.astype(jnp.int32), 2**30 // len(taps)  # added once an axis: the sum must not wrap round
    for i, tap in enumerate(taps):
        step = math.prod(geometry.window[i + 1 :]) * scale
        rest = rest - jnp.asarray(np.where(tap >= 0, tap * step, -unseen).astype(np.int32))
    return (rest == 0 if scale == 1 else (rest >= 0) & (rest < scale)), rest


def _given(g: Array, code: Array, *, geometry: Geometry, scale: int, dtype: Any) -> Array:
    """What each element gets of the windows whose winner it is, along the axes of one stage."""
    wide = views.wide(g.dtype)

    given = []
    for taps, show, end in views.over(geometry):
        won, _ = _won(show(code), taps, geometry, scale)
        given.append(end(jnp.where(won, show(g).astype(wide), jnp.zeros((), wide))))
    return _joined(given, lax.add, g, geometry, wide).astype(dtype)


def _rest(code: Array, *, geometry: Geometry, scale: int) -> Array:
    """What the windows that an element has won name of the other axes: all the same, the first best of its row."""
    named = []
    for taps, show, end in views.over(geometry):
        won, rest = _won(show(code), taps, geometry, scale)
        named.append(end(jnp.where(won, rest, jnp.int32(0))))
    return _joined(named, lax.max, code, geometry, jnp.int32).astype(code.dtype)


def _joined(given: Sequence[Array], operation: Any, like: Array, geometry: Geometry, dtype: Any) -> Array:
    """The operation over what all windows that see an element give it."""
    if not given:
        return jnp.zeros((like.shape[0], *geometry.input, like.shape[-1]), dtype)
    return functools.reduce(operation, given)


def gather(x: Array, index: Array, *, geometry: Geometry, platform: str) -> Array:
    """The padded input under the tap that index names."""
    if geometry.taps > GATHERED:
        return read(x, _elements(index, geometry), platform=platform)
    taken = [
        jnp.where((index == number) & where, show(x), jnp.zeros((), x.dtype))
        for number, where, show in views.under(geometry)
    ]
    return functools.reduce(lax.add, taken) if taken else jnp.zeros(index.shape, x.dtype)


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
