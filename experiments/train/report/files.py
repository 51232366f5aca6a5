"""What a run leaves in its folder, as the report reads it: every file's form stands here.

    settings.json            every setting of the run, by name
    classes.json             the names of the classes, in the order of the labels
    metrics.jsonl            one object a logged step: step, epoch, loss, accuracy, images_per_second, learning_rate,
                             seconds; one an epoch: step, epoch, test_loss, test_accuracy; the last: "final": true
    metrics_automatic.jsonl  the same of the run that jax derives, where a run compares both rules
    agreement.jsonl          there too, one object a logged step: step, loss, loss_automatic, and layers: for each
                             parameter |g - h| / |h|, g by the hand-written rules and h by jax, in the Euclidean norm
    initial.npz, final.npz   parameters and state before and after; a key is a path joined by /, params/... or state/...
    predictions.npz          of the final model on all test images: labels, logits; images, those that the report shows,
                             their places in shown; mean and std, by which each channel, from 0 to 1, was standardised
A file may be missing, as where a run was stopped: the report tells what it cannot show. One that is there and cannot be
read is an error that names it.
"""

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

PREDICTIONS, AGREEMENT = "predictions.npz", "agreement.jsonl"
EXAMPLES, MISTAKES = 3, 24  # images that predictions.npz keeps: for the feature maps, and the worst mistakes


@dataclasses.dataclass(frozen=True)
class Log:
    """One metrics.jsonl: logged steps, epochs, and the closing object, None where the run did not reach its end."""

    steps: tuple[Mapping[str, Any], ...]
    epochs: tuple[Mapping[str, Any], ...]
    final: Mapping[str, Any] | None

    def column(self, name: str, rows: str = "steps") -> np.ndarray:
        """One figure of all steps or epochs; NaN where it was none."""
        values = (row.get(name) for row in getattr(self, rows))
        return np.array([math.nan if value is None else float(value) for value in values])


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Both rules over time: layers holds one curve a parameter, its places those of steps."""

    steps: np.ndarray
    loss: np.ndarray
    loss_automatic: np.ndarray
    layers: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The final model's answers to all test images, and the few images that are shown."""

    labels: np.ndarray
    logits: np.ndarray
    shown: np.ndarray
    images: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(-1)

    @property
    def probabilities(self) -> np.ndarray:
        """softmax(logits), in float64."""
        return np.exp(_log_softmax(self.logits))

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).mean())

    def mistakes(self) -> np.ndarray:
        """Places in `images` of those that were taken for another class, the most certain mistakes first."""
        wrong = self.predicted[self.shown] != self.labels[self.shown]
        losses = _losses(self.logits[self.shown], self.labels[self.shown])
        order = np.argsort(-losses, kind="stable")
        return order[wrong[order]][:MISTAKES]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that is read of a folder."""

    path: Path
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    log: Log
    automatic: Log | None
    agreement: Agreement | None
    initial: Mapping[str, np.ndarray] | None
    final: Mapping[str, np.ndarray] | None
    predictions: Predictions | None


def read(path: Path) -> Run:
    """The run in the folder `path`.

    Raises:
      ValueError: there is no run in it, or one of its files cannot be read; the text names the file.
    """
    path = Path(path)
    for name in ("settings.json", "metrics.jsonl"):
        if not (path / name).is_file():
            raise ValueError(f"{path} holds no run: it has no {name}")
    settings = _json(path / "settings.json")
    if not isinstance(settings, dict):
        raise ValueError(f"{path / 'settings.json'} must hold one JSON object, got {type(settings).__name__}")
    log = _log(path / "metrics.jsonl")
    automatic = _log(path / "metrics_automatic.jsonl") if (path / "metrics_automatic.jsonl").is_file() else None
    predictions = _predictions(path / PREDICTIONS) if (path / PREDICTIONS).is_file() else None
    if (path / "classes.json").is_file():
        classes = tuple(map(str, _json(path / "classes.json")))
    else:
        classes = tuple(map(str, range(predictions.logits.shape[-1] if predictions is not None else 0)))
    if predictions is not None and len(classes) != predictions.logits.shape[-1]:
        raise ValueError(
            f"{path / 'classes.json'} names {len(classes)} classes, but {PREDICTIONS} has logits of "
            f"{predictions.logits.shape[-1]}"
        )
    arrays = lambda name: load_arrays(path / name) if (path / name).is_file() else None
    agreement = _agreement(path / AGREEMENT) if (path / AGREEMENT).is_file() else None
    return Run(
        path, settings, classes, log, automatic, agreement, arrays("initial.npz"), arrays("final.npz"), predictions
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off while it was written is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line feed after it: the run was stopped here
                break
            raise ValueError(f"{path}, line {number}, is no JSON: {error}") from None
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f"{path}, line {number}, must be an object with a step, got {line[:60]!r}")
        rows.append(row)
    return rows


def _log(path: Path) -> Log:
    rows = _lines(path)
    closing = [row for row in rows if row.get("final")]
    others = [row for row in rows if not row.get("final")]
    return Log(
        steps=tuple(row for row in others if "loss" in row),
        epochs=tuple(row for row in others if "test_accuracy" in row),
        final=closing[-1] if closing else None,
    )


def _agreement(path: Path) -> Agreement:
    rows = _lines(path)
    try:
        names = list(rows[0]["layers"]) if rows else []
        return Agreement(
            steps=np.array([row["step"] for row in rows]),
            loss=np.array([row["loss"] for row in rows], float),
            loss_automatic=np.array([row["loss_automatic"] for row in rows], float),
            layers={name: np.array([row["layers"][name] for row in rows], float) for name in names},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: each line must have step, loss, loss_automatic and the same layers: {error!r}"
        ) from None


def _predictions(path: Path) -> Predictions:
    arrays = load_arrays(path)
    names = [field.name for field in dataclasses.fields(Predictions)]
    lacking = [name for name in names if name not in arrays]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}")
    found = Predictions(**{name: arrays[name] for name in names})
    if found.logits.ndim != 2 or found.labels.shape != found.logits.shape[:1] or len(found.shown) != len(found.images):
        raise ValueError(
            f"{path}: labels {found.labels.shape}, logits {found.logits.shape}, shown {found.shown.shape} and images "
            f"{found.images.shape} must be (n,), (n, classes), (m,) and (m, height, width, channels)"
        )
    return found


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, by name; nothing in it is unpickled."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def save_parameters(path: Path, params: Any, state: Any) -> None:
    """Writes initial.npz or final.npz, whole or not at all."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "state": state})
    _save(path, {key(where): np.asarray(leaf) for where, leaf in leaves})


def load_parameters(path: Path, params: Any, state: Any) -> tuple[Any, Any]:
    """Parameters and state of initial.npz or final.npz, in the structure of those given, of which only shapes count."""
    return unflatten(load_arrays(path), params, state, str(path))


def unflatten(arrays: Mapping[str, np.ndarray], params: Any, state: Any, name: str) -> tuple[Any, Any]:
    """The same of arrays that are loaded; `name` is what an error calls them."""

    def leaf(where: Any, like: Any) -> np.ndarray:
        array = arrays.get(key(where))
        if array is None or array.shape != like.shape:
            got = "has none" if array is None else f"has one of shape {array.shape}"
            raise ValueError(f"{name}: the model wants an array {key(where)!r} of shape {like.shape}, the file {got}")
        # NumPy knows bfloat16 only by its size: what was saved as two raw bytes is read as what the model has.
        return array.view(like.dtype) if array.dtype.kind == "V" else array

    tree = jax.tree_util.tree_map_with_path(leaf, {"params": params, "state": state})
    return tree["params"], tree["state"]


def key(path: Any) -> str:
    """The name of a leaf: its path joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def save_predictions(
    path: Path, images: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, mean: Any, std: Any
) -> None:
    """Writes predictions.npz: all labels and logits, and of the images, (n, h, w, c) of uint8, those that are shown.

    These are the first of three classes and the mistakes of the largest loss. mean and std: what a pixel, from 0 to 1,
    was standardised with before the model saw it.
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float32)
    if not len(images) == len(labels) == len(logits):
        raise ValueError(f"images, labels and logits must be as many, got {len(images)}, {len(labels)}, {len(logits)}")
    examples = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:EXAMPLES]]
    wrong = np.flatnonzero(logits.argmax(-1) != labels)
    worst = wrong[np.argsort(-_losses(logits[wrong], labels[wrong]), kind="stable")][:MISTAKES]
    shown = np.array([*examples, *(place for place in worst if place not in examples)], np.int64)
    arrays = {"labels": labels, "logits": logits, "shown": shown, "images": np.asarray(images[shown], np.uint8)}
    _save(path, arrays | {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)})


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(_log_softmax(logits), labels[:, None].astype(int), axis=-1)[:, 0]
