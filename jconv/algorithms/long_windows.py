"""Windows of many taps along one axis, the elements of which they share: by doubling, and by a loop back.

    A_1[a] = x[a]      A_2k[a] = A_k[a] + A_k[a + k d]      y[p] = the sum over the bits k of the window's length of A_k
with + for any associative operation, the pieces in the order of the taps: a window of 128 taps takes 7 steps, one of
101 taps (64 + 32 + 4 + 1) nine. Each step is one pass over arrays as long as the padded input.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import views, windows
from jconv.algorithms.views import Blocks, apart
from jconv.geometry import Axis, Geometry

Array = jax.Array
FOLDS = 16  # rows that are added to as many others before a reduction
NONE = 2**30  # more than any tap: no tap was hit
Combine = Callable[[Sequence[Array], Sequence[Array], int], Sequence[Array]]


def covers(geometry: Geometry) -> bool:
    """Whether one window is the whole input."""
    return all(a.output == 1 and a.window == a.input and a.low == 0 and a.dilation == 1 for a in geometry.axes)


def folded(
    compute: Callable[..., Array], x: Array, operation: Any, initial: Any, platform: str, *others: Array
) -> Array:
    """The operation over all elements of compute(x, number of the element, *others), (batch, 1, .., channels).

    XLA:CPU's reduction adds to one row of channels, and waits for it; first several rows with as many others, in one
    fusable loop, is twice as fast (4 x 128 x 128 x 96, summed: 0.6 ms for 1.5).
    """
    batch, *space, channels = x.shape
    length = math.prod(space)
    parts = max(n for n in range(1, FOLDS + 1) if length % n == 0)

    def fold(x: Array, *others: Array) -> Array:
        split = lambda x: x.reshape(batch, parts, length // parts, channels)
        rows = [views.moved(lambda x, i=i: split(x)[:, i], x) for i in range(parts)]
        number = jnp.arange(length // parts, dtype=jnp.int32)[:, None]
        some = [compute(row, number + i * (length // parts), *others) for i, row in enumerate(rows)]
        return functools.reduce(operation, some)

    rows = apart(fold, platform)(x, *others)
    total = lax.reduce(rows, jnp.array(initial, rows.dtype), operation, (1,))
    return total.reshape(batch, *(1 for _ in space), channels)


def _axis(geometry: Geometry) -> tuple[int, Axis]:
    """(dimension of the array, axis) of the one axis that slides."""
    found = [(i + 1, axis) for i, axis in enumerate(geometry.axes) if axis.window > 1]
    assert len(found) == 1, geometry
    return found[0]


def doubled(arrays: Sequence[Array], dim: int, axis: Axis, combine: Combine) -> Sequence[Array]:
    """combine over the taps of each window; arrays: padded along `dim`. combine(left, right, taps between them)."""

    def cut(arrays: Sequence[Array], start: int, count: int, stride: int = 1) -> list[Array]:
        end = start + (count - 1) * stride + 1
        show = lambda x: lax.slice_in_dim(x, start, end, stride, axis=dim)
        return [views.moved(show, a) for a in arrays]

    total, offset, size = None, 0, 1
    while True:
        if axis.window & size:
            piece = cut(arrays, offset * axis.dilation, axis.output, axis.stride)
            total = piece if total is None else combine(total, piece, offset)
            offset += size
        if 2 * size > axis.window:
            assert total is not None
            return total
        shift = size * axis.dilation
        left = arrays[0].shape[dim] - shift
        arrays = combine(cut(arrays, 0, left), cut(arrays, shift, left), size)
        size *= 2


def _padded(x: Array, dim: int, axis: Axis, fill: Any) -> Array:
    widths = [(axis.low, axis.high) if j == dim else (0, 0) for j in range(x.ndim)]
    return views.pad(x, widths, fill)


def reduced(x: Array, geometry: Geometry, operation: Any, initial: Any, platform: str) -> Array:
    """The operation over each window."""
    dim, axis = _axis(geometry)
    if axis.output == 0:
        return jnp.full((*x.shape[:dim], 0, *x.shape[dim + 1 :]), initial, x.dtype)
    combine = lambda left, right, between: [apart(operation, platform)(left[0], right[0])]
    return doubled([_padded(x, dim, axis, initial)], dim, axis, combine)[0]


def winner(
    x: Array, code: Array | None, geometry: Geometry, scale: int, dtype: Any, better: Any, lost: Any, platform: str
) -> tuple[Array, Array]:
    """(best, code) of each window; code: what is named of the axes before, to which scale * tap is added."""
    dim, axis = _axis(geometry)
    if axis.output == 0:
        none = (*x.shape[:dim], 0, *x.shape[dim + 1 :])
        return jnp.zeros(none, x.dtype), jnp.zeros(none, dtype)
    code = jnp.zeros(x.shape, jnp.int32) if code is None else code.astype(jnp.int32)

    def least(left: Array, left_code: Array, right: Array, right_code: Array, best: Array, *, between: int) -> Array:
        none = jnp.int32(NONE)
        named = jnp.where(views.hit(left, best), left_code, none)
        then = jnp.where(views.hit(right, best), lax.min(right_code + jnp.int32(between * scale), none), none)
        return lax.min(named, then)

    def combine(left: Sequence[Array], right: Sequence[Array], between: int) -> Sequence[Array]:
        best = apart(better, platform)(left[0], right[0])
        return best, apart(functools.partial(least, between=between), platform)(*left, *right, best)

    best, code = doubled([_padded(x, dim, axis, lost), _padded(code, dim, axis, NONE)], dim, axis, combine)
    return best, lax.min(code, jnp.int32(axis.window * scale - 1)).astype(dtype)


def _loop(compute: Any, places: Sequence[Array], geometry: Geometry, initial: Sequence[Array]) -> Any:
    """compute(taps, *places, *carry), in blocks and phases, over all shifts; places: padded once, then sliced."""
    dim, axis = _axis(geometry)
    blocks = Blocks(axis)
    low, high = blocks.shifts - 1 - blocks.first, blocks.first + blocks.count - axis.output
    padded = [views.pad(v, [(low, high) if j == dim else (0, 0) for j in range(v.ndim)], 0) for v in places]

    def step(shift: Any, carry: Any) -> Any:
        start = blocks.shifts - 1 - shift
        seen = [windows.take_along(v, start, blocks.count, dim) for v in padded]
        seen = [lax.expand_dims(v, (dim + 1,)) for v in seen]
        taps = blocks.taps(shift).reshape([-1 if j == dim + 1 else 1 for j in range(seen[0].ndim)])
        return compute(taps, *seen, *carry)

    return lax.fori_loop(0, blocks.shifts, step, tuple(initial))


def _shape(geometry: Geometry, like: Array) -> tuple[Any, ...]:
    dim, axis = _axis(geometry)
    blocks = Blocks(axis)
    return (*like.shape[:dim], blocks.count, blocks.stride, *like.shape[dim + 1 :])


def _joined(x: Array, geometry: Geometry) -> Array:
    dim, axis = _axis(geometry)
    blocks = Blocks(axis)
    x = x.reshape(*x.shape[:dim], blocks.count * blocks.stride, *x.shape[dim + 2 :])
    start = axis.low - blocks.first * blocks.stride
    return lax.slice_in_dim(x, start, start + axis.input, axis=dim)


def scatter(g: Array, code: Array, geometry: Geometry, scale: int) -> tuple[Array, Array]:
    """As pools.scatter, along the one axis that slides, and what the windows won name of the axes after."""
    wide = views.wide(g.dtype)

    def step(taps: Array, g: Array, code: Array, total: Array, named: Array) -> tuple[Array, Array]:
        rest = code.astype(jnp.int32) - jnp.where(taps >= 0, taps * scale, -NONE).astype(jnp.int32)
        won = (rest >= 0) & (rest < scale)
        total = total + jnp.where(won, g.astype(wide), jnp.zeros((), wide))
        return total, lax.max(named, jnp.where(won, rest, jnp.int32(0)))

    shape = _shape(geometry, g)
    total, named = _loop(step, [g, code], geometry, [jnp.zeros(shape, wide), jnp.zeros(shape, jnp.int32)])
    return _joined(total, geometry), _joined(named, geometry).astype(code.dtype)


def spread(g: Array, geometry: Geometry) -> Array:
    """The sum over the windows that see each element, along the one axis that slides."""

    def step(taps: Array, g: Array, total: Array) -> tuple[Array]:
        return (total + jnp.where(taps >= 0, g, jnp.zeros((), g.dtype)),)

    return _joined(_loop(step, [g], geometry, [jnp.zeros(_shape(geometry, g), g.dtype)])[0], geometry)
