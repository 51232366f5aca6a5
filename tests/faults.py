"""What a run survives, in processes of its own: python -m tests.faults --kills 20, or make test-faults.

Each fault is a run of experiments.train that is hurt, resumed and compared with one that nothing hurt: the final parameters
must be the same bits, and metrics.jsonl the same lines, no step twice.

    kill     SIGKILL at random moments, most of which fall into the writing of a checkpoint, for there is one every other step
    full     a limit to the size of files, which a checkpoint's arrays exceed: one clear line, status 1, and nothing half-written
    term     SIGTERM: status 0, and a checkpoint of that step

The seed of the moments is printed; the tests run the same functions with fewer kills.
"""

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.experiments.train import small

REPOSITORY = Path(__file__).parents[1]
LONG = {"epochs": 6, "checkpoint_every": 2, "log_every": 1}  # 96 steps, 48 checkpoints


def start(data: Path, out: Path, limit: int | None = None, **options: object) -> subprocess.Popen:
    """A run in a process of its own, whose files may have `limit` bytes."""

    command = [sys.executable, "-m", "experiments.train", *small.arguments(data, out, **(LONG | options))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)
    if limit is not None:  # long before its first file
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return process


def finish(process: subprocess.Popen) -> str:
    """What it printed; it must end well."""
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return out


def training(process: subprocess.Popen) -> bool:
    """Waits for the first step; False where it ended without one."""
    assert process.stdout is not None
    return any(line.startswith("step ") for line in iter(process.stdout.readline, ""))


def images(folder: Path) -> Path:
    """The data of all runs in a folder."""
    path = folder / "images" / "small.npz"
    path.parent.mkdir()
    small.write_images(path)
    return path


def unhurt(data: Path, folder: Path) -> tuple[Path, float]:
    """A run to its end, and the seconds from its first step to there."""
    out = folder / "unhurt"
    process = start(data, out)
    assert training(process)
    began = time.monotonic()
    finish(process)
    return out, time.monotonic() - began


def kill(data: Path, folder: Path, whole: Path, seconds: float, kills: int, seed: int) -> int:
    """Kills a run so many times, resumes it to its end and compares; how many kills left a half-written checkpoint."""
    draw, out, torn = random.Random(seed), folder / "killed", 0
    for number in range(kills):
        process = start(data, out, resume=True)
        if number % 4 == 3:  # also before the first step: while it starts and compiles
            time.sleep(draw.uniform(0.2, 3.0))
        elif training(process):
            time.sleep(draw.uniform(0, 1.5 * seconds / kills))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        torn += any((out / "checkpoints").glob("*.partial"))
    finish(start(data, out, resume=True))
    assert small.results(out) == small.results(whole)
    steps = [line["step"] for line in small.lines(out) if "learning_rate" in line]
    assert steps == sorted(set(steps))
    return torn


def full(data: Path, folder: Path, whole: Path) -> None:
    """A disk that is full when the first checkpoint is written; then there is room again."""
    out = folder / "full"
    process = start(data, out, limit=int(1.1 * (whole / "initial.npz").stat().st_size))
    _, error = process.communicate(timeout=600)
    assert process.returncode == 1, error
    # Orbax's other writes, which fail too, may say so between the lines: their event loop is closed by then.
    assert re.search(r"train: the checkpoint of step \d+ could not be written \(File too large", error), error
    whole_ones = sorted(int(path.name) for path in (out / "checkpoints").iterdir() if path.suffix != ".partial")
    assert ("there is none before it" if not whole_ones else f"last good one is of step {whole_ones[-1]}") in error
    finish(start(data, out, resume=True))
    assert not list((out / "checkpoints").glob("*.partial"))
    assert small.results(out) == small.results(whole)


def term(data: Path, folder: Path, whole: Path) -> None:
    """SIGTERM in the middle of the run."""
    out = folder / "terminated"
    process = start(data, out)
    assert training(process)
    process.send_signal(signal.SIGTERM)
    assert "checkpoint written" in finish(process)
    finish(start(data, out, resume=True))
    assert small.results(out) == small.results(whole)


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: a new one")
    told = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if told.seed is None else told.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = images(place)
        whole, seconds = unhurt(data, place)
        print(f"unhurt: {seconds:.1f} s from its first step", flush=True)
        torn = kill(data, place, whole, seconds, told.kills, seed)
        print(f"kill: {told.kills} times, {torn} of them in the middle of a checkpoint: same bits", flush=True)
        full(data, place, whole)
        print("full: named, nothing half-written, same bits after it", flush=True)
        term(data, place, whole)
        print("term: status 0, same bits after it", flush=True)


if __name__ == "__main__":
    main()
