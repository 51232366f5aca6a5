"""compare: a function by its hand-written rules and by jax's own derivatives, held against each other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import rewrite
from jconv.comparison import cost
from jconv.comparison.forms import Form, Truth, as_arrays, truth
from jconv.comparison.problem import Problem, inexact, name_of, pose, wide
from jconv.comparison.result import Comparison, Difference, apart, magnitude

NOISE = 8  # how many times automatic's own rounding error is no disagreement
EQUALLY_FAR = 0.01  # up to this share both may be off by as much, as where a GPU multiplies in TensorFloat-32
FLOAT64_NOISE = 1000  # a float64 gradient smaller than this many rounding errors of the largest is 0


def compare(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    jvp_of_grad: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    rules: str | Sequence[str] = "all",
    float64: bool = True,
    directions: int = 2,
    repeats: int = 20,
    seed: int = 0,
    name: str | None = None,
) -> Comparison:
    """fun by hand-written rules, accelerate(fun), and derived by jax, automatic(fun): who is right, what each costs.

    Both forms are run: results, the gradient of each argument, on request its derivative along a random direction. They
    are held against each other and, where it can be had, against the automatic form in float64 and finite differences
    of that. fun may be a jconv operator, a model, or a function with a jax.custom_vjp rule of your own in it: that rule
    is the hand-written form then. A result that is not one real number is derived along a fixed random cotangent.

    Args:
      fun: a function of arrays and pytrees of them, under jit or not.
      *args: its arguments. Floats get gradients, other arrays none; Python integers and booleans stay static.
      argnums: the positions of the arguments that get gradients; None: all.
      jvp_of_grad: also compare the derivative of the gradients along a random direction, which asks the rules for
        their own derivatives.
      rtol: how far apart the two may be, as a share of the largest automatic value; None: the root of the dtype's
        epsilon, 3e-4 for float32.
      atol: how far beside that; None: what float64 shows to be rounding error of the automatic form.
      rules: the custom_vjp functions, beside jconv's own, that automatic derives: "all", or a sequence of names.
      float64: whether to ask float64 and finite differences, which takes as long as a slow automatic form, or longer.
      directions: how many random directions finite differences are taken in, for each argument.
      repeats: how often each form is timed, in turn; less often where that would take more than ten seconds.
      seed: draws the cotangent and the directions.
      name: what to call fun in the result; None: its own name.

    Returns:
      A Comparison: print it, or see its agrees, differences, assert_close(), to_json(), to_html(path), plot().

    Raises:
      TypeError: fun is no function, an argument holds what is no array or number, nothing there has a gradient.
      ValueError: an option is out of range.

    Example:
      >>> @jax.custom_vjp
      ... def square(x):
      ...     return x * x
      >>> _ = square.defvjp(lambda x: (x * x, x), lambda x, g: (3.0 * x * g,))  # wrong: it should be 2
      >>> found = compare(square, 2.0, repeats=1)
      >>> found.agrees
      False
      >>> print(found.gradients[0].place())
      gradient of x differs by 2 at index (): hand-written 6, automatic 4, float64 4; nearer to float64: automatic
    """
    for option, value, least in (("repeats", repeats, 1), ("directions", directions, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"compare: {option}={value!r} must be an integer, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"compare: {option}={value!r} must be at least {least}")
    for option, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not value >= 0:
            raise ValueError(f"compare: {option}={value!r} must be None or a number, at least 0")
    problem = pose(fun, args, argnums, seed)
    hand, automatic = Form(problem, rewrite.accelerate(fun)), Form(problem, rewrite.automatic(fun, rules=rules))
    results = jax.eval_shape(hand.values, problem.derived, problem.passed)
    if not any(inexact(leaf.dtype) for leaf in jax.tree.leaves(results)):
        raise TypeError("compare: fun returns no floating-point number, so there is no gradient to compare")
    cotangents = problem.cotangents(results)
    judge = (
        truth(automatic, cotangents, jvp_of_grad, directions) if float64 else Truth("float64=False: it was not asked")
    )
    programs = {"hand": cost.build(hand, cotangents), "automatic": cost.build(automatic, cotangents)}
    found = _first_order(problem, results, programs, judge)
    if jvp_of_grad:
        found += _second_order(problem, (hand, automatic), cotangents, judge)
    costs = cost.measure(programs, repeats)
    return Comparison(
        name if name is not None else name_of(fun),
        tuple(found),
        costs["hand"],
        costs["automatic"],
        judge.why,
        rtol,
        atol,
        seed,
        jax.default_backend(),
        jax.__version__,
    )


def _first_order(
    problem: Problem, results: Any, programs: Mapping[str, cost.Program], judge: Truth
) -> list[Difference]:
    """Values and gradients."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(results)[0]]
    (values, gradients), (stock_values, stock_gradients) = (
        tuple(map(as_arrays, program.step())) for program in programs.values()
    )
    slopes = _slopes(problem, gradients, stock_gradients, judge)
    return [
        *_paired("value", paths, values, stock_values, judge.values),
        *_paired("gradient", problem.derived_names, gradients, stock_gradients, judge.gradients, slopes),
    ]


def _second_order(
    problem: Problem, forms: tuple[Form, Form], cotangents: Sequence[Any], judge: Truth
) -> list[Difference]:
    """The derivative of the gradients along direction 0."""
    operands = problem.derived, problem.passed, cotangents, problem.directions(0)
    hand, automatic = (as_arrays(jax.jit(form.jvp_of_grad)(*operands)) for form in forms)
    return _paired("jvp of gradient", problem.derived_names, hand, automatic, judge.second)


def _slopes(problem: Problem, hand: Any, automatic: Any, judge: Truth) -> Any:
    """For each argument and direction the slopes by hand, automatically, and by finite differences."""
    triples: list[list[tuple[float, float, float]]] = [[] for _ in hand]
    for number in range(len(judge.slopes[0]) if judge.slopes else 0):
        for i, v in enumerate(problem.directions(number)):
            dot = lambda gradient, v=v: float(np.real(np.sum(wide(gradient) * wide(v))))
            triples[i].append((dot(hand[i]), dot(automatic[i]), judge.slopes[i][number]))
    return tuple(map(tuple, triples))


def _paired(
    kind: str, paths: Sequence[str], hand: Any, automatic: Any, true: Any, slopes: Any = None
) -> list[Difference]:
    """A Difference for each pair of arrays, with its size and the rounding error that is to be expected of it.

    A gradient that is 0 but for rounding, such as that of a bias in front of a normalisation, is nothing but noise: its
    errors are shares of the largest gradient, and as much of it is no disagreement as the automatic form shows against
    float64. Without float64, what is below the rounding error of the largest gradient passes for such noise.
    """
    best = automatic if true is None else true
    sizes = [magnitude(array) for array in best]
    largest = max(sizes, default=0.0)
    found = []
    for i, (path, a, b) in enumerate(zip(paths, hand, automatic, strict=True)):
        size, noise, t = sizes[i], 0.0, None if true is None else true[i]
        if inexact(b.dtype):
            together = size if kind == "value" else largest  # results need not have anything in common
            eps, digits = (float(jnp.finfo(array.dtype).eps) for array in (b, best[i]))
            if size <= (NOISE if t is None else FLOAT64_NOISE) * digits * together:
                size = together
                noise = NOISE * eps * together
            if t is not None:
                errors = [float(apart(array, t).max(initial=0.0)) for array in (a, b)]
                cap = float(np.sqrt(eps)) if max(errors) > 2 * min(errors) else EQUALLY_FAR
                noise = min(NOISE * errors[1], cap * together)
        found.append(Difference(kind, path, a, b, t, size, noise, slopes[i] if slopes else ()))
    return found
