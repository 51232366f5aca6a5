"""Planes of a 3-D layer: a few of a window's at a time, and kernel gradients summed up in parts of their places."""

import math

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import slices, windows


@pytest.mark.parametrize(("depth", "parts"), [(6, 6), (7, 7), (34, 2)])  # the largest divisor of the places, to 16
def test_in_parts(monkeypatch, depth, parts):
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, (1, depth, 5, 4, c)).astype(np.float32) for c in (2, 3))
    form = lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 3, 2, 3), padding=1, algorithm={"kernel_grad": "slices"})
    want = reference.conv_kernel_grad(x, g, (3, 3, 3, 2, 3), padding=1)
    assert "while" not in jax.jit(form).lower(x, g).as_text()  # too small to be worth a loop
    monkeypatch.setattr(windows, "PART_FLOPS_OF_VOLUME", 1.0)
    jax.clear_caches()
    lowered = jax.jit(form).lower(x, g)
    assert f"tensor<{parts}x{depth // parts}x" in lowered.as_text()
    assert "while" in lowered.as_text()
    np.testing.assert_array_equal(lowered.compile()(x, g), want)  # whole numbers: exact in any order
    jax.clear_caches()


def test_a_volumes_long_sum_is_added_up_in_pieces():
    """A first layer's 2,744 places in one sum were 4 times as far from float64 as lax's; a plane's is lax's own form."""
    loops = lambda x, kernel: (
        jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, strides=2, algorithm={"kernel_grad": "slices"}))
        .lower(*(jax.ShapeDtypeStruct((1, *shape), "float32") for shape in x))
        .as_text()
        .count("stablehlo.while")
    )
    assert loops([(32, 32, 32, 1), (14, 14, 14, 32)], (5, 5, 5, 1, 32)) == 1
    assert loops([(363, 64, 1), (180, 30, 32)], (5, 5, 1, 32)) == 0


VOLUMES = [  # x, kernel, options
    ((2, 6, 5, 4, 3), (3, 3, 3, 3, 4), {"padding": 1}),
    ((1, 9, 5, 4, 3), (2, 3, 2, 3, 4), {"padding": ((1, 0), (0, 1), (0, 0)), "strides": (2, 1, 1)}),
    ((2, 11, 4, 4, 2), (3, 2, 2, 2, 3), {"padding": ((2, 3), (0, 1), (1, 0)), "kernel_dilation": (2, 1, 1)}),
    ((2, 6, 4, 4, 4), (3, 2, 2, 2, 6), {"padding": ((1, 1), (0, 0), (0, 0)), "feature_group_count": 2}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), VOLUMES)
@pytest.mark.parametrize("at_once", [1, 2, 3, 6])
@pytest.mark.parametrize("few", [True, False])  # channels, taken block after block where they are many bytes
def test_block_after_block(monkeypatch, shape, kernel, options, at_once, few):
    """Planes under a window's taps are channels of one plane, `at_once` windows at a time; whole numbers: exact."""
    monkeypatch.setattr(slices, "JOINED_BYTES", at_once * 4 * kernel[0] * math.prod(shape[2:]))
    monkeypatch.setattr(slices, "KERNELS", 0)
    monkeypatch.setattr(slices, "MOSTLY_INSIDE", 0.0)
    monkeypatch.setattr(slices, "SIDE_BY_SIDE", 1000 if few else 0)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    drawn = lambda *shape: rng.integers(-3, 4, shape).astype(np.float32)
    x, k = drawn(*shape), drawn(*kernel)
    want = reference.conv(x, k, **options)
    g = drawn(*want.shape)
    conv = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "slices"}, **options))
    grad = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "slices"}, **options))
    np.testing.assert_array_equal(conv(x, k), want)
    np.testing.assert_array_equal(grad(x, g), reference.conv_kernel_grad(x, g, kernel, **options))
    depth = want.shape[1]
    block = 2 if (depth, at_once) == (5, 3) else max(n for n in range(1, depth + 1) if depth % n == 0 and n <= at_once)
    planes = f"tensor<{block}x{shape[2]}x{shape[3]}x{kernel[0] * shape[-1]}xf32>"
    if not few or shape[0] * depth > 2 * at_once:
        assert planes in conv.lower(x, k).as_text()
        assert planes in grad.lower(x, g).as_text()
    jax.clear_caches()


@pytest.mark.parametrize("alike", [True, False])  # one loop over the taps, or each spelled out
@pytest.mark.parametrize(("shape", "kernel", "options"), VOLUMES[:3])
def test_a_turned_kernel_a_tap_at_a_time(monkeypatch, shape, kernel, options, alike):
    """An input gradient takes each tap from the kernel as it is stored; whole numbers: exact."""
    monkeypatch.setattr(slices, "SIDE_BY_SIDE", 0)
    monkeypatch.setattr(slices, "MOSTLY_INSIDE", 2.0)
    monkeypatch.setattr(slices, "ALIKE_INSIDE", 0.0 if alike else 2.0)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    options = {**options, "strides": 1}
    k = rng.integers(-3, 4, kernel).astype(np.float32)
    g = rng.integers(-3, 4, jax.eval_shape(lambda x: jconv.conv(x, k, **options), np.zeros(shape, "f")).shape)
    form = jax.jit(lambda g, k: jconv.conv_input_grad(g, k, shape, algorithm={"input_grad": "slices"}, **options))
    g = g.astype(np.float32)
    np.testing.assert_array_equal(form(g, k), reference.conv_input_grad(g, k, shape, **options))
    jax.clear_caches()
