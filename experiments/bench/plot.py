"""The plot of a run: one dot a layer, its ratio on a log axis."""

from __future__ import annotations

import pathlib

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from experiments.bench import results
from experiments.bench.results import Row

SERIES = (("lax", "jconv", "o", "tab:blue"), ("torch", "jconv", "D", "tab:orange"))
STOCK_ONLY = (("torch", "lax", "D", "tab:orange"),)
NAMES = {"torch": "PyTorch", "lax": "stock JAX", "jconv": "jconv"}


def save(rows: list[Row], path: pathlib.Path, title: str) -> None:
    """Writes the plot in the format of the file's suffix."""
    rows = [row for members in results.families(rows).values() for row in members]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.19 * len(rows)), layout="constrained")
    shown = SERIES if any(results.seconds(row, "step", "jconv") for row in rows) else STOCK_ONLY
    for over, under, marker, colour in shown:
        ratios = [(place, results.ratio(row, "step", over, under)) for place, row in enumerate(rows)]
        dots = [(ratio.value, place) for place, ratio in ratios if ratio is not None]
        if dots:
            axes.scatter(*zip(*dots), marker=marker, c=colour, s=22, label=f"{NAMES[over]} / {NAMES[under]}", zorder=3)
    for place in range(1, len(rows)):
        if rows[place]["family"] != rows[place - 1]["family"]:
            axes.axhline(place - 0.5, color="0.85", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds / seconds of {NAMES[shown[0][1]]}, forward + backward (right of 1: the latter is faster)")
    axes.set_yticks(range(len(rows)), [f"{row['name']}  [{row['family']}]" for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", which="both", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.collections:
        axes.legend(loc="lower right", fontsize=8)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
