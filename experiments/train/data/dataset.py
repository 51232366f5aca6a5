"""Opens a folder of images, whatever its form, and keeps what it decoded: see open_dataset.

The cache is one file (cache.py) for a folder and an image size. With the images stand the names, sizes and times of
change of the files they came from; where those differ from what is there now, everything is decoded anew, and so it is
where a checksum shows that the cache was damaged.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.train.data import arrays, cache, folders
from experiments.train.data.sources import Chunk, Colour, Contents, Options, Problem, Source

FORMAT = 1  # goes up with every change of what the same files are decoded to
SHOWN = 10  # problems in an error
FORMS = """an image folder (train/<class>/*.jpg or .png, and test/ or val/), IDX files (train-images-idx3-ubyte, ..., \
t10k-labels-idx1-ubyte, also .gz), CIFAR's binary version (data_batch_1.bin, ..., test_batch.bin, or train.bin, \
test.bin) or one .npz file (x_train, y_train, x_test, y_test)"""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 (n, h, w, c), memory-mapped, and their labels int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Two splits and what is known about them."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]  # files that were left out, and why
    checksum: str  # SHA-256 of images, labels and classes, wherever they came from
    mean: tuple[float, ...]  # of each channel of train, from 0 to 1
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()  # how the data was understood, where that is not plain
    form: str = ""
    cache: Path | None = None


def open_dataset(
    path: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    strict: bool = False,
    workers: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set at path, decoded at the first time and mapped from the cache from then on.

    Args:
      path: a folder (or an .npz file) of one of the forms: an image folder, IDX files, CIFAR's binary version, .npz.
      cache_dir: where to keep what was decoded, not inside path; by default jconv/datasets in the user's caches.
      strict: refuse data with problems, which otherwise are left out and told.
      workers: processes that decode image files; by default one a core, fewer for few files.
      image_size: (h, w), or one number for both: every image is scaled and cut to it.
      progress: called with the number of images decoded and of all.

    Raises:
      ValueError: path is of none of the forms or of two; the data cannot be trained on (no test set, a class without
        images, images of different sizes, a broken file that cannot be left out); or strict, and there are problems.
      OSError: the cache cannot be written.
    """
    root, size = Path(path), _image_size(image_size)
    if workers is not None and workers < 1:
        raise ValueError(f"open_dataset: workers={workers}; 1 or more expected")
    source = _find(root)
    folder = _cache_folder(root, cache_dir)
    listing = _digest([FORMAT, source.form, size, source.files])
    name = f"{root.resolve().stem or 'root'}-{_digest([str(root.resolve()), size])[:16]}.images"
    options = Options(size, workers=workers, progress=progress)
    try:
        dataset = _read(folder / name, listing)
        if dataset is None:
            folder.mkdir(parents=True, exist_ok=True)
            with cache.locked(folder / name):
                dataset = _read(folder / name, listing)  # another process may have written it meanwhile
                if dataset is None:
                    _build(folder / name, listing, source, options)
                    dataset = _read(folder / name, listing)
    except OSError as error:
        told = f"{folder / name} cannot be written or read: {error.strerror or error}; cache_dir= puts it elsewhere"
        raise OSError(error.errno, f"open_dataset: {told}") from error
    if dataset is None:
        raise OSError(f"open_dataset: {folder / name} was damaged as soon as it was written")
    if strict and dataset.problems:
        raise ValueError(f"open_dataset: strict, and {describe(dataset.problems)}")
    return dataset


def describe(problems: tuple[Problem, ...]) -> str:
    """The problems in one line: how many, and the first of them."""
    first = "; ".join(f"{problem.path}: {problem.reason}" for problem in problems[:SHOWN])
    count = "1 file is left out" if len(problems) == 1 else f"{len(problems):,} files are left out"
    return f"{count}: {first}{'; ...' if len(problems) > SHOWN else ''}"


def _image_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= 8192 for side in size):
        raise ValueError(f"open_dataset: image_size={image_size!r}; one or two integers from 1 to 8192 expected")
    return size[0], size[1]


def _find(root: Path) -> Source:
    """The one form that root is of."""
    if not root.exists():
        raise ValueError(f"open_dataset: path={str(root)!r}: no such file or folder")
    if root.is_dir():
        found = [form(root) for form in (folders.find, arrays.find_idx, arrays.find_cifar, arrays.find_npz)]
    else:
        found = [arrays.find_npz(root) if root.suffix == ".npz" else None]
    found = [source for source in found if source]
    if len(found) > 1:
        forms = " and ".join(source.form for source in found)
        raise ValueError(f"open_dataset: path={str(root)!r} is of {len(found)} forms at once: {forms}")
    if not found:
        raise ValueError(f"open_dataset: path={str(root)!r} is none of: {FORMS}{_hint(root)}")
    return found[0]


def _hint(root: Path) -> str:
    if not root.is_dir():
        return ""
    if (root / "data_batch_1").is_file() or (root / "batches.meta").is_file():
        return "; CIFAR's Python version is pickled, and pickle is not read: take the binary version"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root))
    return f"; it holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"


def _cache_folder(root: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "jconv" / "datasets"
    else:
        folder = Path(cache_dir)
    if folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"open_dataset: cache_dir={str(folder)!r} is inside the data, {str(root)!r}; a place outside expected"
        )
    return folder


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _read(path: Path, listing: str) -> Dataset | None:
    """The data set in the cache; None where there is none, an older one or a damaged one."""
    try:
        if cache.read_meta(path)[0]["listing"] != listing:  # which spares reading all of it
            return None
        meta, found = cache.read(path)
    except (FileNotFoundError, cache.Damaged):
        return None
    if meta["listing"] != listing:  # another process has replaced it meanwhile
        return None
    return Dataset(
        train=Split(found["train_images"], found["train_labels"]),
        test=Split(found["test_images"], found["test_labels"]),
        classes=tuple(meta["classes"]),
        problems=tuple(Problem(*problem) for problem in meta["problems"]),
        checksum=meta["checksum"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        notes=tuple(meta["notes"]),
        form=meta["form"],
        cache=path,
    )


def _build(path: Path, listing: str, source: Source, options: Options) -> None:
    """Reads the source into the cache."""
    try:
        _write(path, listing, source, options)
    except Colour:
        _write(path, listing, source, options._replace(colour=True))


def _write(path: Path, listing: str, source: Source, options: Options) -> None:
    contents = source.read(options)
    with cache.Writer(path) as writer:
        moments = Moments()
        counts = {}
        for name, stream in (("train", contents.train), ("test", contents.test)):
            labels: list[np.ndarray] = []
            with contextlib.closing(stream):
                writer.array(f"{name}_images", _images(stream, labels, moments if name == "train" else None), np.uint8)
            writer.array(f"{name}_labels", labels, np.int32, ())
            counts[name] = np.zeros(len(contents.classes), int)
            for some in labels:
                counts[name] += np.bincount(some, minlength=len(contents.classes))
        _check(source, contents, counts["train"], counts["test"])
        mean, std = moments.mean_and_std()
        writer.commit(
            {
                "listing": listing,
                "form": source.form,
                "classes": contents.classes,
                "problems": contents.problems,
                "notes": contents.notes,
                "mean": mean,
                "std": std,
                "checksum": _digest([contents.classes, writer.checksums()]),
            }
        )


def _images(stream: Iterator[Chunk], labels: list[np.ndarray], moments: "Moments | None") -> Iterator[np.ndarray]:
    """The images of a stream; its labels are collected and its images counted on the way."""
    for images, of_images in stream:
        if moments is not None:
            moments.add(images)
        labels.append(of_images)
        yield images


def _check(source: Source, contents: Contents, train: np.ndarray, test: np.ndarray) -> None:
    """Every class has images to train on, and the test set has images; train and test are their numbers a class."""
    told = f"; {describe(tuple(contents.problems))}" if contents.problems else ""
    where = f"open_dataset: {source.form} {str(source.root)!r}:"
    empty = [name for name, count in zip(contents.classes, train, strict=True) if not count]
    if empty:
        tested = " (the test set has some)" if test[train == 0].any() else ""
        raise ValueError(f"{where} classes without an image to train on{tested}: {', '.join(empty)}{told}")
    if not test.any():
        raise ValueError(f"{where} no images in the test set{told}")


class Moments:
    """Mean and standard deviation of each channel, from exact counts of the 256 values."""

    def __init__(self) -> None:
        self._counts = np.zeros((0, 256), np.int64)

    def add(self, images: np.ndarray) -> None:
        channels = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
        self._counts = self._counts + np.stack(channels) if len(self._counts) else np.stack(channels)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        values = np.arange(256) / 255
        shares = self._counts / self._counts.sum(1, keepdims=True)
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
        return mean.tolist(), std.tolist()
