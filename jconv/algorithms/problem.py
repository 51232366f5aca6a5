"""One product to compute, and what more than one rule of choice asks of it: see worth.py.

Bounds that several rules share stand here.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jconv.algorithms import abreast, columns, cost, patches, shifts, winograd
from jconv.geometry import Geometry

FEW = 16  # channels that are one or two vectors
MOSTLY_INSIDE = 0.76  # of the taps' places on the input, from which leaving out the others saves too little,
MOSTLY_INSIDE_OF_MORE = 0.87  # and in a convolution of at least so many channels,
MORE_THAN_MANY = 256  # whose kernel is taken as it is stored
FEWEST_GATHERED = 4  # channels that lax gathers one by one
MOST_OF_ONE = 32  # taps of one channel up to which a multiply-add a tap is one loop over the result
MOST_SCATTERED = 9  # taps of a kernel gradient up to which one matrix product a tap beats a convolution with steps
NARROW = 32  # channels in or out below which a kernel gradient has short rows
SMALL_IMAGE = 1 << 10  # places of an image, or of all, of which a few taps' products are from cache
MANY = 128  # channels
FEWEST = 32  # channels in or out below which Winograd's sums cost more than the multiplications that they save,
FEWEST_IN_ALL = 128  # and of both together, but for a kernel gradient;
FEWEST_OUT = 48  # nor are there fewer outputs of a convolution, since images abreast outrun products of fewer columns
LARGEST_FORMS = 32 << 20  # bytes of a kernel in Winograd's form, for its gradient
LEAST_SECONDS = 5e-4  # of a lax convolution from which a program that takes half a second longer to compile is worth it


@dataclasses.dataclass(frozen=True)
class Problem:
    """One product to compute: geometry is cropped; an input gradient is a convolution along for_input_grad().

    part: it is one of several that an algorithm calls, one after the other, and has no gradient beside it.
    """

    product: str  # "convolve" or "kernel_grad"
    batch: Any  # an int, or a symbolic dimension while exporting
    channels: int
    out: int
    geometry: Geometry
    dtype: Any
    part: bool = False

    @property
    def real(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.floating)

    @property
    def inexact(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)


def double(problem: Problem) -> bool:
    return problem.dtype == jnp.float64


def in_double(problem: Problem) -> str | None:
    """What computes a float64 product that XLA:CPU's convolution runs element by element, at 2 to 7 GFLOP/s.

    One along one axis, and one of planes with more places out than in: matrix products, 8 to 30 times faster.
    """
    geometry, convolves = problem.geometry, problem.product == "convolve"
    if not double(problem) or geometry.groups > 1:
        return None
    if geometry.rank == 1:
        if convolves and columns.applies(geometry) and not undilated(problem):
            return "columns"
        few = min(problem.channels, problem.out) < FEW
        able = ("patches", patches), ("shifts", shifts)
        return next((name for name, way in (able if few else able[::-1]) if way.applies(geometry)), None)
    grows = geometry.rank == 2 and any(axis.output > axis.input for axis in geometry.axes)
    if convolves and grows and undilated(problem) and min(problem.channels, problem.out) > FEWEST_GATHERED:
        return "shifts" if shifts.applies(geometry) else "columns" if columns.applies(geometry) else None
    return None


def undilated(problem: Problem) -> bool:
    return all(axis.input_dilation == 1 for axis in problem.geometry.axes)


def mostly_inside(problem: Problem) -> bool:
    more = problem.product == "convolve" and min(problem.channels, problem.out) >= MORE_THAN_MANY
    return shifts.share_inside(problem.geometry) > (MOSTLY_INSIDE_OF_MORE if more else MOSTLY_INSIDE)


def winograd_seconds(problem: Problem) -> float:
    ours = cost.winograd if problem.product == "convolve" else cost.winograd_kernel_grad
    tiles = winograd.tiles(problem.geometry)
    return ours(problem.batch, problem.geometry, problem.channels, problem.out, tiles)


def lax_seconds(problem: Problem) -> float:
    lax = cost.lax_convolve if problem.product == "convolve" else cost.lax_kernel_grad
    return lax(problem.batch, problem.geometry, problem.channels, problem.out)


def shifts_seconds(problem: Problem) -> float:
    """Of a product a tap over the places where it is inside."""
    flops = cost.flops(problem.batch, problem.geometry, problem.channels, problem.out)
    return shifts.share_inside(problem.geometry) * flops / cost.PRODUCTS


def winograd_wins(problem: Problem) -> bool:
    """By the cost model, with some room for what it does not know; in float32, where its rounding is like lax's."""
    forms = 64 * problem.channels * problem.out  # bytes: too many to keep beside those of the input gradient
    fits = problem.product == "convolve" or forms <= LARGEST_FORMS
    fits &= min(problem.channels, problem.out) >= FEWEST
    if problem.product == "convolve":
        fits &= problem.out >= FEWEST_OUT and problem.channels + problem.out >= FEWEST_IN_ALL
    room = 1.15 if problem.product == "convolve" else 1.0
    least = max(LEAST_SECONDS, room * winograd_seconds(problem))
    return problem.dtype == jnp.float32 and fits and least < lax_seconds(problem)


def tap_by_tap(problem: Problem) -> bool:
    """Many channels, and taps that often see padding, so that their places are left out; or steps along one axis."""
    ours = in_double(problem)
    if ours is not None:
        return ours == "shifts"
    many = min(problem.channels, problem.out) >= 128 and not mostly_inside(problem)
    return problem.real and (many or scattered(problem))


def scattered(problem: Problem) -> bool:
    """A kernel gradient along one axis whose convolution would step over its input: a third of lax's speed.

    Steps of a dilation along the last axis are runs of channels all the same.
    """
    axes = problem.geometry.axes
    steps = any(axis.stride > 1 for axis in axes) or any(axis.dilation > 1 for axis in axes[:-1])
    steps |= axes[-1].window == 1
    most = MOST_SCATTERED if len(axes) > 1 else MOST_OF_ONE
    line = sum(axis.window > 1 for axis in axes) == 1 and problem.geometry.taps <= most
    least = cost.BLOCK if len(axes) > 1 else 2 * cost.BLOCK  # lax's one row of one axis is on both cores
    wide = line and min(problem.channels, problem.out) >= least
    return problem.product == "kernel_grad" and steps and wide


def large_steps(problem: Problem) -> bool:
    """Strided windows on images so large that a copy of one, by whatever way, costs what it saves."""
    geometry = problem.geometry
    return geometry.axes[-1].stride > 1 and 4 * math.prod(geometry.input) * problem.channels > abreast.MOST_BYTES
