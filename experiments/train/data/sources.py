"""What every form of data is to the rest: files, and two streams of images and labels.

A Source is what looking at a folder finds out, before any image is read; reading it gives Contents. The forms are in
folders.py (images in a folder a class) and arrays.py (IDX, CIFAR's binary version, .npz).
"""

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np

Chunk = tuple[np.ndarray, np.ndarray]  # images uint8 (k, h, w, c), labels (k,): of one split all of one shape


class Problem(NamedTuple):
    """A file that was left out, relative to the data's folder, and why."""

    path: str
    reason: str


class File(NamedTuple):
    """A file by which a change of the data is seen."""

    path: str  # relative to the data's folder
    bytes: int
    mtime_ns: int


class Options(NamedTuple):
    """How to read."""

    image_size: tuple[int, int] | None = None  # (h, w); None: they have to be of one size
    colour: bool = False  # three channels, though the first image is greyscale
    workers: int | None = None
    progress: Callable[[int, int], None] | None = None  # images read so far, images in all


class Colour(Exception):
    """A colour image came after greyscale ones: everything has to be read again, with colour=True."""


@dataclasses.dataclass
class Contents:
    """What reading gives; problems grows, and the rest is final, once both streams have come to their end."""

    train: Generator[Chunk, None, None]
    test: Generator[Chunk, None, None]
    classes: tuple[str, ...]
    problems: list[Problem]
    notes: tuple[str, ...] = ()  # what the user should know about how the data was understood


@dataclasses.dataclass(frozen=True)
class Source:
    """Data of one form: where it is, the files of which it is made, and how it is read."""

    form: str
    root: Path
    files: tuple[File, ...]
    read: Callable[[Options], Contents]


def stat(root: Path, name: str) -> File:
    """The file's entry; OSError where there is none."""
    found = (root / name).stat()
    return File(name, found.st_size, found.st_mtime_ns)
