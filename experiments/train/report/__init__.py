"""The report of a run, made of its folder alone: pictures, a table, and one HTML page with both in it.

    write(folder)    the pictures as PNG and report.html into the folder; the page's path
    python -m experiments.train.report FOLDER    the same, and prints the table
files.py tells what the folder must hold, and has the functions that write the arrays among it.
"""

import importlib
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.train.report import layers, page, plots, table
from experiments.train.report.files import EXAMPLES, Run, read, save_parameters, save_predictions, unflatten

__all__ = ["Run", "read", "save_parameters", "save_predictions", "table", "write"]

MODELS = "experiments.train.models"
LAYERS = 4  # of which the feature maps are shown
DPI = 140


def write(path: Path) -> Path:
    """Makes the pictures and the page of the run in the folder `path`.

    Returns:
      Where the page is: path / "report.html".

    Raises:
      ValueError: the folder holds no run, or a file in it cannot be read; the text names it.
    """
    run = read(path)
    pictures, notes = _pictures(run)
    for picture in pictures:
        (run.path / picture.file).write_bytes(picture.png)
    out = run.path / "report.html"
    out.write_text(page.html(run, pictures, notes), encoding="utf-8")
    return out


def _pictures(run: Run) -> tuple[list[page.Picture], list[str]]:
    """The pictures that the folder has the data for, and sentences about the others."""
    made, notes = [], []

    def add(file: str, title: str, caption: str, figure: Any) -> None:
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
        made.append(page.Picture(file, title, caption, out.getvalue()))

    both = run.automatic is not None
    if run.log.steps:
        caption = "By step; a training batch's values are averaged over a fiftieth of the run."
        caption += " The thin curves, of the rules that jax derives, are drawn upon the thick ones." if both else ""
        add("curves.png", "Curves", caption, plots.curves(run.log, run.automatic))
    else:
        notes.append("No step was logged, so there are no curves.")
    if run.agreement is not None and len(run.agreement.steps):
        caption = (
            "|g - h| / |h| of each parameter's gradient, g by the hand-written rules and h by jax, at the hand-written "
            "run's parameters, by step; below it the losses of the two runs, in which differences of rounding grow."
        )
        add("agreement.png", "Agreement of the two rules", caption, plots.agreement(run.agreement))
    if run.predictions is None:
        notes.append("There is no predictions.npz, so no confusion matrix and no mistakes are shown.")
    else:
        logged = (run.log.final or {}).get("test_accuracy")
        if logged is not None and abs(logged - run.predictions.accuracy) > 0.5 / len(run.predictions.labels):
            notes.append(
                f"predictions.npz has {run.predictions.accuracy:.2%} right, but metrics.jsonl says {logged:.2%}: they "
                "are not of one model."
            )
        caption = "Rows: what an image is. Columns: what it was taken for. The redder, the larger a share of its class."
        add("confusion.png", "Confusion matrix", caption, plots.confusion(run.predictions, run.classes))
        if len(run.predictions.mistakes()):
            caption = (
                "To what these are the model gave the least probability: its answer, with its share, and what it is."
            )
            add("mistakes.png", "The worst mistakes", caption, plots.mistakes(run.predictions, run.classes))
        else:
            notes.append("The model made no mistake on the test images.")
    if run.initial is None or run.final is None or run.predictions is None:
        notes.append("Without initial.npz, final.npz and predictions.npz no kernels and no feature maps are shown.")
    else:
        _insides(run, add, notes)
    if np.isfinite(run.log.column("images_per_second")).any():
        caption = "At each logged step, the time for evaluation and checkpoints left out."
        add("speed.png", "Speed", caption, plots.speed(run.log, run.automatic))
    return made, notes


def _insides(run: Run, add: Any, notes: list[str]) -> None:
    """Kernels before and after, and feature maps: the model is run on a few test images with both sets of variables."""
    predictions = run.predictions
    assert predictions is not None
    model = importlib.import_module(f"{MODELS}.{run.settings['model']}")
    images = predictions.images[: min(EXAMPLES, len(predictions.images))]
    shape, width = images.shape[1:], float(run.settings.get("width", 1.0))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, len(run.classes), width=width))
    given = (jnp.asarray(images, jnp.float32) / 255 - predictions.mean) / predictions.std

    def logits(variables: Any, images: Any) -> Any:
        return model.apply(variables["params"], variables["state"], images, train=False)[0]

    found = []
    for name, arrays in (("initial.npz", run.initial), ("final.npz", run.final)):
        assert arrays is not None
        params, state = unflatten(arrays, like[0], like[1], str(run.path / name))
        found.append(layers.convolutions(logits, {"params": params, "state": state}, given))
    before, after = found
    if not after or after[0].kernel.ndim != 4:
        notes.append("The model has no two-dimensional convolution outside of loops, so none is shown.")
        return
    caption = "Grey is 0; each kernel is stretched to its own largest weight."
    if np.array_equal(before[0].kernel, after[0].kernel):
        caption += " This layer is not trained."
    add("kernels.png", "First-layer kernels, before and after", caption, plots.kernels(before[0], after[0]))
    names = [run.classes[label] for label in predictions.labels[predictions.shown[: len(images)]]]
    caption = (
        f"What some of the {len(after)} convolutions give for test images: the {plots.MAPS} channels that vary most, "
        "each from its least value (dark) to its largest (light)."
    )
    add("features.png", "Feature maps", caption, plots.feature_maps(images, names, layers.spread(after, LAYERS)))
