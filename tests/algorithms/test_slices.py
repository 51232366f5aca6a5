"""A 3-D kernel gradient of few channels, summed up in parts of its places."""

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import windows


@pytest.mark.parametrize(("depth", "parts"), [(6, 6), (7, 7), (34, 2)])  # the largest divisor of the places, to 16
def test_in_parts(monkeypatch, depth, parts):
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, (1, depth, 5, 4, c)).astype(np.float32) for c in (2, 3))
    form = lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 3, 2, 3), padding=1, algorithm={"kernel_grad": "slices"})
    want = reference.conv_kernel_grad(x, g, (3, 3, 3, 2, 3), padding=1)
    assert "while" not in jax.jit(form).lower(x, g).as_text()  # too small to be worth a loop
    monkeypatch.setattr(windows, "PART_FLOPS", 1.0)
    jax.clear_caches()
    lowered = jax.jit(form).lower(x, g)
    assert f"tensor<{parts}x{depth // parts}x" in lowered.as_text()
    assert "while" in lowered.as_text()
    np.testing.assert_array_equal(lowered.compile()(x, g), want)  # whole numbers: exact in any order
    jax.clear_caches()
