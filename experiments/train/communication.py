"""What devices that share one image tell one another: bytes a layer, read off compiled programs. Nothing is run.

The height is divided among the devices, parameters are on each of them, and a layer's forward and backward pass are
compiled in three ways:
    lax      under jit, lax and its own derivatives, divided by XLA's partitioner
    jconv    under jit, jconv, divided by XLA's partitioner
    halo     inside jax.shard_map, halo.py
What is counted are the bytes that come to a device: of a collective-permute its result, of an all-gather its result
less the part that was there, of an all-reduce its result (on a ring nearly twice as much moves), in a loop as often as
it runs. Kernel gradients are summed over the devices: as many bytes as there are parameters, whoever divides the layer.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

import jconv
from experiments.train import halo

AXIS = "rows"
WAYS = ("lax", "jconv", "halo")
ROWS, WHOLE = PartitionSpec(None, AXIS), PartitionSpec()

# Reading a compiled program.

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
CALLED = re.compile(
    r"\b(calls|to_apply|body|(?:true|false)_computation|branch_computations)=\{?(%[^,}]+(?:, %[^,}]+)*)"
)


def collectives(program: str) -> dict[str, int]:
    """Bytes of the results of the collective operations of a compiled program of a CPU, by kind, on one device.

    An operation in a loop counts as often as the loop runs, of a conditional the branch with the most bytes.

    Raises:
      ValueError: there is one in a loop of which XLA does not say how often it runs.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if found := re.match(r"(ENTRY )?(%\S+) .*\{$", line):
            lines = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        lines.append(line)

    @functools.cache
    def within(name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for line in computations[name]:
            if found := COLLECTIVE.search(line):
                total[found[2]] += _bytes(found[1])
            branches: list[Counter[str]] = []
            for role, names in CALLED.findall(line):
                inner = [within(each) for each in names.split(", ")]
                if role == "body" and inner[0]:
                    times = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                    if times is None:
                        raise ValueError(f"a collective operation in a loop of unknown length: {line.strip()[:200]}")
                    total.update({kind: int(times[1]) * size for kind, size in inner[0].items()})
                elif "computation" in role:
                    branches += inner
                else:
                    total.update(inner[0])
            total.update(max(branches, key=lambda each: each.total(), default=Counter()))
        return total

    return dict(within(entry))


def _bytes(shapes: str) -> int:
    """Bytes of all the arrays that an operation's result is written as, (f32[2,3]{1,0}, u8[4])."""
    size = lambda kind: 1 if kind == "pred" else math.ceil(int(re.sub(r"\D*(\d+).*", r"\1", kind)) / 8)
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(size(kind) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in arrays)


def received(found: dict[str, int], devices: int) -> int:
    """Bytes that come to one of the devices, which take part in every operation."""
    own = found.get("all-gather", 0) // devices
    return sum(found.values()) - own


# The layers.


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or pooling with a square window."""

    kind: str  # conv or max_pool
    window: int
    stride: int = 1
    padding: int = 0
    outputs: int = 0  # channels; 0: as many as there come in
    depthwise: bool = False

    def __str__(self) -> str:
        name = "depthwise" if self.depthwise else self.kind
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{name} {self.window}x{self.window}{stride}"

    def output(self, x: tuple[int, ...]) -> tuple[int, ...]:
        places = lambda length: (length + 2 * self.padding - self.window) // self.stride + 1
        return (x[0], places(x[1]), places(x[2]), self.outputs or x[3])

    def kernels(self, x: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shape of its kernel, if it has one."""
        if self.kind != "conv":
            return ()
        inputs = 1 if self.depthwise else x[3]
        return ((self.window, self.window, inputs, self.outputs or x[3]),)


def conv(window: int, outputs: int, stride: int = 1, padding: int | None = None) -> Layer:
    """A convolution that keeps the image's size but for its stride, unless padding is given."""
    return Layer("conv", window, stride, window // 2 if padding is None else padding, outputs)


NETS = {
    "resnet50": (
        *(conv(7, 64, 2), Layer("max_pool", 3, 2, 1)),
        *(conv(1, 64), conv(3, 64), conv(1, 256)),
        *(conv(1, 128), conv(3, 128, 2), conv(1, 512)),
    ),
    "unet": (
        *(conv(3, 64), conv(3, 64), Layer("max_pool", 2, 2)),
        *(conv(3, 128), conv(3, 128), Layer("max_pool", 2, 2), conv(3, 256)),
    ),
    "convnext": (
        *(conv(4, 96, 4, 0), Layer("conv", 7, 1, 3, depthwise=True), conv(1, 384), conv(1, 96)),
        *(conv(2, 192, 2, 0), Layer("conv", 7, 1, 3, depthwise=True)),
    ),
}


def apply(way: str, layer: Layer, x: Any, *kernel: Any) -> Any:
    """The layer, computed in one of WAYS."""
    pair = (layer.padding, layer.padding)
    window, strides, padding = (layer.window,) * 2, (layer.stride,) * 2, (pair, pair)
    if way == "lax" and layer.kind == "max_pool":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), pair, pair, (0, 0)))
    divided = {"axis_name": AXIS} if way == "halo" else {}
    if layer.kind == "max_pool":
        function: Any = halo.max_pool2d if divided else jconv.max_pool
        return function(x, window, strides, padding, **divided)
    options = {"padding": padding, "feature_group_count": x.shape[-1] if layer.depthwise else 1}
    if way == "lax":
        dims: Any = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel[0], strides, dimension_numbers=dims, **options)
    function = halo.conv2d if divided else jconv.conv2d
    return function(x, kernel[0], strides=strides, **options, **divided)


def compiled(
    way: str, layers: Sequence[Layer], shape: tuple[int, ...], mesh: Mesh, input_gradient: bool = True
) -> dict[str, int]:
    """Collectives of a forward and backward pass of the layers, one after the other, between them a relu.

    The backward pass is of a cotangent that is divided as the result is; it gives the gradients of the kernels, and of
    the images where `input_gradient`.
    """
    shapes = shapes_of(layers, shape)
    kernels = [layer.kernels(x) for layer, x in zip(layers, shapes)]

    def forward(x: Any, kernels: Any) -> Any:
        for number, (layer, kernel) in enumerate(zip(layers, kernels, strict=True)):
            x = apply(way, layer, jax.nn.relu(x) if number else x, *kernel)
        return x

    def step(x: Any, kernels: Any, g: Any) -> Any:
        if input_gradient:
            y, back = jax.vjp(forward, x, kernels)
        else:
            y, back = jax.vjp(lambda kernels: forward(x, kernels), kernels)
        return y, back(g)

    results = (ROWS, (ROWS, WHOLE) if input_gradient else (WHOLE,))
    if way == "halo":
        step = jax.shard_map(step, mesh=mesh, in_specs=(ROWS, WHOLE, ROWS), out_specs=results)
    struct = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    arguments = (
        struct(shape, ROWS),
        [tuple(struct(k, WHOLE) for k in each) for each in kernels],
        struct(shapes[-1], ROWS),
    )
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), results)
    return collectives(jax.jit(step, out_shardings=placed).lower(*arguments).compile().as_text() or "")


def measure(layers: Sequence[Layer], size: int, batch: int, devices: int) -> list[dict[str, Any]]:
    """A row a layer, and one for all of them in one program; the first layer has no gradient of the images.

    Raises:
      ValueError: the devices cannot share the rows of an image, or of a layer's result, evenly.
    """
    shapes = shapes_of(layers, (batch, size, size, 3))
    for name, (_, height, *_) in zip(("an image", *layers), shapes):
        if height % devices:
            raise ValueError(f"size={size}: {name} has {height} rows, which {devices} devices cannot share evenly")
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rows = [row_of(str(layer), [layer], shapes[i], mesh, i > 0) for i, layer in enumerate(layers)]
    return [*rows, row_of("all, one program", layers, shapes[0], mesh, False)]


def shapes_of(layers: Sequence[Layer], x: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shape of the images, and of each layer's result, one after the other."""
    return list(itertools.accumulate(layers, lambda shape, layer: layer.output(shape), initial=x))


def row_of(
    name: str, layers: Sequence[Layer], shape: tuple[int, ...], mesh: Mesh, input_gradient: bool
) -> dict[str, Any]:
    """What the layers exchange in each way, on images of a shape."""
    shapes = shapes_of(layers, shape)
    parameters = 4 * sum(math.prod(kernel) for layer, x in zip(layers, shapes) for kernel in layer.kernels(x))
    row: dict[str, Any] = {"layer": name, "x": shape, "y": shapes[-1], "parameter_bytes": parameters}
    for way in WAYS:
        found = compiled(way, layers, shape, mesh, input_gradient)
        row[way] = {"collectives": found, "received_bytes": received(found, mesh.size)}
    return row


def whole_images(row: dict[str, Any], way: str) -> bool:
    """Whether more than halos and kernel gradients is brought together."""
    found = row[way]["collectives"]
    summed = found.get("all-reduce", 0) > row["parameter_bytes"]
    return summed or not found.keys() <= {"collective-permute", "all-reduce"}


# The command.


def shown(rows: Sequence[dict[str, Any]], net: str, devices: int) -> Table:
    """The rows as a table."""
    batch, size = rows[0]["x"][:2]
    title = f"KiB that come to each of {devices} devices, forward and backward: {net}, {batch} x {size} x {size} x 3"
    table = Table("layer", "result", "kernel", title=title, caption="*: gathers or sums whole images")
    for way in ("lax under jit", "jconv under jit", "halo.py"):
        table.add_column(way, justify="right")
    for row in rows:
        sizes = [f"{row[way]['received_bytes'] / 1024:,.0f}{'*' if whole_images(row, way) else ' '}" for way in WAYS]
        table.add_row(row["layer"], " x ".join(map(str, row["y"][1:])), f"{row['parameter_bytes'] / 1024:,.0f}", *sizes)
    return table


EXAMPLES = """\b
Examples:
  python -m experiments.train.communication
  python -m experiments.train.communication --net unet --size 512 --devices 8 --json unet.json
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=EXAMPLES)
def run(
    net: Annotated[str, typer.Option(help=f"Whose first layers: {', '.join(NETS)}.")] = "resnet50",
    size: Annotated[int, typer.Option(min=16, help="Height and width of an image.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 1,
    devices: Annotated[int, typer.Option(min=2, help="Virtual CPU devices that share the height.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Tells how many bytes devices that share the height of an image exchange: XLA's partitioner, and halo.py."""
    if net not in NETS:
        raise typer.BadParameter(f"net={net!r}: must be one of {', '.join(NETS)}")
    with contextlib.suppress(RuntimeError):  # jax has started, and has what it has
        jax.config.update("jax_num_cpu_devices", devices)
    if jax.device_count() < devices:
        raise typer.BadParameter(f"devices={devices}: jax has {jax.device_count()} here")
    rows = measure(NETS[net], size, batch, devices)
    Console(width=None if sys.stdout.isatty() else 120).print(shown(rows, net, devices))
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; a wrong option, or a size that the devices cannot share, ends in one line and exit status 2."""
    try:
        app(arguments, prog_name="python -m experiments.train.communication", standalone_mode=False)
    except typer.TyperException as error:
        _end(error.format_message())
    except ValueError as error:
        _end(str(error))
    except OSError as error:
        _end(f"json={error.filename}: {error.strerror}")


def _end(line: str) -> None:
    print(f"communication: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
