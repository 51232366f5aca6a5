"""One matrix product a tap over the shifted input, added up: for many channels, or taps that often see padding.

    y[n, p, o]  = sum over t of x[n, p*s + t*d - low, :] w[t, :, o]      over the places where tap t is inside
    dw[t, :, o] = sum over n, p of x[n, p*s + t*d - low, :] g[n, p, o]   over the same places
Cost: the multiply-adds of the taps that fall on the input, none of those in the padding, so a dilated window on a small
map costs a fraction of what lax does; and one copy of the input and one addition of the result a tap, which are small
beside the product where there are many channels. Images are taken a few at a time, so that both stay in cache. Taps
that fall on as many places are one loop: spelled out, 27 taps were as many copies of kernels at one time, and took two
seconds to compile.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import matmul, windows
from jconv.geometry import Axis, Geometry

MOST_TAPS = 32  # of a window
LONG_ROW = 512  # places of a row from which a product of one row is a long sum
CHUNK_BYTES = 4 << 20  # input and result of the images taken at once
STACKED_BYTES = 8 << 20  # of all taps' kernel gradients, beyond which each is written where it belongs


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and undilated and geometry.taps <= MOST_TAPS


def share_inside(geometry: Geometry) -> float:
    """The share of the multiply-adds that fall on the input, not on its padding."""
    share = 1.0
    for axis in geometry.axes:
        inside = sum(last - first for first, last, _ in map(axis.places_inside, range(axis.window)))
        share *= inside / max(1, axis.window * axis.output)
    return share


Tap = tuple[Any, Sequence[Any], Sequence[Any]]  # its number, the element under its first place, and that place


def _alike(geometry: Geometry) -> list[tuple[tuple[int, ...], list[Tap]]]:
    """The taps that fall on the input at all, by the number of places at which they do, most places first."""
    found: dict[tuple[int, ...], list[Tap]] = {}
    for number, tap in enumerate(itertools.product(*map(range, geometry.window))):
        firsts, lasts, starts = zip(*map(Axis.places_inside, geometry.axes, tap), strict=True)
        size = tuple(last - first for first, last in zip(firsts, lasts, strict=True))
        if math.prod(size):
            found.setdefault(size, []).append((number, starts, firsts))
    return sorted(found.items(), key=lambda item: math.prod(item[0]), reverse=True)


def _each(taps: list[Tap], step: Callable[[Tap, jax.Array], jax.Array], result: jax.Array) -> jax.Array:
    """`step` with one tap after the other: a loop compiles once, and holds what one tap needs."""
    if len(taps) == 1:
        return step(taps[0], result)
    rank = len(taps[0][1])
    columns = list(zip(*((number, *starts, *firsts) for number, starts, firsts in taps), strict=True))
    differ = [column for column in columns if len(set(column)) > 1]
    table = jnp.array(differ).T

    def one(index: Any, result: jax.Array) -> jax.Array:
        row = windows.take_one(table, index)
        cells = iter(lax.index_in_dim(row, i, keepdims=False) for i in range(len(differ)))
        number, *at = (next(cells) if len(set(column)) > 1 else column[0] for column in columns)
        return step((number, at[:rank], at[rank:]), result)

    return lax.fori_loop(0, len(taps), one, result)


def _under(x: jax.Array, geometry: Geometry, starts: Sequence[Any], size: Sequence[int]) -> jax.Array:
    """(images * places, channels): the elements of x under `size` places of a tap, the first one at `starts`."""
    seen = [(n - 1) * axis.stride + 1 for n, axis in zip(size, geometry.axes, strict=True)]
    part = windows.take(x, (0, *starts, 0), (x.shape[0], *seen, x.shape[-1]))
    part = lax.slice(part, (0,) * part.ndim, part.shape, (1, *(axis.stride for axis in geometry.axes), 1))
    return part.reshape(-1, x.shape[-1])


def _images(x: jax.Array, geometry: Geometry, out: int) -> int | None:
    each = math.prod(geometry.input) * x.shape[-1] + math.prod(geometry.output) * out
    return windows.images_at_once(x.shape[0], each * x.dtype.itemsize, CHUNK_BYTES)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    images = _images(x, geometry, w.shape[-1])
    run = lambda x: _convolve(x, w, geometry, precision, dtype)
    return windows.by_images(run, x, images)


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, out = x.shape[0], w.shape[-1]
    w = windows.as_stored(w, geometry)
    w = w.reshape(geometry.taps, *w.shape[-2:])
    sides = (((1,), (1 if geometry.turned else 0,)), ((), ()))
    y = None

    def product(tap: Tap, size: tuple[int, ...]) -> jax.Array:
        number, starts, _ = tap
        kernel = windows.take_one(w, geometry.taps - 1 - number if geometry.turned else number)
        under = _under(x, geometry, starts, size)
        part = lax.dot_general(under, kernel, sides, precision=precision, preferred_element_type=dtype)
        return part.reshape(batch, *size, out)

    for size, taps in _alike(geometry):
        if y is None and len(taps) == 1 and size == geometry.output:
            y = product(taps[0], size)
            continue

        def add(tap: Tap, y: jax.Array, size: tuple[int, ...] = size) -> jax.Array:
            if size == geometry.output:
                return y + product(tap, size)
            place = (0, *tap[2], 0)
            here = windows.take(y, place, (batch, *size, out))
            return windows.put(y, here + product(tap, size), place)

        y = _each(taps, add, jnp.zeros((batch, *geometry.output, out), dtype) if y is None else y)
    return jnp.zeros((batch, *geometry.output, out), dtype) if y is None else y


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    if long_rows(geometry) and isinstance(x.shape[0], int):
        return _row_after_row(x, g, geometry, precision, dtype)
    images = _images(x, geometry, g.shape[-1])
    if images is None:
        return _kernel_grad(x, g, geometry, precision, dtype)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _kernel_grad(*part, geometry, precision, dtype), None

    zeros = jnp.zeros((*geometry.window, x.shape[-1], g.shape[-1]), dtype)
    split = lambda array: array.reshape(-1, images, *array.shape[1:])
    return lax.scan(add, zeros, (split(x), split(g)))[0]


def _never_padded(axis: Axis) -> bool:
    return axis.window > 1 and all(
        axis.places_inside(tap) == (0, axis.output, tap * axis.dilation) for tap in range(axis.window)
    )


def _plane_after_plane(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The taps of the first axis in a loop: x under those of one plane is held at a time, not under all."""
    axis, *rest = geometry.axes
    length = (axis.output - 1) * axis.stride + 1
    one = dataclasses.replace(geometry, axes=(Axis(length, 1, axis.output, axis.stride), *rest))

    def plane(tap: jax.Array) -> jax.Array:
        under = windows.take_along(x, tap * axis.dilation, length, axis=1)
        return _kernel_grad(under, g, one, precision, dtype)[0]

    return lax.map(plane, jnp.arange(axis.window))


def long_rows(geometry: Geometry) -> bool:
    """Whether the window slides along the first axis alone, over rows of places enough for a product each."""
    first, *rest = geometry.axes
    alone = all(a.window == a.stride == 1 and a.low == 0 and a.output == a.input for a in rest)
    return alone and first.window > 1 and math.prod(geometry.output[1:]) >= LONG_ROW


def _row_after_row(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """A product a tap of each row of g with the row of x under it, where they stand: nothing large is copied."""
    axis, channels, out = geometry.axes[0], x.shape[-1], g.shape[-1]
    x, g = (array.reshape(*array.shape[:2], -1, array.shape[-1]) for array in (x, g))
    boxes = [axis.places_inside(tap) for tap in range(axis.window)]
    narrow = out < channels

    def products(image: Any, place: Any, taps: Sequence[int]) -> list[jax.Array]:
        row = lambda array, at: windows.take(array, (image, at, 0, 0), (1, 1, *array.shape[2:]))[0, 0]
        there = row(g, place)
        under = [row(x, place * axis.stride + tap * axis.dilation - axis.low) for tap in taps]
        pairs = [(there, here) if narrow else (here, there) for here in under]
        return [matmul.first_axes_product(*pair, precision, dtype) for pair in pairs]

    def some(first: int, last: int, taps: Sequence[int], sums: list[jax.Array]) -> list[jax.Array]:
        """The sums of `taps` with the places [first, last) of every image added."""

        def add(index: Any, sums: list[jax.Array]) -> list[jax.Array]:
            image, place = index // (last - first), first + index % (last - first)
            return [total + part for total, part in zip(sums, products(image, place, taps), strict=True)]

        return lax.fori_loop(0, x.shape[0] * (last - first), add, sums)

    sums = [jnp.zeros((out, channels) if narrow else (channels, out), dtype)] * axis.window
    bounds = sorted({bound for first, last, _ in boxes if first < last for bound in (first, last)})
    for first, last in itertools.pairwise(bounds):  # between them the same taps are inside
        taps = [tap for tap, box in enumerate(boxes) if box[0] <= first and last <= box[1]]
        for tap, total in zip(taps, some(first, last, taps, [sums[tap] for tap in taps]), strict=True):
            sums[tap] = total
    dw = jnp.stack(sums)
    dw = lax.optimization_barrier(dw).swapaxes(1, 2) if narrow else dw
    return dw.reshape(*geometry.window, channels, out)


def _kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    if geometry.rank > 2 and _never_padded(geometry.axes[0]):
        return _plane_after_plane(x, g, geometry, precision, dtype)
    channels, out = x.shape[-1], g.shape[-1]
    places = x.shape[0] * math.prod(geometry.output)
    narrow = isinstance(places, int) and out < channels <= places  # first, see matmul.transposed_product
    shape = (out, channels) if narrow else (channels, out)

    def product(tap: Tap, size: Sequence[int]) -> jax.Array:
        there = windows.take(g, (0, *tap[2], 0), (g.shape[0], *size, out)).reshape(-1, out)
        here = _under(x, geometry, tap[1], size)
        operands = (there, here) if narrow else (here, there)
        return matmul.first_axes_product(*operands, precision, dtype)

    alike = _alike(geometry)
    if geometry.taps * channels * out * jnp.dtype(dtype).itemsize > STACKED_BYTES:
        dw = jnp.zeros((geometry.taps, *shape), dtype)
        for size, taps in alike:
            write = lambda tap, dw, size=size: windows.put_along(dw, product(tap, size)[None], tap[0], axis=0)
            dw = _each(taps, write, dw)
    else:
        products = {tap[0]: product(tap, size) for size, taps in alike for tap in taps}
        nothing = jnp.zeros(shape, dtype)
        dw = jnp.stack([products.get(number, nothing) for number in range(geometry.taps)])
    dw = lax.optimization_barrier(dw).swapaxes(1, 2) if narrow else dw
    return dw.reshape(*geometry.window, channels, out)
