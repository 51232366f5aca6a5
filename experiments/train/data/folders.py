"""A folder of images: train/<class>/*.jpg or .png, and test/ (or val/) with the same classes.

The files are decoded by processes that run decode.py, in chunks, and come back in the order of their names, so the
result does not depend on how many processes there are. Processes and not threads: 60,000 JPEG files of 32 x 32 pixels
took 8.7 s in one process and 5.2 s in two, on two cores; two threads were slower than one, since Pillow's Python holds
the lock. And not multiprocessing: its processes import the program that started them, here jax and more.
"""

import collections
import contextlib
import functools
import json
import math
import os
import stat as modes
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.train.data import decode
from experiments.train.data.sources import Chunk, Colour, Contents, File, Options, Problem, Source

SUFFIXES = (".jpg", ".jpeg", ".png")
CHUNK = 256  # files a request: 0.75 MiB of 32 x 32 pixels
FILES_PER_WORKER = 1000  # fewer are decoded sooner than another process starts


def find(root: Path) -> Source | None:
    """The image folder at root, None where there is none.

    Raises:
      ValueError: train/ or test/ is missing, a class is without images, or test/ has a class that train/ has not.
    """
    splits = {name: root / name for name in ("train", "test", "val") if (root / name).is_dir()}
    if not splits:
        return None
    if "train" not in splits:
        raise ValueError(f"open_dataset: path={str(root)!r} holds {'/ and '.join(splits)}/, but no train/")
    if len(splits) == 1:
        raise ValueError(f"open_dataset: path={str(root)!r} holds train/, but neither test/ nor val/")
    test_name = "test" if "test" in splits else "val"
    notes = ("both test/ and val/ are there: test/ is the test set, val/ is not read",) if len(splits) == 3 else ()
    problems: list[Problem] = []
    train, test = (_classes(root, name, problems) for name in ("train", test_name))
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise ValueError(f"open_dataset: {test_name}/ holds classes that train/ does not: {', '.join(unknown)}")
    files = [file for split in (train, test) for of_class in split.values() for file in of_class]
    foreign = [File(problem.path, -1, -1) for problem in problems]
    read = functools.partial(_read, root, train, test, tuple(problems), notes)
    return Source("image folder", root, tuple(files + foreign), read)


def _classes(root: Path, split: str, problems: list[Problem]) -> dict[str, list[File]]:
    """The image files of each class of a split, both in the order of their names."""
    found = {}
    for entry in sorted(os.scandir(root / split), key=lambda entry: entry.name):
        where = f"{split}/{entry.name}"
        if not entry.is_dir():
            problems.append(Problem(where, "not in the folder of a class"))
        elif entry.name.startswith("."):
            problems.append(Problem(where, "a hidden folder"))
        else:
            found[entry.name] = _files(entry.path, where, problems)
            if not found[entry.name]:
                raise ValueError(
                    f"open_dataset: the class {where}/ of {str(root)!r} is without images ({SUFFIXES[0]}, ...)"
                )
    if not found:
        raise ValueError(f"open_dataset: {split}/ of {str(root)!r} holds no folders: one a class is expected")
    return found


def _files(folder: str, where: str, problems: list[Problem]) -> list[File]:
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{where}/{entry.name}"
        try:
            found = entry.stat()
        except OSError as error:  # a link to nowhere
            problems.append(Problem(name, error.strerror or str(error)))
            continue
        if modes.S_ISDIR(found.st_mode):
            problems.append(Problem(name, "a folder inside a class"))
        elif not modes.S_ISREG(found.st_mode):
            problems.append(Problem(name, "not a regular file"))
        elif not entry.name.lower().endswith(SUFFIXES):
            problems.append(Problem(name, f"not named as an image: {', '.join(SUFFIXES)} expected"))
        else:
            files.append(File(name, found.st_size, found.st_mtime_ns))
    return files


def _read(
    root: Path,
    train: dict[str, list[File]],
    test: dict[str, list[File]],
    listed: tuple[Problem, ...],
    notes: tuple[str, ...],
    options: Options,
) -> Contents:
    classes, problems = tuple(train), list(listed)
    named = [
        [(file.path, classes.index(name)) for name, files in split.items() for file in files] for split in (train, test)
    ]
    shape = _shape(root, [path for split in named for path, _ in split], options)
    total, done = sum(map(len, named)), 0

    def stream(files: list[tuple[str, int]]) -> Generator[Chunk, None, None]:
        nonlocal done
        paths = [os.path.join(root, path) for path, _ in files]
        with contextlib.closing(_decoded(paths, shape, options)) as chunks:
            for start, (outcomes, images) in zip(range(0, len(files), CHUNK), chunks, strict=True):
                chunk = files[start : start + CHUNK]
                for (path, _), outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, str):
                        problems.append(Problem(path, outcome))
                    elif outcome is not True:
                        if tuple(outcome) == (*shape[:2], 3):
                            raise Colour
                        raise ValueError(_difference(path, outcome, shape))
                labels = [label for (_, label), outcome in zip(chunk, outcomes, strict=True) if outcome is True]
                done += len(chunk)
                if options.progress:
                    options.progress(done, total)
                yield images, np.asarray(labels, np.int32)

    return Contents(stream(named[0]), stream(named[1]), classes, problems, notes)


def _shape(root: Path, paths: list[str], options: Options) -> tuple[int, ...]:
    """(h, w, channels) of the first image that can be read."""
    with decode.careful():
        for path in paths:
            with contextlib.suppress(decode.Unreadable):
                shape = decode.decode(root / path, options.image_size).shape
                return (*shape[:2], 3) if options.colour else shape
    raise ValueError(f"open_dataset: none of the {len(paths):,} image files of {str(root)!r} can be read")


def _difference(path: str, found: list[int], shape: tuple[int, ...]) -> str:
    return (
        f"open_dataset: images of different sizes: {path} is {found[0]} x {found[1]} pixels (height x width), "
        f"those before it {shape[0]} x {shape[1]}; image_size= scales and cuts all to one"
    )


def _decoded(
    paths: list[str], shape: tuple[int, ...], options: Options
) -> Generator[tuple[list[Any], np.ndarray], None, None]:
    """What decode_all gives for each chunk of the paths, in their order."""
    resize = options.image_size is not None
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    workers = options.workers or min(_cores(), max(1, len(paths) // FILES_PER_WORKER))
    if workers == 1:
        yield from (decode.decode_all(chunk, shape, resize) for chunk in chunks)
        return
    with Pool(workers, shape, resize) as pool:
        yield from pool.map(chunks)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Processes that run decode.py, each spoken to by a thread of its own."""

    def __init__(self, workers: int, shape: tuple[int, ...], resize: bool):
        self.workers, self.shape, self.resize = workers, shape, resize
        self._mine = threading.local()  # .process: the one that a thread speaks to
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # those that have ended too: nothing happens to them
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def map(self, chunks: list[list[str]]) -> Generator[tuple[list[Any], np.ndarray], None, None]:
        """What decode_all gives for each chunk, in their order; a few chunks are decoded ahead, never all."""
        ahead: collections.deque[Future[tuple[list[Any], np.ndarray]]] = collections.deque()
        for chunk in chunks:
            ahead.append(self._threads.submit(self._ask, chunk))
            if len(ahead) > 2 * self.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _ask(self, paths: list[str]) -> tuple[list[Any], np.ndarray]:
        """decode_all in this thread's process; a file that kills the process is found and told."""
        try:
            return self._request(paths)
        except (OSError, EOFError):
            if not hasattr(self._mine, "process"):
                raise  # none could be started
            if len(paths) == 1:
                return [f"the decoder ended with status {self._end()}"], np.zeros((0, *self.shape), np.uint8)
            self._end()
            outcomes, images = zip(*(self._ask([path]) for path in paths), strict=True)
            return [outcome for one in outcomes for outcome in one], np.concatenate(images)

    def _request(self, paths: list[str]) -> tuple[list[Any], np.ndarray]:
        if not hasattr(self._mine, "process"):
            command = [sys.executable, decode.__file__]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            self._mine.process = process
        asked, answered = self._mine.process.stdin, self._mine.process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(json.dumps({"paths": paths, "shape": self.shape, "resize": self.resize}).encode() + b"\n")
        asked.flush()
        line = answered.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the decoder has ended")
        outcomes = json.loads(line)
        shape = (outcomes.count(True), *self.shape)
        data = answered.read(math.prod(shape))
        if len(data) < math.prod(shape):
            raise EOFError("the decoder has ended")
        return outcomes, np.frombuffer(data, np.uint8).reshape(shape)

    def _end(self) -> int:
        """Forgets this thread's process; its exit status."""
        process = self._mine.process
        del self._mine.process
        with contextlib.suppress(OSError):
            process.communicate()
        return process.wait()
