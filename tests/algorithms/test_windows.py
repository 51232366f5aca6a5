"""Moving data: a batch a few images at a time, and a kernel that stays as it is stored."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
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


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("algorithm", "window", "strides"),
    [("matmul", 1, 1), ("spread", 2, 2), ("columns", 3, 1), ("shifts", 3, 1), ("winograd", 3, 1)],
)
def test_a_turned_kernel_is_multiplied_as_it_is_stored(algorithm, window, strides):
    """The program of an input gradient brings no kernel, and no tap of one, into another order."""
    rng, c, o = np.random.default_rng(0), 24, 40
    g, w = rng.integers(-2, 3, (2, 8, 8, o)).astype("f"), rng.integers(-2, 3, (window, window, c, o)).astype("f")
    how = {"strides": strides, "padding": 1 if window == 3 else 0}
    shape = (2, 8 * strides, 8 * strides, c)
    form = jax.jit(lambda g, w: jconv.conv_input_grad(g, w, shape, **how, algorithm={"input_grad": algorithm}))
    text = form.lower(g, w).compile().as_text()
    moved = re.findall(r"= f32\[([\d,]+)\]\S* (transpose|reverse)\(", text)
    sizes = {math.prod(map(int, dims.split(","))) for dims, _ in moved}
    assert not {w.size, c * o} & sizes, moved
    np.testing.assert_array_equal(form(g, w), reference.conv_input_grad(g, w, shape, **how))  # whole numbers: exact
