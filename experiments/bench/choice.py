"""How good jconv's static choice of algorithms is: its time over that of the fastest, for every product of every layer.

The products are those of a forward and a backward pass, and each is measured as jconv.autotune measures it, in this
process: all algorithms that apply, in turn, without those that are hopeless. A transposed convolution is the input
gradient under another name, so its products are named by what they are. The fastest of several algorithms that are
equally fast is fastest by chance alone, so even a perfect choice has a ratio somewhat above 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
from rich.console import Console
from rich.text import Text

from experiments.bench import contestants, measure, report, results
from experiments.bench.layers import Layer
from experiments.bench.results import Figure, Row

CLOSE = 1.15
MOST_ROUNDS = 25
ENOUGH_SECONDS = 2.0  # for all rounds of one product


def of_layer(layer: Layer, *, dtype: str, repeats: int, timeout: float, stage: Callable[[str], None]) -> Row:
    """A row: of each product the static choice, the fastest, and the seconds of all that were timed."""
    from jconv import autotuning

    form = contestants.jconv_form(layer, contestants.draw(layer, dtype))
    structs = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in form.operands]
    row: Row = {"name": layer.name, "family": layer.family, "layer": layer.to_json(), "products": {}, "others": {}}
    for product, precision in autotuning.products_of(form.products["step"], *structs).items():
        stage(product.product)
        begin, before = time.perf_counter(), measure.other_cpu_seconds()
        entry = autotuning.measure(product, precision, max(repeats, MOST_ROUNDS), timeout, ENOUGH_SECONDS)
        after = measure.other_cpu_seconds()
        row["products"][product.product] = {
            "static": entry.static,
            "seconds": dict(entry.seconds),
            "skipped": dict(entry.skipped),
        }
        if before is not None and after is not None:
            row["others"][product.product] = (after - before) / (time.perf_counter() - begin)
    return row


def ratios(row: Row) -> dict[str, float]:
    """Seconds of the static choice over those of the fastest, by product."""
    return {name: f["seconds"][f["static"]] / min(f["seconds"].values()) for name, f in row["products"].items()}


def layer_ratio(row: Row) -> float:
    """The same of all products of a layer together."""
    found = row["products"].values()
    return sum(f["seconds"][f["static"]] for f in found) / sum(min(f["seconds"].values()) for f in found)


def verdict(rows: list[Row]) -> str:
    """On how many products, and layers, the static choice is close to the fastest."""
    parts = []
    for what, values in (
        ("products", [ratio for row in rows for ratio in ratios(row).values()]),
        ("layers (all products together)", [layer_ratio(row) for row in rows]),
    ):
        close = sum(value <= CLOSE for value in values)
        parts.append(f"{close} of {len(values)} {what}, {close / len(values):.0%}")
    return f"The static choice is within {CLOSE - 1:.0%} of the fastest on {'; '.join(parts)}."


def show(console: Console, rows: list[Row]) -> None:
    """What could be faster, the families, the verdict."""
    slow = report.table(
        f"Products whose static choice takes more than {CLOSE} times as long as the fastest",
        *("layer", "product:", "static:", "ms", "fastest:", "ms", "static / fastest"),
    )
    found = [(ratio, row, name) for row in rows for name, ratio in ratios(row).items() if ratio > CLOSE]
    for ratio, row, name in sorted(found, key=lambda item: -item[0]):
        seconds, static = row["products"][name]["seconds"], row["products"][name]["static"]
        best = min(seconds, key=lambda algorithm: seconds[algorithm])
        times = [str(Figure(1e3 * seconds[algorithm])) for algorithm in (static, best)]
        slow.add_row(row["name"], name, static, times[0], best, times[1], Text(f"{ratio:.2f}", style="red"))
    if found:
        console.print(slow)
    within = f"within {CLOSE - 1:.0%}"
    families = report.table(
        "Static choice / fastest, by family",
        *("family", "products", within, "geometric mean", "greatest", "layers", within),
    )
    for family, members in [*results.families(rows).items(), ("all", rows)]:
        values = [ratio for row in members for ratio in ratios(row).values()]
        together = [layer_ratio(row) for row in members]
        counts = [str(sum(value <= CLOSE for value in some)) for some in (values, together)]
        mean = str(results.geomean(map(Figure, values)))
        families.add_row(family, str(len(values)), counts[0], mean, f"{max(values):.2f}", str(len(members)), counts[1])
    console.print(families)
    console.print(verdict(rows))
