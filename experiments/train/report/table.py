"""A run in figures: rows of text, for the terminal by rich and for the page."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.train.report.files import Log, Run
from experiments.train.report.plots import confusion_matrix, speed_ratios

WIDTH = 100


def columns(run: Run) -> tuple[str, ...]:
    """The titles of rows(run)."""
    return ("", "hand-written", "automatic") if run.automatic is not None else ("", str(run.settings.get("rules", "")))


def rows(run: Run) -> list[tuple[str, ...]]:
    """One row a figure; one column a run."""
    logs = [run.log] if run.automatic is None else [run.log, run.automatic]
    figures = [_figures(log) for log in logs]
    found = [(name, *(each[name] for each in figures)) for name in figures[0]]
    blank = ("",) * (len(logs) - 1)
    if run.final is not None:
        count = sum(array.size for name, array in run.final.items() if name.startswith("params/"))
        found.insert(0, ("parameters", f"{count:,}", *blank))
    if run.automatic is not None:
        ratios = speed_ratios(run.log, run.automatic)[1]
        if len(ratios):
            found.append(("speed, hand-written / automatic", f"{np.median(ratios):.2f}", ""))
    if run.agreement is not None and run.agreement.layers:
        found.append(("gradients at the first logged step", f"differ by {_apart(run, 0)} at most", ""))
        found.append(("gradients at the last", f"differ by {_apart(run, -1)} at most", ""))
    return found


def _apart(run: Run, place: int) -> str:
    assert run.agreement is not None
    return f"{max(values[place] for values in run.agreement.layers.values()):.1e}"


def _figures(log: Log) -> Mapping[str, str]:
    """The figures of one log; "not reached" where the run was stopped before."""
    accuracies, final = log.column("test_accuracy", "epochs"), log.final
    of = lambda name, show: "not reached" if final is None or final.get(name) is None else show(final[name])
    speeds = log.column("images_per_second")
    best = int(np.nanargmax(accuracies)) if np.isfinite(accuracies).any() else None
    last = log.steps[-1]["step"] if log.steps else 0
    return {
        "steps": f"{(final or {}).get('step', last):,}",
        "epochs": f"{len(log.epochs)}",
        "final loss": of("loss", lambda value: f"{value:.4f}"),
        "test loss": of("test_loss", lambda value: f"{value:.4f}"),
        "test accuracy": of("test_accuracy", lambda value: f"{value:.2%}"),
        "best test accuracy": "not reached"
        if best is None
        else f"{accuracies[best]:.2%}, epoch {log.epochs[best].get('epoch', best + 1)}",
        "images per second, median": f"{np.nanmedian(speeds):,.0f}" if np.isfinite(speeds).any() else "not told",
        "time": of("seconds", duration),
    }


def duration(seconds: float) -> str:
    """1 h 02 min; 3 min 20 s; 4.1 s."""
    if not math.isfinite(seconds):
        return "not told"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def confusions(run: Run, count: int = 5) -> list[tuple[str, ...]]:
    """The pairs of classes that are most often confused: the class, what it was taken for, how often, of how many."""
    if run.predictions is None:
        return []
    matrix = confusion_matrix(run.predictions)
    totals = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    pairs = [divmod(int(place), len(matrix)) for place in np.argsort(-matrix, axis=None, kind="stable")[:count]]
    return [
        (run.classes[row], run.classes[column], f"{matrix[row, column]} of {totals[row]}")
        for row, column in pairs
        if matrix[row, column]
    ]


def title(run: Run) -> str:
    """Model and data."""
    return f"{run.settings.get('model', 'a model')} on {run.settings.get('data', 'its data')}"


def table(run: Run) -> Any:
    """What the run prints at its end, for rich."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(*map(escape, columns(run)), title=escape(title(run)))
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows(run):
        shown.add_row(*map(escape, row))
    return shown


def text(run: Run) -> str:
    """The table as plain text."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False).print(table(run))
    return out.getvalue()
