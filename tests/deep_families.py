"""One random geometry of each operator family: what jconv computes of it, and what the oracle says.

A family is a function of a Draw and a dtype; equal draws give equal geometries and numbers, so that one geometry can be
run in several dtypes. It returns the case, the function to run with its arrays, and a Want for each result. How far a
result may be from the oracle's, which is computed in float64 from the same arrays:
  float64, complex128: 1e-10 of the largest sum of absolute values;
  float32, float16, bfloat16, complex64: tests.cases.tolerance, the rounding of a sum of `terms` products in float32 and
    one rounding to dtype; where x is padded with values of its own, the gradients of the padded x are rounded to dtype
    before they are added up;
  whole numbers whose sums are exact in float32, and integers: not at all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jconv
from jconv import reference
from tests.cases import Case, draw_case, spread
from tests.pool_cases import MODES, Pool, draw_pool

LOW = ("float32", "bfloat16", "float16")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int8", "uint8", "int16", "int32")


class Draw:
    """Random integers and choices: those of geometry `index` under `seed`, whatever was drawn before."""

    def __init__(self, seed: int, index: int):
        self.rng = np.random.default_rng((seed, index))
        self.data_seed = int(self.rng.integers(2**31))

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def among(self, options: Sequence[Any]) -> Any:
        return options[self.rng.integers(len(options))]


@dataclasses.dataclass(frozen=True)
class Want:
    """The oracle's value; `terms` products are summed for an element, `size` is the largest sum of their sizes."""

    value: np.ndarray
    terms: int = 0  # 0: exact, rounded once
    size: float = 0.0
    rounded: bool = False  # summands are rounded to dtype first
    dtype: Any = None  # if it is not that of the arrays


@dataclasses.dataclass(frozen=True)
class Trial:
    case: Any
    run: Callable[..., dict[str, Any]]
    arrays: Sequence[np.ndarray]
    want: dict[str, Want]


def differentiable(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, jnp.integer)


def sizes(*arrays: np.ndarray) -> list[np.ndarray]:
    """The absolute values, in float64."""
    return [np.abs(a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)) for a in arrays]


def summed(f: Callable[..., np.ndarray], arrays: Sequence[np.ndarray], terms: int, rounded: bool = False) -> Want:
    """What f, a sum of `terms` products, must be."""
    if not differentiable(arrays[0].dtype):
        return Want(f(*arrays))
    return Want(f(*arrays), max(1, terms), float(f(*sizes(*arrays)).max(initial=0)), rounded)


# The convolutions. One number three ways is checked where the sums are those of float64.


def _triad(case: Case, x: Any, kernel: Any, bias: Any, g: Any) -> dict[str, Want]:
    taps, places = math.prod(case.window), g.size // case.channels[1]
    inner, outer = (channels // case.groups for channels in case.channels)
    return {
        "y": summed(case.conv, (x, kernel, bias), taps * inner + 1),
        "dx": summed(case.input_grad, (g, kernel), taps * outer, rounded=case.padding in MODES),
        "dkernel": summed(case.kernel_grad, (x, g), places),
        "dbias": summed(case.bias_grad, (g,), places),
    }


def conv(draw: Draw, dtype: Any) -> Trial:
    """conv and its three gradients."""
    case = draw_case(draw.between, draw.among)
    arrays = case.draw(dtype, draw.data_seed)

    def run(x: Any, kernel: Any, bias: Any, g: Any) -> dict[str, Any]:
        f = functools.partial(jconv.conv, **case.options)
        if not differentiable(x.dtype):
            return {"y": f(x, kernel, bias)}
        y, pull = jax.vjp(f, x, kernel, bias)
        return dict(zip(("y", "dx", "dkernel", "dbias"), (y, *pull(g))))

    return Trial(case, run, arrays, _triad(case, *arrays))


def gradients(draw: Draw, dtype: Any) -> Trial:
    """conv_kernel_grad, conv_input_grad and conv_bias_grad, each with its own rule."""
    case = draw_case(draw.between, draw.among)
    x, kernel, bias, g = case.draw(dtype, draw.data_seed)
    u, v, _, _ = case.draw(dtype, draw.data_seed + 1)  # cotangents, like x and like the kernel
    has_bias_grad = case.data_format == "channels_last" or case.batch is not None

    def run(x: Any, kernel: Any, g: Any, u: Any, v: Any) -> dict[str, Any]:
        of_kernel = functools.partial(jconv.conv_kernel_grad, kernel_shape=case.kernel_shape, **case.options)
        of_input = functools.partial(jconv.conv_input_grad, input_shape=case.x_shape, **case.options)
        got = {"dbias": jconv.conv_bias_grad(g, data_format=case.data_format)} if has_bias_grad else {}
        if not differentiable(x.dtype):
            return got | {"dkernel": of_kernel(x, g), "dx": of_input(g, kernel)}
        dkernel, pull_kernel = jax.vjp(of_kernel, x, g)
        dx, pull_input = jax.vjp(of_input, g, kernel)
        got |= dict(zip(("dkernel", "dkernel's dx", "dkernel's dg"), (dkernel, *pull_kernel(v))))
        return got | dict(zip(("dx", "dx's dg", "dx's dkernel"), (dx, *pull_input(u))))

    zero = np.zeros_like(bias)
    want, by_kernel, by_input = (
        _triad(case, *a) for a in ((x, kernel, zero, g), (x, v, zero, g), (u, kernel, zero, g))
    )
    want |= {"dkernel's dx": by_kernel["dx"], "dkernel's dg": by_kernel["y"]}
    want |= {"dx's dg": by_input["y"], "dx's dkernel": by_input["dkernel"]}
    return Trial(case, run, (x, kernel, g, u, v), want)


def conv_transpose(draw: Draw, dtype: Any) -> Trial:
    """conv_transpose and its three gradients: conv and its gradients, read backwards."""
    case = draw_case(draw.between, draw.among)
    while any(e != 1 for e in spread(case.input_dilation, case.rank)):
        case = draw_case(draw.between, draw.among)
    _, kernel, _, y = case.draw(dtype, draw.data_seed)
    longer = dataclasses.replace(case, space=case.to_last(case.conv_transpose(y, kernel)).shape[1:-1])  # "SAME"
    u = longer.draw(dtype, draw.data_seed + 1)[0]
    bias = u.reshape(-1)[: case.channels[0]] if u.size else np.ones(case.channels[0], u.dtype)

    def run(y: Any, kernel: Any, bias: Any, u: Any) -> dict[str, Any]:
        f = functools.partial(jconv.conv_transpose, **case.transposed)
        if not differentiable(y.dtype):
            return {"x": f(y, kernel, bias)}
        x, pull = jax.vjp(f, y, kernel, bias)
        return dict(zip(("x", "dy", "dkernel", "dbias"), (x, *pull(u))))

    taps, places = math.prod(case.window), y.size // case.channels[1]
    inner, outer = (channels // case.groups for channels in case.channels)
    want = {
        "x": summed(case.conv_transpose, (y, kernel, bias), taps * outer + 1),
        "dy": summed(longer.conv, (u, kernel), taps * inner),
        "dkernel": summed(longer.kernel_grad, (u, y), places),
        "dbias": summed(case.bias_grad, (u,), u.size // case.channels[0]),
    }
    return Trial(case, run, (y, kernel, bias, u), want)


# The poolings.


def _arrays(case: Pool, draw: Draw, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """x with many ties or all different, and whole g, so that sums of it are exact."""
    x = case.draw(dtype, draw.data_seed, whole=not differentiable(dtype) or draw.among([True, False]))
    return x, case.draw(dtype, draw.data_seed + 1, case.y_shape)


def _pulled(f: Callable[[Any], Any], x: Any, g: Any) -> dict[str, Any]:
    """y = f(x), and dx where x has a gradient."""
    if not differentiable(x.dtype):
        return {"y": f(x)}
    y, pull = jax.vjp(f, x)
    return {"y": y, "dx": pull(g.astype(y.dtype))[0]}


def extreme_pool(draw: Draw, dtype: Any) -> Trial:
    """max_pool or min_pool, with its indices."""
    name = draw.among(["max_pool", "min_pool"])
    case = draw_pool(draw.between, draw.among)
    x, g = _arrays(case, draw, dtype)
    options = case.options | {"data_format": case.data_format}
    f = functools.partial(getattr(jconv, name), **options)

    def run(x: Any, g: Any) -> dict[str, Any]:
        got = _pulled(f, x, g)
        return got if case.padding in MODES else got | {"indices": f(x, return_indices=True)[1]}

    last = case.to_last(x)
    y, indices = getattr(reference, name)(last, **case.options, return_indices=True)
    dx = getattr(reference, f"{name}_grad")(last, case.to_last(g), **case.options)
    want = {"y": Want(case.out(y)), "dx": Want(case.out(dx)), "indices": Want(case.out(indices), dtype=np.int32)}
    return Trial((name, case), run, (x, g), want)


def linear_pool(draw: Draw, dtype: Any) -> Trial:
    """sum_pool, or avg_pool with any divisor."""
    name, more = draw.among([
        ("sum_pool", {}),
        ("avg_pool", {}),
        ("avg_pool", {"count_include_pad": False}),
        ("avg_pool", {"divisor_override": draw.among([-3, 5])}),
    ])  # fmt: skip
    case = draw_pool(draw.between, draw.among)
    x, g = case.draw(dtype, draw.data_seed), case.draw(dtype, draw.data_seed + 1, case.y_shape)
    f = functools.partial(getattr(jconv, name), **case.options, **more, data_format=case.data_format)
    last, around = case.to_last(x), case.to_last(g)
    y = getattr(reference, name)(last, **case.options, **more)
    dx = getattr(reference, f"{name}_grad")(around, last.shape, **case.options, **more)
    if name == "sum_pool":
        want = {"y": Want(case.out(y)), "dx": Want(case.out(dx))}
    else:
        kind = None if differentiable(dtype) else np.float32
        size = 3.0 * case.terms  # whole numbers up to 3
        want = {
            "y": Want(case.out(y), case.terms, 3.0, dtype=kind),
            "dx": Want(case.out(dx), case.terms, size, rounded=case.padding in MODES),
        }
    return Trial((name, more, case), functools.partial(_pulled, f), (x, g), want)


def lp_pool(draw: Draw, dtype: Any) -> Trial:
    """lp_pool; each of its powers and roots is good to some units in the last place: 16 terms more for each one."""
    p = draw.among([1, 2, 3.5, math.inf])
    case = draw_pool(draw.between, draw.among)
    x, g = _arrays(case, draw, dtype)
    f = functools.partial(jconv.lp_pool, p=p, **case.options, data_format=case.data_format)
    last, around = case.to_last(x), case.to_last(g)
    y = reference.lp_pool(last, p, **case.options)
    dx = reference.lp_pool_grad(last, p, around, **case.options)
    kind, terms = None if differentiable(dtype) else np.float32, 16 * case.terms
    size = float(reference.lp_pool_grad(*sizes(last), p, *sizes(around), **case.options).max(initial=0))
    want = {
        "y": Want(case.out(y), terms, dtype=kind),
        "dx": Want(case.out(dx), terms, size, rounded=case.padding in MODES),
    }
    return Trial((f"lp_pool {p}", case), functools.partial(_pulled, f), (x, g), want)


def adaptive_pool(draw: Draw, dtype: Any) -> Trial:
    """adaptive_max_pool with its indices, adaptive_avg_pool; or the global pools."""
    rank = draw.between(1, 3)
    space = tuple(draw.between(1, 9 - 2 * rank) for _ in range(rank))
    output = tuple(draw.between(1, 10 - 2 * rank) for _ in range(rank))
    whole = draw.among([False, False, True])
    batch, data_format = draw.among([2, 1, 0, None]), draw.among(["channels_last", "channels_first"])
    output, batch = ((1,) * rank, batch or 2) if whole else (output, batch)
    case = Pool(space, space, batch=batch, channels=draw.between(1, 3), data_format=data_format)
    largest, mean = (jconv.global_max_pool, jconv.global_avg_pool) if whole else (
        functools.partial(jconv.adaptive_max_pool, output_shape=output),
        functools.partial(jconv.adaptive_avg_pool, output_shape=output),
    )  # fmt: skip
    x, g = case.draw(dtype, draw.data_seed), case.draw(dtype, draw.data_seed + 1, _resized(case, output))
    real = not jnp.issubdtype(dtype, jnp.complexfloating)

    def run(x: Any, g: Any) -> dict[str, Any]:
        got = {f"mean's {k}": v for k, v in _pulled(functools.partial(mean, data_format=data_format), x, g).items()}
        if not real:
            return got
        got |= _pulled(functools.partial(largest, data_format=data_format), x, g)
        return got if whole else got | {"indices": largest(x, return_indices=True, data_format=data_format)[1]}

    last, around = case.to_last(x), case.to_last(g)
    average, terms = reference.adaptive_avg_pool(last, output), math.prod(space)
    want = {
        "mean's y": Want(case.out(average), terms, 3.0, dtype=None if differentiable(dtype) else np.float32),
        "mean's dx": Want(case.out(reference.adaptive_avg_pool_grad(around, last.shape)), g.size, 3.0 * math.prod(output)),
    }  # fmt: skip
    if real:
        y, indices = reference.adaptive_max_pool(last, output, return_indices=True)
        dx = reference.adaptive_max_pool_grad(last, around)
        want |= {"y": Want(case.out(y)), "dx": Want(case.out(dx)), "indices": Want(case.out(indices), dtype=np.int32)}
    return Trial(("global" if whole else "adaptive", space, output, case.x_shape, data_format), run, (x, g), want)


def _resized(case: Pool, space: tuple[int, ...]) -> tuple[int, ...]:
    return dataclasses.replace(case, space=space).x_shape


def unpool(draw: Draw, dtype: Any) -> Trial:
    """max_unpool of what max_pool gives."""
    case = draw_pool(draw.between, draw.among)
    while case.padding in MODES:
        case = draw_pool(draw.between, draw.among)
    x, _ = _arrays(case, draw, dtype)
    y, indices = reference.max_pool(case.to_last(x), **case.options, return_indices=True)
    y, g = np.where(indices < 0, 0, y), case.draw(dtype, draw.data_seed + 1)
    f = functools.partial(jconv.max_unpool, output_shape=case.space, data_format=case.data_format)
    run = lambda y, indices, g: _pulled(lambda y: f(y, indices), y, g)
    x, dy = reference.max_unpool(y, indices, case.space), reference.max_unpool_grad(case.to_last(g), indices)
    arrays = case.out(y).astype(dtype), case.out(indices).astype(np.int32), g
    return Trial(case, run, arrays, {"y": Want(case.out(x)), "dx": Want(case.out(dy))})


def patches(draw: Draw, dtype: Any) -> Trial:
    """unfold and fold, each with its gradient."""
    case = dataclasses.replace(draw_pool(draw.between, draw.among), ceil_mode=False)
    x = case.draw(dtype, draw.data_seed)
    columns = reference.unfold(case.to_last(x), **case.patches)
    g = case.draw(dtype, draw.data_seed + 1, case.out(columns).shape)
    options = case.patches | {"data_format": case.data_format}
    unfold = functools.partial(jconv.unfold, **options)
    fold = functools.partial(jconv.fold, output_shape=case.space, **options)

    def run(x: Any, g: Any) -> dict[str, Any]:
        got = {f"unfold's {name}": value for name, value in _pulled(unfold, x, g).items()}
        return got | {f"fold's {name}": value for name, value in _pulled(fold, g, x).items()}

    rows, back = Want(case.out(columns)), Want(case.out(reference.fold(case.to_last(g), case.space, **case.patches)))
    want = {"unfold's y": rows, "unfold's dx": back, "fold's y": back, "fold's dx": rows}
    return Trial(case, run, (x, g), want)


# Each with the dtypes that it is run in, in turn, beside float64.
FAMILIES: dict[str, tuple[Callable[[Draw, Any], Trial], tuple[str, ...]]] = {
    "conv": (conv, LOW + COMPLEX + INTEGERS),
    "extreme_pool": (extreme_pool, LOW + INTEGERS),
    "gradients": (gradients, LOW + COMPLEX + INTEGERS),
    "linear_pool": (linear_pool, LOW + COMPLEX + INTEGERS),
    "conv_transpose": (conv_transpose, LOW + COMPLEX + INTEGERS),
    "lp_pool": (lp_pool, LOW + INTEGERS),
    "adaptive_pool": (adaptive_pool, LOW + COMPLEX + INTEGERS),
    "patches": (patches, LOW + COMPLEX + INTEGERS),
    "unpool": (unpool, LOW + INTEGERS),
}
