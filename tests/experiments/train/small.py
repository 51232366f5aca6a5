"""Small data and small runs: 8x8 images, bright red or blue above or below, and LeNet at a quarter of its width."""

import json

import numpy as np

from experiments.train.__main__ import main

CLASSES = 4
STEPS = 48  # of a run of three epochs


def write_images(path, train=512, test=60, size=8):
    """An .npz file; the first 4 labels of either part are all classes."""
    rng = np.random.default_rng(0)

    def part(count):
        labels = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, count - CLASSES)])
        images = rng.integers(0, 120, (count, size, size, 3))
        half = size // 2
        for image, label in zip(images, labels, strict=True):
            image[label // 2 * half :, :, label % 2 * 2][:half] += 100
        return images.astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = part(train), part(test)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def arguments(data, out, **options):
    """The command line of a run of three epochs of 16 steps, with a checkpoint every five."""
    told = {"data": data, "out": out, "cache": data.parent.parent / "cache", "model": "lenet", "width": 0.25}
    told |= {"epochs": 3, "batch": 32, "log-every": 4, "checkpoint-every": 5, "learning-rate": 0.02, "report": False}
    words = []
    for name, value in (told | {name.replace("_", "-"): value for name, value in options.items()}).items():
        words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return words


def train(data, out, **options):
    """Trains in this process."""
    main(arguments(data, out, **options))


def lines(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def results(out):
    """What must be the same of two runs, to the last bit: the arrays, and every figure that is no time."""
    with np.load(out / "final.npz") as file:
        arrays = {name: (file[name].dtype, file[name].shape, file[name].tobytes()) for name in file.files}
    times = {"seconds", "images_per_second", "waited_seconds"}
    return arrays, [{key: value for key, value in line.items() if key not in times} for line in lines(out)]
