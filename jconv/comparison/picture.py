"""A comparison as a picture: how far each array is apart and from float64, and how long each form takes."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jconv.comparison.cost import Cost
from jconv.comparison.problem import inexact
from jconv.comparison.result import Comparison, Difference

SHOWN = 25  # arrays, those with the largest relative difference
COLOURS = {"hand": "tab:blue", "automatic": "tab:orange"}
NAMES = {"hand": "hand-written", "automatic": "automatic"}


def figure(comparison: Comparison) -> Any:
    """A matplotlib figure, its panels one below the other, so that it fills a phone as well as a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("jconv.compare needs matplotlib to plot: pip install 'jconv[compare]'") from None
    shown = sorted(comparison.differences, key=lambda d: -d.relative)[:SHOWN]
    shown = [d for d in comparison.differences if d in shown]
    heights = (1.3 + 0.3 * len(shown), 1.8)
    picture = Figure(figsize=(7, sum(heights) + 0.6), layout="constrained")
    above, below = picture.subplots(2, 1, height_ratios=heights)
    _differences(above, comparison, shown)
    _times(below, comparison)
    picture.legend(*above.get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=3)
    return picture


def _differences(axes: Any, comparison: Comparison, shown: list[Difference]) -> None:
    errors = [(d.relative, d.hand_error, d.automatic_error) for d in shown]
    seen = [e for row in errors for e in row if e and np.isfinite(e)]
    eps = min((float(jnp.finfo(d.hand.dtype).eps) for d in shown if inexact(d.hand.dtype)), default=1e-7)
    low, high = min([*seen, eps]) / 10, max([*seen, 1.0]) * 3
    places = np.arange(len(shown))
    agrees = [d.agrees(comparison.rtol, comparison.atol) for d in shown]
    inside = lambda value: np.clip(np.nan_to_num(value, posinf=high), low, high)
    axes.barh(
        places,
        [inside(d.relative) for d in shown],
        color=["0.75" if ok else "tab:red" for ok in agrees],
        label="hand-written - automatic",
    )
    for place, d in zip(places, shown, strict=True):
        if not d.largest:
            axes.text(low, place, " 0", va="center", fontsize="small")
    for which, marker in (("hand", "o"), ("automatic", "x")):
        points = [(getattr(d, f"{which}_error"), place) for d, place in zip(shown, places, strict=True)]
        points = [(inside(error), place) for error, place in points if error is not None]
        if points:
            label = f"{NAMES[which]} - float64"
            axes.scatter(*zip(*points, strict=True), marker=marker, color=COLOURS[which], zorder=3, label=label)
    axes.set(xscale="log", xlim=(low, high), xlabel="largest difference / largest value")
    axes.set_yticks(places, [_short(d.name) for d in shown])
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="0.9")
    count = len(comparison.differences)
    axes.set_title("Differences" if len(shown) == count else f"The {len(shown)} largest of {count} differences")


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:18]}...{name[-19:]}"


def _times(axes: Any, comparison: Comparison) -> None:
    costs: dict[str, Cost] = {"hand": comparison.hand, "automatic": comparison.automatic}
    rows = [(which, part) for part in ("forward", "step") for which in costs]
    for place, (which, part) in enumerate(rows):
        times = 1e3 * getattr(costs[which], part)
        low, median, high = np.percentile(times, (25, 50, 75))
        axes.barh(place, median, xerr=[[median - low], [high - median]], color=COLOURS[which], capsize=3)
        axes.text(high, place, f"  {median:.3g} ms", va="center", fontsize="small")
    titles = {"forward": "forward", "step": "forward + backward"}
    axes.set_yticks(range(len(rows)), [f"{titles[part]}, {NAMES[which]}" for which, part in rows])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.locator_params(axis="x", nbins=5)
    axes.set(title="Time (median and quartiles)", xlabel="milliseconds")
