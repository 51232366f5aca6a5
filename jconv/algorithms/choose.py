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
    edged,
    exchange,
    grouped,
    interleaved,
    joined,
    lanes,
    lax_conv,
    matmul,
    padded,
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
    worth,
    worth_input_grad,
)
from jconv.algorithms.problem import Problem, tap_by_tap, undilated
from jconv.algorithms.worth_kernel_grad import blocks_win, few_along, plane_kernel_grad, shared_out, shared_out_of_each
from jconv.geometry import Geometry

ADDING = ("lax", "edged", "taps", "lanes")  # which complex operands are given as they are
PRODUCTS = ("forward", "kernel_grad", "input_grad")


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


def _always(problem: Problem) -> bool:
    del problem
    return True


def _compute(
    product: str, lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any, dtype: Any,
    algorithm: str = "auto", platform: str = "cpu", part: bool = False,
) -> jax.Array:  # fmt: skip
    """One product by the table, cropped first; rhs is the kernel for "convolve", g for "kernel_grad"."""
    cropped = windows.cropped(geometry)
    problem = Problem(product, lhs.shape[0], lhs.shape[-1], rhs.shape[-1], cropped, dtype, part)
    if 0 in (lhs.shape[0], lhs.shape[-1], rhs.size, *cropped.input, *cropped.output):  # an empty sum, or result
        algorithm = "lax"
    row = pick(problem, algorithm, platform)
    if not (row.convolve in (lax_conv.convolve, edged.convolve) and product == "convolve" and lax_conv.takes(geometry)):
        lhs, geometry = windows.crop(lhs, geometry)
    return row.function(product)(lhs, rhs, geometry, precision, dtype)  # pyright: ignore[reportOptionalCall]


# What an algorithm calls for its parts: a phase, or a slice of lower rank, is computed by the best of the table.
_inner = functools.partial(_compute, "convolve", part=True)
_inner_kernel_grad = functools.partial(_compute, "kernel_grad", part=True)

MOST_PATCHES = 1 << 21  # elements of one example's patches up to which a few examples are computed at a time

TABLE = (
    Row(
        "matmul",
        lambda p: matmul.applies(p.geometry) and undilated(p),
        lambda p: (
            not (p.real and (worth.few_taps_of_one(p) or worth.thin(p)))
            and not (p.real and (worth.rows_of_patches(p) or worth.few_patches(p)))
        ),
        "each input element meets one tap at most: one matrix product",
        convolve=matmul.convolve,
        kernel_grad=matmul.kernel_grad,
    ),
    Row(
        "spread",
        lambda p: p.product == "convolve" and matmul.applies_spread(p.geometry),
        lambda p: not (p.real and worth.thin(p)),
        "the input gradient of patches: one matrix product, spread back",
        convolve=matmul.convolve_spread,
    ),
    Row(
        "taps",
        lambda p: (
            undilated(p)
            and (
                taps.applies(p.geometry, p.channels, p.out)
                or (p.product == "convolve" and taps.applies_to_few(p.geometry, p.channels))
            )
        ),
        lambda p: p.inexact and (worth.one_channel(p) or worth.few_channels(p) or p.geometry.groups > 1),
        "few channels, or groups of one: one fused multiply-add a tap",
        convolve=taps.convolve,
        kernel_grad=taps.kernel_grad,
    ),
    Row(
        "joined",
        lambda p: joined.applies(p.geometry),
        worth.joined_wins,
        "axes along which the window is one place: joined to one, without a copy",
        convolve=functools.partial(joined.convolve, inner=_inner),
        kernel_grad=functools.partial(joined.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "interleaved",
        lambda p: interleaved.applies(p.geometry),
        worth.interleaved_wins,
        "a dilated window: dense ones over the images that interleave",
        convolve=functools.partial(interleaved.convolve, inner=_inner),
        kernel_grad=functools.partial(interleaved.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "subpixel",
        lambda p: p.product == "convolve" and subpixel.applies(p.geometry),
        worth_input_grad.subpixel_wins,
        "a dilated input and few outputs: all output phases as channels of one convolution",
        convolve=functools.partial(subpixel.convolve, inner=_inner),
    ),
    Row(
        "columns",
        lambda p: p.product == "convolve" and columns.applies(p.geometry),
        lambda p: p.real and worth_input_grad.folded_wins(p),
        "few output channels: one matrix product for all taps, then a fold",
        convolve=columns.convolve,
    ),
    Row(
        "two_sided",
        lambda p: p.product == "kernel_grad" and two_sided.applies(p.geometry),
        lambda p: plane_kernel_grad(p) == "two_sided" or (p.geometry.rank > 2 and shared_out(p)),
        "few channels on both sides: some taps beside those of x, the others beside those of g, one matrix product",
        kernel_grad=two_sided.kernel_grad,
    ),
    Row(
        "exchange",
        lambda p: p.product == "kernel_grad" and exchange.applies(p.geometry),
        lambda p: plane_kernel_grad(p) == "exchange",
        "few output channels: x and g change places, and the kernel is turned",
        kernel_grad=functools.partial(exchange.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "slices",
        lambda p: slices.applies(p.geometry),
        lambda p: p.real and (worth.planes(p) or worth.sliced_wins(p)),
        "three spatial axes, or few channels: convolutions of lower rank, side by side",
        convolve=functools.partial(slices.convolve, inner=_inner),
        kernel_grad=functools.partial(slices.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "phases",
        lambda p: p.product == "convolve" and phases.applies(p.geometry),
        worth_input_grad.phases_win,
        "a dilated input: one convolution an output phase, none over inserted zeros",
        convolve=functools.partial(phases.convolve, inner=_inner),
    ),
    Row(
        "lanes",
        lambda p: lanes.applies(p.geometry, p.channels, p.out),
        lambda p: p.inexact and worth.lanes_win(p),
        "small groups: a multiply-add a tap and channel, over the vector of a group's outputs",
        convolve=lanes.convolve,
        kernel_grad=lanes.kernel_grad,
    ),
    Row(
        "grouped",
        lambda p: grouped.applies(p.geometry),
        lambda p: (
            p.inexact and (undilated(p) or worth_input_grad.group_by_group(p)) and not worth.wide_groups_of_lines(p)
        ),
        "groups of some channels: one dense convolution a group, from cache",
        convolve=functools.partial(grouped.convolve, inner=_inner),
        kernel_grad=functools.partial(grouped.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "space_to_depth",
        lambda p: p.product == "kernel_grad" and space_to_depth.applies(p.geometry),
        blocks_win,
        "a stride along one axis: blocks of elements as channels, and none is gathered",
        kernel_grad=functools.partial(space_to_depth.kernel_grad, inner=_inner_kernel_grad),
    ),
    Row(
        "winograd",
        lambda p: jnp.issubdtype(p.dtype, jnp.inexact) and winograd.applies(p.geometry),
        lambda p: worth.winograd_convolves(p) if p.product == "convolve" else plane_kernel_grad(p) == "winograd",
        "3x3: fewer multiplications, as independent matrix products",
        convolve=winograd.convolve,
        kernel_grad=winograd.kernel_grad,
    ),
    Row(
        "shifts",
        lambda p: shifts.applies(p.geometry),
        lambda p: tap_by_tap(p) or plane_kernel_grad(p) == "shifts",
        "many channels, and taps that often see padding: one matrix product a tap",
        convolve=shifts.convolve,
        kernel_grad=shifts.kernel_grad,
    ),
    Row(
        "patches",
        lambda p: patches.applies(p.geometry),
        lambda p: few_along(p) or worth.few_of_volume(p) or plane_kernel_grad(p) == "patches",
        "few channels: every window's elements side by side, one matrix product",
        convolve=patches.convolve,
        kernel_grad=patches.kernel_grad,
    ),
    Row(
        "abreast",
        lambda p: abreast.applies(p.geometry),
        worth.abreast_wins,
        "images too narrow to fill all cores: several side by side as one",
        convolve=abreast.convolve,
    ),
    Row(
        "padded",
        lambda p: padded.applies(p.geometry, p.product),
        worth.padded_wins,
        "a kernel, or g, of more places than the input: padded first, or lax goes element by element",
        convolve=functools.partial(padded.product, inner=_inner),
        kernel_grad=functools.partial(padded.product, inner=_inner_kernel_grad),
    ),
    Row(
        "edged",
        lambda p: edged.applies(p.geometry),
        worth.edged_wins,
        "a plane without padding: with a row of zeros before it, XLA copies no patches",
        convolve=edged.convolve,
        kernel_grad=edged.kernel_grad,
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


def computing(problem: Problem, algorithm: str = "auto", platform: str = "cpu") -> tuple[Row, bool]:
    """The row that computes `problem`, and whether a product of complex operands is three of real ones by that row."""
    row = pick(problem, algorithm, platform)
    if platform != "cpu" or not jnp.issubdtype(problem.dtype, jnp.complexfloating) or row.name in ADDING:
        return row, False
    part = dataclasses.replace(problem, dtype=jnp.finfo(problem.dtype).dtype)
    return pick(part, algorithm, platform), True


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
        return Problem("convolve", batch, out, channels, windows.cropped(geometry.for_input_grad()), dtype)
    return Problem(
        "convolve" if product == "forward" else product, batch, channels, out, windows.cropped(geometry), dtype
    )


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
    compute = _of_real_ones if platform == "cpu" and jnp.issubdtype(total, jnp.complexfloating) else _compute
    return compute(product, lhs, rhs, geometry, precision, total, algorithm, platform).astype(dtype)


def _of_real_ones(
    product: str, lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any, dtype: Any, algorithm: str,
    platform: str,
) -> jax.Array:  # fmt: skip
    """A product of complex operands as three of real ones, as lax' convolution is: XLA's of complex ones takes twice.

    (a + bi) (p + qi) = (a + b) p - b (p + q) + ((a + b) p + a (q - p)) i. What adds up terms in a loop, of any dtype,
    does that of complex ones too.
    """
    problem = Problem(product, lhs.shape[0], lhs.shape[-1], rhs.shape[-1], windows.cropped(geometry), dtype)
    if 0 in (*lhs.shape, *rhs.shape) or not computing(problem, algorithm, platform)[1]:
        return _compute(product, lhs, rhs, geometry, precision, dtype, algorithm, platform)
    a, b, p, q = lax.real(lhs), lax.imag(lhs), lax.real(rhs), lax.imag(rhs)
    real = lambda lhs, rhs: _compute(product, lhs, rhs, geometry, precision, a.dtype, algorithm, platform)
    first = real(a + b, p)
    return lax.complex(first - real(b, p + q), first + real(a, q - p))


def _widened(lhs: jax.Array, rhs: jax.Array, dtype: Any, platform: str) -> tuple[jax.Array, jax.Array, Any]:
    """The operands as they are multiplied, and the dtype of the sums, for a result of `dtype`.

    float16 and bfloat16 are summed in float32. On a CPU the operands are widened too: XLA does the same for a
    convolution, and where a core has no such multiplications its product of bfloat16 takes twice as long.
    """
    operand, halves = jnp.promote_types(lhs.dtype, rhs.dtype), (jnp.bfloat16, jnp.float16)
    result = jnp.promote_types(operand, dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype
    total = jnp.dtype(jnp.float32) if result in halves else result
    if platform == "cpu" and total == jnp.float32 and (operand in halves or result in halves):
        operand = total
    return lhs.astype(operand), rhs.astype(operand), total


def _each(run: Callable[..., jax.Array], lhs: jax.Array, rhs: jax.Array, examples: bool) -> jax.Array:
    """`run` on the operands, or on each pair of entries of their first axis, one after the other."""
    return lax.map(lambda pair: run(*pair), (lhs, rhs)) if examples else run(lhs, rhs)


def _computed_once(array: jax.Array, examples: bool, platform: str) -> jax.Array:
    """An operand as an array in memory: XLA:CPU would compute what gives it again in each place that reads it.

    A normalisation and relu in front of a layer, say, once for each tap, or part of the batch, that a gradient takes of
    them. Of forward products those alone that read x as it is: in front of others a padding, say, may be computed with
    what gives x, which is one pass over memory less where nothing else reads it.
    """
    if platform != "cpu":
        return array
    if not examples:
        return windows.in_memory(array)
    whole = array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])  # as it mostly was before vmap split it
    return windows.in_memory(whole).reshape(array.shape)


def convolve(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, algorithm: tuple[str, str, str],
    examples: bool, platform: str, which: int = 0,
) -> jax.Array:  # fmt: skip
    """The forward product; `which` says whose name in `algorithm` rules (an input gradient is a convolution too)."""
    if examples and platform != "cpu":
        return _as_groups(x, w, geometry, precision, dtype, platform)
    if which == 0 and geometry.taps == 1 and geometry.input == geometry.output:
        x = _computed_once(x, examples, platform)
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
    g = _computed_once(g, examples, platform)
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
    x, g = (_computed_once(array, examples, platform) for array in (x, g))
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
    if x.size == 0:  # all of it was cropped
        return jnp.zeros((examples, *geometry.window, x.shape[-1] // geometry.groups, g.shape[-1]), dtype)
    x = x.reshape(examples, batch, *x.shape[1:])
    fewer = shared_out_of_each(Problem("kernel_grad", batch, x.shape[-1], g.shape[-1], geometry, dtype))
    grads = two_sided.kernel_grads if fewer else patches.kernel_grads
    return grads(x, g, geometry, precision, total).astype(dtype)


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
