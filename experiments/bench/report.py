"""The tables of a run: by family, by layer, by product, the floors, and what changed since an earlier run."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.bench import against, floors, results
from experiments.bench.results import Figure, Row

MIB = 2**20


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table whose first column, and those ending in a colon, are text, the rest figures; a column is its heading."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        text = i == 0 or column.endswith(":")
        made.add_column(column.rstrip(":"), justify="left" if text else "right", no_wrap=text)
    return made


def _text(figure: Any, least: float | None = None) -> Text:
    """A figure, red below what is wanted of it; a dash where there is none."""
    if figure is None:
        return Text("-", style="dim")
    value = figure.value if isinstance(figure, Figure) else None
    return Text(str(figure), style="red" if least is not None and value is not None and value < least else "")


def _worst(found: tuple[Figure, str] | None) -> Text:
    return _text(None) if found is None else Text(f"{found[0]} {found[1]}", style="red" if found[0].value < 1 else "")


def _milliseconds(row: Row, product: str, contestant: str) -> Text:
    figure = results.seconds(row, product, contestant)
    if figure is None:
        return Text("failed", style="red") if "error" in results.facts(row, product, contestant) else _text(None)
    times = results.facts(row, product, contestant).get("seconds", [])
    few = f" ({len(times)}x)" if 0 < len(times) < 5 else ""
    return Text(f"{Figure(figure.value * 1e3, figure.bound)}{few}", style="yellow" if figure.bound else "")


def by_family(rows: list[Row], eps: float) -> Table:
    """One line a family: geometric means, and the worst row of each."""
    made = table(
        "Forward + backward by family (ratios of medians, geometric means; above 1 jconv is faster)",
        *("family", "rows", "lax / jconv", "worst row:", "PyTorch / jconv", "worst row:", "PyTorch / lax"),
        *("forward lax / jconv", "worst", "temporaries jconv / lax", "compile jconv / lax", "worst error jconv / lax"),
        caption="Temporaries below 64 KiB count as 64 KiB, errors below a rounding of the largest value as that.",
    )
    groups = list(results.families(rows).items())
    if len(groups) > 1:
        groups.append((f"all {len(rows)}", rows))
    for name, members in groups:
        if name.startswith("all "):
            made.add_section()
        over_lax = [results.ratio(row, "step", "lax", "jconv") for row in members]
        over_torch = [results.ratio(row, "step", "torch", "jconv") for row in members]
        forward = [results.ratio(row, "forward", "lax", "jconv") for row in members]
        worst_forward = results.least(members, forward)
        worst_error = results.greatest(members, [results.error_ratio(row, eps) for row in members])
        made.add_row(
            name,
            str(len(members)),
            _text(results.geomean(over_lax), 1),
            _worst(results.least(members, over_lax)),
            _text(results.geomean(over_torch), 1),
            _worst(results.least(members, over_torch)),
            _text(results.geomean(results.ratio(row, "step", "torch", "lax") for row in members)),
            _text(results.geomean(forward), 1),
            _text(worst_forward and worst_forward[0], floors.FORWARD_WORST),
            _text(results.geomean(map(results.temp_ratio, members))),
            _text(results.geomean(map(results.compile_ratio, members))),
            _text(worst_error and worst_error[0]),
        )
    return made


def by_layer(rows: list[Row], eps: float, repeats: int) -> Table:
    """One line a layer."""
    made = table(
        "Forward + backward by layer (milliseconds; MiB)",
        *("layer", "jconv", "lax", "PyTorch", "lax / jconv", "PyTorch / jconv", "forward lax / jconv"),
        *("temporaries jconv, lax", "kept jconv, lax", "compile s jconv, lax", "error jconv / lax"),
        caption=f"Medians of {max(5, repeats)} or more, or of as many as (1x) or (3x) says where a call takes seconds; "
        "≥: the stock form ran over its time limit.",
    )
    for family, members in results.families(rows).items():
        made.add_section()
        made.add_row(Text(family, style="bold"))
        for row in members:
            made.add_row(
                Text(row["name"], style="red" if "error" in row else ""),
                *(_milliseconds(row, "step", contestant) for contestant in ("jconv", "lax", "torch")),
                _text(results.ratio(row, "step", "lax", "jconv"), 1),
                _text(results.ratio(row, "step", "torch", "jconv"), 1),
                _text(results.ratio(row, "forward", "lax", "jconv"), floors.FORWARD_WORST),
                _pair(row, lambda facts: facts.get("temp_bytes", 0) / MIB if "temp_bytes" in facts else None),
                _pair(row, lambda facts: facts["kept_bytes"]["total"] / MIB if "kept_bytes" in facts else None),
                _pair(row, lambda facts: facts.get("compile_seconds")),
                _text(results.error_ratio(row, eps)),
            )
    return made


def _pair(row: Row, figure) -> Text:
    found = [figure(results.facts(row, "step", contestant)) for contestant in ("jconv", "lax")]
    return Text(", ".join("-" if value is None else f"{value:.2f}" for value in found))


def by_product(rows: list[Row], products: tuple[str, ...]) -> Table:
    """Each product alone."""
    shown = [product for product in products if product in ("forward", "kernel_grad", "input_grad")]
    headings = [
        f"{product.replace('_', ' ')} {what}"
        for product in shown
        for what in ("jconv ms", "lax ms", "PyTorch ms", "lax / jconv", "PyTorch / jconv")
    ]
    made = table("Each product alone", "layer", *headings)
    for row in rows:
        cells: list[Text] = []
        for product in shown:
            cells += [_milliseconds(row, product, contestant) for contestant in ("jconv", "lax", "torch")]
            cells += [_text(results.ratio(row, product, over, "jconv"), 1) for over in ("lax", "torch")]
        made.add_row(row["name"], *cells)
    return made


def in_loop(rows: list[Row]) -> Table:
    """A step inside lax.scan beside the same step outside."""
    made = table(
        "One step inside lax.scan / the same step outside (milliseconds of the step outside)",
        *("layer", "jconv outside", "lax outside", "jconv inside / outside", "lax inside / outside"),
    )
    for row in rows:
        outside = [_milliseconds(row, "once", contestant) for contestant in ("jconv", "lax")]
        made.add_row(row["name"], *outside, *(_text(results.loop_ratio(row, name)) for name in ("jconv", "lax")))
    return made


def of_floors(checks: list[floors.Check]) -> Table:
    """What must hold beside what was seen."""
    missed = sum(not check.holds for check in checks)
    made = table(f"Floors: {len(checks) - missed} hold, {missed} missed", "what", "floor", "seen:", "")
    for check in checks:
        made.add_row(
            check.what,
            check.floor,
            check.seen,
            Text("pass", style="green") if check.holds else Text("MISS", style="red"),
        )
    return made


def of_changes(found: list[against.Change], path: str) -> Table:
    """What lies beyond the noise; the contestants that did not change say what the machine did."""
    drifts = ", ".join(
        f"{contestant} {drift}"
        for contestant in ("jconv", "lax", "torch")
        if (drift := against.drift(found, contestant))
    )
    beyond = [change for change in found if change.verdict != "same"]
    made = table(
        f"Against {path}: {len(beyond)} of {len(found)} times differ beyond the noise",
        *("layer", "product:", "contestant:", "now / then", "noise", ":"),
        caption=f"Geometric mean of now / then over everything: {drifts or 'nothing in common'}.",
    )
    for change in beyond:
        style = "red" if change.verdict == "slower" else "green"
        made.add_row(
            change.name, change.product, change.contestant, f"{change.ratio:.2f}", f"±{change.noise:.0%}",
            Text(change.verdict, style=style),
        )  # fmt: skip
    return made


def failures(rows: list[Row]) -> list[str]:
    """One line for each form that crashed, failed or ran over its limit."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']}: {row['error']}")
        for product, forms in row["runs"].items():
            for contestant, facts in forms.items():
                what = facts.get("error")
                if "over_limit" in facts:
                    what = f"{facts['stage']} took more than {facts['over_limit']:g} s"
                if what is not None:
                    lines.append(f"{row['name']}: {contestant} {product}: {what}")
    return lines


def show(console: Console, run: dict[str, Any], earlier: dict[str, Any] | None, earlier_path: str) -> None:
    """All tables of a run."""
    rows, settings = run["rows"], run["settings"]
    eps = float(jnp.finfo(settings["dtype"]).eps)
    console.print(by_layer(rows, eps, settings["repeats"]))
    products = tuple(settings["products"])
    if "input_grad" in products:
        console.print(by_product(rows, products))
    if "loop" in products:
        console.print(in_loop(rows))
    console.print(by_family(rows, eps))
    if settings["floors"] and "jconv" in settings["contestants"]:
        console.print(of_floors(floors.checks(rows, settings["dtype"])))
    if earlier is not None:
        console.print(of_changes(against.changes(run, earlier), earlier_path))
    if names := [row["name"] for row in rows if results.disturbed(row)]:
        console.print(
            f"Not idle: {len(names)} rows were timed while others used the machine: {', '.join(names)}", style="red"
        )
    for line in failures(rows):
        console.print(escape(line), style="yellow", soft_wrap=True)
