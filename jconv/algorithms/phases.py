"""A convolution over a dilated input, one output phase at a time: never a multiplication by an inserted zero.

An input dilated by e is what the input gradient of a convolution with stride e sees. Along an axis the places p of one
residue class r modulo m = e / gcd(stride, e) meet only the taps of one residue class modulo e / gcd(dilation, e): each
phase is a convolution of the undilated input with every so-manieth tap, and the phases interleave (all of them as the
channels of one: subpixel.py). Cost: the multiply-adds that meet no inserted zero, and one copy of the output.
Arithmetic from geometry.py's relation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

PHASES = 64  # most phases, and so convolutions, that one program spells out
MOST_BYTES = 24 << 20  # of the result of all images, beyond which some
FEW_BYTES = 8 << 20  # of it are taken at a time


def applies(geometry: Geometry) -> bool:
    phases = math.prod(axis.input_dilation // math.gcd(axis.stride, axis.input_dilation) for axis in geometry.axes)
    return any(axis.input_dilation > 1 for axis in geometry.axes) and phases <= PHASES


@dataclasses.dataclass(frozen=True)
class Phase:
    """Places place::places of one axis and the taps tap::taps that they meet; `axis` relates the two to the input."""

    place: int
    places: int
    tap: int
    taps: int
    axis: Axis


def split(axis: Axis) -> list[Phase | None]:
    """The phases of an axis in order of their first place; None where no tap meets the input."""
    e = axis.input_dilation
    m, step = e // math.gcd(axis.stride, e), e // math.gcd(axis.dilation, e)
    phases: list[Phase | None] = []
    for r in range(m):
        first = next(
            (t for t in range(min(step, axis.window)) if (r * axis.stride + t * axis.dilation - axis.low) % e == 0),
            None,
        )
        if first is None:
            phases.append(None)
            continue
        sub = Axis(
            input=axis.input,
            window=-(-(axis.window - first) // step),
            output=max(0, -(-(axis.output - r) // m)),
            stride=m * axis.stride // e,
            dilation=step * axis.dilation // e,
            low=-((r * axis.stride + first * axis.dilation - axis.low) // e),
        )
        phases.append(Phase(r, m, first, step, sub))
    return phases


Convolve = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Convolve) -> jax.Array:
    """`inner` computes each phase; it is given geometries without input dilation.

    Groups, of which each phase is a few sums, a few images at a time: phases of all would be mapped anew in each call.
    """
    run = functools.partial(_convolve, geometry=geometry, precision=precision, dtype=dtype, inner=inner)
    each = math.prod(geometry.output) * w.shape[-1] * jnp.dtype(dtype).itemsize
    images = windows.few_at_once(x.shape[0], each, MOST_BYTES, FEW_BYTES)
    if geometry.groups == 1 or images is None:
        return run(x, w)
    return windows.by_images(lambda x: windows.apart(run, x, w), x, images)  # written in place they are on one core


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Convolve) -> jax.Array:
    index = next((i for i, axis in enumerate(geometry.axes) if axis.input_dilation > 1), None)
    if index is None:
        return inner(x, w, geometry, precision, dtype)
    axis, parts = geometry.axes[index], []
    phases = split(axis)
    count = -(-axis.output // len(phases))
    for phase in phases:
        length = 0 if phase is None else phase.axis.output
        if phase is not None and length:
            part = lax.slice_in_dim(w, phase.tap, None, phase.taps, axis=index)
            axes = (*geometry.axes[:index], phase.axis, *geometry.axes[index + 1 :])
            y = _convolve(x, part, dataclasses.replace(geometry, axes=axes), precision, dtype, inner)
        else:
            output = (*geometry.output[:index], 0, *geometry.output[index + 1 :])
            y = jnp.zeros((x.shape[0], *output, w.shape[-1]), dtype)
        missing = [(0, count - length if i == index + 1 else 0, 0) for i in range(y.ndim)]
        parts.append(lax.pad(y, jnp.zeros((), dtype), missing) if count > length else y)
    y = jnp.stack(parts, axis=index + 2)
    y = y.reshape(*y.shape[: index + 1], count * len(phases), *y.shape[index + 3 :])
    return lax.slice_in_dim(y, 0, axis.output, axis=index + 1)
