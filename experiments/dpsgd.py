"""Private training: one gradient an example, each clipped, of the ResNet of experiments.train; images a second.

    g_i = gradient of the loss of image i alone        jax.vmap(jax.grad(loss), in_axes=(None, 0))
    g   = (sum over i of g_i min(1, C / |g_i|) + noise) / n       noise normal, of deviation C * sigma

which optax.contrib.differentially_private_aggregate takes from the g_i. Under vmap of grad the forward product and the
input gradient have one kernel for all images and stay one convolution over the batch; the kernel gradients are one an
image. Stock JAX makes them a grouped convolution, jconv a batched product of a few images' patches at a time.

The network is of groups of channels normalised (batch normalisation mixes the examples, so it has no gradient an
example). Images are random: what a step costs does not depend on them.

Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from optax import contrib
from rich.console import Console
from rich.table import Table

import jconv
from experiments.train.models import layers, resnet

GROUPS = 8  # of channels that are normalised together
EPSILON = 1e-5
Tree = Any
CONTESTANTS = ("jconv", "stock")

EXAMPLES = """\b
Examples:
  python -m experiments.dpsgd
  python -m experiments.dpsgd --batch 128 --repeats 9 --json dpsgd.json
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def group_norm(params: Tree, x: jax.Array) -> jax.Array:
    """X (height, width, channels) normalised over space and within each group of channels.

    var = E[x^2] - E[x]^2, the means of each channel first, then of its group: XLA:CPU takes several times as long to
    sum up a part of the channels.
    """
    each = x.shape[-1] // GROUPS
    of_group = lambda value: jnp.repeat(value.mean((0, 1)).reshape(GROUPS, each).mean(-1), each)
    mean = of_group(x)
    var = jnp.maximum(of_group(x * x) - mean * mean, 0)
    scale = params["scale"] * jax.lax.rsqrt(var + EPSILON)
    return x * scale + (params["bias"] - mean * scale)


def logits(params: Tree, image: jax.Array) -> jax.Array:
    """ResNet-20 as experiments.train has it, of one image, with group_norm in place of batch normalisation."""
    conv = lambda params, x, **options: layers.conv(params, x[None], **options)[0]
    x = jax.nn.relu(group_norm(params["norm"], conv(params["stem"], image)))
    for stage in range(len(resnet.CHANNELS)):
        for block in range(resnet.BLOCKS):
            p, strides = params[f"stage{stage}_block{block}"], 2 if stage > 0 and block == 0 else 1
            y = jax.nn.relu(group_norm(p["norm0"], conv(p["conv0"], x, strides=strides, padding=1)))
            y = group_norm(p["norm1"], conv(p["conv1"], y))
            x = jax.nn.relu(y + resnet.shortcut(x[None], strides, y.shape[-1])[0])
    return layers.dense(params["dense"], x.mean((0, 1))[None])[0]


def loss(params: Tree, image: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy of one image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, image), label)


def make_step(
    contestant: str, optimizer: optax.GradientTransformation
) -> Callable[[Tree, Tree, jax.Array, jax.Array], tuple[Tree, Tree]]:
    """step(params, moments, images, labels), with jconv's rules or with jax's own derivative of lax."""
    function = loss if contestant == "jconv" else jconv.automatic(loss)
    gradients = jax.vmap(jax.grad(function), in_axes=(None, 0, 0))

    def step(params: Tree, moments: Tree, images: jax.Array, labels: jax.Array) -> tuple[Tree, Tree]:
        updates, moments = optimizer.update(gradients(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    return step


def private_sgd(clip: float, noise: float, rate: float, seed: int) -> optax.GradientTransformation:
    """SGD on the gradients' private mean."""
    private = contrib.differentially_private_aggregate(clip, noise, seed)
    return optax.chain(private, optax.sgd(rate))


def measure(batch: int, image: int, width: float, clip: float, noise: float, repeats: int, seed: int) -> dict[str, Any]:
    """Both contestants' steps, interleaved: medians, and how far the parameters after one step are apart."""
    params, _ = resnet.init(jax.random.key(seed), (image, image, 3), 10, width=width)
    generator = np.random.default_rng(seed)
    images = jnp.asarray(generator.standard_normal((batch, image, image, 3), np.float32))
    labels = jnp.asarray(generator.integers(0, 10, batch), jnp.int32)
    optimizer = private_sgd(clip, noise, 0.1, seed)
    arguments = (params, optimizer.init(params), images, labels)
    result: dict[str, Any] = {"batch": batch, "image": image, "width": width}
    steps, after = {}, {}
    for name in CONTESTANTS:
        began = time.perf_counter()
        steps[name] = jax.jit(make_step(name, optimizer)).lower(*arguments).compile()
        memory = steps[name].memory_analysis()
        result[name] = {
            "compile_seconds": time.perf_counter() - began,
            "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        }
        after[name] = jax.block_until_ready(steps[name](*arguments))[0]
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(repeats):
        for name in CONTESTANTS:
            began = time.perf_counter()
            jax.block_until_ready(steps[name](*arguments))
            seconds[name].append(time.perf_counter() - began)
    for name in CONTESTANTS:
        result[name] |= {
            "step_seconds": float(np.median(seconds[name])),
            "images_per_second": batch / float(np.median(seconds[name])),
        }
    result["ratio"] = float(np.median(np.divide(seconds["stock"], seconds["jconv"])))
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after["jconv"], after["stock"])
    result["parameters_apart"] = max(jax.tree.leaves(apart))
    return result


def shown(result: dict[str, Any]) -> Table:
    """The result as a table."""
    title = f"DP-SGD, ResNet-20, batches of {result['batch']} images of {result['image']} x {result['image']}"
    table = Table("", "images/s", "ms a step", "s to compile", "MiB temporary", title=title)
    for name in CONTESTANTS:
        row = result[name]
        size = "" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 2**20:.0f}"
        figures = (
            f"{row['images_per_second']:.1f}",
            f"{1e3 * row['step_seconds']:.0f}",
            f"{row['compile_seconds']:.1f}",
        )
        table.add_row(name, *figures, size)
    table.caption = f"stock / jconv {result['ratio']:.2f}; parameters apart by {result['parameters_apart']:.1e}"
    return table


At_least = functools.partial(typer.Option, show_default=True)


@app.command(epilog=EXAMPLES)
def run(
    batch: Annotated[int, At_least(min=1, help="Images a step.")] = 64,
    image: Annotated[int, At_least(min=8, help="Height and width of an image.")] = 32,
    width: Annotated[float, At_least(min=0.01, help="Multiplies every number of channels.")] = 1.0,
    clip: Annotated[float, At_least(min=1e-6, help="C, the largest norm of an example's gradient.")] = 1.0,
    noise: Annotated[float, At_least(min=0.0, help="sigma, the noise's deviation over C.")] = 1.1,
    repeats: Annotated[int, At_least(min=1, help="Timed steps of each.")] = 5,
    seed: Annotated[int, At_least(min=0, help="Draws parameters, images and noise.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measures training with one clipped gradient an example: jconv against stock JAX, images a second."""
    result = measure(batch, image, width, clip, noise, repeats, seed)
    Console().print(shown(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; a wrong option ends in one line and exit status 2."""
    try:
        app(arguments, prog_name="python -m experiments.dpsgd", standalone_mode=False)
    except typer.TyperException as error:
        print(f"dpsgd: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"dpsgd: json={error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
