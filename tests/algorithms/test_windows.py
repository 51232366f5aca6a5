"""Moving data: a batch a few images at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jconv.algorithms import windows


@pytest.mark.parametrize("images", [1, 2, 6, None])
def test_by_images(images):
    """Each part lands in its place; a bias is added to it there, so that no second array of its size is held."""
    x, b = np.random.default_rng(0).standard_normal((6, 64, 32)).astype(np.float32), np.ones(33, np.float32)
    w = np.random.default_rng(1).standard_normal((32, 33)).astype(np.float32)
    f = jax.jit(lambda x, b: windows.by_images(lambda x: jnp.tanh(x @ w), x, images) + b)
    compiled = f.lower(x, b).compile()
    np.testing.assert_allclose(compiled(x, b), np.tanh(x @ w) + b, atol=2e-5)
    if images in (1, 2):  # lax.map's parts, reshaped, take 1.4 times the result
        assert compiled.memory_analysis().temp_size_in_bytes < 0.8 * 4 * 6 * 64 * 33
