"""All of jconv's algorithms on a layer side by side: time, memory, error, and the share of the machine's peak.

What a product needs at least, from the peaks measured in the same run, is
    max(2 * multiply-adds / FLOP/s of a matrix product, bytes of operands and result / bytes/s of a copy);
the share is that time over the time seen. An algorithm that saves multiplications (Winograd) may reach more than 1.

With --check, over a whole list of layers: how far the static choice is from the fastest. See bench/choice.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from experiments.bench import __main__ as command
from experiments.bench import choice, report, results, runner
from experiments.bench.layers import BenchError, Layer
from experiments.bench.results import Row

PRODUCTS = ("forward", "kernel_grad", "input_grad")
NAMES = {"jconv": "auto", "lax": "stock JAX"}
MATRIX, COPY_BYTES = 1536, 64 * 2**20  # of the programs that measure the peaks
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Peak:
    """What the machine reaches in JAX: multiply-adds count twice, a copy reads and writes."""

    flops: float  # a second
    bytes: float  # a second

    def least_seconds(self, layer: Layer, itemsize: int) -> tuple[float, str]:
        """(seconds below which no product of the layer can be, what binds it); all three read two arrays, write one."""
        elements = [math.prod(layer.x_shape), math.prod(layer.y_shape)]
        if layer.is_convolution:
            elements.append(math.prod(layer.kernel_shape))
        computing = 2 * layer.multiply_adds / self.flops if layer.is_convolution else 0.0
        return max((computing, "compute"), (sum(elements) * itemsize / self.bytes, "memory"))


def measure_peak(dtype: str) -> Peak:
    """The best of several calls: a square matrix product, and a pass over an array larger than the caches.

    The pass writes where it read: memory that the system has yet to hand out would cost more than the copy itself.
    """
    square = jnp.ones((MATRIX, MATRIX), dtype)
    vector = jnp.ones(COPY_BYTES // square.dtype.itemsize, dtype)
    product = _best_seconds(jax.jit(lambda square: square @ square / MATRIX), square)
    copy = _best_seconds(jax.jit(jnp.negative, donate_argnums=0), vector)
    return Peak(2 * MATRIX**3 / product, 2 * COPY_BYTES / copy)


def _best_seconds(program: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    seconds = []
    for _ in range(11):  # the first compiles
        begin = time.perf_counter()
        x = jax.block_until_ready(program(x))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def algorithm_names() -> tuple[str, ...]:
    """Every name that `algorithm=` takes but "auto"."""
    from jconv.algorithms import choose

    return tuple(name for name in choose.NAMES if name != "auto")


def table(row: Row, layer: Layer, peak: Peak, dtype: str) -> Table:
    """One line a product and algorithm, the fastest first; "auto" marks what runs where nothing is forced."""
    least_seconds, bound = peak.least_seconds(layer, jnp.dtype(dtype).itemsize)
    made = report.table(
        f"{layer.name} ({layer.family}), {layer.x_shape} -> {layer.y_shape}: no product below "
        f"{least_seconds * 1e3:.3g} ms ({bound})",
        *("product", "algorithm:", ":", "ms", "lax / it", "share of peak", "temporaries MiB", "compile s", "error"),
    )
    for product in PRODUCTS:
        forms = row["runs"].get(product, {})
        timed = [(found, name) for name in forms if (found := results.seconds(row, product, name)) is not None]
        auto = forms.get("jconv", {}).get("program")
        made.add_section()
        for seconds, name in sorted(timed, key=lambda pair: pair[0].value):
            facts = forms[name]
            chosen = "auto" if name.startswith("jconv:") and facts.get("program") == auto else ""
            errors = row.get("errors", {}).get(product, {}).get(name, {})
            made.add_row(
                product,
                Text(NAMES.get(name) or name.removeprefix("jconv:")),
                Text(chosen, style="green"),
                str(results.Figure(seconds.value * 1e3, seconds.bound)),
                str(results.ratio(row, product, "lax", name) or "-"),
                f"{least_seconds / seconds.value:.0%}",
                f"{facts['temp_bytes'] / report.MIB:.2f}" if facts.get("temp_bytes") is not None else "-",
                f"{facts['compile_seconds']:.2f}" if "compile_seconds" in facts else "-",
                f"{max(errors.values()):.1e}" if errors else "-",
            )
    return made


def failures(row: Row) -> list[str]:
    """What failed, but for algorithms that do not apply."""
    return [line for line in report.failures([row]) if "does not apply" not in line]


@app.command()
def algorithms(
    file: Annotated[pathlib.Path, typer.Argument(help="layers, as a JSON list; see experiments/bench/layers.py")],
    rows: Annotated[str, typer.Option(help="only layers whose name or family this regular expression finds")] = "",
    dtype: Annotated[command.Dtype, typer.Option(help="of all operands")] = command.Dtype.float32,
    batch_scale: Annotated[float, typer.Option(help="times every batch, at least one example")] = 1.0,
    odd: Annotated[bool, typer.Option("--odd", help="make every even spatial size odd, one larger")] = False,
    channels_first: Annotated[
        bool, typer.Option("--channels-first", help="all in NCHW, kernels (out, in, height, width)")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="least timings of each form; fast ones get up to 25")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds a compilation, and a call, may take")] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="time a layer again while others use the machine")] = 0,
    json_file: Annotated[pathlib.Path | None, typer.Option("--json", help="write all figures here, row by row")] = None,
    lock: Annotated[pathlib.Path | None, typer.Option(help="hold this file's lock while a layer runs")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="tell only how far the choice is from the fastest; some seconds a layer")
    ] = False,
) -> None:
    """Times every algorithm of jconv's that applies to a layer, beside the one it chooses and stock JAX's.

    Each product alone: forward, kernel gradient, input gradient.
    """
    try:
        chosen = command.chosen_layers(file, rows, batch_scale, odd, channels_first, extra=False)
    except BenchError as error:
        command.fail(str(error))
    console = command.console()
    settings = {"dtype": dtype.value, "batch_scale": batch_scale, "odd": odd, "channels_first": channels_first}
    settings |= {"platform": jax.default_backend(), "seen": time.strftime("%Y-%m-%d %H:%M")}
    if check:
        check_choice(chosen, console, settings, repeats, timeout, retries, json_file, lock)
        return
    names = algorithm_names()
    with runner.alone(lock):
        peak = measure_peak(dtype.value)
    console.print(
        f"Peak here in {dtype.value}: {peak.flops / 1e9:.0f} GFLOP/s (a matrix product of {MATRIX}), "
        f"{peak.bytes / 1e9:.1f} GB/s (a copy of {COPY_BYTES // 2**20} MiB, read and written)."
    )
    run: dict[str, Any] = {
        "settings": settings,
        "peak": dataclasses.asdict(peak),
        "rows": [],
    }
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for layer in chosen:
            forced = tuple(f"jconv:{name}" for name in names) if layer.is_convolution else ()
            measured = functools.partial(
                runner.run_layer,
                layer,
                contestants=("jconv", *forced, "lax"),
                products=PRODUCTS,
                dtype=dtype.value,
                repeats=repeats,
                timeout=timeout,
                stage=lambda what, name=layer.name: progress.update(task, description=f"{name}: {what}"),
            )
            row = runner.undisturbed(measured, lock, retries)
            run["rows"].append(row)
            progress.advance(task)
            console.print(table(row, layer, peak, dtype.value))
            if results.disturbed(row):
                console.print("Not idle: others used the machine meanwhile.", style="red")
            for line in failures(row):
                console.print(line, style="yellow", markup=False, soft_wrap=True)
            if json_file is not None:
                json_file.write_text(json.dumps(run, indent=1) + "\n")


def check_choice(
    chosen: list[Layer],
    console: Console,
    settings: dict[str, Any],
    repeats: int,
    timeout: float,
    retries: int,
    json_file: pathlib.Path | None,
    lock: pathlib.Path | None,
) -> None:
    """The static choice against the fastest, of every convolution of the list, in this process."""
    convolutions = [layer for layer in chosen if layer.is_convolution]
    if not convolutions:
        command.fail("--check needs a convolution: a pooling is computed in one way")
    if settings["dtype"] in ("float64", "complex128"):
        jax.config.update("jax_enable_x64", True)
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(convolutions))
        for layer in convolutions:
            measured = functools.partial(
                choice.of_layer,
                layer,
                dtype=settings["dtype"],
                repeats=repeats,
                timeout=timeout,
                stage=lambda what, name=layer.name: progress.update(task, description=f"{name}: {what}"),
            )
            rows.append(runner.undisturbed(measured, lock, retries))
            progress.advance(task)
            jax.clear_caches()
            if json_file is not None:
                json_file.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    choice.show(console, rows)
    if len(chosen) > len(convolutions):
        console.print(f"Left out: {len(chosen) - len(convolutions)} poolings, which are computed in one way.")
    if names := [row["name"] for row in rows if results.disturbed(row)]:
        console.print(
            f"Not idle: {len(names)} rows were timed while others used the machine: {', '.join(names)}", style="red"
        )


if __name__ == "__main__":
    app(prog_name="python -m experiments.algorithms")
