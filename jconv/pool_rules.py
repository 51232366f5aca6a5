"""The rules of pooling, written by hand: forward and backward of each, as jax.custom_vjp functions.

Along one axis (window of k taps, stride s, dilation d, low padding l), place p and tap t see element a = p*s + t*d - l:
    max      y[p] = max over t of x[a]                dx[a] = sum of g[p] over the windows whose winner is a
    sum      y[p] = sum over t of x[a]                dx[a] = sum of g[p] over the windows that see a
    average  y[p] = sum over t of x[a] / size[p]      dx[a] = sum of g[p] / size[p] over the windows that see a
    lp       y[p] = (sum over t of |x[a]|^q)^(1/q)    dx[a] = sign(x[a]) |x[a]|^(q-1) * sum of g[p] y[p]^(1-q)
Max pooling is a gather by the winner's index, its gradient the scatter to it (all others get 0), and each is the
other's derivative. Average pooling is linear; its gradient spreads g / window size evenly. The pieces stand in
pool_products.py.
Sources: Zhou and Chellappa 1988, Computation of optical flow using a neural network (max); LeCun et al. 1998,
Gradient-based learning applied to document recognition, section II.B (average); Gulcehre et al. 2014, Learned-norm
pooling for deep feedforward and recurrent neural networks, eq. 2 (lp).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import pool_products as products
from jconv.algorithms.tables import Adaptive, sizes
from jconv.algorithms.views import wide
from jconv.geometry import Geometry
from jconv.operators import Rule, operator

Array = jax.Array


# max_pool and min_pool: y is x gathered by the index of each window's winner.


@dataclasses.dataclass(frozen=True)
class ExtremePlan:
    """What max_pool and min_pool know beside x."""

    geometry: Geometry
    largest: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _extreme_pool(plan: ExtremePlan, x: Array) -> Array:
    return products.extreme(x, plan.geometry, plan.largest)


def _extreme_pool_fwd(plan: ExtremePlan, x: Any) -> tuple[Array, Array]:
    y, index = products.winner(x.value, plan.geometry, plan.largest)
    return y, index  # the winner's place within its window is all that is kept


def _extreme_pool_bwd(plan: ExtremePlan, index: Array, g: Array) -> tuple[Array]:
    return (products.scatter(g, index, plan.geometry),)  # the scatter to the winner: all others get 0


def _extreme_pool_tangent(plan: ExtremePlan, index: Array, shape: Any, dx: Array) -> Array:
    del shape
    return products.gather(dx, index, plan.geometry)  # max pooling is a gather by the winner's index


_extreme_pool.defvjp(_extreme_pool_fwd, _extreme_pool_bwd, symbolic_zeros=True)
max_pool, min_pool = (
    operator(Rule(name, _extreme_pool, _extreme_pool_fwd, _extreme_pool_bwd, _extreme_pool_tangent))
    for name in ("max_pool", "min_pool")
)


# sum_pool and avg_pool: linear, so the tangent is the pooling itself, and the gradient its adjoint.


@dataclasses.dataclass(frozen=True)
class SumPlan:
    """What sum_pool and avg_pool know beside x.

    divisor: what a window's sum is divided by: an integer, or the number of its elements in [first, end) along each
      axis, counted from the input's first: padding that counts has numbers below 0 and from `input` on.
    """

    geometry: Geometry
    dtype: Any
    divisor: int | tuple[tuple[int, int], ...]


def _sums(plan: SumPlan, x: Array) -> Array:
    return products.window_sum(x, plan.geometry, plan.dtype, plan.divisor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_pool(plan: SumPlan, x: Array) -> Array:
    return _sums(plan, x)


def _sum_pool_fwd(plan: SumPlan, x: Any) -> tuple[Array, tuple[()]]:
    return _sums(plan, x.value), ()


def _sum_pool_bwd(plan: SumPlan, residuals: tuple[()], g: Array) -> tuple[Array]:
    del residuals
    return (products.window_spread(g, plan.geometry, plan.dtype, plan.divisor),)  # spreads g / window size evenly


def _sum_pool_tangent(plan: SumPlan, residuals: tuple[()], shape: Any, dx: Array) -> Array:
    del residuals, shape
    return _sums(plan, dx)


_sum_pool.defvjp(_sum_pool_fwd, _sum_pool_bwd, symbolic_zeros=True)
sum_pool, avg_pool = (
    operator(Rule(name, _sum_pool, _sum_pool_fwd, _sum_pool_bwd, _sum_pool_tangent))
    for name in ("sum_pool", "avg_pool")
)


# lp_pool: the q-norm of each window; q = inf is max pooling of |x|.


@dataclasses.dataclass(frozen=True)
class LpPlan:
    """What lp_pool knows beside x; q is the order of the norm, finite."""

    geometry: Geometry
    dtype: Any
    q: float


def absolute(x: Array) -> Array:
    """|x|, whose derivative at 0 is 0."""
    return x * jnp.sign(x)


def _power(a: Array, q: float) -> Array:
    """a^q for a >= 0 with 0^q = 0, and derivatives that are 0 where a is."""
    if q == 1:
        return a
    if q == 2:
        return a * a
    some = a > 0
    base = jnp.where(some, a, jnp.ones((), a.dtype))
    value = jnp.sqrt(base) if q == 0.5 else base ** jnp.asarray(q, a.dtype)
    return jnp.where(some, value, jnp.zeros((), a.dtype))


def _slope(plan: LpPlan, x: Array) -> Array:
    """sign(x) |x|^(q-1), the derivative of |x|^q / q; 0 at 0."""
    x = x.astype(wide(x.dtype))
    return x if plan.q == 2 else jnp.sign(x) * _power(absolute(x), plan.q - 1)


def _norm(plan: LpPlan, x: Array) -> Array:
    x = x.astype(wide(x.dtype))
    powers = x * x if plan.q == 2 else _power(absolute(x), plan.q)
    return _power(products.window_sum(powers, plan.geometry), 1 / plan.q).astype(plan.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lp_pool(plan: LpPlan, x: Array) -> Array:
    return _norm(plan, x)


def _lp_pool_fwd(plan: LpPlan, x: Any) -> tuple[Array, tuple[Array, Array]]:
    y = lp_pool(dataclasses.replace(plan, dtype=wide(plan.dtype)), x.value)
    return y.astype(plan.dtype), (x.value, y)


def _lp_pool_bwd(plan: LpPlan, residuals: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, y = residuals
    share = g.astype(y.dtype) * _power(y, 1 - plan.q)  # 0 at an all-zero window
    return ((_slope(plan, x) * products.window_spread(share, plan.geometry)).astype(x.dtype),)


def _lp_pool_tangent(plan: LpPlan, residuals: tuple[Array, Array], shape: Any, dx: Array) -> Array:
    del shape
    x, y = residuals
    moved = products.window_sum(_slope(plan, x) * dx.astype(y.dtype), plan.geometry)
    return (moved * _power(y, 1 - plan.q)).astype(plan.dtype)


_lp_pool.defvjp(_lp_pool_fwd, _lp_pool_bwd, symbolic_zeros=True)
lp_pool = operator(Rule("lp_pool", _lp_pool, _lp_pool_fwd, _lp_pool_bwd, _lp_pool_tangent))


# adaptive_avg_pool: an average along one axis after the other, each over windows of its own width.


@dataclasses.dataclass(frozen=True)
class AdaptivePlan:
    """What adaptive_avg_pool knows beside x: the windows of each spatial axis."""

    windows: tuple[Adaptive, ...]
    dtype: Any


def _adaptive_size(plan: AdaptivePlan) -> np.ndarray:
    """Number of elements of each window, (*output, 1)."""
    rank = len(plan.windows)
    size = np.ones((1,) * (rank + 1), int)
    for i, windows in enumerate(plan.windows):
        size = size * sizes(windows).reshape([-1 if j == i else 1 for j in range(rank + 1)])
    return size


def _repeated(windows: Adaptive, dim: int, axes: int) -> np.ndarray:
    """Where expand repeats the last element of a window, for an array of so many axes with the taps at dim + 1."""
    again = np.arange(windows.window) >= sizes(windows)[:, None]
    return again.reshape([again.shape[i - dim] if i in (dim, dim + 1) else 1 for i in range(axes)])


def _adaptive_mean(plan: AdaptivePlan, x: Array) -> Array:
    total = x.astype(wide(x.dtype))
    for dim, windows in enumerate(plan.windows, start=1):
        total = products.expand(total, dim, windows)
        total = jnp.where(_repeated(windows, dim, total.ndim), jnp.zeros((), total.dtype), total).sum(dim + 1)
    return (total / jnp.asarray(_adaptive_size(plan), total.dtype)).astype(plan.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive_avg_pool(plan: AdaptivePlan, x: Array) -> Array:
    return _adaptive_mean(plan, x)


def _adaptive_avg_pool_fwd(plan: AdaptivePlan, x: Any) -> tuple[Array, tuple[()]]:
    return _adaptive_mean(plan, x.value), ()


def _adaptive_avg_pool_bwd(plan: AdaptivePlan, residuals: tuple[()], g: Array) -> tuple[Array]:
    del residuals
    share = g.astype(wide(g.dtype))
    share = share / jnp.asarray(_adaptive_size(plan), share.dtype)  # spreads g / window size evenly
    for dim, windows in reversed(list(enumerate(plan.windows, start=1))):
        share = jnp.broadcast_to(
            jnp.expand_dims(share, dim + 1), (*share.shape[: dim + 1], windows.window, *share.shape[dim + 1 :])
        )
        share = jnp.where(_repeated(windows, dim, share.ndim), jnp.zeros((), share.dtype), share)
        share = products.collect(share, dim, windows)
    return (share.astype(plan.dtype),)


def _adaptive_avg_pool_tangent(plan: AdaptivePlan, residuals: tuple[()], shape: Any, dx: Array) -> Array:
    del residuals, shape
    return _adaptive_mean(plan, dx)


_adaptive_avg_pool.defvjp(_adaptive_avg_pool_fwd, _adaptive_avg_pool_bwd, symbolic_zeros=True)
adaptive_avg_pool = operator(
    Rule(
        "adaptive_avg_pool",
        _adaptive_avg_pool,
        _adaptive_avg_pool_fwd,
        _adaptive_avg_pool_bwd,
        _adaptive_avg_pool_tangent,
    )
)


# max_unpool: writes y where the indices say; its rule is the gather.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_unpool(space: tuple[int, ...], y: Array, indices: Array) -> Array:
    return products.write(y, indices, space)


def _max_unpool_fwd(space: tuple[int, ...], y: Any, indices: Any) -> tuple[Array, Array]:
    return products.write(y.value, indices.value, space), indices.value


def _max_unpool_bwd(space: tuple[int, ...], indices: Array, g: Array) -> tuple[Array, None]:
    del space
    return products.read(g, indices), None  # the gather


def _max_unpool_tangent(space: tuple[int, ...], indices: Array, shape: Any, dy: Array, none: Any = None) -> Array:
    del shape, none
    return products.write(dy, indices, space)


_max_unpool.defvjp(_max_unpool_fwd, _max_unpool_bwd, symbolic_zeros=True)
max_unpool = operator(Rule("max_unpool", _max_unpool, _max_unpool_fwd, _max_unpool_bwd, _max_unpool_tangent))


# unfold and fold: moving values into patches, and adding them back; adjoint to each other, each the other's rule.


@dataclasses.dataclass(frozen=True)
class PatchPlan:
    """What unfold and fold know beside their array."""

    geometry: Geometry


def _to_columns(geometry: Geometry, x: Array) -> Array:
    """(batch, *input, channels) to (batch, *output, channels * taps), of channel and tap the channel the slower."""
    rank, channels = geometry.rank, x.shape[-1]
    for i, axis in enumerate(geometry.axes):
        x = products.expand(x, 2 * i + 1, axis)  # the places and taps of the axes before it stand in front
    order = (0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2))
    return jnp.transpose(x, order).reshape(x.shape[0], *geometry.output, channels * geometry.taps)


def _from_columns(geometry: Geometry, columns: Array) -> Array:
    """The adjoint of _to_columns; float16 and bfloat16 are added in float32."""
    rank, batch = geometry.rank, columns.shape[0]
    x = columns.astype(wide(columns.dtype)).reshape(
        batch, *geometry.output, columns.shape[-1] // geometry.taps, *geometry.window
    )
    order = (0, *(j for i in range(rank) for j in (1 + i, rank + 2 + i)), rank + 1)
    x = jnp.transpose(x, order)
    for i, axis in reversed(list(enumerate(geometry.axes))):
        x = products.collect(x, 2 * i + 1, axis)
    return x.astype(columns.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unfold(plan: PatchPlan, x: Array) -> Array:
    return _to_columns(plan.geometry, x)


def _unfold_fwd(plan: PatchPlan, x: Any) -> tuple[Array, tuple[()]]:
    return _to_columns(plan.geometry, x.value), ()


def _unfold_bwd(plan: PatchPlan, residuals: tuple[()], g: Array) -> tuple[Array]:
    del residuals
    return (_from_columns(plan.geometry, g),)  # fold


def _unfold_tangent(plan: PatchPlan, residuals: tuple[()], shape: Any, dx: Array) -> Array:
    del residuals, shape
    return _to_columns(plan.geometry, dx)


_unfold.defvjp(_unfold_fwd, _unfold_bwd, symbolic_zeros=True)
unfold = operator(Rule("unfold", _unfold, _unfold_fwd, _unfold_bwd, _unfold_tangent))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fold(plan: PatchPlan, columns: Array) -> Array:
    return _from_columns(plan.geometry, columns)


def _fold_fwd(plan: PatchPlan, columns: Any) -> tuple[Array, tuple[()]]:
    return _from_columns(plan.geometry, columns.value), ()


def _fold_bwd(plan: PatchPlan, residuals: tuple[()], u: Array) -> tuple[Array]:
    del residuals
    return (_to_columns(plan.geometry, u),)  # unfold


def _fold_tangent(plan: PatchPlan, residuals: tuple[()], shape: Any, dcolumns: Array) -> Array:
    del residuals, shape
    return _from_columns(plan.geometry, dcolumns)


_fold.defvjp(_fold_fwd, _fold_bwd, symbolic_zeros=True)
fold = operator(Rule("fold", _fold, _fold_fwd, _fold_bwd, _fold_tangent))
