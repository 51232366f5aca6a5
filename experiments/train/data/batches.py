"""Batches of a split: an order that the seed decides, and a thread that has the next ones ready.

The order of an epoch is a pure function of (seed, epoch), so a run goes on at any batch of it without a state to save.
It sorts raw words of Philox, which NumPy keeps the same from version to version; what its Generator draws it does not.
"""

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

import numpy as np


class Split(Protocol):
    """Images uint8 (n, h, w, c) and their labels int32 (n,)."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The places 0 to n - 1 in the order of an epoch."""
    for name, value in (("seed", seed), ("epoch", epoch), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"order: {name}={value!r}; an integer from 0 expected")
    words = np.random.Philox(np.random.SeedSequence((int(seed), int(epoch)))).random_raw(n)
    return np.argsort(words, kind="stable")


class Batches:
    """Iterates over the batches of one epoch of training, from any of them on; the incomplete last one is left out.

    A thread copies the next batches out of the split while the current one is used. Close it, or use it in a with
    statement; one that is forgotten, or whose iteration comes to its end, closes by itself.

    Args:
      split: its images and labels.
      batch: images a batch, at most those of the split.
      seed: with epoch, what decides the order.
      epoch: from 0.
      start: the batch of the epoch to begin with; a run that is resumed does not begin with 0.
      depth: batches that are kept ready.

    Attributes:
      waited_seconds: how long next() has waited so far for a batch that was not ready.

    Raises:
      ValueError: batch, start or depth out of range.
    """

    def __init__(self, split: Split, batch: int, *, seed: int, epoch: int, start: int = 0, depth: int = 2):
        n = len(split.images)
        for name, value, least, most in (
            ("batch", batch, 1, n),
            ("start", start, 0, n // max(batch, 1)),
            ("depth", depth, 1, 2**31),
        ):
            if not least <= value <= most:
                raise ValueError(f"Batches: {name}={value}; {least} to {most} expected with {n} images, batch={batch}")
        self.waited_seconds = 0.0
        self._left = n // batch - start
        self._ready: queue.SimpleQueue[tuple[np.ndarray, np.ndarray] | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._closed = threading.Event()
        places = order(seed, epoch, n)[start * batch : n // batch * batch].reshape(-1, batch)
        arguments = (split, places, self._ready, self._room, self._closed)
        self._thread = threading.Thread(target=_fill, args=arguments, name="batches", daemon=True)
        self._forgotten = weakref.finalize(self, _stop, self._closed, self._room)
        self._thread.start()

    def __len__(self) -> int:
        """Batches still to come."""
        return self._left

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self._closed.is_set() or not self._left:
            self.close()
            raise StopIteration
        began = time.perf_counter()
        batch = self._ready.get()
        self.waited_seconds += time.perf_counter() - began
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self._left -= 1
        self._room.release()
        return batch

    def close(self) -> None:
        """Ends the thread; next() then ends the iteration."""
        self._forgotten()
        self._thread.join()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(
    split: Split, places: np.ndarray, ready: queue.SimpleQueue, room: threading.Semaphore, closed: threading.Event
):
    """The thread: it knows nothing of the Batches, so that one which nobody holds any more is collected."""
    try:
        for chosen in places:
            room.acquire()
            if closed.is_set():
                return
            # Fresh arrays each time: jax may use one in place, as long as it likes.
            ready.put((split.images[chosen], split.labels[chosen]))
    except BaseException as error:  # told to whoever asks for the batch
        ready.put(error)


def _stop(closed: threading.Event, room: threading.Semaphore) -> None:
    closed.set()
    room.release()


def evaluation_batches(split: Split, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every image once, in the split's order: (images, labels, mask); mask is False where the last is filled up."""
    if batch < 1:
        raise ValueError(f"evaluation_batches: batch={batch}; 1 or more expected")
    return _evaluation_batches(split, batch)


def _evaluation_batches(split: Split, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for start in range(0, len(split.images), batch):
        images, labels = (np.array(array[start : start + batch]) for array in (split.images, split.labels))
        short = batch - len(images)
        yield (
            np.pad(images, ((0, short), *3 * ((0, 0),))),
            np.pad(labels, (0, short)),
            np.arange(batch) < len(images),
        )
