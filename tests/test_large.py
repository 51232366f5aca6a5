"""Layers of real networks against the oracle, forward and every gradient, in float32.

Some of XLA's paths differ by size (openxla/xla#48713, #48714), so small cases alone prove little. An element may differ
from the oracle's by the rounding of its own sum: tests.cases.tolerance, with as many terms as that product sums.
"""

import functools
import math

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from tests.cases import Case, tolerance
from tests.pool_cases import Pool

pytestmark = pytest.mark.optimised

LAYERS = [
    Case((28, 28), (3, 3), padding=1, channels=(128, 128), name="dense 3x3, 2 x 28 x 28 x 128"),
    Case((56, 56), (3, 3), padding="SAME", channels=(64, 64), batch=1, name="dense 3x3, 1 x 56 x 56 x 64"),
    Case((27, 27), (3, 3), 2, ((1, 1), (1, 1)), channels=(48, 64), name="dense 3x3, stride 2, 2 x 27 x 27 x 48"),
    Case((56, 56), (1, 1), channels=(64, 256), name="1x1, 2 x 56 x 56 x 64 to 256"),
    Case((56, 56), (1, 1), 2, channels=(256, 128), name="1x1, stride 2, 2 x 56 x 56 x 256 to 128"),
    Case((56, 56), (3, 3), padding=1, groups=96, channels=(96, 96), name="depthwise 3x3, 2 x 56 x 56 x 96"),
    Case((56, 56), (7, 7), padding="SAME", groups=96, channels=(96, 96), batch=1, name="depthwise 7x7, 56 x 56 x 96"),
    Case((112, 112), (3, 3), 2, 1, groups=32, channels=(32, 64), batch=1, name="depthwise 3x3, stride 2, two a channel"),
    Case((28, 28), (3, 3), padding=1, groups=32, channels=(128, 128), name="32 groups, 2 x 28 x 28 x 128"),
    Case((224, 224), (7, 7), 2, 3, channels=(3, 32), batch=1, name="stem 7x7, stride 2, 224 x 224 x 3"),
    Case((64, 64), (4, 4), 4, channels=(3, 96), batch=4, name="patches 4x4, 4 x 64 x 64 x 3"),
    Case((8, 24, 24), (3, 3, 3), padding=1, channels=(16, 32), name="3x3x3, 2 x 8 x 24 x 24 x 16"),
    Case((2048,), (128,), padding="CAUSAL", channels=(16, 16), name="128 taps, 2 x 2048 x 16"),
    Case((2048,), (9,), padding="CAUSAL", kernel_dilation=4, channels=(32, 32), name="causal, dilated, 2 x 2048 x 32"),
    Case((33, 33), (3, 3), padding=12, kernel_dilation=12, channels=(64, 64), name="dilated by 12, 2 x 33 x 33 x 64"),
    Case((28, 28), (2, 2), padding=1, input_dilation=2, channels=(64, 32), name="up-convolution, 28 x 28 to 56 x 56"),
    Case((28, 28), (3, 3), padding=((4, 0), (0, 4)), channels=(64, 64), name="low padding above the window's reach"),
]  # fmt: skip


def close(got, want, terms):
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, **tolerance("float32", terms, want))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_convolutions(case):
    x, kernel, bias, g = case.draw("float32")

    @jax.jit
    def run(x, kernel, bias, g):
        y, pull = jax.vjp(functools.partial(jconv.conv, **case.options), x, kernel, bias)
        return y, *pull(g)

    y, dx, dkernel, dbias = jax.device_get(run(x, kernel, bias, g))
    taps, places = math.prod(case.window), g.size // g.shape[-1]
    close(y, case.conv(x, kernel, bias), taps * case.channels[0] // case.groups + 1)
    close(dx, case.input_grad(g, kernel), taps * case.channels[1] // case.groups)
    close(dkernel, case.kernel_grad(x, g), places)
    close(dbias, case.bias_grad(g), places)


# The convolution that is transposed: its g is the layer's input, its x is the layer's result.
TRANSPOSED = [
    Case((56, 56), (2, 2), 2, channels=(128, 256), batch=1, name="2x2, stride 2, 28 x 28 x 256 to 56 x 56 x 128"),
    Case((32, 32), (4, 4), 2, 1, channels=(64, 128), batch=1, name="4x4, stride 2, 16 x 16 x 128 to 32 x 32 x 64"),
    Case((64, 64), (3, 3), 2, "SAME", groups=64, channels=(64, 64), name="depthwise 3x3, stride 2, 2 x 32 x 32 x 64"),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolutions(case):
    u, kernel, _, y = case.draw("float32")
    bias = np.ones(case.channels[0], np.float32)

    @jax.jit
    def run(y, kernel, bias, u):
        x, pull = jax.vjp(functools.partial(jconv.conv_transpose, **case.transposed), y, kernel, bias)
        return x, *pull(u)

    x, dy, dkernel, dbias = jax.device_get(run(y, kernel, bias, u))
    taps = math.prod(case.window)
    close(x, case.conv_transpose(y, kernel, bias), taps * case.channels[1] // case.groups + 1)
    close(dy, case.conv(u, kernel), taps * case.channels[0] // case.groups)
    close(dkernel, case.kernel_grad(u, y), y.size // y.shape[-1])
    close(dbias, case.bias_grad(u), u.size // u.shape[-1])


POOLS = [
    Pool((112, 112), (3, 3), 2, 1, channels=64, batch=1, name="3x3, stride 2, 112 x 112 x 64"),
    Pool((112, 112), (2, 2), 2, channels=64, name="2x2, 2 x 112 x 112 x 64"),
    Pool((57, 49), (3, 5), (2, 3), ((1, 1), (2, 1)), channels=33, batch=3, name="3x5, 3 x 57 x 49 x 33"),
    Pool((16, 32, 32), (2, 2, 2), 2, channels=16, name="2x2x2, 2 x 16 x 32 x 32 x 16"),
    Pool((4096,), (32,), 1, ((16, 15),), channels=8, name="32 elements, stride 1, 2 x 4096 x 8"),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_poolings(case):
    """Max pooling routes exactly as the oracle does; what several windows send to one element is summed."""
    x, g = case.draw("float32", whole=False), case.draw("float32", 1, case.y_shape, whole=False)

    @jax.jit
    def run(x, g):
        _, indices = jconv.max_pool(x, **case.options, return_indices=True)
        results = [indices]
        for f in (jconv.max_pool, jconv.avg_pool):
            y, pull = jax.vjp(functools.partial(f, **case.options), x)
            results += [y, *pull(g)]
        return results

    indices, largest, dlargest, mean, dmean = jax.device_get(run(x, g))
    want, places = reference.max_pool(x, **case.options, return_indices=True)
    np.testing.assert_array_equal(indices, places)
    np.testing.assert_array_equal(largest, want)
    close(dlargest, reference.max_pool_grad(x, g, **case.options), case.terms)
    close(mean, reference.avg_pool(x, **case.options), case.terms)
    close(dmean, reference.avg_pool_grad(g, x.shape, **case.options), case.terms)
