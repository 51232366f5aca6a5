"""Which algorithm computes a product: one table; the first row that applies and is expected to win runs.

The choice depends on static geometry, dtype and platform alone. On platforms other than the CPU the vendor's library
behind lax's convolution knows best, and every product is one lax convolution.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import (
    abreast,
    columns,
    cost,
    exchange,
    grouped,
    lanes,
    lax_conv,
    matmul,
    patches,
    phases,
    shifts,
    slices,
    taps,
    windows,
    winograd,
)
from jconv.geometry import Geometry

PRODUCTS = ("forward", "kernel_grad", "input_grad")


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


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm: where it is correct, where it is expected to win, its function for each product it computes."""

    name: str
    applies: Callable[[Problem], bool]
    wins: Callable[[Problem], bool]
    reason: str
    convolve: Callable[..., jax.Array] | None = None
    kernel_grad: Callable[..., jax.Array] | None = None

    def function(self, product: str) -> Callable[..., jax.Array] | None:
        return self.convolve if product == "convolve" else self.kernel_grad


def _undilated(problem: Problem) -> bool:
    return all(axis.input_dilation == 1 for axis in problem.geometry.axes)


def _always(problem: Problem) -> bool:
    del problem
    return True


def _compute(
    product: str, lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any, dtype: Any,
    algorithm: str = "auto", platform: str = "cpu",
) -> jax.Array:  # fmt: skip
    """One product by the table, cropped first; rhs is the kernel for "convolve", g for "kernel_grad"."""
    lhs, geometry = windows.crop(lhs, geometry)
    problem = Problem(product, lhs.shape[0], lhs.shape[-1], rhs.shape[-1], geometry, dtype)
    if lhs.size == 0 or rhs.size == 0 or 0 in geometry.output:  # an empty sum, or an empty result
        algorithm = "lax"
    return pick(problem, algorithm, platform).function(product)(lhs, rhs, geometry, precision, dtype)  # pyright: ignore[reportOptionalCall]


# What an algorithm calls for its parts: a phase, or a slice of lower rank, is computed by the best of the table.
_inner = functools.partial(_compute, "convolve")
_inner_kernel_grad = functools.partial(_compute, "kernel_grad")

MOST_PATCHES = 1 << 21  # elements of one example's patches up to which a few examples are computed at a time
FEW = 16  # channels of a group, in and out, up to which its patches and one product beat a lax convolution


def _one_group(product: str, lhs: jax.Array, rhs: jax.Array, geometry: Geometry, *rest: Any) -> jax.Array:
    """One group of a grouped product: by patches if it has few channels, else by the best of the table."""
    few = max(lhs.shape[-1], rhs.shape[-1]) <= FEW and patches.applies(geometry) and not matmul.applies(geometry)
    return _compute(product, lhs, rhs, geometry, *rest, algorithm="patches" if few else "auto")


def _mostly_inside(problem: Problem) -> bool:
    return shifts.share_inside(problem.geometry) > MOSTLY_INSIDE


MOSTLY_INSIDE = 0.76  # of the taps' places on the input, from which leaving out the others saves too little
SLICED_FLOPS = 200  # a copied element of x, from which the copy is worth it,
SLICED_FLOPS_OF_FEW = 48  # and with stride 1 where lax gathers at most FEWEST_GATHERED channels one by one,
STEPPED_FLOPS_OF_FEW = 80  # or with a larger one
FEWEST_GATHERED = 4
FOLDED_BYTES = 16 << 20  # of one image's columns: beyond, they leave the caches before they are folded
FOLDED_BYTES_OF_FEW = 2 << 20  # the same where the taps are few for each output
MOST_OF_ONE = 32  # taps of one channel up to which a multiply-add a tap is one loop over the result
SUMMED_FLOPS = 5000  # an element of the result, from which its passes are,
ODD_FLOPS = 300  # and where the channels fill no vector
SLICED_FLOPS_OF_ODD = 100  # a copied element of such channels
MIDDLING = 32  # channels from which lines are rows long enough
MOST_SCATTERED = 9  # taps of a kernel gradient up to which one matrix product a tap beats a convolution with steps
NARROW = 32  # channels in or out below which a kernel gradient has short rows
LEAST_SLICED = 27  # taps * channels of a kernel gradient of fewer than patches.CHANNELS_LAST channels, for lines
LONG_ROW = 96  # elements
LEAST_LINES = 16  # taps from which lines of FEW channels beat their patches
LARGEST_RESULT = 16 << 20  # bytes
LANES = 8  # channels of a group up to which its convolution is one vector, or half
FEWEST = 32  # channels in or out below which Winograd's sums cost more than the multiplications that they save,
FEWEST_IN_ALL = 128  # and of both together, but for a kernel gradient
LARGEST_FORMS = 32 << 20
LEAST_ABREAST = 250  # floating-point operations an element of x and y, from which images are worth to be copied abreast
LEAST_SECONDS = 5e-4  # of a lax convolution from which a program that takes half a second longer to compile is worth it


def _winograd_wins(problem: Problem) -> bool:
    """By the cost model, with some room for what it does not know; in float32, where its rounding is like lax's."""
    sizes = (problem.batch, problem.geometry, problem.channels, problem.out)
    tiles = winograd.tiles(problem.geometry)
    if problem.product == "convolve":
        ours, lax_seconds = cost.winograd(*sizes, tiles), cost.lax_convolve(*sizes)
    else:
        ours, lax_seconds = cost.winograd_kernel_grad(*sizes, tiles), cost.lax_kernel_grad(*sizes)
    forms = 64 * problem.channels * problem.out  # bytes: too many to keep beside those of the input gradient
    fits = problem.product == "convolve" or forms <= LARGEST_FORMS
    fits &= min(problem.channels, problem.out) >= FEWEST
    fits &= problem.product != "convolve" or problem.channels + problem.out >= FEWEST_IN_ALL
    room = 1.15 if problem.product == "convolve" else 1.0
    return problem.dtype == jnp.float32 and fits and max(LEAST_SECONDS, room * ours) < lax_seconds


def _plane_kernel_grad(problem: Problem) -> str | None:
    """What computes a dense plane's kernel gradient, which lax runs at a third of its forward product's rate.

    lax gathers a patch of single elements, since the images stand where it wants channels; lines have rows of images
    there, and patches copy runs of channels.
    """
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    dense = problem.product == "kernel_grad" and geometry.rank == 2 and geometry.groups == 1 and _undilated(problem)
    if not dense or not problem.real or geometry.taps == 1:
        return None
    if exchange.applies(geometry) and out < min(NARROW, channels):
        return "exchange"
    if NARROW <= out < 2 * NARROW and 4 * out <= channels:
        return "lax"  # on one core, beside the input gradient
    if winograd.applies(geometry) and _winograd_wins(problem):
        return "winograd"
    if shifts.applies(geometry) and (
        _tap_by_tap(problem)
        or (channels >= patches.CHANNELS_LAST and geometry.taps <= MOST_SCATTERED and not _mostly_inside(problem))
    ):
        return "shifts"
    steps = any(axis.stride > 1 for axis in geometry.axes)
    if channels < patches.CHANNELS_LAST:
        few = geometry.taps <= patches.SPELLED_OUT if steps else geometry.taps * channels < LEAST_SLICED
    else:
        few = min(channels, out) < NARROW
        if few and channels >= FEW:
            if steps and shifts.applies(geometry):
                return "shifts"
            few = geometry.taps < LEAST_LINES
    return "patches" if few and patches.applies(geometry) else "slices" if slices.applies(geometry) else None


def _folded_wins(problem: Problem) -> bool:
    """Few output channels, so that lax's rows of them are short; one image's columns stay in cache."""
    geometry, out = problem.geometry, problem.out
    few = out <= 4 or (out <= 8 and FEWEST_GATHERED < problem.channels <= 32)
    columns = 4 * math.prod(geometry.input) * geometry.taps * out
    least = 8 if not _undilated(problem) else 3 if columns <= FOLDED_BYTES_OF_FEW else 6  # a dilated fold moves more
    return few and columns <= FOLDED_BYTES and geometry.taps >= least * out


def _one_channel(problem: Problem) -> bool:
    return problem.product == "convolve" and problem.channels == 1 and problem.geometry.taps <= MOST_OF_ONE


def _tap_by_tap(problem: Problem) -> bool:
    """Many channels, and taps that often see padding, so that their places are left out; or steps along one axis."""
    many = min(problem.channels, problem.out) >= 128 and not _mostly_inside(problem)
    return problem.real and (many or _scattered(problem))


def _sliced_wins(problem: Problem) -> bool:
    """Where lax keeps a plane convolution on one core, gathers few or oddly many channels, or steps over its input."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if _undilated(problem) and _rows_of_patches(problem):
        return True
    if problem.product != "convolve":
        return _plane_kernel_grad(problem) == "slices"
    if geometry.rank != 2 or geometry.groups > 1 or not _undilated(problem) or geometry.taps == 1:
        return False
    first, last = geometry.axes
    if first.window == 1:  # its lines are a batch, nothing is copied
        return True
    if first.window < 3:
        return False
    rows, dense = first.window * channels, first.stride == last.stride == 1
    if channels >= 2 and rows <= slices.SIDE_BY_SIDE:  # the taps' rows become channels, one copy of x
        copied = geometry.output[0] * geometry.input[1] * rows
        few = channels <= FEWEST_GATHERED
        least = (SLICED_FLOPS_OF_FEW if dense else STEPPED_FLOPS_OF_FEW) if few else SLICED_FLOPS
        least = SLICED_FLOPS_OF_ODD if channels % 4 and channels > FEW else least
        images = problem.batch if isinstance(problem.batch, int) else 1
        if dense and 4 * images * math.prod(geometry.output) * out > LARGEST_RESULT:
            return False  # it is written once more, into memory that the system has yet to hand out
        return cost.flops(1, geometry, channels, out) >= least * copied
    if winograd.applies(geometry):
        return MIDDLING <= channels < out and max(out, last.output) <= cost.BLOCK
    per_result = 2 * geometry.taps * channels  # each row of taps is a pass over the result
    if channels % 4 and per_result >= ODD_FLOPS and last.output <= cost.BLOCK:
        return True
    if not dense and channels >= MIDDLING and last.output < cost.BLOCK:
        return True
    one_core = max(out, last.output) < 1.6 * cost.BLOCK
    enough = per_result >= (2 * SUMMED_FLOPS if _abreast_wins(problem) else SUMMED_FLOPS)
    return one_core and enough


def _abreast_wins(problem: Problem) -> bool:
    """Where lax keeps an image's row on one core, several rows side by side do not, and are worth a copy."""
    geometry, channels, out = problem.geometry, problem.channels, problem.out
    if not (problem.real and isinstance(problem.batch, int) and abreast.applies(geometry)):
        return False
    moved = math.prod(geometry.input) * channels + math.prod(geometry.output) * out
    worth = cost.flops(1, geometry, channels, out) >= LEAST_ABREAST * moved
    return worth and abreast.abreast(problem.batch, geometry, channels, out) > 1


def _few_taps_of_one(problem: Problem) -> bool:
    """Groups of one channel, whose products of a vector with a matrix are slow, and added up less exactly."""
    geometry = problem.geometry
    fits = geometry.groups > 1 and taps.applies(geometry, problem.channels, problem.out)
    return fits and 1 < geometry.taps <= MOST_OF_ONE


def _thin(problem: Problem) -> bool:
    """1x1 of so few channels that a matrix product has nothing to add up; lax's convolution takes half as long."""
    dense = all(axis.window == axis.stride == axis.input_dilation == 1 for axis in problem.geometry.axes)
    few = problem.channels <= FEWEST_GATHERED < problem.out and problem.geometry.groups == 1
    return problem.product == "convolve" and dense and few


def _rows_of_patches(problem: Problem) -> bool:
    """Patches whose rows are long enough to be multiplied where they stand: a product a row, and no copy."""
    geometry = problem.geometry
    if geometry.rank != 2 or geometry.groups > 1 or not (matmul.applies(geometry) and slices.applies(geometry)):
        return False
    first, last = geometry.axes
    return first.window > 2 and last.window * problem.channels >= LONG_ROW


def _lanes_win(problem: Problem) -> bool:
    """Many groups whose outputs fill a vector; of a convolution no more, since larger ones are products from cache."""
    groups = problem.geometry.groups
    each, depth = problem.channels // groups, problem.out // groups
    most = LANES if problem.product == "convolve" else lanes.MOST_CHANNELS
    return groups >= 4 and depth % 4 == 0 and max(each, depth) <= most


def _scattered(problem: Problem) -> bool:
    """A kernel gradient along one axis whose convolution would step over its input: a third of lax's speed."""
    axes = problem.geometry.axes
    steps = any(axis.stride > 1 or axis.dilation > 1 for axis in axes) or axes[-1].window == 1
    most = MOST_SCATTERED if len(axes) > 1 else MOST_OF_ONE
    line = sum(axis.window > 1 for axis in axes) == 1 and problem.geometry.taps <= most
    wide = line and min(problem.channels, problem.out) >= cost.BLOCK
    return problem.product == "kernel_grad" and steps and wide


def _planes(problem: Problem) -> bool:
    """Three spatial axes, which lax computes on a naive path; but what goes tap by tap goes so at once."""
    whole = shifts.applies(problem.geometry) and _tap_by_tap(problem)
    return problem.geometry.rank > 2 and slices.applies(problem.geometry) and not whole and not _thin(problem)


TABLE = (
    Row(
        "matmul",
        lambda p: matmul.applies(p.geometry) and _undilated(p),
        lambda p: not (p.real and (_few_taps_of_one(p) or _thin(p) or _rows_of_patches(p))),
        "each input element meets one tap at most: one matrix product",
        convolve=matmul.convolve,
        kernel_grad=matmul.kernel_grad,
    ),
    Row(
        "spread",
        lambda p: p.product == "convolve" and matmul.applies_spread(p.geometry),
        lambda p: not (p.real and _thin(p)),
        "the input gradient of patches: one matrix product, spread back",
        convolve=matmul.convolve_spread,
    ),
    Row(
        "taps",
        lambda p: _undilated(p) and taps.applies(p.geometry, p.channels, p.out),
        lambda p: p.real and (_one_channel(p) or p.geometry.groups > 1),
        "one channel, or groups of one: one fused multiply-add a tap",
        convolve=taps.convolve,
        kernel_grad=taps.kernel_grad,
    ),
    Row(
        "columns",
        lambda p: p.product == "convolve" and columns.applies(p.geometry),
        lambda p: p.real and _folded_wins(p),
        "few output channels: one matrix product for all taps, then a fold",
        convolve=columns.convolve,
    ),
    Row(
        "exchange",
        lambda p: p.product == "kernel_grad" and exchange.applies(p.geometry),
        lambda p: _plane_kernel_grad(p) == "exchange",
        "few output channels: x and g change places, and the kernel is turned",
        kernel_grad=functools.partial(exchange.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "slices",
        lambda p: slices.applies(p.geometry),
        lambda p: p.real and (_planes(p) or _sliced_wins(p)),
        "three spatial axes, or few channels: convolutions of lower rank, side by side",
        convolve=functools.partial(slices.convolve, inner=_inner),
        kernel_grad=functools.partial(slices.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "phases",
        lambda p: p.product == "convolve" and phases.applies(p.geometry),
        lambda p: p.out >= 8 or p.geometry.groups > 1 or p.geometry.rank == 1,  # short runs are slow to interleave
        "a dilated input: one convolution an output phase, none over inserted zeros",
        convolve=functools.partial(phases.convolve, inner=_inner),
    ),
    Row(
        "lanes",
        lambda p: lanes.applies(p.geometry, p.channels, p.out),
        lambda p: p.real and _lanes_win(p),
        "small groups: a multiply-add a tap and channel, over the vector of a group's outputs",
        convolve=lanes.convolve,
        kernel_grad=lanes.kernel_grad,
    ),
    Row(
        "grouped",
        lambda p: grouped.applies(p.geometry),
        lambda p: p.real and _undilated(p),
        "groups of some channels: one dense convolution a group, from cache",
        convolve=functools.partial(grouped.convolve, inner=functools.partial(_one_group, "convolve")),
        kernel_grad=functools.partial(grouped.kernel_grad, inner=functools.partial(_one_group, "kernel_grad")),
    ),
    Row(
        "winograd",
        lambda p: jnp.issubdtype(p.dtype, jnp.inexact) and winograd.applies(p.geometry),
        lambda p: _winograd_wins(p) and _plane_kernel_grad(p) in (None, "winograd"),
        "3x3: fewer multiplications, as independent matrix products",
        convolve=winograd.convolve,
        kernel_grad=winograd.kernel_grad,
    ),
    Row(
        "shifts",
        lambda p: shifts.applies(p.geometry),
        lambda p: _tap_by_tap(p) or _plane_kernel_grad(p) == "shifts",
        "many channels, and taps that often see padding: one matrix product a tap",
        convolve=shifts.convolve,
        kernel_grad=shifts.kernel_grad,
    ),
    Row(
        "patches",
        lambda p: patches.applies(p.geometry),
        lambda p: _plane_kernel_grad(p) == "patches",
        "few channels: every window's elements side by side, one matrix product",
        convolve=patches.convolve,
        kernel_grad=patches.kernel_grad,
    ),
    Row(
        "abreast",
        lambda p: abreast.applies(p.geometry),
        _abreast_wins,
        "images too narrow to fill all cores: several side by side as one",
        convolve=abreast.convolve,
    ),
    Row(
        "lax",
        _always,
        _always,
        "one jax.lax convolution in canonical layout",
        convolve=lax_conv.convolve,
        kernel_grad=lax_conv.kernel_grad,
    ),
)
NAMES = ("auto", *(row.name for row in TABLE))


def pick(problem: Problem, algorithm: str = "auto", platform: str = "cpu") -> Row:
    """The row of TABLE that computes `problem`."""
    if algorithm == "auto" and platform != "cpu":
        algorithm = "lax"
    for row in TABLE:
        if row.function(problem.product) is None or (algorithm != "auto" and row.name != algorithm):
            continue
        if (
            row.applies(problem)
            and (algorithm == "auto" or algorithm == row.name)
            and (algorithm != "auto" or row.wins(problem))
        ):
            return row
    raise ValueError(f"algorithm={algorithm!r} does not apply to {problem}")


def able(problem: Problem) -> list[Row]:
    """The rows of TABLE that can compute `problem`."""
    return [row for row in TABLE if row.function(problem.product) is not None and row.applies(problem)]


def check(fun: str, algorithm: tuple[str, str, str], geometry: Geometry, channels: int, out: int, dtype: Any) -> None:
    """ValueError where an algorithm that the user forces does not apply to its product."""
    for name, product in zip(algorithm, PRODUCTS, strict=True):
        problem = product_problem(product, geometry, 1, channels, out, dtype)
        names = [row.name for row in able(problem)]
        if name != "auto" and name not in names:
            raise ValueError(
                f"{fun}: algorithm={name!r} does not apply to the {product} product of this layer (window "
                f"{geometry.window}, strides {tuple(a.stride for a in geometry.axes)}, {geometry.groups} groups); "
                f"these do: {', '.join(names)}"
            )


def product_problem(product: str, geometry: Geometry, batch: Any, channels: int, out: int, dtype: Any) -> Problem:
    """The problem that `product` of a layer with in and out channels poses; an input gradient is a convolution."""
    if product == "input_grad":
        return Problem("convolve", batch, out, channels, _cropped(geometry.for_input_grad()), dtype)
    return Problem("convolve" if product == "forward" else product, batch, channels, out, _cropped(geometry), dtype)


def _cropped(geometry: Geometry) -> Geometry:
    return dataclasses.replace(geometry, axes=tuple(axis.crop()[2].plain() for axis in geometry.axes))


def _wide(dtype: Any, platform: str) -> tuple[Any, Any]:
    """(operand dtype, dtype of the sums) for a result of `dtype`: float16 and bfloat16 are summed in float32.

    On a CPU the operands are widened too: XLA would do the same, one convolution at a time.
    """
    if dtype in (jnp.bfloat16, jnp.float16):
        return (jnp.float32 if platform == "cpu" else None), jnp.dtype(jnp.float32)
    return None, dtype


def _run(
    product: str,
    lhs: jax.Array,
    rhs: jax.Array,
    geometry: Geometry,
    precision: Any,
    dtype: Any,
    algorithm: str,
    platform: str,
) -> jax.Array:
    """One product of operands without examples axis; for "convolve" rhs is the kernel, for "kernel_grad" it is g."""
    lhs, rhs, total = _widened(lhs, rhs, dtype, platform)
    return _compute(product, lhs, rhs, geometry, precision, total, algorithm, platform).astype(dtype)


def _widened(lhs: jax.Array, rhs: jax.Array, dtype: Any, platform: str) -> tuple[jax.Array, jax.Array, Any]:
    """The operands as they are multiplied, and the dtype of the sums, for a result of `dtype`."""
    operand = jnp.promote_types(lhs.dtype, rhs.dtype)
    widened, total = _wide(jnp.promote_types(operand, dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype, platform)
    operand = operand if widened is None else widened
    return lhs.astype(operand), rhs.astype(operand), total


def _each(run: Callable[..., jax.Array], lhs: jax.Array, rhs: jax.Array, examples: bool) -> jax.Array:
    """`run` on the operands, or on each pair of entries of their first axis, one after the other."""
    return lax.map(lambda pair: run(*pair), (lhs, rhs)) if examples else run(lhs, rhs)


def convolve(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, algorithm: tuple[str, str, str],
    examples: bool, platform: str, which: int = 0,
) -> jax.Array:  # fmt: skip
    """The forward product; `which` says whose name in `algorithm` rules (an input gradient is a convolution too)."""
    if examples and platform != "cpu":
        return _as_groups(x, w, geometry, precision, dtype, platform)
    run = functools.partial(
        _run,
        "convolve",
        geometry=geometry,
        precision=precision,
        dtype=dtype,
        algorithm=algorithm[which],
        platform=platform,
    )
    return _each(run, x, w, examples)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, algorithm: tuple[str, str, str],
    examples: bool, platform: str,
) -> jax.Array:  # fmt: skip
    """The full convolution of g, dilated by the stride and zero-padded, with the kernel turned by 180 degrees."""
    turn = functools.partial(windows.turned, groups=geometry.groups)
    w = jax.vmap(turn)(w) if examples else turn(w)
    return convolve(g, w, geometry.for_input_grad(), precision, dtype, algorithm, examples, platform, which=2)


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, algorithm: tuple[str, str, str],
    examples: bool, platform: str,
) -> jax.Array:  # fmt: skip
    """The valid cross-correlation of x with g: stride and dilation change places."""
    if examples and platform != "cpu":
        size, groups = x.shape[0], geometry.groups
        wide = dataclasses.replace(geometry, groups=size * groups)
        dw = _run("kernel_grad", _merge(x), _merge(g), wide, precision, dtype, "lax", platform)
        return jnp.moveaxis(dw.reshape(*dw.shape[:-1], size, dw.shape[-1] // size), -2, 0)
    if examples and algorithm[1] in ("auto", "patches") and few_at_a_time(x, g, geometry, dtype):
        return _kernel_grads(x, g, geometry, precision, dtype, platform)
    run = functools.partial(
        _run,
        "kernel_grad",
        geometry=geometry,
        precision=precision,
        dtype=dtype,
        algorithm=algorithm[1],
        platform=platform,
    )
    return _each(run, x, g, examples)


def few_at_a_time(x: Any, g: Any, geometry: Geometry, dtype: Any) -> bool:
    """Whether each example's patches are so few that a batched product of several examples runs from cache."""
    batch = x.shape[1]
    problem = product_problem("kernel_grad", geometry, batch, x.shape[-1], g.shape[-1], dtype)
    if not (isinstance(batch, int) and problem.real and patches.applies(problem.geometry)) or 0 in (*x.shape, *g.shape):
        return False
    return batch * math.prod(geometry.output) * geometry.taps * x.shape[-1] <= MOST_PATCHES


def _kernel_grads(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, platform: str
) -> jax.Array:
    """The kernel gradient of each example, of a few at a time."""
    examples, batch = x.shape[:2]
    x, g, total = _widened(x, g, dtype, platform)
    x, geometry = windows.crop(x.reshape(-1, *x.shape[2:]), geometry)
    x = x.reshape(examples, batch, *x.shape[1:])
    return patches.kernel_grads(x, g, geometry, precision, total).astype(dtype)


def _merge(array: jax.Array) -> jax.Array:
    """(examples, ..., channels) to (..., examples * channels)."""
    array = jnp.moveaxis(array, 0, -2)
    return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])


def _as_groups(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, platform: str) -> jax.Array:
    """Each example a group of one wide convolution: the form that an accelerator's library runs at once."""
    size = x.shape[0]
    wide = dataclasses.replace(geometry, groups=size * geometry.groups)
    y = _run("convolve", _merge(x), _merge(w), wide, precision, dtype, "lax", platform)
    return jnp.moveaxis(y.reshape(*y.shape[:-1], size, y.shape[-1] // size), -2, 0)


def flops(geometry: Geometry, batch: int, channels: int, out: int) -> int:
    """Floating-point operations of each of the three products, a multiply-add counted as two."""
    return 2 * batch * math.prod(geometry.output) * geometry.taps * (channels // geometry.groups) * out
