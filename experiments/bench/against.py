"""A run against an earlier one: what became faster or slower beyond the noise."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from experiments.bench import results
from experiments.bench.layers import BenchError
from experiments.bench.results import Figure, Row

LEAST_NOISE = 0.05  # two runs of one program on an idle machine differ by this much for no reason
SAME = ("dtype", "batch_scale", "odd", "channels_first", "platform")  # settings without which times cannot be compared


class Change(NamedTuple):
    """Seconds now over seconds then of one form, and how far from 1 that has to be to mean anything."""

    name: str
    product: str
    contestant: str
    ratio: float
    noise: float

    @property
    def verdict(self) -> str:
        if self.ratio > 1 + self.noise:
            return "slower"
        return "faster" if self.ratio < 1 / (1 + self.noise) else "same"


def changes(now: dict[str, Any], then: dict[str, Any]) -> list[Change]:
    """Of every form in both runs, the greatest slowdown first."""
    for setting in SAME:
        values = [run["settings"].get(setting, False) for run in (now, then)]
        if values[0] != values[1]:
            raise BenchError(f"--against: {setting} is {values[0]!r} now and was {values[1]!r} then")
    earlier = {row["name"]: row for row in then["rows"]}
    found = []
    for row in now["rows"]:
        if row["name"] not in earlier:
            continue
        for product, forms in row["runs"].items():
            for contestant in forms:
                found += _change(row, earlier[row["name"]], product, contestant)
    return sorted(found, key=lambda change: -change.ratio)


def _change(row: Row, before: Row, product: str, contestant: str) -> list[Change]:
    a, b = (results.facts(r, product, contestant).get("seconds") for r in (row, before))
    if not a or not b:
        return []
    noise = max(LEAST_NOISE, 1.5 * (spread(a) ** 2 + spread(b) ** 2) ** 0.5)
    return [Change(row["name"], product, contestant, statistics.median(a) / statistics.median(b), noise)]


def spread(times: list[float]) -> float:
    """The distance of the quartiles as a share of the median; of a single time, a guess."""
    if len(times) < 2:
        return 0.1
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / median


def drift(found: list[Change], contestant: str) -> Figure | None:
    """Geometric mean of all changes of a contestant: of lax or PyTorch, what the machine did."""
    return results.geomean(Figure(change.ratio) for change in found if change.contestant == contestant)
