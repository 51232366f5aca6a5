"""Every window's elements side by side, then one matrix product: for few channels, as a first layer has.

    P[n, p, t, c] = x[n, p*s + t*d - low, c]                        a copy of x a tap
    y[n, p, o]    = sum over t, c of P[n, p, t, c] w[t, c, o]       one matrix product
    dw[t, c, o]   = sum over n, p of P[n, p, t, c] g[n, p, o]       one matrix product
"im2col" (Chellapilla et al. 2006), a few images at a time so that P stays in cache. A copy is made of contiguous runs:
of the channels, or, where there are fewer than CHANNELS_LAST, of the places (P is then [t, c, n, p]); lax gathers
single elements there. Many taps are copied axis after axis. Cost: the convolution's multiply-adds and taps * in copies.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

CHUNK_BYTES = 4 << 20  # patches held at once,
SUMMED_BYTES = 2 << 20  # and for a kernel gradient, beside what it is added up in
MOST_TAPS = 128  # of a window
SPELLED_OUT = 64  # taps beyond which a program does not spell out a copy each,
SPELLED_OUT_OF_FEW = 16  # and with channels fewer than CHANNELS_LAST
CHANNELS_LAST = 4  # channels from which a copy runs along them


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and undilated and geometry.taps <= MOST_TAPS


def _patches(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, int]:
    """The patches of padded x (batch, *input, in) as a matrix, and which of its two sides is (taps * in)."""
    channels = x.shape[-1]
    spelled_out = SPELLED_OUT if channels >= CHANNELS_LAST else SPELLED_OUT_OF_FEW
    if geometry.taps > spelled_out and geometry.rank > 1:
        return _axis_after_axis(x, geometry), 1
    parts = [windows.under_tap(x, geometry, tap) for tap in itertools.product(*map(range, geometry.window))]
    if channels >= CHANNELS_LAST:
        return jnp.concatenate(parts, axis=-1).reshape(-1, geometry.taps * channels), 1
    return jnp.stack([jnp.moveaxis(part, -1, 0) for part in parts]).reshape(geometry.taps * channels, -1), 0


def _axis_after_axis(x: jax.Array, geometry: Geometry) -> jax.Array:
    """The same of many taps: those of the last axis side by side, then the rows of these. A third to compile."""
    *lead, last = geometry.axes

    def along_last(x: jax.Array) -> jax.Array:
        starts = [t * last.dilation for t in range(last.window)]
        reach = (last.output - 1) * last.stride + 1
        return jnp.concatenate([lax.slice_in_dim(x, s, s + reach, last.stride, axis=-2) for s in starts], axis=-1)

    rows = windows.apart(along_last, x)  # else each row of taps would compute its own
    flat = dataclasses.replace(geometry, axes=(*lead, Axis(last.output, 1, last.output)))
    taps = itertools.product(*(range(axis.window) for axis in lead), [0])
    parts = [windows.under_tap(rows, flat, tap) for tap in taps]
    return jnp.concatenate(parts, axis=-1).reshape(-1, geometry.taps * x.shape[-1])


def _images(x: jax.Array, geometry: Geometry, most: int) -> int | None:
    """How many images' patches are held at once; None for all of them."""
    each = geometry.taps * x.shape[-1] * math.prod(geometry.output) * x.dtype.itemsize
    return windows.images_at_once(x.shape[0], each, most)


def _split(array: jax.Array, images: int) -> jax.Array:
    return array.reshape(array.shape[0] // images, images, *array.shape[1:])


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    out, images = w.shape[-1], _images(x, geometry, CHUNK_BYTES)
    rows = w.reshape(-1, out)

    def run(x: jax.Array) -> jax.Array:
        columns, side = _patches(x, geometry)
        sides = (((side,), (0,)), ((), ()))
        y = lax.dot_general(columns, rows, sides, precision=precision, preferred_element_type=dtype)
        return y.reshape(-1, *geometry.output, out)

    return windows.by_images(run, windows.pad(x, geometry), images)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    out, channels = g.shape[-1], x.shape[-1]
    most = windows.summed_at_once(x, g, 4 * geometry.taps * channels * out, SUMMED_BYTES)
    rows = _rows(x, geometry, most)
    images = None if rows else _images(x, geometry, most)
    x, narrow = windows.pad(x, geometry), out < geometry.taps * channels

    def run(x: jax.Array, g: jax.Array, part: Geometry = geometry) -> jax.Array:
        columns, side = _patches(x, part)
        operands = (g.reshape(-1, out), columns) if narrow else (columns, g.reshape(-1, out))
        first, second = (0, 1 - side) if narrow else (1 - side, 0)
        sides = (((first,), (second,)), ((), ()))
        return lax.dot_general(*operands, sides, precision=precision, preferred_element_type=dtype)

    shape = (out, geometry.taps * channels) if narrow else (geometry.taps * channels, out)
    if rows:
        dw = _by_rows(run, x, g, geometry, rows, jnp.zeros(shape, dtype))
    elif images is None:
        dw = run(x, g)
    else:
        dw = _accumulate(run, _split(x, images), _split(g, images), shape, dtype)
    dw = lax.optimization_barrier(dw).T if narrow else dw  # XLA would make it the product in the other order again
    return dw.reshape(*geometry.window, channels, out)


def _rows(x: jax.Array, geometry: Geometry, most: int) -> int | None:
    """How many rows of places of one image to take at once, where the patches of a whole image are too many."""
    row = geometry.taps * x.shape[-1] * math.prod(geometry.output[1:]) * x.dtype.itemsize
    count = geometry.output[0]
    if not isinstance(x.shape[0], int) or row * count <= most:
        return None
    return -(-count // -(-count // max(1, most // row)))  # as even as can be


def _by_rows(
    run: Callable[..., jax.Array], x: jax.Array, g: jax.Array, geometry: Geometry, rows: int, total: jax.Array
) -> jax.Array:
    """`run` of a few rows of padded x and of g at a time, added up.

    Rows that the last block shares with the one before count once: zeros around x and g would be a copy of both.
    """
    first, *rest = geometry.axes
    blocks = -(-first.output // rows)
    part = dataclasses.replace(first, output=rows, low=0, input=(rows - 1) * first.stride + first.reach)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        image, block = windows.unravelled(index, (x.shape[0], blocks))
        start, zeros = windows.start_of(block, rows, first.output), (0,) * (x.ndim - 2)
        here = windows.take(x, (image, start * first.stride, *zeros), (1, part.input, *x.shape[2:]))
        there = windows.take(g, (image, start, *zeros), (1, rows, *g.shape[2:]))
        there = windows.fresh(there, block, rows, first.output, axis=1)
        return total + run(here, there, dataclasses.replace(geometry, axes=(part, *rest)))

    return lax.fori_loop(0, x.shape[0] * blocks, add, total)


def kernel_grads(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The kernel gradient of each of x (examples, batch, *input, in): of a few at a time, as one batched product.

    The sum is over the places. Where they are more than the taps, XLA:CPU's batched product wants g first (4.6 ms in
    place of 5.8 for 64 examples of 32 x 32 x 16); else that costs more in turning the results round.
    """
    channels, out = x.shape[-1], g.shape[-1]
    rows, places = geometry.taps * channels, x.shape[1] * math.prod(geometry.output)
    narrow = channels >= CHANNELS_LAST and places > rows

    def few(x: jax.Array, g: jax.Array, at_once: int) -> jax.Array:
        columns, side = _patches_apart(windows.pad(x, geometry), geometry, at_once)
        first, second = (g.reshape(at_once, -1, out), 1), (columns, side)
        first, second = (first, second) if narrow else (second, first)
        sides = (((first[1],), (second[1],)), ((0,), (0,)))
        return lax.dot_general(first[0], second[0], sides, precision=precision, preferred_element_type=dtype)

    dw = windows.by_examples(few, x, g, rows * places * x.dtype.itemsize)
    dw = dw.swapaxes(1, 2) if narrow else dw
    return dw.reshape(x.shape[0], *geometry.window, channels, out)


def _patches_apart(x: jax.Array, geometry: Geometry, examples: int) -> tuple[jax.Array, int]:
    """The patches of padded x (examples * batch, *input, in), a matrix an example, and its axis of the places."""
    channels = x.shape[-1]
    if channels >= CHANNELS_LAST:
        return _patches(x, geometry)[0].reshape(examples, -1, geometry.taps * channels), 1
    planes = jnp.moveaxis(x.reshape(examples, -1, *x.shape[1:]), -1, 1)
    planes = lax.optimization_barrier(planes).reshape(-1, *x.shape[1:-1], 1)  # else each tap would transpose its own
    taps = itertools.product(*map(range, geometry.window))
    parts = [windows.under_tap(planes, geometry, tap).reshape(examples, channels, -1) for tap in taps]
    return jnp.stack(parts, axis=1).reshape(examples, geometry.taps * channels, -1), 2


def _accumulate(
    run: Callable[..., jax.Array], x: jax.Array, g: jax.Array, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + run(*part), None

    return lax.scan(add, jnp.zeros(shape, dtype), (x, g))[0]
