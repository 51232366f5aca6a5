"""Every product of a layer in NumPy float64, tap by tap: what the contestants' errors are measured against.

Written for speed and apart from both contestants: one matrix product a tap over views of the padded input. With t a
tap, p a place in the output, and the letters of `jconv.convolution`,
    y[p] = sum over t of x[p*s + t*d - l] w[t],   dw[t] = sum over p of x[p*s + t*d - l] g[p],   dx the adjoint of y.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.bench.layers import Layer

LARGEST = 3e10  # multiply-adds of one product: about a second of float64 on each of two cores


def step(layer: Layer, operands: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All results of `contestants.RESULTS` by name, in float64; none where that would take too long."""
    if layer.multiply_adds > LARGEST:
        return {}
    wide = {
        name: value.astype(np.complex128 if np.iscomplexobj(value) else np.float64) for name, value in operands.items()
    }
    x, g = wide["x"], wide["g"]
    if layer.op == "max_pool":
        return dict(zip(("y", "dx"), _max_pool(layer, x, g)))
    if layer.op == "avg_pool":
        return dict(zip(("y", "dx"), _avg_pool(layer, x, g)))
    kernel, bias = wide["kernel"], wide["bias"]
    dbias = g.sum(tuple(range(g.ndim - 1)))
    if layer.op == "conv":
        y, dx = _forward(layer, x, kernel), _input_grad(layer, g, kernel, x.shape)
        return {"y": y + bias, "dx": dx, "dkernel": _kernel_grad(layer, x, g), "dbias": dbias}
    # The transposed convolution is the input gradient under another name: x and g change roles.
    y, dx = _input_grad(layer, x, kernel, layer.y_shape), _forward(layer, g, kernel)
    return {"y": y + bias, "dx": dx, "dkernel": _kernel_grad(layer, g, x), "dbias": dbias}


def _padded(layer: Layer, x: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """The input with the layer's padding on its spatial axes; negative pads crop."""
    x = np.pad(x, [(0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in layer.padding), (0, 0)], constant_values=fill)
    return x[_inside(layer, x.shape, lambda pad: max(-pad, 0))]


def _inside(layer: Layer, shape, margin) -> tuple[slice, ...]:
    spatial = [slice(margin(lo), n - margin(hi)) for n, (lo, hi) in zip(shape[1:-1], layer.padding)]
    return (slice(None), *spatial, slice(None))


def _unpadded(layer: Layer, dx: np.ndarray) -> np.ndarray:
    """The adjoint of `_padded`."""
    dx = dx[_inside(layer, dx.shape, lambda pad: max(pad, 0))]
    return np.pad(dx, [(0, 0), *((max(-lo, 0), max(-hi, 0)) for lo, hi in layer.padding), (0, 0)])


def _taps(layer: Layer, places: tuple[int, ...]):
    """(tap, the index of a padded input that selects x[p*s + t*d] for all p)."""
    for tap in np.ndindex(*layer.window):
        axes = zip(tap, layer.strides, layer.kernel_dilation, places)
        spatial = [slice(t * d, t * d + (p - 1) * s + 1, s) for t, s, d, p in axes]
        yield tap, (slice(None), *spatial, slice(None))


def _rows(layer: Layer, x: np.ndarray) -> np.ndarray:
    """(groups, all places, channels of a group)."""
    return np.moveaxis(x.reshape(-1, layer.groups, x.shape[-1] // layer.groups), 1, 0)


def _tap_kernel(layer: Layer, kernel: np.ndarray) -> np.ndarray:
    """(groups, in of a group, out of a group) of one tap."""
    return np.moveaxis(kernel.reshape(kernel.shape[0], layer.groups, -1), 1, 0)


def _forward(layer: Layer, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    x = _padded(layer, x)
    y_space = layer.spatial if layer.op == "conv_transpose" else layer.out_spatial
    y = np.zeros(())
    for tap, index in _taps(layer, y_space):
        y = y + _product(_rows(layer, x[index]), _tap_kernel(layer, kernel[tap]))
    return np.moveaxis(y, 0, 1).reshape(len(x), *y_space, -1)


def _kernel_grad(layer: Layer, x: np.ndarray, g: np.ndarray) -> np.ndarray:
    x, rows = _padded(layer, x), _rows(layer, g)
    dkernel = np.empty(layer.kernel_shape, x.dtype)
    for tap, index in _taps(layer, g.shape[1:-1]):
        by_group = np.matmul(np.swapaxes(_rows(layer, x[index]), 1, 2), rows)
        dkernel[tap] = np.moveaxis(by_group, 0, 1).reshape(dkernel[tap].shape)
    return dkernel


def _input_grad(layer: Layer, g: np.ndarray, kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    dx, rows = _padded(layer, np.zeros(shape, g.dtype)), _rows(layer, g)
    for tap, index in _taps(layer, g.shape[1:-1]):
        spread = _product(rows, np.swapaxes(_tap_kernel(layer, kernel[tap]), 1, 2))
        dx[index] += np.moveaxis(spread, 0, 1).reshape(dx[index].shape)
    return _unpadded(layer, dx)


def _product(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    return rows * matrices if matrices.shape[1] == 1 else np.matmul(rows, matrices)


def _avg_pool(layer: Layer, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    padded, counts = _padded(layer, x), np.full((1, *layer.out_spatial, 1), float(math.prod(layer.window)))
    if not layer.count_include_pad:
        ones = _padded(layer, np.ones((1, *layer.spatial, 1)))
        counts = sum((ones[index] for _, index in _taps(layer, layer.out_spatial)), np.zeros(counts.shape))
    y, dx, share = np.zeros_like(g), np.zeros_like(padded), g / counts
    for _, index in _taps(layer, layer.out_spatial):
        y += padded[index]
        dx[index] += share
    return y / counts, _unpadded(layer, dx)


def _max_pool(layer: Layer, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    padded = _padded(layer, x, -np.inf)
    y, winner = np.full_like(g, -np.inf), np.zeros(g.shape, int)
    for place, (_, index) in enumerate(_taps(layer, layer.out_spatial)):
        greater = padded[index] > y  # strictly: the first winner in row-major window order takes all of g
        y, winner = np.where(greater, padded[index], y), np.where(greater, place, winner)
    dx = np.zeros_like(padded)
    for place, (_, index) in enumerate(_taps(layer, layer.out_spatial)):
        dx[index] += np.where(winner == place, g, 0.0)
    return y, _unpadded(layer, dx)


def errors(results: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest error of each result, as a share of the largest value wanted."""
    largest = {}
    for name, result in results.items():
        error = np.abs(np.asarray(result, wanted[name].dtype) - wanted[name])
        largest[name] = float(error.max() / (np.abs(wanted[name]).max() or 1))
    return largest
