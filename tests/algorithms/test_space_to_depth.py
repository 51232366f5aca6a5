"""A strided kernel gradient of blocks as channels is the same one, without a step along the last axis."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import space_to_depth
from jconv.geometry import Axis, Geometry

BLOCKS = {"kernel_grad": "space_to_depth"}


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 24, 3), (8, 3, 4), {"strides": 4}),  # no padding, and blocks that the window fills
        ((2, 25, 3), (7, 3, 2), {"strides": 3, "padding": ((4, 1),)}),
        ((1, 23, 2), (3, 2, 5), {"strides": 2, "padding": ((1, -3),)}),
        ((2, 13, 4), (8, 4, 2), {"strides": 7, "padding": ((3, 4),)}),
        ((2, 9, 14, 3), (3, 5, 3, 4), {"strides": (1, 2), "padding": 1}),
        ((2, 9, 14, 3), (2, 4, 3, 4), {"strides": (3, 2), "padding": "SAME", "kernel_dilation": (2, 1)}),
        ((1, 4, 5, 12, 2), (2, 1, 6, 2, 3), {"strides": (2, 1, 3)}),
    ],
)
def test_it_is_the_same(shape, kernel, options):
    """On whole numbers exactly; the convolution of the program neither steps nor is dilated along the last axis."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    y = jax.eval_shape(lambda x, k: jconv.conv(x, k, **options), x, np.zeros(kernel, np.float32))
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm=BLOCKS, **options))
    pads = options.get("padding", 0)
    low = [(0, 0), (1, 1)] if pads == "SAME" else pads  # 9 by threes of reach 3, 14 by twos of 4
    want = reference.conv_kernel_grad(x, g, kernel, **{**options, "padding": low})
    np.testing.assert_array_equal(f(x, g), want)
    text = f.lower(x, g).as_text()
    for steps in re.findall(r"(?:stride|rhs_dilate|lhs_dilate) = \[(.*?)\]", text):
        assert steps.split(", ")[-1] == "1", steps


def test_where_it_applies():
    axis = Axis(input=8, window=3, output=3, stride=2)
    assert space_to_depth.applies(Geometry((axis,)))
    assert space_to_depth.waste(Geometry((axis,))) == pytest.approx(4 / 3)
    assert not space_to_depth.applies(Geometry((axis,), groups=2))
    assert not space_to_depth.applies(Geometry((axis, Axis(input=8, window=3, output=6))))
    assert not space_to_depth.applies(Geometry((Axis(input=8, window=2, output=4, stride=2),)))  # see matmul
    assert not space_to_depth.applies(Geometry((Axis(input=9, window=3, output=3, stride=2, dilation=2),)))
    with pytest.raises(ValueError, match="space_to_depth"):
        jconv.conv_kernel_grad(np.zeros((1, 9, 2)), np.zeros((1, 7, 2)), (3, 2, 2), algorithm=BLOCKS)


@pytest.mark.parametrize(
    ("x", "kernel", "strides", "want"),
    [
        ((4, 32000, 1), (80, 1, 128), 4, "space_to_depth"),
        ((1, 1024, 128), (25, 128, 256), 4, "space_to_depth"),
        ((2, 9600, 32), (4, 32, 64), 2, "space_to_depth"),
        ((1, 3000, 384), (3, 384, 384), 2, "shifts"),  # a third more to compute
        ((8, 1024, 64), (7, 64, 64), 2, "lax"),
        ((2, 4096, 64), (9, 64, 64), 4, "lax"),
        ((2, 16000, 1), (10, 1, 512), 5, "patches"),
        ((2, 9600, 32), (4, 32, 64), 4, "matmul"),
    ],
)
def test_where_it_is_chosen(x, kernel, strides, want):
    shape = lambda dims: jax.ShapeDtypeStruct(dims, "float32")
    assert jconv.explain(shape(x), shape(kernel), strides=strides, platform="cpu")["kernel_grad"].algorithm == want
