"""The lines of a run's metrics.jsonl: one JSON object a line, appended and flushed, so that a kill loses none.

    {"step", "epoch", "loss", "accuracy", "images_per_second", "learning_rate", "seconds"}   every --log-every steps
    {"step", "epoch", "test_accuracy", "test_loss", "waited_seconds"}                         at the end of an epoch
    {"final": true, "step", "loss", "test_accuracy", "test_loss", "seconds", "images_per_second"}    last of all

`seconds` are those of all steps so far, evaluation and checkpoints left out; `waited_seconds` those of an epoch in
which the step waited for images. A run that goes on from a checkpoint first drops what was written after it, so no
step stands twice.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a last line that a kill cut short is left out."""
    lines = []
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                lines.append(value)
    return lines


class Lines:
    """A file of JSON lines, open for appending, with nothing in it after `step`."""

    def __init__(self, path: Path, step: int):
        kept = [line for line in read(path) if line.get("step", step + 1) <= step and not line.get("final")]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        """Appends one object."""
        line = json.dumps(values, allow_nan=False) + "\n"
        with naming(Path(self._file.name)):
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the body, such as that of a full disk, names the file that was being written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file such that it has its old content or the new, whatever happens."""
    beside = path.with_name(path.name + ".new")
    with naming(path), beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
