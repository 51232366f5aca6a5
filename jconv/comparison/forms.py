"""What each of the two forms of a function gives: values, gradients, jvp of gradients; and two judges of them.

The judges are the automatic form in double precision, and finite differences of that along random directions v,
    sum of grad v = (loss(x + h v) - loss(x - h v)) / 2h + O(h^2),   h = cbrt(eps) max(1, rms(x))
which ask no derivative rule at all. h as in Press et al. 2007, Numerical Recipes, section 5.7.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import _jax
from jconv.comparison.problem import Problem, inexact, wide, widened

HINT = "what it closes over stays as it is, give it as an argument"
DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform", "threefry2x32")


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """One form of a function under a problem: programs of (derived, passed, cotangents[, directions])."""

    problem: Problem
    fun: Callable[..., Any]

    def values(self, derived: Any, passed: Any) -> Any:
        """fun's result."""
        return self.problem.bound(self.fun)(derived, passed)

    def back(self, derived: Any, passed: Any) -> tuple[list[Any], Callable[..., Any], Any]:
        """jax.vjp: (the leaves with cotangents, the function from cotangents to gradients, the whole result)."""

        def split(derived: Any) -> tuple[list[Any], Any]:
            result = self.values(derived, passed)
            return [leaf for leaf in jax.tree.leaves(result) if inexact(jax.typeof(leaf).dtype)], result

        return jax.vjp(split, derived, has_aux=True)  # pyright: ignore[reportReturnType]

    def step(self, derived: Any, passed: Any, cotangents: Any) -> tuple[Any, Any]:
        """(fun's result, gradients): a forward and a backward pass."""
        outs, back, result = self.back(derived, passed)
        return result, back([c.astype(y.dtype) for c, y in zip(cotangents, outs, strict=True)])[0]

    def jvp_of_grad(self, derived: Any, passed: Any, cotangents: Any, directions: Any) -> Any:
        """The derivative of the gradients along a direction."""
        gradients = lambda derived: self.step(derived, passed, cotangents)[1]
        return jax.jvp(gradients, (derived,), (directions,))[1]

    def loss(self, derived: Any, passed: Any, cotangents: Any) -> Any:
        """Re sum of c y."""
        outs = [leaf for leaf in jax.tree.leaves(self.values(derived, passed)) if inexact(jax.typeof(leaf).dtype)]
        return sum(jnp.sum(jnp.real(c * y)) for c, y in zip(cotangents, outs, strict=True))


def as_arrays(tree: Any) -> list[np.ndarray]:
    """The leaves of a result on the host; random keys as their data."""
    host = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return [np.asarray(host(leaf)) for leaf in jax.tree.leaves(tree)]


def equations(jaxpr: Any) -> int:
    """Equations of a jaxpr, those of the jaxprs within it too."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(1 + sum(map(equations, _jax.jaxprs_in_params(e.params))) for e in jaxpr.eqns)


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What the judges say. `values`, `gradients`, `second` are None, and `why` says so, where float64 cannot be had."""

    why: str = ""
    values: list[np.ndarray] | None = None
    gradients: list[np.ndarray] | None = None
    second: list[np.ndarray] | None = None
    slopes: tuple[tuple[float, ...], ...] = ()  # of each derived argument, by finite differences along each direction


def truth(form: Form, cotangents: Sequence[Any], second: bool, directions: int) -> Truth:
    """The judges' word on a problem; `form` is the automatic one."""
    problem = form.problem
    if all(jax.typeof(leaf).dtype in (np.float64, np.complex128) for leaf in problem.derived):
        return Truth("the arguments are float64 already")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        operands = widened(problem.derived), widened(problem.passed), widened(cotangents)
        try:
            jaxpr = jax.make_jaxpr(form.step)(*operands)
            found = _unfit(jaxpr)
            if found:
                return Truth(found)
            values, gradients = jax.jit(form.step)(*operands)
            along = ()
            if second:
                along = as_arrays(jax.jit(form.jvp_of_grad)(*operands, widened(problem.directions(0))))
            slopes = finite_differences(form, *operands, directions)
        except Exception as error:  # whatever fun does not do in float64, it did in the dtype that it was given
            return Truth(f"fun fails in float64 ({type(error).__name__}: {first_line(error)}); {HINT}")
        return Truth("", as_arrays(values), as_arrays(gradients), list(along) or None, slopes)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unfit(jaxpr: Any) -> str:
    """Why a program that was traced in float64 is no truth, '' if it is one: somewhere it narrows, or it draws."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        if equation.primitive.name in DRAWS:
            return "fun draws random numbers, and in float64 it draws others"
        inner = list(_jax.jaxprs_in_params(equation.params))
        for body in inner:
            found = _unfit(body)
            if found:
                return found
        if not inner and any(_bits(var) == 64 for var in equation.invars):
            narrow = [var.aval for var in equation.outvars if 0 < _bits(var) < 64]
            if narrow:
                return f"fun computes in {narrow[0].dtype} whatever its arguments are"  # pyright: ignore
    return ""


def _bits(var: Any) -> int:
    """Bits of a floating-point number of this dtype, or of a part of a complex one; 0 of any other dtype."""
    dtype = getattr(var.aval, "dtype", None)
    return jnp.finfo(dtype).bits if dtype is not None and inexact(dtype) else 0


def finite_differences(
    form: Form, derived: Any, passed: Any, cotangents: Any, directions: int
) -> tuple[tuple[float, ...], ...]:
    """(loss(x + h v) - loss(x - h v)) / 2h for each argument alone, along each of so many directions."""
    loss = jax.jit(form.loss)
    slopes = []
    for i, x in enumerate(derived):
        h = float(np.cbrt(np.finfo(np.float64).eps)) * max(
            1.0, float(np.sqrt(np.mean(np.abs(x) ** 2))) if x.size else 1
        )
        along = []
        for number in range(directions):
            v = wide(form.problem.directions(number)[i])
            moved = [(*derived[:i], x + side * h * v, *derived[i + 1 :]) for side in (1, -1)]
            above, below = (float(loss(point, passed, cotangents)) for point in moved)
            along.append((above - below) / (2 * h))
        slopes.append(tuple(along))
    return tuple(slopes)
