"""Arrays that are others with their axes in another order, and operations done on those others instead.

A convolution of a model in NCHW is computed in NHWC: what enters is transposed, and what leaves back. Between two of
them mostly stand operations to which the order of axes is nothing: a normalisation, an activation, a sum of two. Done
on the array as the convolution has left it, they give the next one what it wants as it wants it, and of the transposes
between, whose results nobody reads, nothing is left:
    x = transpose(a, order),  y = transpose(b, order)    =>    x + y = transpose(a + b, order)
So with each result that is known to be another array transposed that one is kept, for as long as a trace runs. What
has no rule here reads the result itself, which costs the one transpose that it always did.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from jconv import _jax

Order = tuple[int, ...]
SMALLER = 4  # times than the result an operand must be, to be transposed for it
MOST_INLINE = 64  # operations of a jitted function whose body is run through the rules

# fmt: off
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "lgamma", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "real",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
))
# fmt: on
REDUCTIONS = frozenset(("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"))
ONES = frozenset(("broadcast_in_dim", "reshape", "squeeze"))  # which may do no more than add or drop axes of length 1
ALONG = {  # what a parameter says of each axis, by its name; and the axes that one names
    "concatenate": ((), ("dimension",)),
    "pad": (("padding_config",), ()),
    "rev": ((), ("dimensions",)),
    "slice": (("start_indices", "limit_indices", "strides"), ()),
}
RULES = ELEMENTWISE | REDUCTIONS | ONES | ALONG.keys() | {"transpose", "ordered"}
ACTIVATIONS = {"relu": jax.nn.relu}  # with rules of their own, of each element for itself


class Layouts:
    """What is known of the values of one trace, under which all of this runs; `transposed` gives a transpose."""

    def __init__(self, transposed: Callable[[Any, Order], Any]):
        self._transposed = transposed
        # By id, with the value itself, which keeps its id from being another's.
        self._known: dict[int, tuple[Any, Any, Order]] = {}  # (value, array, order): value is array, transposed
        self._spread: dict[int, tuple[Any, Any, Order]] = {}  # (value, small array, broadcast_dimensions)

    def keep(self, value: Any, array: Any, order: Sequence[int]) -> None:
        """`value` is `array` with its axes in this order.

        Forgotten at once of symbolic shapes, which do not compare, and with explicit sharding, where each has its own.
        """
        order, moved = tuple(order), tuple(order) != tuple(range(len(order)))
        if moved and _recorded(value) and not _jax.is_sharded(jax.typeof(value).sharding):
            self._known[id(value)] = value, array, order

    def known(self, value: Any) -> tuple[Any, Order] | None:
        """(array, order) of a value that is known to be another array transposed."""
        found = self._known.get(id(value))
        return found and found[1:]

    def computed(self, primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """The operation's result from what its operands are known to be; None where there is no rule for it."""
        name = primitive.name
        if name not in RULES or not (self._known or self._spread):
            return None
        if not any(id(x) in self._known for x in operands):
            if name == "broadcast_in_dim" and len(operands) == 1:
                return self._broadcast(primitive, operands[0], params)
            return None
        shardings = [key for key in params if key.endswith("sharding")]
        if any(_jax.is_sharded(params[key]) for key in shardings):
            return None
        params = {**params, **dict.fromkeys(shardings)}
        if name in ELEMENTWISE:
            return self._elementwise(primitive, operands, params)
        if name in ALONG:
            return self._along(primitive, operands, params, *ALONG[name])
        array, order = self._known[id(operands[0])][1:]
        if name in REDUCTIONS:
            return self._reduced(primitive, array, order, params)
        if name in ("transpose", "ordered"):
            return self._reordered(primitive, array, order, params)
        return self._without_ones(primitive, operands, params)

    def activated(self, fun: Any, operands: Sequence[Any], call: Callable[[Sequence[Any]], Any]) -> Any:
        """The result of a custom_jvp function that is one of jax.nn, as `computed`; call(operands) runs it."""
        name, file = _jax.origin(fun)
        found = self.known(operands[0]) if len(operands) == 1 and name in ACTIVATIONS else None
        if found is None or pathlib.PurePath(file).parts[-4:] != ("jax", "_src", "nn", "functions.py"):
            return None
        if _jax.is_awaited(fun):  # it is to be run, on what it was given: vmap, say, knows which axis of that is whose
            call(operands)
        return [self._result(ACTIVATIONS[name](found[0]), found[1])]

    def body(self, params: dict[str, Any], operands: Sequence[Any]) -> Callable[..., Any] | None:
        """The function of a jit, to be run through the rules, where it has no more than they are for; or None."""
        body = params.get("jaxpr")
        if body is None or not any(id(x) in self._known for x in operands) or not _jax.plain_jit(params):
            return None
        return jaxpr_as_fun(body) if _within_rules(body.jaxpr) else None

    def _result(self, array: Any, order: Order) -> Any:
        value = self._transposed(array, order)
        self.keep(value, array, order)
        return value

    def _elementwise(self, primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
        orders = {found[1] for found in map(self.known, operands) if found}
        if len(orders) != 1:
            return None
        order = orders.pop()
        size = math.prod(np.broadcast_shapes(*(np.shape(x) for x in operands)))
        turned = [self._turned(x, order, size) for x in operands]
        if any(x is None for x in turned):
            return None
        return self._result(primitive.bind(*turned, **params), order)

    def _turned(self, x: Any, order: Order, size: int) -> Any:
        """An operand as it is beside arrays that are in `order` only afterwards; None where that costs a transpose."""
        found = self.known(x)
        if found:
            return found[0]
        if np.ndim(x) == 0:
            return x
        if np.ndim(x) != len(order):
            return None
        back = tuple(map(order.index, range(len(order))))
        if id(x) in self._spread:
            _, small, dimensions = self._spread[id(x)]
            places = [order[d] for d in dimensions]
            small = lax.transpose(small, np.argsort(places)) if places != sorted(places) else small
            return lax.broadcast_in_dim(small, [x.shape[i] for i in back], sorted(places))
        return lax.transpose(x, back) if math.prod(np.shape(x)) * SMALLER <= size else None

    def _broadcast(self, primitive: Any, x: Any, params: dict[str, Any]) -> Any:
        dimensions = tuple(map(int, params["broadcast_dimensions"]))
        small, before = self._spread[id(x)][1:] if id(x) in self._spread else (x, range(np.ndim(x)))
        if not _fixed(params["shape"]):
            return None
        if _jax.is_sharded(params.get("sharding")) or math.prod(np.shape(small)) * SMALLER > math.prod(params["shape"]):
            return None
        value = primitive.bind(x, **params)
        if _recorded(value):
            self._spread[id(value)] = value, small, tuple(dimensions[d] for d in before)
        return value

    def _along(
        self, primitive: Any, operands: Sequence[Any], params: dict[str, Any], each: Sequence[str], named: Sequence[str]
    ) -> Any:
        found = [self.known(x) for x in operands]
        orders = {of[1] for of in found if of}
        others = [x for x, of in zip(operands, found, strict=True) if not of]
        if len(orders) != 1 or any(map(np.ndim, others)):  # a pad's value is a scalar
            return None
        order, changed = orders.pop(), dict(params)
        for key in each:
            if params[key] is not None:
                changed[key] = tuple(params[key][order.index(i)] for i in range(len(order)))
        for key in named:
            several = isinstance(params[key], Sequence)
            changed[key] = tuple(order[i] for i in params[key]) if several else order[params[key]]
        arrays = [of[0] if of else x for x, of in zip(operands, found, strict=True)]
        return self._result(primitive.bind(*arrays, **changed), order)

    def _reduced(self, primitive: Any, array: Any, order: Order, params: dict[str, Any]) -> Any:
        axes = {int(axis) for axis in params["axes"]}
        out = primitive.bind(array, **{**params, "axes": tuple(sorted(order[axis] for axis in axes))})
        left = [order[i] for i in range(len(order)) if i not in axes]
        order = tuple(map(sorted(left).index, left))
        return out if left == sorted(left) else self._result(out, order)

    def _reordered(self, primitive: Any, array: Any, order: Order, params: dict[str, Any]) -> Any:
        key = "permutation" if primitive.name == "transpose" else "order"
        order = tuple(order[i] for i in params[key])
        shape = [array.shape[i] for i in order]
        apart = [i for i in order if array.shape[i] != 1]
        if apart == sorted(apart):  # nothing changes places but axes of length 1
            return array if order == tuple(range(len(order))) else lax.reshape(array, shape)
        value = primitive.bind(array, **{**params, key: order})
        self.keep(value, array, order)
        return value

    def _without_ones(self, primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """A change of shape that adds and drops axes of length 1 alone. They come first in what is kept."""
        (value, array, order), shape = self._known[id(operands[0])], self._shape(primitive, operands, params)
        if shape is None or [n for n in shape if n != 1] != [n for n in value.shape if n != 1]:
            return None
        ones, apart = shape.count(1), [i for i in order if array.shape[i] != 1]
        array = lax.reshape(array, (*(1,) * ones, *(array.shape[i] for i in sorted(apart))))
        first, rest = iter(range(ones)), (ones + sorted(apart).index(i) for i in apart)
        order = tuple(next(first) if n == 1 else next(rest) for n in shape)
        return self._result(array, order) if order != tuple(range(len(order))) else array

    def _shape(self, primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> list[int] | None:
        """What the result's shape is, of an operation that keeps the order of elements; None of others."""
        if len(operands) != 1:
            return None
        shape = np.shape(operands[0])
        if primitive.name == "squeeze":
            return [n for i, n in enumerate(shape) if i not in {d % len(shape) for d in params["dimensions"]}]
        if primitive.name == "reshape":
            return None if params.get("dimensions") is not None else list(params["new_sizes"])
        return list(params["shape"])


def _fixed(shape: Sequence[Any]) -> bool:
    return all(isinstance(n, int) for n in shape)


def _recorded(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer) and _fixed(value.shape)


def _within_rules(jaxpr: Any) -> bool:
    """Whether a body has a few operations, with rules here, and jits and activations of such."""
    if len(jaxpr.eqns) > MOST_INLINE:
        return False
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}.get(name)
        if not (name in RULES if inner is None else _within_rules(equation.params[inner].jaxpr)):
            return False
    return True
