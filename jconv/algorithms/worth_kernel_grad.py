"""Where an algorithm pays for a kernel gradient: of a plane one rule names it, in the order in which they are tried.

The bounds were found as those of worth.py.
"""

import dataclasses
import math

import jax.numpy as jnp

from jconv.algorithms import (
    columns,
    cost,
    exchange,
    patches,
    shifts,
    slices,
    space_to_depth,
    two_sided,
    winograd,
)
from jconv.algorithms.problem import (
    FEW,
    FEWEST_GATHERED,
    MANY,
    MOST_SCATTERED,
    NARROW,
    SMALL_IMAGE,
    Problem,
    double,
    in_double,
    large_steps,
    mostly_inside,
    tap_by_tap,
    undilated,
    winograd_wins,
)

LEAST_SLICED = 27  # taps * channels of a kernel gradient of fewer than patches.CHANNELS_LAST channels, for lines
LEAST_STEPPED = 25  # taps of a strided window from which lines of few channels beat their patches
LEAST_LINES = 16  # taps from which lines of FEW channels beat their patches
MOST_WASTED = 1.13  # taps that are computed, for each of the kernel's,
LONG_STRIDE = 4  # where their blocks are so long;
MOST_WASTED_OF_FEW = 1.15  # and in planes of fewer than NARROW channels
MOST_BESIDE = 16  # taps of a strided window copied beside few channels, where the outputs are many
FEWEST_OF_FORMS = 192  # channels in and out together, of fewer Winograd's forms take longer than they save
SMALL_BESIDE = 5e8  # floating-point operations of each, up to which both gradients are lax's,
SMALLER_BESIDE = 3e8  # and where the forward pass is, too
FEW_IMAGES = 4  # of fewer, lax's kernel gradient is done beside other products,
SMALL_SUM_OF_FEW = 4e8  # up to so many floating-point operations
MOST_SHARED = 48  # channels in or out up to which the taps of a kernel gradient are shared out,
SHARED_COPIES = 0.9  # times the elements that patches of x or g would copy
MOST_HALVES_TAPS = 16  # of a strided window whose channels fill no whole blocks,
FEWEST_HALVES = 48  # from so many
LARGE_PATCHES = 8 << 20  # bytes of all patches, which are beyond a core's caches,
LARGEST_READ_AGAIN = 8 << 20  # and of g, which are in those that cores share
LARGE_FORMS = 8 << 20  # of a kernel gradient, beside which the copies of dilated images leave the caches,
FEW_PLACES = 3  # for each channel, that do not make up for it
SMALL_SUM = 8e7  # floating-point operations of a kernel gradient that lax has on its way before others are copied,
SMALL_STEPPED_SUM = 1.5e7  # and of one that lax gathers step by step,
SMALLEST_SUM = 5e6  # and of one that is no more than the calls it takes,
SMALLEST_FIRST = 6e6  # and of a first layer,
FEWEST_CALLS = 1.5e5  # and of one where each call counts, since XLA hands a program of many to another thread
CACHED_BYTES = 1 << 20  # of a g that lax may read again and again,
MOST_GATHERED = 4.7e6  # for so many elements of x and taps that it gathers on one core


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
    if exchange.applies(geometry) and fewer_lines(problem):
        return "exchange"
    small = small_kernel_grad(problem)
    if small is not None:
        return small
    if on_the_other_core(problem):
        return "lax"
    if half_blocks_by_steps(problem):
        return "shifts"
    if shared_out(problem):
        return "two_sided"
    if exchange.applies(geometry) and out < min(NARROW, channels):
        return "two_sided" if one_long_sum(problem) else "exchange"
    if winograd.applies(geometry) and winograd_wins(problem):
        return "lax" if beside_each_other(problem) else "winograd"
    if space_to_depth.applies(geometry) and blocks_of_plane(problem):
        return "space_to_depth"
    if space_to_depth.applies(geometry) and FEW <= channels < NARROW and large_steps(problem):
        return "lax"
    if dilated_of_few(problem):
        return "two_sided"
    if gathered_by_rows(problem) and (min(channels, out) < 2 * NARROW or small_of_few_images(problem)):
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


def one_long_sum(problem: Problem) -> bool:
    """A last layer's gradient that is, exchanged, a first layer's of one image, which lax adds up place after place.

    Of 64 x 64 places it loses seven times what lax does in the layer as it stands, of 256 x 256 twenty times.
    """
    turned = problem.geometry.for_input_grad()
    exchanged = dataclasses.replace(problem, channels=problem.out, out=problem.channels, geometry=turned)
    return two_sided.applies(problem.geometry) and few_of_one_image(exchanged)


def fewer_lines(problem: Problem) -> bool:
    """Windows of many taps, no Winograd's, whose lines of g are so many fewer than those of x."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dense = all(axis.stride == axis.dilation == 1 for axis in geometry.axes)
    return dense and geometry.taps >= LEAST_LINES and NARROW <= out <= 2 * NARROW and 2 * channels >= 3 * out


def shared_out(problem: Problem) -> bool:
    """Few channels on both sides: patches of either would copy more than patches of both, each of a part of the taps.

    With more than MOST_SHARED the product is most of the time, and lines or Winograd's form have less to compute.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if problem.product != "kernel_grad" or not problem.real or not two_sided.applies(geometry):
        return False
    if large_patches(problem) or some_channels_by_steps(problem):
        return True
    most, narrowest = (2 * NARROW, 2 * NARROW) if double(problem) else (MOST_SHARED, NARROW - 1)
    if max(channels, out) > most or min(channels, out) > narrowest:
        return False
    steps = any(axis.stride > 1 for axis in geometry.axes)
    if steps and geometry.taps < LEAST_STEPPED and min(channels, out) >= FEW:  # a small part of x meets each tap
        return False
    ours = two_sided.copied(two_sided.shares(geometry, channels, out), channels, out)
    patches_of = min(geometry.taps * channels + out, geometry.taps * out + channels)
    return ours < SHARED_COPIES * patches_of


def large_patches(problem: Problem) -> bool:
    """3x3 of few channels on one side and some on the other, whose patches of the few would leave the caches.

    Shared out they come a few images at a time.
    """
    geometry, narrowest, widest = problem.geometry, *sorted((problem.channels, problem.out))
    if problem.dtype != jnp.float32 or not isinstance(problem.batch, int) or not winograd.applies(geometry):
        return False
    held = 4 * problem.batch * math.prod(geometry.output) * (geometry.taps * narrowest + widest)
    return FEW <= narrowest < NARROW and widest <= MANY and held > LARGE_PATCHES


def on_the_other_core(problem: Problem) -> bool:
    """Of those the ones of more outputs: lax's is on one core, beside an input gradient of few outputs on the other."""
    return large_patches(problem) and problem.channels < problem.out and g_bytes(problem) <= LARGEST_READ_AGAIN


def g_bytes(problem: Problem) -> int:
    """Of the float32 gradient that lax reads again for each tap."""
    return 4 * problem.batch * math.prod(problem.geometry.output) * problem.out


def some_channels_by_steps(problem: Problem) -> bool:
    """A strided plane of some channels, of which lines are gathered step by step; patches are runs of channels."""
    geometry, narrowest, widest = problem.geometry, *sorted((problem.channels, problem.out))
    steps = geometry.rank == 2 and all(axis.stride > 1 for axis in geometry.axes) and geometry.taps < LEAST_LINES
    some = NARROW <= narrowest <= 2 * NARROW and widest <= 2 * MANY
    return steps and some and problem.dtype == jnp.float32


def half_blocks_by_steps(problem: Problem) -> bool:
    """Strided windows of 48 channels or more that are no multiple of 64, or of 16 taps.

    Lines take 1.2 to 1.8 times as long as a product a tap: a convolution that makes such a gradient divides 96 badly.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    steps = geometry.rank == 2 and all(axis.stride > 1 for axis in geometry.axes) and geometry.taps <= MOST_HALVES_TAPS
    if not steps or problem.dtype != jnp.float32 or not isinstance(problem.batch, int):
        return False
    some = min(channels, out) >= NARROW and channels >= FEWEST_HALVES and max(channels, out) <= 2 * MANY
    halves = channels % cost.BLOCK or out % cost.BLOCK or (geometry.taps == MOST_HALVES_TAPS and channels >= MANY)
    return some and bool(halves) and cost.flops(problem.batch, geometry, channels, out) > SMALL_STEPPED_SUM


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


def dilated_of_few(problem: Problem) -> bool:
    """A dilated window's gradient of 32 channels to 96, which takes two to three times as long in lax.

    Of 4 x 64 x 64 x 48 23 ms, and shared out 9: the whole step in half the time, though lax leaves the other core free.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dilated = all(axis.dilation > 1 and axis.stride == 1 for axis in geometry.axes) and geometry.rank == 2
    some = min(channels, out) >= NARROW and channels + out < FEWEST_OF_FORMS and two_sided.applies(geometry)
    if not (dilated and some) or problem.product != "kernel_grad" or problem.dtype != jnp.float32:
        return False
    operations = cost.flops(problem.batch, geometry, channels, out)
    return operations > SMALL_SUM and not small_of_few_images(problem)


def small_of_few_images(problem: Problem) -> bool:
    """A kernel gradient that lax has done, on one core, before it has the other products on the other."""
    few = isinstance(problem.batch, int) and problem.batch < FEW_IMAGES and not problem.part
    return few and cost.flops(problem.batch, problem.geometry, problem.channels, problem.out) <= SMALL_SUM_OF_FEW


def beside_each_other(problem: Problem) -> bool:
    """3x3 of 64 channels, or a few more, and so little to compute that both gradients are lax's, on one core each.

    Of 2 x 56 x 56 x 64 a step takes 7.5 ms, and 9 to 11 with either's faster form, which wants both cores.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not winograd.applies(geometry) or problem.dtype != jnp.float32 or not isinstance(problem.batch, int):
        return False
    # Of a layer with more places out than in the kernel gradient is not lax's: see padded.
    grows = (axis.output < axis.input if geometry.backward else axis.output > axis.input for axis in geometry.axes)
    if problem.part or any(grows):
        return False
    operations = cost.flops(problem.batch, geometry, channels, out)
    if min(channels, out) >= cost.BLOCK and channels + out < FEWEST_OF_FORMS:
        return operations <= SMALL_BESIDE
    # Or where the convolutions are lax's in any case.
    lax_convolves = not winograd_wins(dataclasses.replace(problem, product="convolve"))
    many = min(channels, out) >= MANY and problem.product == "kernel_grad"
    return many and operations <= SMALLER_BESIDE and lax_convolves


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
    if few_of_one_image(problem) or small_first(problem):
        return "lax"
    few = problem.channels <= FEWEST_GATHERED or out < FEW  # of which lax fills no block
    steps = any(axis.stride > 1 for axis in geometry.axes) and operations > SMALL_STEPPED_SUM
    # Lines of one image take less beside the other products than lax, which takes less alone.
    beside = geometry.taps >= LEAST_LINES and batch == 1 and not shared_out(problem)
    if in_cache(problem) and not beside:
        return "lax"
    if operations > SMALL_SUM or many or few or steps:
        return None
    if batch >= 16 or (out >= NARROW and (batch >= 4 or operations <= SMALL_SUM / 2) and not beside):
        return "lax"
    if operations > SMALLEST_SUM or not patches.applies(geometry):
        return None
    lines = geometry.taps > MOST_SCATTERED and slices.applies(geometry)
    return "slices" if lines else "patches"


def in_cache(problem: Problem) -> bool:
    """Few channels, and outputs by whole blocks, of a g that stays in a core's cache while lax reads it for each tap.

    Of twice the bytes lax takes three to five times as long.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dense = all(axis.stride == axis.dilation == 1 for axis in geometry.axes)
    few = min(channels, out) <= NARROW or max(channels, out) <= 2 * NARROW
    blocks = out % NARROW == 0 and out <= MANY and channels > FEWEST_GATHERED
    gathered = problem.batch * math.prod(geometry.output) * geometry.taps * channels
    return dense and few and blocks and g_bytes(problem) <= CACHED_BYTES and gathered <= MOST_GATHERED


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


def small_first(problem: Problem) -> bool:
    """A first layer's of so little to compute that lax gathers its windows before others have copied them.

    5x5 of 3 channels over one image of 16 x 16 to 64: 0.07 ms, and in lines 0.22. Of 1, 2 or 4 channels and few taps
    patches are as few.
    """
    geometry, channels = problem.geometry, problem.channels
    few = cost.flops(problem.batch, geometry, channels, problem.out) <= SMALLEST_FIRST
    few = few and channels <= FEWEST_GATHERED and problem.out >= FEW
    return few and (channels == 3 or geometry.taps >= LEAST_STEPPED)


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


def few_along(problem: Problem) -> bool:
    """A first layer of one axis and few taps: lax's one row has as many channels as there are images."""
    geometry = problem.geometry
    few = problem.channels < patches.CHANNELS_LAST and 1 < geometry.taps <= patches.SPELLED_OUT_OF_FEW
    ours = in_double(problem)
    if ours is not None:
        return ours == "patches"
    return problem.product == "kernel_grad" and geometry.rank == 1 and geometry.groups == 1 and problem.real and few
