"""How long a way of computing takes on a CPU of two cores, in seconds: what choose.py weighs against one another.

A model, not a measurement of each layer: multiply-adds over the rate at which a way runs them, plus bytes over the rate
at which they are moved. The constants were fitted to `python -m experiments.algorithms` over real layers on two cores
(AMD EPYC, where a matrix product reaches 200 GFLOP/s and a copy 58 GB/s, and Intel Xeon, where a copy reaches 10;
AVX-512, jax 0.10.2); the ratios matter.
"""

import math
from typing import Any

from jconv.geometry import Geometry

CORE = 1.0e11  # floating-point operations a second of one core inside a convolution
CORES = 2
PRODUCTS = 1.7e11  # the same of independent matrix products on all cores
SUMS = 1.2e10  # bytes a second of fused sums over shifted slices, written and read once more
BLOCK = 64  # output channels, and places along the last axis, of the blocks that XLA's convolution hands to the cores


def flops(batch: Any, geometry: Geometry, channels: int, out: int) -> float:
    """Floating-point operations of a product, a multiply-add counted as two; a symbolic batch counts as one image."""
    images = batch if isinstance(batch, int) else 1
    return 2.0 * images * math.prod(geometry.output) * geometry.taps * (channels // geometry.groups) * out


def lax_convolve(batch: Any, geometry: Geometry, channels: int, out: int) -> float:
    """One lax convolution. XLA splits an image by blocks of its width and its channels: small ones stay on one core."""
    blocks = max(out, geometry.output[-1]) / BLOCK if geometry.taps > 1 else 1
    return flops(batch, geometry, channels, out) / (CORE * min(CORES * 0.95, max(1.0, blocks)))


def lax_kernel_grad(batch: Any, geometry: Geometry, channels: int, out: int) -> float:
    """The same with the kernel as the image, whose patches are gathered element by element; lines take as long."""
    return flops(batch, geometry, channels, out) / (CORE * CORES * 0.45)


def lax_of_few(geometry: Geometry, channels: int, out: int) -> float:
    """One place of a plane's lax convolution of fewer outputs than fill a block; those that fill no vector cost double.

    And up to 16 channels as much as 60 do.
    """
    times = 1.0 if out <= 4 or channels <= 16 else 1.9 if out < 8 else 3.5
    return 1e-9 * times * (40 + 0.5 * channels + 0.085 * geometry.taps * (60 if channels <= 16 else channels))


def columns(batch: Any, geometry: Geometry, channels: int, out: int, at_once: float) -> float:
    """One place of a product of all taps and a fold of the shares of `at_once` places, a tap at a time."""
    images = batch if isinstance(batch, int) else 1
    places = max(1, min(at_once, images * math.prod(geometry.input)))
    return 1e-9 * geometry.taps * (out * (0.7 + 0.028 * channels) + 2500 / places)


def winograd(batch: Any, geometry: Geometry, channels: int, out: int, tiles: int) -> float:
    """16 products of (tiles, in) with (in, out), four additions for each of their operands and results."""
    images = batch if isinstance(batch, int) else 1
    products = 32.0 * images * tiles * channels * out / PRODUCTS
    sums = 64.0 * images * tiles * (channels + out) / SUMS
    return products + sums + 64.0 * channels * out / SUMS  # last, the kernel's own forms


def winograd_kernel_grad(batch: Any, geometry: Geometry, channels: int, out: int, tiles: int) -> float:
    """As winograd, with products that add up over the tiles, which run at three quarters of the rate."""
    return 1.35 * winograd(batch, geometry, channels, out, tiles)
