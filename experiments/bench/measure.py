"""Compiling and timing: what a program costs before it runs, and interleaved medians of how long it takes."""

from __future__ import annotations

import gc
import hashlib
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

Call = Callable[[], Any]
SLOW_SECONDS = 3.0  # a call this slow is timed three times,
VERY_SLOW_SECONDS = 10.0  # and one this slow once: its first call is its time
ENOUGH_SECONDS = 0.5  # fast calls are timed up to MOST_ROUNDS times, while all their rounds together stay below this
MOST_ROUNDS = 25
SAMPLE_SECONDS = 1e-3  # one timing is of as many calls as take this long
# PyTorch's OpenMP threads spin for a while after a call, and every contestant leaves the caches full of its own data: a
# 3x3 on 8 x 8 x 4 takes stock JAX 0.10 ms straight after PyTorch and 0.05 ms without. So every timing of a fast call is
# preceded by this long of the same call, untimed. With that, PyTorch in the same process changes no time by more than
# the noise: a 3x3 of 8 x 56 x 56 x 64 takes 19 to 20 ms in stock JAX with PyTorch beside it and without.
# But while they spin, a call on all cores gets one core less: the same program took 1.4 times as long straight after
# PyTorch as straight after JAX (4 x 1 x 32000, 80 taps, 2 cores). So each contestant waits until they sleep; and since
# the second core of a virtual machine takes some ms to come back after such a pause, the call runs for 10 ms first
# (stock JAX / jconv of a transposed 4x4 on both cores was 0.75 where 2 ms went before, 1.09 with 10).
SETTLE_SECONDS = 1e-2
SPIN_SECONDS = 2e-2
LARGEST_KEPT = (32 << 20) - 4096  # bytes: a larger array glibc gives back to the system whenever it is freed


def age_allocator() -> None:
    """Brings malloc to where it is in a program that has run for a while, for all contestants alike.

    glibc takes memory from the system, a fault for every page, for each array larger than any freed so far, and gives
    back what is free beyond twice that. In a process that has freed nothing large, an average pooling of 7 MB that
    takes 2.7 ms took 8.4: 5,170 faults in every call.
    """
    np.ones(LARGEST_KEPT, np.uint8)


def compile_program(function: Callable[..., Any], operands: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    """(the compiled program, its facts: seconds to trace, lower and compile; bytes of temporaries; a digest)."""
    lowered, compiled, seconds = _compile(function, operands)
    if seconds < 1:  # the first also paid for what a process does once
        seconds = min(seconds, _compile(function, operands)[2])
    analysis = compiled.memory_analysis()
    return compiled, {
        "compile_seconds": seconds,
        "temp_bytes": None if analysis is None else analysis.temp_size_in_bytes,
        "program": hashlib.sha1(lowered.as_text().encode()).hexdigest(),  # the same for two names of one algorithm
    }


def _compile(function: Callable[..., Any], operands: Sequence[Any]) -> tuple[Any, Any, float]:
    jax.clear_caches()
    begin = time.perf_counter()
    lowered = jax.jit(function).lower(*operands)
    compiled = lowered.compile()
    return lowered, compiled, time.perf_counter() - begin


def other_cpu_seconds() -> float | None:
    """Processor seconds that all processes but this one have used so far, and the hypervisor; None where unknown."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def kept_bytes(function: Callable[..., Any], primals: Sequence[Any]) -> dict[str, int]:
    """Bytes kept between forward and backward, the distinct leaves of jax.vjp's function; of them, arguments."""
    leaves = jax.make_jaxpr(lambda *args: jax.tree.leaves(jax.vjp(function, *args)[1]))(*primals).jaxpr
    kept = {leaf for leaf in leaves.outvars if not isinstance(leaf, core.Literal)}
    arguments = kept & set(leaves.invars)
    size = lambda leaf: leaf.aval.size * leaf.aval.dtype.itemsize
    return {"total": sum(map(size, kept)), "arguments": sum(map(size, arguments))}


def warm(call: Call) -> float:
    """Seconds of a call that is not the first, or of the first where that is very slow."""
    seconds = seconds_of(call, 1)
    return seconds if seconds >= VERY_SLOW_SECONDS else seconds_of(call, 1)


def seconds_of(call: Call, calls: int) -> float:
    """Mean seconds of so many calls, each of whose results is dropped before the next, as a donated step's are."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def rounds(seconds: float, repeats: int) -> int:
    """How often to time a call that takes so long."""
    if seconds >= VERY_SLOW_SECONDS:
        return 0
    if seconds >= SLOW_SECONDS:
        return min(3, repeats)
    return min(max(repeats, int(ENOUGH_SECONDS / max(seconds, SAMPLE_SECONDS))), max(repeats, MOST_ROUNDS))


def interleaved(calls: dict[str, Call], warm_seconds: dict[str, float], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, timed A B C, A C B, B A C ...; the one time of a very slow call is its warm-up's.

    The order changes from round to round: what follows PyTorch takes up to a tenth longer, whatever it is.
    """
    wanted = {name: rounds(warm_seconds[name], repeats) for name in calls}
    times = {name: [] if wanted[name] else [warm_seconds[name]] for name in calls}
    gc.collect()
    gc.disable()
    try:
        orders = itertools.cycle(itertools.permutations(calls))
        for this_round, order in zip(range(max(wanted.values(), default=0)), orders):
            for name in order:
                call = calls[name]
                if this_round < wanted[name]:
                    each = max(warm_seconds[name], 1e-6)
                    time.sleep(SPIN_SECONDS)
                    if each < 10 * SETTLE_SECONDS:
                        seconds_of(call, min(100, int(SETTLE_SECONDS / each) + 1))
                    times[name].append(seconds_of(call, min(100, int(SAMPLE_SECONDS / each) + 1)))
    finally:
        gc.enable()
    return times
