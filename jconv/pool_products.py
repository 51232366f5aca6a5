"""The pieces of a pooling as JAX primitives: the winner of each window, and linear maps in pairs of transposes.

With letters as in geometry.py (output p, tap t and input a meet where p*s + t*d = a + low):
    winner         y[n, p, c] = max over t of x[n, a, c], and index[n, p, c] = the first tap t, row-major, that has it
    gather         y[n, p, c] = x[n, a, c], a the input under tap index[n, p, c]; 0 where that is padding
    scatter        dx[n, a, c] = sum of g[n, p, c] over the places p whose index names a; all others get 0
    window_sum     y[n, p, c] = sum over t of x[n, a, c] / size[p]
    window_spread  dx[n, a, c] = sum over p, t of g[n, p, c] / size[p]
Max pooling is a gather by the winner's index, its gradient the scatter to it (all others get 0), and each is the
other's derivative. Sum (size 1) and average are linear; their gradient spreads g / window size evenly. For
patches and for adaptive windows, along one axis:
    expand         y[.., p, t, ..] = x[.., a, ..], a the element that tap t sees at place p
    collect        x[.., a, ..] = sum of y[.., p, t, ..] over the (p, t) that see a
and for indices that are elements of the whole input, row-major over its spatial axes:
    write          x[n, indices[n, p, c], c] = y[n, p, c]; outside nothing; of equal indices the last is kept
    read           y[n, p, c] = x[n, indices[n, p, c], c], 0 for an index outside
Arrays are channels_last, (batch, *space, channels). What computes each stands in algorithms/pools.py,
sums.py and tables.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jconv import _jax
from jconv._sharding import Split
from jconv.algorithms import pools, sums, tables
from jconv.algorithms.sums import Divisor
from jconv.algorithms.tables import Windows
from jconv.geometry import Geometry

Array = jax.Array


def winner(x: Array, geometry: Geometry, largest: bool = True) -> tuple[Array, Array]:
    """(y, index) of the largest (smallest) element of each window; a NaN wins, and padding loses to every element.

    A window wholly in the padding has the identity, -inf or the least integer, and the index of a tap in the padding.
    """
    return tuple(winner_p.bind(x, geometry=geometry, largest=largest))


def extreme(x: Array, geometry: Geometry, largest: bool = True) -> Array:
    """winner's y alone, where nothing asks which element it was."""
    return extreme_p.bind(x, geometry=geometry, largest=largest)


def gather(x: Array, index: Array, geometry: Geometry) -> Array:
    """y[p] = x[a], a the input under tap index[p]; 0 where that is padding."""
    return gather_p.bind(*_jax.vary_alike(x, index), geometry=geometry)


def scatter(g: Array, index: Array, geometry: Geometry) -> Array:
    """dx[a] = sum of g[p] where index[p] names a: the gradient goes to the one winner, all others get 0."""
    return scatter_p.bind(*_jax.vary_alike(g, index), geometry=geometry)


def window_sum(x: Array, geometry: Geometry, dtype: Any = None, divisor: Divisor = None) -> Array:
    """y[p] = sum over t of x[p*s + t*d - low] / size[p]; of type `dtype`, x's if None. size: 1 without a divisor."""
    return window_sum_p.bind(x, geometry=geometry, dtype=jnp.dtype(dtype or x.dtype), divisor=divisor)


def window_spread(g: Array, geometry: Geometry, dtype: Any = None, divisor: Divisor = None) -> Array:
    """dx[a] = sum of g[p] / size[p] over all windows p that see a; of type `dtype`, g's if None."""
    return window_spread_p.bind(g, geometry=geometry, dtype=jnp.dtype(dtype or g.dtype), divisor=divisor)


def expand(x: Array, dim: int, windows: Windows) -> Array:
    """Axis `dim` of x becomes two, (output, window): the elements that each window sees."""
    return expand_p.bind(x, dim=dim, windows=windows)


def collect(g: Array, dim: int, windows: Windows) -> Array:
    """The adjoint of expand: axes `dim` and `dim` + 1 become one, each element the sum of its entries."""
    return collect_p.bind(g, dim=dim, windows=windows)


def write(y: Array, indices: Array, space: tuple[int, ...]) -> Array:
    """x (batch, *space, channels) with x[indices[p]] = y[p], 0 elsewhere."""
    return write_p.bind(*_jax.vary_alike(y, indices), space=space)


def read(x: Array, indices: Array) -> Array:
    """y[p] = x[indices[p]], 0 for an index outside."""
    return read_p.bind(*_jax.vary_alike(x, indices))


# Shapes: abstract evaluation.


@functools.lru_cache(maxsize=4096)
def _plain(change: tuple[int, ...], dtype: Any, axes: int) -> Any:
    """A lax program with the shapes of a primitive, which tells how its result varies under shard_map."""

    def form(x: Array) -> Array:
        while x.ndim < axes:
            x = jax.lax.expand_dims(x, (x.ndim - 1,))
        while x.ndim > axes:
            x = jax.lax.index_in_dim(x, 0, x.ndim - 2, keepdims=False)
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, n, 0) for n in change]).astype(dtype)

    return form


def _aval(like: Any, space: tuple[int, ...], dtype: Any) -> Any:
    """The abstract value (batch, *space, channels) that varies as `like` does."""
    shape = (like.shape[0], *space, like.shape[-1])
    change = tuple(b - a for a, b in zip((*like.shape[1:-1], *(1,) * len(space))[: len(space)], space))
    return _jax.abstract(_plain((0, *change, 0), jnp.dtype(dtype), len(shape)), (like,), shape, jnp.dtype(dtype))


def _winner_shape(x: Any, *, geometry: Geometry, largest: bool) -> Any:
    del largest
    assert x.shape[1:-1] == geometry.input, (x, geometry)
    return _aval(x, geometry.output, x.dtype), _aval(x, geometry.output, index_dtype(geometry))


def _extreme_shape(x: Any, *, geometry: Geometry, largest: bool) -> Any:
    return _winner_shape(x, geometry=geometry, largest=largest)[0]


def _gather_shape(x: Any, index: Any, *, geometry: Geometry) -> Any:
    assert (x.shape[1:-1], index.shape[1:-1]) == (geometry.input, geometry.output), (x, index, geometry)
    return _aval(x, geometry.output, x.dtype)


def _scatter_shape(g: Any, index: Any, *, geometry: Geometry) -> Any:
    assert g.shape == index.shape, (g, index)
    assert g.shape[1:-1] == geometry.output, (g, geometry)
    return _aval(g, geometry.input, g.dtype)


def _window_sum_shape(x: Any, *, geometry: Geometry, dtype: Any, divisor: Divisor) -> Any:
    del divisor
    assert x.shape[1:-1] == geometry.input, (x, geometry)
    return _aval(x, geometry.output, dtype)


def _window_spread_shape(g: Any, *, geometry: Geometry, dtype: Any, divisor: Divisor) -> Any:
    del divisor
    assert g.shape[1:-1] == geometry.output, (g, geometry)
    return _aval(g, geometry.input, dtype)


def _expand_shape(x: Any, *, dim: int, windows: Windows) -> Any:
    assert x.shape[dim] == windows.input, (x, dim, windows)
    return _aval(x, (*x.shape[1:dim], windows.output, windows.window, *x.shape[dim + 1 : -1]), x.dtype)


def _collect_shape(g: Any, *, dim: int, windows: Windows) -> Any:
    assert g.shape[dim : dim + 2] == (windows.output, windows.window), (g, dim, windows)
    return _aval(g, (*g.shape[1:dim], windows.input, *g.shape[dim + 2 : -1]), g.dtype)


def _write_shape(y: Any, indices: Any, *, space: tuple[int, ...]) -> Any:
    assert y.shape == indices.shape, (y, indices)
    assert len(space) == y.ndim - 2, (y, space)
    return _aval(y, space, y.dtype)


def _read_shape(x: Any, indices: Any) -> Any:
    assert (x.shape[0], x.shape[-1]) == (indices.shape[0], indices.shape[-1]), (x, indices)
    return _aval(x, indices.shape[1:-1], x.dtype)


def index_dtype(geometry: Geometry) -> Any:
    """The smallest type that counts the window's taps."""
    if geometry.taps <= 2**8:
        return jnp.dtype(jnp.uint8)
    return jnp.dtype(jnp.uint16 if geometry.taps <= 2**16 else jnp.int32)


# Batching: every primitive works on each entry of the batch alone, so a mapped axis is a larger batch.


def _batch(primitive: Any, arrays: Any, dims: Any, **params: Any) -> Any:
    size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
    folded = []
    for array, dim in zip(arrays, dims, strict=True):
        array = jnp.broadcast_to(array, (size, *array.shape)) if dim is None else jnp.moveaxis(array, dim, 0)
        folded.append(array.reshape(size * array.shape[1], *array.shape[2:]))
    out = primitive.bind(*folded, **params)
    split = lambda y: y.reshape(size, y.shape[0] // size, *y.shape[1:])
    return (list(map(split, out)), [0] * len(out)) if primitive.multiple_results else (split(out), 0)


def _splits(*arrays: Any, **params: Any) -> list[Split]:
    """Devices divide the images among them."""
    del params
    return [Split((0,) * len(arrays), (0, 0))]


# Derivatives: each linear piece is its own tangent map, and its transpose is the other one of its pair.


def _no_tangent(x: Array) -> Any:
    return _jax.Zero(jax.typeof(x).to_tangent_aval())


def _linear_jvp(primitive: Any, primals: Any, tangents: Any, **params: Any) -> Any:
    """The first operand is the linear one; the other, if there is one, holds integers."""
    out = primitive.bind(*primals, **params)
    if type(tangents[0]) is _jax.Zero or not jnp.issubdtype(out.dtype, jnp.inexact):
        return out, _no_tangent(out)
    return out, primitive.bind(*_jax.vary_alike(tangents[0], *primals[1:]), **params)


def _transpose(adjoint: Any, ct: Any, linear: Any, *indices: Any, **params: Any) -> Any:
    assert _jax.is_unknown(linear), linear
    aval = linear.aval
    out = _jax.Zero(aval.to_tangent_aval()) if type(ct) is _jax.Zero else adjoint(ct, *indices, aval=aval, **params)
    return (out, *(None for _ in indices))


def _define_linear(name: str, shape: Any, compute: Any, adjoint: Any) -> Any:
    """The primitive `name`; adjoint(ct, *indices, aval=of the operand, **params) is its transpose."""
    primitive = _jax.Primitive(name)
    primitive.def_abstract_eval(shape)
    _jax.define(primitive, compute, apart=True, splits=_splits)
    _jax.set_batching(primitive, functools.partial(_batch, primitive))
    _jax.set_jvp(primitive, functools.partial(_linear_jvp, primitive))
    _jax.set_transpose(primitive, functools.partial(_transpose, adjoint))
    return primitive


def _winner_jvp(primals: Any, tangents: Any, *, geometry: Geometry, largest: bool) -> Any:
    y, index = winner_p.bind(*primals, geometry=geometry, largest=largest)
    if type(tangents[0]) is _jax.Zero or not jnp.issubdtype(y.dtype, jnp.inexact):
        dy = _no_tangent(y)
    else:
        dy = gather(tangents[0], index, geometry)  # max pooling is a gather by the winner's index
    return [y, index], [dy, _no_tangent(index)]


def _extreme_jvp(primals: Any, tangents: Any, *, geometry: Geometry, largest: bool) -> Any:
    (y, _), (dy, _) = _winner_jvp(primals, tangents, geometry=geometry, largest=largest)
    return y, dy


winner_p = _jax.Primitive("winner")
winner_p.multiple_results = True
winner_p.def_abstract_eval(_winner_shape)
_jax.define(winner_p, pools.winner, apart=True, splits=_splits)
_jax.set_batching(winner_p, functools.partial(_batch, winner_p))
_jax.set_jvp(winner_p, _winner_jvp)

extreme_p = _jax.Primitive("extreme")
extreme_p.def_abstract_eval(_extreme_shape)
_jax.define(extreme_p, pools.extreme, apart=True, splits=_splits)
_jax.set_batching(extreme_p, functools.partial(_batch, extreme_p))
_jax.set_jvp(extreme_p, _extreme_jvp)

gather_p = _define_linear(
    "gather_winner",
    _gather_shape,
    pools.gather,
    lambda g, index, aval, geometry: scatter(g, index, geometry),  # <gather(x, i), g> = <x, scatter(g, i)>
)
scatter_p = _define_linear(
    "scatter_winner",
    _scatter_shape,
    pools.scatter,
    lambda u, index, aval, geometry: gather(u, index, geometry),  # <scatter(g, i), u> = <g, gather(u, i)>
)
window_sum_p = _define_linear(
    "window_sum",
    _window_sum_shape,
    sums.window_sum,
    lambda g, aval, geometry, dtype, divisor: window_spread(
        g, geometry, aval.dtype, divisor
    ),  # <window_sum(x), g> = <x, window_spread(g)>
)
window_spread_p = _define_linear(
    "window_spread",
    _window_spread_shape,
    sums.window_spread,
    lambda u, aval, geometry, dtype, divisor: window_sum(
        u, geometry, aval.dtype, divisor
    ),  # <window_spread(g), u> = <g, window_sum(u)>
)
expand_p = _define_linear(
    "expand",
    _expand_shape,
    tables.expand,
    lambda g, aval, dim, windows: collect(g, dim, windows),  # <expand(x), g> = <x, collect(g)>
)
collect_p = _define_linear(
    "collect",
    _collect_shape,
    tables.collect,
    lambda x, aval, dim, windows: expand(x, dim, windows),  # <collect(g), x> = <g, expand(x)>
)
write_p = _define_linear(
    "write",
    _write_shape,
    pools.write,
    lambda u, indices, aval, space: read(u, indices),  # <write(y, i), u> = <y, read(u, i)> where no index comes twice
)
read_p = _define_linear(
    "read",
    _read_shape,
    pools.read,
    lambda g, indices, aval: write(g, indices, aval.shape[1:-1]),  # <read(x, i), g> = <x, write(g, i)>, likewise
)

__all__ = [
    "collect", "expand", "gather", "index_dtype", "read", "scatter", "window_spread", "window_sum", "winner", "write",
]  # fmt: skip
