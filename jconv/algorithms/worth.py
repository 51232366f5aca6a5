"""Where an algorithm pays: for each row of choose.TABLE the rule that says when it is expected to win, and why.

Static geometry, dtype and batch alone decide. The bounds were found by `python -m experiments.algorithms` over real
layers on two machines (see cost.py); a rule's docstring says what the machine does there.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from jconv.algorithms import (
    abreast,
    columns,
    cost,
    exchange,
    interleaved,
    joined,
    lanes,
    matmul,
    patches,
    phases,
    shifts,
    slices,
    space_to_depth,
    subpixel,
    taps,
    two_sided,
    windows,
    winograd,
)
from jconv.geometry import Geometry

FEW = 16  # channels that are one or two vectors
MOSTLY_INSIDE = 0.76  # of the taps' places on the input, from which leaving out the others saves too little,
MOSTLY_INSIDE_OF_MORE = 0.87  # and in a convolution of at least so many channels,
MORE_THAN_MANY = 256  # whose kernel is taken as it is stored
SLICED_FLOPS = 200  # a copied element of x, from which the copy is worth it,
SLICED_FLOPS_OF_FEW = 48  # and with stride 1 where lax gathers at most FEWEST_GATHERED channels one by one,
STEPPED_FLOPS_OF_FEW = 70  # or with a larger one
FEWEST_GATHERED = 4
FOLDED_BYTES = 16 << 20  # of the columns of an image, dilated or of a volume: beyond, they leave the caches
FOLDED_BYTES_OF_FEW = 2 << 20  # the same where the taps are few for each output
MOST_OVER_ZEROS = 48  # channels of a dilated plane with few outputs, from which lax is left to compute over the zeros
LEVEL = 1.15  # times lax's cost, up to which the two are level, and columns' form is the more exact
MOST_FOLDED = 11  # outputs of a plane; where they fill no vector, since the others run at twice the rate
LEAST_FOLDED = 16  # taps * outputs along one axis, which are the rows of a product of columns
MOST_OF_ONE = 32  # taps of one channel up to which a multiply-add a tap is one loop over the result
SUMMED_FLOPS = 5000  # an element of the result, from which its passes are,
ODD_FLOPS = 300  # and where the channels fill no vector
SLICED_FLOPS_OF_ODD = 100  # a copied element of such channels
MIDDLING = 32  # channels from which lines are rows long enough
MOST_SCATTERED = 9  # taps of a kernel gradient up to which one matrix product a tap beats a convolution with steps
NARROW = 32  # channels in or out below which a kernel gradient has short rows
LEAST_SLICED = 27  # taps * channels of a kernel gradient of fewer than patches.CHANNELS_LAST channels, for lines
SMALL_IMAGE = 1 << 10  # places of an image, or of all, of which a few taps' products are from cache
SMALLEST_IMAGE = 64  # places
SMALL_LINE = 256  # the same along one axis
MANY = 128  # channels
LONG_ROW = 96  # elements
LEAST_STEPPED = 25  # taps of a strided window from which lines of few channels beat their patches
LEAST_LINES = 16  # taps from which lines of FEW channels beat their patches
LARGEST_RESULT = 16 << 20  # bytes that an allocator keeps; those of a second buffer it gives back; see windows.MAPPED
SHUFFLED = 65  # channels whose multiply-adds take a nanosecond
LANES = 24  # channels of a group up to which its convolution is some vectors
MOST_WASTED = 1.13  # taps that are computed, for each of the kernel's,
LONG_STRIDE = 4  # where their blocks are so long;
MOST_WASTED_OF_FEW = 1.15  # and in planes of fewer than NARROW channels
LEAST_PHASE = 7  # taps of a phase of one axis, from which a group's phases are computed at once
MOST_BESIDE = 16  # taps of a strided window copied beside few channels, where the outputs are many
MOST_SHARED = 48  # channels in or out up to which the taps of a kernel gradient are shared out,
SHARED_COPIES = 0.9  # times the elements that patches of x or g would copy
FEWEST = 32  # channels in or out below which Winograd's sums cost more than the multiplications that they save,
FEWEST_IN_ALL = 128  # and of both together, but for a kernel gradient
LARGEST_FORMS = 32 << 20
LARGE_FORMS = 8 << 20  # of a kernel gradient, beside which the copies of dilated images leave the caches,
FEW_PLACES = 3  # for each channel, that do not make up for it
LEAST_ABREAST = 250  # floating-point operations an element of x and y, from which images are worth to be copied abreast
LEAST_ABREAST_OF_ODD = 120  # and where channels are filled up to a vector
SMALL_SUM = 8e7  # floating-point operations of a kernel gradient that lax has on its way before others are copied,
SMALLEST_SUM = 5e6  # and of one that is no more than the calls it takes,
FEWEST_CALLS = 1.5e5  # and of one where each call counts, since XLA hands a program of many to another thread
LEAST_SECONDS = 5e-4  # of a lax convolution from which a program that takes half a second longer to compile is worth it


@dataclasses.dataclass(frozen=True)
class Problem:
    """One product to compute: geometry is cropped; an input gradient is a convolution along for_input_grad()."""

    product: str  # "convolve" or "kernel_grad"
    batch: Any  # an int, or a symbolic dimension while exporting
    channels: int
    out: int
    geometry: Geometry
    dtype: Any

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
    fits &= problem.product != "convolve" or problem.channels + problem.out >= FEWEST_IN_ALL
    room = 1.15 if problem.product == "convolve" else 1.0
    least = max(LEAST_SECONDS, room * winograd_seconds(problem))
    return problem.dtype == jnp.float32 and fits and least < lax_seconds(problem)


def plane_kernel_grad(problem: Problem) -> str | None:
    """What computes a dense plane's kernel gradient, which lax runs at a third of its forward product's rate.

    lax gathers a patch of single elements, since the images stand where it wants channels; lines have rows of images
    there, and patches copy runs of channels.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dense = problem.product == "kernel_grad" and geometry.rank == 2 and geometry.groups == 1 and undilated(problem)
    if not dense or not problem.real or geometry.taps == 1:
        return None
    if double(problem):
        if shared_out(problem):
            return "two_sided"
        return "patches" if min(channels, out) <= FEW and patches.applies(geometry) else "lax"
    if min(channels, out) >= NARROW and shifts.applies(geometry) and shifts.long_rows(geometry):
        return "shifts"
    small = small_kernel_grad(problem)
    if small is not None:
        return small
    if shared_out(problem):
        return "two_sided"
    if exchange.applies(geometry) and out < min(NARROW, channels):
        return "exchange"
    if NARROW <= out < 2 * NARROW and 4 * out <= channels:
        return "lax"  # on one core, beside the input gradient
    if winograd.applies(geometry) and winograd_wins(problem):
        return "winograd"
    if space_to_depth.applies(geometry) and blocks_of_plane(problem):
        return "space_to_depth"
    if space_to_depth.applies(geometry) and FEW <= channels < NARROW and large_steps(problem):
        return "lax"
    if min(channels, out) < 2 * NARROW and gathered_by_rows(problem):
        return "lax"
    if large_forms_of_few(problem) and gathered_by_rows(problem) and shifts.applies(geometry):
        return "shifts"
    if shifts.applies(geometry) and (
        tap_by_tap(problem)
        or (channels >= patches.CHANNELS_LAST and geometry.taps <= MOST_SCATTERED and not mostly_inside(problem))
    ):
        return "shifts"
    if gathered_by_rows(problem):
        return "lax"
    steps = any(axis.stride > 1 for axis in geometry.axes)
    if channels < patches.CHANNELS_LAST:
        few = geometry.taps <= patches.SPELLED_OUT if steps else geometry.taps * channels < LEAST_SLICED
    else:
        few = min(channels, out) < NARROW
        if few and channels >= FEW:
            if steps and shifts.applies(geometry) and math.prod(geometry.output) <= SMALL_IMAGE:
                return "shifts"
            few = geometry.taps < LEAST_LINES
    if few and steps and patches.applies(geometry):
        return steps_of_few(problem)
    return "patches" if few and patches.applies(geometry) else "slices" if slices.applies(geometry) else None


def shared_out(problem: Problem) -> bool:
    """Few channels on both sides: patches of either would copy more than patches of both, each of a part of the taps.

    With more than MOST_SHARED the product is most of the time, and lines or Winograd's form have less to compute.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if problem.product != "kernel_grad" or not problem.real or not two_sided.applies(geometry):
        return False
    most, narrowest = (2 * NARROW, 2 * NARROW) if double(problem) else (MOST_SHARED, NARROW - 1)
    if max(channels, out) > most or min(channels, out) > narrowest:
        return False
    steps = any(axis.stride > 1 for axis in geometry.axes)
    if steps and geometry.taps < LEAST_STEPPED and min(channels, out) >= FEW:  # a small part of x meets each tap
        return False
    ours = two_sided.copied(two_sided.shares(geometry, channels, out), channels, out)
    patches_of = min(geometry.taps * channels + out, geometry.taps * out + channels)
    return ours < SHARED_COPIES * patches_of


def shared_out_of_each(problem: Problem) -> bool:
    """The same of one example of many: where fewer copies make up for turning its kernel's gradient round."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not two_sided.applies(geometry):
        return False
    fewer = geometry.taps * channels + out - two_sided.copied(two_sided.shares(geometry, channels, out), channels, out)
    return geometry.taps * channels * out <= problem.batch * math.prod(geometry.output) * fewer


def steps_of_few(problem: Problem) -> str:
    """Few channels and a stride: blocks that fill the window are copied whole; else lines, or patches of few taps.

    A patch is a copy of each tap, of as many elements as there are channels, and a loop to compile. Runs of channels,
    short as they are, are copied faster than steps along planes of each channel: a first 3x3 layer twice.
    """
    geometry, channels = problem.geometry, problem.channels
    many = geometry.taps >= LEAST_STEPPED
    blocks = space_to_depth.applies(geometry) and space_to_depth.waste(geometry) == 1
    if blocks and (geometry.axes[-1].stride >= LONG_STRIDE or not many):
        return "space_to_depth"
    most = LEAST_STEPPED if problem.out < 2 * NARROW else MOST_BESIDE
    if geometry.taps <= most and two_sided.applies(geometry):
        return "two_sided"
    return "slices" if many and 1 < channels <= FEWEST_GATHERED and slices.applies(geometry) else "patches"


def gathered_by_rows(problem: Problem) -> bool:
    """A kernel gradient of a dilated window, whose patches lax gathers a row at a time.

    It stays on one core, and leaves the other to the input gradient.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dilated = any(axis.dilation > 1 and axis.window > 1 for axis in geometry.axes)
    return dilated and min(channels, out) >= NARROW and channels % 4 == out % 4 == 0


def large_forms_of_few(problem: Problem) -> bool:
    """A kernel gradient of few places for its channels: Winograd's forms of it are most of what is moved."""
    channels, out, batch = problem.channels, problem.out, problem.batch
    few = isinstance(batch, int) and batch * math.prod(problem.geometry.output) < FEW_PLACES * min(channels, out)
    return few and 64 * channels * out > LARGE_FORMS


def small_kernel_grad(problem: Problem) -> str | None:
    """What computes a plane's kernel gradient of so few operations that a copy or a call a tap are most of its time.

    lax gathers over the images: a few of them, or rows of outputs that are whole vectors, and it is done first.
    """
    geometry, batch, out = problem.geometry, problem.batch, problem.out
    if not isinstance(batch, int) or problem.dtype != jnp.float32:
        return None
    many = min(problem.channels, out) >= MANY and not mostly_inside(problem)
    operations = cost.flops(batch, geometry, problem.channels, out)
    if operations <= FEWEST_CALLS and slices.applies(geometry):
        return "slices"
    if few_of_one_image(problem):
        return "lax"
    few = problem.channels <= FEWEST_GATHERED or out < lanes.VECTOR  # the second: x and g change places
    if operations > SMALL_SUM or many or few:
        return None
    if batch >= 16 or (batch >= 4 and out >= NARROW):
        return "lax"
    if operations > SMALLEST_SUM or not patches.applies(geometry):
        return None
    lines = geometry.taps > MOST_SCATTERED and slices.applies(geometry)
    return "slices" if lines else "patches"


def few_of_one_image(problem: Problem) -> bool:
    """A first layer's kernel gradient, whose rows lax gathers over the images: one, or a few of a small sum.

    With stride 1 a window of many taps is gathered in lines all the same, which takes less.
    """
    geometry, batch = problem.geometry, problem.batch
    if problem.channels > FEWEST_GATHERED or problem.out < NARROW:
        return False
    steps = all(axis.stride > 1 for axis in geometry.axes)
    operations = cost.flops(batch, geometry, problem.channels, problem.out)
    if batch == 1:
        return operations <= 3 * SMALL_SUM and (steps or geometry.taps < LEAST_LINES)
    return steps and batch <= 4 and operations <= SMALL_SUM


def folded_wins(problem: Problem) -> bool:
    """Few output channels, so that lax's rows of them are short; the columns of an image, or a band, stay in cache."""
    geometry, out = problem.geometry, problem.out
    ours = in_double(problem)
    if ours is not None:
        return ours == "columns"
    if small_dilated(problem):
        return True
    if geometry.rank == 1:
        return out <= FEW and geometry.taps > 1 and geometry.taps * out >= LEAST_FOLDED
    if geometry.rank == 2 and undilated(problem):
        thin = problem.channels <= FEWEST_GATHERED and out > 4  # for lines
        if geometry.taps == 1 or out > MOST_FOLDED or (out > 4 and out % 4 == 0) or thin:
            return False
        at_once = columns.CHUNK_BYTES / (4 * geometry.taps * out)
        ours = cost.columns(problem.batch, geometry, problem.channels, out, at_once)
        return ours < LEVEL * cost.lax_of_few(geometry, problem.channels, out)
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
    few = isinstance(batch, int) and places <= most and batch * places <= in_all
    return dilated and few and min(problem.channels, problem.out) >= MANY


def one_channel(problem: Problem) -> bool:
    return problem.product == "convolve" and problem.channels == 1 and problem.geometry.taps <= MOST_OF_ONE


def tap_by_tap(problem: Problem) -> bool:
    """Many channels, and taps that often see padding, so that their places are left out; or steps along one axis."""
    ours = in_double(problem)
    if ours is not None:
        return ours == "shifts"
    many = min(problem.channels, problem.out) >= 128 and not mostly_inside(problem)
    return problem.real and (many or scattered(problem))


def sliced_wins(problem: Problem) -> bool:
    """Where lax keeps a plane convolution on one core, gathers few or oddly many channels, or steps over its input."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if undilated(problem) and rows_of_patches(problem):
        return True
    if problem.product != "convolve":
        return plane_kernel_grad(problem) == "slices"
    if geometry.rank != 2 or geometry.groups > 1 or not undilated(problem) or geometry.taps == 1 or double(problem):
        return False
    first, last = geometry.axes
    if first.window == 1:  # its lines are a batch, nothing is copied
        return True
    if first.window < 3 or (abreast.missing(channels) and abreast_wins(problem)):
        return False
    rows, dense = first.window * channels, first.stride == last.stride == 1
    if channels >= 2 and rows <= slices.SIDE_BY_SIDE:  # the taps' rows become channels, one copy of x
        copied = geometry.output[0] * geometry.input[1] * rows
        few = channels <= FEWEST_GATHERED
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
        return MIDDLING <= channels < out and max(out, last.output) <= cost.BLOCK
    per_result = 2 * geometry.taps * channels  # each row of taps is a pass over the result
    if channels % 4 and per_result >= ODD_FLOPS and last.output <= cost.BLOCK:
        return True
    if not dense and channels >= MIDDLING and last.output < cost.BLOCK:
        return True
    one_core = max(out, last.output) < 1.6 * cost.BLOCK
    enough = per_result >= (2 * SUMMED_FLOPS if abreast_wins(problem) else SUMMED_FLOPS)
    return one_core and enough


def abreast_wins(problem: Problem) -> bool:
    """Where lax keeps an image's row on one core or fills no vector, several rows side by side do, and a copy pays."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if problem.dtype != jnp.float32 or not isinstance(problem.batch, int) or not abreast.applies(geometry):
        return False
    moved = math.prod(geometry.input) * channels + math.prod(geometry.output) * out
    if min(channels, out) < FEW or large_steps(problem):  # little to compute for what is copied
        return False
    odd = bool(abreast.missing(channels) or abreast.missing(out))
    last = geometry.axes[-1]
    if last.dilation > 1 and last.window > 1 and not odd:  # zeros as wide as the dilation stand between the images
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


def rows_of_patches(problem: Problem) -> bool:
    """Patches whose rows are long enough to be multiplied where they stand: a product a row, and no copy."""
    geometry = problem.geometry
    if geometry.rank != 2 or geometry.groups > 1 or not (matmul.applies(geometry) and slices.applies(geometry)):
        return False
    first, last = geometry.axes
    least = 2 if problem.product == "convolve" else 3
    return first.output > 1 and first.window >= least and last.window * problem.channels >= LONG_ROW


def lanes_win(problem: Problem) -> bool:
    """Many groups whose outputs fill a vector; of a convolution few more, since larger ones are products from cache."""
    groups = problem.geometry.groups
    each, depth = problem.channels // groups, problem.out // groups
    most = lanes.MOST_CHANNELS if problem.product != "convolve" else LANES
    return groups >= 4 and depth % 4 == 0 and max(each, depth) <= most


def wide_groups_of_lines(problem: Problem) -> bool:
    """Groups of one axis that lax runs at half of a dense convolution's rate: copies by group cost more than that."""
    geometry = problem.geometry
    if geometry.rank > 1 or not undilated(problem) or problem.dtype in (jnp.float64, jnp.complex128):
        return False
    wide = min(problem.channels, problem.out) >= MIDDLING * geometry.groups
    steps = geometry.axes[0].stride > 1
    return wide and (geometry.taps <= FEW if problem.product == "convolve" else steps)


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


def blocks_of_plane(problem: Problem) -> bool:
    """Up to 64 channels, of more the copy by blocks saves nothing; of less than 32 also where a tap of zeros is added.

    Those are lines else, of which a large image has too many to copy.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    waste = space_to_depth.waste(geometry)
    if channels >= NARROW:
        return waste == 1 and channels <= 2 * NARROW <= out
    operations = cost.flops(problem.batch, geometry, channels, out)
    small = 4 * math.prod(geometry.input) * channels <= columns.IMAGE_BYTES
    return channels >= FEW and waste <= MOST_WASTED_OF_FEW and small and operations > 1.5 * SMALL_SUM


def blocks_win(problem: Problem) -> bool:
    """A kernel gradient along one strided axis whose window blocks of the stride fill, or nearly fill if it is long.

    Of planes see plane_kernel_grad.
    """
    geometry = problem.geometry
    if geometry.rank > 1:
        return plane_kernel_grad(problem) == "space_to_depth"
    if not problem.real or double(problem) or few_along(problem):
        return False
    axis, waste = geometry.axes[0], space_to_depth.waste(geometry)
    return waste == 1 or (axis.stride >= LONG_STRIDE and waste <= MOST_WASTED)


def joined_wins(problem: Problem) -> bool:
    """Where the row that axes are joined to is long enough to be shared by the cores."""
    lower = joined.lower(problem.geometry)
    return problem.real and (problem.product == "kernel_grad" or lower.output[-1] >= LONG_ROW)


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
    rate = lambda outputs: min(1.0, math.sqrt(outputs / cost.BLOCK))
    seconds = problem.channels / SHUFFLED
    ours = subpixel.waste(geometry) * seconds / rate(subpixel.phases(geometry) * out) + 0.3
    if folded_wins(problem):
        return ours < LEVEL * (1 + seconds) and not odd_phases(problem)  # which folding adds up in shorter sums
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


def few_along(problem: Problem) -> bool:
    """A first layer of one axis and few taps: lax's one row has as many channels as there are images."""
    geometry = problem.geometry
    few = problem.channels < patches.CHANNELS_LAST and 1 < geometry.taps <= patches.SPELLED_OUT_OF_FEW
    ours = in_double(problem)
    if ours is not None:
        return ours == "patches"
    return problem.product == "kernel_grad" and geometry.rank == 1 and geometry.groups == 1 and problem.real and few


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
        return narrowest >= FEW and enough
    if problem.product == "kernel_grad" and large_forms_of_few(problem):
        return False
    inner = dataclasses.replace(problem, batch=batch * interleaved.images(geometry), geometry=dense)
    if narrowest < cost.BLOCK or not winograd_wins(inner):
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
    return first.window * winograd_seconds(inner) < 1.2 * shifts_seconds(problem)


def planes(problem: Problem) -> bool:
    """Three spatial axes, which lax computes on a naive path; but what goes tap by tap goes so at once."""
    if problem.geometry.rank < 3 or not slices.applies(problem.geometry):
        return False
    whole = shifts.applies(problem.geometry) and tap_by_tap(problem) and not winograd_planes(problem)
    return not (whole or thin(problem) or few_of_volume(problem))
