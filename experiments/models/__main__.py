"""Whole models, a training step in stock JAX, accelerated, and in PyTorch, interleaved, one process a model.

The models are written in Flax (linen, nnx), Equinox and Haiku, over jax.lax; `jconv.accelerate(loss)` is all that
differs between the first two contestants. Those of experiments.train are written over jconv, and stock is
`jconv.automatic(loss)`. A step is forward, backward and an SGD update with momentum, jit-compiled.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Annotated, Any

import rich
import typer
from rich.progress import Progress
from rich.table import Table

from experiments.models import nets

CONTESTANTS = ("stock", "accelerated", "torch")
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def measure(net: nets.Net, library: str, contestants: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Everything about one model: sizes, differences, and each contestant's seconds to trace, compile and step."""
    import jax

    import jconv
    from experiments.bench import measure as timing

    program = nets.program(net, library)
    x, labels = net.draw()
    facts: dict[str, Any] = {"model": net.name, "library": library, "parameters": program.size, "contestants": {}}
    if library == nets.OURS:
        losses = {"stock": jconv.automatic(program.loss), "accelerated": program.loss}
    else:
        losses = {"stock": program.loss, "accelerated": jconv.accelerate(program.loss)}
    calls = {}
    for name in [name for name in contestants if name in losses]:
        step, carry = _step(losses[name], program)
        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(carry, x, labels)
        traced = time.perf_counter()
        compiled = lowered.compile()
        analysis = compiled.memory_analysis()
        facts["contestants"][name] = {
            "trace_seconds": traced - begin,
            "compile_seconds": time.perf_counter() - traced,
            "temp_bytes": None if analysis is None else analysis.temp_size_in_bytes,
        }
        calls[name] = _repeated(compiled, carry, x, labels)
    if "torch" in contestants:
        calls |= _torch_calls(net, facts)
    if {"stock", "accelerated"} <= set(contestants):
        facts |= _differences(losses, program, x, labels)
    warm = {name: timing.warm(call) for name, call in calls.items()}
    for name, seconds in timing.interleaved(calls, warm, repeats).items():
        facts["contestants"][name]["seconds"] = seconds
    return facts


def _step(loss: Any, program: nets.Program) -> tuple[Any, Any]:
    """(step(carry, x, labels) -> (carry, loss), the first carry)."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    def step(carry: Any, x: Any, labels: Any) -> Any:
        params, state, moments = carry
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state, x, labels)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), state, moments), value

    params, state = jax.tree.map(jnp.array, (program.params, program.state))  # each contestant donates its own
    return step, (params, state, optimizer.init(params))


def _repeated(compiled: Any, carry: Any, x: Any, labels: Any) -> Any:
    """A call that goes one step on, and waits for it."""
    held = [carry]

    def call() -> Any:
        held[0], value = compiled(held[0], x, labels)
        return value.block_until_ready()

    return call


def _torch_calls(net: nets.Net, facts: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's step in each memory format, where PyTorch is installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    from experiments.models import in_torch

    torch.set_num_threads(2)
    size = in_torch.size(in_torch.model(net))
    if size != facts["parameters"]:
        raise ValueError(f"{net.name} has {facts['parameters']} parameters, in PyTorch {size}")
    calls = {}
    for name, memory_format in in_torch.memory_formats(net).items():
        facts["contestants"][f"torch, {name}"] = {}
        calls[f"torch, {name}"] = in_torch.step(net, memory_format, LEARNING_RATE, MOMENTUM)
    return calls


def _differences(losses: dict[str, Any], program: nets.Program, x: Any, labels: Any) -> dict[str, float]:
    """Relative differences of the loss, and of the whole gradient: the norm of the difference over the norm."""
    import jax
    import optax

    results = []
    for loss in losses.values():
        graded = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, _), gradient = graded(program.params, program.state, x, labels)
        results.append((float(value), gradient))
    (stock, wanted), (value, gradient) = results
    apart = optax.tree_utils.tree_sub(gradient, wanted)
    norm = optax.tree_utils.tree_l2_norm
    return {
        "loss_difference": abs(value - stock) / abs(stock),
        "gradient_difference": float(norm(apart) / norm(wanted)),
    }


def ratios(facts: dict[str, Any]) -> dict[str, float]:
    """Median seconds of a step: "stock" and "torch" (the faster of its formats) over accelerated."""
    medians = {name: statistics.median(c["seconds"]) for name, c in facts["contestants"].items() if "seconds" in c}
    torch = [seconds for name, seconds in medians.items() if name.startswith("torch")]
    others = {"stock": medians.get("stock"), "torch": min(torch, default=None)}
    ours = medians.get("accelerated")
    return {name: seconds / ours for name, seconds in others.items() if seconds and ours}


def table(results: list[dict[str, Any]]) -> Table:
    """A row a model, and the geometric means."""
    shown = Table(title="A training step: times as long as accelerated")
    shown.add_column("model", no_wrap=True)
    columns = (
        "parameters",
        "gradient differs",
        "stock",
        "accelerated",
        "stock /",
        "PyTorch /",
        "compile: stock",
        "ours",
    )
    for column in columns:
        shown.add_column(column, justify="right")
    milliseconds = lambda facts, name: (
        f"{1e3 * statistics.median(facts['contestants'][name]['seconds']):.1f} ms"
        if name in facts["contestants"]
        else ""
    )
    compiled = lambda facts, name: (
        f"{facts['contestants'][name]['compile_seconds']:.1f} s" if name in facts["contestants"] else ""
    )
    for facts in results:
        name = f"{facts['model']}, {facts['library']}"
        if "error" in facts:
            shown.add_row(name, facts["error"])
            continue
        ratio = ratios(facts)
        shown.add_row(
            name,
            f"{facts['parameters']:,}",
            f"{facts['gradient_difference']:.1e}" if "gradient_difference" in facts else "",
            milliseconds(facts, "stock"),
            milliseconds(facts, "accelerated"),
            *(f"{ratio[other]:.2f}" if other in ratio else "" for other in ("stock", "torch")),
            *(compiled(facts, name) for name in ("stock", "accelerated")),
        )
    means = {other: [r[other] for r in map(ratios, _whole(results)) if other in r] for other in ("stock", "torch")}
    mean = lambda values: f"{math.exp(statistics.fmean(map(math.log, values))):.2f}" if values else ""
    shown.add_section()
    shown.add_row("geometric mean", "", "", "", "", mean(means["stock"]), mean(means["torch"]))
    return shown


def _whole(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [facts for facts in results if "error" not in facts]


def _in_a_process(
    name: str, library: str, tiny: bool, contestants: str, repeats: int, timeout: float
) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.models", "--one", f"{name}:{library}", "--contestants", contestants]
    command += ["--repeats", str(repeats), *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"model": name, "library": library, "error": f"over {timeout:g} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"model": name, "library": library, "error": said[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _contestants(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if not set(names) <= set(CONTESTANTS):
        raise typer.BadParameter(f"{value!r}: of {', '.join(CONTESTANTS)}, with commas between")
    return names


@app.command(help=__doc__)
def main(
    models: Annotated[str, typer.Option(help="only models whose name or library this regular expression finds")] = "",
    contestants: Annotated[str, typer.Option(help="of stock, accelerated and torch, those to run")] = ",".join(
        CONTESTANTS
    ),
    repeats: Annotated[int, typer.Option(min=1, help="least timings of each")] = 5,
    timeout: Annotated[float, typer.Option(min=1, help="seconds that a model may take in all")] = 600,
    tiny: Annotated[bool, typer.Option(help="the tests' sizes: few channels, few pixels")] = False,
    json_file: Annotated[pathlib.Path | None, typer.Option("--json", help="write all figures here")] = None,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """The command."""
    known = nets.TINY if tiny else nets.NETS
    if one:
        name, library = one.split(":")
        print(json.dumps(measure(known[name], library, _contestants(contestants), repeats)))
        return
    _contestants(contestants)
    wanted = [(name, library) for name, library in nets.rows(known) if re.search(models, f"{name} {library}")]
    if not wanted:
        raise typer.BadParameter(f"{models!r} finds none of {', '.join(known)}", param_hint="--models")
    results = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(wanted))
        for name, library in wanted:
            progress.update(task, description=f"{name}, {library}")
            results.append(_in_a_process(name, library, tiny, contestants, repeats, timeout))
            progress.advance(task)
            if json_file:
                json_file.write_text(json.dumps(results, indent=1))
    rich.print(table(results))
    if any("error" in facts for facts in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
