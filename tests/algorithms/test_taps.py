"""Depthwise windows of more taps than one program writes out: the loop over rows of taps is one of vectors."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import taps

LAYERS = [  # x, kernel, options; the taps of each are more than UNROLLED
    ((2, 12, 11, 3), (9, 9, 1, 3), {"padding": 4}),
    ((1, 9, 8, 4), (9, 8, 1, 8), {"padding": 3, "strides": 2}),
    ((1, 19, 23, 2), (8, 9, 1, 2), {"kernel_dilation": (1, 2), "strides": (2, 1)}),
    ((1, 5, 6, 7, 2), (5, 4, 5, 1, 2), {"padding": 2}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_many_taps_are_the_same(shape, kernel, options):
    options = {"feature_group_count": shape[-1], **options}
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    assert np.prod(kernel[:-2]) > taps.UNROLLED
    np.testing.assert_array_equal(
        jconv.conv(x, k, algorithm={"forward": "taps"}, **options), reference.conv(x, k, **options)
    )


@pytest.mark.optimised
def test_no_index_stands_in_the_sum():
    """XLA:CPU makes no vector of a loop that reads from a place that changes: a tenth of the speed."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = jax.jit(lambda x, k: jconv.conv(x, k, padding=4, feature_group_count=60))
    text = form.lower(shape(4, 28, 28, 60), shape(9, 9, 1, 60)).compile().as_text()
    loops = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    sums = [loop for loop in loops if "multiply(" in loop and "f32" in loop and "add(" in loop and "slice(" in loop]
    assert sums and not any("dynamic-slice(" in loop for loop in sums)
