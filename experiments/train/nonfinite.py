"""Which layer it was: the first place in a step where a number was no longer finite.

The parameters are looked at first, then the loss is computed operation by operation, each in the jax.named_scope of
its layer, until one makes a value that is not finite of values that are; last the gradients. Only a run that has
failed does this.
"""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.train import step as steps
from experiments.train.settings import Settings


def where(
    settings: Settings, model: types.ModuleType, rules: str, state: steps.State, batch: steps.Batch, mean: Any, std: Any
) -> str:
    """One phrase that names the layer in which a step from `state` on `batch` is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.state)):
        if not _finite(leaf):
            return f"layer {_layer(path[1:])}: its {steps.path_of(path[-1:])} is not finite"
    images, labels = steps.prepare(settings, state, batch, mean, std)
    loss = steps.by_rules(steps.make_loss(settings, model), rules)
    scope = first_scope(loss, state.params, state.state, images, labels)
    if scope is not None:
        return f"layer {scope}: its output is not finite"
    grads = steps.make_gradients(settings, model, rules)(state.params, state.state, images, labels)[-1]
    wrong = [path for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not _finite(leaf)]
    if wrong:
        # The backward pass goes from the last layer to the first and carries what is not finite along.
        return f"layer {_layer(wrong[-1])}: the gradient of its {steps.path_of(wrong[-1][-1:])} is not finite"
    return "layer unknown: every value is finite, only the gradient's norm overflows"


def first_scope(fun: Callable[..., Any], *args: Any) -> str | None:
    """The named scope of the first operation in fun(*args) whose result is not finite though its operands are."""
    closed = jax.make_jaxpr(fun)(*args)
    values = dict(zip(closed.jaxpr.constvars, closed.consts)) | dict(zip(closed.jaxpr.invars, jax.tree.leaves(args)))
    for equation in closed.jaxpr.eqns:
        operands = [atom.val if hasattr(atom, "val") else values[atom] for atom in equation.invars]  # pyright: ignore
        results = bound(equation, operands)
        if all(map(_finite, operands)) and not all(map(_finite, results)):
            return str(equation.source_info.name_stack) or equation.primitive.name
        values |= dict(zip(equation.outvars, results))
    return None


def bound(equation: Any, operands: list[Any]) -> list[Any]:
    """The results of an equation of a jaxpr for these operands."""
    params: Any = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair before jax 0.10
    results = equation.primitive.bind(*functions, *operands, **params)
    return results if equation.primitive.multiple_results else [results]


def _finite(leaf: Any) -> bool:
    array = jnp.asarray(leaf)
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(np.all(jnp.isfinite(array)))


def _layer(path: Any) -> str:
    return steps.path_of(path[:-1])
