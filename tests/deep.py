"""Random geometries of every operator family against the oracle: python -m tests.deep --geometries 10000.

Geometry number I under seed S is always the same, whatever N is; each is run in float64 and in one other dtype, which
changes from one to the next (tests/deep_families.py says how near each must come). The seed is printed first and saved
with the failures in deep-SEED.json; a failure prints the line that runs it alone.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.cases import tolerance
from tests.deep_families import FAMILIES, Draw, Trial, Want

Failure = dict[str, Any]  # "index", and "what" on one line
WIDE = ("float64", "complex128")
CHUNK = 20  # geometries that a process checks at a time; then jax's caches are cleared, or programs fill the memory


def settle(index: int) -> tuple[str, str]:
    """(family, dtype beside float64) of geometry `index`."""
    names = list(FAMILIES)
    family, dtypes = names[index % len(names)], FAMILIES[names[index % len(names)]][1]
    return family, dtypes[index // len(names) % len(dtypes)]


def near(name: str, got: np.ndarray, want: Want, dtype: str) -> None:
    """AssertionError unless a result is as near to the oracle's as its dtype and its sum allow."""
    value, kind = want.value, np.dtype(want.dtype or got.dtype)
    assert got.shape == value.shape, f"{name} has shape {got.shape}, the oracle's {value.shape}"
    if want.dtype is None:
        assert str(got.dtype) == dtype, f"{name} is {got.dtype}"
    elif dtype not in WIDE:
        assert got.dtype == kind, f"{name} is {got.dtype}, not {kind}"
    if not want.terms:
        with np.errstate(invalid="ignore", over="ignore"):
            np.testing.assert_array_equal(got, value.astype(got.dtype), err_msg=name)
        return
    finite = np.abs(np.where(np.isfinite(value), value, 0))
    largest = max(want.size, float(finite.max(initial=0)))
    if dtype in WIDE:
        limits: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10 * largest}
    else:
        limits = tolerance(got.dtype, want.terms, finite, scale=largest)
        limits["atol"] += want.rounded * float(jax.numpy.finfo(got.dtype).eps) * largest
    exact = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    np.testing.assert_allclose(exact, value, err_msg=name, **limits)


def three_ways(trial: Trial, got: dict[str, np.ndarray]) -> None:
    """<conv(x, k), g> = <x, dx> = <k, dkernel>: one number, since each product is linear in its operands."""
    x, kernel, bias, g = trial.arrays
    number = np.vdot(got["y"], g) - np.vdot(bias, got["dbias"])
    limits = {"rtol": 1e-10, "atol": 1e-10 * (1 + np.vdot(abs(got["y"]), abs(g)))}
    np.testing.assert_allclose(np.vdot(x, got["dx"]), number, err_msg="<x, dx> is not <y, g>", **limits)
    np.testing.assert_allclose(np.vdot(kernel, got["dkernel"]), number, err_msg="<k, dk> is not <y, g>", **limits)


def check(seed: int, index: int) -> str | None:
    """None where geometry `index` passes in both dtypes, else what is wrong, on one line."""
    family, other = settle(index)
    case: Any = ""
    dtype = "float64"
    try:
        for dtype in ("float64", other):
            trial = FAMILIES[family][0](Draw(seed, index), np.dtype(jax.numpy.dtype(dtype)))
            case = trial.case
            with jax.enable_x64(dtype in WIDE):
                got = jax.device_get(jax.jit(trial.run)(*trial.arrays))
            for name, value in got.items():
                near(name, value, trial.want[name], dtype)
            if family == "conv" and dtype == "float64":
                three_ways(trial, got)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{family} in {dtype}, {case!r}: {type(error).__name__}: {' | '.join(lines[:6])}"
    return None


def check_all(seed: int, indices: Sequence[int]) -> list[Failure]:
    """The failures among the geometries `indices`."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    found = [(index, check(seed, index)) for index in indices]
    jax.clear_caches()
    return [{"index": index, "what": what} for index, what in found if what]


def run(seed: int, indices: Sequence[int], workers: int, console: Console) -> list[Failure]:
    """As check_all, in `workers` processes, with a progress bar; each failure is printed when it is found."""
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    failures: list[Failure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        each: Callable[..., Iterable[list[Failure]]] = map
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            each = stack.enter_context(ProcessPoolExecutor(workers, mp_context=spawn)).map
        progress = stack.enter_context(Progress(*columns, TimeRemainingColumn(), console=console))
        task = progress.add_task("0 failed", total=len(indices))
        for chunk, found in zip(chunks, each(functools.partial(check_all, seed), chunks)):
            for failure in found:
                line = f"FAILED --seed {seed} --only {failure['index']}  {failure['what']}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            failures += found
            progress.update(task, advance=len(chunk), description=f"{len(failures)} failed")
    return failures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deep", description=__doc__.split("\n")[0])
    parser.add_argument("--geometries", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, help="the numbers to draw; without it, new ones")
    parser.add_argument("--only", type=int, help="run this one geometry, as a failure's line says")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one a core)")
    parser.add_argument("--out", type=Path, default=Path(), help="where deep-SEED.json is written (here)")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    indices = range(options.geometries) if options.only is None else range(options.only, options.only + 1)
    path = options.out / f"deep-{seed}.json"
    saved = {"seed": seed, "geometries": len(indices), "jax": jax.__version__}
    path.write_text(json.dumps(saved) + "\n")
    console = Console()
    console.print(f"seed {seed}, saved in {path}", highlight=False, soft_wrap=True)
    begin = time.perf_counter()
    failures = run(seed, indices, 1 if len(indices) <= CHUNK else options.workers, console)
    seconds = round(time.perf_counter() - begin, 1)
    path.write_text(json.dumps(saved | {"seconds": seconds, "failures": failures}, indent=1) + "\n")
    console.print(f"{len(indices) - len(failures)} passed, {len(failures)} failed", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
