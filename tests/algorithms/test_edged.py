"""A plane with a row of zeros before it: the same products, with padding in the convolution that lax computes."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import edged
from jconv.geometry import Axis, Geometry

LAYERS = [  # x, kernel, options
    ((3, 6, 7, 2), (3, 3, 2, 4), {}),
    ((2, 9, 8, 3), (3, 2, 3, 2), {"strides": (2, 3)}),
    ((2, 10, 9, 2), (3, 4, 2, 3), {"strides": (2, 1), "kernel_dilation": (2, 2)}),
    ((2, 8, 7, 2), (3, 3, 2, 3), {"padding": ((-1, 0), (0, -2)), "strides": 2}),
    ((2, 5, 6, 3), (1, 2, 3, 4), {}),
    ((2, 5, 6, 3), (5, 6, 3, 4), {}),  # one place
    ((2, 7, 7, 2), (2, 2, 2, 3), {"strides": 4}),  # what stands between two windows meets none
]


def padding(f, *args):
    """What XLA is told of the padding of each convolution."""
    text = jax.jit(f).lower(*args).as_text()
    return [re.findall(r"-?\d+", pads) for pads in re.findall(r"stablehlo\.convolution.*?pad = \[(\[.*?\])\]", text)]


@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_it_is_the_same(shape, kernel, options):
    """On whole numbers exactly: y and the kernel's gradient."""
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (shape, kernel))
    want = reference.conv(x, k, **options)
    g = rng.integers(-3, 4, want.shape).astype(np.float32)
    f = lambda x, k: jconv.conv(x, k, algorithm={"forward": "edged", "kernel_grad": "edged"}, **options)
    y, back = jax.vjp(jax.jit(f), x, k)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(back(g)[1], reference.conv_kernel_grad(x, g, kernel, **options))


def test_one_row_is_padded():
    """The forward pass has a row of zeros, of one step, before the first; a kernel gradient along its longer window."""
    x, k, g = np.zeros((2, 9, 9, 3), np.float32), np.zeros((3, 5, 3, 4), np.float32), np.zeros((2, 4, 3, 4), np.float32)
    f = lambda x, k: jconv.conv(x, k, strides=2, algorithm={"forward": "edged", "kernel_grad": "edged"})
    assert padding(f, x, k) == [["2", "0", "0", "0"]]
    assert padding(lambda k: jax.vjp(lambda k: f(x, k), k)[1](g)[0], k)[-1] == ["0", "0", "1", "0"]


def test_where_it_applies():
    valid, same, up = Axis(9, 3, 7), Axis(9, 3, 9, low=1), Axis(9, 3, 15, input_dilation=2)
    assert edged.applies(Geometry((valid, valid)))
    assert edged.applies(Geometry((step := Axis(9, 3, 4, stride=2), step)))
    for axes in ((valid, same), (same, valid), (valid,), (valid, valid, valid), (valid, up)):
        assert not edged.applies(Geometry(axes)), axes
    assert not edged.applies(Geometry((valid, valid), groups=3))
    assert not edged.applies(Geometry((Axis(9, 1, 9),) * 2))


@pytest.mark.parametrize(
    ("batch", "length", "channels", "out", "want"),
    [
        (8, 112, 24, 32, True),
        (4, 64, 96, 12, True),
        (1, 28, 24, 32, False),  # half a megabyte of patches
        (32, 112, 8, 16, False),  # which the library computes where they are
        (32, 112, 4, 64, False),
        (None, 112, 24, 32, False),  # in an export
    ],
)
def test_where_it_pays(batch, length, channels, out, want):
    """Found by `python -m experiments.algorithms`."""
    axis = Axis(length, 3, length - 2)
    assert edged.pays(Geometry((axis, axis)), batch, channels, out) == want


def test_what_is_chosen():
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((4, 56, 56, 24), (7, 7, 24, 12)))
    forward = lambda **options: jconv.explain(x, kernel, **options)["forward"].algorithm
    assert forward(platform="cpu") == "edged"
    assert forward(platform="cpu", padding=3) != "edged"
    assert forward(platform="gpu") == "lax"
