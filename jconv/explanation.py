"""explain: which algorithm computes each of the three products of a convolution, why, and which others could."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jconv import _jax, convolution, measured
from jconv.algorithms import choose
from jconv.algorithms.views import wide

# For each operator: its pass, and the product of convolution that this pass is.
PASSES = {
    "conv": (("forward", "forward"), ("kernel gradient", "kernel_grad"), ("input gradient", "input_grad")),
    "conv_transpose": (("forward", "input_grad"), ("kernel gradient", "kernel_grad"), ("input gradient", "forward")),
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One product: the algorithm that computes it, and why; the names and reasons of the others that apply."""

    name: str  # "forward", "kernel gradient" or "input gradient"
    product: str  # the product of convolution that this is, one of choose.PRODUCTS
    algorithm: str
    reason: str
    flops: int
    others: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The choice for each product of a layer on a platform; str() is a small table."""

    layer: str
    platform: str
    choices: tuple[Choice, ...]

    def __getitem__(self, name: str) -> Choice:
        for choice in self.choices:
            if name in (choice.name, choice.product):
                return choice
        raise KeyError(name)

    def __str__(self) -> str:
        lines = [f"{self.layer}, on {self.platform}", f"{'product':<16} {'algorithm':<9} {'Mflop':>9}  why"]
        for c in self.choices:
            lines.append(f"{c.name:<16} {c.algorithm:<9} {c.flops / 1e6:>9,.1f}  {c.reason}")
            others = ", ".join(name for name, _ in c.others) or "no other applies"
            lines.append(f"{'':<37} {'also: ' if c.others else ''}{others}")
        return "\n".join(lines)


def explain(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    strides: Any = 1,
    padding: Any = "VALID",
    input_dilation: Any = 1,
    kernel_dilation: Any = 1,
    feature_group_count: int = 1,
    data_format: str = "channels_last",
    precision: Any = None,
    preferred_element_type: Any = None,
    algorithm: Any = "auto",
    platform: str | None = None,
) -> Explanation:
    """How conv with these arguments computes its three products, and why. Nothing is computed.

    Args:
      x: as in conv, and so are all others but platform; an array or a jax.ShapeDtypeStruct.
      kernel: as in conv; an array or a jax.ShapeDtypeStruct.
      bias: as in conv.
      strides: as in conv, and so on.
      platform: "cpu", "gpu" or "tpu"; None: the one that jax runs on.

    Returns:
      An Explanation: print it, or ask explanation["kernel_grad"].algorithm.

    Raises:
      ValueError, TypeError: as conv.

    Example:
      >>> depthwise = explain(
      ...     jnp.ones((8, 56, 56, 128)), jnp.ones((3, 3, 1, 128)), feature_group_count=128, platform="cpu"
      ... )
      >>> depthwise["kernel_grad"].algorithm
      'taps'
    """
    arguments = [x, kernel] if bias is None else [x, kernel, bias]
    layer = lambda x, kernel, bias=None: convolution.conv(
        x, kernel, bias, strides=strides, padding=padding, input_dilation=input_dilation,
        kernel_dilation=kernel_dilation, feature_group_count=feature_group_count, data_format=data_format,
        precision=precision, preferred_element_type=preferred_element_type, algorithm=algorithm,
    )  # fmt: skip
    return explain_layer(layer, *arguments, platform=platform)


def explain_layer(fun: Callable[..., Any], *arguments: Any, platform: str | None = None) -> Explanation:
    """As explain, of the one conv or conv_transpose that fun(*arguments) calls.

    Raises:
      ValueError: it calls none, or several.
    """
    found = list(_operators(jax.make_jaxpr(fun)(*arguments).jaxpr))
    if len(found) != 1:
        raise ValueError(f"explain: fun must call one convolution of jconv, it calls {len(found)}")
    return _explanation(found[0], platform or jax.default_backend())


def _operators(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        if equation.primitive.name in PASSES and "plan" in equation.params:
            yield equation
        for inner in _jax.jaxprs_in_params(equation.params):
            yield from _operators(inner)


def _explanation(equation: Any, platform: str) -> Explanation:
    """What the lowering of this operator will choose: the same table, asked the same questions."""
    plan, (lhs, kernel) = equation.params["plan"], (var.aval for var in equation.invars[:2])
    geometry = plan.geometry
    batch, channels, out = lhs.shape[0], kernel.shape[-2] * geometry.groups, kernel.shape[-1]
    empty = 0 in lhs.shape or 0 in kernel.shape or 0 in geometry.output
    choices = []
    for name, product in PASSES[equation.primitive.name]:
        dtype = plan.result if name == "forward" else plan.operand
        problem = choose.product_problem(product, geometry, batch, channels, out, wide(dtype))
        forced = plan.how.algorithm[choose.PRODUCTS.index(product)]
        asked = _asked(equation, name, product, "cpu" if platform == "cpu" else "other")
        row, thrice = choose.computing(problem, "lax" if empty else asked, "cpu" if platform == "cpu" else "other")
        others = tuple((other.name, other.reason) for other in choose.able(problem) if other is not row)
        flops = choose.flops(geometry, batch, channels, out)
        reason = row.reason
        if forced != "auto" and not empty:
            reason = f"algorithm={forced!r} was asked for"
        elif asked != "auto" and not empty:
            reason = "measured: the tuning that is in use says so"
        elif platform != "cpu":
            reason = "one jax.lax convolution: the vendor's library behind it knows best"
        if thrice and not empty:
            reason = f"{reason}; three products of real numbers make the complex one"
        choices.append(Choice(name, product, row.name, reason, flops, others))
    return Explanation(_title(equation.primitive.name, geometry, lhs, channels, out), platform, tuple(choices))


def _asked(equation: Any, name: str, product: str, platform: str) -> str:
    """The name that this pass of an operator asks for: the user's, or that of a tuning in use, or "auto"."""
    plan, (given, kernel, *bias) = equation.params["plan"], (var.aval for var in equation.invars)
    first, last = (given.shape, jnp.dtype(plan.operand)), (equation.outvars[0].aval.shape, jnp.dtype(plan.result))
    x, g = (first, last) if equation.primitive.name == "conv" else (last, first)
    w = (kernel.shape, jnp.dtype(plan.operand))
    pair = {"forward": (x, w), "kernel_grad": (x, g), "input_grad": (g, w)}[product]
    result = plan.operand if name != "forward" else wide(plan.result) if bias else plan.result
    lhs, rhs = (jax.ShapeDtypeStruct(*each) for each in pair)
    number, dtype = choose.PRODUCTS.index(product), jnp.dtype(result)
    return measured.algorithms(product, number, lhs, rhs, plan.geometry, plan.how, dtype, False, platform)[number]


def _title(op: str, geometry: Any, lhs: Any, channels: int, out: int) -> str:
    each = lambda values: "x".join(map(str, values))
    options = [f"k{each(geometry.window)}", f"s{each(axis.stride for axis in geometry.axes)}"]
    if geometry.groups > 1:
        options.append(f"g{geometry.groups}")
    return f"{op} {each(lhs.shape)} -> {out if op == 'conv' else channels} {' '.join(options)}, {lhs.dtype}"
