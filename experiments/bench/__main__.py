"""The command: every layer of a file, jconv against stock JAX and PyTorch."""

from __future__ import annotations

import enum
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from typing import Annotated, Any, NoReturn

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.bench import against, extras, layers, report, runner
from experiments.bench.layers import BenchError

WIDTH = 190  # of the tables where the output is not a terminal
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(enum.StrEnum):
    """The dtypes of the benchmark."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"
    complex64 = "complex64"


@app.command()
def bench(
    file: Annotated[
        pathlib.Path | None, typer.Argument(help="layers, as a JSON list; see experiments/bench/layers.py")
    ] = None,
    rows: Annotated[str, typer.Option(help="only layers whose name or family this regular expression finds")] = "",
    dtype: Annotated[Dtype, typer.Option(help="of all operands")] = Dtype.float32,
    batch_scale: Annotated[float, typer.Option(help="times every batch, at least one example")] = 1.0,
    odd: Annotated[bool, typer.Option("--odd", help="make every even spatial size odd, one larger")] = False,
    channels_first: Annotated[
        bool, typer.Option("--channels-first", help="jconv and lax in NCHW, kernels (out, in, height, width)")
    ] = False,
    products: Annotated[bool, typer.Option("--products", help="each product alone, too")] = False,
    in_loop: Annotated[bool, typer.Option("--in-loop", help="a step inside lax.scan against outside, too")] = False,
    extra: Annotated[
        bool, typer.Option("--extras", help="the built-in rows, too: per-example, ensemble, tiny, eager")
    ] = False,
    contestants: Annotated[str, typer.Option(help="of jconv, lax and torch, those to run")] = "jconv,lax,torch",
    repeats: Annotated[int, typer.Option(min=1, help="least timings of each form; fast ones get up to 25")] = 5,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="seconds a compilation, and a call, of one form may take")
    ] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="time a layer again while others use the machine")] = 0,
    floors: Annotated[bool, typer.Option(help="print what must hold beside what was seen")] = True,
    against_file: Annotated[pathlib.Path | None, typer.Option("--against", help="the --json of an earlier run")] = None,
    json_file: Annotated[pathlib.Path | None, typer.Option("--json", help="write all figures here, row by row")] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="write a plot of the ratios here: .png, .svg, .pdf")] = None,
    lock: Annotated[
        pathlib.Path | None, typer.Option(help="hold this file's lock while a layer runs, so that no other run does")
    ] = None,
) -> None:
    """Times every layer of FILE in jconv, stock JAX and PyTorch, interleaved, one process a layer, and compares them.

    Run it on an idle machine. The exit status is 0 whatever the figures are, 2 where there is nothing to measure.
    """
    try:
        chosen = chosen_layers(file, rows, batch_scale, odd, channels_first, extra)
        earlier = None if against_file is None else _earlier(against_file)
        names = _contestants(contestants)
    except BenchError as error:
        fail(str(error))
    wanted = [
        "step",
        "forward",
        *(["kernel_grad", "input_grad"] if products else []),
        *(["once", "loop"] if in_loop else []),
    ]
    run: dict[str, Any] = {
        "settings": {
            "file": None if file is None else file.name,
            "rows": rows,
            "dtype": dtype.value,
            "batch_scale": batch_scale,
            "odd": odd,
            "channels_first": channels_first,
            "products": wanted,
            "contestants": names,
            "repeats": repeats,
            "timeout": timeout,
            "floors": floors,
            "platform": jax.default_backend(),
        },
        "machine": machine(),
        "rows": [],
    }
    if earlier is not None:
        try:
            against.changes(run, earlier)  # before the hours of measuring, not after
        except BenchError as error:
            fail(str(error))
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for layer in chosen:
            measured = functools.partial(
                runner.run_layer,
                layer,
                contestants=names,
                products=tuple(wanted),
                dtype=dtype.value,
                repeats=repeats,
                timeout=timeout,
                stage=lambda what, name=layer.name: progress.update(task, description=f"{name}: {what}"),
            )
            run["rows"].append(runner.undisturbed(measured, lock, retries))
            progress.advance(task)
            if json_file is not None:
                json_file.write_text(json.dumps(run, indent=1) + "\n")
    report.show(console(), run, earlier, str(against_file))
    if plot is not None:
        from experiments.bench import plot as plots  # matplotlib is slow to import

        plots.save(
            run["rows"], plot, f"jconv against stock JAX and PyTorch, {dtype.value}, {run['machine']['processor']}"
        )


def console() -> Console:
    """Wide enough for the tables where the output is not a terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDTH)


def fail(message: str) -> NoReturn:
    """One clear line and exit status 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def chosen_layers(
    file: pathlib.Path | None, rows: str, batch_scale: float, odd: bool, channels_first: bool, extra: bool
) -> list[layers.Layer]:
    """The layers of the command line, changed as it says."""
    if file is None and not extra:
        raise BenchError("name a file of layers, or --extras for the built-in ones")
    if batch_scale <= 0:
        raise BenchError(f"--batch-scale {batch_scale} must be positive")
    listed = [] if file is None else [layers.scaled(layer, batch_scale) for layer in layers.read(file)]
    if odd:
        listed = [layers.odd(layer) for layer in listed]
    if channels_first:
        listed = [layers.channels_first(layer) for layer in listed]
    return layers.select(listed + (extras.rows() if extra else []), rows)


def _contestants(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = set(names) - {"jconv", "lax", "torch"}
    if unknown or not names:
        raise BenchError(f"--contestants {text!r} must name some of jconv, lax, torch")
    if "torch" in names and not _installed("torch"):
        names = tuple(name for name in names if name != "torch")
    return names


def _earlier(path: pathlib.Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"--against: cannot read {path}: {error}") from None
    if not isinstance(run, dict) or not {"settings", "rows"} <= set(run):
        raise BenchError(f"--against: {path} is not what --json writes")
    return run


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Where and with what the figures were seen."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: _installed(name) for name in ("jax", "jaxlib", "torch", "numpy")},
        "seen": time.strftime("%Y-%m-%d %H:%M"),
    }


if __name__ == "__main__":
    app(prog_name="python -m experiments.bench")
