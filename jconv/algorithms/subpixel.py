"""A convolution over a dilated input as one dense convolution whose outputs are all phases, then shuffled into place.

With p + t = a*e + low (stride 1), P = p + window - 1 - low = q*e + r and a = q - m + 1 + u, for m = ceil(window / e):
    z[q, r, o] = sum over u, c of x[q - m + 1 + u, c] w[u*e + e - 1 - r - (m*e - window), c, o]    no tap: 0
    y[p]       = z[P // e, P % e]                                                                  "periodic shuffling"
phases.py calls one convolution for each r; this has one, of e outputs for each of theirs along every axis, so that
rows of few outputs are long and a stride of 32 compiles one convolution in place of 1,024. Cost: the multiply-adds that
meet no inserted zero, times waste() for windows that are no multiple of e, and one copy of the output.
Source: Shi et al. 2016, Real-time single image and video super-resolution, section 3.2.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

CHUNK_BYTES = 8 << 20  # of the results of the images shuffled at once

Convolve = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    return phases(geometry) > 1 and all(axis.stride == axis.dilation == 1 for axis in geometry.axes)


def phases(geometry: Geometry) -> int:
    return math.prod(axis.input_dilation for axis in geometry.axes)


def waste(geometry: Geometry) -> float:
    """Multiply-adds over those that meet no inserted zero: 1 where the windows are multiples of the dilation."""
    return math.prod(_taps(axis) * axis.input_dilation / axis.window for axis in geometry.axes)


def _taps(axis: Axis) -> int:
    """Taps of the window that meets the undilated input."""
    return -(-axis.window // axis.input_dilation)


def _dense(axis: Axis) -> tuple[Axis, int]:
    """The axis of z, and the place of y[0] among the places of z that are shuffled."""
    taps, e = _taps(axis), axis.input_dilation
    begin = axis.window - 1 - axis.low  # P of the first place
    first, last = begin // e, (begin + axis.output - 1) // e
    return Axis(axis.input, taps, last - first + 1, low=taps - 1 - first), begin - first * e


def _kernel(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w (*window, in, groups * out) as (*taps, in, groups * phases * out)."""
    rank, groups, (c, out) = geometry.rank, geometry.groups, w.shape[-2:]
    missing = [(_taps(axis) * axis.input_dilation - axis.window, 0, 0) for axis in geometry.axes]
    w = lax.pad(w, jnp.zeros((), w.dtype), (*missing, (0, 0, 0), (0, 0, 0)))
    split = [n for axis in geometry.axes for n in (_taps(axis), axis.input_dilation)]
    w = lax.rev(w.reshape(*split, c, groups, out // groups), range(1, 2 * rank, 2))  # tap e - 1 of e is of phase 0
    order = (*range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank + 2)
    return w.transpose(order).reshape(*map(_taps, geometry.axes), c, phases(geometry) * out)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Convolve) -> jax.Array:
    rank, groups, out = geometry.rank, geometry.groups, w.shape[-1]
    axes, starts = zip(*map(_dense, geometry.axes), strict=True)
    kernel, by = _kernel(w, geometry), [axis.input_dilation for axis in geometry.axes]
    places = [axis.output for axis in axes]
    order = (0, *(n for i in range(rank) for n in (1 + i, 2 + rank + i)), 1 + rank, 2 + 2 * rank)

    def run(x: jax.Array) -> jax.Array:
        z = inner(x, kernel, Geometry(axes, groups), precision, dtype)
        y = z.reshape(x.shape[0], *places, groups, *by, out // groups).transpose(order)
        y = y.reshape(x.shape[0], *(n * e for n, e in zip(places, by, strict=True)), out)
        stops = (start + n for start, n in zip(starts, geometry.output, strict=True))
        return lax.slice(y, (0, *starts, 0), (x.shape[0], *stops, out))

    each = math.prod(geometry.output) * out * jnp.dtype(dtype).itemsize
    return windows.by_images(run, x, windows.images_at_once(x.shape[0], each, CHUNK_BYTES))
