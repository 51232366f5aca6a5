"""Small data sets of every form, written by the tests themselves."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "eel")


def picture(seed: int, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def image_folder(root: Path, train: int = 4, test: int = 2, shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    """PNG files train/<class>/<number>.png and test/: exactly the pixels of picture(seed), seed as in seed_of."""
    for split, number in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for place in range(number):
                pixels = picture(seed_of(split, label, place), shape)
                (root / split / name / f"{place:03}.png").write_bytes(encoded(pixels))
    return root


def seed_of(split: str, label: int, place: int) -> int:
    """Which picture is at that place."""
    return 10_000 * (split == "test") + 1000 * label + place


def idx(array: np.ndarray) -> bytes:
    """An IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_folder(root: Path, parts: dict[str, int], zipped: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Files by MNIST's names; returns what they hold."""
    root.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, number in parts.items():
        images, labels = picture(number, (number, 6, 5)), (np.arange(number) * 7 % 5).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            data = idx(array)
            (root / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
        written[part] = images[..., None], labels
    return written


def cifar_file(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """CIFAR's binary version: labels (n,) or (n, 2), images (n, 32, 32, 3)."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.write_bytes(np.concatenate([labels.reshape(len(images), -1).astype(np.uint8), rows], 1).tobytes())
