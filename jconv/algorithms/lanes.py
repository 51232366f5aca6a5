"""A group's outputs are the lanes of a vector, and each of its channels is one number times it: for small groups.

    y[n, p, group, :]  = sum over t, c of x[n, a, group, c] w[t, c, group, :]
    dw[t, c, group, :] = sum over n, p of x[n, a, group, c] g[n, p, group, :]
Each sum is a fused loop whose innermost axis is the group's outputs, which XLA:CPU makes a vector of: nothing is
brought together by group, no zeros are multiplied, and a few lines compile in a third of the time of a convolution a
group. What a loop reads from a place that changes is copied first: an index inside of it keeps it from being a vector.
Cost: the convolution's multiply-adds, each with two loads, and a pass over what is summed up for every few of them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

MOST_CHANNELS = 32  # of a group, in and out
UNROLLED = 64  # multiply-adds written out in one loop
KERNEL_BYTES = 1 << 16  # of the kernel in one loop
PASS = 8  # what a pass over the result costs, in multiply-adds
PLACES = 16  # the same of a kernel gradient
CHAINS = 4  # sums side by side: an addition waits for the one before
CHUNK_BYTES = 2 << 20  # of input and result of the images taken at once
SUMMED = 32  # passes of a kernel gradient that are added up before their sum is added to that of the others


def applies(geometry: Geometry, channels: int, out: int) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups > 1 and undilated and max(channels, out) <= MOST_CHANNELS * geometry.groups


def _at_once(window: int, each: int, bytes_each: int) -> int:
    """How many taps of the last axis, of `each` channels, are written out in one pass over the result.

    Few passes, few taps of zeros, and no more of the kernel than a core's first cache holds: a place reads it all.
    """
    most = min(window, UNROLLED // each, max(1, KERNEL_BYTES // (each * bytes_each)))
    cost = lambda taps: -(-window // taps) * (taps * each + PASS)
    return window if most == window else min(range(1, max(1, most) + 1), key=cost)


def _total(terms: list[jax.Array]) -> jax.Array:
    chains = [functools.reduce(lax.add, terms[i::CHAINS]) for i in range(min(CHAINS, len(terms)))]
    return functools.reduce(lax.add, chains)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    del precision  # elementwise products are exact to the dtype
    out = w.shape[-1]
    each = math.prod(geometry.input) * x.shape[-1] + math.prod(geometry.output) * out
    images = windows.images_at_once(x.shape[0], each * jnp.dtype(dtype).itemsize, CHUNK_BYTES)
    return windows.by_images(lambda x: _convolve(x, w.astype(dtype), geometry), x.astype(dtype), images)


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    groups, each, out = geometry.groups, w.shape[-2], w.shape[-1]
    *lead, last = geometry.axes
    x = windows.pad(x, geometry)
    at_once = _at_once(last.window, each, out * x.dtype.itemsize)
    runs = -(-last.window // at_once)
    more = runs * at_once - last.window  # taps of zeros, so that all runs are alike
    x, w = windows.pad_axis(x, -2, 0, more * last.dilation), windows.pad_axis(w, -3, 0, more)
    rows = w.reshape(-1, runs * at_once, each, groups, out // groups)
    width = (last.output - 1) * last.stride + (at_once - 1) * last.dilation + 1
    shape = (x.shape[0], *((axis.output - 1) * axis.stride + 1 for axis in lead), width, x.shape[-1])

    def under(x: jax.Array, rows: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input under some taps, and these taps of the kernel."""
        row, run = windows.unravelled(index, (rows.shape[0], runs))
        place, tap = windows.unravelled(row, [axis.window for axis in lead]) if lead else (), run * at_once
        at = [t * axis.dilation for t, axis in zip(place, lead, strict=True)]
        here = windows.take(x, (0, *at, tap * last.dilation, 0), shape)
        here = lax.slice(here, (0,) * here.ndim, here.shape, (1, *(axis.stride for axis in lead), 1, 1))
        taps = windows.take(rows, (row, tap, 0, 0, 0), (1, at_once, *rows.shape[2:]))[0]
        return here.reshape(*here.shape[:-1], groups, each), taps

    def add(index: jax.Array, y: jax.Array) -> jax.Array:
        here, taps = windows.apart(under, x, rows, index)
        terms = []
        for t in range(at_once):
            start = t * last.dilation
            stop = start + (last.output - 1) * last.stride + 1
            shifted = lax.slice_in_dim(here, start, stop, last.stride, axis=-3)
            terms += [shifted[..., c, None] * taps[t, c] for c in range(each)]
        return y + _total(terms)

    zeros = jnp.zeros((x.shape[0], *geometry.output, groups, out // groups), x.dtype)
    y = lax.fori_loop(0, rows.shape[0] * runs, add, zeros)
    return y.reshape(x.shape[0], *geometry.output, out)


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
    rows, reach = [axis.output for axis in lead], (run - 1) * last.stride + last.reach

    def under(x: jax.Array, g: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input that a run of windows sees, and their cotangents."""
        n, *place, block = windows.unravelled(index, (batch, *rows, runs))
        at = [p * axis.stride for p, axis in zip(place, lead, strict=True)]
        seen = (1, *(axis.reach for axis in lead), reach, x.shape[-1])
        here = windows.take(x, (n, *at, block * run * last.stride, 0), seen)[0]
        here = lax.slice(here, (0,) * here.ndim, here.shape, (*(axis.dilation for axis in lead), 1, 1))
        there = windows.take(g, (n, *place, block * run, 0), (1, *(1 for _ in rows), run, out))
        return here.reshape(*here.shape[:-1], groups, each), there.reshape(run, groups, depth)

    def add(index: Any, total: jax.Array) -> jax.Array:
        here, there = windows.apart(under, x, g, index)
        terms = []
        for p in range(run):
            start = p * last.stride
            seen = lax.slice_in_dim(here, start, start + last.reach, last.dilation, axis=-3)
            seen = jnp.moveaxis(seen, -2, 0)[..., None]  # (groups, *window, in, 1)
            terms.append(seen * there[p].reshape(groups, *(1 for _ in geometry.window), 1, depth))
        return total + _total(terms)

    zeros = jnp.zeros((groups, *geometry.window, each, depth), dtype)
    count = batch * math.prod(rows) * runs
    inner = max(n for n in range(1, SUMMED + 1) if count % n == 0) if isinstance(count, int) else 1
    if inner in (1, count):
        dw = lax.fori_loop(0, count, add, zeros)
    else:  # a long sum loses less in pieces
        part = lambda index: lax.fori_loop(index * inner, (index + 1) * inner, add, zeros)
        dw = lax.fori_loop(0, count // inner, lambda index, total: total + part(index), zeros)
    return jnp.moveaxis(dw, 0, -2).reshape(*geometry.window, each, out)
