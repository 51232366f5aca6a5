"""A layer as a user of PyTorch writes it, on two threads, in either memory format.

PyTorch pads both ends of an axis alike. Where a layer does not, a user pads (or, after a transposed convolution, crops)
apart, and so does this; a max pooling with more padding at its high end takes `ceil_mode` where that gives the same
windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.bench.layers import Layer

FORMATS = ("contiguous", "channels_last")
THREADS = 2


def memory_formats(layer: Layer) -> tuple[str, ...]:
    """PyTorch has no channels-last format for one spatial axis."""
    return FORMATS if 2 <= len(layer.spatial) <= 3 else FORMATS[:1]


def call(
    layer: Layer, operands: dict[str, np.ndarray], memory_format: str, product: str
) -> Callable[[], tuple[Any, ...]] | None:
    """A call of one product that returns when its results are there; None for a product PyTorch has not."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(THREADS)
    # Only where JAX runs on a GPU too.
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    names = [name for name in ("x", "kernel", "bias") if name in operands]
    differentiated = {"step": names, "forward": [], "input_grad": ["x"], "kernel_grad": ["kernel"]}.get(product)
    if differentiated is None or not set(differentiated) <= set(names):
        return None
    function = _function(layer)
    g = _tensor(layer, "g", operands["g"], memory_format).to(device)
    primals = [_tensor(layer, name, operands[name], memory_format).to(device) for name in names]
    wanted = [primal.requires_grad_() for name, primal in zip(names, primals) if name in differentiated]

    def finished(*results):
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    def forward():
        with torch.no_grad():
            return finished(function(*primals))

    def step():
        y = function(*primals)
        return finished(y.detach(), *torch.autograd.grad(y, wanted, g))

    if product in ("forward", "step"):
        return forward if product == "forward" else step
    y = function(*primals)
    return lambda: finished(*torch.autograd.grad(y, wanted, g, retain_graph=True))


def _tensor(layer: Layer, name: str, array: np.ndarray, memory_format: str):
    """A tensor in PyTorch's order of axes: channels second; kernel (out, in // groups, *window)."""
    import torch  # pyright: ignore[reportMissingImports]

    rank, dtype = len(layer.spatial), str(array.dtype)
    tensor = torch.from_numpy(np.array(array, np.float32 if dtype == "bfloat16" else array.dtype))
    tensor = tensor.to(getattr(torch, dtype))
    if name == "bias":
        return tensor
    if name == "kernel":  # a transposed convolution's is that of the convolution it transposes, in PyTorch too
        tensor = tensor.permute(rank + 1, rank, *range(rank))
    else:
        tensor = tensor.permute(0, rank + 1, *range(1, rank + 1))
    if memory_format == "contiguous":
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)


def _function(layer: Layer) -> Callable[..., Any]:
    import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

    rank = len(layer.spatial)
    even, before = _even_padding(layer.padding)

    def padded(x, fill=0.0):
        return F.pad(x, before, value=fill) if any(before) else x

    if layer.op == "conv":
        conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        return lambda x, kernel, bias: conv(
            padded(x), kernel, bias, layer.strides, even, layer.kernel_dilation, layer.groups
        )
    if layer.op == "conv_transpose":
        return _conv_transpose(layer)
    if layer.op == "avg_pool":
        avg_pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        if any(before) and not layer.count_include_pad:
            raise NotImplementedError("PyTorch cannot leave unequal padding out of an average")
        return lambda x: avg_pool(
            padded(x), layer.window, layer.strides, even, count_include_pad=layer.count_include_pad
        )
    max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    low = tuple(lo for lo, _ in layer.padding)
    if any(before) and _ceil_mode_gives(layer, low):
        return lambda x: max_pool(x, layer.window, layer.strides, low, ceil_mode=True)
    if any(2 * pad > w for pad, w in zip(even, layer.window)):
        raise NotImplementedError("PyTorch pads a max pooling by at most half its window")
    return lambda x: max_pool(padded(x, -np.inf), layer.window, layer.strides, even)


def _even_padding(padding: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], list[int]]:
    """Padding for the operator itself where both ends are alike; else all of it for F.pad, last axis first."""
    if all(lo == hi >= 0 for lo, hi in padding):
        return tuple(lo for lo, _ in padding), [0] * 2 * len(padding)
    return (0,) * len(padding), [pad for pair in reversed(padding) for pad in pair]


def _ceil_mode_gives(layer: Layer, low: tuple[int, ...]) -> bool:
    """Whether PyTorch's ceil_mode with the low padding at both ends makes exactly the layer's windows."""
    if any(2 * pad > w for pad, w in zip(low, layer.window)):
        return False
    outs = []
    for n, w, s, pad in zip(layer.spatial, layer.window, layer.strides, low):
        out = -((w - n - 2 * pad) // s) + 1
        outs.append(out - 1 if (out - 1) * s >= n + pad else out)  # no window may start in the high padding
    return tuple(outs) == layer.out_spatial


def _conv_transpose(layer: Layer) -> Callable[..., Any]:
    """The padding that both ends share in the operator; the rest less output_padding, or cropped."""
    import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

    conv_transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(layer.spatial) - 1]
    shared = tuple(max(0, min(pair)) for pair in layer.padding)
    extra, crop = [], []
    for pad, (lo, hi), output_padding in zip(shared, layer.padding, layer.output_padding):
        if lo < pad or hi < pad:
            raise NotImplementedError("PyTorch has no negative padding of a transposed convolution")
        extra.append(max(0, output_padding - (hi - pad)))
        crop.append((lo - pad, max(0, hi - pad - output_padding)))
    index = (..., *(slice(low, -high if high else None) for low, high in crop))

    def function(x, kernel, bias):
        y = conv_transpose(x, kernel, bias, layer.strides, shared, extra, layer.groups, layer.kernel_dilation)
        return y[index] if any(map(any, crop)) else y

    return function
