"""A comparison as text: two tables of at most 100 columns, and the verdict."""

import io
import textwrap
from typing import Any

from jconv.comparison.cost import Cost, spread
from jconv.comparison.result import Comparison, Difference

WIDTH = 100
SHORT = {"hand": "hand", "automatic": "auto", "alike": "alike", "": "-"}
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def _rich() -> Any:
    try:
        import rich.box
        import rich.console
        import rich.markup
        import rich.table
    except ImportError:
        raise ImportError("jconv.compare needs rich to print its table: pip install 'jconv[compare]'") from None
    return rich


def number(value: float | None) -> str:
    """1.2e-07; - for None."""
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def seconds(value: float) -> str:
    """1.23 ms."""
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 1000 * factor else f"{value / factor:.0f} {unit}"
    return f"{value * 1e6:.3g} us"


def amount(value: float | None, unit: str) -> str:
    """1.2 MB; not told for None."""
    if value is None:
        return "not told"
    for factor, prefix in UNITS:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


DIFFERENCES = ("", "max diff", "relative", "err hand", "err auto", "nearer", "f.d. hand", "f.d. auto", "ok")
LEGEND = (
    "max diff: max |hand - auto|; relative: that, and err: the error against float64, as shares of the array's largest "
    "value; f.d.: slopes along random directions against finite differences in float64, as shares of the gradient's "
    "norm. "
)


def difference_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row an array, in the order of DIFFERENCES."""
    return [_row(d, d.agrees(comparison.rtol, comparison.atol)) for d in comparison.differences]


def _row(d: Difference, agrees: bool) -> tuple[str, ...]:
    return (
        d.name,
        number(d.largest),
        number(d.relative),
        number(d.hand_error),
        number(d.automatic_error),
        SHORT[d.nearer],
        number(d.finite_difference_error("hand")),
        number(d.finite_difference_error("automatic")),
        "yes" if agrees else "NO",
    )


def _indented(comparison: Comparison) -> list[tuple[str, ...]]:
    """The same, each kind under a line of its own, so that long paths have room."""
    rows, blank = [], ("",) * (len(DIFFERENCES) - 1)
    for d, row in zip(comparison.differences, difference_rows(comparison), strict=True):
        if d.kind == "value":
            rows.append(row)
            continue
        if (f"{d.kind} of", *blank) not in rows:
            rows.append((f"{d.kind} of", *blank))
        rows.append((f"  {d.path}", *row[1:]))
    return rows


COSTS = ("", "hand-written", "automatic", "automatic / hand")


def cost_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row a figure, in the order of COSTS."""
    timed = lambda times, median: seconds(median) + (f" ± {100 * spread(times):.0f} %" if len(times) > 1 else "")
    rows = (
        ("forward", lambda c: timed(c.forward, c.forward_seconds), lambda c: c.forward_seconds),
        ("forward + backward", lambda c: timed(c.step, c.step_seconds), lambda c: c.step_seconds),
        ("compilation", lambda c: seconds(c.compile_seconds), lambda c: c.compile_seconds),
        ("temporary memory", lambda c: amount(c.temp_bytes, "B"), lambda c: c.temp_bytes),
        ("kept for the backward pass", lambda c: amount(c.kept_bytes, "B"), lambda c: c.kept_bytes),
        ("  of that, arguments", lambda c: amount(c.kept_arguments_bytes, "B"), lambda c: c.kept_arguments_bytes),
        ("equations", lambda c: str(c.equations), lambda c: c.equations),
        ("floating-point operations", lambda c: amount(c.flops, "flop"), lambda c: c.flops),
    )
    return [
        (name, show(comparison.hand), show(comparison.automatic), _ratio(comparison.hand, comparison.automatic, of))
        for name, show, of in rows
    ]


def _ratio(hand: Cost, automatic: Cost, of: Any) -> str:
    below, above = of(hand), of(automatic)
    return f"{above / below:.2f}" if below and above is not None else "-"


def legend(comparison: Comparison) -> str:
    """What the columns mean, and why there is no float64 where there is none."""
    return LEGEND + (f"No float64: {comparison.no_truth}." if comparison.no_truth else "")


def machine(comparison: Comparison) -> str:
    """What ran where, and how it was timed."""
    rounds = len(comparison.hand.step)
    how = f"medians of {rounds} rounds in turn ± half the distance of the quartiles" if rounds > 1 else "timed once"
    return f"{comparison.platform}, jax {comparison.jax_version}; {how}"


def _table(rich: Any, titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> Any:
    """A table whose first column takes what the others, as wide as their figures, leave of it."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column(titles[0], overflow="fold")
    for i, title in enumerate(titles[1:], 1):
        wide = max([len(row[i]) for row in rows] + [len(word) for word in title.split()])
        shown.add_column(title, justify="right", min_width=wide, width=wide if titles is DIFFERENCES else None)
    for row in rows:
        shown.add_row(*map(rich.markup.escape, row))
    return shown


def text(comparison: Comparison) -> str:
    """What print(comparison) shows."""
    rich = _rich()
    out = io.StringIO()
    console = rich.console.Console(file=out, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    for titles, rows in ((DIFFERENCES, _indented(comparison)), (COSTS, cost_rows(comparison))):
        console.print(_table(rich, titles, rows))
    tables = "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())
    wrap = lambda words: textwrap.fill(words, WIDTH, break_long_words=True, break_on_hyphens=False)
    title = f"{comparison.name}: the hand-written rules (hand) and jax's own derivatives (auto)"
    return "\n".join(
        [wrap(title), tables, wrap(legend(comparison)), wrap(machine(comparison)), wrap(comparison.verdict())]
    )
