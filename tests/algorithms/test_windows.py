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


@pytest.mark.parametrize("images", [1, 2, 4, 5, 6, None])  # of 4 and 5 the last part has some again
def test_by_images(images):
    """Each part lands in its place; a bias is added to it there, so that no second array of its size is held."""
    x, b = np.random.default_rng(0).standard_normal((6, 64, 32)).astype(np.float32), np.ones(33, np.float32)
    w = np.random.default_rng(1).standard_normal((32, 33)).astype(np.float32)
    f = jax.jit(lambda x, b: windows.by_images(lambda x: jnp.tanh(x @ w), x, images) + b)
    compiled = f.lower(x, b).compile()
    np.testing.assert_allclose(compiled(x, b), np.tanh(x @ w) + b, atol=2e-5)
    if images in (1, 2):  # lax.map's parts, reshaped, take 1.4 times the result
        assert compiled.memory_analysis().temp_size_in_bytes < 0.8 * 4 * 6 * 64 * 33


@pytest.mark.parametrize(
    ("batch", "most", "images"),
    [(12, 12, None), (12, 5, 4), (12, 1, 1), (13, 6, 3), (14, 6, 3), (7, 3, 2), (13, 2, 1), (1, 1, None)],
)
def test_images_in_turn(batch, most, images):
    """The largest divisor where it is half of the most; else the part that leaves the fewest to compute again."""
    assert windows.images_in_turn(batch, 10, 10 * most + 9 if batch > most else 10 * most) == images


@pytest.mark.parametrize(("length", "size"), [(6, 2), (7, 3), (7, 5), (5, 5)])
def test_parts_that_overlap_are_summed_once(length, size):
    x = np.random.default_rng(0).integers(-3, 4, (2, length, 3)).astype(np.float32)

    def add(index, total):
        part = windows.take_along(x, windows.start_of(index, size, length), size, axis=1)
        return total + windows.fresh(part, index, size, length, axis=1).sum(1)

    total = jax.lax.fori_loop(0, -(-length // size), add, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(total, x.sum(1))


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
