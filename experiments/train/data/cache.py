"""One file of several memory-mapped arrays: written once, whole or not at all, and checked whenever it is opened.

    array | array | ... | JSON | SHA-256 of the JSON, 32 bytes | its length, 8 bytes | MAGIC, 16 bytes

Each array begins at a multiple of 64 bytes. The JSON tells each one's place, shape, type and SHA-256, and what else is
to be kept. A file that was cut anywhere has lost its end, and a flipped byte is in something whose checksum is known.

Written under another name, brought to the disk (fsync) and only then renamed: at its own name there is always a whole
file, also when a writer is killed, the disk is full, or two write at once. Arrays are written, not mapped and filled:
a full disk is an OSError to the first and the end of the process (SIGBUS) to the second.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: two processes then do the same work twice; what they leave is whole all the same
    fcntl = None

MAGIC = b"jconv arrays 1\n\0"
TRAILER = 32 + 8 + len(MAGIC)
PARTIAL = ".partial"
ALIGNMENT = 64
READ = 2**22  # bytes at a time


class Damaged(ValueError):
    """A file that is not what the writer wrote; says where."""


class Writer:
    """Writes a file of arrays: each by array(), then commit(); leaving the with statement before that undoes it."""

    def __init__(self, path: Path):
        self.path = path
        self._arrays: dict[str, dict[str, Any]] = {}
        handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=PARTIAL, dir=path.parent)
        self._file: BinaryIO = os.fdopen(handle, "wb")
        self._partial = Path(name)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()  # which writes what is buffered: a full disk says so again
        self._partial.unlink(missing_ok=True)

    def array(self, name: str, chunks: Iterable[np.ndarray], dtype: type, shape: tuple[int, ...] | None = None) -> None:
        """Adds an array, given in pieces along its first axis; shape: of what it holds, for where there are none."""
        offset = self._file.tell() + -self._file.tell() % ALIGNMENT
        self._file.write(b"\0" * (offset - self._file.tell()))
        checksum, length = hashlib.sha256(), 0
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype)
            shape, length = shape or data.shape[1:], length + len(data)
            assert data.shape[1:] == shape, (name, data.shape, shape)
            checksum.update(data.data)
            self._file.write(data.data)
        self._arrays[name] = {
            "offset": offset,
            "shape": [length, *(shape or ())],
            "dtype": np.dtype(dtype).str,
            "sha256": checksum.hexdigest(),
        }

    def checksums(self) -> dict[str, tuple[str, list[int], str]]:
        """Of each array so far: type, shape and SHA-256."""
        return {name: (entry["dtype"], entry["shape"], entry["sha256"]) for name, entry in self._arrays.items()}

    def commit(self, meta: dict[str, Any]) -> None:
        """Gives the file its name, with what else is to be kept, as JSON has it."""
        text = json.dumps({"meta": meta, "arrays": self._arrays}).encode()
        self._file.write(text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "big") + MAGIC)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)
        with contextlib.suppress(OSError):  # a file system without fsync of folders
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def read_meta(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What commit was given, and each array's entry; the arrays are not looked at.

    Raises:
      FileNotFoundError: there is no such file.
      Damaged: its end is not what the writer wrote.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < TRAILER:
            raise Damaged(f"{path}: {size} bytes")
        file.seek(size - TRAILER)
        digest, length, magic = file.read(32), int.from_bytes(file.read(8), "big"), file.read()
        if magic != MAGIC or length > size - TRAILER:
            raise Damaged(f"{path}: its end is missing")
        file.seek(size - TRAILER - length)
        text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise Damaged(f"{path}: the checksum of its table is wrong")
    found = json.loads(text)
    return found["meta"], found["arrays"]


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What commit was given, and the arrays, mapped read-only, each of them checked.

    Raises:
      FileNotFoundError: there is no such file.
      Damaged: a checksum is wrong or the end is missing.
    """
    meta, entries = read_meta(path)
    arrays = {}
    with path.open("rb") as file:
        for name, entry in entries.items():
            shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
            if _checksum(file, entry["offset"], int(np.prod(shape)) * dtype.itemsize) != entry["sha256"]:
                raise Damaged(f"{path}: the checksum of {name} is wrong")
            # Mapped through the same open file: another may be given its name meanwhile.
            mapped = int(np.prod(shape)) > 0
            arrays[name] = np.memmap(file, dtype, "r", entry["offset"], shape) if mapped else np.zeros(shape, dtype)
    return meta, arrays


def _checksum(file: BinaryIO, offset: int, length: int) -> str:
    checksum = hashlib.sha256()
    file.seek(offset)
    while length:
        data = file.read(min(length, READ))
        if not data:
            break
        checksum.update(data)
        length -= len(data)
    return checksum.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, by path.lock; what killed writers of path left behind is cleared away first."""
    with path.with_name(path.name + ".lock").open("ab") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however it ends
            for left in path.parent.glob(f"{path.name}.*{PARTIAL}"):
                left.unlink(missing_ok=True)
        yield
