"""What each tap of a window sees, and what each element is given back: slices and clipped gathers, all fusable.

Along one axis (stride s, dilation d, low padding l), place p and tap t see element a = p*s + t*d - l.
    under    at every place what tap t sees: a slice of the input with stride s
    over     at every element what a window over it gives: with a + l = i*s + r, the element of block i and phase r is
             seen from place i - k by tap (r + k*s) / d, where that is a tap. So one shift k is a slice of the places
             for all elements of all blocks at once, and blocks times phases are the axis
Where some of it lies in the padding, a gather whose numbers are clipped to the edge stands for the slice, and a
constant mask says what counts. XLA:CPU makes one vector loop of any number of such views and what is computed from
them, and writes nothing down between. It does not with a padding: read twice that becomes an array, and read once a
branch, which LLVM turns into scalar loops (3 x 3 sums of 4 x 35 x 35 x 192: 1.8 ms with paddings, 0.2 with gathers).
Two more of its ways matter. What reads the same views twice (a maximum, and then its index) must be two functions of
`apart`. And a gather prefers the gathered axis in front: if all views of an axis were gathers, the result would get
that layout, and a copy to undo it. So one view, the anchor, is a slice, padded if it must be.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv import _jax
from jconv.geometry import Axis, Geometry

Array = jax.Array
HALVES = {jnp.dtype(jnp.bfloat16): 0x7F80, jnp.dtype(jnp.float16): 0x7C00}  # with the bits of infinity


def apart(f: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """f as a function that XLA:CPU neither inlines nor fuses with another."""
    return functools.partial(_jax.apart_call, f) if platform == "cpu" else f


def wide(dtype: Any) -> Any:
    """The dtype of sums: float32 for float16 and bfloat16."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype) in HALVES else jnp.dtype(dtype)


def moved(show: Callable[[Array], Array], x: Array) -> Array:
    """show(x), which moves elements alone: half-precision ones as the integers that they are in memory.

    XLA:CPU would widen, and round again, a bfloat16 array in each slice.
    """
    if x.dtype not in HALVES:
        return show(x)
    return lax.bitcast_convert_type(show(lax.bitcast_convert_type(x, jnp.uint16)), x.dtype)


def ordered(x: Array, largest: bool) -> Array:
    """What compares as x does, NaN before all: of float16 and bfloat16 integers, of which a vector holds twice as many.

    The bits of a float are ordered as its magnitude is; those of a negative one are turned round. -0 comes before 0.
    """
    if x.dtype not in HALVES:
        return x
    bits = lax.bitcast_convert_type(x, jnp.int16)
    first = jnp.int16(0x7FFF if largest else -0x8000)
    return jnp.where(_magnitude(bits) > HALVES[x.dtype], first, turned(bits))


def disordered(x: Array, dtype: Any) -> Array:
    """What `ordered` made of an array of `dtype`, back."""
    return lax.bitcast_convert_type(turned(x), dtype) if dtype in HALVES else x


def hit(x: Array, best: Array) -> Array:
    """Whether x is what won: equal, or a NaN, which wins over all."""
    if x.dtype in HALVES:
        infinity = HALVES[x.dtype]
        x, best = (lax.bitcast_convert_type(a, jnp.int16) for a in (x, best))
        return (x == best) | (_magnitude(x | best) == 0) | (_magnitude(x) > infinity)  # the second: 0 and -0
    hits = x == best
    return hits | jnp.isnan(x) if jnp.issubdtype(x.dtype, jnp.floating) else hits


def _magnitude(bits: Any) -> Any:
    return bits & np.int16(0x7FFF)


def turned(bits: Any) -> Any:
    """int16 bits of a float to what is ordered as it is, and back: a negative one's but for the sign turned round."""
    return bits ^ _magnitude(bits >> 15)


def separate(axis: Axis) -> bool:
    """Whether no element is in two windows."""
    return axis.output == 1 or axis.stride >= axis.reach


def only(geometry: Geometry, stage: range, space: Sequence[int]) -> Geometry:
    """The geometry in which the axes of `stage` alone slide; the others are as long as `space` says."""
    still = [Axis(n, 1, n) for n in space]
    return Geometry(tuple(axis if i in stage else still[i] for i, axis in enumerate(geometry.axes)))


def stages(geometry: Geometry, counts: Sequence[int], most: int) -> list[range]:
    """Neighbouring axes, in order, of which the product of counts is `most` at most; a longer axis is a stage alone.

    Axes along which nothing slides are left out.
    """
    found, start = [], 0
    for i in range(1, len(counts) + 1):
        if i == len(counts) or math.prod(counts[start : i + 1]) > most:
            found.append(range(start, i))
            start = i
    moving = [
        stage for stage in found if any(geometry.axes[i] != Axis(n, 1, n) for i in stage for n in [geometry.input[i]])
    ]
    return moving or [range(geometry.rank)]


def pad(x: Array, widths: Sequence[tuple[int, int]], fill: Any) -> Array:
    """x with `fill` around it."""
    if not any(map(any, widths)):
        return x
    return lax.pad(x, jnp.array(fill, x.dtype), [(low, high, 0) for low, high in widths])


def along(values: Any, dim: int, ndim: int) -> Any:
    """A vector as an array of `ndim` axes that lies along `dim`."""
    return np.asarray(values).reshape([-1 if j == dim else 1 for j in range(ndim)])


def gathered(x: Array, dim: int, places: Any) -> Array:
    """The elements at these places of one axis, all of them inside; the axes of `places` stand in its place."""
    places, rank = jnp.asarray(places), np.ndim(places)
    offset = tuple(i if i < dim else i + rank - 1 for i in range(x.ndim) if i != dim)
    numbers = lax.GatherDimensionNumbers(offset_dims=offset, collapsed_slice_dims=(dim,), start_index_map=(dim,))
    sizes = tuple(1 if i == dim else n for i, n in enumerate(x.shape))
    return lax.gather(x, places[..., None], numbers, sizes, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _inside(start: int, count: int, stride: int, length: int) -> np.ndarray:
    """Which of the elements start, start + stride, .. are in an axis of that length."""
    element = start + np.arange(count) * stride
    return (element >= 0) & (element < length)


def _clipped(x: Array, dim: int, start: int, count: int, stride: int) -> Array:
    """Elements start, start + stride, .. of one axis; the first or the last stands for what lies outside."""
    length = x.shape[dim]
    if _inside(start, count, stride, length).all():
        return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis=dim)
    return jnp.take(x, (start + np.arange(count) * stride).clip(0, length - 1), axis=dim, mode="clip")


def _padded(x: Array, dim: int, start: int, count: int, stride: int) -> Array:
    """The same, with 0 for what lies outside."""
    inside = [i for i in range(count) if 0 <= start + i * stride < x.shape[dim]]
    x = _clipped(x, dim, start + inside[0] * stride, len(inside), stride)
    widths = [(inside[0], count - 1 - inside[-1]) if j == dim else (0, 0) for j in range(x.ndim)]
    return pad(x, widths, 0)


def _outside(start: int, count: int, stride: int, length: int) -> int:
    """At how many ends of an axis a view leaves the array; 3 where no element of it is inside."""
    inside = _inside(start, count, stride, length)
    return int(not inside[0]) + int(not inside[-1]) if inside.any() else 3


View = tuple[tuple[int, int, int], ...]  # for each axis: the first element, how many, how far apart


def _views(views: Sequence[View], space: Sequence[int]) -> list[tuple[int, bool]]:
    """Which views see anything, and which of them is the anchor: it leaves the array at the fewest ends."""
    ends = [[_outside(*axis, length) for axis, length in zip(view, space, strict=True)] for view in views]
    seeing = [i for i, of in enumerate(ends) if 3 not in of]
    anchor = min(seeing, key=lambda i: sum(ends[i]), default=None)
    return [(i, i == anchor) for i in seeing]


def _view(x: Array, view: View, anchor: bool) -> Array:
    for dim, (start, count, stride) in enumerate(view, start=1):
        x = (_padded if anchor else _clipped)(x, dim, start, count, stride)
    return x


def under(geometry: Geometry) -> list[tuple[int, Any, Callable[[Array], Array]]]:
    """For each tap that sees any element: (its number, where it sees one, what shows an array as it sees it).

    Where is True or an array of bool along the spatial axes of (batch, *output, channels). At other places the tap
    sees anything.
    """
    if 0 in geometry.output:
        return []
    taps = list(itertools.product(*map(range, geometry.window)))
    axes = geometry.axes
    views = [
        tuple((t * a.dilation - a.low, a.output, a.stride) for t, a in zip(tap, axes, strict=True)) for tap in taps
    ]
    found = []
    for number, anchor in _views(views, geometry.input):
        where: Any = True
        for i, (axis, (start, count, stride)) in enumerate(zip(axes, views[number], strict=True)):
            inside = _inside(start, count, stride, axis.input)
            if not inside.all():
                where = where & jnp.asarray(along(inside, i + 1, geometry.rank + 2))
        show = functools.partial(_view, view=views[number], anchor=anchor)
        found.append((number, where, functools.partial(moved, show)))
    return found


def sees_all(axis: Axis) -> bool:
    """Whether some tap of an axis sees an element at every place: its view is a slice, and no other needs an anchor."""
    seen = (_inside(t * axis.dilation - axis.low, axis.output, axis.stride, axis.input) for t in range(axis.window))
    return any(inside.all() for inside in seen)


def along_axis(x: Array, dim: int, axis: Axis, tap: int) -> tuple[Any, Array] | None:
    """(where one tap sees an element, what it sees of x along `dim`): where is True or an array; None if nowhere."""
    start = tap * axis.dilation - axis.low
    inside = _inside(start, axis.output, axis.stride, axis.input)
    if not inside.any():
        return None
    show = functools.partial(_clipped, dim=dim, start=start, count=axis.output, stride=axis.stride)
    return True if inside.all() else jnp.asarray(along(inside, dim, x.ndim)), moved(show, x)


def masked(where: Any, x: Array, fill: Any) -> Array:
    """x where it counts, `fill` elsewhere."""
    return x if where is True else jnp.where(where, x, jnp.array(fill, x.dtype))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The elements of an axis in blocks of `stride`, its phases: a + low = i * stride + r for block i from `first`."""

    axis: Axis

    @property
    def stride(self) -> int:
        if self.axis.output == 1:  # one window: one block that holds all elements
            return max(self.axis.input + max(self.axis.low, 0), self.axis.reach, 1)
        return self.axis.stride

    @property
    def first(self) -> int:
        return self.axis.low // self.stride

    @property
    def count(self) -> int:
        return max(0, (self.axis.low + self.axis.input - 1) // self.stride - self.first + 1)

    @property
    def shifts(self) -> int:
        """The most windows that see one element."""
        return -(-self.axis.reach // self.stride)

    def taps(self, shift: Any) -> Any:
        """For each phase the tap that sees it from `shift` (an int, or traced) blocks before; -1 where none does."""
        offset = np.arange(self.stride) + shift * self.stride
        tap, rest = offset // self.axis.dilation, offset % self.axis.dilation
        seen = (rest == 0) & (tap < self.axis.window)
        return (np if isinstance(shift, int) else jnp).where(seen, tap, -1)


def _as_it_is(x: Array) -> Array:
    return x


def _taken(x: Array, places: Sequence[np.ndarray], strides: Sequence[int]) -> Array:
    for dim, (place, stride) in enumerate(zip(places, strides, strict=True), start=1):
        if stride == 1:
            x = _clipped(x, dim, int(place[0]), len(place), 1)
        else:
            x = jnp.take(x, place.clip(0, x.shape[dim] - 1), axis=dim, mode="clip")
    return x


def _in_phases(x: Array, view: View) -> Array:
    return lax.expand_dims(_view(x, view, anchor=True), range(2, 2 * len(view) + 1, 2))


def over(geometry: Geometry) -> list[tuple[list[np.ndarray], Callable[[Array], Array], Callable[[Array], Array]]]:
    """For each shift at which any element is seen: (the taps of each axis, what shows places, what ends it).

    What is shown of an array of places (batch, *output, channels), and computed from it and from the taps, is ended as
    (batch, *input, channels). Taps are -1 where no tap sees an element.
    """
    if 0 in geometry.input or 0 in geometry.output:
        return []
    ndim, blocks = 2 * geometry.rank + 2, [Blocks(axis) for axis in geometry.axes]
    shifts = list(itertools.product(*(range(b.shifts) for b in blocks)))
    shifts = [s for s in shifts if all((b.taps(k) >= 0).any() for b, k in zip(blocks, s, strict=True))]
    views = [tuple((b.first - k, b.count, 1) for b, k in zip(blocks, shift, strict=True)) for shift in shifts]
    found = []
    for number, anchor in _views(views, geometry.output):
        taps, places = [], []
        for i, (axis, of, (start, count, _)) in enumerate(zip(geometry.axes, blocks, views[number], strict=True)):
            place = start + np.arange(count)
            seen = ((place >= 0) & (place < axis.output))[:, None]
            tap = np.where(seen, of.taps(shifts[number][i]), -1)
            if anchor:  # blocks and phases: XLA fuses no gather into a broadcast
                shape = [1] * ndim
                shape[2 * i + 1 : 2 * i + 3] = tap[:1].shape if seen.all() else tap.shape
                taps.append((tap[:1] if seen.all() else tap).reshape(shape))
            else:
                inside = slice(axis.low - of.first * of.stride, axis.low - of.first * of.stride + axis.input)
                taps.append(along(tap.reshape(-1)[inside], i + 1, geometry.rank + 2))
                places.append(np.repeat(place, of.stride)[inside])
        if anchor:
            show, end = functools.partial(_in_phases, view=views[number]), functools.partial(joined, geometry=geometry)
        else:
            show, end = functools.partial(_taken, places=places, strides=[b.stride for b in blocks]), _as_it_is
        found.append((taps, functools.partial(moved, show), end))
    return found


def joined(x: Array, geometry: Geometry) -> Array:
    """(batch, *input, channels) of an array in blocks and phases."""
    lengths = [blocks.count * blocks.stride for blocks in map(Blocks, geometry.axes)]
    starts = [axis.low - Blocks(axis).first * Blocks(axis).stride for axis in geometry.axes]
    ends = [start + axis.input for start, axis in zip(starts, geometry.axes, strict=True)]
    x = x.reshape(x.shape[0], *lengths, x.shape[-1])
    return lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[-1]))


def windowed(x: Array, geometry: Geometry, fill: Any) -> Array:
    """(batch, output, window, output, window, .., channels) of windows that share no element, `fill` in the padding."""
    widths, ends, shape, strides = [(0, 0)], [x.shape[0]], [x.shape[0]], [1]
    for axis in geometry.axes:
        step = axis.reach if axis.output == 1 else axis.stride
        widths.append((axis.low, axis.output * step - axis.low - axis.input))
        shape += [axis.output, step]
        ends += [axis.output, axis.reach]
        strides += [1, axis.dilation]
    padded = pad(x, [*widths, (0, 0)], fill)
    x = padded.reshape(*shape, x.shape[-1])
    return lax.slice(x, (0,) * x.ndim, (*ends, x.shape[-1]), (*strides, 1))
