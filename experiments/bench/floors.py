"""The floors: what must hold of jconv against lax and PyTorch, and whether a run keeps it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from experiments.bench import results
from experiments.bench.results import Figure, Row


class Floor(NamedTuple):
    """Of forward + backward in float32: ratios of medians in one run."""

    lax: float  # geometric mean of lax / jconv
    worst: float  # of lax / jconv over the rows
    torch: float  # geometric mean of PyTorch / jconv


FLOORS = {
    "depthwise": Floor(30, 5, 0.6),
    "grouped": Floor(40, 5, 0.4),
    "pointwise": Floor(2.5, 1.0, 0.7),
    "dense3x3": Floor(1.3, 1.0, 0.75),
    "dense_large": Floor(1.3, 1.0, 0.75),
    "strided": Floor(1.3, 1.0, 0.75),
    "dilated": Floor(1.2, 1.0, 0.85),
    "conv1d": Floor(1.5, 1.0, 1.1),
    "conv3d": Floor(5, 1.0, 0.5),
    "transposed": Floor(5, 1.0, 0.6),
    "maxpool": Floor(14, 4, 0.7),
    "avgpool": Floor(1.4, 0.95, 0.9),
}
ALL = Floor(4, 0.95, 0.7)
# Layers on which stock JAX takes seconds where one matrix product does: lax / jconv of each, and seconds at most.
SLOW_IN_STOCK = {
    "unet_upconv_1024_512": 20.0,
    "unet3d_upconv_512": 20.0,
    "video_swin_patch_embed": 20.0,
    "vit_s16_patch_embed": 4.0,
    "replknet_dw13": 20.0,
}
SLOW_IN_STOCK_SECONDS, SLOW_IN_STOCK_TORCH = 1.0, 0.7
WORST_OF_DTYPE = {"bfloat16": 1.0, "float16": 1.0, "float64": 0.9, "complex64": 0.9, "complex128": 0.9}
FORWARD_WORST = 0.95
TEMP_GEOMEAN, TEMP_WORST, TEMP_WORST_BYTES = 1.5, 3.0, 64 * 2**20  # a row misses over both of the last two
COMPILE_GEOMEAN, COMPILE_WORST_SECONDS = 1.5, 3.0
ERROR_WORST = 2.0
PROGRAM_DIFFERENCE = 1e-4  # of a built-in program's results from stock JAX's, as a share of the largest
LOOP_WORST = 1.2


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table of floors."""

    what: str
    floor: str
    seen: str
    holds: bool


def _least(what: str, floor: float, figure: Figure | tuple[Figure, str] | None) -> list[Check]:
    return _check(what, f"≥ {floor:g}", figure, lambda value: value >= floor)


def _most(what: str, most: float, figure: Figure | tuple[Figure, str] | None) -> list[Check]:
    return _check(what, f"≤ {most:g}", figure, lambda value: value <= most)


def _check(what: str, floor: str, figure, holds) -> list[Check]:
    if figure is None:
        return []
    number, where = (figure, "") if isinstance(figure, Figure) else figure
    return [Check(what, floor, f"{number}  {where}".rstrip(), holds(number.value))]


def checks(rows: list[Row], dtype: str) -> list[Check]:
    """Every floor for which this run has the figures."""
    own = [row for row in rows if _own_floor(row) is not None]
    listed = [row for row in rows if _own_floor(row) is None]
    found = []
    if dtype == "float32":
        for family, members in results.families(listed).items():
            if family in FLOORS:
                found += _family(family, FLOORS[family], members)
        if len(results.families(listed)) > 1:
            found += _family(f"all {len(listed)}", ALL, listed)
        for row in own:
            found += _least(
                f"{row['name']}: lax / jconv", _own_floor(row) or 0, results.ratio(row, "step", "lax", "jconv")
            )
        found += _slow_in_stock([row for row in own if row["name"] in SLOW_IN_STOCK])
    else:
        worst = results.least(rows, [results.ratio(row, "step", "lax", "jconv") for row in rows])
        found += _least(f"{dtype}: worst lax / jconv", WORST_OF_DTYPE.get(dtype, 0.95), worst)
    return found + _everywhere(rows, dtype)


def _own_floor(row: Row) -> float | None:
    return SLOW_IN_STOCK.get(row["name"], row["layer"]["floor"])


def _family(name: str, floor: Floor, rows: list[Row]) -> list[Check]:
    over_lax = [results.ratio(row, "step", "lax", "jconv") for row in rows]
    over_torch = [results.ratio(row, "step", "torch", "jconv") for row in rows]
    return [
        *_least(f"{name}: lax / jconv", floor.lax, results.geomean(over_lax)),
        *_least(f"{name}: worst lax / jconv", floor.worst, results.least(rows, over_lax)),
        *_least(f"{name}: PyTorch / jconv", floor.torch, results.geomean(over_torch)),
    ]


def _slow_in_stock(rows: list[Row]) -> list[Check]:
    slowest = results.greatest(rows, [results.seconds(row, "step", "jconv") for row in rows])
    over_torch = results.geomean(results.ratio(row, "step", "torch", "jconv") for row in rows)
    return [
        *_most("slow in stock JAX: most seconds", SLOW_IN_STOCK_SECONDS, slowest),
        *_least("slow in stock JAX: PyTorch / jconv", SLOW_IN_STOCK_TORCH, over_torch),
    ]


def _everywhere(rows: list[Row], dtype: str) -> list[Check]:
    """What must hold of any row in any dtype."""
    forward = results.least(rows, [results.ratio(row, "forward", "lax", "jconv") for row in rows])
    temp = [results.temp_ratio(row) for row in rows]
    large = [r if (results.facts(row, "step", "jconv").get("temp_bytes") or 0) > TEMP_WORST_BYTES else None
             for row, r in zip(rows, temp)]  # fmt: skip
    kept = [_quotient(results.kept_bytes(row, "jconv"), results.kept_bytes(row, "lax")) for row in rows]
    slower_compile = [_difference(row) for row in rows]
    errors = [results.error_ratio(row, float(jnp.finfo(dtype).eps)) for row in rows]
    loops = [results.loop_ratio(row, "jconv") for row in rows]
    programs = [Figure(row["difference"]) if "difference" in row else None for row in rows]
    return [
        *_least("forward: worst lax / jconv", FORWARD_WORST, forward),
        *_most("temporaries: jconv / lax", TEMP_GEOMEAN, results.geomean(temp)),
        *_most("temporaries: worst jconv / lax over 64 MiB", TEMP_WORST, results.greatest(rows, large)),
        *_most("kept for the backward pass: worst jconv / lax", 1.0, results.greatest(rows, kept)),
        *_most("compile time: jconv / lax", COMPILE_GEOMEAN, results.geomean(map(results.compile_ratio, rows))),
        *_most("compile time: most seconds over lax", COMPILE_WORST_SECONDS, results.greatest(rows, slower_compile)),
        *_most("error against float64: worst jconv / lax", ERROR_WORST, results.greatest(rows, errors)),
        *_most("a step inside lax.scan / outside: worst", LOOP_WORST, results.greatest(rows, loops)),
        *_most("built-in programs: largest difference from lax", PROGRAM_DIFFERENCE, results.greatest(rows, programs)),
    ]


def _quotient(a: int | None, b: int | None) -> Figure | None:
    if a is None or b is None:
        return None
    return Figure(a / b) if b else Figure(float("inf") if a else 1.0)


def _difference(row: Row) -> Figure | None:
    a, b = (results.facts(row, "step", contestant).get("compile_seconds") for contestant in ("jconv", "lax"))
    return None if a is None or b is None else Figure(a - b)
