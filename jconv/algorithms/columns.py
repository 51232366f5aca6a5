"""One matrix product, then a fold: for few output channels, as the input gradient of a first layer has.

    z[t, o, n, a] = sum over c of w[t, c, o] x[n, a, c]            one matrix product: each tap's share of each element
    y[p] = sum over t of z[t, a] where p = a*e + low - t*d         each share added where it belongs (stride 1)
A direct convolution gathers taps * in values for each result and uses each once when there is one output channel; this
reads x once. The fold runs tap by tap on one image or a few, whose shares stay in cache. Cost: the multiply-adds of the
convolution, none over inserted zeros, and taps * out additions for each element of x.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

CHUNK_BYTES = 4 << 20  # shares computed at once; half of what two cores have of second and third level cache is plenty


def applies(geometry: Geometry) -> bool:
    return geometry.groups == 1 and all(axis.stride == 1 for axis in geometry.axes)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, space, out = x.shape[0], geometry.input, w.shape[-1]
    rows = w.reshape(geometry.taps, w.shape[-2], out).swapaxes(1, 2).reshape(geometry.taps * out, w.shape[-2])
    fold = _Fold(geometry)
    shares = geometry.taps * out * math.prod(space) * jnp.dtype(dtype).itemsize
    images = windows.images_at_once(batch, shares, CHUNK_BYTES)

    def run(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1])
        z = lax.dot_general(rows, flat, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=dtype)
        return fold(z.reshape(geometry.taps, out, x.shape[0], *space))

    return windows.by_images(run, x, images)


class _Fold:
    """Adds shares (taps, out, batch, *input) where they belong; dilated results are kept by phase until the end."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        offsets = []
        for axis in geometry.axes:
            at = axis.low - np.arange(axis.window) * axis.dilation  # place of input 0 under each tap
            offsets.append((at % axis.input_dilation, at // axis.input_dilation))
        self.before = [max(0, int(-quotient.min())) for _, quotient in offsets]
        self.length = [
            max(int(quotient.max()) + axis.input, -(-axis.output // axis.input_dilation)) + before
            for (_, quotient), axis, before in zip(offsets, geometry.axes, self.before, strict=True)
        ]
        taps = np.meshgrid(*(np.arange(axis.window) for axis in geometry.axes), indexing="ij")
        phase = np.stack([o[0][t.ravel()] for o, t in zip(offsets, taps, strict=True)], axis=1)
        start = np.stack([o[1][t.ravel()] + b for o, t, b in zip(offsets, taps, self.before, strict=True)], axis=1)
        self.dilations = [axis.input_dilation for axis in geometry.axes]
        self.phase = np.ravel_multi_index(tuple(phase.T), self.dilations).astype(np.int32)
        self.start = start.astype(np.int32)

    def __call__(self, z: jax.Array) -> jax.Array:
        _, out, batch, *space = z.shape
        rank = len(space)
        total = jnp.zeros((math.prod(self.dilations), out, batch, *self.length), z.dtype)
        phase, start, zero = jnp.asarray(self.phase), jnp.asarray(self.start), jnp.int32(0)

        def add(t: jax.Array, total: jax.Array) -> jax.Array:
            at = (phase[t], zero, zero, *(start[t, i] for i in range(rank)))
            here = lax.dynamic_slice(total, at, (1, out, batch, *space))
            return lax.dynamic_update_slice(total, here + lax.dynamic_index_in_dim(z, t, 0), at)

        total = lax.fori_loop(0, z.shape[0], add, total)
        return self._interleave(total, out, batch)

    def _interleave(self, total: jax.Array, out: int, batch: int) -> jax.Array:
        """(phases, out, batch, *length) to (batch, *output, out)."""
        rank = len(self.length)
        total = total.reshape(*self.dilations, out, batch, *self.length)
        order = [rank + 1]
        for i in range(rank):
            order += [rank + 2 + i, i]
        y = total.transpose(*order, rank)
        y = y.reshape(batch, *(n * e for n, e in zip(self.length, self.dilations, strict=True)), out)
        starts = [b * e for b, e in zip(self.before, self.dilations, strict=True)]
        stops = [b + n for b, n in zip(starts, self.geometry.output, strict=True)]
        return lax.slice(y, (0, *starts, 0), (batch, *stops, out))
