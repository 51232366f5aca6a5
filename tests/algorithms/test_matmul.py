"""The kernel gradient of a 1x1 layer, summed up in parts of its places where the sum is small."""

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import windows


@pytest.mark.parametrize(("out", "parts"), [(3, 14), (300, None)])  # of 84 places; a sum of 480 KB is not added to
def test_in_parts(monkeypatch, out, parts):
    rng = np.random.default_rng(0)
    shapes = (3, 4, 7, 400 if parts is None else 5), (3, 4, 7, out)
    x, g = (rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes)
    shape = (1, 1, x.shape[-1], out)
    form = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, shape, algorithm={"kernel_grad": "matmul"}))
    monkeypatch.setattr(windows, "PART_FLOPS", 1.0)
    jax.clear_caches()
    text = form.lower(x, g).as_text()
    assert ("while" in text) == (parts is not None)
    assert parts is None or f"tensor<{parts}x{84 // parts}x" in text
    np.testing.assert_array_equal(form(x, g), reference.conv_kernel_grad(x, g, shape))  # whole numbers: exact
    jax.clear_caches()
