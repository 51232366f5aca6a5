"""The pictures of a run, each a matplotlib figure.

They are seven inches wide, with their panels one below the other, so that a phone shows them as well as a screen.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.train.report.files import Agreement, Log, Predictions
from experiments.train.report.layers import Layer
from jconv.comparison.picture import COLOURS, NAMES

WIDTH = 7.0  # inches
KERNELS, MAPS = 64, 8  # shown of a layer: kernels, and channels of an output
NUMBERED = 12  # classes up to which a confusion matrix has numbers in it
NAMED = 12  # layers up to which each curve of agreement has its name


def curves(log: Log, automatic: Log | None = None) -> Figure:
    """Loss, accuracy and learning rate by step; of both runs, where there are two."""
    rates = log.column("learning_rate")
    shown = bool(np.isfinite(rates).any())
    figure = Figure(figsize=(WIDTH, 7.4 if shown else 6), layout="constrained")
    panels = figure.subplots(2 + shown, 1, sharex=True, height_ratios=(3, 3, 1.4)[: 2 + shown], squeeze=False)[:, 0]
    for rule, each, width in _both(log, automatic):
        label = NAMES[rule] if automatic is not None else ""
        steps, colour = each.column("step"), COLOURS[rule]
        for panel, name in ((panels[0], "loss"), (panels[1], "accuracy")):
            values = each.column(name)
            if automatic is None:
                panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            panel.plot(
                steps,
                _smooth(values),
                color=colour,
                linewidth=width,
                alpha=0.9,
                label=f"{label} training batch".strip(),
            )
        for panel, name in ((panels[0], "test_loss"), (panels[1], "test_accuracy")):
            panel.plot(
                each.column("step", "epochs"),
                each.column(name, "epochs"),
                color="tab:green" if automatic is None else colour,
                linewidth=width,
                linestyle="--" if automatic is not None else "-",
                marker="o" if rule == "hand" else "x",
                markersize=2 + width,
                label=f"{label} test".strip(),
            )
    losses = np.concatenate([log.column("loss"), log.column("test_loss", "epochs")])
    losses = losses[np.isfinite(losses)]
    if losses.size and losses.min() > 0:
        panels[0].set_yscale("log")
        if losses.max() < 10 * losses.min():  # within a decade plain numbers read better than powers of ten
            panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panels[0].yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    panels[0].set(title="Loss", ylabel="cross-entropy")
    panels[1].set(title="Accuracy", ylim=(None, 1.005))
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    if shown:
        panels[2].plot(log.column("step"), rates, color="0.3")
        panels[2].set(title="Learning rate")
    panels[-1].set(xlabel="step")
    _grid(panels)
    for panel in panels[:2]:
        panel.legend(fontsize="small")
    return figure


def _both(log: Log, automatic: Log | None) -> list[tuple[str, Log, float]]:
    """Each run with its colour's name and line width: the second is drawn thin upon the first."""
    return [("hand", log, 1.8)] if automatic is None else [("hand", log, 3.5), ("automatic", automatic, 1.1)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over a fiftieth of the run, fewer values at its ends."""
    half = len(values) // 100
    if half == 0:
        return values
    kernel = np.ones(2 * half + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _grid(panels: Iterable[Any]) -> None:
    for panel in panels:
        panel.set_axisbelow(True)
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)


def speed(log: Log, automatic: Log | None = None) -> Figure:
    """Images per second at each logged step, and of two runs the ratio."""
    figure = Figure(figsize=(WIDTH, 2.6 if automatic is None else 4.6), layout="constrained")
    panels = figure.subplots(1 if automatic is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    for rule, each, width in _both(log, automatic):
        panels[0].plot(
            each.column("step"),
            each.column("images_per_second"),
            color=COLOURS[rule],
            linewidth=min(width, 1.8),
            label=NAMES[rule],
        )
    panels[0].set(title="Images per second", ylim=(0, None))
    if automatic is not None:
        panels[0].legend(fontsize="small")
        steps, ratios = speed_ratios(log, automatic)
        panels[1].plot(steps, ratios, color="0.3", linewidth=1)
        panels[1].axhline(1, color="0.7", linewidth=1)
        middle = float(np.median(ratios)) if len(ratios) else math.nan
        panels[1].axhline(middle, color=COLOURS["hand"], linestyle="--")
        panels[1].set(title=f"Speed, hand-written / automatic: median {middle:.2f}", ylim=(0, None))
    panels[-1].set(xlabel="step")
    _grid(panels)
    return figure


def speed_ratios(log: Log, automatic: Log) -> tuple[np.ndarray, np.ndarray]:
    """The steps that both runs have logged, and images per second by the hand-written rules over those by jax's own."""
    by_step = {row["step"]: row.get("images_per_second") for row in automatic.steps}
    pairs = [(row["step"], row.get("images_per_second"), by_step.get(row["step"])) for row in log.steps]
    pairs = [(step, hand / stock) for step, hand, stock in pairs if hand and stock]
    return np.array([step for step, _ in pairs]), np.array([ratio for _, ratio in pairs])


def agreement(found: Agreement) -> Figure:
    """How far the gradients of each layer are apart at each logged step, and the losses of the two runs."""
    named = len(found.layers) <= NAMED
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    shades = colormaps["viridis"](np.linspace(0, 0.92, max(len(found.layers), 1)))
    floor = _floor(found.layers.values())
    for (name, values), shade in zip(found.layers.items(), shades, strict=False):
        drawn = np.where(values == 0, floor, values)
        above.plot(found.steps, drawn, color=shade, linewidth=1.2, alpha=0.85, label=_short(name))
    if any((values == 0).any() for values in found.layers.values()):
        above.axhline(floor, color="0.8", linewidth=0.8, zorder=0)
        words, place = "0: bit for bit alike ", above.get_yaxis_transform()
        above.text(1, floor, words, transform=place, ha="right", va="bottom", fontsize="x-small", color="0.4")
    if named:
        figure.legend(*above.get_legend_handles_labels(), fontsize="x-small", ncols=2, loc="outside upper center")
    else:
        names = list(found.layers)
        bar = figure.colorbar(_scale(len(names) - 1), ax=above, pad=0.01)
        places = [round(p) for p in np.linspace(0, len(names) - 1, 5)]
        bar.set_ticks(places, labels=[_short(names[p], 22) for p in places], fontsize="x-small")
    above.set(
        yscale="log", title="Gradients of each parameter, hand-written and automatic", ylabel="relative difference"
    )
    apart = np.abs(found.loss - found.loss_automatic) / np.maximum(np.abs(found.loss_automatic), np.finfo(float).tiny)
    below.plot(found.steps, _positive(apart), color="tab:red")
    below.set(yscale="log", title="Losses of the two runs", ylabel="relative difference", xlabel="step")
    _grid((above, below))
    return figure


def _floor(curves: Iterable[np.ndarray]) -> float:
    """Where 0 is drawn on a logarithmic scale: a third of the least difference that is none."""
    seen = [values[values > 0].min() for values in curves if (values > 0).any()]
    return min(seen) / 3 if seen else 1e-9


def _positive(values: np.ndarray) -> np.ndarray:
    """NaN, which a plot leaves out, for 0, of which there is no logarithm."""
    return np.where(values > 0, values, np.nan)


def _scale(top: int) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    return ScalarMappable(Normalize(0, max(top, 1)), ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256))))


def _short(name: str, length: int = 34) -> str:
    name = name.removeprefix("params/")
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"


def kernels(before: Layer, after: Layer) -> Figure:
    """The kernels of the first layer before and after training: in colour where the layer has three input channels."""
    count = min(before.kernel.shape[-1], KERNELS)
    columns = min(count, 8)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, 0.8 + rows * WIDTH / 2.1 / columns), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    for panel, layer, title in zip(figure.subplots(1, 2), (before, after), ("before", "after"), strict=True):
        _image(panel, _tiled([_kernel(layer.kernel[..., i]) for i in range(count)], columns))
        panel.set_title(title)
    of = f", {count} of {before.kernel.shape[-1]}" if count < before.kernel.shape[-1] else ""
    size = " × ".join(map(str, before.kernel.shape[:2]))
    figure.suptitle(f"Kernels of the first layer, {_short(after.name)}: {size}{of}", fontsize="medium")
    return figure


def _kernel(kernel: np.ndarray) -> np.ndarray:
    """One kernel (height, width, in) as an image: 0 is grey, the largest weight black or white; kernels stand alone."""
    kernel = kernel if kernel.shape[-1] in (1, 3) else kernel.mean(-1, keepdims=True)
    return np.broadcast_to(0.5 + kernel / (2 * max(np.abs(kernel).max(), 1e-30)), (*kernel.shape[:2], 3))


def _tiled(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images (height, width, 3) side by side, with white lines between them."""
    scale = max(1, 24 // images[0].shape[0])
    images = [np.kron(image, np.ones((scale, scale, 1))) for image in images]
    height, width = images[0].shape[:2]
    gap = max(1, height // 8)
    rows = math.ceil(len(images) / columns)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for place, image in enumerate(images):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _image(panel: Any, image: np.ndarray) -> None:
    """An array of height, width and one or three channels, from 0 to 1 or of uint8, without axes."""
    image = image[..., 0] if image.shape[-1] == 1 else image
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1} if image.ndim == 2 else {}
    panel.imshow(image, interpolation="nearest", **grey)
    panel.set_axis_off()


def feature_maps(images: np.ndarray, titles: Sequence[str], layers: Sequence[Layer]) -> Figure:
    """Of each image (height, width, channels, uint8) what some layers make of it: their strongest output channels."""
    figure = Figure(figsize=(WIDTH, len(images) * (0.35 + 0.68 * len(layers))), layout="constrained")
    blocks = figure.subfigures(len(images), 1, squeeze=False)[:, 0]
    for number, (block, image, title) in enumerate(zip(blocks, images, titles, strict=True)):
        left, right = block.subfigures(1, 2, width_ratios=(1.5, 6))
        panel = left.subplots()
        _image(panel, image)
        panel.set_title(title, fontsize="small")
        for row, layer in zip(right.subplots(len(layers), 1, squeeze=False)[:, 0], layers, strict=True):
            output = layer.output[number]
            strongest = np.argsort(-output.std((0, 1)), kind="stable")[:MAPS]
            _image(row, _strip([_stretched(output[..., channel]) for channel in strongest]))
            size = " × ".join(map(str, output.shape))
            row.set_title(f"{_short(layer.name)}: {size}", fontsize="x-small", loc="left", pad=2)
    return figure


def _strip(maps: Sequence[np.ndarray]) -> np.ndarray:
    colours = [colormaps["magma"](each)[..., :3] for each in maps]
    blank = np.ones_like(colours[0])  # a layer of few channels has as large pictures as the others
    return _tiled([*colours, *[blank] * (MAPS - len(colours))], MAPS)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Onto 0 to 1."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / ((high - low) or 1)


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """How many images of each class (row) were taken for each class (column)."""
    count = predictions.logits.shape[-1]
    places = predictions.labels.astype(np.int64) * count + predictions.predicted
    return np.bincount(places, minlength=count * count).reshape(count, count)


def confusion(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """The confusion matrix, each row as shares of its class."""
    matrix = confusion_matrix(predictions)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(WIDTH, WIDTH * 0.92), layout="constrained")
    panel = figure.subplots()
    mistakes = np.where(np.eye(len(matrix), dtype=bool), np.nan, shares)
    top = np.nanmax(mistakes) if len(matrix) > 1 and np.nanmax(mistakes) > 0 else 1
    panel.imshow(np.where(np.eye(len(matrix), dtype=bool), 0, shares), cmap="Reds", vmin=0, vmax=top)
    if len(classes) <= NUMBERED:
        for row, column in np.ndindex(matrix.shape):
            right = row == column
            panel.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if right else "normal",
                color="tab:green" if right else "white" if shares[row, column] > 0.6 * top else "0.2",
            )
    step = max(1, math.ceil(len(classes) / 25))
    ticks = range(0, len(classes), step)
    panel.set_xticks(ticks, [_short(classes[i], 14) for i in ticks], rotation=45, ha="right", fontsize="small")
    panel.set_yticks(ticks, [_short(classes[i], 14) for i in ticks], fontsize="small")
    panel.set(
        xlabel="taken for", ylabel="is", title=f"{int(np.trace(matrix))} of {int(matrix.sum())} test images right"
    )
    return figure


def mistakes(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """The test images that the model was most certain of and wrong about."""
    places = predictions.mistakes()
    columns = 6
    rows = math.ceil(len(places) / columns)
    figure = Figure(figsize=(WIDTH, 1.5 * rows + 0.1), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, place in zip(panels, places, strict=False):
        index = predictions.shown[place]
        taken, label = int(predictions.predicted[index]), int(predictions.labels[index])
        _image(panel, predictions.images[place])
        share = predictions.probabilities[index, taken]
        panel.set_title(
            f"{_short(classes[taken], 12)} ({100 * share:.0f} %)\nis {_short(classes[label], 12)}", fontsize=7.5, pad=3
        )
    return figure
