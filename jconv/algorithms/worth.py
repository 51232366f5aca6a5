"""Where an algorithm pays: for each row of choose.TABLE the rule that says when it is expected to win, and why.

Static geometry, dtype and batch alone decide. The bounds were found by `python -m experiments.algorithms` over real
layers on two machines (see cost.py); a rule's docstring says what the machine does there.
"""

import dataclasses
import math

import jax.numpy as jnp

from jconv.algorithms import (
    abreast,
    cost,
    edged,
    interleaved,
    joined,
    lanes,
    matmul,
    padded,
    patches,
    shifts,
    slices,
    taps,
    windows,
    winograd,
)
from jconv.algorithms.problem import (
    FEW,
    FEWEST_GATHERED,
    MOST_OF_ONE,
    NARROW,
    SMALL_IMAGE,
    Problem,
    double,
    large_steps,
    lax_seconds,
    shifts_seconds,
    tap_by_tap,
    undilated,
    winograd_seconds,
    winograd_wins,
)
from jconv.algorithms.worth_kernel_grad import (
    FEWEST_OF_FORMS,
    LEAST_LINES,
    beside_each_other,
    dilated_of_few,
    large_forms_of_few,
    plane_kernel_grad,
    small_of_few_images,
)

SLICED_FLOPS = 240  # a copied element of x, from which the copy is worth it,
SLICED_FLOPS_OF_FEW = 48  # and with stride 1 where lax gathers fewer channels than a vector's one by one,
STEPPED_FLOPS_OF_FEW = 130  # or with a larger one
SUMMED_FLOPS = 5000  # an element of the result, from which its passes are,
ODD_FLOPS = 300  # and where the channels fill no vector
SLICED_FLOPS_OF_ODD = 100  # a copied element of such channels
MIDDLING = 32  # channels from which lines are rows long enough
FEW_LINES_FLOPS = 2.5e7  # floating-point operations, below which their copies take longer than all that lax does,
FEW_STEPPED_FLOPS = 1.2e8  # by steps,
FEW_PATCHES_FLOPS = 5e7  # and by steps as long as the window; but for
FEWEST_TAPS_OF_SOME = 36  # of a strided window of 4 to 8 channels, from which lines to a block of outputs are ahead
FEW_LINES_OUT = ((3, 32), (4, 16))  # channels, and so many outputs, which lax gathers one by one
LONG_ROW = 96  # elements
LARGEST_RESULT = 16 << 20  # bytes that an allocator keeps; those of a second buffer it gives back; see windows.MAPPED
MOST_NUMBERS = (36, 2400), (64, 1700), (72, 640)  # of taps times channels, the most elements of their kernel
FEW_PLACES_OF_ONE = 1 << 14  # of one channel, up to which lax has multiplied many taps sooner
FEW_OF_ONE = 16  # outputs up to which one channel's taps may be twice as many
FEWEST_PLACES = 4100  # below which lax takes a tenth of a millisecond or two
MOST_CHANNELS = 8  # and
MOST_OUTPUTS = 64  # above which lax gathers less for each multiplication
LANES = 32  # channels of a group up to which its convolution is some vectors,
FEWER_LANES = 24  # and of an input gradient, whose kernel is turned by group, of one axis, of FEW to many, and of
MOST_OF_LANES = 9  # or more taps
FILLED = 24  # channels that lax reads by vectors, in and out, wherever they stand
LEAST_ROW_FLOPS = 5.5e6  # of a row of images abreast,
LEAST_ROW_PLACES = 3500  # and width times outputs of it, from which both cores have a part
MOST_OF_PATCH = 4  # taps of a strided window, up to which lines are ahead of lax on both cores
SHORT_ROW = 8  # places of its result, too
STEPPED_ROW = 40  # places of a strided result, below which lines of a whole block of channels are ahead of lax
LARGE_KERNEL = 1.2e5  # elements, whose outputs lax divides between the cores
MOST_FILLED_UP = 1.15  # places of interleaved images, for each of the result's, up to which few channels gain,
MOST_FILLED_UP_OF_ODD = 1.3  # and where they fill no vector
LEAST_INTERLEAVED = 4096  # places of all images of some channels, from which it gains
LEAST_INTERLEAVED_OUT = 40  # and outputs
MOST_INTERLEAVED = 1024  # channels in or out from which Winograd's forms of dilated images leave the caches
LEAST_PADDED = 16  # taps along a line,
FEW_LINES = 4  # of a batch, since of more lax has long rows in spite of the padding
LEAST_ABREAST = 250  # floating-point operations an element of x and y, from which images are worth to be copied abreast
LEAST_ABREAST_FLOPS = 5e7  # of all images, below which two copies take what the second core saves
WIDE_ROW = 88  # places of a row that both cores have a part of
MOST_BETWEEN = 1.15  # places of images side by side, for each of the result's, where a window is dilated
LEAST_ABREAST_OF_ODD = 120  # and where channels are filled up to a vector


def few_channels(problem: Problem) -> bool:
    """A convolution of so few taps, channels and outputs that a multiply-add of each is one loop, from the first cache.

    First layers of networks above all. lax gathers their windows before it multiplies: 3 to 16 channels by 3x3 over 128
    images of 32 x 32 took 3.5 times as long, 3 to 24 by steps of 2 nine times.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if problem.product != "convolve" or not problem.real or not taps.applies_to_few(geometry, channels) or out == 1:
        return False
    terms = geometry.taps * channels
    most = next((most for longest, most in MOST_NUMBERS if terms <= longest), 0)
    places = problem.batch * math.prod(geometry.output) if isinstance(problem.batch, int) else math.inf
    few = channels <= MOST_CHANNELS and out <= MOST_OUTPUTS and terms * out <= most
    return few and places >= FEWEST_PLACES


def one_channel(problem: Problem) -> bool:
    """One multiply-add a tap; lax gathers 49 taps of one channel for 8 outputs six times as long.

    Many taps of a few places, for whole vectors of outputs, lax has multiplied before the loop is begun.
    """
    geometry, out = problem.geometry, problem.out
    if problem.product != "convolve" or problem.channels != 1:
        return False
    places = problem.batch * math.prod(geometry.output) if isinstance(problem.batch, int) else math.inf
    small = geometry.rank == 2 and geometry.taps >= LEAST_LINES and out >= NARROW and places <= FEW_PLACES_OF_ONE
    return not small and geometry.taps <= (2 * MOST_OF_ONE if out <= FEW_OF_ONE else MOST_OF_ONE)


def sliced_wins(problem: Problem) -> bool:
    """Where lax keeps a plane convolution on one core, gathers few or oddly many channels, or steps over its input."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if undilated(problem) and rows_of_patches(problem):
        return True
    if problem.product != "convolve":
        return plane_kernel_grad(problem) == "slices" and not element_by_element(problem)
    if geometry.rank != 2 or geometry.groups > 1 or not undilated(problem) or geometry.taps == 1 or double(problem):
        return False
    first, last = geometry.axes
    if first.window == 1:  # its lines are a batch, nothing is copied
        return True
    if first.window < 3 or (abreast.missing(channels) and may_stand_abreast(problem)):
        return False
    if small_for_lines(problem):
        return False
    rows, dense = first.window * channels, first.stride == last.stride == 1
    if channels >= 2 and rows <= slices.SIDE_BY_SIDE:  # the taps' rows become channels, one copy of x
        copied = geometry.output[0] * geometry.input[1] * rows
        few = channels < abreast.VECTOR
        many_taps = channels >= abreast.VECTOR and geometry.taps >= FEWEST_TAPS_OF_SOME
        if channels <= MOST_CHANNELS and out == cost.BLOCK and not dense and not many_taps:
            return False  # a whole block, which lax reads where it stands
        least = (SLICED_FLOPS_OF_FEW if dense else STEPPED_FLOPS_OF_FEW) if few else SLICED_FLOPS
        least = SLICED_FLOPS_OF_ODD if channels % 4 and channels > FEW else least
        images = problem.batch if isinstance(problem.batch, int) else 1
        result = 4 * images * math.prod(geometry.output) * out
        if dense and LARGEST_RESULT < result <= windows.MAPPED:
            return False  # it is written once more, into memory that the system has yet to hand out
        return cost.flops(1, geometry, channels, out) >= least * copied
    if out <= FEWEST_GATHERED:  # a pass over the result for each row of taps, of a product of few columns
        return False
    if winograd.applies(geometry):
        return False
    per_result = 2 * geometry.taps * channels  # each row of taps is a pass over the result
    if channels % 4 and per_result >= ODD_FLOPS and last.output <= cost.BLOCK:
        return True
    if not dense and channels >= MIDDLING:
        both_cores = geometry.taps > MOST_OF_PATCH and last.output > SHORT_ROW and on_both_cores(problem)
        block = channels == cost.BLOCK < out and geometry.taps < LEAST_LINES and last.output < STEPPED_ROW
        return block and problem.batch != 1 and not both_cores
    one_core = max(out, last.output) < 1.6 * cost.BLOCK
    enough = per_result >= (2 * SUMMED_FLOPS if may_stand_abreast(problem) else SUMMED_FLOPS)
    return one_core and enough


def small_for_lines(problem: Problem) -> bool:
    """So little to compute that what lines copy and write down takes longer than all of lax's: a batch of 1 above all.

    3x3 over 2 x 14 x 14 x 4 to 64 took twice as long in lines. lax fills a vector with the outputs; of a few channels
    and outputs it gathers single elements.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not isinstance(problem.batch, int) or any(channels <= c and out <= most for c, most in FEW_LINES_OUT):
        return False
    steps = any(axis.stride > 1 for axis in geometry.axes)
    by_steps = FEW_PATCHES_FLOPS if matmul.applies(geometry) else FEW_STEPPED_FLOPS
    return cost.flops(problem.batch, geometry, channels, out) < (by_steps if steps else FEW_LINES_FLOPS)


def abreast_wins(problem: Problem) -> bool:
    """Where images may stand abreast, and their rows are then long enough: two of lax's blocks, as far as is known.

    A large kernel with more outputs than a block's is on both cores as it is.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not may_stand_abreast(problem) or fills_no_vector(problem):
        return may_stand_abreast(problem)
    if wide_rows(problem) or (geometry.backward and beside_each_other(problem)):
        return False
    stepped = channels >= MIDDLING and any(axis.stride > 1 for axis in geometry.axes)
    if stepped and (geometry.taps < LEAST_LINES or channels >= cost.BLOCK):  # lax divides their steps as well
        return False
    sizes = (problem.batch, geometry, channels, out)
    if on_both_cores(problem) or cost.flops(*sizes) < LEAST_ABREAST_FLOPS:
        return False
    if abreast.bands(*sizes) > 1:
        return problem.batch > 1 or all(axis.stride == 1 for axis in geometry.axes)
    count, flops = abreast.abreast(*sizes), cost.flops(1, geometry, channels, out) / geometry.output[0]
    return count * flops >= LEAST_ROW_FLOPS and count * geometry.output[-1] * out >= LEAST_ROW_PLACES


def winograd_convolves(problem: Problem) -> bool:
    """But for input gradients that lax computes beside a kernel gradient, and where images abreast take less."""
    beside = problem.geometry.backward and beside_each_other(problem)
    return winograd_wins(problem) and not beside and not abreast_of_few(problem)


def abreast_of_few(problem: Problem) -> bool:
    """Where images abreast are level with Winograd's multiplications, and add up more exactly, in less memory.

    Or one image's rows are, which are wide enough for both cores.
    """
    some = problem.product == "convolve" and min(problem.channels, problem.out) >= cost.BLOCK
    few = some and problem.channels + problem.out < FEWEST_OF_FORMS and not beside_each_other(problem)
    return few and (wide_rows(problem) or abreast_wins(problem))


def wide_rows(problem: Problem) -> bool:
    """Rows of two blocks or nearly, of a block of outputs or more: images abreast are copied for nothing."""
    return problem.out >= cost.BLOCK and problem.geometry.output[-1] >= WIDE_ROW


def fills_no_vector(problem: Problem) -> bool:
    return bool(abreast.missing(problem.channels) or abreast.missing(problem.out))


def on_both_cores(problem: Problem) -> bool:
    """A kernel so large, with more outputs than a block's, that lax divides them between the cores."""
    kernel = problem.geometry.taps * problem.channels * problem.out
    return problem.out > cost.BLOCK and kernel >= LARGE_KERNEL


def may_stand_abreast(problem: Problem) -> bool:
    """Where lax keeps an image's row on one core or fills no vector, several rows side by side do, and a copy pays."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if problem.dtype != jnp.float32 or not isinstance(problem.batch, int) or not abreast.applies(geometry):
        return False
    moved = math.prod(geometry.input) * channels + math.prod(geometry.output) * out
    if min(channels, out) < FEW or large_steps(problem):  # little to compute for what is copied
        return False
    odd = fills_no_vector(problem)
    last = geometry.axes[-1]
    between = abreast.pitch(last) / max(1, last.output)  # zeros as wide as the dilation stand between the images
    if last.dilation > 1 and last.window > 1 and not odd and between > MOST_BETWEEN:
        return False
    if cost.flops(1, geometry, channels, out) < (LEAST_ABREAST_OF_ODD if odd else LEAST_ABREAST) * moved:
        return False
    sizes = (problem.batch, geometry, channels, out)
    return odd or abreast.abreast(*sizes) > 1 or abreast.bands(*sizes) > 1


def few_taps_of_one(problem: Problem) -> bool:
    """Groups of one channel, whose products of a vector with a matrix are slow, and added up less exactly."""
    geometry = problem.geometry
    fits = geometry.groups > 1 and taps.applies(geometry, problem.channels, problem.out)
    return fits and 1 < geometry.taps <= MOST_OF_ONE


def thin(problem: Problem) -> bool:
    """1x1 of so few channels that a matrix product has nothing to add up; lax's convolution takes half as long."""
    dense = all(axis.window == axis.stride == axis.input_dilation == 1 for axis in problem.geometry.axes)
    few = problem.channels <= FEWEST_GATHERED < problem.out and problem.geometry.groups == 1
    return problem.product == "convolve" and dense and few


def few_patches(problem: Problem) -> bool:
    """Patches of a plane, so few that a copy which puts each one's rows side by side takes as long as lax's product."""
    geometry = problem.geometry
    plain = geometry.rank == 2 and geometry.groups == 1 and undilated(problem) and problem.dtype == jnp.float32
    small = plain and geometry.taps > 1 < math.prod(geometry.output) and small_for_lines(problem)
    return problem.product == "convolve" and problem.channels >= FEW and small


def rows_of_patches(problem: Problem) -> bool:
    """Patches whose rows are long enough to be multiplied where they stand: a product a row, and no copy."""
    geometry = problem.geometry
    if geometry.rank != 2 or geometry.groups > 1 or not (matmul.applies(geometry) and slices.applies(geometry)):
        return False
    first, last = geometry.axes
    if problem.product == "convolve" and small_for_lines(problem):
        return False
    least = 2 if problem.product == "convolve" else 3
    return first.output > 1 and first.window >= least and last.window * problem.channels >= LONG_ROW


def lanes_win(problem: Problem) -> bool:
    """Many groups whose outputs fill a vector; of a convolution few more, since larger ones are products from cache."""
    groups = problem.geometry.groups
    each, depth = problem.channels // groups, problem.out // groups
    fewer = problem.geometry.turned or problem.geometry.rank == 1 or min(each, depth) < FEW
    fewer = fewer or problem.geometry.taps > MOST_OF_LANES
    most = lanes.MOST_CHANNELS if problem.product != "convolve" else FEWER_LANES if fewer else LANES
    return groups >= 4 and depth % 4 == 0 and max(each, depth) <= most


def wide_groups_of_lines(problem: Problem) -> bool:
    """Groups of one axis that lax runs at half of a dense convolution's rate: copies by group cost more than that."""
    geometry = problem.geometry
    if geometry.rank > 1 or not undilated(problem) or problem.dtype in (jnp.float64, jnp.complex128):
        return False
    wide = min(problem.channels, problem.out) >= MIDDLING * geometry.groups
    steps = geometry.axes[0].stride > 1
    return wide and (geometry.taps <= FEW if problem.product == "convolve" else steps)


def joined_wins(problem: Problem) -> bool:
    """Where the row that axes are joined to is long enough to be shared by the cores."""
    lower = joined.lower(problem.geometry)
    return problem.real and (problem.product == "kernel_grad" or lower.output[-1] >= LONG_ROW)


def element_by_element(problem: Problem) -> bool:
    """Where XLA:CPU's convolution runs at a tenth of its rate or less, its operands being exchanged."""
    geometry, product = problem.geometry, problem.product
    return problem.real and padded.applies(geometry, product) and padded.exchanged(geometry, product)


def padded_wins(problem: Problem) -> bool:
    """Where lax would go element by element, or many taps of a line's gradient see padding, of a few images."""
    geometry, images = problem.geometry, problem.batch
    long = problem.product == "kernel_grad" and geometry.rank == 1 and geometry.taps >= LEAST_PADDED
    padding = long and isinstance(images, int) and images <= FEW_LINES and 16 * geometry.taps >= geometry.output[0]
    return (problem.real and padding) or element_by_element(problem)


def edged_wins(problem: Problem) -> bool:
    """Where XLA's library would write down all patches of images that have no padding."""
    pays = edged.pays if problem.product == "convolve" else edged.pays_kernel_grad
    sizes = problem.batch, problem.channels, problem.out
    return problem.dtype == jnp.float32 and pays(problem.geometry, *sizes)


def few_of_volume(problem: Problem) -> bool:
    """A first layer of three axes that steps over its input: the planes that slices take would be mostly left out."""
    geometry = problem.geometry
    steps = geometry.rank > 2 and all(axis.stride > 1 for axis in geometry.axes)
    few = problem.channels < patches.CHANNELS_LAST and patches.applies(geometry)
    return problem.product == "convolve" and problem.real and steps and few and not thin(problem)


def interleaved_wins(problem: Problem) -> bool:
    """A dilated 3x3 whose dense images Winograd computes in less time than lax, or shifts without the padding, do.

    And one of few channels, whose dense images stand abreast.
    """
    geometry, batch = problem.geometry, problem.batch
    if geometry.rank != 2 or geometry.groups > 1 or not isinstance(batch, int) or not interleaved.applies(geometry):
        return False
    dense, narrowest = windows.cropped(interleaved.dense(geometry)), min(problem.channels, problem.out)
    if not winograd.applies(dense) or problem.dtype != jnp.float32:
        return False
    if narrowest < NARROW:
        if plane_kernel_grad(problem) == "two_sided":
            return False
        enough = problem.product == "convolve" or math.prod(dense.output) >= SMALL_IMAGE // 4
        odd = fills_no_vector(problem)
        if problem.product == "convolve" and not odd and max(problem.channels, problem.out) <= FILLED:
            return False
        most = MOST_FILLED_UP_OF_ODD if odd else MOST_FILLED_UP
        return narrowest >= FEW and enough and interleaved.waste(geometry) <= most
    if problem.product == "kernel_grad" and (large_forms_of_few(problem) or small_of_few_images(problem)):
        return False
    inner = dataclasses.replace(problem, batch=batch * interleaved.images(geometry), geometry=dense)
    alone = batch == 1 and problem.channels + problem.out < FEWEST_OF_FORMS
    if abreast_of_few(problem) or dilated_of_few(problem) or alone:
        return False
    if narrowest < cost.BLOCK and problem.product == "convolve":
        enough = problem.out >= LEAST_INTERLEAVED_OUT or problem.channels >= cost.BLOCK
        least = LEAST_INTERLEAVED if enough else 4 * LEAST_INTERLEAVED
        few = batch * math.prod(geometry.output) < least
        return not few and not fills_no_vector(problem) and interleaved.waste(geometry) <= MOST_FILLED_UP
    if narrowest < cost.BLOCK or max(problem.channels, problem.out) >= MOST_INTERLEAVED or not winograd_wins(inner):
        return False
    other = shifts_seconds(problem) if tap_by_tap(problem) else lax_seconds(problem)
    return 1.1 * winograd_seconds(inner) < other


def winograd_planes(problem: Problem) -> bool:
    """Whether Winograd's form of each plane under each tap takes less than a product a tap without the padding."""
    geometry, images = problem.geometry, problem.batch
    if geometry.rank != 3 or not isinstance(images, int) or problem.dtype != jnp.float32:
        return False
    first, plane = geometry.axes[0], dataclasses.replace(geometry, axes=geometry.axes[1:])
    inner = dataclasses.replace(problem, batch=images * first.output, geometry=plane)
    if not winograd.applies(plane) or not winograd_wins(inner):
        return False
    return first.window * winograd_seconds(inner) < 1.05 * shifts_seconds(problem)


def planes(problem: Problem) -> bool:
    """Three spatial axes, which lax computes on a naive path; but what goes tap by tap goes so at once."""
    if problem.geometry.rank < 3 or not slices.applies(problem.geometry):
        return False
    whole = shifts.applies(problem.geometry) and tap_by_tap(problem) and not winograd_planes(problem)
    return not (whole or thin(problem) or few_of_volume(problem))
