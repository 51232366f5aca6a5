"""Neighbouring axes along which a window is one place, joined to one: a convolution of lower rank, without a copy.

    y[n, p, (q, r), o] = sum over t, c of x[n, p*s + t*d - low, (q, r), c] w[t, c, o]     for a window of (k, 1, 1)
The temporal half of a (2+1)-D convolution is so a plane one with long rows, which XLA:CPU runs three times as fast as
three spatial axes (16 x 56 x 56 x 144 by 3x1x1 to 64: 52 ms, and 16 as 16 x 3136). Cost: the multiply-adds of the
convolution.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from jconv.geometry import Axis, Geometry

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    return len(_runs(geometry)) < geometry.rank and geometry.taps > 1


def _whole(axis: Axis) -> bool:
    """Whether each place sees the one element of the same number."""
    return axis.window == axis.stride == axis.input_dilation == 1 and axis.low == 0 and axis.output == axis.input


def _runs(geometry: Geometry) -> list[list[int]]:
    """The axes by what they become: neighbours that are whole together, each other one alone."""
    runs: list[list[int]] = []
    for i, axis in enumerate(geometry.axes):
        if runs and _whole(axis) and _whole(geometry.axes[runs[-1][-1]]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def lower(geometry: Geometry) -> Geometry:
    """The geometry with such axes joined."""

    def one(run: list[int]) -> Axis:
        if len(run) == 1:
            return geometry.axes[run[0]]
        length = math.prod(geometry.input[i] for i in run)
        return Axis(length, 1, length)

    return dataclasses.replace(geometry, axes=tuple(map(one, _runs(geometry))))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product) -> jax.Array:
    flat = lower(geometry)
    kernel = w.reshape(*flat.window, *w.shape[-2:])
    y = inner(x.reshape(x.shape[0], *flat.input, x.shape[-1]), kernel, flat, precision, dtype)
    return y.reshape(x.shape[0], *geometry.output, w.shape[-1])


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    flat = lower(geometry)
    flatten = lambda array, space: array.reshape(array.shape[0], *space, array.shape[-1])
    dw = inner(flatten(x, flat.input), flatten(g, flat.output), flat, precision, dtype)
    return dw.reshape(*geometry.window, *dw.shape[-2:])
