"""What each form costs: seconds to compile, seconds to run, bytes, equations, floating-point operations."""

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jconv.comparison.forms import Form, equations

SAMPLE_SECONDS = 1e-3  # one timing is of as many calls as take this long
ENOUGH_SECONDS = 10.0  # all rounds together; where one takes longer, the time of each program is that of its warm-up
SLOW_SECONDS = 3.0  # of a first call that is as good as a later one
SETTLE_SECONDS = 2e-3  # of a fast program, untimed, before each timing: the other form leaves the caches full


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Of one form; `step` is a forward and a backward pass. None where the platform does not tell."""

    compile_seconds: float  # of step: to trace, lower and compile it
    forward: np.ndarray  # seconds of each timing
    step: np.ndarray
    temp_bytes: int | None  # of step, beside its arguments and results
    kept_bytes: int  # from the forward for the backward pass
    kept_arguments_bytes: int  # of these, what is an argument of fun anyway
    equations: int  # of step's jaxpr
    flops: float | None  # of step, as XLA counts them

    @property
    def forward_seconds(self) -> float:
        return float(np.median(self.forward))

    @property
    def step_seconds(self) -> float:
        return float(np.median(self.step))


def spread(seconds: np.ndarray) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return float((high - low) / 2 / middle) if middle else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled form: what it costs before it runs, and the two calls to time."""

    compile_seconds: float
    forward: Callable[[], Any]
    step: Callable[[], Any]
    compiled: Any
    equations: int
    kept: tuple[int, int]


def build(form: Form, cotangents: Any) -> Program:
    """Compiles a form."""
    derived, passed = form.problem.derived, form.problem.passed
    jax.jit(lambda x: x + 1).lower(np.zeros(3, np.float32)).compile()  # what a process does once
    begin = time.perf_counter()
    traced = jax.jit(form.step).trace(derived, passed, cotangents)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begin
    forward = jax.jit(form.values).lower(derived, passed).compile()
    operands = jax.device_put((derived, passed, tuple(cotangents)))
    return Program(
        seconds,
        lambda: jax.block_until_ready(forward(*operands[:2])),
        lambda: jax.block_until_ready(compiled(*operands)),
        compiled,
        equations(traced.jaxpr),
        kept_bytes(form),
    )


def kept_bytes(form: Form) -> tuple[int, int]:
    """Bytes of the distinct arrays that jax.vjp's function holds, and of those among them that are arguments."""
    leaves = lambda *operands: jax.tree.leaves(form.back(*operands)[1])
    jaxpr = jax.make_jaxpr(leaves)(form.problem.derived, form.problem.passed).jaxpr
    kept = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    size = lambda var: math.prod(var.aval.shape) * getattr(var.aval.dtype, "itemsize", 0)  # pyright: ignore
    return sum(map(size, kept)), sum(map(size, kept & set(jaxpr.invars)))


def measure(programs: Mapping[str, Program], repeats: int) -> dict[str, Cost]:
    """The cost of each program, all of them timed in turn."""
    calls = {(name, part): getattr(program, part) for name, program in programs.items() for part in ("forward", "step")}
    times = interleaved(calls, repeats)
    costs = {}
    for name, program in programs.items():
        memory = program.compiled.memory_analysis()
        costs[name] = Cost(
            program.compile_seconds,
            times[name, "forward"],
            times[name, "step"],
            None if memory is None else int(memory.temp_size_in_bytes),
            *program.kept,
            program.equations,
            _flops(program.compiled),
        )
    return costs


def _flops(compiled: Any) -> float | None:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list | tuple) and analysis else analysis  # jax 0.8
    flops = analysis.get("flops") if isinstance(analysis, Mapping) else None
    return None if flops is None or not flops >= 0 else float(flops)


def interleaved(
    calls: Mapping[Any, Callable[[], Any]], repeats: int, enough: float | None = None
) -> dict[Any, np.ndarray]:
    """Seconds of each call, timed A B A B, so that whatever else the machine does falls on all alike.

    enough: seconds of all rounds together; None: ENOUGH_SECONDS.
    """
    first = {name: seconds_of(call, 1) for name, call in calls.items()}
    slow = {name: seconds for name, seconds in first.items() if seconds >= SLOW_SECONDS}
    warm = slow | {name: max(seconds_of(call, 1), 1e-7) for name, call in calls.items() if name not in slow}
    rounds = min(repeats, int((ENOUGH_SECONDS if enough is None else enough) / sum(warm.values())))
    if rounds == 0:
        return {name: np.array([seconds]) for name, seconds in warm.items()}
    times: dict[Any, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                if warm[name] < SETTLE_SECONDS:
                    seconds_of(call, min(100, int(SETTLE_SECONDS / warm[name]) + 1))
                times[name].append(seconds_of(call, min(100, int(SAMPLE_SECONDS / warm[name]) + 1)))
    finally:
        if collecting:
            gc.enable()
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Mean seconds of so many calls."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls
