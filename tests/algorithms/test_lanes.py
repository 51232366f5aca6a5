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
    loops = re.findall(r"stablehlo\.while.*?stablehlo\.compare", f.lower(x, kernel).as_text(), re.DOTALL)
    assert len(loops) == (passes > 1)
    assert all(f"dense<{passes}> : tensor<i32>" in loop for loop in loops)
    np.testing.assert_array_equal(f(x, kernel), reference.conv(x, kernel, **options))
    jax.clear_caches()


@pytest.mark.parametrize(
    ("groups", "kernel_bytes", "blocks"),
    [
        (6, 6 * 8 * 8 * 4, 1),
        (6, 3 * 8 * 8 * 4, 2),
        (6, 3 * 8 * 8 * 4 - 1, 3),  # a divisor of the groups
        (6, 1, 6),  # not even one group's
        (7, 4 * 8 * 8 * 4, 7),
    ],
)
@pytest.mark.parametrize("batch", [3, 1])
def test_blocks_of_groups(groups, kernel_bytes, blocks, batch, monkeypatch):
    """As many groups at a time as have a tap's kernel in a core's first cache: exact, and a loop over the blocks."""
    monkeypatch.setattr(lanes, "KERNEL_BYTES", kernel_bytes)
    jax.clear_caches()
    x, kernel = drawn(batch, 6, 7, 8 * groups), drawn(4, 5, 8, 8 * groups, seed=1)
    options = {"strides": (1, 2), "padding": ((1, 0), (2, 1)), "feature_group_count": groups}
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "lanes"}, **options))
    bounds = re.findall(
        r"dense<(\d+)> : tensor<i32>\s*\n\s*%\S+ = stablehlo\.compare\s+LT", f.lower(x, kernel).as_text()
    )
    assert bounds[:-1] == [str(blocks)] * (blocks > 1)  # and last, inside, the passes
    np.testing.assert_array_equal(f(x, kernel), reference.conv(x, kernel, **options))
    jax.clear_caches()


@pytest.mark.parametrize(
    ("groups", "each", "depth", "want"),
    [
        (32, 4, 4, ("lanes", "lanes", "lanes")),
        (32, 8, 8, ("lanes", "lanes", "lanes")),
        (32, 16, 16, ("lanes", "lanes", "lanes")),
        (16, 24, 24, ("lanes", "lanes", "lanes")),
        (12, 32, 32, ("lanes", "lanes", "grouped")),
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


@pytest.mark.parametrize(
    ("each", "depth", "channels", "passes"),
    [
        (4, 4, 128, 0),  # 36 multiply-adds
        (8, 4, 128, 0),  # 72, of half vectors
        (8, 8, 128, 1),  # the same of whole ones, in three passes
        (4, 8, 1024, 1),  # 288 KiB of kernel
    ],
)
def test_windows_written_out(each, depth, channels, passes):
    """All taps in one loop, where they are few and so is their kernel; else a loop over rows of taps."""
    groups = channels // each
    x, kernel = drawn(1, 5, 6, channels), drawn(3, 3, each, groups * depth, seed=1)
    options = {"strides": (1, 2), "padding": 1, "feature_group_count": groups}
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "lanes"}, **options))
    assert f.lower(x, kernel).as_text().count("stablehlo.while") == passes
    np.testing.assert_array_equal(f(x, kernel), reference.conv(x, kernel, **options))


@pytest.mark.optimised
def test_each_slice_is_of_one_term():
    """XLA:CPU makes no vector of a sum that shares a slice, or with what jax does for starts that may be negative."""
    x, g = jnp.zeros((2, 14, 14, 128)), jnp.zeros((2, 14, 14, 128))
    f = lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 8, 128), padding=1, feature_group_count=16)
    lowered = jax.jit(f).lower(x, g)
    assert "stablehlo.select" not in lowered.as_text()
    sums = [each for each in lowered.compile().as_text().split("\n\n") if each.count(" multiply(") >= 7]
    slices = [(each, name) for each in sums for name in re.findall(r"(%\S+) = \S+ dynamic-slice\(", each)]
    assert slices
    assert all(len(re.findall(re.escape(name) + r"(?![\w.])", each)) == 2 for each, name in slices)  # made, and used
