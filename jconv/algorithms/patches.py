"""Every window's elements side by side, then one matrix product: for few channels, as a first layer has.

    P[n, p, t, c] = x[n, p*s + t*d - low, c]                        a copy of x a tap
    y[n, p, o]    = sum over t, c of P[n, p, t, c] w[t, c, o]       one matrix product
    dw[t, c, o]   = sum over n, p of P[n, p, t, c] g[n, p, o]       one matrix product
"im2col" (Chellapilla et al. 2006), a few images at a time so that P stays in cache. A copy is made of contiguous runs:
of the channels, or, where there are fewer than CHANNELS_LAST, of the places (P is then [t, c, n, p]); lax gathers
single elements there. Cost: the convolution's multiply-adds and taps * in copies.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

CHUNK_BYTES = 4 << 20  # patches held at once
EXAMPLES_BYTES = 6 << 20  # patches of examples whose kernel gradients are one batched product
MOST_TAPS = 128  # copies that one program spells out
CHANNELS_LAST = 4  # channels from which a copy runs along them


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and undilated and geometry.taps <= MOST_TAPS


def _patches(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, int]:
    """The patches of padded x (batch, *input, in) as a matrix, and which of its two sides is (taps * in)."""
    channels, last = x.shape[-1], x.shape[-1] >= CHANNELS_LAST
    parts = [windows.under_tap(x, geometry, tap) for tap in itertools.product(*map(range, geometry.window))]
    if last:
        return jnp.concatenate(parts, axis=-1).reshape(-1, geometry.taps * channels), 1
    return jnp.stack([jnp.moveaxis(part, -1, 0) for part in parts]).reshape(geometry.taps * channels, -1), 0


def _images(x: jax.Array, geometry: Geometry) -> int | None:
    """How many images' patches are held at once; None for all of them."""
    each = geometry.taps * x.shape[-1] * math.prod(geometry.output) * x.dtype.itemsize
    return windows.images_at_once(x.shape[0], each, CHUNK_BYTES)


def _split(array: jax.Array, images: int) -> jax.Array:
    return array.reshape(array.shape[0] // images, images, *array.shape[1:])


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, out, images = x.shape[0], w.shape[-1], _images(x, geometry)
    rows = w.reshape(-1, out)

    def run(x: jax.Array) -> jax.Array:
        columns, side = _patches(x, geometry)
        sides = (((side,), (0,)), ((), ()))
        y = lax.dot_general(columns, rows, sides, precision=precision, preferred_element_type=dtype)
        return y.reshape(-1, *geometry.output, out)

    x = windows.pad(x, geometry)
    y = run(x) if images is None else lax.map(run, _split(x, images))
    return y.reshape(batch, *geometry.output, out)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    out, channels, images = g.shape[-1], x.shape[-1], _images(x, geometry)

    def run(x: jax.Array, g: jax.Array) -> jax.Array:
        columns, side = _patches(x, geometry)
        sides = (((1 - side,), (0,)), ((), ()))
        return lax.dot_general(columns, g.reshape(-1, out), sides, precision=precision, preferred_element_type=dtype)

    x = windows.pad(x, geometry)
    if images is None:
        dw = run(x, g)
    else:
        dw = _accumulate(run, _split(x, images), _split(g, images), (geometry.taps * channels, out), dtype)
    return dw.reshape(*geometry.window, channels, out)


def kernel_grads(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The kernel gradient of each of x (examples, batch, *input, in): of a few at a time, as one batched product.

    g comes first, as XLA:CPU's batched product wants it: 3.4 ms in place of 5.0 for 64 examples of 32 x 32 x 16.
    """
    examples, batch, channels, out = x.shape[0], x.shape[1], x.shape[-1], g.shape[-1]
    each = geometry.taps * channels * math.prod(geometry.output) * x.dtype.itemsize

    # An axis of length 1 would come to stand first in XLA's layout, and cost a copy of x and g.
    x, g = (a.reshape(-1, *a.shape[2:]) if batch == 1 else a for a in (x, g))

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        columns, side = _patches(
            windows.pad(pair[0].reshape(batch, *x.shape[-geometry.rank - 1 :]), geometry), geometry
        )
        sides = (((0,), (1 - side,)), ((), ()))
        flat = pair[1].reshape(-1, out)
        return lax.dot_general(flat, columns, sides, precision=precision, preferred_element_type=dtype)

    dw = lax.map(one, (x, g), batch_size=_at_once(examples, batch * each))  # (examples, out, taps * in)
    return dw.swapaxes(1, 2).reshape(examples, *geometry.window, channels, out)


def _at_once(examples: Any, bytes_each: int) -> int | None:
    """How many examples' patches are held at once: a divisor of all if there is a large one, else the rest are left."""
    if not isinstance(examples, int):  # symbolic, in an export
        return None
    most = max(1, min(examples, EXAMPLES_BYTES // max(1, bytes_each)))
    divisor = max(n for n in range(1, most + 1) if examples % n == 0)
    return divisor if 2 * divisor > most else most


def _accumulate(
    run: Callable[..., jax.Array], x: jax.Array, g: jax.Array, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + run(*part), None

    return lax.scan(add, jnp.zeros(shape, dtype), (x, g))[0]
