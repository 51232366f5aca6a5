"""One multiply-add a tap over whole shifted arrays, for few channels, or groups of few channels: depthwise above all.

    y[n, p, o]  = sum over t, c of x[n, a, c] w[t, c, o]    the sum over t and c written out
    dw[t, c, o] = sum over n, p of x[n, a, c] g[n, p, o]    all taps at once, added up row after row
XLA fuses the sum into one loop that reads each shifted input once; lax runs a depthwise convolution 10 to 100 times
slower on a CPU. Cost: the convolution's multiply-adds, as elementwise operations. Many channels and few taps are read
where x is, with masks for the padding; else from a padded copy, in blocks of channels where the taps are many. The
program grows with the taps written out, so beyond UNROLLED of them only the last axis' taps are, or runs of these. That
of a kernel gradient does not: its taps are axes of what is gathered, and only a few rows are written out.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import lanes, views, windows
from jconv.geometry import Axis, Geometry

UNROLLED = 64  # multiply-adds written out in one program; beyond it the leading axes' taps run in a loop

MOST_BYTES = 12 << 20  # of the padded images: of those of two products a part, or all, is mapped anew in each call
FEW_BYTES = 8 << 20  # of some of them
MASKED = 25  # taps up to which masks cost less than a padded copy,
VIEWED = 32  # for so many channels
VIEWED_BYTES = 1 << 18  # and so much of x
IN_BLOCKS = 128  # channels from which more taps are computed for a block of them at a time,
BLOCK = 64  # of so many at most,
LEAST_BLOCK = 16  # or, where the channels have no such divisor, at least so many,
BLOCKS_BYTES = 16 << 20  # if the copies take no more than this;
MANY = 1 << 15  # and where no program holds the taps, from so many of them times channels on
MOVED = 16  # taps up to which a part of the result is computed where it is written, on one core: moving it takes longer
CHUNK_BYTES = 4 << 20  # of the padded images of one step of a kernel gradient
SUM_BYTES = 1 << 20  # of the sums of a kernel gradient; a core's second-level cache
SHORTEST = 8  # places of a run, if there are as many
IN_STEP = 8  # rows whose products are added to a sum in one pass over it


def applies(geometry: Geometry, channels: int, out: int) -> bool:
    groups, each = geometry.groups, channels // geometry.groups
    return min(channels, out) == groups and each <= UNROLLED and (groups > 1 or channels == 1)


def applies_to_few(geometry: Geometry, channels: int) -> bool:
    """Whether a convolution of a few channels without groups is written out."""
    few = geometry.taps > 1 and channels > 1 and geometry.taps * channels <= 2 * UNROLLED
    return geometry.groups == 1 and few


def _at_once(window: int, each: int) -> int:
    """How many taps of the last axis, of `each` channels, are written out: all, or runs as even as can be."""
    return -(-window // -(-window * each // UNROLLED))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    del precision  # elementwise products are exact to the dtype
    if geometry.groups == 1 and x.shape[-1] > 1:  # each tap and channel is one number times the vector of its outputs
        padded = windows.in_memory(windows.pad(x.astype(dtype), geometry))
        return lanes.written_out(padded, w.astype(dtype), geometry)
    images = _images(x, geometry, x.shape[-1], dtype, FEW_BYTES)
    way = _way(x, w, geometry, dtype, images)
    if way is not None:
        return way(x.astype(dtype), w.astype(dtype), geometry)
    run = functools.partial(_convolve, geometry=geometry, dtype=dtype)
    if images is None:
        return run(x, w)
    if geometry.taps > MOVED:
        return windows.by_images(lambda x: windows.apart(run, x, w), x, images)
    return windows.by_images(lambda x: run(x, w), x, images)


def _way(x: jax.Array, w: jax.Array, geometry: Geometry, dtype: Any, images: int | None) -> Callable[..., Any] | None:
    """How else than from a padded copy of all channels, or of so many images, depthwise windows are computed."""
    channels = x.shape[-1]
    if not channels == w.shape[-1] == geometry.groups:
        return None
    blocks = channels >= IN_BLOCKS and _block(channels) >= LEAST_BLOCK
    if geometry.taps > UNROLLED:
        return _block_by_block if blocks and geometry.taps * channels >= MANY else None
    if blocks and geometry.taps > MASKED and _fits(x, geometry, dtype):
        return _in_blocks
    few = geometry.taps > MASKED or channels < VIEWED or _bytes(x, dtype) < VIEWED_BYTES
    if all(map(views.sees_all, geometry.axes)) and (images is not None or not few):
        return _in_place
    return None


def _bytes(x: jax.Array, dtype: Any) -> float:
    """Of x, infinite where its batch is symbolic, as in an export."""
    return x.size * jnp.dtype(dtype).itemsize if isinstance(x.shape[0], int) else math.inf


def _block(channels: int) -> int:
    """How many channels to take at once, a divisor."""
    return max(n for n in range(1, BLOCK + 1) if channels % n == 0)


def _fits(x: jax.Array, geometry: Geometry, dtype: Any) -> bool:
    """Whether the copies that _in_blocks makes are small enough."""
    elements = math.prod(map(windows.padded_length, geometry.axes)) + math.prod(geometry.output)
    return _bytes(x, dtype) / math.prod(geometry.input) * elements <= BLOCKS_BYTES


def _in_place(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """All taps in one loop that reads x where it is: what lies outside is masked, once for all taps that share it."""

    def along(x: jax.Array, tap: tuple[int, ...]) -> jax.Array:
        dim, last = len(tap), len(tap) == geometry.rank - 1
        parts = []
        for t in range(geometry.window[dim]):
            view = views.along_axis(x, dim + 1, geometry.axes[dim], t)
            if view is None:
                continue
            where, seen = view
            if last:  # masked first, so that the product and its addition are one instruction
                parts.append(views.masked(where, seen, 0) * w[(*tap, t, 0)])
            else:
                parts.append(views.masked(where, along(seen, (*tap, t)), 0))
        return windows.total(parts)

    x, w = windows.together(x, windows.packed(w))
    return along(windows.in_memory(x), ())


def _in_blocks(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """A block of channels after the other, so that the first cache holds its kernel and what one window sees.

    Places and taps are as far apart in memory as the block is wide. A power of two channels apart, all of them share a
    few sets of the cache: 512 channels took 2 to 3 times as long as 384. x is copied, padded, into blocks, and the
    result back.
    """
    padded = windows.in_memory(_split(windows.pad(x, geometry)))
    w = windows.in_memory(_split(w.reshape(geometry.taps, -1)))
    terms = []
    for number, tap in enumerate(itertools.product(*map(range, geometry.window))):
        starts, stops, steps = windows.places_under(geometry, tap)
        seen = lax.slice(padded, (0, 0, *starts, 0), (*padded.shape[:2], *stops, padded.shape[-1]), (1, 1, *steps, 1))
        terms.append(seen * w[:, number].reshape(-1, *(1,) * (geometry.rank + 1), w.shape[-1]))
    return _joined(windows.in_memory(windows.total(terms)))


def _block_by_block(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """As _in_blocks, where a program does not hold all taps: one block in each turn of a loop."""
    split = _split(x), _split(w)
    part = dataclasses.replace(geometry, groups=split[0].shape[-1])
    return _joined(lax.map(lambda block: _convolve(block[0], block[1], part, x.dtype), split))


def _split(array: jax.Array) -> jax.Array:
    """Blocks of channels in front."""
    size = _block(array.shape[-1])
    return jnp.moveaxis(array.reshape(*array.shape[:-1], array.shape[-1] // size, size), -2, 0)


def _joined(array: jax.Array) -> jax.Array:
    array = jnp.moveaxis(array, 0, -2)
    return array.reshape(*array.shape[:-2], -1)


def _images(x: jax.Array, geometry: Geometry, channels: int, dtype: Any, few: int) -> int | None:
    """Images whose padded copy takes `few` bytes, None for all where that of all is no more than MOST_BYTES."""
    each = math.prod(map(windows.padded_length, geometry.axes)) * channels
    return windows.few_at_once(x.shape[0], each * jnp.dtype(dtype).itemsize, MOST_BYTES, few)


def _product(shifted: jax.Array, row: jax.Array, groups: int) -> jax.Array:
    """sum over c of shifted[..., group, c] row[c, group, o], as (..., groups, out a group)."""
    each, out = row.shape
    if out == groups:  # one result a group
        parts = shifted.reshape(*shifted.shape[:-1], groups, each)
        return functools.reduce(lax.add, [parts[..., c] * row[c] for c in range(each)])[..., None]
    return shifted[..., None] * row[0].reshape(groups, out // groups)  # depthwise with a multiplier


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry, dtype: Any) -> jax.Array:
    groups, each, out = geometry.groups, w.shape[-2], w.shape[-1]
    padded, w = windows.pad(x.astype(dtype), geometry), windows.packed(w.astype(dtype))

    if geometry.taps * each <= UNROLLED:
        taps = itertools.product(*map(range, geometry.window))
        parts = [_product(windows.under_tap(padded, geometry, tap), w[tap], groups) for tap in taps]
        return windows.total(parts).reshape(x.shape[0], *geometry.output, out)

    *lead, last = geometry.axes
    at_once = _at_once(last.window, each)
    runs = -(-last.window // at_once)
    more = runs * at_once - last.window  # taps of zeros, so that all runs are alike
    w, padded = windows.pad_axis(w, -3, 0, more), windows.pad_axis(padded, -2, 0, more * last.dilation)
    width = (last.output - 1) * last.stride + 1
    seen = width + (at_once - 1) * last.dilation
    shape = (x.shape[0], *((axis.output - 1) * axis.stride + 1 for axis in lead), seen, padded.shape[-1])
    rows = w.reshape(-1, at_once, *w.shape[-2:])

    def under(padded: jax.Array, rows: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input under a run of taps, and these taps of the kernel."""
        *place, run = windows.unravelled(index, [*(axis.window for axis in lead), runs])
        at = [t * axis.dilation for t, axis in zip(place, lead, strict=True)]
        here = windows.take(padded, (0, *at, run * at_once * last.dilation, 0), shape)
        here = lax.slice(here, (0,) * here.ndim, here.shape, (1, *(axis.stride for axis in lead), 1, 1))
        return here, windows.take_one(rows, index)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        # An index inside of the sum keeps it from being a vector.
        here, taken = windows.apart(under, padded, rows, index)
        for t in range(at_once):
            shifted = lax.slice_in_dim(here, t * last.dilation, t * last.dilation + width, last.stride, axis=-2)
            total = total + _product(shifted, taken[t], groups)
        return total

    zeros = jnp.zeros((x.shape[0], *geometry.output, groups, out // groups), dtype)
    y = lax.fori_loop(0, rows.shape[0], add, zeros)
    return y.reshape(x.shape[0], *geometry.output, out)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """A few rows, or runs of long ones, after the other: all taps' products are added to one array, then along the run.

    It lies in halves of the run, one for each of two cores.
    """
    del precision
    groups, batch, out = geometry.groups, x.shape[0], g.shape[-1]
    each, depth = x.shape[-1] // groups, out // groups  # channels in and out of a group; one of them is 1
    channels, places = groups * each * depth, geometry.axes[-1].output
    run = _run_length(places, geometry.taps * channels * jnp.dtype(dtype).itemsize)
    halves = 2 if run % 2 == 0 else 1
    sums = jnp.zeros((halves, *geometry.window, run // halves, channels), dtype)
    images = None if each == depth else _images(x, geometry, channels, dtype, CHUNK_BYTES)  # else channels are repeated
    size = images or batch

    def some(index: Any, sums: jax.Array) -> jax.Array:
        here, there = (windows.take_along(array, index * size, size) for array in (x, g))
        return _summed(here, there, geometry, run, sums)

    sums = _summed(x, g, geometry, run, sums) if images is None else lax.fori_loop(0, batch // size, some, sums)
    dw = jnp.sum(sums, axis=(0, -2), dtype=dtype)  # (*window, channels alike)
    if each == 1:
        return dw.reshape(*geometry.window, 1, out)
    return dw.reshape(*geometry.window, groups, each).swapaxes(-1, -2)


def _summed(x: jax.Array, g: jax.Array, geometry: Geometry, run: int, sums: jax.Array) -> jax.Array:
    """`sums` (halves, *window, places of half a run, channels) with the products of some images added.

    Taps are axes of what is gathered from x, so that one loop, and a short program, computes all of them.
    """
    groups, dtype, (halves, *_, half, channels) = geometry.groups, sums.dtype, sums.shape
    each, depth = x.shape[-1] // groups, g.shape[-1] // groups
    x, g = _alike(x.astype(dtype), each, depth), _alike(g.astype(dtype), depth, each)
    *lead, last = geometry.axes
    counts = [x.shape[0], *(axis.output for axis in lead), -(-last.output // run)]  # of images, rows and runs of a row
    several = _taken_at_once(counts, IN_STEP)
    steps = [-(-count // n) if n > 1 else count for count, n in zip(counts, several, strict=True)]
    rows = x.reshape(-1, *x.shape[-2:])
    ones = (1,) * len(lead)

    def add(index: Any, sums: jax.Array) -> jax.Array:
        number = functools.partial(jnp.asarray, dtype=index.dtype)
        parts = list(zip(windows.unravelled(index, steps), several, counts, strict=True))
        first = [windows.start_of(part, n, count) if n > 1 else part for part, n, count in parts]
        terms = []
        for more in itertools.product(*map(range, several)):
            at = list(map(operator.add, first, more))
            again = [part * n > place for (part, n, count), place in zip(parts, at, strict=True) if n > 1 and count % n]
            image, *place, block = at
            row, seen_rows = image, True
            for i, axis in enumerate(lead):
                taps = number(views.along(np.arange(axis.window) * axis.dilation - axis.low, i, len(lead)))
                row, seen_rows = _place(row, axis, place[i] * axis.stride + taps, seen_rows)
            here = views.gathered(rows, 0, row) if lead else windows.take_one(rows, image)

            begin = windows.start_of(block, run, last.output)
            places = begin + number(np.arange(run).reshape(halves, 1, half))
            taps = number(views.along(np.arange(last.window) * last.dilation - last.low, 1, 3))
            column, seen = _place(0, last, places * last.stride + taps, True)
            here = jnp.moveaxis(views.gathered(here, len(lead), column), len(lead), 0)
            if seen_rows is not True:
                seen_rows = seen_rows.reshape(1, *seen_rows.shape, 1, 1, 1)
            if seen is not True:
                seen = seen.reshape(halves, *ones, last.window, half, 1)
            here = views.masked(seen & seen_rows, here, 0)

            there = windows.take(g, (*at[:-1], begin, 0), (1, *ones, run, channels))
            part = here * there.reshape(halves, *ones, 1, half, channels)
            if last.output % run:
                again.append((places < block * run).reshape(halves, *ones, 1, half, 1))
            for counted in again:
                part = jnp.where(counted, jnp.zeros((), dtype), part)
            terms.append(part)
        return sums + windows.total(terms)

    return lax.fori_loop(0, math.prod(steps), add, sums)


def _place(before: Any, axis: Axis, element: jax.Array, seen: Any) -> tuple[Any, Any]:
    """(flat numbers of elements of an axis after those of the axes before, where all of them are in x)."""
    if axis.low > 0 or axis.high > 0:
        seen = seen & (element >= 0) & (element < axis.input)
        element = element.clip(0, axis.input - 1)
    return before * axis.input + element, seen


def _taken_at_once(counts: Sequence[Any], most: int) -> list[int]:
    """How many of each axis one step adds up: up to `most` rows, else runs, else images; of all others one.

    Parts of a count that divide it, where they are half of `most` or more: of others the last has places again.
    """
    order = [*range(len(counts) - 2, 0, -1), len(counts) - 1, 0]

    def divisor(dim: int) -> int:
        count = counts[dim]
        return max(n for n in range(1, most + 1) if count % n == 0) if isinstance(count, int) else 1

    def even(dim: int) -> int:
        count = counts[dim]
        if dim == 0 or not isinstance(count, int) or divisor(dim) == count:
            return divisor(dim)
        return -(-count // -(-count // most))  # as even parts as can be

    best = max(order, key=divisor)
    few = divisor
    if 2 * divisor(best) < most:
        best, few = max(order, key=even), even
    return [few(dim) if dim == best else 1 for dim in range(len(counts))]


def _run_length(places: int, bytes_each: int) -> int:
    """Places of the last axis taken at once, so that the sums of all taps stay in cache: as even runs as can be."""
    runs = -(-places * bytes_each // SUM_BYTES)
    return -(-places // max(1, min(runs, places // SHORTEST)))


def _alike(array: jax.Array, own: int, other: int) -> jax.Array:
    """Channels repeated within their group, so that x and g match one to one: groups * max(own, other) of them."""
    return jnp.repeat(array, other, axis=-1) if other > own else array
