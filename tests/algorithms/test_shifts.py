"""One product a tap: taps that fall on as many places of the input are one loop, which compiles and holds one of them."""

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import shifts

LAYERS = [  # x, kernel, options
    ((2, 7, 6, 5), (3, 3, 5, 4), {"padding": 1}),
    ((1, 9, 8, 3), (3, 2, 3, 6), {"padding": ((4, 0), (0, 3)), "kernel_dilation": (3, 1)}),
    ((2, 9, 7, 4), (3, 3, 4, 2), {"padding": 2, "strides": 2}),
    ((1, 5, 5, 4), (3, 3, 4, 4), {"padding": 7, "kernel_dilation": 7}),  # the middle tap alone is inside
    ((1, 3, 4, 5, 2), (3, 3, 3, 2, 3), {"padding": 1}),
    ((3, 11, 4), (5, 4, 3), {"padding": ((0, 2),)}),
]


@pytest.mark.parametrize("stacked", [0, 1 << 30])
@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_the_products_are_exact_of_whole_numbers(monkeypatch, shape, kernel, options, stacked):
    """Forward, and kernel gradients stacked or written where they belong; input gradients where they have no stride."""
    monkeypatch.setattr(shifts, "STACKED_BYTES", stacked)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    y = reference.conv(x, w, **options)
    np.testing.assert_array_equal(jconv.conv(x, w, algorithm={"forward": "shifts"}, **options), y)
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    dw = jconv.conv_kernel_grad(x, g, w.shape, algorithm={"kernel_grad": "shifts"}, **options)
    np.testing.assert_array_equal(dw, reference.conv_kernel_grad(x, g, w.shape, **options))
    if "strides" not in options:
        dx = jconv.conv_input_grad(g, w, x.shape, algorithm={"input_grad": "shifts"}, **options)
        np.testing.assert_array_equal(dx, reference.conv_input_grad(g, w, x.shape, **options))
    jax.clear_caches()


def test_taps_alike_are_one_loop():
    """27 taps of a volume fall on 8 numbers of places; 9 of a plane on 4."""
    geometries = {(1, 4, 5, 6, 8): 8, (1, 5, 6, 8): 4}
    for shape, groups in geometries.items():
        x, w = np.zeros(shape, np.float32), np.zeros((*(3 for _ in shape[1:-1]), 8, 16), np.float32)
        form = lambda x, w: jconv.conv(x, w, padding=1, algorithm={"forward": "shifts"})
        text = jax.jit(form).lower(x, w).as_text()
        assert text.count("stablehlo.dot_general") == groups


@pytest.mark.optimised
def test_one_taps_kernel_is_held():
    """Of 27 x 256 x 256 floats, 7.1 MB, a product holds one tap's and the images under it; so does an input gradient."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    x, w = shape(2, 2, 7, 7, 256), shape(3, 3, 3, 256, 256)
    forms = [
        (jax.jit(lambda x, w: jconv.conv(x, w, padding=1, algorithm={"forward": "shifts"})), x),
        (jax.jit(lambda g, w: jconv.conv_input_grad(g, w, x.shape, padding=1, algorithm={"input_grad": "shifts"})), x),
    ]
    for form, operand in forms:
        assert form.lower(operand, w).compile().memory_analysis().temp_size_in_bytes < 2 << 20
