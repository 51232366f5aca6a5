"""A public operator: one primitive in front of a hand-written rule, so that the rule works under every transformation.

A rule is a jax.custom_vjp function, with its forward and backward functions. Alone it has two gaps: under vmap its
backward pass runs once an example even where the kernel is shared (jax-ml/jax#34639), and forward mode is closed to it.
So a public function binds a primitive that
    - computes what the rule computes;
    - under vmap folds the mapped axis into the batch where it can, and else is the vmap of the products;
    - under differentiation runs the rule's own forward function, and a tangent map that is linear: a second primitive,
    whose
      value is the rule's `tangent` (forward mode), and whose transpose is the rule's own backward function (reverse
      mode).
What jax.grad runs is therefore the forward and the backward function that stand in the rule, whatever is around it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from jconv import _jax


@dataclasses.dataclass(frozen=True)
class Rule:
    """A hand-written rule. `plan` is static and hashable; arrays come in the order of the operator's operands.

    rule(plan, *arrays) -> result: the jax.custom_vjp function.
    fwd(plan, *primals) -> (result, residuals): each primal has .value and .perturbed, as with symbolic_zeros=True.
    bwd(plan, residuals, g) -> one cotangent an operand, None where it was not perturbed.
    tangent(plan, residuals, shape, *tangents) -> the tangent of the result, which has that shape; a tangent is None
    where the
      operand was not perturbed.
    shared: operands that all entries of a batch share (a kernel, a bias); the others have the batch in front.
    """

    name: str
    rule: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    tangent: Callable[..., Any]
    shared: tuple[int, ...] = ()
    folds: bool = True  # whether a vmap over what is not shared is a larger batch


def operator(rule: Rule) -> Callable[..., Any]:
    """The function operator(plan, *arrays) -> result that binds the rule's primitive. One result, an array."""
    call, tangent = _jax.Primitive(rule.name), _jax.Primitive(f"{rule.name}_tangent")
    _define_call(rule, call, tangent)
    _define_tangent(rule, tangent)

    def bind(plan: Hashable, *arrays: Any) -> Any:
        arrays = tuple(a for a in arrays if a is not None)
        return call.bind(*_jax.vary_alike(*arrays), plan=plan)

    return bind


def _define_call(rule: Rule, call: Any, tangent: Any) -> None:
    def compute(*arrays: Any, plan: Any, platform: str = "") -> Any:
        del platform
        return rule.rule(plan, *arrays)

    @functools.lru_cache(maxsize=4096)
    def form(plan: Any) -> Any:
        return functools.partial(compute, plan=plan)

    def abstract(*avals: Any, plan: Any) -> Any:
        return _jax.outline(form(plan), avals)

    def jvp(primals: Any, tangents: Any, *, plan: Any) -> Any:
        perturbed = [type(t) is not _jax.Zero for t in tangents]
        result, residuals = rule.fwd(plan, *map(CustomVJPPrimal, primals, perturbed))
        if not jnp.issubdtype(result.dtype, jnp.inexact):
            return result, _jax.zero_tangent(result)
        leaves, tree = jax.tree.flatten(residuals)
        given = [t for t in tangents if type(t) is not _jax.Zero]
        operands = _jax.vary_alike(*leaves, *given)
        return result, tangent.bind(*operands, plan=plan, tree=tree, perturbed=tuple(perturbed), shape=result.shape)

    def batch(arrays: Any, dims: Any, *, plan: Any) -> Any:
        mapped = [d is not None for d in dims]
        if not rule.folds or any(mapped[i] for i in rule.shared if i < len(mapped)):
            return jax.vmap(functools.partial(inspect.unwrap(rule.rule), plan), in_axes=dims)(*arrays), 0
        size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
        folded, batch_size = [], None
        for i, (array, dim) in enumerate(zip(arrays, dims, strict=True)):
            if i in rule.shared:
                folded.append(array)
                continue
            array = jnp.moveaxis(array, dim, 0) if dim is not None else jnp.broadcast_to(array, (size, *array.shape))
            batch_size = array.shape[1]
            folded.append(array.reshape(size * batch_size, *array.shape[2:]))
        result = call.bind(*folded, plan=plan)
        return result.reshape(size, batch_size, *result.shape[1:]), 0

    call.def_abstract_eval(abstract)
    _jax.define(call, compute)
    _jax.set_jvp(call, jvp)
    _jax.set_batching(call, batch)


def _define_tangent(rule: Rule, primitive: Any) -> None:
    def compute(*arrays: Any, plan: Any, tree: Any, perturbed: Any, shape: Any, platform: str = "") -> Any:
        del platform
        residuals = jax.tree.unflatten(tree, arrays[: tree.num_leaves])
        given = iter(arrays[tree.num_leaves :])
        return rule.tangent(plan, residuals, shape, *(next(given) if p else None for p in perturbed))

    @functools.lru_cache(maxsize=4096)
    def form(**params: Any) -> Any:
        return functools.partial(compute, **params)

    def abstract(*avals: Any, **params: Any) -> Any:
        return _jax.outline(form(**params), avals)

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        moving = [i for i, t in enumerate(tangents) if type(t) is not _jax.Zero]

        def along(*some: Any) -> Any:
            arrays = list(primals)
            for i, value in zip(moving, some, strict=True):
                arrays[i] = value
            return compute(*arrays, **params)

        return jax.jvp(along, [primals[i] for i in moving], [tangents[i] for i in moving])

    def batch(arrays: Any, dims: Any, **params: Any) -> Any:
        return jax.vmap(form(**params), in_axes=dims)(*arrays), 0

    def transpose(ct: Any, *arrays: Any, plan: Any, tree: Any, perturbed: tuple[bool, ...], shape: Any) -> Any:
        del shape
        leaves, given = arrays[: tree.num_leaves], arrays[tree.num_leaves :]
        if type(ct) is _jax.Zero:
            cts = [_jax.Zero(t.aval.to_tangent_aval()) if _jax.is_unknown(t) else None for t in given]
        else:
            all_cts = rule.bwd(plan, jax.tree.unflatten(tree, leaves), ct)
            cts = [
                c for c, p in zip(all_cts, perturbed, strict=False) if p
            ]  # an operand left out, such as bias, has None
            cts = [c if _jax.is_unknown(t) else None for c, t in zip(cts, given, strict=True)]
        return [None] * len(leaves) + cts

    primitive.def_abstract_eval(abstract)
    _jax.define(primitive, compute)
    _jax.set_jvp(primitive, jvp)
    _jax.set_batching(primitive, batch)
    _jax.set_transpose(primitive, transpose)
