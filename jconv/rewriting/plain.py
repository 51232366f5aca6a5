"""jconv's primitives as plain lax, of which jax derives everything by itself.

The forward product is one lax convolution; the two others are what jax makes of that, by transposing it. Max pooling is
lax's reduce_window, or where jax has no derivative of that, for dilated windows, the element that argmax finds. What is
left is computed as jconv defines it, out of lax operations that jax knows how to derive.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv import _jax
from jconv import pool_products as pooling
from jconv.algorithms import lax_conv, pools, sums, views, windows
from jconv.geometry import Geometry
from jconv.products import How
from jconv.rewriting.walk import Done

Array = jax.Array


def defined(primitive: Any, *operands: Any, **params: Any) -> Done:
    """Any primitive of jconv as its definition computes it, an operator out of products, a pooling's piece of lax."""
    return Done(
        _jax.definitions[primitive](*operands, platform="other", **params), f"the definition of {primitive.name}"
    )


def _widest(*arrays: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(a.dtype for a in arrays))


def _convolve(x: Array, w: Array, geometry: Geometry, how: How, dtype: Any) -> Array:
    operand = _widest(x, w)
    return lax_conv.convolve(x.astype(operand), w.astype(operand), geometry, how.precision, dtype)


def _kernel_grad(x: Array, g: Array, geometry: Geometry, how: How, dtype: Any) -> Array:
    operand = _widest(x, g)
    shape = (*geometry.window, x.shape[-1] // geometry.groups, g.shape[-1])
    f = lambda w: _convolve(x.astype(operand), w, geometry, how, operand)
    return _transposed(f, shape, g.astype(operand)).astype(dtype)


def _input_grad(g: Array, w: Array, geometry: Geometry, how: How, dtype: Any) -> Array:
    operand = _widest(g, w)
    shape = (g.shape[0], *geometry.input, w.shape[-2] * geometry.groups)
    f = lambda x: _convolve(x, w.astype(operand), geometry, how, operand)
    return _transposed(f, shape, g.astype(operand)).astype(dtype)


def _transposed(f: Any, shape: tuple[int, ...], ct: Array) -> Array:
    """The transpose of f, linear, that jax derives, of ct."""
    return jax.linear_transpose(f, jax.ShapeDtypeStruct(shape, ct.dtype))(ct)[0]


def product(form: Any, primitive: Any, lhs: Array, rhs: Array, *, examples: bool, dtype: Any, **params: Any) -> Done:
    """One of the three products of a convolution."""
    if not jnp.issubdtype(_widest(lhs, rhs), jnp.inexact) and primitive.name != "convolve":
        return defined(primitive, lhs, rhs, examples=examples, dtype=dtype, **params)  # jax transposes no integers
    run = functools.partial(form, dtype=dtype, **params)
    return Done(jax.vmap(run)(lhs, rhs) if examples else run(lhs, rhs), "one lax convolution" + _BY_JAX[primitive.name])


_BY_JAX = {"convolve": "", "kernel_grad": ", transposed by jax", "input_grad": ", transposed by jax"}
convolve = functools.partial(product, _convolve)
kernel_grad = functools.partial(product, _kernel_grad)
input_grad = functools.partial(product, _input_grad)


def _reduced(x: Array, geometry: Geometry, initial: Any, computation: Any) -> Array:
    each = lambda values, edge: (edge, *values, edge)
    # jax's derivative of a maximum fails where padding is negative (a slice out of range). Trailing elements that no
    # window touches are the stride's affair where they are fewer than a stride, and cut off where they are more.
    if any(axis.low < 0 or axis.high <= -axis.stride for axis in geometry.axes):
        x, geometry = windows.crop(x, geometry)
    return lax.reduce_window(
        x,
        np.array(initial, x.dtype)[()],
        computation,
        each(geometry.window, 1),
        each([axis.stride for axis in geometry.axes], 1),
        each([(axis.low, max(axis.high, 0)) for axis in geometry.axes], (0, 0)),
        window_dilation=each([axis.dilation for axis in geometry.axes], 1),
    )


def extreme(primitive: Any, x: Array, *, geometry: Geometry, largest: bool) -> Done:
    """The largest of each window as lax finds it."""
    done = winner(pooling.winner_p, x, geometry=geometry, largest=largest)
    return Done(done.result[0], done.became)


def winner(primitive: Any, x: Array, *, geometry: Geometry, largest: bool) -> Done:
    """The largest of each window as lax finds it; its index, which has no derivative, as jconv does."""
    lost = pools.identity(x.dtype, largest)
    _, index = _jax.definitions[primitive](lax.stop_gradient(x), geometry=geometry, largest=largest, platform="other")
    if all(axis.dilation == 1 for axis in geometry.axes):
        return Done([_reduced(x, geometry, lost, lax.max if largest else lax.min), index], "lax.reduce_window")
    cropped, inside = windows.crop(x, geometry)
    padded = windows.pad(cropped, inside, lost)
    taps = [windows.under_tap(padded, inside, tap) for tap in itertools.product(*map(range, geometry.window))]
    stacked = jnp.stack(taps, axis=-1)
    best = jnp.argmax(stacked, axis=-1, keepdims=True) if largest else jnp.argmin(stacked, axis=-1, keepdims=True)
    return Done([jnp.take_along_axis(stacked, best, axis=-1)[..., 0], index], "lax's argmax of each window")


def scatter(primitive: Any, g: Array, index: Array, *, geometry: Geometry) -> Done:
    """The transpose of jconv's gather that jax derives."""
    del primitive
    definition = _jax.definitions[pooling.gather_p]
    f = lambda x: definition(x, index, geometry=geometry, platform="other")
    return Done(_transposed(f, (g.shape[0], *geometry.input, g.shape[-1]), g), "a gather, transposed by jax")


def window_sum(primitive: Any, x: Array, *, geometry: Geometry, dtype: Any, divisor: sums.Divisor) -> Done:
    """lax's window reduction, divided."""
    del primitive
    total = _reduced(x, geometry, 0, lax.add)
    if divisor is not None:
        total = total.astype(views.wide(dtype))
        total = total / jnp.asarray(sums.size(geometry, divisor), total.dtype)
    return Done(total.astype(dtype), "lax.reduce_window")


def window_spread(primitive: Any, g: Array, *, geometry: Geometry, dtype: Any, divisor: sums.Divisor) -> Done:
    """The transpose of lax's window reduction that jax derives."""
    if not jnp.issubdtype(g.dtype, jnp.inexact):
        return defined(primitive, g, geometry=geometry, dtype=dtype, divisor=divisor)
    share = g
    if divisor is not None:
        size = sums.size(geometry, divisor)
        share = g.astype(views.wide(g.dtype))
        share = share / jnp.asarray(np.where(size == 0, 1, size), share.dtype)
    f = lambda x: _reduced(x, geometry, 0, lax.add)
    return Done(
        _transposed(f, (g.shape[0], *geometry.input, g.shape[-1]), share).astype(dtype),
        "lax.reduce_window, transposed by jax",
    )
