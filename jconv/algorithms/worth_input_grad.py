"""Where an algorithm pays for few outputs, or for an input that steps dilate: input gradients above all.

The bounds were found as those of worth.py.
"""

import math

import jax.numpy as jnp

from jconv.algorithms import columns, cost, phases, subpixel
from jconv.algorithms.problem import (
    FEW,
    FEWEST_GATHERED,
    MANY,
    SMALL_IMAGE,
    Problem,
    double,
    in_double,
    undilated,
)

FOLDED_BYTES = 16 << 20  # of the columns of an image, dilated or of a volume: beyond, they leave the caches
FOLDED_BYTES_OF_FEW = 2 << 20  # the same where the taps are few for each output
MOST_OVER_ZEROS = 48  # channels of a dilated plane with few outputs, from which lax is left to compute over the zeros
LEVEL = 1.15  # times lax's cost, up to which the two are level, and columns' form is the more exact
LEVEL_BYTES = 4 << 20  # of the columns of an image; of more they come in bands, and are to be ahead
CLEARLY = 0.8
MOST_FOLDED = 11  # outputs of a plane; where they fill no vector, since the others run at twice the rate
MOST_FOLDED_OF_MANY = 24  # and of so many channels for each
FOLDED_TO_ONE = 10
FOLDED_FROM_STEPS = 64  # channels from which, and so many for each output, a fold moves less than the phases' patches
FOLDED_FROM_EACH = 2.6
FOLDED_FROM_FEW = 32  # channels, the same for up to FEWEST_GATHERED outputs
LEAST_OF_MANY = 5e7  # floating-point operations, since it compiles longer
LEAST_FOLDED = 16  # taps * outputs along one axis, which are the rows of a product of columns
MANY_TAPS = 16  # of a strided window, from which one convolution for all its phases wastes few
MOST_BY_STEPS = 24  # outputs of a convolution whose phases would gather a patch for little each,
FEWEST_BY_STEPS = 12  # from channels
LEAST_SHUFFLED = 700  # places of all images from which one convolution for all phases outruns them, at no more to do,
MOST_SHUFFLED = 128  # and outputs
SMALLEST_IMAGE = 64  # places
SMALL_BATCH = 400  # places of all images, where the windows are multiples of the stride, so that all phases are alike
SMALL_LINE = 256  # the same along one axis
SHUFFLED = 65  # channels whose multiply-adds take a nanosecond
LEAST_PHASE = 7  # taps of a phase of one axis, from which a group's phases are computed at once


def folded_wins(problem: Problem) -> bool:
    """Few output channels, so that lax's rows of them are short; the columns of an image, or a band, stay in cache."""
    geometry, out = problem.geometry, problem.out
    ours = in_double(problem)
    if ours is not None:
        return ours == "columns"
    if small_dilated(problem) or folded_from_steps(problem):
        return True
    if geometry.rank == 1:
        return out <= FEW and geometry.taps > 1 and geometry.taps * out >= LEAST_FOLDED
    if geometry.rank == 2 and undilated(problem):
        if folded_from_many(problem):
            return True
        thin = problem.channels <= FEWEST_GATHERED and out > 4  # for lines
        if geometry.taps == 1 or out > MOST_FOLDED or (out > 4 and out % 4 == 0) or thin:
            return False
        at_once = columns.CHUNK_BYTES / (4 * geometry.taps * out)
        ours = cost.columns(problem.batch, geometry, problem.channels, out, at_once)
        held = 4 * math.prod(geometry.input) * geometry.taps * out
        return ours < (LEVEL if held <= LEVEL_BYTES else CLEARLY) * cost.lax_of_few(geometry, problem.channels, out)
    few = out <= 4 or (out <= 8 and FEWEST_GATHERED < problem.channels <= 32) or odd_phases(problem)
    held = 4 * math.prod(geometry.input) * geometry.taps * out
    if undilated(problem):
        held //= columns.bands(geometry.input[0], held)  # a large volume comes in bands
        least = 3 if held <= FOLDED_BYTES_OF_FEW else 6
    else:  # a dilated fold moves more, and lax has the more to compute over its zeros the more channels there are
        least = 8
        if geometry.rank == 2 and problem.channels <= MOST_OVER_ZEROS:
            least = 2 if problem.channels <= FEW else 4
    return few and held <= FOLDED_BYTES and (geometry.taps >= least * out or odd_phases(problem))


def folded_from_many(problem: Problem) -> bool:
    """A dense plane of many more channels than outputs, whose short rows lax keeps on one core.

    One product for all taps is on both: a detector's head, 1024 to 24, in half the time.
    """
    geometry, out = problem.geometry, problem.out
    dense = geometry.taps > 1 and all(axis.stride == axis.dilation == 1 for axis in geometry.axes)
    few = MOST_FOLDED < out <= MOST_FOLDED_OF_MANY and problem.channels >= FOLDED_TO_ONE * out
    narrow = geometry.output[-1] <= cost.BLOCK and problem.dtype == jnp.float32
    return dense and few and narrow and cost.flops(problem.batch, geometry, problem.channels, out) >= LEAST_OF_MANY


def odd_phases(problem: Problem) -> bool:
    """A dilated plane of 5 to 7 outputs, which lax computes over the inserted zeros: too few for a phase each."""
    geometry = problem.geometry
    return geometry.rank == 2 and not undilated(problem) and 4 < problem.out < 8 and geometry.taps >= FEW


def small_dilated(problem: Problem) -> bool:
    """Images of few places and many channels, whose phases would have few rows and a large kernel."""
    geometry, batch = problem.geometry, problem.batch
    dilated = geometry.rank <= 2 and geometry.groups == 1 and all(axis.input_dilation > 1 for axis in geometry.axes)
    places = math.prod(geometry.input)
    most, in_all = (SMALLEST_IMAGE, SMALL_IMAGE) if geometry.rank == 2 else (SMALL_LINE, SMALL_LINE)
    if all(axis.window % axis.input_dilation == 0 for axis in geometry.axes):
        in_all = min(in_all, SMALL_BATCH)
    few = isinstance(batch, int) and places <= most and batch * places <= in_all
    return dilated and few and min(problem.channels, problem.out) >= MANY


def few_by_steps(problem: Problem) -> bool:
    """The gradient of a plane's steps for few channels: phases gather nearly all of a window's elements again.

    That is as many as there are taps and channels, for few outputs each.
    """
    geometry = problem.geometry
    steps = geometry.rank == 2 and geometry.groups == 1 and all(axis.input_dilation > 1 for axis in geometry.axes)
    return steps and problem.real and not double(problem) and problem.out <= MOST_BY_STEPS


def folded_from_steps(problem: Problem) -> bool:
    """Many channels for each output: a product of those alone, and a fold of the outputs, is least to move.

    Of up to 4 outputs, as a generator's last layer has, wherever windows overlap.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not few_by_steps(problem) or many_taps_by_steps(problem):
        return False
    if 4 * math.prod(geometry.input) * geometry.taps * out > FOLDED_BYTES:
        return False
    if out <= FEWEST_GATHERED:
        return channels >= FOLDED_FROM_FEW and all(axis.window > axis.input_dilation for axis in geometry.axes)
    return channels >= max(FOLDED_FROM_STEPS, FOLDED_FROM_EACH * out)


def many_taps_by_steps(problem: Problem) -> bool:
    """Taps of which one convolution for all phases wastes few, or none, and which would be many outputs to fold."""
    geometry = problem.geometry
    few = problem.out <= FEW or subpixel.waste(geometry) == 1
    return geometry.taps >= MANY_TAPS and few and problem.out > FEWEST_GATHERED


def shuffled_from_steps(problem: Problem) -> bool:
    """All phases as one convolution: it gathers each element for a quarter of the taps, or has no more to compute."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if out <= FEWEST_GATHERED:
        return False
    if few_by_steps(problem) and channels < FOLDED_FROM_STEPS:
        return channels >= FEWEST_BY_STEPS and (out % FEW > 0 or channels <= MOST_BY_STEPS)
    if few_by_steps(problem) and many_taps_by_steps(problem):
        return True
    if geometry.rank != 2 or subpixel.waste(geometry) > 1 or not isinstance(problem.batch, int):
        return False
    return out <= MOST_SHUFFLED and problem.batch * math.prod(geometry.input) >= LEAST_SHUFFLED


def subpixel_wins(problem: Problem) -> bool:
    """Phases of few outputs, each of which would be a convolution of short rows, or a fold of narrow columns.

    In nanoseconds for each tap, output and element of x: a convolution runs at half its rate with a quarter of the
    outputs that fill its rows; shuffling costs a third of one, folding one.
    """
    geometry, out = problem.geometry, problem.out
    if not phases.applies(geometry):  # too many: what is left multiplies by zeros, or folds what leaves the caches
        return problem.inexact
    if geometry.groups > 1:
        return False
    if geometry.rank > 2:  # else lax's, a thousand times slower: the gradient of a 7x7x7 first layer took 38 s
        folded = problem.real and folded_wins(problem)
        return problem.inexact and geometry.axes[0].input_dilation > 1 and not folded and not phases_win(problem)
    if not problem.real or double(problem) or small_dilated(problem):
        return False
    if folded_from_steps(problem) and out > FEWEST_GATHERED:
        return False
    rate = lambda outputs: min(1.0, math.sqrt(outputs / cost.BLOCK))
    seconds = problem.channels / SHUFFLED
    ours = subpixel.waste(geometry) * seconds / rate(subpixel.phases(geometry) * out) + 0.3
    if folded_wins(problem):
        return ours < LEVEL * (1 + seconds) and not odd_phases(problem)  # which folding adds up in shorter sums
    if shuffled_from_steps(problem):
        return True
    enough = odd_phases(problem) or phases_win(problem)
    return enough and 1.2 * ours < seconds / rate(out) + 0.3


def group_by_group(problem: Problem) -> bool:
    """Groups along one dilated axis, of so many taps and channels that a phase's are more than one loop's: see lanes.

    A group alone is one convolution for all phases: half the time (256 to 64 channels, 16 groups, 41 taps by fours).
    """
    geometry, axis = problem.geometry, problem.geometry.axes[0]
    if geometry.rank > 1 or geometry.groups == 1:
        return False
    sizes = problem.channels // geometry.groups, problem.out // geometry.groups
    return axis.window >= LEAST_PHASE * axis.input_dilation > LEAST_PHASE and min(sizes) <= FEW <= max(sizes)


def phases_win(problem: Problem) -> bool:
    """Short runs are slow to interleave: few outputs of more than one axis, or of few taps a phase."""
    if group_by_group(problem):
        return False
    axes, enough = problem.geometry.axes, problem.out >= 8 or problem.geometry.groups > 1
    return enough or (len(axes) == 1 and axes[0].window >= 4 * axes[0].input_dilation)
