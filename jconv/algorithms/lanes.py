"""A group's outputs are the lanes of a vector, and each of its channels is one number times it: for small groups.

    y[n, p, group, :]  = sum over t, c of x[n, a, group, c] w[t, c, group, :]
    dw[t, c, group, :] = sum over n, p of x[n, a, group, c] g[n, p, group, :]
Each sum is a fused loop whose innermost axis is the group's outputs, which XLA:CPU makes a vector of: nothing is
brought together by group, no zeros are multiplied, and a few lines compile in a third of the time of a convolution a
group. Each term has slices of its own: XLA makes a function of one that several share, and then no vector of the sum.
A place reads the kernel of all groups, so they come in blocks whose kernel, of one tap, the first cache holds.
Cost: the convolution's multiply-adds, each with two loads, and a pass over what is summed up for every few of them.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

MOST_CHANNELS = 32  # of a group, in and out
VECTOR = 8  # outputs
WRITTEN_OUT = 64  # multiply-adds of a window that one loop adds up, twice as many of half a vector,
WRITTEN_BYTES = 1 << 16  # if their kernel is no larger; else there are passes,
UNROLLED = 256  # of so many multiply-adds of single elements,
LEAST = 16  # and at least so many of a single vector,
KERNEL_BYTES = 1 << 15  # of so much of the kernel
PASS = 8  # what a pass over the result costs, in multiply-adds
PLACES = 16  # the same of a kernel gradient
CHUNK_BYTES = 2 << 20  # of input and result of the images taken at once
SUMMED = 32  # passes of a kernel gradient that are added up before their sum is added to that of the others


def applies(geometry: Geometry, channels: int, out: int) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups > 1 and undilated and max(channels, out) <= MOST_CHANNELS * geometry.groups


def _at_once(window: int, each: int, depth: int, bytes_each: int) -> int:
    """How many taps of the last axis, of `each` channels, are written out in one pass over the result.

    Few passes and few taps of zeros; but no more terms than LLVM keeps in registers, nor of the kernel than the first
    cache holds, since a place reads it all; and no fewer than LEAST of one vector, which it would take apart instead.
    """
    least = min(window, -(-LEAST // each)) if depth <= VECTOR else 1
    most = min(window, UNROLLED // (each * depth), KERNEL_BYTES // (each * bytes_each))
    cost = lambda taps: -(-window // taps) * (taps * each + PASS)
    return min(range(least, max(least, most) + 1), key=cost)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    del precision  # elementwise products are exact to the dtype
    out = w.shape[-1]
    each = math.prod(geometry.input) * x.shape[-1] + math.prod(geometry.output) * out
    images = windows.images_at_once(x.shape[0], each * jnp.dtype(dtype).itemsize, CHUNK_BYTES)
    return windows.by_images(lambda x: _by_blocks(x, w.astype(dtype), geometry), x.astype(dtype), images)


def _by_blocks(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """_convolve of as many groups at a time as have one tap's kernel in the first cache, since a place reads all of it.

    32 groups of 32 from the second cache, where each channel's numbers are 4096 bytes apart and share a few sets, took
    4 times as long.
    """
    each, groups = w.shape[-2] * w.shape[-1] * x.dtype.itemsize // geometry.groups, geometry.groups
    at_once = windows.images_at_once(groups, each, KERNEL_BYTES)  # a divisor
    if at_once is None:
        return _convolve(x, w, geometry)
    blocks = groups // at_once
    part = dataclasses.replace(geometry, groups=at_once)
    channels, out = x.shape[-1] // blocks, w.shape[-1] // blocks

    def write(block: jax.Array, y: jax.Array) -> jax.Array:
        here = windows.take_along(x, block * channels, channels, axis=-1)
        kernel = windows.take_along(w, block * out, out, axis=-1)
        return windows.put_along(y, _convolve(here, kernel, part), block * out, axis=-1)

    y = windows.unwritten((x.shape[0], *geometry.output, w.shape[-1]), x.dtype, x)
    return lax.fori_loop(0, blocks, write, y)


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    groups, each, out = geometry.groups, w.shape[-2], w.shape[-1]
    depth = out // groups
    x = windows.pad(x, geometry)
    if _written_out(geometry.taps, each, depth, out * x.dtype.itemsize):
        return written_out(x, w, geometry)
    *lead, last = geometry.axes
    at_once = _at_once(last.window, each, depth, out * x.dtype.itemsize)
    runs = -(-last.window // at_once)
    more = runs * at_once - last.window  # taps of zeros, so that all runs are alike
    x, w = windows.pad_axis(x, -2, 0, more * last.dilation), windows.pad_axis(w, -3, 0, more)
    x = x.reshape(*x.shape[:-1], groups, each)
    rows = w.reshape(-1, runs * at_once, each, groups, depth)
    seen = (x.shape[0], *((axis.output - 1) * axis.stride + 1 for axis in geometry.axes), groups, 1)
    steps = (1, *(axis.stride for axis in geometry.axes), 1, 1)

    def add(index: jax.Array, y: jax.Array) -> jax.Array:
        row, run = windows.unravelled(index, (rows.shape[0], runs))
        place = windows.unravelled(row, [axis.window for axis in lead]) if lead else ()
        at = [t * axis.dilation for t, axis in zip(place, lead, strict=True)]
        terms = []
        for t, c in itertools.product(range(at_once), range(each)):
            tap = run * at_once + t
            here = windows.take(x, (0, *at, tap * last.dilation, 0, c), seen)
            here = lax.slice(here, (0,) * here.ndim, here.shape, steps)
            terms.append(here * windows.take(rows, (row, tap, c, 0, 0), (1, 1, 1, groups, depth))[0, 0])
        return y + windows.total(terms)

    zeros = jnp.zeros((x.shape[0], *geometry.output, groups, depth), x.dtype)
    y = lax.fori_loop(0, rows.shape[0] * runs, add, zeros)
    return y.reshape(x.shape[0], *geometry.output, out)


def written_out(padded: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """All taps and channels in one loop, of one group too: see taps.py."""
    groups, each, out = geometry.groups, w.shape[-2], w.shape[-1]
    x, w = padded.reshape(*padded.shape[:-1], groups, each), w.reshape(*w.shape[:-1], groups, out // groups)
    taps = itertools.product(itertools.product(*map(range, geometry.window)), range(each))
    terms = [_under(x, geometry, tap, c) * w[(*tap, c)] for tap, c in taps]
    return windows.total(terms).reshape(x.shape[0], *geometry.output, out)


def _written_out(taps: int, each: int, depth: int, bytes_each: int) -> bool:
    """Whether one loop adds up all taps: few, or of half a vector, and their kernel is not too large."""
    most = WRITTEN_OUT if depth >= VECTOR else 2 * WRITTEN_OUT
    return taps * each <= most and taps * each * bytes_each <= WRITTEN_BYTES


def _under(x: jax.Array, geometry: Geometry, tap: tuple[int, ...], channel: int) -> jax.Array:
    """(batch, *output, groups, 1): one channel of padded x (.., groups, in) under a tap.

    A slice for each tap and channel: one that several terms share would keep their sum from being a vector.
    """
    starts, stops, steps = windows.places_under(geometry, tap)
    stops = (x.shape[0], *stops, x.shape[-2], channel + 1)
    return lax.slice(x, (0, *starts, 0, channel), stops, (1, *steps, 1, 1))


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """A run of places of the last axis after the other: all taps, groups and pairs of channels are one loop."""
    del precision
    groups, batch, out = geometry.groups, x.shape[0], g.shape[-1]
    each, depth = x.shape[-1] // groups, out // groups
    x, g = windows.pad(x.astype(dtype), geometry), g.astype(dtype)
    *lead, last = geometry.axes
    runs = -(-last.output // PLACES)
    run = -(-last.output // runs)
    missing = runs * run - last.output  # places beyond the last, whose g is 0
    x, g = windows.pad_axis(x, -2, 0, missing * last.stride), windows.pad_axis(g, -2, 0, missing)
    rows = [axis.output for axis in lead]
    seen = (1, *(axis.reach for axis in lead), last.reach, x.shape[-1])
    steps = (1, *(axis.dilation for axis in geometry.axes), 1)

    def add(index: Any, total: jax.Array) -> jax.Array:
        n, *place, block = windows.unravelled(index, (batch, *rows, runs))
        at = [p * axis.stride for p, axis in zip(place, lead, strict=True)]
        terms = []
        for p in range(run):
            here = windows.take(x, (n, *at, (block * run + p) * last.stride, 0), seen)
            here = lax.slice(here, (0,) * here.ndim, here.shape, steps)[0]
            here = jnp.moveaxis(here.reshape(*here.shape[:-1], groups, each), -2, 0)[..., None]
            there = windows.take(g, (n, *place, block * run + p, 0), (1, *(1 for _ in rows), 1, out))
            terms.append(here * there.reshape(groups, *(1 for _ in geometry.window), 1, depth))
        return total + windows.total(terms)

    zeros = jnp.zeros((groups, *geometry.window, each, depth), dtype)
    count = batch * math.prod(rows) * runs
    inner = max(n for n in range(1, SUMMED + 1) if count % n == 0) if isinstance(count, int) else 1
    if inner in (1, count):
        dw = lax.fori_loop(0, count, add, zeros)
    else:  # a long sum loses less in pieces
        part = lambda index: lax.fori_loop(index * inner, (index + 1) * inner, add, zeros)
        dw = lax.fori_loop(0, count // inner, lambda index, total: total + part(index), zeros)
    return jnp.moveaxis(dw, 0, -2).reshape(*geometry.window, each, out)
