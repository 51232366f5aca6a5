"""What a comparison found: differences and costs, with the arrays in them, and the ways to show them.

For two arrays a (hand-written) and b (automatic) and the truth t:
    largest     max |a - b|, at `index`         relative         largest / size
    hand_error  max |a - t| / size              automatic_error  max |b - t| / size
size is max |t|, or max |b| without t; of an array that is 0 but for rounding, the largest of all arrays of its kind.
Equal infinities and NaN in the same place are no difference; NaN against a number is an infinite one.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jconv.comparison.cost import Cost, spread
from jconv.comparison.problem import inexact, wide


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, elementwise, in double precision."""
    a, b = wide(a), wide(b)
    with np.errstate(all="ignore"):
        return np.where(
            (a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf)
        )


def magnitude(array: np.ndarray) -> float:
    """The largest finite |entry|; 0 of nothing."""
    sizes = np.abs(wide(array))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """One array, by hand and automatically: a value, a gradient, or the derivative of a gradient along a direction.

    size: what its errors are shares of.
    noise: how far apart rounding alone may bring the two, beside a share of their size.
    slopes: hand's, automatic's and finite differences' slope along each random direction; nothing where not asked for.
    """

    kind: str  # "value", "gradient" or "jvp of gradient"
    path: str  # of the argument or the result in its pytree, as jax.tree_util.keystr writes it
    hand: np.ndarray
    automatic: np.ndarray
    truth: np.ndarray | None = None
    size: float = 0.0
    noise: float = 0.0
    slopes: tuple[tuple[float, float, float], ...] = ()

    @property
    def name(self) -> str:
        if self.kind == "value":
            return f"value{self.path}"
        return f"{self.kind} of {self.path}"

    @functools.cached_property
    def _apart(self) -> np.ndarray:
        return apart(self.hand, self.automatic)

    @property
    def largest(self) -> float:
        return float(self._apart.max(initial=0.0))

    @property
    def relative(self) -> float:
        return self._share(self.largest)

    @property
    def index(self) -> tuple[int, ...]:
        """The place of the largest difference."""
        return tuple(map(int, np.unravel_index(self._apart.argmax(), self._apart.shape))) if self._apart.size else ()

    @functools.cached_property
    def hand_error(self) -> float | None:
        return self._error(self.hand)

    @functools.cached_property
    def automatic_error(self) -> float | None:
        return self._error(self.automatic)

    def _error(self, array: np.ndarray) -> float | None:
        if self.truth is None:
            return None
        return self._share(float(apart(array, self.truth).max(initial=0.0)))

    def _share(self, error: float) -> float:
        return error / self.size if self.size else (np.inf if error else 0.0)

    @property
    def nearer(self) -> str:
        """Which of the two is nearer to float64: "hand", "automatic", "alike", or "" where there is no float64."""
        hand, automatic = self.hand_error, self.automatic_error
        if hand is None or automatic is None:
            return ""
        if max(hand, automatic) <= 2 * min(hand, automatic):
            return "alike"
        return "hand" if hand < automatic else "automatic"

    def finite_difference_error(self, which: str) -> float | None:
        """The largest error of a slope of "hand" or "automatic", as a share of the gradient's Euclidean norm."""
        if not self.slopes:
            return None
        gradient = wide(self.automatic if self.truth is None else self.truth)
        norm = max(float(np.linalg.norm(gradient)), self.size)
        error = float(np.max([abs(s[0 if which == "hand" else 1] - s[2]) for s in self.slopes]))
        return error / norm if norm else (np.inf if error else 0.0)

    def tolerance(self, rtol: float | None = None, atol: float | None = None) -> float:
        """How far apart the two may be: atol + rtol max |automatic|.

        rtol None: the root of the dtype's epsilon, half of its digits; 0 for integers. atol None: `noise`.
        """
        if rtol is None:
            dtypes = [a.dtype for a in (self.hand, self.automatic) if inexact(a.dtype)]
            rtol = max((float(np.sqrt(float(jnp.finfo(d).eps))) for d in dtypes), default=0.0)
        return (self.noise if atol is None else atol) + rtol * magnitude(self.automatic)

    def agrees(self, rtol: float | None = None, atol: float | None = None) -> bool:
        return self.largest <= self.tolerance(rtol, atol)

    def place(self) -> str:
        """The largest difference, where it is, and both values there, in a line."""
        if not self._apart.size:
            return f"{self.name}: empty"
        number = lambda array: f"{wide(array)[self.index]:.7g}"
        true = "" if self.truth is None else f", float64 {number(self.truth)}"
        nearer = {"hand": "hand-written", "automatic": "automatic", "alike": "neither", "": ""}[self.nearer]
        return (
            f"{self.name} differs by {self.largest:.3g} at index {self.index}: hand-written {number(self.hand)}, "
            f"automatic {number(self.automatic)}{true}{f'; nearer to float64: {nearer}' if nearer else ''}"
        )

    def summary(self) -> dict[str, Any]:
        """The figures, without the arrays."""
        at = (lambda array: wide(array)[self.index]) if self._apart.size else (lambda array: None)
        return {
            "kind": self.kind, "path": self.path, "shape": list(self.hand.shape), "dtype": str(self.hand.dtype),
            "largest_difference": self.largest, "relative_difference": self.relative, "index": list(self.index),
            "hand_at_index": at(self.hand), "automatic_at_index": at(self.automatic),
            "truth_at_index": None if self.truth is None else at(self.truth),
            "hand_error": self.hand_error, "automatic_error": self.automatic_error, "nearer_to_float64": self.nearer,
            "hand_finite_difference_error": self.finite_difference_error("hand"),
            "automatic_finite_difference_error": self.finite_difference_error("automatic"),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A function's hand-written and automatic form side by side. print() it, save it, assert it.

    `differences` holds the arrays; `hand` and `automatic` what each form costs; `no_truth` says why there is no float64
    to hold them against, "" where there is.
    """

    name: str
    differences: tuple[Difference, ...]
    hand: Cost
    automatic: Cost
    no_truth: str
    rtol: float | None
    atol: float | None
    seed: int
    platform: str
    jax_version: str

    @property
    def values(self) -> tuple[Difference, ...]:
        return self._of("value")

    @property
    def gradients(self) -> tuple[Difference, ...]:
        return self._of("gradient")

    @property
    def jvp_of_grad(self) -> tuple[Difference, ...]:
        return self._of("jvp of gradient")

    def _of(self, kind: str) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.kind == kind)

    @property
    def disagreements(self) -> tuple[Difference, ...]:
        """What differs by more than rounding, the largest share first."""
        return self._beyond(self.rtol, self.atol)

    @property
    def agrees(self) -> bool:
        return not self.disagreements

    def _beyond(self, rtol: float | None, atol: float | None) -> tuple[Difference, ...]:
        beyond = (difference for difference in self.differences if not difference.agrees(rtol, atol))
        return tuple(sorted(beyond, key=lambda difference: -difference.relative))

    def verdict(self) -> str:
        """One line: that the rules agree, or which differ, by how much, and where."""
        if self.agrees:
            return f"The rules agree on {len(self.differences)} arrays."
        return "The rules disagree: " + "; ".join(difference.place() for difference in self.disagreements)

    def assert_close(self, rtol: float | None = None, atol: float | None = None) -> None:
        """For tests: AssertionError that names each argument, the place of its largest difference, and both values.

        Args:
          rtol: the share of the largest automatic value that the two may be apart; None: as compare was told, or the
            root of the dtype's epsilon.
          atol: how far they may be apart beside that; None: as compare was told, or the rounding error that float64
            shows in the automatic form.

        Raises:
          AssertionError: they are further apart.
        """
        rtol, atol = self.rtol if rtol is None else rtol, self.atol if atol is None else atol
        beyond = self._beyond(rtol, atol)
        if beyond:
            lines = [f"{d.place()} (tolerance {d.tolerance(rtol, atol):.3g})" for d in beyond]
            raise AssertionError("\n".join([f"{self.name}: the hand-written and the automatic rule disagree", *lines]))

    def __str__(self) -> str:
        from jconv.comparison import table

        return table.text(self)

    def to_json(self) -> str:
        """All figures as JSON, without the arrays. What is not finite is a string: "inf", "-inf", "nan"."""
        summary = {
            "name": self.name,
            "agrees": self.agrees,
            "verdict": self.verdict(),
            "no_truth": self.no_truth,
            "rtol": self.rtol,
            "atol": self.atol,
            "seed": self.seed,
            "platform": self.platform,
            "jax": self.jax_version,
            "differences": [
                d.summary() | {"tolerance": d.tolerance(self.rtol, self.atol), "agrees": d.agrees(self.rtol, self.atol)}
                for d in self.differences
            ],
            "costs": {"hand": _cost(self.hand), "automatic": _cost(self.automatic)},
        }
        return json.dumps(_plain(summary), indent=1, allow_nan=False)

    def plot(self) -> Any:
        """A matplotlib figure: the differences of each argument, and bars of the times."""
        from jconv.comparison import picture

        return picture.figure(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes one page that needs nothing from elsewhere and reads well on a phone."""
        from jconv.comparison import page

        pathlib.Path(path).write_text(page.html(self), encoding="utf-8")


def _cost(cost: Cost) -> dict[str, Any]:
    return dataclasses.asdict(cost) | {
        "forward_median_seconds": cost.forward_seconds,
        "step_median_seconds": cost.step_seconds,
        "forward_spread": spread(cost.forward),
        "step_spread": spread(cost.step),
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, complex):
        return {"real": _plain(value.real), "imag": _plain(value.imag)}
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
