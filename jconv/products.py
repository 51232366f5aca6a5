"""The three bilinear products of a convolution as JAX primitives, each the derivative of the other two.

With letters as in geometry.py (output p, tap t and input a meet where p*s + t*d = a*e + low), channels c in, o out:
    convolve     y[n, p, o]  = sum over t, c of x[n, a, c] w[t, c, o]     the cross-correlation of x with w
    kernel_grad  dw[t, c, o] = sum over n, p of x[n, a, c] g[n, p, o]     the valid cross-correlation of x with g
    input_grad   dx[n, a, c] = sum over p, o of g[n, p, o] w[t, c, o]     full convolution of g, dilated by the stride
                                                                     and zero-padded, with w turned by 180 degrees
All three are one trilinear form, <convolve(x, w), g> = <x, input_grad(g, w)> = <w, kernel_grad(x, g)>, so the transpose
of each in either argument is another one: the rules below are closed, and derivatives of every order stay within them.
Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.8-9.13; stride, dilations and padding carried along.

Arrays are channels_last: x (batch, *input, in), w (*window, in // groups, out), g and y (batch, *output, out). With
examples=True every array has one more axis in front, and the product is taken for each of its entries: what vmap over
both operands gives. Operands of different float types are multiplied in the wider; the result is of type `dtype`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jconv import _jax, measured
from jconv._sharding import Split
from jconv.algorithms import choose, matmul, windows
from jconv.geometry import Geometry

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class How:
    """How a product is to be computed: `precision` as in jax.lax, `algorithm` a name of choose.py for each product."""

    precision: Any = None
    algorithm: tuple[str, str, str] = ("auto", "auto", "auto")  # forward, kernel gradient, input gradient


def convolve(
    x: Array, w: Array, geometry: Geometry, how: How = How(), dtype: Any = None, examples: bool = False
) -> Array:
    """y[p] = sum over t of x[p*s + t*d - low] w[t]: the cross-correlation of x with w. See the module's docstring."""
    return _bind(convolve_p, x, w, geometry, how, dtype, examples)


def kernel_grad(
    x: Array, g: Array, geometry: Geometry, how: How = How(), dtype: Any = None, examples: bool = False
) -> Array:
    """dw[t] = sum over p of x[p*s + t*d - low] g[p]: the valid cross-correlation of x with g."""
    return _bind(kernel_grad_p, x, g, geometry, how, dtype, examples)


def input_grad(
    g: Array, w: Array, geometry: Geometry, how: How = How(), dtype: Any = None, examples: bool = False
) -> Array:
    """dx[a] = sum of g[p] w[t] where p*s + t*d = a*e + low: the full convolution of g with w turned by 180 degrees."""
    return _bind(input_grad_p, g, w, geometry, how, dtype, examples)


def _bind(primitive: Any, lhs: Array, rhs: Array, geometry: Geometry, how: How, dtype: Any, examples: bool) -> Array:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.dtype(dtype if dtype is not None else jnp.promote_types(lhs.dtype, rhs.dtype))
    lhs, rhs = _jax.vary_alike(lhs, rhs)
    return primitive.bind(lhs, rhs, geometry=geometry, how=how, dtype=dtype, examples=examples)


convolve_p = _jax.Primitive("convolve")
kernel_grad_p = _jax.Primitive("kernel_grad")
input_grad_p = _jax.Primitive("input_grad")


# Shapes: abstract evaluation.


def _convolve_shape(x: Any, w: Any, geometry: Geometry) -> tuple[int, ...]:
    assert x[1:-1] == geometry.input, (x, geometry)
    assert w[:-2] == geometry.window, (w, geometry)
    assert x[-1] == w[-2] * geometry.groups, (x, w, geometry)
    assert w[-1] % geometry.groups == 0, (x, w, geometry)
    return (x[0], *geometry.output, w[-1])


def _kernel_grad_shape(x: Any, g: Any, geometry: Geometry) -> tuple[int, ...]:
    assert x[1:-1] == geometry.input, (x, g, geometry)
    assert g[1:-1] == geometry.output, (x, g, geometry)
    assert x[0] == g[0], (x, g, geometry)
    assert x[-1] % geometry.groups == 0, (x, g, geometry)
    assert g[-1] % geometry.groups == 0, (x, g, geometry)
    return (*geometry.window, x[-1] // geometry.groups, g[-1])


def _input_grad_shape(g: Any, w: Any, geometry: Geometry) -> tuple[int, ...]:
    assert g[1:-1] == geometry.output, (g, w, geometry)
    assert w[:-2] == geometry.window, (g, w, geometry)
    assert g[-1] == w[-1], (g, w, geometry)
    return (g[0], *geometry.input, w[-2] * geometry.groups)


def _abstract(
    shape: Any, form: Any, lhs: Any, rhs: Any, *, geometry: Geometry, how: How, dtype: Any, examples: bool
) -> Any:
    if examples:
        assert lhs.shape[0] == rhs.shape[0], (lhs, rhs)
        out = (lhs.shape[0], *shape(lhs.shape[1:], rhs.shape[1:], geometry))
    else:
        out = shape(lhs.shape, rhs.shape, geometry)
    if form is choose.kernel_grad:  # which sums over the batch
        lhs, rhs = (_jax.summed(aval, int(examples)) for aval in (lhs, rhs))
    plain = _plain(form, geometry, how, dtype, examples)
    return _jax.abstract(plain, (lhs, rhs), out, dtype)


@functools.lru_cache(maxsize=4096)
def _plain(form: Any, geometry: Geometry, how: How, dtype: Any, examples: bool) -> Any:
    return functools.partial(
        _compute, form, geometry=geometry, how=dataclasses.replace(how, algorithm=("lax",) * 3), dtype=dtype,
        examples=examples, platform="other",
    )  # fmt: skip


# Values: the lowering, which chooses an algorithm for the platform and knows no calculus.


def _compute(
    form: Any, lhs: Array, rhs: Array, *, geometry: Geometry, how: How, dtype: Any, examples: bool, platform: str
) -> Array:
    number = _NUMBERS[form]
    product = choose.PRODUCTS[number]
    algorithm = measured.algorithms(product, number, lhs, rhs, geometry, how, dtype, examples, platform)
    with jax.numpy_dtype_promotion("standard"):  # strictness is about the user's own mixing; this one is meant
        return form(lhs, rhs, geometry, how.precision, dtype, algorithm, examples, platform)


_NUMBERS = {choose.convolve: 0, choose.kernel_grad: 1, choose.input_grad: 2}  # in choose.PRODUCTS


# Batching: a vmap over one operand folds into the axis that operand alone has; over both, it becomes `examples`.
#   operand's own axis: x the batch and in-channels; see the formulas: what the other operand lacks is free to grow.


def _fold(array: Array, dim: int, into: int) -> Array:
    """`array` with its axis `dim` moved in front of its axis `into` (counted without dim) and merged with it."""
    array = jnp.moveaxis(array, dim, into)
    return array.reshape(*array.shape[:into], array.shape[into] * array.shape[into + 1], *array.shape[into + 2 :])


def _unfold(array: Array, size: int, axis: int) -> Array:
    """The inverse of _fold: `axis` split into (size, rest), size brought to the front."""
    array = array.reshape(*array.shape[:axis], size, array.shape[axis] // size, *array.shape[axis + 1 :])
    return jnp.moveaxis(array, axis, 0)


def _fold_channels(array: Array, dim: int, groups: int, axis: int) -> Array:
    """As _fold into channel `axis` (negative), within each of its groups: (groups, size, channels a group)."""
    array = jnp.moveaxis(array, dim, 0)
    size, channels = array.shape[0], array.shape[axis]
    split = array.reshape(
        *array.shape[: array.ndim + axis], groups, channels // groups, *array.shape[array.ndim + axis + 1 :]
    )
    split = jnp.moveaxis(split, 0, axis - 1)
    return split.reshape(*array.shape[1 : array.ndim + axis], channels * size, *array.shape[array.ndim + axis + 1 :])


def _unfold_channels(array: Array, size: int, groups: int, axis: int) -> Array:
    """The inverse of _fold_channels, size brought to the front."""
    channels, before, after = array.shape[axis], array.shape[: array.ndim + axis], array.shape[array.ndim + axis + 1 :]
    split = array.reshape(*before, groups, size, channels // groups // size, *after)
    return jnp.moveaxis(split, axis - 1, 0).reshape(size, *before, channels // size, *after)


def _batch(primitive: Any, args: Any, dims: Any, *, geometry: Geometry, how: How, dtype: Any, examples: bool) -> Any:
    lhs, rhs = args
    bind = functools.partial(primitive.bind, geometry=geometry, how=how, dtype=dtype)
    lead = int(examples)  # axes in front of an operand's own
    if None not in dims:
        if not examples:
            return bind(jnp.moveaxis(lhs, dims[0], 0), jnp.moveaxis(rhs, dims[1], 0), examples=True), 0
        size = lhs.shape[dims[0]]
        return _unfold(bind(_fold(lhs, dims[0], 0), _fold(rhs, dims[1], 0), examples=True), size, 0), 0
    left = dims[0] is not None
    array, dim = (lhs, dims[0]) if left else (rhs, dims[1])
    size = array.shape[dim]
    free, result = _FREE[primitive][0 if left else 1]
    if free == "batch":
        array = _fold(array, dim, lead)
    else:
        array = _fold_channels(
            array, dim, geometry.groups if free != "kernel_in" else 1, -2 if free == "kernel_in" else -1
        )
    out = bind(array, rhs, examples=examples) if left else bind(lhs, array, examples=examples)
    if result == "batch":
        return _unfold(out, size, lead), 0
    groups = geometry.groups if result != "kernel_in" else 1
    return _unfold_channels(out, size, groups, -2 if result == "kernel_in" else -1), 0


# For each product and operand: the operand's free axis, and where the same axis stands in the result.
_FREE = {
    convolve_p: (("batch", "batch"), ("out", "out")),
    kernel_grad_p: (("in", "kernel_in"), ("out", "out")),
    input_grad_p: (("batch", "batch"), ("kernel_in", "in")),
}


# Derivatives: each product's transposes are the other two, with the roles of cotangent and operand as in the docstring.


def _jvp(primitive: Any, primals: Any, tangents: Any, **params: Any) -> Any:
    (lhs, rhs), (dlhs, drhs) = primals, tangents
    out = primitive.bind(lhs, rhs, **params)
    terms = []
    if type(dlhs) is not _jax.Zero:
        terms.append(primitive.bind(*_jax.vary_alike(dlhs, rhs), **params))
    if type(drhs) is not _jax.Zero:
        terms.append(primitive.bind(*_jax.vary_alike(lhs, drhs), **params))
    return out, (terms[0] if len(terms) == 1 else jax.lax.add(*terms)) if terms else _jax.zero_tangent(out)


def _transpose(wrt_lhs: Any, wrt_rhs: Any, ct: Any, lhs: Any, rhs: Any, *, dtype: Any, **params: Any) -> Any:
    del dtype
    left = _jax.is_unknown(lhs)
    aval = lhs.aval if left else rhs.aval
    if type(ct) is _jax.Zero:
        out = _jax.Zero(aval.to_tangent_aval())
    elif left:
        out = wrt_lhs(ct, rhs, dtype=aval.dtype, **params)
    else:
        out = wrt_rhs(ct, lhs, dtype=aval.dtype, **params)
    return (out, None) if left else (None, out)


# Several devices: a batch of images, and one of examples, is divided among them.


def _splits(form: Any, lhs: Any, rhs: Any, *, examples: bool, dtype: Any, **params: Any) -> list[Split]:
    del lhs, rhs
    lead = int(examples)  # axes in front of an operand's own
    if form is choose.kernel_grad:  # the sum over the batch is added up over the devices
        wide = jnp.dtype(jnp.float32) if dtype in (jnp.float16, jnp.bfloat16) else dtype
        partial = functools.partial(_compute, form, examples=examples, dtype=wide, platform="cpu", **params)
        batch = Split((lead, lead), (None,), partial)
    else:
        batch = Split((lead, None), (lead,))
    return [Split((0, 0), (0,)), batch] if examples else [batch]


def _define(primitive: Any, shape: Any, form: Any, wrt_lhs: Any, wrt_rhs: Any) -> None:
    primitive.def_abstract_eval(functools.partial(_abstract, shape, form))
    _jax.define(primitive, functools.partial(_compute, form), splits=functools.partial(_splits, form))
    _jax.set_batching(primitive, functools.partial(_batch, primitive))
    _jax.set_jvp(primitive, functools.partial(_jvp, primitive))
    _jax.set_transpose(primitive, functools.partial(_transpose, wrt_lhs, wrt_rhs))


_define(
    convolve_p,
    _convolve_shape,
    choose.convolve,
    input_grad,  # <convolve(u, w), g> = <u, input_grad(g, w)>
    lambda g, x, **p: kernel_grad(x, g, **p),  # <convolve(x, v), g> = <v, kernel_grad(x, g)>
)
_define(
    kernel_grad_p,
    _kernel_grad_shape,
    choose.kernel_grad,
    lambda v, g, **p: input_grad(g, v, **p),  # <kernel_grad(u, g), v> = <u, input_grad(g, v)>
    lambda v, x, **p: convolve(x, v, **p),  # <kernel_grad(x, y), v> = <y, convolve(x, v)>
)
_define(
    input_grad_p,
    _input_grad_shape,
    choose.input_grad,
    convolve,  # <input_grad(y, w), u> = <y, convolve(u, w)>
    kernel_grad,  # <input_grad(g, v), u> = <v, kernel_grad(u, g)>
)


# The bias. XLA:CPU writes a product of rows, reshaped to the shape of images, once more where the bias is added: a
# fusion that reads one shape and writes another cannot write in place. Added to the rows, in a call of its own, it can.


def plus_bias(total: Array, bias: Array, geometry: Geometry, how: How) -> Array:
    """total (batch, *output, out) + bias (out,), both of the same dtype."""
    if not matmul.applies(geometry) or how.algorithm[0] not in ("auto", "matmul"):
        return total + bias
    return plus_bias_p.bind(*_jax.vary_alike(total, bias))


def _plus_bias(total: Array, bias: Array, *, platform: str) -> Array:
    if platform != "cpu":
        return total + bias
    rows = windows.apart(jnp.add, total.reshape(-1, bias.shape[0]), bias[None])
    return rows.reshape(total.shape)


def _plus_bias_jvp(primals: Any, tangents: Any) -> Any:
    y = plus_bias_p.bind(*primals)
    dtotal, dbias = tangents
    if type(dbias) is not _jax.Zero:
        spread = jnp.broadcast_to(dbias, y.shape)
        dtotal = spread if type(dtotal) is _jax.Zero else dtotal + spread
    return y, dtotal


def _plus_bias_batch(args: Any, dims: Any) -> Any:
    total, bias = (a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True))
    if dims[1] is None:
        return plus_bias_p.bind(total, bias), 0
    return total + bias.reshape(bias.shape[0], *(1,) * (jnp.ndim(args[0]) - 1 - (dims[0] is not None)), -1), 0


plus_bias_p = _jax.Primitive("plus_bias")
plus_bias_p.def_abstract_eval(lambda total, bias: _jax.abstract(jax.lax.add, (total, total), total.shape, total.dtype))
_jax.define(plus_bias_p, _plus_bias, splits=lambda total, bias: [Split((0, None), (0,))])
_jax.set_jvp(plus_bias_p, _plus_bias_jvp)
_jax.set_batching(plus_bias_p, _plus_bias_batch)


# Other layouts. XLA:CPU fuses the transpose of a result into whatever reads it, and with it the last sums of an
# algorithm: Winograd's, element by element in steps of the channels, once for each reader. So what leaves the products
# is transposed in a call of its own; what enters is fused with what makes it, but comes back, as a gradient, like that.


def entering(array: Array, order: tuple[int, ...]) -> Array:
    """An operand with its axes in the order that the products want; its gradient is given back as `leaving` does."""
    return array if order == tuple(range(array.ndim)) else ordered_p.bind(array, order=order, leaves=False)


def leaving(array: Array, order: tuple[int, ...]) -> Array:
    """A result with its axes in another order, as an array in memory on a CPU."""
    return array if order == tuple(range(array.ndim)) else ordered_p.bind(array, order=order, leaves=True)


LEAST_APART = 1 << 12  # elements, of fewer a call takes longer than the readers


@functools.lru_cache(maxsize=1024)
def _transposing(order: tuple[int, ...]) -> Any:
    return functools.partial(jax.lax.transpose, permutation=order)


def _ordered(array: Array, *, order: tuple[int, ...], leaves: bool, platform: str) -> Array:
    small = isinstance(array.size, int) and array.size < LEAST_APART
    if not leaves or small or platform != "cpu":
        return _transposing(order)(array)
    return windows.apart(_transposing(order), array)


def _ordered_shape(array: Any, *, order: tuple[int, ...], leaves: bool) -> Any:
    del leaves
    return _jax.abstract(_transposing(order), (array,), tuple(array.shape[i] for i in order), array.dtype)


def _ordered_jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    return ordered_p.bind(*primals, **params), ordered_p.bind(*tangents, **params)


def _ordered_transpose(ct: Any, array: Any, *, order: tuple[int, ...], leaves: bool) -> list[Any]:
    if type(ct) is _jax.Zero:
        return [_jax.Zero(array.aval.to_tangent_aval())]
    back = tuple(order.index(i) for i in range(len(order)))
    return [ordered_p.bind(ct, order=back, leaves=not leaves)]


def _ordered_batch(args: Any, dims: Any, *, order: tuple[int, ...], leaves: bool) -> Any:
    array = jnp.moveaxis(args[0], dims[0], 0)
    return ordered_p.bind(array, order=(0, *(i + 1 for i in order)), leaves=leaves), 0


ordered_p = _jax.Primitive("ordered")
ordered_p.def_abstract_eval(_ordered_shape)
_jax.define(ordered_p, _ordered)
_jax.set_jvp(ordered_p, _ordered_jvp)
_jax.set_transpose(ordered_p, _ordered_transpose)
_jax.set_batching(ordered_p, _ordered_batch)
