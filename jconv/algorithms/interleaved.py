"""A dilated window as a dense one over every dilation-th element: the images that interleave, as a batch.

    place p = q d + r sees the elements i + low = (q + t) d + r: the places of a rest r see one rest alone
    y_r[q] = sum over t of x_r[q + t] w[t]          x_r[m] = x[m d + r - low]
"Space to batch" (Yu & Koltun 2016 call the filter dilated; TensorFlow's atrous_conv2d computes it so). What is dense is
open to what fast algorithms need: 3x3 in fewer multiplications, rows of whole images. Cost: the multiply-adds of the
convolution, also of the places that fill the images up to the dilation's multiple, and a copy of x and of the result.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.geometry import Axis, Geometry

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    dilated = [axis for axis in geometry.axes if _dilation(axis) > 1]
    return bool(dilated) and all(axis.stride == 1 and axis.input_dilation == 1 for axis in dilated)


def _dilation(axis: Axis) -> int:
    return axis.dilation if axis.window > 1 else 1


def images(geometry: Geometry) -> int:
    """How many images each image becomes."""
    return math.prod(map(_dilation, geometry.axes))


def dense(geometry: Geometry) -> Geometry:
    """The geometry of one of the images; places that fill it up are more than the result has."""
    return dataclasses.replace(geometry, axes=tuple(map(_dense, geometry.axes)))


def waste(geometry: Geometry) -> float:
    """Places computed for each place of the result."""
    return images(geometry) * math.prod(dense(geometry).output) / max(1, math.prod(geometry.output))


def _dense(axis: Axis) -> Axis:
    d = _dilation(axis)
    if d == 1:
        return axis
    length, places = -(-(axis.input + axis.low % d) // d), -(-axis.output // d)
    return Axis(length, axis.window, places, low=axis.low // d)


def _apart(x: jax.Array, geometry: Geometry, lows: list[int], lengths: list[int]) -> jax.Array:
    """x with zeros around it, `lows` before it, as (batch * rests, *lengths, channels)."""
    rests = [_dilation(axis) for axis in geometry.axes]
    totals = [n * d for n, d in zip(lengths, rests, strict=True)]
    pads = [(low, total - low - n, 0) for low, total, n in zip(lows, totals, x.shape[1:-1], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    split = [n for pair in zip(lengths, rests, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    rank = geometry.rank
    x = x.transpose(0, *range(2, 2 * rank + 1, 2), *range(1, 2 * rank, 2), 2 * rank + 1)
    return x.reshape(-1, *lengths, x.shape[-1])


def _inputs(x: jax.Array, geometry: Geometry) -> jax.Array:
    lows = [axis.low % _dilation(axis) for axis in geometry.axes]
    return _apart(x, geometry, lows, list(dense(geometry).input))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product) -> jax.Array:
    part, rank = dense(geometry), geometry.rank
    rests = [_dilation(axis) for axis in geometry.axes]
    y = inner(_inputs(x, geometry), w, part, precision, dtype)
    y = y.reshape(x.shape[0], *rests, *part.output, y.shape[-1])
    order = [i for pair in zip(range(rank + 1, 2 * rank + 1), range(1, rank + 1), strict=True) for i in pair]
    y = y.transpose(0, *order, 2 * rank + 1)
    y = y.reshape(x.shape[0], *(n * d for n, d in zip(part.output, rests, strict=True)), y.shape[-1])
    return lax.slice(y, (0,) * y.ndim, (x.shape[0], *geometry.output, y.shape[-1]))


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    part = dense(geometry)
    there = _apart(g, geometry, [0] * geometry.rank, list(part.output))  # places that fill up have no gradient
    return inner(_inputs(x, geometry), there, part, precision, dtype)
