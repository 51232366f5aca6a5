"""What a trained run makes of images: classes and probabilities; and a file that does so without this code.

    python -m experiments.predict --run DIR IMAGES...
    python -m experiments.predict --run DIR --export FOLDER

An image is decoded as for training, scaled until it covers the model's image size, its middle cut out, and made grey
or repeated over three channels where the model wants that. The file is a jax.export artefact, FOLDER/model.jax, which
jax alone reads; the parameters and the normalisation are in it, the number of images is free, and it runs on CPU,
CUDA and TPU. FOLDER/model.json names the classes. To use the two:

    model = jax.export.deserialize(Path("FOLDER/model.jax").read_bytes())
    about = json.loads(Path("FOLDER/model.json").read_text())
    logits = model.call(images)  # uint8 (n, *about["image_shape"]) in, float32 (n, len(about["classes"])) out
"""

import dataclasses
import enum
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import typer
from jax import export as jax_export
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from experiments.train import checkpoints, settings, step
from experiments.train.data import decode
from experiments.train.models import MODELS
from experiments.train.report.files import load_parameters

BATCH = 64  # images at a time
PLATFORMS = ("cpu", "cuda", "tpu")
EXAMPLES = """\b
Examples:
  python -m experiments.predict --run runs/air cat.jpg dog.png
  python -m experiments.predict --run runs/air --which best --top 1 --json *.jpg
  python -m experiments.predict --run runs/air --export exported/air
"""


class Which(enum.StrEnum):
    """Which parameters of a run."""

    FINAL = "final"
    BEST = "best"
    LAST = "last"


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model: logits(params, state, images uint8 (n, *image_shape)) gives float32 (n, len(classes))."""

    logits: Callable[[Any, Any, Any], jax.Array]
    params: Any
    state: Any
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


# A run's folder.


def load(run: Path, which: Which = Which.FINAL) -> Model:
    """The model of a run.

    Args:
      run: the folder that experiments.train wrote.
      which: the parameters of its end (final.npz), or of its checkpoint of best test accuracy or of the last one.

    Raises:
      ValueError: the folder is not of a run, or has not those parameters, or something in it is damaged.
    """
    if not run.is_dir():
        raise ValueError(f"run={run}: no such folder")
    for name in ("settings.json", "classes.json", "images.json"):
        if not (run / name).is_file():
            raise ValueError(f"run={run}: no run of experiments.train: {name} is missing")
    found = settings.Settings(**settings.read_run(run))
    classes, images = (_json(run / name) for name in ("classes.json", "images.json"))
    try:
        shape = tuple(map(int, images["shape"]))
        mean, std = (tuple(map(float, images[name])) for name in ("mean", "std"))
        if len(shape) != 3 or not len(mean) == len(std) == shape[-1]:
            raise ValueError(f"shape {shape}, mean {mean}, std {std}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run={run}: images.json must hold shape, mean and std ({error})") from None
    network = MODELS[found.model]
    key = jax.random.key(0)
    like = jax.eval_shape(lambda: network.init(key, shape, len(classes), width=found.width))
    if which is Which.FINAL:
        params, state = _final(run, like)
    else:
        params, state = _checkpoint(run, which, found, like)
    logits = step.make_logits(found, network, "jconv", mean, std, found.views)
    return Model(logits, params, state, tuple(map(str, classes)), shape, mean, std)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _final(run: Path, like: tuple[Any, Any]) -> tuple[Any, Any]:
    path = run / "final.npz"
    if not path.is_file():
        raise ValueError(
            f"run={run}: the run has not come to its end (no final.npz); --which last takes its last checkpoint"
        )
    return load_parameters(path, *like)


def _checkpoint(run: Path, which: Which, found: settings.Settings, like: tuple[Any, Any]) -> tuple[Any, Any]:
    """The parameters that are evaluated, of a checkpoint; the folder is only read."""
    folders = sorted(each for each in (run / "checkpoints").glob("*") if each.name.isdigit())
    if which is Which.BEST:
        accuracies = {each: _json(each / "run.json").get("test_accuracy") for each in folders}
        folders = [each for each in folders if accuracies[each] is not None]
        folders.sort(key=lambda each: (accuracies[each], each.name))
    if not folders:
        measured = " whose accuracy was measured" if which is Which.BEST else ""
        raise ValueError(f"run={run}: there is no checkpoint{measured}")
    folder = folders[-1]
    if damage := checkpoints.damaged(folder):
        raise ValueError(f"{folder} is damaged: {damage}")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    # One step in all, since the shapes do not depend on how many there are.
    whole = jax.eval_shape(lambda params, state: step.init(found, MODELS[found.model], params, state, 1), *like)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), whole)
    names = ("jconv", "automatic") if found.rules == "both" else (found.rules,)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        states = reader.restore(
            folder.resolve() / "state", args=ocp.args.StandardRestore(dict.fromkeys(names, abstract))
        )
    return states[names[0]].evaluated


# Images.


def read_images(paths: Sequence[Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Image files as uint8 (n, *image_shape).

    Raises:
      ValueError: files that cannot be read, the first of them named; or a model that no image file serves.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"the model takes images of {channels} channels; image files have 1 or 3")
    images, problems = np.empty((len(paths), *image_shape), np.uint8), []
    with decode.careful():
        for place, path in enumerate(paths):
            try:
                image = decode.decode(path, (height, width))
            except decode.Unreadable as error:
                problems.append(f"{path}: {error}")
                continue
            if channels < image.shape[-1]:
                image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
            images[place] = image
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}")
    return images


def probabilities(model: Model, images: np.ndarray) -> np.ndarray:
    """Of each image and class, float64 (n, classes): softmax of the logits."""
    size, logits = min(BATCH, len(images)), jax.jit(model.logits)
    found = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.pad(part, ((0, size - len(part)), *3 * ((0, 0),)))
        found.append(np.asarray(logits(model.params, model.state, padded), np.float64)[: len(part)])
    values = np.concatenate(found)
    shares = np.exp(values - values.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def best(shares: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The most probable classes of one image, in order."""
    order = np.argsort(-shares, kind="stable")[:top]
    return [{"class": classes[label], "probability": float(shares[label])} for label in order]


# An artefact.


def export(model: Model, folder: Path) -> None:
    """Writes model.jax and model.json into a folder, which is made; each whole or not at all."""
    shape = jax_export.symbolic_shape(f"n, {', '.join(map(str, model.image_shape))}")
    whole = jax.jit(lambda images: model.logits(model.params, model.state, images))
    artefact = jax_export.export(whole, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.uint8)).serialize()
    about = {
        "classes": model.classes,
        "image_shape": model.image_shape,
        "input": "uint8 (n, *image_shape), as decoded; mean and std are in the model",
        "output": "float32 (n, classes), logits",
        "mean": model.mean,
        "std": model.std,
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "sha256": hashlib.sha256(artefact).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("model.jax", bytes(artefact)), ("model.json", (json.dumps(about, indent=1) + "\n").encode())):
        beside = folder / f".{name}.partial"
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(folder / name)
        finally:
            beside.unlink(missing_ok=True)


# The command.


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def predict(
    run: Annotated[Path, typer.Option(metavar="DIR", help="The folder of a run: --out of experiments.train.")],
    images: Annotated[list[Path] | None, typer.Argument(help="JPEG or PNG files.", show_default=False)] = None,
    which: Annotated[
        Which, typer.Option(help="Parameters: of the run's end, or of its best or last checkpoint.")
    ] = Which.FINAL,
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write a jax.export artefact there.")
    ] = None,
) -> None:
    """Classes and probabilities of images, by a trained run; or an artefact that gives them without this code."""
    if not images and folder is None:
        raise ValueError("no images given, and no --export")
    model = load(run, which)
    if images:
        pixels = read_images(images, model.image_shape)
        found = [best(shares, model.classes, top) for shares in probabilities(model, pixels)]
        if as_json:
            rows = [{"image": str(path), "predictions": each} for path, each in zip(images, found, strict=True)]
            print(json.dumps(rows, indent=1))
        else:
            _console().print(table(images, found))
    if folder is not None:
        export(model, folder)
        if not as_json:
            _console().print(f"{folder / 'model.jax'} and model.json written", markup=False, soft_wrap=True)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def table(images: Sequence[Path], found: Sequence[list[dict[str, Any]]]) -> Table:
    """A section an image, a row a class."""
    shown = Table("image", "class", Column("probability", justify="right"), "")
    for path, rows in zip(images, found, strict=True):
        for place, row in enumerate(rows):
            bar = "█" * round(20 * row["probability"])
            # Text, since a name may hold what rich takes for markup.
            cells = Text(str(path) if place == 0 else ""), Text(row["class"]), f"{row['probability']:.2%}", bar
            shown.add_row(*cells, end_section=place == len(rows) - 1)
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; what is wrong is told in one line, exit status 2."""
    try:
        app(arguments, prog_name="python -m experiments.predict", standalone_mode=False)
    except typer.TyperException as error:
        _end(2, error.format_message())
    except typer.Abort:
        _end(130, "stopped")
    except (ValueError, OSError) as error:
        _end(2, str(error))


def _end(status: int, line: str) -> None:
    print(f"predict: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
