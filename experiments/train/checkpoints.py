"""Checkpoints that survive a kill: written beside the training, all or nothing, with a checksum of every byte.

    checkpoints/00000500/state/         the whole state of the training, by orbax
    checkpoints/00000500/run.json       what else the run goes on from: step, test accuracy, seconds
    checkpoints/00000500/manifest.json  size and SHA-256 of every other file, and of that table itself

Orbax writes the arrays in its own thread, of a copy, for the next step is given the state's buffers. A second thread
waits for it, adds the manifest and renames the folder from *.partial to its step: there is a checkpoint of a step, or
none. A folder whose bytes are not those of its manifest is set aside as *.damaged and named, and the one before it is
used. Kept are the last `keep` and the one of best test accuracy.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from experiments.train import metrics

Tree = Any


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those that are there can be read."""


class Checkpoints:
    """The checkpoints of a run's folder."""

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder, keep
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs with tracebacks what it raises here anyway
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.partial"):  # by a run that was killed
            shutil.rmtree(left)
        # Of several processes one writes, of arrays that it has whole: orbax must not wait for others. It then takes
        # and gives NumPy's arrays alone.
        own = jax.process_index()
        multi = ocp.options.MultiprocessingOptions
        who = multi() if jax.process_count() == 1 else multi(own, {own}, barrier_sync_key_prefix="train")
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=who)
        self._orbax = ocp.AsyncCheckpointer(handler, multiprocessing_options=who)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree)) if jax.process_count() == 1 else jax.device_get
        self._writing: tuple[int, concurrent.futures.Future[None]] | None = None

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order."""
        return sorted(int(each.name) for each in self._folder.iterdir() if each.name.isdigit())

    def warm(self, tree: Tree) -> None:
        """Compiles what a save computes."""
        jax.block_until_ready(self._copy(tree))

    def save(self, step: int, tree: Tree, info: Mapping[str, Any]) -> None:
        """Begins to write the checkpoint of a step; waits for the one before it.

        Raises:
          CheckpointError: this one cannot be begun, or the one before it could not be written.
        """
        self.wait()
        if step in self.steps():
            return
        partial = self._folder / f"{step:08}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._orbax.save(partial / "state", args=ocp.args.StandardSave(self._copy(tree)))  # pyright: ignore[reportCallIssue]
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._failed(step, error) from error
        self._writing = step, self._thread.submit(self._finish, step, partial, dict(info))

    def wait(self) -> None:
        """Waits until the last checkpoint is written; CheckpointError where it could not be."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            try:
                writing.result()
            except Exception as error:
                shutil.rmtree(self._folder / f"{step:08}.partial", ignore_errors=True)
                raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits, and ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # Of a chain such as "Error writing ...: Failed writing ...: No space left on device" the end is the reason.
        reason = error.strerror if isinstance(error, OSError) else lines[0].rsplit(": ", 1)[-1]
        last = self.steps()
        kept = f"the last good one is of step {last[-1]}" if last else "there is none before it"
        return CheckpointError(f"the checkpoint of step {step} could not be written ({reason}); {kept}")

    def _finish(self, step: int, partial: Path, info: Mapping[str, Any]) -> None:
        self._orbax.wait_until_finished()
        metrics.write_whole(partial / "run.json", json.dumps({"step": step, **info}).encode())
        metrics.write_whole(partial / "manifest.json", manifest(partial))
        synchronise(partial)
        partial.rename(self._folder / f"{step:08}")
        synchronise(self._folder)
        self._prune()

    def _prune(self) -> None:
        steps = self.steps()
        accuracies = {step: self.info(step).get("test_accuracy") for step in steps}
        measured = [step for step in steps if accuracies[step] is not None]
        best = max(measured, key=lambda step: (accuracies[step], step), default=None)
        for step in steps[: -self._keep]:
            if step != best:
                gone = (self._folder / f"{step:08}").rename(self._folder / f"{step:08}.partial")  # all or nothing
                shutil.rmtree(gone)

    def info(self, step: int) -> dict[str, Any]:
        """What was saved beside the state; empty where it cannot be read."""
        try:
            return json.loads((self._folder / f"{step:08}" / "run.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def restore(self, like: Tree) -> tuple[Tree | None, dict[str, Any], list[str]]:
        """The newest whole checkpoint: its state, of `like`'s shapes and devices, its info, and what was found damaged.

        Returns:
          (state, info, problems); state is None where there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints, but none is whole.
        """
        problems = []
        for step in reversed(self.steps()):
            place = self._folder / f"{step:08}"
            damage = damaged(place)
            if damage is None:
                abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
                abstract = abstract if jax.process_count() == 1 else jax.device_get(like)
                tree = self._orbax.restore(place / "state", args=ocp.args.StandardRestore(abstract))  # pyright: ignore
                return tree, self.info(step), problems
            problems.append(f"the checkpoint of step {step} is damaged: {damage}")
            aside = self._folder / f"{step:08}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        if problems:
            raise CheckpointError("; ".join([*problems, "no whole one is left"]))
        return None, {}, problems


def files(folder: Path) -> Iterator[Path]:
    """Every file under a checkpoint but its manifest."""
    return (each for each in sorted(folder.rglob("*")) if each.is_file() and each.name != "manifest.json")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> bytes:
    """The table of a folder's files, as JSON."""
    table = {str(each.relative_to(folder)): [each.stat().st_size, checksum(each)] for each in files(folder)}
    return json.dumps({"files": table, "sha256": _table_checksum(table)}, indent=1).encode()


def _table_checksum(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def damaged(folder: Path) -> str | None:
    """What is wrong with a checkpoint, its file named; None where every byte is as written."""
    try:
        told = json.loads((folder / "manifest.json").read_bytes())
        table = told["files"]
        if told["sha256"] != _table_checksum(table):
            return "manifest.json has not its checksum"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, KeyError, TypeError):
        return "manifest.json cannot be read"
    for name, (size, wanted) in table.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if checksum(path) != wanted:
            return f"{name} has not its checksum"
    return None


def synchronise(folder: Path) -> None:
    """Brings a folder's entries to the disk."""
    for place in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
