"""One matrix product a tap over the shifted input, added up: for many channels, or taps that often see padding.

    y[n, p, o]  = sum over t of x[n, p*s + t*d - low, :] w[t, :, o]      over the places where tap t is inside
    dw[t, :, o] = sum over n, p of x[n, p*s + t*d - low, :] g[n, p, o]   over the same places
Cost: the multiply-adds of the taps that fall on the input, none of those in the padding, so a dilated window on a small
map costs a fraction of what lax does; and one copy of the input and one addition of the result a tap, which are small
beside the product where there are many channels. Images are taken a few at a time, so that both stay in cache.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import matmul, windows
from jconv.geometry import Axis, Geometry

MOST_TAPS = 32  # products that one program spells out
LONG_ROW = 512  # places of a row from which a product of one row is a long sum
CHUNK_BYTES = 4 << 20  # input and result of the images taken at once


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


def _boxes(geometry: Geometry) -> list[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    """(tap, [(first place, last place, element under the first) an axis]) of the taps that fall on the input at all.

    The tap that falls on it at the most places comes first.
    """
    boxes = [
        (tap, [axis.places_inside(t) for t, axis in zip(tap, geometry.axes, strict=True)])
        for tap in itertools.product(*map(range, geometry.window))
    ]
    size = lambda box: math.prod(last - first for first, last, _ in box[1])
    return sorted(filter(size, boxes), key=size, reverse=True)


def _under(x: jax.Array, geometry: Geometry, box: list[tuple[int, int, int]]) -> jax.Array:
    """(images * places of the box, channels): the elements of x that the tap falls on."""
    starts = [start for _, _, start in box]
    stops = [
        start + (last - first - 1) * axis.stride + 1
        for (first, last, start), axis in zip(box, geometry.axes, strict=True)
    ]
    steps = (1, *(axis.stride for axis in geometry.axes), 1)
    part = lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), steps)
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
    at = lambda tap: tuple(n - 1 - t for n, t in zip(geometry.window, tap, strict=True)) if geometry.turned else tap
    sides = (((1,), (1 if geometry.turned else 0,)), ((), ()))
    y = None
    for tap, box in _boxes(geometry):
        shape = (batch, *(last - first for first, last, _ in box), out)
        under = _under(x, geometry, box)
        part = lax.dot_general(under, w[at(tap)], sides, precision=precision, preferred_element_type=dtype)
        part = part.reshape(shape)
        if shape[1:-1] == geometry.output:
            y = part if y is None else y + part
            continue
        y = jnp.zeros((batch, *geometry.output, out), dtype) if y is None else y
        place = (0, *(first for first, _, _ in box), 0)
        here = lax.slice(y, place, tuple(a + n for a, n in zip(place, shape, strict=True)))
        y = lax.dynamic_update_slice(y, here + part, place)
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
    products, channels, out = {}, x.shape[-1], g.shape[-1]
    places = x.shape[0] * math.prod(geometry.output)
    narrow = isinstance(places, int) and out < channels <= places  # first, see matmul.transposed_product
    for tap, box in _boxes(geometry):
        starts, stops = [first for first, _, _ in box], [last for _, last, _ in box]
        there = lax.slice(g, (0, *starts, 0), (g.shape[0], *stops, g.shape[-1])).reshape(-1, g.shape[-1])
        here = _under(x, geometry, box)
        operands = (there, here) if narrow else (here, there)
        products[tap] = matmul.first_axes_product(*operands, precision, dtype)
    nothing = jnp.zeros((out, channels) if narrow else (channels, out), dtype)
    taps = itertools.product(*map(range, geometry.window))
    dw = jnp.stack([products.get(tap, nothing) for tap in taps])
    dw = lax.optimization_barrier(dw).swapaxes(1, 2) if narrow else dw
    return dw.reshape(*geometry.window, x.shape[-1], g.shape[-1])
