"""What is compared: a function, its arguments told apart, and the fixed random directions of one comparison.

The arguments are leaves of a pytree. Floating-point and complex ones get gradients (those that argnums names), other
arrays are passed through without. Python integers, booleans and callables stay what they are, for they may decide
shapes; so do Python floats that are attributes of an object, such as the -inf in Equinox's max pool. With y the
results, c a fixed cotangent (1 where fun returns one real number, else random):
    loss(x) = Re sum of c y     the number that is derived
    v                           a random direction for each argument: jvp of grad, finite differences
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DYNAMIC, STATIC, DERIVED = "passed", "static", "derived"


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A function and its arguments. `kinds` says of each leaf whether it is derived, passed through, or static."""

    leaves: tuple[Any, ...]
    kinds: tuple[str, ...]
    names: tuple[str, ...]  # of each leaf, as errors and tables name it
    tree: Any
    seed: int

    @property
    def derived(self) -> tuple[Any, ...]:
        """The arguments that get gradients."""
        return self._of(DERIVED)

    @property
    def passed(self) -> tuple[Any, ...]:
        """The arrays that do not."""
        return self._of(DYNAMIC)

    @property
    def derived_names(self) -> tuple[str, ...]:
        return tuple(name for name, kind in zip(self.names, self.kinds, strict=True) if kind == DERIVED)

    def _of(self, wanted: str) -> tuple[Any, ...]:
        return tuple(leaf for leaf, kind in zip(self.leaves, self.kinds, strict=True) if kind == wanted)

    def bound(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """call(derived, passed) -> fun's result, the static leaves in their places."""

        def call(derived: Sequence[Any], passed: Sequence[Any]) -> Any:
            given = {DERIVED: iter(derived), DYNAMIC: iter(passed)}
            leaves = [
                leaf if kind == STATIC else next(given[kind])
                for leaf, kind in zip(self.leaves, self.kinds, strict=True)
            ]
            return fun(*jax.tree.unflatten(self.tree, leaves))

        return call

    def directions(self, number: int) -> tuple[np.ndarray, ...]:
        """Direction `number`: standard normal, one array an argument that is derived, rounded to its dtype."""
        rng = np.random.default_rng((self.seed, 1, number))
        return tuple(_normal(rng, jnp.shape(leaf), _dtype(leaf)) for leaf in self.derived)

    def cotangents(self, results: Any) -> tuple[np.ndarray, ...]:
        """c for each inexact leaf of the (abstract) results of fun."""
        outs = [out for out in jax.tree.leaves(results) if inexact(out.dtype)]
        if len(outs) == 1 and outs[0].shape == () and jnp.issubdtype(outs[0].dtype, jnp.floating):
            return (np.ones((), outs[0].dtype),)
        rng = np.random.default_rng((self.seed, 0))
        return tuple(_normal(rng, out.shape, out.dtype) for out in outs)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return np.asarray(values).astype(dtype)


def inexact(dtype: Any) -> bool:
    """Whether arrays of this dtype have gradients."""
    return jnp.issubdtype(dtype, jnp.inexact)


def _dtype(leaf: Any) -> Any:
    return jax.typeof(leaf).dtype


def wide(array: Any) -> np.ndarray:
    """An array of any real or complex dtype in double precision."""
    array = np.asarray(array)
    return array.astype(np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64)


def widened(arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Each array in double precision, integers and random keys as they are."""
    return tuple(wide(array) if inexact(_dtype(array)) else array for array in arrays)


def pose(fun: Callable[..., Any], args: tuple[Any, ...], argnums: int | Sequence[int] | None, seed: int) -> Problem:
    """The problem that compare's arguments pose.

    Raises:
      TypeError: fun is no function, an argument holds what is no array, or nothing that has a gradient.
      ValueError: argnums names an argument that is not there.
    """
    if not callable(fun):
        raise TypeError(f"compare: fun={fun!r} must be a function, got {type(fun).__name__}")
    wanted = _positions(argnums, len(args))
    leaves, kinds, names = [], [], []
    parameters = parameter_names(fun, len(args))
    paths, tree = jax.tree_util.tree_flatten_with_path(args)
    for path, leaf in paths:
        name = parameters[path[0].idx] + jax.tree_util.keystr(path[1:])
        setting = isinstance(leaf, float | complex) and isinstance(path[-1], jax.tree_util.GetAttrKey)
        kind = STATIC if setting else _kind(name, leaf)
        if kind == DERIVED and path[0].idx not in wanted:
            kind = DYNAMIC
        leaves.append(leaf if kind == STATIC else jnp.asarray(leaf))
        kinds.append(kind)
        names.append(name)
    if DERIVED not in kinds:
        which = "no argument" if argnums is None else f"argnums={argnums!r}: no argument named there"
        raise TypeError(f"compare: {which} holds floating-point numbers, so there is no gradient to compare")
    return Problem(tuple(leaves), tuple(kinds), tuple(names), tree, seed)


def _kind(name: str, leaf: Any) -> str:
    if isinstance(leaf, bool | int) or callable(leaf):
        return STATIC
    try:
        dtype = _dtype(leaf)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_) or _is_key(dtype)):
        shown = repr(leaf) if len(repr(leaf)) <= 40 else repr(leaf)[:40] + "..."
        raise TypeError(
            f"compare: {name}={shown} must be an array or a number, got {type(leaf).__name__}; bind what is neither "
            "with functools.partial"
        )
    return DERIVED if inexact(dtype) else DYNAMIC


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _positions(argnums: int | Sequence[int] | None, count: int) -> set[int]:
    if argnums is None:
        return set(range(count))
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in wanted:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"compare: argnums={argnums!r} must be an integer or a sequence of integers")
        if not -count <= number < count:
            raise ValueError(f"compare: argnums={argnums!r} must name one of the {count} arguments, got {number}")
    return {number % count for number in wanted}


def parameter_names(fun: Callable[..., Any], count: int) -> list[str]:
    """fun's own names for its first `count` positional arguments; args[i] where it has none."""
    names = []
    try:
        for parameter in inspect.signature(fun).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
            else:
                break
    except (TypeError, ValueError):
        pass
    return [*names[:count], *(f"args[{i}]" for i in range(len(names), count))]


def name_of(fun: Callable[..., Any]) -> str:
    """What to call fun in a title."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__qualname__", None) or type(fun).__qualname__
