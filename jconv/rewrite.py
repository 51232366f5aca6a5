"""One line to run a model on jconv, and one line back: accelerate, automatic, and a report of what they did.

    accelerate(fun)    fun, with every lax convolution and pooling in it computed by jconv's products
    automatic(fun)     fun, with every operator of jconv in it computed by plain lax, and derived by jax itself
Neither changes what fun means; both work inside and outside of jit, grad, vmap and the like, and for functions of any
library that is built on jax. How they find what to replace stands in rewriting/walk.py, what they replace it with in
rewriting/table.py.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from jconv.rewriting import table, walk
from jconv.rewriting.report import Note, Report

F = TypeVar("F", bound=Callable[..., Any])


def _function(fun: Any, name: str) -> None:
    if not callable(fun):
        raise TypeError(f"{name}: fun={fun!r} must be a function, got {type(fun).__name__}")


def accelerate(fun: F) -> F:
    """fun, with every lax convolution and pooling in it, and in what jax derives of it, computed by jconv.

    Results are those of fun, to rounding; gradients too, but where a maximum is NaN or padding ties with it (README).
    fun runs as it always does, so arguments of any kind, closures, random keys, mutable state and side effects are its
    own affair. Inside, through jit, scan, while, cond, remat, vmap, shard_map and others' custom rules, each
    conv_general_dilated, reduce_window, select_and_scatter_add and select_and_gather_add is read as one of jconv's
    products and replaced, also the kernel and input gradients that grad has made of one; what jconv does not compute
    better stays.

    The cost is at trace time. Under jit a call costs what it cost; a jitted fun gives a jitted function with the same
    options. Outside of any jit each operation goes through Python once more.

    Args:
      fun: a function of anything. It may use flax, equinox, haiku, optax, jax.grad: what counts is what it binds.

    Returns:
      A function with fun's signature. Put it inside or outside of grad, jit and vmap as you like; inside of grad a
      reduce_window that jax cannot derive, of a traced initial value or with dilated windows, has a gradient too.

    Raises:
      TypeError: fun is no function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> f = lambda x, w: lax.conv(x, w, (1,), "VALID").sum()
      >>> x, w = jnp.arange(5.0).reshape(1, 1, 5), jnp.ones((1, 1, 3))
      >>> jax.grad(accelerate(f), argnums=1)(x, w).ravel()
      Array([3., 6., 9.], dtype=float32)
      >>> accelerate(jax.grad(f, argnums=1))(x, w).ravel()
      Array([3., 6., 9.], dtype=float32)
    """
    _function(fun, "accelerate")
    return walk.apply(table.BY_JCONV, fun)  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def accelerated() -> Iterator[None]:
    """accelerate for what runs in the body of a `with` statement, jitted functions that are called there included.

    What is only traced or compiled there (jax.make_jaxpr, jax.jit(f).lower, a jitted function called later) does not
    run there, and stays as it is: give accelerate the function.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> with accelerated():
      ...     y = lax.conv(jnp.ones((1, 1, 5)), jnp.ones((1, 1, 3)), (1,), "VALID")
      >>> y.ravel()
      Array([3., 3., 3.], dtype=float32)
    """
    with walk.running(table.BY_JCONV):
        yield


def automatic(fun: F, *, rules: str | Sequence[str] = "all") -> F:
    """fun, with every operator of jconv in it replaced by plain lax, and derived by jax itself: accelerate's reverse.

    Forward mode, hessians, everything that jax has, work on the result, and none of jconv's rules is asked. To check a
    rule of your own, jax.custom_vjp functions that are not jconv's lose theirs too.

    Args:
      fun: a function of anything. Derive the result (jax.grad of automatic(fun)): around a jax.grad it comes too late
        for others' custom_vjp rules, which jax has used by then.
      rules: which custom_vjp functions beside jconv's own are derived instead: "all", or a sequence of names.

    Returns:
      A function with fun's signature.

    Raises:
      TypeError: fun is no function, or rules no strings.

    Example:
      >>> import jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> _ = square.defvjp(lambda x: (x * x, x), lambda x, g: (3.0 * x * g,))  # wrong: it should be 2
      >>> float(jax.grad(square)(1.0)), float(jax.grad(automatic(square))(1.0))
      (3.0, 2.0)
    """
    _function(fun, "automatic")
    if rules != "all":
        names = () if isinstance(rules, str) else tuple(rules)
        if isinstance(rules, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"automatic: rules={rules!r} must be 'all' or a sequence of names of custom_vjp functions")
        rules = names
    return walk.apply(table.by_lax(rules), fun)  # pyright: ignore[reportArgumentType, reportReturnType]


def report(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """What accelerate replaces in fun(*args, **kwargs), with source lines, and what it leaves and why.

    fun is traced with the shapes of its arguments, and nothing is computed. Of a training step give the step: what grad
    makes of a layer is seen only where grad is.

    Returns:
      A Report: its str() is a table, its `replaced` and `left` are the notes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> print(report(lambda x: lax.cumsum(lax.conv(x, x, (1,), "SAME")), jnp.ones((1, 1, 5))))  # doctest: +ELLIPSIS
      1 replaced, 0 left as they were
         1 x conv_general_dilated -> convolve
             ...
    """
    _function(fun, "report")
    notes: list[Note] = []

    @functools.wraps(fun, updated=())
    def noted(*args: Any, **kwargs: Any) -> Any:
        with walk.running(table.BY_JCONV, notes):
            return fun(*args, **kwargs)

    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def abstract(given: list[Any]) -> None:
        filled = list(leaves)
        for i, leaf in zip(arrays, given, strict=True):
            filled[i] = leaf
        args, kwargs = jax.tree.unflatten(tree, filled)
        noted(*args, **kwargs)

    jax.eval_shape(abstract, [leaves[i] for i in arrays])
    return Report(tuple(notes))
