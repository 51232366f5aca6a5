"""Every window's elements side by side, then one matrix product: for few input channels, as a first layer has.

    P[t, c, n, p] = x[n, p*s + t*d - low, c]                        a copy of x a tap, places contiguous
    y[n, p, o]    = sum over t, c of P[t, c, n, p] w[t, c, o]       one matrix product
    dw[t, c, o]   = sum over n, p of P[t, c, n, p] g[n, p, o]       one matrix product
"im2col" (Chellapilla et al. 2006), a few images at a time so that P stays in cache. With few channels each copy is a
run of contiguous places; lax gathers single elements there. Cost: the convolution's multiply-adds and taps * in copies.
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
MOST_TAPS = 128  # copies that one program spells out


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and undilated and geometry.taps <= MOST_TAPS


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """(taps, in, batch * places) from padded x (in, batch, *input)."""
    channels, batch = x.shape[:2]
    steps = (1, 1, *(axis.stride for axis in geometry.axes))
    parts = []
    for tap in itertools.product(*map(range, geometry.window)):
        starts = [t * axis.dilation for t, axis in zip(tap, geometry.axes, strict=True)]
        stops = [b + (axis.output - 1) * axis.stride + 1 for b, axis in zip(starts, geometry.axes, strict=True)]
        parts.append(lax.slice(x, (0, 0, *starts), (channels, batch, *stops), steps).reshape(channels, -1))
    return jnp.stack(parts)


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
        columns = _patches(jnp.moveaxis(x, -1, 0), geometry).reshape(rows.shape[0], -1)
        y = lax.dot_general(columns, rows, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=dtype)
        return y.reshape(-1, *geometry.output, out)

    x = windows.pad(x, geometry)
    y = run(x) if images is None else lax.map(run, _split(x, images))
    return y.reshape(batch, *geometry.output, out)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    out, channels, images = g.shape[-1], x.shape[-1], _images(x, geometry)

    def run(x: jax.Array, g: jax.Array) -> jax.Array:
        columns = _patches(jnp.moveaxis(x, -1, 0), geometry).reshape(geometry.taps * channels, -1)
        dims = (((1,), (0,)), ((), ()))
        return lax.dot_general(columns, g.reshape(-1, out), dims, precision=precision, preferred_element_type=dtype)

    x = windows.pad(x, geometry)
    if images is None:
        dw = run(x, g)
    else:
        dw = _accumulate(run, _split(x, images), _split(g, images), (geometry.taps * channels, out), dtype)
    return dw.reshape(*geometry.window, channels, out)


def _accumulate(
    run: Callable[..., jax.Array], x: jax.Array, g: jax.Array, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + run(*part), None

    return lax.scan(add, jnp.zeros(shape, dtype), (x, g))[0]
