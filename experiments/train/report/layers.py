"""What every convolution of a model is given and gives, without the model's help.

The model is traced, and the program that comes out is run one operation at a time, into calls of jit and checkpoint;
each jconv convolution met on the way leaves its kernel and its output. One inside a loop is not seen.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from experiments.train.nonfinite import bound

# Calls that run their body once, and the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr", "closed_call": "call_jaxpr"}
# What checkpoint becomes with JAX_REMAT3: a call, and the parameter whose attribute `jaxpr` is the body.
HELD = ("call_hi_primitive", "_prim")
CONVOLUTION = "conv"  # the primitive that jconv.conv binds


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution: kernel (*window, in // groups, out), output (batch, *space, out)."""

    name: str
    kernel: np.ndarray
    output: np.ndarray


def convolutions(apply: Callable[[Any, Any], Any], variables: Any, images: Any) -> list[Layer]:
    """Every convolution of apply(variables, images), in the order of the program.

    A layer has the name of the variable that is its kernel, where one is, unchanged; else its number.
    """
    traced = jax.make_jaxpr(apply)(variables, images)

    @jax.jit
    def run(*arrays: Any) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []
        _run(traced.jaxpr, traced.consts, arrays, found)
        return found

    found = run(*jax.tree.leaves((variables, images)))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    kernels = [np.asarray(kernel) for kernel, _ in found]
    names = _names(kernels, named)
    return [Layer(name, kernel, np.asarray(output)) for name, kernel, (_, output) in zip(names, kernels, found)]


def _names(kernels: list[np.ndarray], named: Mapping[str, np.ndarray]) -> list[str]:
    """Of each kernel the variable that it is; among equal ones, as before any training, the first that is left."""
    names, used = [], set()
    for number, kernel in enumerate(kernels, start=1):
        alike = [
            n for n, a in named.items() if a.shape == kernel.shape and np.array_equal(a.astype(kernel.dtype), kernel)
        ]
        left = [name for name in alike if name not in used] or alike
        used.update(left[:1])
        name = left[0] if left else f"convolution {number}"
        names.append(name.removeprefix("params/").removeprefix("state/").removesuffix("/kernel"))
    return names


def _run(jaxpr: Jaxpr, consts: Any, arguments: Any, found: list[tuple[Any, Any]]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        body = _body(equation)
        if isinstance(body, ClosedJaxpr):
            results = _run(body.jaxpr, body.consts, operands, found)
        elif isinstance(body, Jaxpr):
            results = _run(body, (), operands, found)
        else:
            results = bound(equation, operands)
        if equation.primitive.name == CONVOLUTION:
            found.append((operands[1], results[0]))
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _body(equation: JaxprEqn) -> Any:
    """The jaxpr that the equation runs once; None, or what is no jaxpr, where it is no such call."""
    name = equation.primitive.name
    if name == HELD[0]:
        return getattr(equation.params[HELD[1]], "jaxpr", None)
    return equation.params.get(CALLS.get(name, ""))


def spread(layers: list[Layer], count: int) -> list[Layer]:
    """At most `count` of the layers that still have a picture as their output, evenly from the first to the last."""
    wide = [layer for layer in layers if layer.output.ndim == 4 and math.prod(layer.output.shape[1:3]) > 1]
    if len(wide) <= count:
        return wide
    return [wide[round(place)] for place in np.linspace(0, len(wide) - 1, count)]
