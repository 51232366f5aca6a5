"""The parent of one layer's process: listens, keeps the time limits, and starts again without whoever broke one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from experiments.bench import results
from experiments.bench.layers import Layer
from experiments.bench.results import Row

COMMAND = (sys.executable, "-m", "experiments.bench.worker")
STARTUP_SECONDS = 120.0  # importing JAX and PyTorch, drawing operands, float64: nobody's own time


def run_layer(
    layer: Layer,
    *,
    contestants: tuple[str, ...],
    products: tuple[str, ...],
    dtype: str,
    repeats: int,
    timeout: float,
    stage: Callable[[str], None],
) -> Row:
    """A row of results. A contestant that crashes or overruns its limit is left out of the next try, the rest are not.

    A row is {"name", "family", "layer", "runs": {product: {contestant: facts}}, ...}; facts have `seconds`, a list, or
    `error`, or `over_limit`: the limit in seconds that a compilation or one call did not keep.
    """
    row: Row = {"name": layer.name, "family": layer.family, "layer": layer.to_json(), "runs": {}}
    skip: list[tuple[str, str]] = []
    while True:
        job = {
            "layer": layer.to_json(),
            "contestants": contestants,
            "products": products,
            "dtype": dtype,
            "repeats": repeats,
            "skip": skip,
        }
        blamed, facts = _try(job, row, timeout, stage)
        if blamed is None:
            return row
        product, contestant = blamed
        if contestant == "all" or blamed in skip:
            row["error"] = f"in {product}: {facts}"
            return row
        _facts(row, product, contestant).update(facts)
        skip.append(blamed)


def _try(job, row: Row, timeout: float, stage: Callable[[str], None]) -> tuple[tuple[str, str] | None, dict[str, Any]]:
    """Runs the worker once: (None, {}) if it came to its end, else (whom to blame, what it did)."""
    blamed, doing, limit = ("start", "all"), "start", STARTUP_SECONDS
    with _worker(job) as (process, events):
        while True:
            try:
                event = events.get(timeout=limit)
            except queue.Empty:
                return blamed, {"over_limit": limit, "stage": doing}
            if event is None:
                code = process.wait()
                return blamed, {"error": f"the process ended with {code} during {doing}", "stage": doing}
            if "done" in event:
                return None, {}
            if "begin" in event:
                blamed, doing = tuple(event["begin"]), event["stage"]
                nobody = blamed[1] == "all"
                limit = max(STARTUP_SECONDS, timeout, event["expected_seconds"]) if nobody else timeout
                stage(f"{blamed[0]} {'' if nobody else blamed[1]} {doing}")
            if "of" in event:
                _facts(row, *event["of"]).update(event["facts"])
            row.update(event.get("row", {}))


def _facts(row: Row, product: str, contestant: str) -> dict[str, Any]:
    return row["runs"].setdefault(product, {}).setdefault(contestant, {})


@contextlib.contextmanager
def _worker(job) -> Iterator[tuple[subprocess.Popen, queue.Queue]]:
    """The process and its events; None after the last. The process does not outlive the block."""
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile times are to be seen
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # on a GPU, leave some memory to PyTorch
    }
    with subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        events: queue.Queue = queue.Queue()
        lines = process.stdout

        def listen() -> None:
            for line in lines:
                events.put(json.loads(line))
            events.put(None)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once, which its events will tell
                process.stdin.write(json.dumps(job))
                process.stdin.close()
            yield process, events
        finally:
            process.kill()
            listener.join()


def undisturbed(measured: Callable[[], Row], lock: pathlib.Path | None, retries: int) -> Row:
    """A row measured while the lock was held; measured again, so often at most, where others used the machine."""
    with alone(lock):
        row = measured()
    return undisturbed(measured, lock, retries - 1) if retries and results.disturbed(row) else row


@contextlib.contextmanager
def alone(lock: pathlib.Path | None) -> Iterator[None]:
    """Holds the lock file, so that no two timings on one machine that name the same file ever run at once."""
    if lock is None:
        yield
        return
    import fcntl  # not on Windows, where only --lock is missing

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
