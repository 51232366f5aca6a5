"""Groups as lanes: long sums in pieces, images a few at a time, and no convolution, copy by group or zero in the program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import lanes


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize(("space", "passes"), [((3, 5), 3), ((11, 5), 11), ((37, 5), 37), ((16, 33), 48)])
def test_passes_of_a_kernel_gradient(space, passes):
    """One loop up to SUMMED passes, or where their number is a prime; else a loop of loops. Whole numbers: exact."""
    x, g, kernel = drawn(1, *space, 8), drawn(1, *space, 16, seed=1), (3, 3, 2, 16)
    f = lambda x, g: jconv.conv_kernel_grad(
        x, g, kernel, padding=1, feature_group_count=4, algorithm={"kernel_grad": "lanes"}
    )
    text = jax.jit(f).lower(x, g).as_text()
    nested = passes > lanes.SUMMED and any(passes % n == 0 for n in range(2, lanes.SUMMED + 1))
    assert text.count("stablehlo.while") == 1 + nested
    assert "stablehlo.convolution" not in text
    np.testing.assert_array_equal(
        jax.jit(f)(x, g), reference.conv_kernel_grad(x, g, kernel, padding=1, feature_group_count=4)
    )


def test_images_a_few_at_a_time(monkeypatch):
    x, kernel = drawn(6, 5, 4, 16), drawn(2, 3, 4, 32, seed=1)
    monkeypatch.setattr(lanes, "CHUNK_BYTES", 4 * 5 * 4 * (16 + 32) * 3)
    jax.clear_caches()
    f = lambda x, k: jconv.conv(x, k, padding="SAME", feature_group_count=4, algorithm={"forward": "lanes"})
    lowered = jax.jit(f).lower(x, kernel)
    assert "-> tensor<3x5x4x16xf32>" in lowered.as_text()  # three images at a time
    assert "stablehlo.while" in lowered.as_text()
    want = reference.conv(x, kernel, padding=((0, 1), (1, 1)), feature_group_count=4)
    np.testing.assert_array_equal(lowered.compile()(x, kernel), want)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("window", "each", "kernel_bytes", "passes"),
    [
        (5, 4, 1 << 16, 1),
        (41, 4, 1 << 16, 3),  # 14 taps each, one of zeros
        (41, 4, 4 * 4 * 4 * 16, 11),  # as much of the kernel as four taps are
        (7, 32, 1 << 16, 7),  # two taps of so many channels would be 64 multiply-adds, and one tap of zeros
    ],
)
def test_runs_of_taps(window, each, kernel_bytes, passes, monkeypatch):
    """A pass over the result for as many taps as can be written out, and as a core's first cache holds: exact."""
    monkeypatch.setattr(lanes, "KERNEL_BYTES", kernel_bytes)
    jax.clear_caches()
    x, kernel = drawn(2, 3, 90, 4 * each), drawn(1, window, each, 16, seed=1)
    options = {"strides": (1, 2), "padding": ((0, 0), (3, 1)), "kernel_dilation": (1, 2), "feature_group_count": 4}
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "lanes"}, **options))
    (loop,) = re.findall(r"stablehlo\.while.*?stablehlo\.compare", f.lower(x, kernel).as_text(), re.DOTALL)
    assert f"dense<{passes}> : tensor<i32>" in loop
    np.testing.assert_array_equal(f(x, kernel), reference.conv(x, kernel, **options))
    jax.clear_caches()


@pytest.mark.parametrize(
    ("groups", "each", "depth", "want"),
    [
        (32, 4, 4, ("lanes", "lanes", "lanes")),
        (32, 8, 8, ("lanes", "lanes", "lanes")),
        (32, 16, 16, ("grouped", "lanes", "grouped")),
        (12, 16, 16, ("lanes", "lanes", "lanes")),  # 192 channels
        (16, 24, 24, ("lanes", "lanes", "lanes")),
        (12, 32, 32, ("grouped", "lanes", "grouped")),
        (8, 8, 32, ("grouped", "lanes", "grouped")),
        (4, 64, 64, ("grouped", "grouped", "grouped")),
        (2, 16, 16, ("grouped", "grouped", "grouped")),  # few groups
        (16, 6, 6, ("grouped", "grouped", "grouped")),  # no vector
    ],
)
def test_where_it_is_chosen(groups, each, depth, want):
    x = jax.ShapeDtypeStruct((2, 14, 14, groups * each), "float32")
    kernel = jax.ShapeDtypeStruct((3, 3, each, groups * depth), "float32")
    found = jconv.explain(x, kernel, padding=1, feature_group_count=groups, platform="cpu")
    assert tuple(choice.algorithm for choice in found.choices) == want


@pytest.mark.optimised
def test_loops_are_of_static_places():
    """An index that changes inside of a loop keeps XLA:CPU from making it one of vectors: it stands in a copy's."""
    x, k = jnp.zeros((1, 14, 14, 128)), jnp.zeros((3, 3, 8, 128))
    loss = lambda k: jconv.conv(x, k, padding=1, feature_group_count=16).sum()
    program = jax.jit(jax.grad(loss)).lower(k).compile().as_text()
    fused = program.split("\n\n")
    sums = [each for each in fused if each.count("multiply(") >= 8]
    assert sums and not any("dynamic-slice(" in each for each in sums)
