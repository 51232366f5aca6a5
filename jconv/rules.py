"""The rules of convolution and its gradients, written by hand as jax.custom_vjp functions.

Along one axis (kernel w, stride s, kernel dilation d, input dilation e, low padding l; x is 0 outside its range),
channels summed:
    y[p]  = sum over t of x[a] w[t] where a*e = p*s + t*d - l    cross-correlation of x with w
    dw[t] = sum over p of x[a] g[p], the same a                  valid cross-correlation of x with g: s, d change places
    dx[a] = sum of g[p] w[t] where p*s + t*d - l = a*e           full convolution of g, dilated by s and zero-padded,
                                                                 with w turned by 180 degrees
    db    = sum over p of g[p], over the batch too               the upstream gradient summed over batch and space
All three products are bilinear, and the derivative of each is made of the other two: that closed triad is products.py;
this module is the rules over it. Transposed convolution is the input gradient under another name; its rule is the same
triad read backwards. Arrays are channels_last and batched; convolution.py brings them to that.
Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.8-9.13; d, e and l added.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jconv import products
from jconv.algorithms.views import wide
from jconv.geometry import Geometry
from jconv.operators import Rule, operator
from jconv.products import How

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a rule knows beside its arrays: window geometry, how to compute, dtypes of operands and of the result."""

    geometry: Geometry
    how: How
    operand: Any
    result: Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wanted:
    """Among residuals: whether the bias gradient is asked for; it needs no array to be kept."""

    wanted: bool


def _add_bias(plan: Plan, product: Any, lhs: Array, rhs: Array, bias: Array | None) -> Array:
    """product(lhs, rhs) + bias, rounded once."""
    if bias is None:
        return product(lhs, rhs, plan.geometry, plan.how, plan.result)
    total = product(lhs, rhs, plan.geometry, plan.how, wide(plan.result))
    bias = bias.astype(total.dtype)
    if product is products.convolve and total.dtype == plan.result:  # what is rounded is written anew all the same
        return products.plus_bias(total, bias, plan.geometry, plan.how)
    return (total + bias).astype(plan.result)


def _bias_sum(g: Array, dtype: Any) -> Array:
    """The upstream gradient summed over batch and space; float16 and bfloat16 in float32."""
    return jnp.sum(g, axis=tuple(range(g.ndim - 1)), dtype=wide(g.dtype)).astype(dtype)


def _sum(terms: list[Array]) -> Array:
    return functools.reduce(jax.lax.add, terms)


# conv: y is the cross-correlation of x with the kernel, plus the bias.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(plan: Plan, x: Array, kernel: Array, bias: Array | None = None) -> Array:
    return _add_bias(plan, products.convolve, x, kernel, bias)


def _conv_fwd(plan: Plan, x: Any, kernel: Any, bias: Any = None) -> tuple[Array, Any]:
    y = _add_bias(plan, products.convolve, x.value, kernel.value, None if bias is None else bias.value)
    # Each gradient needs the other operand alone, and only what is asked for is kept.
    kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return y, (*kept, Wanted(bias is not None and bias.perturbed))


def _conv_bwd(plan: Plan, residuals: Any, g: Array) -> tuple[Array | None, Array | None, Array | None]:
    x, kernel, bias = residuals
    dx = dkernel = dbias = None
    if (
        kernel is not None
    ):  # the full convolution of g, dilated by the stride and zero-padded, with the kernel turned by 180 degrees
        dx = products.input_grad(g, kernel, plan.geometry, plan.how, plan.operand)
    if x is not None:  # the valid cross-correlation of x with g (stride and dilation change places)
        dkernel = products.kernel_grad(x, g, plan.geometry, plan.how, plan.operand)
    if bias.wanted:  # g summed over batch and space
        dbias = _bias_sum(g, plan.operand)
    return dx, dkernel, dbias


def _conv_tangent(plan: Plan, residuals: Any, shape: Any, dx: Any, dkernel: Any, dbias: Any = None) -> Array:
    x, kernel, _ = residuals
    terms = []
    if dx is not None:
        terms.append(products.convolve(dx, kernel, plan.geometry, plan.how, plan.result))
    if dkernel is not None:
        terms.append(products.convolve(x, dkernel, plan.geometry, plan.how, plan.result))
    if dbias is not None:
        terms.append(jnp.broadcast_to(dbias.astype(plan.result), shape))
    return functools.reduce(jax.lax.add, terms)


_conv.defvjp(_conv_fwd, _conv_bwd, symbolic_zeros=True)
conv = operator(Rule("conv", _conv, _conv_fwd, _conv_bwd, _conv_tangent, shared=(1, 2)))


# conv_transpose: the input gradient under another name; its rule is the same triad read backwards.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv_transpose(plan: Plan, y: Array, kernel: Array, bias: Array | None = None) -> Array:
    return _add_bias(plan, products.input_grad, y, kernel, bias)


def _conv_transpose_fwd(plan: Plan, y: Any, kernel: Any, bias: Any = None) -> tuple[Array, Any]:
    x = _add_bias(plan, products.input_grad, y.value, kernel.value, None if bias is None else bias.value)
    kept = (y.value if kernel.perturbed else None, kernel.value if y.perturbed else None)
    return x, (*kept, Wanted(bias is not None and bias.perturbed))


def _conv_transpose_bwd(plan: Plan, residuals: Any, u: Array) -> tuple[Array | None, Array | None, Array | None]:
    y, kernel, bias = residuals
    dy = dkernel = dbias = None
    if kernel is not None:  # the cross-correlation of u with the kernel
        dy = products.convolve(u, kernel, plan.geometry, plan.how, plan.operand)
    if y is not None:  # the valid cross-correlation of u with y
        dkernel = products.kernel_grad(u, y, plan.geometry, plan.how, plan.operand)
    if bias.wanted:  # u summed over batch and space
        dbias = _bias_sum(u, plan.operand)
    return dy, dkernel, dbias


def _conv_transpose_tangent(plan: Plan, residuals: Any, shape: Any, dy: Any, dkernel: Any, dbias: Any = None) -> Array:
    y, kernel, _ = residuals
    terms = []
    if dy is not None:
        terms.append(products.input_grad(dy, kernel, plan.geometry, plan.how, plan.result))
    if dkernel is not None:
        terms.append(products.input_grad(y, dkernel, plan.geometry, plan.how, plan.result))
    if dbias is not None:
        terms.append(jnp.broadcast_to(dbias.astype(plan.result), shape))
    return functools.reduce(jax.lax.add, terms)


_conv_transpose.defvjp(_conv_transpose_fwd, _conv_transpose_bwd, symbolic_zeros=True)
conv_transpose = operator(
    Rule(
        "conv_transpose",
        _conv_transpose,
        _conv_transpose_fwd,
        _conv_transpose_bwd,
        _conv_transpose_tangent,
        shared=(1, 2),
    )
)


# conv_kernel_grad: the valid cross-correlation of x with g; its gradients are the other two products with v, which has
# the kernel's shape, in the kernel's place.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_grad(plan: Plan, x: Array, g: Array) -> Array:
    return products.kernel_grad(x, g, plan.geometry, plan.how, plan.result)


def _kernel_grad_fwd(plan: Plan, x: Any, g: Any) -> tuple[Array, Any]:
    dkernel = products.kernel_grad(x.value, g.value, plan.geometry, plan.how, plan.result)
    return dkernel, (x.value if g.perturbed else None, g.value if x.perturbed else None)


def _kernel_grad_bwd(plan: Plan, residuals: Any, v: Array) -> tuple[Array | None, Array | None]:
    x, g = residuals
    dx = dg = None
    if g is not None:  # <kernel_grad(x, g), v> = <x, input_grad(g, v)>
        dx = products.input_grad(g, v, plan.geometry, plan.how, plan.operand)
    if x is not None:  # <kernel_grad(x, g), v> = <g, convolve(x, v)>
        dg = products.convolve(x, v, plan.geometry, plan.how, plan.operand)
    return dx, dg


def _kernel_grad_tangent(plan: Plan, residuals: Any, shape: Any, dx: Any, dg: Any) -> Array:
    del shape
    x, g = residuals
    terms = []
    if dx is not None:
        terms.append(products.kernel_grad(dx, g, plan.geometry, plan.how, plan.result))
    if dg is not None:
        terms.append(products.kernel_grad(x, dg, plan.geometry, plan.how, plan.result))
    return functools.reduce(jax.lax.add, terms)


_kernel_grad.defvjp(_kernel_grad_fwd, _kernel_grad_bwd, symbolic_zeros=True)
kernel_grad = operator(
    Rule("conv_kernel_grad", _kernel_grad, _kernel_grad_fwd, _kernel_grad_bwd, _kernel_grad_tangent, folds=False)
)


# conv_bias_grad: g summed over batch and space; the gradient of a sum is spread to every summand.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bias_grad(shape: tuple[int, ...], g: Array) -> Array:
    assert g.shape == shape, (g.shape, shape)
    return _bias_sum(g, g.dtype)


def _bias_grad_fwd(shape: tuple[int, ...], g: Any) -> tuple[Array, Any]:
    return _bias_sum(g.value, g.value.dtype), ()


def _bias_grad_bwd(shape: tuple[int, ...], residuals: Any, v: Array) -> tuple[Array]:
    del residuals
    return (jnp.broadcast_to(v, shape),)


def _bias_grad_tangent(plan: tuple[int, ...], residuals: Any, shape: Any, dg: Array) -> Array:
    del plan, residuals, shape
    return _bias_sum(dg, dg.dtype)


_bias_grad.defvjp(_bias_grad_fwd, _bias_grad_bwd, symbolic_zeros=True)
bias_grad = operator(
    Rule("conv_bias_grad", _bias_grad, _bias_grad_fwd, _bias_grad_bwd, _bias_grad_tangent, folds=False)
)
