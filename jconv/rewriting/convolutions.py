"""A jax.lax convolution, of whatever layout, read as one of jconv's products.

Along each axis a lax convolution is y[p] = sum over t of lhs[a] rhs[t] where p*s + t*d = a*e + low (s: window_strides,
d: rhs_dilation, e: lhs_dilation). All three products of a convolution, and so all that vmap and grad make of one, are
such sums; what tells them apart is which of p, t, a is the window, the output, the input:
    convolve       t the window, p the output: y[n, p, o] = sum of x[n, a, c] w[t, c, o]. With e > 1 it is the input
                   gradient, or the transposed convolution
    kernel_grad    p the window, t the output: dw[p, c, o] = sum over n of x[n, a, c] g[n, t, o]. lax exchanges batch
                   and features of lhs for it, and batch_group_count is its groups. With feature_group_count it is the
                   kernel gradient of each example: vmap's groups
    turned         a the window, t the input, both turned by 180 degrees: convolve(x=rhs, w=lhs), the same sum with less
                   work where lhs is much smaller than rhs, as in a second derivative
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv import _jax, products
from jconv.geometry import Axis, Geometry
from jconv.products import How
from jconv.rewriting.walk import Done, Left

Array = jax.Array
SMALLER = 4  # how many times smaller than what it meets of rhs the space of lhs must be for "turned"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How one lax convolution is computed. Specs are those of lax.ConvDimensionNumbers: (batch, features, *space)."""

    product: str  # "convolve", "kernel_grad" or "turned"
    geometry: Geometry
    specs: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    examples: int  # vmap's groups, for "kernel_grad" where > 1
    how: How
    dtype: Any
    weak: bool

    def __str__(self) -> str:
        dilated = any(axis.input_dilation > 1 for axis in self.geometry.axes)
        kind = {
            "convolve": "convolve over a dilated input" if dilated else "convolve",
            "kernel_grad": "kernel_grad of each example" if self.examples > 1 else "kernel_grad",
            "turned": "convolve, operands exchanged",
        }[self.product]
        return f"{kind}, {self.geometry.groups} groups" if self.geometry.groups > 1 else kind


@functools.lru_cache(maxsize=4096)
def _read(primitive: Any, lhs: Any, rhs: Any, params: tuple[tuple[str, Any], ...]) -> Reading | Left:
    """The reading of a convolution of operands of these abstract values. Raises what lax raises for wrong operands."""
    given = dict(params)
    out = _jax.abstract_eval(primitive, (lhs, rhs), given)
    specs = given["dimension_numbers"]
    specs = (tuple(specs.lhs_spec), tuple(specs.rhs_spec), tuple(specs.out_spec))
    if _jax.is_sharded(given.get("out_sharding")):
        return Left("its out_sharding is given")
    if not jnp.issubdtype(lhs.dtype, jnp.inexact):
        return Left(f"{lhs.dtype}: there is no derivative to improve")
    if len(specs[0]) < 3:
        return Left("no spatial axis: it is a matrix product")
    shapes = [tuple(a.shape[i] for i in spec[2:]) for a, spec in zip((lhs, rhs, out), specs, strict=True)]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return Left("its spatial shape is symbolic")
    if 0 in (*rhs.shape, *out.shape) or 0 in lhs.shape:
        return Left("it is empty")
    axes = [
        Axis(n, k, m, s, d, e, low)
        for n, k, m, s, d, e, (low, _) in zip(
            *shapes,
            given["window_strides"],
            given["rhs_dilation"],
            given["lhs_dilation"],
            given["padding"],
            strict=True,
        )
    ]
    features, batches = given["feature_group_count"], given["batch_group_count"]
    exchanged = specs[0][0] > specs[0][1]  # lax exchanges them for a kernel gradient; in a layer the batch comes first
    input, window, output = map(math.prod, shapes)
    reading = functools.partial(Reading, specs=specs, how=How(given["precision"]), dtype=out.dtype, weak=out.weak_type)
    if batches > 1 or (exchanged and window > output):
        # The roles of p and t are for_kernel_grad's, and it is its own inverse.
        geometry = Geometry(tuple(axis.for_kernel_grad() for axis in axes), batches)
        return reading("kernel_grad", geometry, examples=features)
    turned = tuple(map(_turned, axes))
    if input * SMALLER <= math.prod(axis.crop()[2].input for axis in turned):
        return reading("turned", Geometry(turned, features), examples=1)
    geometry = Geometry(tuple(axes), features)
    # As models in NCHW have it, and an input gradient that jax derived of a layer in NHWC.
    out_first = specs[1][0] < specs[1][1]
    return reading("convolve", geometry.with_out_first() if out_first else geometry, examples=1)


def _turned(axis: Axis) -> Axis:
    """a and t change places, each counted from its other end: p*s + a'*e = t'*d + low + (n-1)*e - (k-1)*d."""
    return Axis(
        input=axis.window,
        window=axis.input,
        output=axis.output,
        stride=axis.stride,
        dilation=axis.input_dilation,
        input_dilation=axis.dilation,
        low=axis.low + (axis.input - 1) * axis.input_dilation - (axis.window - 1) * axis.dilation,
    )


def replace(primitive: Any, lhs: Array, rhs: Array, **params: Any) -> Done | Left:
    """conv_general_dilated by a product of jconv."""
    params["padding"] = tuple(map(tuple, params["padding"]))
    reading = _read(primitive, jax.typeof(lhs), jax.typeof(rhs), tuple(sorted(params.items())))
    if isinstance(reading, Left):
        return reading
    array, order = _PRODUCTS[reading.product](reading, lhs, rhs)
    out = products.leaving(array, order)
    if reading.weak:
        out, array = _jax.as_weak(out), _jax.as_weak(array)
    return Done(out, str(reading), (array, order))


def _transposed(array: Array, order: tuple[int, ...]) -> Array:
    return array if order == tuple(range(array.ndim)) else lax.transpose(array, order)


def _result(reading: Reading, out: Array, batch: int, features: int) -> tuple[Array, tuple[int, ...]]:
    """`out`, and how its axes stand in lax's layout; `batch` and `features` are lax's, the others space, in order."""
    space = [i for i in range(out.ndim) if i not in (batch, features)]
    order = [0] * out.ndim
    for place, axis in zip(reading.specs[2], (batch, features, *space), strict=True):
        order[place] = axis
    return out, tuple(order)


def _convolve(reading: Reading, lhs: Array, rhs: Array) -> tuple[Array, tuple[int, ...]]:
    (n, c, *space), (o, i, *window), _ = reading.specs
    x, w = products.entering(lhs, (n, *space, c)), _transposed(rhs, (*window, i, o))
    y = products.convolve(x, w, reading.geometry, reading.how, reading.dtype)
    return _result(reading, y, 0, y.ndim - 1)


def _kernel_grad(reading: Reading, lhs: Array, rhs: Array) -> tuple[Array, tuple[int, ...]]:
    (n, c, *space), (o, i, *window), _ = reading.specs
    x, g = products.entering(lhs, (c, *space, n)), products.entering(rhs, (i, *window, o))
    size = reading.examples
    if size == 1:
        dw = products.kernel_grad(x, g, reading.geometry, reading.how, reading.dtype)
    else:
        x = x.reshape(size, x.shape[0] // size, *x.shape[1:])
        g = jnp.moveaxis(g.reshape(*g.shape[:-1], size, g.shape[-1] // size), -2, 0)
        dw = products.kernel_grad(x, g, reading.geometry, reading.how, reading.dtype, examples=True)
        dw = jnp.moveaxis(dw, 0, -2)
        dw = dw.reshape(*dw.shape[:-2], dw.shape[-2] * dw.shape[-1])
    return _result(reading, dw, dw.ndim - 2, dw.ndim - 1)  # (*space, lhs' batch, features)


def _turned_convolve(reading: Reading, lhs: Array, rhs: Array) -> tuple[Array, tuple[int, ...]]:
    (n, c, *space), (o, i, *window), _ = reading.specs
    groups, rank = reading.geometry.groups, reading.geometry.rank
    x = lax.rev(products.entering(rhs, (o, *window, i)), range(1, rank + 1))
    w = lax.rev(_transposed(lhs, (*space, c, n)), range(rank))
    if groups > 1:  # of x the batch, of w the features are split: bring the groups to the other side
        x = jnp.moveaxis(x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), 0, -2)
        x = x.reshape(*x.shape[:-2], groups * x.shape[-1])
        w = w.reshape(*w.shape[:-2], groups, w.shape[-2] // groups, w.shape[-1]).swapaxes(-3, -2)
        w = w.reshape(*w.shape[:-2], groups * w.shape[-1])
    y = products.convolve(x, w, reading.geometry, reading.how, reading.dtype)  # (out // groups, *space, groups * batch)
    if groups > 1:
        y = jnp.moveaxis(y.reshape(*y.shape[:-1], groups, y.shape[-1] // groups), -2, 0)
        y = y.reshape(groups * y.shape[1], *y.shape[2:])
    return _result(reading, y, y.ndim - 1, 0)


_PRODUCTS = {"convolve": _convolve, "kernel_grad": _kernel_grad, "turned": _turned_convolve}
