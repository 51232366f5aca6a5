"""One matrix product, then a fold: for few output channels, as the input gradient of a first layer has.

    z[t, o, n, a] = sum over c of w[t, c, o] x[n, a, c]            one matrix product: each tap's share of each element
    y[p] = sum over t of z[t, a] where p = a*e + low - t*d         each share added where it belongs (stride 1)
A direct convolution gathers taps * in values for each result and uses each once when there is one output channel; this
reads x once. The fold runs tap by tap on an image or a few, or on a band of a large one, whose shares stay in cache.
Cost: the multiply-adds of the convolution, none over inserted zeros, and taps * out additions for each element of x.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

IMAGE_BYTES = 12 << 20  # shares of one image, beyond which it comes in bands
CHUNK_BYTES = 4 << 20  # shares computed at once; half of what two cores have of second and third level cache is plenty
LONGEST_SUM = 24  # shares that one sum adds up, of each element: of more there are several side by side, at most
MOST_SUMS = 4


def applies(geometry: Geometry) -> bool:
    return geometry.groups == 1 and all(axis.stride == 1 for axis in geometry.axes)


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, (length, *space), out = x.shape[0], geometry.input, w.shape[-1]
    stored = windows.as_stored(w, geometry)
    stored = stored if geometry.turned else stored.swapaxes(-2, -1)
    rows = stored.reshape(geometry.taps * out, w.shape[-2])
    shares = geometry.taps * out * math.prod(space) * jnp.dtype(dtype).itemsize  # of a place of the first axis
    count = bands(length, length * shares)
    band = length // count
    fold = _Fold(geometry)
    images = windows.images_at_once(batch, length * shares, CHUNK_BYTES)

    def run(first: Any, images: Any) -> jax.Array:
        """The result of so many images, from number `first` on: no copy of them beside that of a band."""

        def add(index: Any, total: jax.Array) -> jax.Array:
            here = windows.take(x, (first, index * band, *(0 for _ in space), 0), (images, band, *space, x.shape[-1]))
            z = windows.rows_product(rows, here.reshape(-1, x.shape[-1]), precision, dtype)
            return fold.add(z.reshape(geometry.taps, out, images, band, *space), index * band, total)

        total = fold.zeros(out, images, dtype)
        return fold.interleaved(add(0, total) if count == 1 else lax.fori_loop(0, count, add, total))

    return run(0, batch) if images is None else windows.by_first(lambda first: run(first, images), x, images)


def bands(length: int, bytes_each: int) -> int:
    """Parts alike of the first axis of an image, whose shares then fit a cache; 1 where they do."""
    if bytes_each <= IMAGE_BYTES:
        return 1
    least = -(-bytes_each // CHUNK_BYTES)
    return next((n for n in range(least, min(4 * least, length) + 1) if length % n == 0), length)


class _Fold:
    """Adds shares (taps, out, batch, *input) where they belong; dilated results are kept by phase until the end.

    The first axis of the input may come in bands.
    """

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
        self.phases = math.prod(self.dilations)
        self.sums = min(MOST_SUMS, -(-geometry.taps // (self.phases * LONGEST_SUM)))
        order = -1 if geometry.turned else 1  # a turned kernel's last tap is stored first
        sums = np.arange(geometry.taps) * self.sums // geometry.taps * self.phases
        self.phase = np.asarray(sums + np.ravel_multi_index(tuple(phase.T), self.dilations), np.int32)[::order]
        self.start = start.astype(np.int32)[::order]

    def zeros(self, out: int, batch: Any, dtype: Any) -> jax.Array:
        """Where shares are added up."""
        return jnp.zeros((self.sums * self.phases, out, batch, *self.length), dtype)

    def add(self, z: jax.Array, first: Any, total: jax.Array) -> jax.Array:
        """`total` with the shares of a band added, whose first place along the first axis is `first`."""
        _, out, batch, *space = z.shape
        phase, start, zero = jnp.asarray(self.phase), jnp.asarray(self.start), jnp.int32(0)
        first = jnp.asarray(first, jnp.int32)

        def add(t: jax.Array, total: jax.Array) -> jax.Array:
            at = (phase[t], zero, zero, start[t, 0] + first, *(start[t, i] for i in range(1, len(space))))
            here = windows.take(total, at, (1, out, batch, *space))
            return windows.put(total, here + windows.take_one(z, t, keepdims=True), at)

        return lax.fori_loop(0, z.shape[0], add, total)

    def interleaved(self, total: jax.Array) -> jax.Array:
        """(sums * phases, out, batch, *length) to (batch, *output, out)."""
        _, out, batch, *_ = total.shape
        rank = len(self.length)
        total = windows.total([*total.reshape(self.sums, *self.dilations, out, batch, *self.length)])
        order = [rank + 1]
        for i in range(rank):
            order += [rank + 2 + i, i]
        y = total.transpose(*order, rank)
        y = y.reshape(batch, *(n * e for n, e in zip(self.length, self.dilations, strict=True)), out)
        starts = [b * e for b, e in zip(self.before, self.dilations, strict=True)]
        stops = [b + n for b, n in zip(starts, self.geometry.output, strict=True)]
        return lax.slice(y, (0, *starts, 0), (batch, *stops, out))
