"""LeNet on real handwritten digits, trained twice: with jconv's hand-written rules and with jax.grad of plain lax.

    (8, 8, 1) -> [3x3 convolution, bias, ReLU, 2x2 max pool, 2x2 average pool with stride 2] twice -> dense -> 10 digits

The two trainings run the same model from the same parameters on the same batches; only the layer functions differ. They
take their steps in turn, A B A B, so that whatever else the machine does falls on both alike.

Sources: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition; a max pool
without stride before a strided average is Zhang 2019, Making Convolutional Networks Shift-Invariant Again. Data:
Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, the 1,797 images that come with scikit-learn.
"""

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jax import lax
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jconv

STEPS = 800
BATCH = 64
CHANNELS = (1, 32, 64)  # of the images and after each of the two stages
LEARNING_RATE = 3e-3  # falls to 0 along a cosine
TEST_IMAGES = 450  # of 1,797; the same for every seed
EVALUATE_EVERY = 20  # steps


# The model: a plain function of its parameters. The layers are an argument, so one model serves both trainings.


class Layers(NamedTuple):
    """The functions that a model is made of."""

    conv: Callable[..., jax.Array]
    max_pool: Callable[..., jax.Array]
    avg_pool: Callable[..., jax.Array]


def init(key: jax.Array) -> dict[str, Any]:
    """Draws the parameters: He-normal kernels, zero biases."""
    he = jax.nn.initializers.he_normal()
    *stage_keys, dense_key = jax.random.split(key, len(CHANNELS))
    stages = [
        {"kernel": he(stage_key, (3, 3, inputs, outputs)), "bias": jnp.zeros(outputs)}
        for stage_key, inputs, outputs in zip(stage_keys, CHANNELS[:-1], CHANNELS[1:], strict=True)
    ]
    dense = {"kernel": he(dense_key, (2 * 2 * CHANNELS[-1], 10)), "bias": jnp.zeros(10)}
    return {"stages": stages, "dense": dense}


def apply(layers: Layers, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits (batch, 10) of images (batch, 8, 8)."""
    x = images[..., None]
    for stage in params["stages"]:
        x = layers.conv(x, stage["kernel"], stage["bias"], padding="SAME")
        x = layers.max_pool(jax.nn.relu(x), (2, 2), padding="SAME")
        x = layers.avg_pool(x, (2, 2), strides=(2, 2))
    return x.reshape(len(x), -1) @ params["dense"]["kernel"] + params["dense"]["bias"]


def loss(layers: Layers, params: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(apply(layers, params, images), labels).mean()


def accuracy(layers: Layers, params: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the images whose largest logit is the label's."""
    return jnp.mean(apply(layers, params, images).argmax(-1) == labels)


def step(layers: Layers, optimizer: optax.GradientTransformation, params, state, images, labels):
    """One step of training, a pure function: the new parameters and optimizer state, and the loss before it."""
    value, grads = jax.value_and_grad(functools.partial(loss, layers))(params, images, labels)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value


# The same layers in plain lax, whose gradients are JAX's own.


def lax_conv(x, kernel, bias, padding):
    """Convolution with stride 1, and bias."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def lax_max_pool(x, window_shape, strides=(1, 1), padding="VALID"):
    """Largest value of each window."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window_shape, 1), (1, *strides, 1), padding)


def lax_avg_pool(x, window_shape, strides=(1, 1), padding="VALID"):
    """Mean of each window."""
    sums = lax.reduce_window(x, 0.0, lax.add, (1, *window_shape, 1), (1, *strides, 1), padding)
    return sums / np.prod(window_shape)


LAYERS = {
    "jconv": Layers(jconv.conv, jconv.max_pool, jconv.avg_pool),
    "jax.grad of lax": Layers(lax_conv, lax_max_pool, lax_avg_pool),
}


# The data.


def load():
    """Images from 0 to 1 and labels of both parts: (train_images, train_labels), (test_images, test_labels)."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype(np.float32) / 16
    split = train_test_split(images, labels.astype(np.int32), test_size=TEST_IMAGES, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    return (train_images, train_labels), (test_images, test_labels)


def batches(images: jax.Array, labels: jax.Array, steps: int, seed: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The batches of one training: a new order of the images in every epoch, the incomplete last batch left out."""
    rng = np.random.default_rng(seed)
    per_epoch = len(images) // BATCH
    epochs = [rng.permutation(len(images))[: per_epoch * BATCH] for _ in range(-(-steps // per_epoch))]
    for places in np.concatenate(epochs).reshape(-1, BATCH)[:steps]:
        yield images[places], labels[places]


# The training.


@dataclasses.dataclass
class Training:
    """One of the two trainings: what it needs for the next step and what it has measured so far."""

    step: Callable[..., Any]  # compiled
    accuracy: Callable[..., jax.Array]
    params: dict[str, Any]
    state: Any
    compile_seconds: float
    losses: list[float] = dataclasses.field(default_factory=list)  # one a step
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    accuracies: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # (steps done, on the test images)


def prepare(layers: Layers, steps: int, seed: int, batch: tuple[jax.Array, jax.Array]) -> Training:
    """Draws the parameters and compiles the step; it is given its arguments' buffers to write the new ones into."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    params = init(jax.random.key(seed))
    state = optimizer.init(params)
    jitted = jax.jit(functools.partial(step, layers, optimizer), donate_argnums=(0, 1))
    start = time.perf_counter()
    compiled = jitted.lower(params, state, *batch).compile()
    compile_seconds = time.perf_counter() - start
    return Training(compiled, jax.jit(functools.partial(accuracy, layers)), params, state, compile_seconds)


def train(steps: int, seed: int, report: Callable[[str, int, float], None]) -> dict[str, Any]:
    """Trains both and returns all that was measured; `report` hears of every step (name, steps done, loss)."""
    train_set, test_set = load()
    first = next(batches(*train_set, steps=1, seed=seed))
    trainings = {name: prepare(layers, steps, seed, first) for name, layers in LAYERS.items()}
    grads = [
        jax.jit(jax.grad(functools.partial(loss, layers)))(trainings[name].params, *first)
        for name, layers in LAYERS.items()
    ]
    for number, batch in enumerate(batches(*train_set, steps, seed), start=1):
        for name, training in trainings.items():
            start = time.perf_counter()
            outputs = jax.block_until_ready(training.step(training.params, training.state, *batch))
            training.step_seconds.append(time.perf_counter() - start)
            training.params, training.state, value = outputs
            training.losses.append(float(value))
            if number % EVALUATE_EVERY == 0 or number == steps:
                training.accuracies.append((number, float(training.accuracy(training.params, *test_set))))
            report(name, number, training.losses[-1])
    hand, stock = trainings.values()
    return {
        "steps": steps,
        "seed": seed,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "trainings": {
            name: {
                "final_loss": float(jax.jit(functools.partial(loss, LAYERS[name]))(training.params, *train_set)),
                "test_accuracy": training.accuracies[-1][1],
                "median_step_seconds": statistics.median(training.step_seconds),
                "compile_seconds": training.compile_seconds,
                "losses": training.losses,
                "test_accuracies": training.accuracies,
            }
            for name, training in trainings.items()
        },
        "step_time_ratio": statistics.median(stock.step_seconds) / statistics.median(hand.step_seconds),
        "gradient_difference": max(map(relative_difference, *map(jax.tree.leaves, grads))),
        "loss_curve_difference": max(abs(a - b) / abs(b) for a, b in zip(hand.losses, stock.losses, strict=True)),
    }


def relative_difference(a: jax.Array, b: jax.Array) -> float:
    """Largest difference of two arrays, as a share of the largest value."""
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


# What is shown.


@contextlib.contextmanager
def progress(console: Console, steps: int) -> Iterator[Callable[[str, int, float], None]]:
    """A bar for each training; where the output is not a terminal, ten plain lines for each."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:>15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as bars:
            tasks = {name: bars.add_task(name, total=steps, loss=float("nan")) for name in LAYERS}
            yield lambda name, number, value: bars.update(tasks[name], completed=number, loss=value)
    else:

        def line(name, number, value):
            if number % max(1, steps // 10) == 0:
                print(f"{name:>15}  step {number:>5}/{steps}  loss {value:.4f}", file=console.file, flush=True)

        yield line


def table(results: dict[str, Any]) -> Table:
    """The two trainings side by side."""
    hand, stock = (results["trainings"][name] for name in LAYERS)
    note = (
        "In float32 a difference in the last bit of a gradient grows from step to step; in float64 the curves are one."
    )
    shown = Table("", *LAYERS, "the two", title="LeNet on 1,797 handwritten digits", caption=note)
    for column in shown.columns[1:]:
        column.justify = "right"
    shown.add_row("steps", str(results["steps"]), str(results["steps"]), "same batches")
    shown.add_row("final training loss", f"{hand['final_loss']:.5f}", f"{stock['final_loss']:.5f}")
    shown.add_row("test accuracy", f"{hand['test_accuracy']:.2%}", f"{stock['test_accuracy']:.2%}")
    shown.add_row("gradients at step 0", "", "", f"differ by {results['gradient_difference']:.1e} at most")
    shown.add_row("loss curves", "", "", f"differ by {results['loss_curve_difference']:.1e} at most")
    milliseconds = (f"{1e3 * each['median_step_seconds']:.2f} ms" for each in (hand, stock))
    shown.add_row("median step", *milliseconds, f"jconv {results['step_time_ratio']:.2f} times as fast")
    shown.add_row("compilation", f"{hand['compile_seconds']:.2f} s", f"{stock['compile_seconds']:.2f} s")
    return shown


def picture(results: dict[str, Any]) -> Figure:
    """Both loss curves and both accuracies."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for (name, training), width in zip(results["trainings"].items(), (4, 1), strict=True):
        loss_axes.semilogy(training["losses"], linewidth=width, label=name)
        accuracy_axes.plot(*zip(*training["test_accuracies"], strict=True), linewidth=width, label=name)
    loss_axes.set(title="Loss of each batch", xlabel="step", ylabel="cross-entropy")
    accuracy_axes.set(title="Accuracy on the test images", xlabel="step", ylim=(0.9, 1.0))
    loss_axes.legend()
    accuracy_axes.legend(loc="lower right")
    return figure


# The command.

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def writable(path: Path | None) -> Path | None:
    """Checks before the training, not after it, that the file can be written."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder, not a file")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} cannot be written; does its folder exist?")
    return path


EXAMPLES = """\b
Examples:
  python -m experiments.digits
  python -m experiments.digits --steps 200 --seed 1 --out digits-1.png
  python -m experiments.digits --json digits.json
"""


@app.command(epilog=EXAMPLES)
def digits(
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, for each of the two.")] = STEPS,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Draws the parameters and the batches.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE", callback=writable, help="The picture (PNG).")] = Path(
        "digits.png"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", callback=writable, help="All figures, with both curves.")
    ] = None,
) -> None:
    """Trains LeNet on real handwritten digits twice, with jconv's rules and with jax.grad of lax, and compares them."""
    console = Console()
    with progress(console, steps) as report:
        results = train(steps, seed, report)
    console.print(table(results))
    picture(results).savefig(out, format="png", dpi=120)
    print(f"Both curves: {out}")
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"All figures: {json_file}")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; a wrong argument ends in one line and exit status 2."""
    try:
        app(arguments, prog_name="python -m experiments.digits", standalone_mode=False)
    except typer.TyperException as error:
        print(f"digits: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # the user pressed Ctrl-C
        sys.exit(130)


if __name__ == "__main__":
    main()
