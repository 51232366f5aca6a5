"""What the rows of a run say: medians, ratios, geometric means. A row is what `runner.run_layer` returns."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
IDLE_CORES = 0.1  # what an idle machine does by itself
TEMP_GRAIN = 64 * 1024  # bytes of temporaries below which two programs count as equal


@dataclasses.dataclass(frozen=True, order=True)
class Figure:
    """A number measured, or with `bound` "≥" or "≤" a limit that it keeps because a form ran over its time limit."""

    value: float
    bound: str = ""

    def __str__(self) -> str:
        if 0 < self.value < 0.005:
            return f"{self.bound}{self.value:.0e}"
        digits = 0 if self.value >= 100 else 1 if self.value >= 10 else 2
        return f"{self.bound}{self.value:.{digits}f}"


def disturbed(row: Row) -> bool:
    """Whether other processes worked while the row was timed: then its figures mean little."""
    return max(row.get("others", {}).values(), default=0) > IDLE_CORES


def facts(row: Row, product: str, contestant: str) -> dict[str, Any]:
    """What is known of one form, empty where nothing is."""
    return row["runs"].get(product, {}).get(contestant, {})


def seconds(row: Row, product: str, contestant: str) -> Figure | None:
    """The median; the time limit as a lower bound where it was overrun; None where there is neither."""
    found = facts(row, product, contestant)
    if "over_limit" in found:
        return Figure(found["over_limit"], "≥")
    return Figure(statistics.median(found["seconds"])) if found.get("seconds") else None


def ratio(row: Row, product: str, over: str, under: str) -> Figure | None:
    """Seconds of one contestant over seconds of another: above 1, `under` is faster."""
    a, b = seconds(row, product, over), seconds(row, product, under)
    if a is None or b is None or (a.bound and b.bound):
        return None
    return Figure(a.value / b.value, a.bound or ("≤" if b.bound else ""))


def loop_ratio(row: Row, contestant: str) -> Figure | None:
    """Seconds of a step inside lax.scan over seconds of the same step outside."""
    from experiments.bench.contestants import LOOP_STEPS

    inside, outside = seconds(row, "loop", contestant), seconds(row, "once", contestant)
    if inside is None or outside is None or outside.bound:
        return None
    return Figure(inside.value / LOOP_STEPS / outside.value, inside.bound)


def temp_ratio(row: Row, product: str = "step") -> Figure | None:
    """Of jconv's temporaries to lax's, both at least TEMP_GRAIN."""
    a, b = (facts(row, product, contestant).get("temp_bytes") for contestant in ("jconv", "lax"))
    return None if a is None or b is None else Figure(max(a, TEMP_GRAIN) / max(b, TEMP_GRAIN))


def compile_ratio(row: Row, product: str = "step") -> Figure | None:
    """Of jconv's time to compile to lax's."""
    a, b = (facts(row, product, contestant).get("compile_seconds") for contestant in ("jconv", "lax"))
    return None if a is None or b is None else Figure(a / b)


def kept_bytes(row: Row, contestant: str) -> int | None:
    """Bytes kept between forward and backward, arguments and results counted alike."""
    kept = facts(row, "step", contestant).get("kept_bytes")
    return None if kept is None else kept["total"]


def error_ratio(row: Row, eps: float) -> Figure | None:
    """Of jconv's error to lax's, in the result where that is largest; errors below eps, a rounding, count as eps."""
    errors = row.get("errors", {}).get("step", {})
    if not {"jconv", "lax"} <= set(errors):
        return None
    return max(Figure(max(errors["jconv"][name], eps) / max(error, eps)) for name, error in errors["lax"].items())


def geomean(figures: Iterable[Figure | None]) -> Figure | None:
    """Of the figures that are there; a bound if one of them is."""
    there = [figure for figure in figures if figure is not None]
    if not there:
        return None
    bounds = {figure.bound for figure in there} - {""}
    bound = bounds.pop() if len(bounds) == 1 else "~" if bounds else ""
    return Figure(math.exp(statistics.fmean(math.log(figure.value) for figure in there)), bound)


def least(rows: list[Row], figures: Iterable[Figure | None]) -> tuple[Figure, str] | None:
    """The least figure and its row's name."""
    return min(((f, row["name"]) for row, f in zip(rows, figures) if f is not None), default=None)


def greatest(rows: list[Row], figures: Iterable[Figure | None]) -> tuple[Figure, str] | None:
    """The greatest figure and its row's name."""
    return max(((f, row["name"]) for row, f in zip(rows, figures) if f is not None), default=None)


def families(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by family, in the order in which they come."""
    by_family: dict[str, list[Row]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    return by_family
