"""One multiply-add a tap over whole shifted arrays, for one channel, or groups of few channels: depthwise above all.

    y[n, p, o]  = sum over t, c of x[n, a, c] w[t, c, o]    the sum over t and c written out
    dw[t, c, o] = sum over n, p of x[n, a, c] g[n, p, o]    one product a tap, added up row after row
XLA fuses the sum into one loop that reads each shifted input once; lax runs a depthwise convolution 10 to 100 times
slower on a CPU. Cost: the convolution's multiply-adds, as elementwise operations, and one padded copy of the input. The
program grows with the taps written out, so beyond UNROLLED of them only the last axis' taps are, or runs of these.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

UNROLLED = 64  # multiply-adds written out in one program; beyond it the leading axes' taps run in a loop

MOST_BYTES = 12 << 20  # of the padded images: of those of two products a part, or all, is mapped anew in each call
FEW_BYTES = 8 << 20  # of some of them
MOVED = 16  # taps up to which a part of the result is computed where it is written, on one core: moving it takes longer
CHUNK_BYTES = 4 << 20  # of the padded images of one step of a kernel gradient
SUM_BYTES = 1 << 20  # of the sums of a kernel gradient; a core's second-level cache
SHORTEST = 8  # places of a run, if there are as many
IN_STEP = 8  # rows whose products are added to a sum in one pass over it


def applies(geometry: Geometry, channels: int, out: int) -> bool:
    groups, each = geometry.groups, channels // geometry.groups
    return min(channels, out) == groups and each <= UNROLLED and (groups > 1 or channels == 1)


def _at_once(window: int, each: int) -> int:
    """How many taps of the last axis, of `each` channels, are written out: all, or runs as even as can be."""
    return -(-window // -(-window * each // UNROLLED))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    del precision  # elementwise products are exact to the dtype
    run = functools.partial(_convolve, geometry=geometry, dtype=dtype)
    images = _images(x, geometry, x.shape[-1], dtype, FEW_BYTES)
    if images is None:
        return run(x, w)
    if geometry.taps > MOVED:
        return windows.by_images(lambda x: windows.apart(run, x, w), x, images)
    return windows.by_images(lambda x: run(x, w), x, images)


def _images(x: jax.Array, geometry: Geometry, channels: int, dtype: Any, few: int) -> int | None:
    """Images whose padded copy takes `few` bytes, None for all where that of all is no more than MOST_BYTES."""
    each = math.prod(map(windows.padded_length, geometry.axes)) * channels
    return windows.few_at_once(x.shape[0], each * jnp.dtype(dtype).itemsize, MOST_BYTES, few)


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry, dtype: Any) -> jax.Array:
    groups, each, out = geometry.groups, w.shape[-2], w.shape[-1]
    padded, w = windows.pad(x.astype(dtype), geometry), w.astype(dtype)

    def product(shifted: jax.Array, row: jax.Array) -> jax.Array:
        """sum over c of shifted[..., group, c] row[c, group, o], as (..., groups, out a group)."""
        if out == groups:  # one result a group
            parts = shifted.reshape(*shifted.shape[:-1], groups, each)
            return functools.reduce(lax.add, [parts[..., c] * row[c] for c in range(each)])[..., None]
        return shifted[..., None] * row[0].reshape(groups, out // groups)  # depthwise with a multiplier

    if geometry.taps * each <= UNROLLED:
        taps = itertools.product(*map(range, geometry.window))
        parts = [product(windows.under_tap(padded, geometry, tap), w[tap]) for tap in taps]
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
            total = total + product(shifted, taken[t])
        return total

    zeros = jnp.zeros((x.shape[0], *geometry.output, groups, out // groups), dtype)
    y = lax.fori_loop(0, rows.shape[0], add, zeros)
    return y.reshape(x.shape[0], *geometry.output, out)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """Run after run of places of the last axis: each tap's products are added up over the runs, then along the run."""
    *lead, last = geometry.axes
    at_once = _at_once(last.window, 1)
    if at_once < last.window:
        return _runs_of_taps(x, g, geometry, at_once, precision, dtype)
    del precision
    groups, batch, out = geometry.groups, x.shape[0], g.shape[-1]
    each, depth = x.shape[-1] // groups, out // groups  # channels in and out of a group; one of them is 1
    channels = groups * each * depth
    run = _run_length(last.output, geometry.taps * channels * jnp.dtype(dtype).itemsize)
    zeros = jnp.zeros((*(axis.window for axis in lead), run, channels), dtype)
    images = _images(x, geometry, channels, dtype, CHUNK_BYTES)
    size = images or batch

    def some(index: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        here, there = (windows.take_along(array, index * size, size) for array in (x, g))
        return _summed(here, there, geometry, run, sums)

    sums = (zeros,) * last.window
    sums = _summed(x, g, geometry, run, sums) if images is None else lax.fori_loop(0, batch // size, some, sums)
    dw = jnp.stack([jnp.sum(part, axis=-2, dtype=dtype) for part in sums], axis=-2)  # (*window, channels alike)
    if each == 1:
        return dw.reshape(*geometry.window, 1, out)
    return dw.reshape(*geometry.window, groups, each).swapaxes(-1, -2)


def _summed(
    x: jax.Array, g: jax.Array, geometry: Geometry, run: int, sums: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """`sums` of each tap of the last axis, (*leading taps, run, channels), with the products of some images added."""
    batch, groups, dtype = x.shape[0], geometry.groups, sums[0].dtype
    each, depth = x.shape[-1] // groups, g.shape[-1] // groups
    x, g = _alike(windows.pad(x, geometry), each, depth).astype(dtype), _alike(g, depth, each).astype(dtype)
    *lead, last = geometry.axes
    counts = [batch, *(axis.output for axis in lead), -(-last.output // run)]  # of images, rows and runs of a row
    several = _taken_at_once(counts, min(IN_STEP, max(1, UNROLLED // last.window)))
    steps = [-(-count // n) if n > 1 else count for count, n in zip(counts, several, strict=True)]
    whole = [count * n for count, n in zip(steps, several, strict=True)]
    missing = [n - count for count, n in zip(counts, whole, strict=True)]
    missing[-1] = whole[-1] * run - last.output  # places beyond the last, whose g is 0
    for dim, (more, stride) in enumerate(zip(missing, (1, *(axis.stride for axis in geometry.axes)), strict=True)):
        x, g = windows.pad_axis(x, dim, 0, more * stride), windows.pad_axis(g, dim, 0, more)
    seen = (1, *(axis.reach for axis in lead), (run - 1) * last.stride + last.reach, x.shape[-1])
    strides = (1, *(axis.stride for axis in lead), last.stride)

    def add(index: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        first = [step * n for step, n in zip(windows.unravelled(index, steps), several, strict=True)]
        for more in itertools.product(*map(range, several)):
            *at, block = map(operator.add, first, more)
            at = (*at, block * run)
            # One slice for all of a step would keep each tap's sum from being a vector.
            here = windows.take(x, (*(p * stride for p, stride in zip(at, strides, strict=True)), 0), seen)[0]
            here = lax.slice(here, (0,) * here.ndim, here.shape, (*(axis.dilation for axis in lead), 1, 1))
            there = windows.take(g, (*at, 0), (1, *(1 for _ in lead), run, g.shape[-1])).reshape(run, g.shape[-1])
            taps = (last.dilation * t for t in range(last.window))
            shifted = (lax.slice_in_dim(here, t, t + (run - 1) * last.stride + 1, last.stride, axis=-2) for t in taps)
            sums = tuple(total + part * there for total, part in zip(sums, shifted, strict=True))
        return sums

    return lax.fori_loop(0, math.prod(steps), add, sums)


def _taken_at_once(counts: Sequence[Any], most: int) -> list[int]:
    """How many of each axis one step adds up: up to `most` rows, else runs, else images; of all others one.

    Parts of a count that divide it, where they are half of `most` or more: others take a copy of x and g with zeros.
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


def _runs_of_taps(
    x: jax.Array, g: jax.Array, geometry: Geometry, at_once: int, precision: Any, dtype: Any
) -> jax.Array:
    """The kernel gradient of so many taps of the last axis after the other."""
    *lead, last = geometry.axes
    runs, seen = -(-last.window // at_once), (last.output - 1) * last.stride + 1 + (at_once - 1) * last.dilation
    x = windows.pad(x, geometry)
    missing = (runs - 1) * at_once * last.dilation + seen - x.shape[-2]
    x = windows.pad_axis(x, -2, 0, max(0, missing))
    whole = [dataclasses.replace(axis, input=n, low=0) for axis, n in zip(lead, x.shape[1:-2], strict=True)]
    some = dataclasses.replace(last, input=seen, window=at_once, low=0)
    inner = dataclasses.replace(geometry, axes=(*whole, some))

    def run(index: jax.Array) -> jax.Array:
        here = windows.take_along(x, index * at_once * last.dilation, seen, axis=-2)
        return kernel_grad(here, g, inner, precision, dtype)

    dw = jnp.moveaxis(lax.map(run, jnp.arange(runs)), 0, len(lead))
    dw = dw.reshape(*dw.shape[: len(lead)], runs * at_once, *dw.shape[-2:])
    return lax.slice_in_dim(dw, 0, last.window, axis=len(lead))


def _run_length(places: int, bytes_each: int) -> int:
    """Places of the last axis taken at once, so that the sums of all taps stay in cache: as even runs as can be."""
    runs = -(-places * bytes_each // SUM_BYTES)
    return -(-places // max(1, min(runs, places // SHORTEST)))


def _alike(array: jax.Array, own: int, other: int) -> jax.Array:
    """Channels repeated within their group, so that x and g match one to one: groups * max(own, other) of them."""
    return jnp.repeat(array, other, axis=-1) if other > own else array
