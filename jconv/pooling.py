"""Pooling, as users call it: arguments read and checked, layouts brought to channels_last and back.

The formulas and the rules stand in pool_rules.py, the pieces in pool_products.py, the arithmetic of windows in
geometry.py.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jconv import arguments, pool_products, pool_rules, value_padding
from jconv import geometry as geo
from jconv.algorithms import tables
from jconv.algorithms.tables import Windows
from jconv.pool_rules import ExtremePlan, LpPlan, SumPlan

Array = jax.Array
Integers = int | tuple[int, ...] | list[int]
Padding = str | int | tuple[int | tuple[int, int], ...] | list[int | tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call's arrays are laid out, and what is done to x before its windows slide."""

    data_format: str
    batched: bool
    values: tuple[tuple[tuple[int, int], ...], str] | None = (
        None  # (pads, mode) where padding takes values of the input
    )
    kept: tuple[int, ...] | None = None  # elements of each axis that a negative high padding leaves, in ceil_mode


def array_in(array: Array, layout: Layout) -> Array:
    """(batch, *space, channels) of an array of a call, padded with its own values or cropped as the call asks."""
    array = array if layout.batched else array[None]
    array = array if layout.data_format == "channels_last" else jnp.moveaxis(array, 1, -1)
    if layout.values:
        array = value_padding.pad(array, *layout.values)
    if layout.kept:
        array = jax.lax.slice(array, (0,) * array.ndim, (array.shape[0], *layout.kept, array.shape[-1]))
    return array


def array_out(array: Array, layout: Layout) -> Array:
    """An array (batch, *space, channels) in the layout of the call."""
    if layout.data_format == "channels_first":
        array = jnp.moveaxis(array, -1, 1)
    return array if layout.batched else array[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_extreme(layout: Layout, plan: ExtremePlan, space: tuple[int, ...] | None, x: Array) -> Any:
    """The pooled x, and with `space`, the input's spatial shape, the elements that won, row-major."""
    rule = pool_rules.max_pool if plan.largest else pool_rules.min_pool
    x = array_in(x, layout)
    y = array_out(rule(plan, x), layout)
    if space is None:
        return y
    # XLA sees the same winner twice, here and in the rule, and computes it once.
    _, tap = pool_products.winner(jax.lax.stop_gradient(x), plan.geometry, plan.largest)
    return y, array_out(elements_of(plan.geometry.axes, space, tap), layout)


def elements_of(windows: tuple[Windows, ...], space: tuple[int, ...], tap: Array) -> Array:
    """The element of an input of shape `space`, row-major, under a tap of each window; -1 where that is padding."""
    tap, element = tap.astype(jnp.int32), jnp.zeros(tap.shape, jnp.int32)
    outside = jnp.zeros((), bool)
    for i, axis in reversed(list(enumerate(windows))):
        start = tables.starts(axis).astype(np.int32).reshape(*(1,) * (i + 1), -1, *(1,) * (tap.ndim - 2 - i))
        a = jnp.asarray(start) + tap % axis.window * axis.dilation
        tap = tap // axis.window
        if isinstance(axis, geo.Axis) and axis.pads:
            outside = outside | (a < 0) | (a >= axis.input)
        element = element + a * math.prod(space[i + 1 :])
    return jnp.where(outside, jnp.int32(-1), element)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_sum(layout: Layout, plan: SumPlan, average: bool, x: Array) -> Array:
    rule = pool_rules.avg_pool if average else pool_rules.sum_pool
    return array_out(rule(plan, array_in(x.astype(plan.dtype), layout)), layout)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _run_lp(layout: Layout, plan: LpPlan, x: Array) -> Array:
    x = array_in(x, layout)
    if plan.q < math.inf:
        return array_out(pool_rules.lp_pool(plan, x.astype(plan.dtype)), layout)
    y = pool_rules.max_pool(ExtremePlan(plan.geometry, True), pool_rules.absolute(x.astype(plan.dtype)))
    return array_out(jnp.maximum(y, jnp.zeros((), y.dtype)), layout)  # 0 where a window is wholly in the padding


# Geometry of a call, from normalised arguments; cached, since a model repeats its layers.


@functools.lru_cache(maxsize=4096)
def geometry_of(
    fun: str, space: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], padding: Any,
    dilation: tuple[int, ...], ceil_mode: bool,
) -> tuple[geo.Geometry, Any, Any, tuple[tuple[int, int], ...]]:  # fmt: skip
    """Geometry, Layout.values, Layout.kept, and for each axis the elements [first, end) that are input or padding."""
    values = kept = None
    if padding in geo.VALUE_MODES:
        values = (
            tuple(geo.padding_pair(padding, *item) for item in zip(space, window, strides, dilation, strict=True)),
            padding,
        )
        least = 2 if padding == "REFLECT" else 1
        for n, pair in zip(space, values[0], strict=True):
            if n < least and any(pair):
                raise ValueError(
                    f"{fun}: padding={padding!r} needs at least {least} elements along each axis, got {space}"
                )
        space, padding = tuple(n + sum(pair) for n, pair in zip(space, values[0], strict=True)), "VALID"
    pads = [
        geo.padding_pair(padding if isinstance(padding, str) else padding[i], n, k, s, d)
        for i, (n, k, s, d) in enumerate(zip(space, window, strides, dilation, strict=True))
    ]
    if ceil_mode and any(high < 0 for _, high in pads):
        # What a negative padding crops is gone, and a window that sticks out must not see it.
        kept = tuple(max(0, n + min(high, 0)) for n, (_, high) in zip(space, pads, strict=True))
        # One of more than the input has crops the padding before it too.
        pads = [(low + min(0, n + min(high, 0)), max(high, 0)) for n, (low, high) in zip(space, pads, strict=True)]
        space = kept
    count = geo.places_ceil if ceil_mode else geo.places
    geometry = geo.sliding(fun, space, window, strides, tuple(pads), dilation, count=count)
    return geometry, values, kept, tuple((-low, n + high) for n, (low, high) in zip(space, pads, strict=True))


def is_sequence(value: Any) -> bool:
    """Whether `value` has an entry for each axis; not so an integer, be it an array without axes, nor a string."""
    return (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or getattr(value, "ndim", 0) > 0


def rank_of(fun: str, name: str, x: Any, argument: str, value: Any) -> int:
    """The number of spatial axes: as many as `value` has entries; x (`name`) is batched where it is one integer."""
    if is_sequence(value):
        if len(value) == 0:
            raise ValueError(f"{fun}: {argument}={value!r} must have an entry for each spatial axis, at least one")
        return len(value)
    if x.ndim < 3:
        raise ValueError(
            f"{fun}: {name} must have at least 3 axes (batch, spatial, channels) where {argument}={value!r} is one "
            f"integer, got shape {x.shape}; give {argument} as a tuple for unbatched input"
        )
    return x.ndim - 2


def read(
    fun: str, x: Any, window_shape: Any, strides: Any, padding: Any, window_dilation: Any, ceil_mode: Any,
    data_format: Any,
) -> Any:  # fmt: skip
    """(x, geometry, layout, spatial shape, the limits that geometry_of gives) of a call."""
    x = arguments.array(fun, "x", x)
    data_format = arguments.data_format(fun, data_format)
    rank = rank_of(fun, "x", x, "window_shape", window_shape)
    batched = arguments.batched(fun, "x", x.shape, rank)
    shape = arguments.channels_last_shape(x.shape, data_format, batched)
    space = shape[int(batched) : -1]
    geometry, values, kept, limits = geometry_of(
        fun,
        space,
        geo.integers(fun, "window_shape", window_shape, rank, 1),
        geo.integers(fun, "strides", strides, rank, 1),
        geo.padding_form(fun, padding, rank),
        geo.integers(fun, "window_dilation", window_dilation, rank, 1),
        arguments.flag(fun, "ceil_mode", ceil_mode),
    )
    return x, geometry, Layout(data_format, batched, values, kept), space, limits


def _steps(strides: Any) -> Any:
    """A pooling's strides; None: 1, as in Flax."""
    return 1 if strides is None else strides


def mean_dtype(dtype: Any) -> Any:
    """The dtype of a mean: integers divide to float."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.result_type(float))


def _extreme(fun: str, largest: bool, x: Any, return_indices: Any, padding: Any, *options: Any) -> Any:
    window_shape, strides, window_dilation, ceil_mode, data_format = options
    x, geometry, layout, space, _ = read(
        fun, x, window_shape, _steps(strides), padding, window_dilation, ceil_mode, data_format
    )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{fun}: x must have a real dtype, since complex numbers have no order, got {x.dtype}")
    if arguments.flag(fun, "return_indices", return_indices) and layout.values:
        raise ValueError(f"{fun}: return_indices=True needs padding that is no element of x, got padding={padding!r}")
    return _run_extreme(layout, ExtremePlan(geometry, largest), space if return_indices else None, x)


def max_pool(
    x: ArrayLike,
    window_shape: Integers,
    strides: Integers | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Integers = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    data_format: str = "channels_last",
) -> Any:
    """Max pooling of any rank: y[n, p, c] = max over t of x[n, p*s + t*d - low, c].

    Max pooling is a gather by the winner's index, its gradient the scatter to it (all others get 0). The first winner
    in row-major order takes ties; a NaN in the window is the output, and the first one is the winner. Padding never
    wins over an element, not even over -inf. Between forward and backward only the winner's place in its window is
    kept, in one byte where the window has at most 256 taps.

    Args:
      x: (batch, *space, channels), or unbatched (*space, channels), any number of spatial axes from 1; floats or
        integers.
      window_shape: k, elements of the window; an integer (x is then batched) or one a spatial axis.
      strides: s, in elements; an integer or one a spatial axis; None: 1, as in Flax.
      padding: "VALID", "SAME" (ceil(n / s) places, the odd element of padding on the right), "SAME_LOWER" (on the
        left), "CAUSAL" (1-D, all on the left), "CIRCULAR", "REFLECT", "EDGE" (values of x), an integer, or an integer
        or (low, high) a spatial axis; negative padding crops.
      window_dilation: d, the distance of the window's taps.
      ceil_mode: let a last window stick out beyond the right padding, if it starts before that (PyTorch's rule).
      return_indices: return (y, indices), the winner's element of x, row-major over its spatial axes.
      data_format: "channels_last", or "channels_first": x (batch, channels, *space).

    Returns:
      (batch, *out_space, channels), out_space = (n + low + high - d*(k-1) - 1) // s + 1, in ceil_mode rounded up; a
      window wholly in the padding gives -inf (or the least integer). With return_indices also int32 indices of this
      shape, -1 for such a window.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, section 9.3.

    Example:
      >>> x = jnp.array([1.0, 5.0, 5.0, 2.0]).reshape(1, 4, 1)
      >>> max_pool(x, 2).ravel()
      Array([5., 5., 5.], dtype=float32)
      >>> jax.grad(lambda x: max_pool(x, 2).sum())(x).ravel()
      Array([0., 2., 1., 0.], dtype=float32)
    """
    return _extreme(
        "max_pool", True, x, return_indices, padding, window_shape, strides, window_dilation, ceil_mode, data_format
    )


def min_pool(
    x: ArrayLike,
    window_shape: Integers,
    strides: Integers | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Integers = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    data_format: str = "channels_last",
) -> Any:
    """Min pooling: max_pool with the order reversed. A window wholly in the padding gives inf, or the greatest integer.

    Raises:
      ValueError, TypeError: as max_pool.

    Example:
      >>> min_pool(jnp.array([1.0, 5.0, 5.0, 2.0]).reshape(1, 4, 1), 2).ravel()
      Array([1., 5., 2.], dtype=float32)
    """
    return _extreme(
        "min_pool", False, x, return_indices, padding, window_shape, strides, window_dilation, ceil_mode, data_format
    )


def avg_pool(
    x: ArrayLike,
    window_shape: Integers,
    strides: Integers | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Integers = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    data_format: str = "channels_last",
) -> Array:
    """Average pooling of any rank: y[n, p, c] = sum over t of x[n, p*s + t*d - low, c] / size[p].

    Average pooling is linear; its gradient spreads g / window size evenly. float16 and bfloat16 are summed in float32.

    Args:
      x: as in max_pool; floats, complex, or integers, whose average is a float.
      window_shape: as in max_pool, and so are strides, padding, window_dilation, ceil_mode and data_format.
      strides: see max_pool.
      padding: see max_pool; it adds zeros.
      window_dilation: see max_pool.
      ceil_mode: see max_pool. What of a window lies beyond the right padding is never counted.
      count_include_pad: whether padding counts in a window's size; if not, a window wholly in the padding gives nan.
      divisor_override: a non-zero integer to divide by instead of the size.
      data_format: see max_pool.

    Returns:
      (batch, *out_space, channels), as in max_pool.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> avg_pool(jnp.arange(1.0, 8.0).reshape(1, 7, 1), 3, 2).ravel()
      Array([2., 4., 6.], dtype=float32)
    """
    fun = "avg_pool"
    array, geometry, layout, _, limits = read(
        fun, x, window_shape, _steps(strides), padding, window_dilation, ceil_mode, data_format
    )
    divisor = (
        limits
        if arguments.flag(fun, "count_include_pad", count_include_pad)
        else tuple((0, a.input) for a in geometry.axes)
    )
    if divisor_override is not None:
        divisor = geo.integer(fun, "divisor_override", divisor_override)
        if divisor == 0 or abs(divisor) >= 2**63:
            raise ValueError(f"{fun}: divisor_override={divisor_override!r} must not be zero, and fit in 64 bits")
    return _run_sum(layout, SumPlan(geometry, mean_dtype(array.dtype), divisor), True, array)


def sum_pool(
    x: ArrayLike,
    window_shape: Integers,
    strides: Integers | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Integers = 1,
    ceil_mode: bool = False,
    data_format: str = "channels_last",
) -> Array:
    """Sum pooling: y[n, p, c] = sum over t of x[n, p*s + t*d - low, c]. Arguments as in max_pool.

    Linear; its gradient spreads g to every element of the window. float16 and bfloat16 are summed in float32, integers
    in their own type, where they wrap as in lax.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Example:
      >>> sum_pool(jnp.arange(1.0, 8.0).reshape(1, 7, 1), 3, 2).ravel()
      Array([ 6., 12., 18.], dtype=float32)
    """
    fun = "sum_pool"
    array, geometry, layout, *_ = read(
        fun, x, window_shape, _steps(strides), padding, window_dilation, ceil_mode, data_format
    )
    return _run_sum(layout, SumPlan(geometry, array.dtype, 1), False, array)


def lp_pool(
    x: ArrayLike,
    p: float,
    window_shape: Integers,
    strides: Integers | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Integers = 1,
    ceil_mode: bool = False,
    data_format: str = "channels_last",
) -> Array:
    """The p-norm of each window: y[n, i, c] = (sum over t of |x[n, i*s + t*d - low, c]|^p)^(1/p).

    Its gradient is dx = sign(x) |x|^(p-1) times the sum of g y^(1-p) over the windows that see x; 0 at an all-zero
    window and, for p < 1, at a zero. p = 1 sums, p = inf is the maximum of |x|.

    Args:
      x: as in max_pool; floats or integers, whose norm is a float.
      p: the order of the norm, a number above 0, or inf.
      window_shape: as in max_pool, and so are strides, padding, window_dilation, ceil_mode and data_format.
      strides: see max_pool.
      padding: see max_pool; it adds zeros.
      window_dilation: see max_pool.
      ceil_mode: see max_pool.
      data_format: see max_pool.

    Returns:
      (batch, *out_space, channels), as in max_pool.

    Raises:
      ValueError, TypeError: an argument is wrong; the message names it, its value and what was expected.

    Source: ONNX operator LpPool; Gulcehre et al. 2014, Learned-norm pooling, eq. 2.

    Example:
      >>> lp_pool(jnp.array([3.0, -4.0, 0.0]).reshape(1, 3, 1), 2, 2).ravel()
      Array([5., 4.], dtype=float32)
    """
    fun = "lp_pool"
    array, geometry, layout, *_ = read(
        fun, x, window_shape, _steps(strides), padding, window_dilation, ceil_mode, data_format
    )
    if isinstance(p, bool) or not isinstance(p, int | float | np.integer | np.floating):
        raise TypeError(f"{fun}: p={p!r} must be a static number, got {type(p).__name__}")
    if not p > 0 or (isinstance(p, int) and p >= 2**63):
        raise ValueError(f"{fun}: p={p!r} must be above 0 and fit in 64 bits, or inf")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{fun}: x must have a real dtype, got {array.dtype}")
    return _run_lp(layout, LpPlan(geometry, mean_dtype(array.dtype), float(p)), array)
