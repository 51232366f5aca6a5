"""A jax.lax window reduction, or its stock derivative, read as one of jconv's poolings.

    reduce_window_max, _min      the winner of each window
    reduce_window_sum            the window sum
    reduce_window                one of these, if its reducer is max, min or add by any spelling, with the initial value
    select_and_scatter_add       the gradient of max pooling: the scatter to the winner
    select_and_gather_add        its tangent: the gather by the winner's index
lax slides its windows over all axes of an array. Those on which a window has one element, and no stride, padding or
dilation, are batch and channels; the others are space.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from jconv import _jax
from jconv import pool_products as products
from jconv.algorithms import pools
from jconv.geometry import Axis, Geometry
from jconv.rewriting.walk import Done, Left

Array = jax.Array
WIDEST = 128  # elements of a window along one axis, which a program spells out; beyond it lax's loop stays


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array's axes become (batch, *space, channels): their order, and how many are the batch."""

    geometry: Geometry
    order: tuple[int, ...]
    batch: int
    gaps: tuple[int, ...]  # elements to insert between x's elements, along each axis of the array

    def enter(self, array: Array) -> Array:
        array = lax.transpose(array, self.order)
        space = array.shape[self.batch : self.batch + self.geometry.rank]
        return array.reshape(math.prod(array.shape[: self.batch]), *space, -1)

    def leave(self, array: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """The result as it was computed, and the order of its axes in lax's layout."""
        back = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return array.reshape([shape[i] for i in self.order]), back


@functools.lru_cache(maxsize=4096)
def _read(shape: tuple[int, ...], out: tuple[int, ...], windows: tuple[tuple[Any, ...], ...]) -> Layout | Left:
    """The layout of a reduction; of each axis `windows` has (window, stride, (low, high), both dilations)."""
    if not all(isinstance(n, int) for n in shape):
        return Left("its shape is symbolic")
    if 0 in shape or 0 in out:
        return Left("it is empty")
    space = [i for i, window in enumerate(windows) if window != (1, 1, (0, 0), 1, 1)]
    if not space:
        return Left("its windows have one element")
    wide = max(windows[i][0] for i in space)
    if wide > WIDEST:
        return Left(f"a window of {wide} elements along one axis, more than {WIDEST}")
    axes, gaps = [], [0] * len(shape)
    for i in space:
        k, s, (low, _), e, d = windows[i]
        gaps[i] = e - 1
        axes.append(Axis((shape[i] - 1) * e + 1, k, out[i], s, d, 1, low))
    rest = [i for i in range(len(shape)) if i not in space]
    channels = rest[-1:] if rest and (rest[-1] > space[-1] or len(rest) > 1) else []
    batch = [i for i in rest if i not in channels]
    return Layout(Geometry(tuple(axes)), (*batch, *space, *channels), len(batch), tuple(gaps))


def _layout(
    shape: tuple[int, ...], out: tuple[int, ...], *, window_dimensions: Any, window_strides: Any, padding: Any,
    base_dilation: Any = None, window_dilation: Any = None,
) -> Layout | Left:  # fmt: skip
    ones = (1,) * len(shape)
    pads = tuple(map(tuple, padding))
    windows = zip(window_dimensions, window_strides, pads, base_dilation or ones, window_dilation or ones, strict=True)
    return _read(shape, out, tuple(windows))


def _spread(x: Array, layout: Layout, value: Any) -> Array:
    """x with `value` between its elements, where the reduction dilates it."""
    if not any(layout.gaps):
        return x
    return lax.pad(x, jnp.array(value, x.dtype), [(0, 0, gap) for gap in layout.gaps])


def _pooled(x: Array, out: tuple[int, ...], layout: Layout, reducer: str) -> tuple[Array, tuple[int, ...]]:
    if reducer == "add":
        y = products.window_sum(layout.enter(_spread(x, layout, 0)), layout.geometry)
    else:
        x = _spread(x, layout, pools.identity(x.dtype, reducer == "max"))
        y = products.extreme(layout.enter(x), layout.geometry, reducer == "max")
    return layout.leave(y, out)


def _able(dtype: Any, reducer: str) -> bool:
    """Whether jconv reduces arrays of this type: add any number, max and min those that have an order."""
    kinds = (jnp.inexact, jnp.integer) if reducer == "add" else (jnp.floating, jnp.integer)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _done(left: tuple[Array, tuple[int, ...]], became: str) -> Done:
    """What has computed an array, which is to be transposed."""
    return Done(lax.transpose(*left), became, left)


_NAMES = {"max": "winner", "min": "winner (the smallest)", "add": "window_sum"}


def replace_monoid(reducer: str, primitive: Any, x: Array, **params: Any) -> Done | Left:
    """reduce_window_max, _min and _sum."""
    aval = _jax.abstract_eval(primitive, (jax.typeof(x),), params)
    if not _able(x.dtype, reducer):
        return Left(f"an operand of dtype {x.dtype}")
    layout = _layout(x.shape, aval.shape, **params)
    if isinstance(layout, Left):
        return layout
    y, order = _pooled(x, aval.shape, layout, reducer)
    return _done((_jax.as_weak(y) if aval.weak_type else y, order), _NAMES[reducer])


def replace_general(primitive: Any, *operands: Any, jaxpr: Any, consts: Any, **params: Any) -> Done | Left:
    """reduce_window with a reducer and an initial value of the user's, which counts once in each window."""
    avals = _jax.abstract_eval(
        primitive, tuple(map(jax.typeof, operands)), {"jaxpr": jaxpr, "consts": consts, **params}
    )
    if len(operands) != 2:
        return Left(f"a reducer of {len(operands) // 2} arrays")
    reducer = None if consts else reducer_of(jaxpr)
    if reducer is None:
        return Left("its reducer is none of max, min and add")
    x, initial = operands
    aval = avals[0]
    if not _able(x.dtype, reducer):
        return Left(f"an operand of dtype {x.dtype}")
    layout = _layout(x.shape, aval.shape, **params)
    if isinstance(layout, Left):
        return layout
    y, initial = lax.transpose(*_pooled(x, aval.shape, layout, reducer)), jnp.broadcast_to(initial, aval.shape)
    if reducer == "add":
        y = y + initial
    else:  # the winner takes the gradient where it equals the initial value, as it does among elements
        wins = y >= initial if reducer == "max" else y <= initial
        y = jnp.where(wins | jnp.isnan(y), y, initial)
    return Done([_jax.as_weak(y) if aval.weak_type else y], f"{_NAMES[reducer]} and the initial value")


def _unordered(moved: Any, operand: Any, select_prim: Any) -> Left | None:
    """Why the winner is not jconv's to find: a type without order or sum, or a selection that is neither ge nor le."""
    if not (_able(operand, "max") and _able(moved, "add")):
        return Left(f"operands of dtypes {moved} and {operand}")
    return None if select_prim.name in ("ge", "le") else Left(f"it selects by {select_prim.name}, neither ge nor le")


def replace_scatter(primitive: Any, source: Array, operand: Array, *, select_prim: Any, **params: Any) -> Done | Left:
    """select_and_scatter_add: the gradient goes to the winner of each window of `operand`, all others get 0."""
    _jax.abstract_eval(primitive, (jax.typeof(source), jax.typeof(operand)), {"select_prim": select_prim, **params})
    if (left := _unordered(source.dtype, operand.dtype, select_prim)) is not None:
        return left
    layout = _layout(operand.shape, source.shape, **params)
    if isinstance(layout, Left):
        return layout
    _, index = products.winner(layout.enter(operand), layout.geometry, select_prim.name == "ge")
    dx = products.scatter(layout.enter(source), index, layout.geometry)
    return _done(layout.leave(dx, operand.shape), "winner and scatter")


def replace_gather(primitive: Any, tangents: Array, operand: Array, *, select_prim: Any, **params: Any) -> Done | Left:
    """select_and_gather_add: the tangent of the winner of each window of `operand`."""
    avals = (jax.typeof(tangents), jax.typeof(operand))
    shape = _jax.abstract_eval(primitive, avals, {"select_prim": select_prim, **params}).shape
    if (left := _unordered(tangents.dtype, operand.dtype, select_prim)) is not None:
        return left
    layout = _layout(operand.shape, shape, **params)
    if isinstance(layout, Left):
        return layout
    largest = select_prim.name == "ge"
    spread = _spread(operand, layout, pools.identity(operand.dtype, largest))
    _, index = products.winner(layout.enter(spread), layout.geometry, largest)
    dy = products.gather(layout.enter(_spread(tangents, layout, 0)), index, layout.geometry)
    return _done(layout.leave(dy, shape), "winner and gather")


def reducer_of(jaxpr: Any) -> str | None:
    """What a reducer of two scalars computes, "max", "min" or "add", spelled as an operation or as a selection."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, ("a", "b"), strict=True))
    value = _run(jaxpr, known)
    return _MEANING.get(value[0]) if value is not None else None


def _run(jaxpr: Any, known: dict[Any, Any]) -> list[Any] | None:
    """The results of `jaxpr` as terms in a and b; None if it holds an operation that none of them has."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if any(isinstance(v, Literal) for v in equation.invars):
            return None
        operands = [known[v] for v in equation.invars]
        body = equation.params.get("jaxpr") if name == "jit" else equation.params.get("call_jaxpr")
        if body is not None:
            results = _run(body.jaxpr, dict(zip(body.jaxpr.invars, operands, strict=True)))
            if results is None or body.consts:
                return None
        elif name in ("max", "min", "add", "add_any", "select_n", "gt", "ge", "lt", "le"):
            results = [(name.removesuffix("_any"), *operands)]
        elif name == "convert_element_type" and equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype:
            results = operands
        else:
            return None
        known.update(zip(equation.outvars, results, strict=True))
    return [None if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]


# Every term in a and b that means the largest, the smallest or the sum; select_n(p, x, y) is y where p.
_MEANING: dict[Any, str] = {}
for _x, _y in (("a", "b"), ("b", "a")):
    for _name in ("max", "min", "add"):
        _MEANING[_name, _x, _y] = _name
    for _greater in ("gt", "ge"):
        _MEANING["select_n", (_greater, _x, _y), _y, _x] = "max"
        _MEANING["select_n", (_greater, _x, _y), _x, _y] = "min"
    for _less in ("lt", "le"):
        _MEANING["select_n", (_less, _x, _y), _y, _x] = "min"
        _MEANING["select_n", (_less, _x, _y), _x, _y] = "max"
