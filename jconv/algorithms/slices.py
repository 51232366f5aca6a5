"""The first spatial axis taken apart: a 3-D convolution as 2-D convolutions, a 2-D one as 1-D ones.

    y[p0] = sum over t0 of conv(x[p0*s + t0*d - low], w[t0])     a convolution of lower rank a tap, the places as batch
or, where the channels are few, the taps side by side as channels of one convolution of lower rank:
    y[p0] = conv(concatenation over t0 of x[p0*s + t0*d - low], w)
XLA:CPU runs 3-D convolutions on one naive path and 2-D ones on a fast one. Cost: the same multiply-adds, with the taps
that fall into the padding left out, and one addition of the result, or one copy of x, a tap.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import shifts, windows
from jconv.geometry import Axis, Geometry

SIDE_BY_SIDE = 64  # taps * channels a group up to which the taps become channels
MOST_TAPS = 16  # convolutions that one program spells out
MOST_JOINED = 7  # planes that become channels of one
JOINED_BYTES = 2 << 20  # of them at once, or
KERNELS = 1  # times as many bytes as the kernel has, if that is more
CHUNK_BYTES = 8 << 20  # of the operands and results of all taps of the images taken at once
MOSTLY_INSIDE = 0.9  # of the planes, from which those of padding may be computed too,
ALIKE_INSIDE = 0.8  # and from which they are, where a loop over taps compiles one of them

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    return geometry.rank > 1 and geometry.axes[0].input_dilation == 1 and geometry.axes[0].window <= MOST_TAPS


def _rest(geometry: Geometry) -> Geometry:
    return dataclasses.replace(geometry, axes=geometry.axes[1:])


def _under(x: jax.Array, axis: Axis, tap: int) -> tuple[jax.Array, int, int]:
    """x under `tap` where it falls on the input, as (batch * places, *rest, channels); first and last place."""
    first, last, start = axis.places_inside(tap)
    stop = start + (last - first - 1) * axis.stride + 1
    part = lax.slice_in_dim(x, start, stop, axis.stride, axis=1)
    return part.reshape(-1, *x.shape[2:]), first, last


def _side_by_side(x: jax.Array, geometry: Geometry) -> jax.Array:
    """(batch * output, *rest, groups * taps * in a group): the first axis' taps as channels."""
    axis, groups = geometry.axes[0], geometry.groups
    x = _padded_first(x, geometry)
    parts = [
        lax.slice_in_dim(
            x, t * axis.dilation, t * axis.dilation + (axis.output - 1) * axis.stride + 1, axis.stride, axis=1
        )
        for t in range(axis.window)
    ]
    each = x.shape[-1] // groups
    joined = jnp.stack([p.reshape(*p.shape[:-1], groups, each) for p in parts], axis=-2)
    return joined.reshape(-1, *joined.shape[2:-3], groups * axis.window * each)


def _side_by_side_kernel(w: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel for _side_by_side: (*rest, taps * in a group, out); of a turned one copied as it is stored."""
    rest, (taps, each, out) = _rest(geometry), (w.shape[0], *w.shape[-2:])
    if not _stored(geometry):
        return jnp.moveaxis(w, 0, -3).reshape(*rest.window, taps * each, out)
    stored = lax.rev(windows.as_stored(w, geometry), [0])  # (taps, *rest, out, in)
    return windows.as_stored(jnp.moveaxis(stored, 0, -2).reshape(*rest.window, out, taps * each), rest)


def _kernels(w: jax.Array, geometry: Geometry) -> Callable[[Any], jax.Array]:
    """The kernel of a tap of the first axis, which may be a tracer; of a turned one a view of what is stored."""
    if not _stored(geometry):
        return lambda tap: windows.take_one(w, tap) if isinstance(tap, jax.Array) else w[tap]
    stored, last = windows.as_stored(w, geometry), w.shape[0] - 1
    take = lambda at: windows.take_one(stored, at) if isinstance(at, jax.Array) else stored[at]
    return lambda tap: windows.as_stored(take(last - tap), _rest(geometry))


def _stored(geometry: Geometry) -> bool:
    """Whether the kernel is turned back before a part of it is taken: XLA would turn a copy, and that again."""
    return geometry.turned and geometry.groups == 1


def _images(x: jax.Array, geometry: Geometry, out: int, most: int) -> int | None:
    """How many images to take at once, None for all: XLA keeps the operands and results of all taps at one time."""
    rest = x.shape[-1] * math.prod(geometry.input[1:]) + out * math.prod(geometry.output[1:])
    each = geometry.axes[0].window * geometry.output[0] * rest * x.dtype.itemsize
    return windows.images_at_once(x.shape[0], each, most)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product) -> jax.Array:
    axis, rest, out = geometry.axes[0], _rest(geometry), w.shape[-1]
    if _planes_joined(geometry, x):
        return _block_after_block(x, w, geometry, precision, dtype, inner)
    if axis.window * w.shape[-2] <= SIDE_BY_SIDE or axis.window == 1:
        rows = _side_by_side_kernel(w, geometry)

        def joined(x: jax.Array) -> jax.Array:
            y = inner(_side_by_side(x, geometry), rows, rest, precision, dtype)
            return y.reshape(x.shape[0], *geometry.output, out)

        result = jnp.dtype(dtype).itemsize * math.prod(geometry.output) * out
        mapped = isinstance(x.shape[0], int) and x.shape[0] * result > windows.MAPPED
        return windows.by_images(joined, x, _images(x, geometry, out, CHUNK_BYTES) if mapped else None)
    one = _loop_over_taps if _alike(geometry) else _tap_after_tap
    run = lambda x: one(x, w, geometry, precision, dtype, inner)
    return windows.by_images(run, x, _images(x, geometry, out, CHUNK_BYTES))


def _planes_joined(geometry: Geometry, x: jax.Array) -> bool:
    """Whether the planes under a window's taps become channels block after block: few of them are of padding alone."""
    axis = geometry.axes[0]
    if geometry.rank < 3 or not isinstance(x.shape[0], int) or not 1 < axis.window <= MOST_JOINED:
        return False
    few = axis.window * (x.shape[-1] // geometry.groups) <= SIDE_BY_SIDE
    if few:  # else at once
        return x.shape[0] * axis.output * _plane_bytes(x, geometry) > 2 * JOINED_BYTES
    return shifts.share_inside(Geometry((axis,))) >= MOSTLY_INSIDE


def _plane_bytes(x: jax.Array, geometry: Geometry) -> int:
    """Of the planes under the taps of one window of x, padded along its first axis or not."""
    return geometry.axes[0].window * math.prod(geometry.input[1:]) * x.shape[-1] * x.dtype.itemsize


def _blocks(geometry: Geometry, x: jax.Array, out: int) -> tuple[int, Geometry]:
    """How many places of the first axis to take at once, and the geometry of so many.

    More than JOINED_BYTES where the kernel, whose forms each block computes anew, is large.
    """
    axis = geometry.axes[0]
    each, kernel = _plane_bytes(x, geometry), geometry.taps * x.shape[-1] * (out // geometry.groups) * x.dtype.itemsize
    most = max(JOINED_BYTES, KERNELS * kernel)
    block = windows.images_in_turn(axis.output, each, most) or axis.output
    part = dataclasses.replace(axis, output=block, low=0, input=(block - 1) * axis.stride + axis.reach)
    return block, dataclasses.replace(geometry, axes=(part, *geometry.axes[1:]))


def _block(x: jax.Array, image: Any, place: Any, part: Geometry) -> jax.Array:
    """The planes under the windows of x from a place on, padded along its first axis, side by side as channels."""
    axis, rest = part.axes[0], (0,) * (x.ndim - 2)
    here = windows.take(x, (image, place * axis.stride, *rest), (1, axis.input, *x.shape[2:]))
    return _side_by_side(here, part)


def _block_after_block(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, plane, out = geometry.axes[0], _rest(geometry), w.shape[-1]
    block, part = _blocks(geometry, x, out)
    blocks = -(-axis.output // block)
    kernel, padded = _side_by_side_kernel(w, geometry), _padded_first(x, geometry)

    def write(index: jax.Array, y: jax.Array) -> jax.Array:
        image, number = windows.unravelled(index, (x.shape[0], blocks))
        place = windows.start_of(number, block, axis.output)
        here = inner(_block(padded, image, place, part), kernel, plane, precision, dtype)
        return windows.put(y, here[None], (image, place, *(0,) * geometry.rank))

    # Into the result's own shape: a reshape after the loop would keep XLA from adding a bias where it stands.
    return lax.fori_loop(0, x.shape[0] * blocks, write, jnp.zeros((x.shape[0], *geometry.output, out), dtype))


def _kernel_grad_of_blocks(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, plane, out = geometry.axes[0], _rest(geometry), g.shape[-1]
    block, part = _blocks(geometry, x, out)
    blocks, each = -(-axis.output // block), x.shape[-1] // geometry.groups
    padded = _padded_first(x, geometry)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        image, number = windows.unravelled(index, (x.shape[0], blocks))
        place = windows.start_of(number, block, axis.output)
        there = windows.take(g, (image, place, *(0,) * geometry.rank), (1, block, *g.shape[2:]))
        there = windows.fresh(there, number, block, axis.output, axis=1)[0]
        return total + inner(_block(padded, image, place, part), there, plane, precision, dtype)

    zeros = jnp.zeros((*plane.window, axis.window * each, out), dtype)
    dw = lax.fori_loop(0, x.shape[0] * blocks, add, zeros)
    return jnp.moveaxis(dw.reshape(*plane.window, axis.window, each, out), -3, 0)


def _alike(geometry: Geometry) -> bool:
    """Whether planes under all taps can be one loop, which compiles one of them: few planes are of padding alone."""
    axis = geometry.axes[0]
    return geometry.rank > 2 and axis.window > 1 and shifts.share_inside(Geometry((axis,))) >= ALIKE_INSIDE


def _plane_under(x: jax.Array, axis: Axis, tap: jax.Array) -> jax.Array:
    """(batch * output, *rest, channels) of x, padded along its first axis, under a tap."""
    part = windows.take_along(x, tap * axis.dilation, (axis.output - 1) * axis.stride + 1, axis=1)
    return lax.slice_in_dim(part, 0, part.shape[1], axis.stride, axis=1).reshape(-1, *x.shape[2:])


def _padded_first(x: jax.Array, geometry: Geometry) -> jax.Array:
    return windows.pad(x, Geometry((geometry.axes[0], *(Axis(n, 1, n) for n in geometry.input[1:]))))


def _loop_over_taps(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, rest, shape = geometry.axes[0], _rest(geometry), (x.shape[0], *geometry.output, w.shape[-1])
    x, kernel = _padded_first(x, geometry), _kernels(w, geometry)

    def add(tap: jax.Array, total: jax.Array) -> jax.Array:
        return total + inner(_plane_under(x, axis, tap), kernel(tap), rest, precision, dtype).reshape(shape)

    return lax.fori_loop(0, axis.window, add, jnp.zeros(shape, dtype))


def _tap_after_tap(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, rest = geometry.axes[0], _rest(geometry)
    shape, total, kernel = (x.shape[0], *geometry.output, w.shape[-1]), None, _kernels(w, geometry)
    for tap in range(axis.window):
        first, last, _ = axis.places_inside(tap)
        if first == last:
            continue
        part, first, last = _under(x, axis, tap)
        y = inner(part, kernel(tap), rest, precision, dtype).reshape(shape[0], last - first, *shape[2:])
        widths = [(0, 0, 0)] * len(shape)
        widths[1] = (first, axis.output - last, 0)
        y = lax.pad(y, jnp.zeros((), dtype), widths) if first or last < axis.output else y
        total = y if total is None else total + y
    return jnp.zeros(shape, dtype) if total is None else total


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, rest, groups, out = geometry.axes[0], _rest(geometry), geometry.groups, g.shape[-1]
    each = x.shape[-1] // groups
    if _planes_joined(geometry, x):
        return _kernel_grad_of_blocks(x, g, geometry, precision, dtype, inner)
    if axis.window * each <= SIDE_BY_SIDE:
        flat = g.reshape(-1, *g.shape[2:])
        run = lambda x, g: inner(x, g, rest, precision, dtype)
        flops = 2 * geometry.taps * each * g.size
        dw = windows.in_parts(run, _side_by_side(x, geometry), flat, flops, geometry.rank)
        return jnp.moveaxis(dw.reshape(*rest.window, axis.window, each, out), -3, 0)
    one = _map_over_taps if _alike(geometry) else _each_tap
    run = lambda x, g: one(x, g, geometry, precision, dtype, inner)
    most = windows.summed_at_once(x, g, 4 * geometry.taps * each * out, CHUNK_BYTES)
    images = _images(x, geometry, out, most)
    if images is None:
        return run(x, g)
    split = lambda array: array.reshape(-1, images, *array.shape[1:])
    zeros = jnp.zeros((*geometry.window, each, out), dtype)
    return lax.scan(lambda total, pair: (total + run(*pair), None), zeros, (split(x), split(g)))[0]


def _map_over_taps(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    axis, rest = geometry.axes[0], _rest(geometry)
    x, g = _padded_first(x, geometry), g.reshape(-1, *g.shape[2:])
    return lax.map(lambda tap: inner(_plane_under(x, axis, tap), g, rest, precision, dtype), jnp.arange(axis.window))


def _each_tap(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product) -> jax.Array:
    axis, rest, each, out = geometry.axes[0], _rest(geometry), x.shape[-1] // geometry.groups, g.shape[-1]
    parts = []
    for tap in range(axis.window):
        first, last, _ = axis.places_inside(tap)
        if first == last:
            parts.append(jnp.zeros((*rest.window, each, out), dtype))
            continue
        part, first, last = _under(x, axis, tap)
        cotangent = lax.slice_in_dim(g, first, last, axis=1).reshape(-1, *g.shape[2:])
        parts.append(inner(part, cotangent, rest, precision, dtype))
    return jnp.stack(parts)
