"""Data that is arrays already: IDX files (MNIST, Fashion-MNIST), CIFAR's binary version, .npz.

IDX is two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number of axes, each axis's length as a
big-endian 32-bit integer, then the values; gzip or not. CIFAR's binary version is a record an image: one byte for the
label (CIFAR-100: two, coarse and fine; the fine one counts), then 32 x 32 reds, greens and blues. Nothing here reads a
pickle. Sources: LeCun, Cortes, Burges, The MNIST database; Krizhevsky 2009, Learning Multiple Layers of Features from
Tiny Images.
"""

import functools
import gzip
import struct
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from experiments.train.data.batches import order
from experiments.train.data.decode import resized
from experiments.train.data.sources import Chunk, Contents, Options, Problem, Source, stat

CHUNK = 1000  # images
IDX_PARTS = {"train": "train", "test": "t10k"}
IDX_KINDS = {"images": "images{}idx3-ubyte", "labels": "labels{}idx1-ubyte"}
CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")


class Broken(ValueError):
    """A file that is not what its name says."""


def find_idx(root: Path) -> Source | None:
    """IDX files by MNIST's names; with the t10k pair alone a part of it is the test set."""
    parts = {part: {kind: _idx_file(root, part, kind) for kind in IDX_KINDS} for part in IDX_PARTS}
    names = [name for kinds in parts.values() for name in kinds.values() if name]
    if not names:
        return None
    for part, kinds in parts.items():
        lacking = [kind for kind, name in kinds.items() if name is None]
        if len(lacking) == 1:
            have = next(name for name in kinds.values() if name)
            raise ValueError(f"open_dataset: {str(root)!r} holds {have}, but not the {lacking[0]} that belong to it")
        if lacking and part == "test":
            raise ValueError(
                f"open_dataset: {str(root)!r} holds {names[0]}, but no t10k-images-idx3-ubyte: no test set"
            )
    return Source(
        "IDX files", root, tuple(stat(root, name) for name in names), functools.partial(_read_idx, root, parts)
    )


def _idx_file(root: Path, part: str, kind: str) -> str | None:
    stem = f"{IDX_PARTS[part]}-{IDX_KINDS[kind]}"
    names = [stem.format(mark) + suffix for mark in "-." for suffix in ("", ".gz")]
    return next((name for name in names if (root / name).is_file()), None)


def _read_idx(root: Path, parts: dict[str, dict[str, str | None]], options: Options) -> Contents:
    arrays = {}
    for part, kinds in parts.items():
        if kinds["images"] is None or kinds["labels"] is None:
            continue
        try:
            images, labels = (_idx(root / name, axes) for name, axes in ((kinds["images"], 3), (kinds["labels"], 1)))
        except Broken as error:
            raise ValueError(f"open_dataset: {error}") from error
        if len(images) != len(labels):
            raise ValueError(
                f"open_dataset: {kinds['images']} holds {len(images):,} images, "
                f"{kinds['labels']} {len(labels):,} labels"
            )
        arrays[part] = images[..., None], labels.astype(np.int32)
    notes = ()
    if "train" not in arrays:
        images, labels = arrays["test"]
        places, cut = order(0, 0, len(images)), len(images) * 4 // 5
        arrays = {
            part: (images[which], labels[which])
            for part, which in (("train", np.sort(places[:cut])), ("test", np.sort(places[cut:])))
        }
        notes = (
            f"only the t10k files are there: of their {len(images):,} images {cut:,}, drawn once and for all, "
            f"are for training and {len(images) - cut:,} for the test",
        )
    classes = tuple(map(str, range(max(int(labels.max(initial=0)) for _, labels in arrays.values()) + 1)))
    return _contents(arrays["train"], arrays["test"], classes, [], notes, options)


def _idx(path: Path, axes: int) -> np.ndarray:
    """The bytes of one IDX file, in its shape."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise Broken(f"{path}: {error}") from error
    start = 4 + 4 * axes
    if len(data) < start:
        raise Broken(f"{path}: {len(data)} bytes, shorter than an IDX header of {start}")
    zero, kind, found_axes = struct.unpack(">HBB", data[:4])
    if (zero, kind, found_axes) != (0, 8, axes):
        raise Broken(
            f"{path}: begins with {data[:4].hex()}, not {bytes((0, 0, 8, axes)).hex()} as IDX bytes of {axes} axes do"
        )
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != np.prod(shape, dtype=object):
        raise Broken(f"{path}: {len(data) - start:,} bytes follow the header, which says {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_cifar(root: Path) -> Source | None:
    """CIFAR's binary version, by the names of its files: CIFAR-10 or CIFAR-100."""
    tens, hundreds = [f"data_batch_{number}.bin" for number in range(1, 6)], ["train.bin"]
    for train, test, name, text in (
        (tens, "test_batch.bin", "CIFAR-10", "batches.meta.txt"),
        (hundreds, "test.bin", "CIFAR-100", "fine_label_names.txt"),
    ):
        have = [file for file in (*train, test, text) if (root / file).is_file()]
        if not set(have) & set(train):
            continue
        if test not in have:
            raise ValueError(f"open_dataset: {str(root)!r} holds {have[0]}, but not {test}: no test set")
        missing = [Problem(file, "missing") for file in train if file not in have]
        read = functools.partial(_read_cifar, root, [file for file in train if file in have], test, text, missing)
        return Source(f"binary {name}", root, tuple(stat(root, file) for file in have), read)
    return None


def _read_cifar(
    root: Path, train: list[str], test: str, text: str, missing: list[Problem], options: Options
) -> Contents:
    problems, batches = list(missing), []
    number, label_bytes = (10, 1) if test == "test_batch.bin" else (100, 2)
    for name in train:
        try:
            batches.append(_cifar(root / name, number, label_bytes))
        except Broken as error:
            problems.append(Problem(name, str(error)))
    if not batches:
        told = "; ".join(f"{problem.path}: {problem.reason}" for problem in problems)
        raise ValueError(f"open_dataset: nothing to train on in {str(root)!r}: {told}")
    try:
        tests = _cifar(root / test, number, label_bytes)
    except Broken as error:
        raise ValueError(f"open_dataset: {root / test}: {error}") from error
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return _contents((images, labels), tests, _cifar_classes(root / text, number, problems), problems, (), options)


def _cifar(path: Path, number: int, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and labels of one file."""
    size = label_bytes + 32 * 32 * 3
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Broken(error.strerror) from error
    if not data or len(data) % size:
        raise Broken(f"{len(data):,} bytes are not whole records of {size:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int32)
    if labels.max() >= number:
        raise Broken(f"record {int(np.argmax(labels >= number)):,} has the label {labels.max()}, of {number} classes")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _cifar_classes(path: Path, number: int, problems: list[Problem]) -> tuple[str, ...]:
    """The names of the classes, as the file beside the data has them."""
    if path.is_file():
        names = tuple(path.read_text("utf-8", errors="replace").split())
        if len(names) == len(set(names)) == number:
            return names
        problems.append(Problem(path.name, f"{number} names expected, {len(names)} found"))
    return CIFAR_10 if number == 10 else tuple(map(str, range(number)))


def find_npz(path: Path) -> Source | None:
    """An .npz file, or a folder that holds one: x_train, y_train, x_test, y_test; classes if they have names."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        return None
    if len(files) > 1:
        raise ValueError(f"open_dataset: {str(path)!r} holds {len(files)} .npz files; give the path of one")
    file = files[0]
    return Source(".npz", file, (stat(file.parent, file.name),), functools.partial(_read_npz, file))


def _read_npz(path: Path, options: Options) -> Contents:
    try:
        with path.open("rb") as file, np.load(_zip(file), allow_pickle=False) as archive:
            lacking = [name for name in NPZ_NAMES if name not in archive.files]
            if lacking:
                raise ValueError(f"lacks {', '.join(lacking)}; it holds {', '.join(archive.files) or 'nothing'}")
            x_train, y_train, x_test, y_test = (archive[name] for name in NPZ_NAMES)
            names = archive["classes"] if "classes" in archive.files else None
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"open_dataset: {path}: {error}") from error
    splits = _npz_split(path, "train", x_train, y_train), _npz_split(path, "test", x_test, y_test)
    if splits[0][0].shape[1:] != splits[1][0].shape[1:] and options.image_size is None:
        raise ValueError(
            f"open_dataset: {path}: images of x_train are {splits[0][0].shape[1:]}, of x_test {splits[1][0].shape[1:]}"
        )
    largest = max(int(labels.max(initial=0)) for _, labels in splits)
    classes = tuple(map(str, range(largest + 1))) if names is None else tuple(map(str, names.ravel()))
    if len(classes) <= largest or len(set(classes)) < len(classes):
        raise ValueError(
            f"open_dataset: {path}: {len(classes)} classes, all different, do not serve labels up to {largest}"
        )
    return _contents(splits[0], splits[1], classes, [], (), options)


def _zip(file: BinaryIO) -> BinaryIO:
    """The file, which is an archive: np.load would take anything else for an array or a pickle."""
    if not zipfile.is_zipfile(file):
        raise ValueError("not an .npz archive, or not all of one")
    file.seek(0)
    return file


def _npz_split(path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise ValueError(
            f"open_dataset: {path}: x_{part} is {images.dtype}{images.shape}; "
            "uint8 (n, h, w) or (n, h, w, channels) expected"
        )
    images = images if images.ndim == 4 else images[..., None]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"open_dataset: {path}: y_{part} is {labels.dtype}{labels.shape}; "
            f"one integer for each of {len(images):,} images expected"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
        raise ValueError(
            f"open_dataset: {path}: y_{part} holds labels from {labels.min()} to {labels.max()}; 0 and up expected"
        )
    return images, labels.astype(np.int32)


def _contents(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    problems: list[Problem],
    notes: tuple[str, ...],
    options: Options,
) -> Contents:
    total, done = len(train[0]) + len(test[0]), 0

    def stream(images: np.ndarray, labels: np.ndarray) -> Generator[Chunk, None, None]:
        nonlocal done
        for start in range(0, len(images), CHUNK):
            chunk = np.ascontiguousarray(images[start : start + CHUNK])
            if options.image_size:
                chunk = _resized(chunk, options.image_size)
            done += len(chunk)
            if options.progress:
                options.progress(done, total)
            yield chunk, labels[start : start + CHUNK]

    return Contents(stream(*train), stream(*test), classes, problems, notes)


def _resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"open_dataset: image_size={size} with {images.shape[-1]} channels; only 1 or 3 can be scaled")
    pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
    return np.stack([resized(picture, size) for picture in pictures])
