"""All output phases of a dilated input as channels of one convolution: the same result, and where it is chosen."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import subpixel

LAYERS = [  # y, kernel, options of conv_transpose
    ((2, 3, 4, 3), (4, 4, 5, 3), {"strides": 2}),
    ((2, 3, 4, 3), (4, 4, 5, 3), {"strides": 2, "padding": 1}),
    ((1, 5, 3, 2), (7, 5, 3, 2), {"strides": (3, 4), "padding": ((2, 3), (4, 0))}),  # no multiples: taps of no element
    ((1, 3, 3, 2), (2, 3, 3, 2), {"strides": (4, 3), "output_padding": (2, 1)}),  # places that no tap meets
    ((2, 4, 5, 3), (3, 4, 2, 3), {"strides": (1, 2)}),  # an axis that is not dilated
    ((1, 2, 2, 1), (16, 16, 2, 1), {"strides": 8, "padding": 4}),
    ((3, 6, 2), (9, 4, 2), {"strides": 4, "padding": ((1, 2),), "output_padding": 3}),
    ((1, 2, 3, 2, 2), (3, 2, 2, 3, 2), {"strides": 2}),
    ((2, 3, 4, 6), (4, 5, 2, 6), {"strides": (2, 3), "feature_group_count": 3}),
    ((1, 2, 3, 3), (32, 20, 1, 3), {"strides": (16, 10), "padding": ((8, 8), (5, 5)), "feature_group_count": 3}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
@pytest.mark.parametrize("bytes_at_once", [1, subpixel.CHUNK_BYTES], ids=["image by image", "all images"])
def test_it_is_the_same(monkeypatch, shape, kernel, options, bytes_at_once):
    """On whole numbers exactly; one convolution a group, over no inserted zero."""
    monkeypatch.setattr(subpixel, "CHUNK_BYTES", bytes_at_once)
    rng = np.random.default_rng(0)
    g, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    how = {"input_grad": "subpixel"}
    form = jax.jit(lambda g, k: jconv.conv_transpose(g, k, algorithm=how, **options))
    np.testing.assert_array_equal(form(g, k), reference.conv_transpose(g, k, **options))
    text = form.lower(g, k).as_text()
    assert not re.search(r"lhs_dilate = \[[^\]]*[2-9]", text)
    found, groups = text.count("stablehlo.convolution"), options.get("feature_group_count", 1)
    if groups > 1:
        assert found in (0, groups)  # one a group, or multiply-adds where each is of one channel
    else:
        assert found <= (1 if len(shape) < 5 else 2)  # volumes: one a tap of the first axis


def test_where_it_is_chosen():
    """Where phases have few outputs or are very many, and nearly every tap of the joined windows is one of the kernel's."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")

    def chosen(x, k, strides, padding=0, groups=1):
        how = {"strides": strides, "padding": padding, "feature_group_count": groups, "platform": "cpu"}
        found = jconv.explain(shape(*x), shape(*k), **how)
        return found["input_grad"].algorithm

    assert chosen((1, 416, 416, 21), (64, 64, 21, 21), 32) == "subpixel"  # 1,024 phases
    assert chosen((64, 84, 84, 4), (8, 8, 4, 16), 4) == "subpixel"
    assert chosen((64, 20, 20, 16), (4, 4, 16, 32), 2) == "subpixel"
    assert chosen((16, 32, 32, 64), (4, 4, 64, 128), 2, 1) == "subpixel"  # as many products as are needed
    assert chosen((2, 32, 32, 64), (4, 4, 64, 128), 2, 1) == "phases"  # of so few places that one call less is nothing
    assert chosen((16, 32, 32, 64), (3, 3, 64, 128), 2, 1) == "phases"  # enough outputs each
    assert chosen((128, 32, 32, 16), (3, 3, 16, 32), 2, 1) == "phases"  # 16 products where 9 are needed
    assert chosen((4, 224, 224, 3), (7, 7, 3, 64), 2, 3) == "columns"  # 12 outputs are few too
    assert chosen((2, 16000, 1), (10, 1, 512), 5) != "subpixel"
    assert chosen((2, 16000, 1), (1024, 1, 514), 256) == "subpixel"
    assert chosen((1, 416, 416, 21), (64, 64, 1, 21), 32, groups=21) == "subpixel"  # FCN-32's bilinear up-sampling
    assert chosen((1, 264, 264, 21), (16, 16, 1, 21), 8, groups=21) == "phases"


def test_what_applies():
    x, k = np.zeros((1, 9, 9, 2), np.float32), np.zeros((3, 3, 2, 2), np.float32)
    for options in ({}, {"strides": 2, "kernel_dilation": 2}):
        with pytest.raises(ValueError, match="algorithm='subpixel' does not apply to the input_grad product"):
            jconv.conv(x, k, algorithm={"input_grad": "subpixel"}, **options)
