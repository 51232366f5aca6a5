"""A dilated window as dense ones over the images that interleave: the same result, and where it is chosen."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference

LAYERS = [  # x, kernel, options
    ((2, 7, 8, 3), (3, 3, 3, 4), {"padding": 2, "kernel_dilation": 2}),
    ((1, 9, 7, 3), (3, 2, 3, 4), {"padding": ((5, 1), (0, 4)), "kernel_dilation": (3, 4)}),
    ((2, 5, 6, 3), (3, 3, 3, 2), {"padding": ((7, 7), (1, 0)), "kernel_dilation": (7, 1)}),  # taps outside alone
    ((2, 9, 8, 3), (3, 3, 3, 2), {"kernel_dilation": (2, 3), "strides": (1, 1)}),
    ((2, 9, 8, 3), (3, 1, 3, 2), {"kernel_dilation": (4, 1), "strides": (1, 2)}),  # a step along the other axis
    ((2, 9, 8, 4), (2, 2, 2, 6), {"kernel_dilation": 2, "feature_group_count": 2}),
    ((3, 11, 2), (4, 2, 3), {"padding": ((6, 0),), "kernel_dilation": 2}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_it_is_the_same(shape, kernel, options):
    """On whole numbers exactly; every convolution of the program is dense."""
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    want = reference.conv(x, k, **options)
    g = rng.integers(-3, 4, want.shape).astype(np.float32)
    every = {"forward": "interleaved", "kernel_grad": "interleaved"}
    conv = jax.jit(lambda x, k: jconv.conv(x, k, algorithm=every, **options))
    grad = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm=every, **options))
    np.testing.assert_array_equal(conv(x, k), want)
    np.testing.assert_array_equal(grad(x, g), reference.conv_kernel_grad(x, g, kernel, **options))
    dilations = re.findall(r"rhs_dilate = \[(.*?)\]", conv.lower(x, k).as_text())
    assert set("".join(dilations)) <= set("1, ")


def test_where_it_is_chosen():
    """Where Winograd computes the dense images in less time than others the dilated ones, and for few channels."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")

    def chosen(x, k, dilation):
        found = jconv.explain(shape(*x), shape(*k), padding=dilation, kernel_dilation=dilation, platform="cpu")
        return [choice.algorithm for choice in found.choices]

    assert chosen((2, 28, 28, 256), (3, 3, 256, 256), 2) == ["interleaved"] * 3
    assert chosen((8, 64, 64, 21), (3, 3, 21, 21), 2) == ["interleaved", "two_sided", "interleaved"]
    assert "interleaved" not in chosen((1, 17, 17, 2048), (3, 3, 2048, 256), 12)  # most taps are outside
    assert "interleaved" not in chosen((1, 19, 19, 512), (3, 3, 512, 1024), 6)  # images of 4 x 4 are mostly filled up
    assert "interleaved" not in chosen((8, 64, 64, 42), (3, 3, 42, 42), 8)


def test_what_applies():
    with pytest.raises(ValueError, match="interleaved"):
        jconv.conv(
            np.zeros((1, 9, 9, 2)), np.zeros((3, 3, 2, 2)), strides=2, kernel_dilation=2, algorithm="interleaved"
        )
    with pytest.raises(ValueError, match="interleaved"):
        jconv.conv(np.zeros((1, 9, 9, 2)), np.zeros((3, 3, 2, 2)), algorithm="interleaved")
