"""The built-in rows of `--extras`: programs and layers that no list of layers holds, but users run into.

A program is written once, over `conv` and `max_pool` with jconv's signatures, and runs with jconv's and with stock's.
The layers are LeNet's on 8x8 digits, some of batch 1, and some called eagerly.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench import contestants, layers
from experiments.bench.contestants import Form
from experiments.bench.layers import Layer

FAMILY = "extras"
Operators = types.SimpleNamespace  # with conv and max_pool
FLOORS = {"jax12868_kernel_grads_in_scan": 50.0, "ensemble_of_8": 8.0}
FLOORS |= {"per_example_cnn": 2.5, "per_example_cnn_max_pool": 2.5}


def operators(contestant: str) -> Operators:
    """Of jconv or of stock JAX, called alike."""
    if contestant == "lax":
        return Operators(conv=contestants.stock_conv, max_pool=contestants.stock_max_pool)
    import jconv  # here, so that a benchmark of stock JAX alone runs without it

    return Operators(conv=jconv.conv, max_pool=jconv.max_pool)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def _same(ops: Operators, x, kernel, bias=None):
    """A convolution of odd window, stride 1, to the same size."""
    padding = tuple((size // 2, size // 2) for size in kernel.shape[:2])
    return ops.conv(x, kernel, bias, strides=(1, 1), padding=padding, kernel_dilation=(1, 1))


def _kernels(*channels: int) -> list[jax.Array]:
    return [_normal(i, 3, 3, a, b) / (9 * a) ** 0.5 for i, (a, b) in enumerate(itertools.pairwise(channels))]


def scan_of_gradients(ops: Operators) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """jax#12868: the gradient of four 3x3 layers, 8 x 28 x 28 x 64, taken in a lax.scan of two steps."""

    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(_same(ops, x, kernel))
        return jnp.mean(x**2)

    def train(kernels, batches):
        def body(kernels, x):
            value, gradients = jax.value_and_grad(loss)(kernels, x)
            return jax.tree.map(lambda k, d: k - 0.1 * d, kernels, gradients), value

        return lax.scan(body, kernels, batches)

    return train, (_kernels(64, 64, 64, 64, 64), _normal(9, 2, 8, 28, 28, 64))


def per_example(ops: Operators, with_pools: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One gradient an example (as differential privacy needs): a CNN of 4 layers, 64 images of 32 x 32."""

    def loss(kernels, x):
        x = x[None]
        for i, kernel in enumerate(kernels):
            x = jax.nn.relu(_same(ops, x, kernel))
            if with_pools and i % 2 == 0:
                x = ops.max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0)))
        return jnp.mean(x**2)

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    return gradients, (_kernels(3, 16, 16, 32, 32), _normal(9, 64, 32, 32, 3))


def ensemble(ops: Operators) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Eight models at once: vmap over x and kernel, each 64 to 128 channels at 16 x 28 x 28."""
    one = contestants.products_of(lambda x, kernel, bias: _same(ops, x, kernel, bias))["step"]
    operands = (_normal(0, 8, 16, 28, 28, 64), _normal(1, 8, 3, 3, 64, 128) / 24, _normal(2, 8, 128))
    return jax.vmap(one), (*operands, _normal(3, 8, 16, 28, 28, 128))


PROGRAMS: dict[str, Callable[[Operators], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "jax12868_kernel_grads_in_scan": scan_of_gradients,
    "per_example_cnn": lambda ops: per_example(ops, with_pools=False),
    "per_example_cnn_max_pool": lambda ops: per_example(ops, with_pools=True),
    "ensemble_of_8": ensemble,
}


def program_form(contestant: str, name: str) -> Form:
    """A built-in program as one of the contestants runs it: a Form of the one product step."""
    program, operands = PROGRAMS[name](operators(contestant))
    return Form(operands, {"step": program}, program)


def rows() -> list[Layer]:
    """All built-in rows. None but the programs has a floor above 0.9 of stock."""
    programs = [Layer(name, layers.PROGRAM, FAMILY, floor=FLOORS[name]) for name in PROGRAMS]
    lenet = [
        layer(f"{layer_name}{suffix}{'_eager' if eager else ''}", batch, eager)
        for layer_name, layer in LENET.items()
        for batch, suffix in ((64, ""), (1, "_batch1"))
        for eager in (False, True)
    ]
    batch_1 = [layer(name, 1, False) for name, layer in BATCH_1.items()]
    return programs + lenet + batch_1


def _conv(size: int, window: int, channels: tuple[int, int], groups: int = 1, pad: int | None = None):
    pad = window // 2 if pad is None else pad
    return _layer("conv", size, window, 1, channels, (pad, pad), groups)


def _pool(op: str, size: int, window: int, stride: int, channels: int):
    return _layer(op, size, window, stride, (channels, channels), (0, (window - size) % stride), 1)


def _layer(op: str, size: int, window: int, stride: int, channels: tuple[int, int], ends: tuple[int, int], groups: int):
    """A function of (name, batch, eager) that makes the layer, the same on both spatial axes."""

    def layer(name: str, batch: int, eager: bool) -> Layer:
        row = {
            "name": name,
            "op": op,
            "family": FAMILY,
            "batch": batch,
            "spatial": (size, size),
            "in_channels": channels[0],
            "out_channels": channels[1],
            "window": (window, window),
            "strides": (stride, stride),
            "padding": (ends, ends),
            "groups": groups,
            "eager": eager,
            "floor": 0.9,
        }
        return layers.from_json(row)

    return layer


LENET = {  # on the 8x8 digits of scikit-learn
    "lenet_digits_conv1": _conv(8, 3, (1, 6)),
    "lenet_digits_max_pool": _pool("max_pool", 8, 2, 2, 6),
    "lenet_digits_avg_pool": _pool("avg_pool", 8, 2, 2, 6),
    "lenet_digits_conv2": _conv(4, 3, (6, 16)),
    "lenet_digits_conv3": _conv(4, 4, (16, 120), pad=0),
}
BATCH_1 = {
    "batch1_dense3x3": _conv(56, 3, (64, 64)),
    "batch1_pointwise": _conv(28, 1, (128, 512)),
    "batch1_depthwise": _conv(56, 3, (128, 128), groups=128),
    "batch1_max_pool": _pool("max_pool", 112, 3, 2, 64),
}
