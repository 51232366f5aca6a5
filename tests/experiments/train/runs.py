"""A finished run's folder, written here: a small model of two convolutions, four classes, known answers and curves."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np

import jconv
from experiments.train import report

CLASSES = ("ash", "birch", "<cedar> & co", "dogwood")
IMAGE = (12, 12, 3)


def init(key, image_shape, classes, *, width=1.0):
    """Parameters and state of the model; the second convolution is under jax.checkpoint."""
    channels = int(4 * width)
    keys = jax.random.split(key, 3)
    normal = lambda key, *shape: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
    params = {
        "first": {"kernel": normal(keys[0], 3, 3, image_shape[-1], channels)},
        "blocks": [{"kernel": normal(keys[1], 3, 3, channels, 2 * channels)}],
        "dense": normal(keys[2], 2 * channels, classes),
    }
    return params, {"mean": jnp.zeros(channels)}


def apply(params, state, images, *, train, dtype=jnp.float32, axis_name=None):
    x = jax.nn.relu(jconv.conv(images, params["first"]["kernel"], padding="SAME") - state["mean"])
    x = jconv.max_pool(x, 2, 2)
    block = jax.jit(jax.checkpoint(lambda x, kernel: jax.nn.relu(jconv.conv(x, kernel))))
    return block(x, params["blocks"][0]["kernel"]).mean((1, 2)) @ params["dense"], state


def model():
    """The model as the module that settings.json would name."""
    module = types.ModuleType("experiments.train.models.tiny")
    module.init, module.apply = init, apply
    return module


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(steps, epochs, speed, shift=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        loss = 2.3 * np.exp(-4 * step / steps) + 0.05 * rng.random() + shift
        rows.append(
            {
                "step": step, "epoch": 1 + (step - 1) * epochs // steps, "loss": loss, "accuracy": float(np.exp(-loss)),
                "images_per_second": speed * (0.9 + 0.2 * rng.random()), "learning_rate": 0.1 * (1 - step / steps),
                "seconds": 0.5 * step,
            }
        )  # fmt: skip
        if step * epochs % steps == 0:
            rows.append(
                {"step": step, "epoch": step * epochs // steps, "test_accuracy": 1 - loss / 3, "test_loss": loss}
            )
    last = {"final": True, "step": steps, "loss": rows[-1]["test_loss"], "test_accuracy": 0.75}
    return [*rows, last | {"seconds": 200.0, "images_per_second": speed}]


def answers(count=40):
    """Labels, and logits of which the first ten are wrong, less and less surely: label + 1 instead of label."""
    labels = np.arange(count, dtype=np.int32) % 4
    logits = np.zeros((count, 4), np.float32)
    for i, label in enumerate(labels):
        logits[i, (label + 1) % 4 if i < 10 else label] = 12 - i if i < 10 else 3
    return labels, logits


def write(path, *, both=False, steps=60, epochs=3):
    path.mkdir(exist_ok=True, parents=True)
    settings = {
        "model": "tiny",
        "data": "trees",
        "rules": "both" if both else "jconv",
        "batch": 8,
        "width": 1.0,
    }
    (path / "settings.json").write_text(json.dumps(settings))
    (path / "classes.json").write_text(json.dumps(CLASSES))
    lines(path / "metrics.jsonl", metrics(steps, epochs, speed=300.0))
    report.save_parameters(path / "initial.npz", *init(jax.random.key(0), IMAGE, 4))
    report.save_parameters(path / "final.npz", *init(jax.random.key(1), IMAGE, 4))
    labels, logits = answers()
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *IMAGE), np.uint8)
    images[:, :2] = 20 * labels[:, None, None, None]
    report.save_predictions(path / "predictions.npz", images, labels, logits, mean=[0.5] * 3, std=[0.25] * 3)
    if both:
        lines(path / "metrics_automatic.jsonl", metrics(steps, epochs, speed=200.0, shift=1e-5))
        lines(
            path / "agreement.jsonl",
            [
                {
                    "step": step, "loss": 1 / step, "loss_automatic": 1 / step + 1e-7 * step,
                    "layers": {"params/first/kernel": 1e-7 * step, "params/dense": 2e-7, "params/blocks/0/kernel": 0.0},
                }
                for step in range(1, steps + 1)
            ],
        )  # fmt: skip
    return path, images
