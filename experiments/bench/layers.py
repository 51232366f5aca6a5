"""The layers of the benchmark: read from a JSON file, checked, and changed by the command line.

A file is a list of objects, one a layer. Every one has `name`, `op` (conv, conv_transpose, max_pool or avg_pool),
`family`, `batch`, `spatial`, `in_channels`, `strides`, `padding` ((low, high) a spatial axis); a convolution has
`kernel`, `out_channels`, and may have `kernel_dilation`, `groups`, `output_padding`; a pooling has `window`, and
avg_pool may have `count_include_pad`. Any may have `channels_first`. Output lengths along one axis, in the letters of
`jconv.convolution`:
    conv, pooling   (length + l + h - d*(w - 1) - 1) // s + 1
    conv_transpose  (length - 1)*s - l - h + d*(w - 1) + 1 + output_padding
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

CONVOLUTIONS = ("conv", "conv_transpose")
POOLINGS = ("max_pool", "avg_pool")
PROGRAM = "program"  # a built-in row that is a small program of its own: see extras.py


class BenchError(ValueError):
    """What the user gave cannot be benchmarked; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the benchmark, in elements; `window` is a convolution's kernel or a pooling's window."""

    name: str
    op: str
    family: str
    batch: int = 1
    spatial: tuple[int, ...] = ()
    in_channels: int = 1
    out_channels: int = 1
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    kernel_dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()
    count_include_pad: bool = True
    eager: bool = False  # called without jit
    channels_first: bool = False  # x (batch, channels, *space), kernel (out, in, *window), in jconv and in stock JAX
    floor: float | None = None  # least lax / jconv, where the row has one of its own

    @property
    def is_convolution(self) -> bool:
        return self.op in CONVOLUTIONS

    @property
    def out_spatial(self) -> tuple[int, ...]:
        axes = zip(self.spatial, self.window, self.strides, self.padding, self.kernel_dilation, self.output_padding)
        if self.op == "conv_transpose":
            return tuple((n - 1) * s - lo - hi + d * (w - 1) + 1 + extra for n, w, s, (lo, hi), d, extra in axes)
        return tuple((n + lo + hi - d * (w - 1) - 1) // s + 1 for n, w, s, (lo, hi), d, _ in axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.spatial, self.in_channels)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.out_spatial, self.out_channels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """In jconv's layout; a transposed convolution has the kernel of the convolution that it transposes."""
        if self.op == "conv_transpose":
            return (*self.window, self.out_channels // self.groups, self.in_channels)
        return (*self.window, self.in_channels // self.groups, self.out_channels)

    @property
    def multiply_adds(self) -> int:
        """Of the forward product, padding counted; a pooling has one operation where a convolution has one."""
        places = math.prod(self.spatial if self.op == "conv_transpose" else self.out_spatial)
        per_place = self.in_channels * self.out_channels // self.groups if self.is_convolution else self.in_channels
        return self.batch * places * math.prod(self.window) * per_place

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_json(row: Mapping[str, Any]) -> Layer:
    """A checked layer from one object of the file, or from `Layer.to_json`."""
    name = row.get("name")
    if not isinstance(name, str):
        raise BenchError(f"a layer has no name: {json.dumps(row)[:80]}")
    op = row.get("op")
    if op == PROGRAM:
        return Layer(name, PROGRAM, row["family"], floor=row.get("floor"))
    if op not in CONVOLUTIONS + POOLINGS:
        raise BenchError(f"layer {name}: op={op!r} is none of {', '.join(CONVOLUTIONS + POOLINGS)}")
    try:
        rank = len(row["spatial"])
        return _checked(
            Layer(
                name=name,
                op=op,
                family=str(row["family"]),
                batch=int(row["batch"]),
                spatial=_integers(row["spatial"]),
                in_channels=int(row["in_channels"]),
                out_channels=int(row["out_channels"] if op in CONVOLUTIONS else row["in_channels"]),
                window=_integers(row.get("kernel") or row["window"]),
                strides=_integers(row["strides"]),
                padding=tuple((int(low), int(high)) for low, high in row["padding"]),
                kernel_dilation=_integers(row.get("kernel_dilation") or [1] * rank),
                groups=int(row.get("groups", 1)),
                output_padding=_integers(row.get("output_padding") or [0] * rank),
                count_include_pad=bool(row.get("count_include_pad", True)),
                eager=bool(row.get("eager", False)),
                channels_first=bool(row.get("channels_first", False)),
                floor=row.get("floor"),
            )
        )
    except KeyError as error:
        raise BenchError(f"layer {name}: the key {error.args[0]!r} is missing") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"layer {name}: {error}") from None


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _checked(layer: Layer) -> Layer:
    lengths = {
        field: len(getattr(layer, field))
        for field in ("spatial", "window", "strides", "padding", "kernel_dilation", "output_padding")
    }
    if len(set(lengths.values())) != 1:
        raise BenchError(f"layer {layer.name}: one entry a spatial axis expected, seen {lengths}")
    if min(layer.out_spatial) < 1:
        raise BenchError(f"layer {layer.name}: the window does not fit, its output would be {layer.out_spatial}")
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise BenchError(f"layer {layer.name}: groups={layer.groups} must divide both numbers of channels")
    return layer


def read(path: pathlib.Path) -> list[Layer]:
    """All layers of a file, in its order."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from None
    except json.JSONDecodeError as error:
        raise BenchError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BenchError(f"{path} must hold a list of layers, one object each")
    layers = [from_json(row) for row in rows]
    repeated = {layer.name for layer in layers if sum(other.name == layer.name for other in layers) > 1}
    if repeated:
        raise BenchError(f"{path}: the name {sorted(repeated)[0]!r} stands for more than one layer")
    return layers


def select(layers: list[Layer], pattern: str) -> list[Layer]:
    """The layers whose name or family the regular expression finds."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise BenchError(f"--rows {pattern!r} is not a regular expression: {error}") from None
    chosen = [layer for layer in layers if found.search(layer.name) or found.search(layer.family)]
    if not chosen:
        raise BenchError(f"--rows {pattern!r} matches none of the {len(layers)} layers")
    return chosen


def scaled(layer: Layer, batch_scale: float) -> Layer:
    """The same layer with its batch times batch_scale, at least one example."""
    return dataclasses.replace(layer, batch=max(1, round(layer.batch * batch_scale)))


def channels_first(layer: Layer) -> Layer:
    """The same layer in the layout of a model in NCHW."""
    return layer if layer.op == PROGRAM else dataclasses.replace(layer, channels_first=True)


def odd(layer: Layer) -> Layer:
    """The same layer with each even spatial size one larger; a window over the whole of an axis grows with it."""
    if layer.op == PROGRAM:
        return layer
    whole = [
        w == n and pad == (0, 0) and layer.op != "conv_transpose"
        for w, n, pad in zip(layer.window, layer.spatial, layer.padding)
    ]
    window = tuple(w | 1 if covers else w for w, covers in zip(layer.window, whole))
    return dataclasses.replace(layer, spatial=tuple(n | 1 for n in layer.spatial), window=window)
