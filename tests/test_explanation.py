"""explain: what it says of each product, with conv's own arguments and errors. tests/comparison/test_command.py holds it
against what the lowering picks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv.algorithms import choose
from jconv.explanation import explain_layer


def shape(*lengths, dtype="float32"):
    return jax.ShapeDtypeStruct(lengths, jnp.dtype(dtype))


X, K = shape(8, 56, 56, 64), shape(3, 3, 64, 32)


def test_the_three_products():
    told = jconv.explain(X, K, padding=1, platform="cpu")
    assert [choice.name for choice in told.choices] == ["forward", "kernel gradient", "input gradient"]
    for choice, product in zip(told.choices, choose.PRODUCTS):
        assert told[product] is told[choice.name] is choice
        assert choice.flops == 2 * 8 * 56 * 56 * 9 * 64 * 32
        assert (choice.algorithm, choice.reason) in [(row.name, row.reason) for row in choose.TABLE]
        assert choice.algorithm not in dict(choice.others)
        assert set(dict(choice.others)) <= set(choose.NAMES)
    with pytest.raises(KeyError):
        told["backward"]


def test_arrays_and_structs_are_the_same():
    x, k = np.ones((1, 9, 9, 4), np.float32), jnp.ones((3, 3, 1, 4))
    told = jconv.explain(x, k, jnp.ones(4), feature_group_count=4)
    assert told.choices == jconv.explain(shape(1, 9, 9, 4), shape(3, 3, 1, 4), feature_group_count=4).choices


def test_every_option_of_conv_counts():
    first = jconv.explain(shape(8, 64, 56, 56), shape(64, 64, 1, 1), data_format="channels_first", platform="cpu")
    assert first["forward"].algorithm == "matmul"
    assert jconv.explain(X, K, algorithm="lax")["forward"].reason == "algorithm='lax' was asked for"
    assert jconv.explain(X, K, platform="gpu")["forward"].algorithm == "lax"
    assert "vendor" in jconv.explain(X, K, platform="tpu")["forward"].reason
    strided = jconv.explain(X, K, strides=2, platform="cpu")["input_grad"]
    assert "phases" in (strided.algorithm, *dict(strided.others))


def test_errors_are_conv_s():
    with pytest.raises(ValueError, match="conv: feature_group_count=3 must divide"):
        jconv.explain(X, K, feature_group_count=3)
    with pytest.raises(ValueError, match="algorithm='matmul' does not apply"):
        jconv.explain(X, K, algorithm="matmul")
    with pytest.raises(ValueError, match="must call one convolution of jconv, it calls 2"):
        explain_layer(lambda x, k: jconv.conv(jconv.conv(x, k), k), shape(1, 9, 9, 4), shape(3, 3, 4, 4))


def test_an_empty_batch():
    assert jconv.explain(shape(0, 9, 9, 4), shape(1, 1, 4, 4))["forward"].algorithm == "lax"


def test_text():
    lines = str(jconv.explain(X, K, padding=1, strides=(1, 2), platform="cpu")).splitlines()
    assert lines[0] == "conv 8x56x56x64 -> 32 k3x3 s1x2, float32, on cpu"
    assert lines[1].split() == ["product", "algorithm", "Mflop", "why"]
    assert [line.split()[0] for line in lines[2::2]] == ["forward", "kernel", "input"]
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    ("x", "kernel", "options", "want"),
    [
        ((64, 28, 28, 1), (5, 5, 1, 6), {"padding": 2}, ("taps", "patches", "columns")),
        ((64, 32, 32, 3), (5, 5, 3, 6), {"padding": 2}, ("slices", "two_sided", "columns")),
        ((8, 64, 64, 3), (3, 3, 3, 32), {"padding": 1, "strides": 2}, ("taps", "two_sided", "columns")),
        ((2, 64, 64, 3), (3, 3, 3, 32), {"padding": 1, "strides": 2}, ("lax", "lax", "columns")),
        ((1, 224, 224, 3), (7, 7, 3, 64), {"padding": 3, "strides": 2}, ("lax", "lax", "columns")),
        ((1, 572, 572, 1), (3, 3, 1, 64), {}, ("taps", "patches", "columns")),
        ((64, 84, 84, 4), (8, 8, 4, 16), {"strides": 4}, ("lax", "two_sided", "subpixel")),
        ((8, 112, 112, 3), (3, 3, 3, 16), {"strides": 2, "padding": 1}, ("taps", "two_sided", "subpixel")),
        ((8, 112, 112, 3), (4, 4, 3, 24), {"strides": 2, "padding": 1}, ("taps", "space_to_depth", "subpixel")),
        ((64, 64, 64, 3), (4, 4, 3, 64), {"strides": 2, "padding": 1}, ("lax", "space_to_depth", "columns")),
        ((4, 128, 128, 4), (7, 7, 4, 64), {"strides": 2, "padding": 3}, ("slices", "slices", "columns")),
        ((1, 224, 224, 3), (3, 3, 3, 64), {"padding": 1}, ("taps", "lax", "columns")),
        ((2, 224, 224, 3), (3, 3, 3, 64), {"padding": 1}, ("taps", "slices", "columns")),
        ((64, 20, 20, 16), (4, 4, 16, 32), {"strides": 2}, ("lax", "shifts", "subpixel")),
        ((1, 148, 148, 48), (4, 4, 48, 48), {"strides": 4}, ("slices", "slices", "spread")),
        ((8, 64, 64, 3), (1, 1, 3, 64), {}, ("lax", "matmul", "matmul")),
        ((1, 1024, 128), (25, 128, 256), {"strides": 4, "padding": ((10, 11),)}, ("lax", "space_to_depth", "columns")),
        ((4, 1024, 128), (25, 128, 256), {"strides": 4, "padding": ((10, 11),)}, ("lax", "space_to_depth", "phases")),
        ((2, 64, 64, 32), (3, 3, 32, 32), {"padding": 8, "kernel_dilation": 8}, ("lax",) * 3),
        ((2, 64, 64, 32), (3, 3, 32, 32), {"padding": 16, "kernel_dilation": 16}, ("lax",) * 3),
        ((2, 64, 64, 128), (3, 3, 128, 128), {"padding": 4, "kernel_dilation": 4}, ("interleaved",) * 3),
        (
            (8, 64, 64, 21),
            (3, 3, 21, 21),
            {"padding": 16, "kernel_dilation": 16},
            ("interleaved", "two_sided", "interleaved"),
        ),
        (  # one more place, and the images that interleave would be half as large again
            (4, 65, 65, 21),
            (3, 3, 21, 21),
            {"padding": 16, "kernel_dilation": 16},
            ("abreast", "two_sided", "abreast"),
        ),
        ((4, 41, 41, 24), (3, 3, 24, 24), {"padding": 4, "kernel_dilation": 4}, ("lax", "two_sided", "lax")),
        (
            (4, 48, 48, 24),
            (3, 3, 24, 64),
            {"padding": 4, "kernel_dilation": 4},
            ("interleaved", "patches", "interleaved"),
        ),
        (
            (2, 64, 64, 128),
            (3, 1, 128, 128),
            {"padding": ((8, 8), (0, 0)), "kernel_dilation": (8, 1)},
            ("abreast", "shifts", "abreast"),
        ),
        ((8, 28, 28, 32), (5, 5, 32, 96), {"padding": 2}, ("abreast", "slices", "abreast")),
        ((16, 14, 14, 32), (5, 5, 32, 128), {"padding": 2}, ("abreast", "slices", "abreast")),
        ((8, 27, 27, 96), (5, 5, 96, 256), {"padding": 2}, ("lax", "slices", "slices")),
        ((128, 16, 16, 32), (3, 3, 32, 32), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((1, 128, 128, 64), (4, 4, 64, 128), {"strides": 2, "padding": 1}, ("lax", "space_to_depth", "subpixel")),
        ((16, 32, 32, 64), (4, 4, 64, 128), {"strides": 2, "padding": 1}, ("lax", "space_to_depth", "subpixel")),
        ((4, 56, 56, 64), (3, 3, 64, 128), {"strides": 2, "padding": 1}, ("slices", "two_sided", "phases")),
        ((1, 56, 56, 64), (3, 3, 64, 128), {"strides": 2, "padding": 1}, ("lax", "two_sided", "phases")),
        ((4, 56, 56, 32), (3, 3, 32, 32), {"strides": 2, "padding": 1}, ("lax", "two_sided", "phases")),
        ((2, 256, 256, 24), (8, 8, 24, 24), {"strides": 4, "padding": 2}, ("lax", "two_sided", "subpixel")),
        ((2, 128, 128, 20), (7, 7, 20, 40), {"strides": 2, "padding": 3}, ("abreast", "space_to_depth", "subpixel")),
        ((1, 128, 128, 21), (4, 4, 21, 21), {"strides": 2, "padding": 1}, ("abreast", "slices", "subpixel")),
        ((4, 256, 256, 6), (4, 4, 6, 64), {"strides": 2, "padding": 1}, ("lax", "space_to_depth", "columns")),
        ((2, 224, 224, 6), (7, 7, 6, 64), {"strides": 2, "padding": 3}, ("slices", "patches", "columns")),
        ((4, 16, 16, 256), (5, 5, 256, 256), {"padding": 2}, ("shifts", "slices", "shifts")),
        (
            (1, 33, 33, 512),
            (3, 3, 512, 512),
            {"padding": 2, "kernel_dilation": 2},
            ("interleaved", "shifts", "interleaved"),
        ),
        ((2, 28, 28, 512), (3, 3, 512, 512), {"padding": 2, "kernel_dilation": 2}, ("interleaved",) * 3),
        ((2, 64, 64, 64, 1), (3, 3, 3, 1, 32), {"padding": 1}, ("taps", "slices", "columns")),
        ((1, 64, 96, 96, 32), (3, 3, 3, 32, 3), {"padding": 1}, ("columns", "slices", "slices")),
        ((1, 512, 512, 21), (16, 16, 21, 21), {"strides": 8, "padding": 4}, ("slices", "two_sided", "subpixel")),
        ((8, 224, 224, 3), (11, 11, 3, 64), {"strides": 4, "padding": 2}, ("lax", "slices", "subpixel")),
        ((2, 96, 96, 64), (9, 9, 64, 3), {"padding": 4}, ("lax", "exchange", "slices")),
        ((2, 96, 96, 64), (7, 7, 64, 3), {"padding": 3}, ("lax", "exchange", "slices")),
        ((1, 50, 50, 256), (3, 3, 256, 9), {"padding": 1}, ("columns", "exchange", "slices")),
        ((2, 64, 64, 4), (3, 3, 4, 320), {"padding": 1}, ("slices", "patches", "columns")),
        ((128, 32, 32, 16), (3, 3, 16, 16), {"padding": 1}, ("lax", "two_sided", "lax")),
        ((8, 55, 55, 16), (3, 3, 16, 64), {"padding": 1}, ("slices", "lax", "lax")),
        ((8, 55, 55, 64), (3, 3, 64, 16), {"padding": 1}, ("lax", "two_sided", "slices")),
        ((4, 19, 19, 1024), (3, 3, 1024, 24), {"padding": 1}, ("columns", "exchange", "lax")),
        ((8, 28, 28, 128), (3, 3, 128, 12), {"padding": 1}, ("columns", "exchange", "slices")),
        ((4, 28, 28, 160), (3, 3, 160, 20), {"padding": 1}, ("abreast", "exchange", "slices")),
        ((1, 33, 33, 1024), (3, 3, 1024, 256), {"padding": 6, "kernel_dilation": 6}, ("shifts", "lax", "shifts")),
        ((32, 28, 28, 32), (3, 3, 32, 64), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((2, 28, 28, 32), (3, 3, 32, 64), {"padding": 1}, ("lax",) * 3),  # few rows abreast; a g that stays in cache
        ((8, 56, 56, 32), (3, 3, 32, 32), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((2, 14, 14, 48), (5, 5, 48, 128), {"padding": 2}, ("lax", "slices", "lax")),  # a large kernel: on both cores
        ((1, 28, 28, 32), (5, 5, 32, 64), {"padding": 2}, ("lax", "slices", "lax")),  # beside the others, of one image
        ((4, 28, 28, 16), (5, 5, 16, 32), {"padding": 2}, ("lax", "lax", "lax")),
        ((16, 56, 56, 128), (3, 3, 128, 32), {"padding": 1}, ("abreast", "winograd", "abreast")),  # DenseNet's
        ((4, 14, 14, 128), (3, 3, 128, 32), {"padding": 1}, ("lax", "lax", "lax")),
        ((4, 56, 56, 128), (3, 3, 128, 48), {"padding": 1}, ("winograd", "winograd", "abreast")),
        ((8, 56, 56, 64), (5, 5, 64, 32), {"padding": 2}, ("abreast", "exchange", "abreast")),
        ((2, 7, 7, 1024), (3, 3, 32, 1024), {"padding": 1, "feature_group_count": 32}, ("lanes", "lanes", "grouped")),
        ((8, 17, 17, 128), (1, 7, 128, 128), {"padding": ((0, 0), (3, 3))}, ("slices", "slices", "slices")),
        ((8, 28, 28, 128), (3, 3, 128, 32), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((1, 8, 14, 14, 112), (3, 3, 3, 1, 112), {"padding": 1, "feature_group_count": 112}, ("taps",) * 3),
        ((1, 2, 7, 7, 512), (3, 3, 3, 512, 512), {"padding": 1}, ("shifts",) * 3),
        ((8, 32, 32, 32, 1), (5, 5, 5, 1, 32), {"strides": 2}, ("patches", "slices", "columns")),
        ((1, 16, 112, 112, 3), (7, 7, 7, 3, 64), {"padding": 3, "strides": 2}, ("slices", "slices", "subpixel")),
        ((1, 12, 13, 13, 256), (3, 3, 3, 256, 256), {}, ("slices", "slices", "shifts")),
        ((1, 8, 28, 28, 256), (3, 3, 3, 256, 256), {"padding": 1}, ("slices",) * 3),
        ((8, 512, 256), (5, 32, 256), {"padding": 2, "feature_group_count": 8}, ("lax", "lanes", "lax")),
        ((8, 512, 128), (5, 32, 256), {"padding": 2, "strides": 2, "feature_group_count": 4}, ("lax", "lax", "phases")),
        ((8, 512, 256), (5, 16, 256), {"padding": 2, "feature_group_count": 16}, ("lanes",) * 3),
        ((1, 499, 768), (31, 48, 768), {"padding": 15, "feature_group_count": 16}, ("grouped",) * 3),
        (
            (4, 8192, 64),
            (41, 16, 256),
            {"padding": 20, "strides": 4, "feature_group_count": 4},
            ("grouped", "grouped", "grouped"),
        ),
        (
            (4, 4096, 64),
            (41, 4, 256),
            {"padding": 20, "strides": 4, "feature_group_count": 16},
            ("lanes", "lanes", "grouped"),
        ),
        ((4, 1024, 256), (4, 8, 256), {"strides": 2, "feature_group_count": 32}, ("lanes", "lanes", "phases")),
        ((2, 16000, 1), (10, 1, 512), {"strides": 5}, ("taps", "patches", "lax")),
        ((32, 1000, 12), (16, 12, 64), {"padding": "SAME"}, ("lax", "lax", "columns")),
        ((8, 1024, 64), (3, 64, 64), {"padding": "CAUSAL", "kernel_dilation": 8}, ("lax", "lax", "lax")),
        ((8, 14, 14, 256), (3, 3, 256, 512), {"padding": 1, "strides": 2}, ("lax", "slices", "columns")),
        (
            (2, 64, 128, 128),
            (1, 3, 128, 128),
            {"padding": ((0, 0), (8, 8)), "kernel_dilation": (1, 8)},
            ("slices", "lax", "slices"),
        ),
        ((2, 14, 14, 4), (3, 3, 4, 64), {"padding": 1}, ("lax", "patches", "lax")),
        ((1, 16, 16, 3), (5, 5, 3, 64), {"padding": 2}, ("lax", "lax", "lax")),
        ((4, 16, 16, 64), (3, 3, 64, 96), {"strides": 2, "padding": 1}, ("lax", "shifts", "phases")),
        ((4, 56, 56, 8), (3, 3, 8, 96), {"strides": 2}, ("lax", "two_sided", "columns")),
        ((64, 28, 28, 24), (3, 3, 24, 128), {"strides": 2, "padding": 1}, ("lax", "shifts", "columns")),
        ((32, 32, 32, 24), (3, 3, 24, 32), {"strides": 2, "padding": 1}, ("lax", "shifts", "subpixel")),
        ((16, 16, 16, 64), (4, 4, 64, 64), {"strides": 4}, ("lax", "slices", "spread")),
        ((4, 64, 64, 96), (3, 3, 96, 128), {"strides": 2, "padding": 1}, ("lax", "shifts", "phases")),
        ((16, 16, 16, 192), (3, 3, 192, 32), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((64, 35, 35, 4), (5, 5, 4, 16), {"padding": 2}, ("lax", "two_sided", "columns")),  # four channels are a vector
        ((128, 14, 14, 6), (7, 7, 6, 16), {"padding": 3}, ("lax", "two_sided", "lax")),
        ((8, 10, 10, 128), (3, 3, 128, 256), {"strides": 2, "padding": 1}, ("lax", "slices", "columns")),
        ((8, 56, 56, 32), (2, 2, 32, 32), {"strides": 2}, ("matmul", "matmul", "spread")),
        ((4, 256, 256, 1), (7, 7, 1, 8), {"padding": 3}, ("taps", "slices", "columns")),
        ((64, 28, 28, 1), (7, 7, 1, 32), {"padding": 3}, ("lax", "slices", "columns")),
        ((8, 112, 112, 24), (3, 3, 24, 32), {}, ("edged", "two_sided", "abreast")),
        (
            (4, 64, 64, 48),
            (3, 3, 48, 48),
            {"padding": 4, "kernel_dilation": 4},
            ("interleaved", "two_sided", "interleaved"),
        ),
        ((4, 64, 64, 64), (3, 3, 64, 64), {"padding": 4, "kernel_dilation": 4}, ("abreast", "two_sided", "abreast")),
        (
            (4, 64, 64, 32),
            (3, 3, 32, 32),
            {"padding": 8, "kernel_dilation": 8},
            ("interleaved", "two_sided", "interleaved"),
        ),
        (
            (1, 65, 65, 64),
            (3, 3, 64, 64),
            {"padding": 4, "kernel_dilation": 4},
            ("lax", "lax", "lax"),
        ),  # beside each other
        ((8, 56, 56, 64), (3, 3, 64, 64), {"padding": 1}, ("abreast", "winograd", "abreast")),
        ((8, 56, 56, 128), (3, 3, 128, 128), {"padding": 1}, ("winograd", "winograd", "winograd")),
        ((2, 96, 96, 64), (3, 3, 64, 64), {"padding": 1}, ("lax", "winograd", "lax")),  # rows for both cores
        (
            (2, 56, 56, 64),
            (3, 3, 64, 64),
            {"padding": 1},
            ("winograd", "lax", "lax"),
        ),  # the gradients beside each other
        ((1, 14, 14, 256), (3, 3, 256, 256), {"padding": 1}, ("lax", "lax", "lax")),
        ((1, 64, 64, 1), (5, 5, 1, 64), {"padding": 2}, ("lax", "patches", "columns")),
        ((2, 104, 104, 64), (3, 3, 64, 128), {"strides": 2, "padding": 1}, ("lax", "two_sided", "phases")),
        ((1, 256, 256, 64), (3, 3, 64, 3), {"padding": 1}, ("columns", "two_sided", "taps")),  # exchanged, one long sum
        ((2, 256, 256, 64), (3, 3, 64, 3), {"padding": 1}, ("columns", "exchange", "taps")),
    ],
)
def test_few_channels_and_what_is_like_them(x, kernel, options, want):
    """What was measured on such layers: python -m experiments.algorithms."""
    chosen = jconv.explain(shape(*x), shape(*kernel), platform="cpu", **options)
    assert tuple(choice.algorithm for choice in chosen.choices) == want


@pytest.mark.parametrize(
    ("x", "kernel", "options", "want"),
    [
        ((1, 4, 4, 6), (3, 3, 6, 16), {"padding": 1}, "slices"),  # 9 copies, or products, are as many calls
        ((1, 8, 8, 1), (3, 3, 1, 6), {"padding": 1}, "slices"),
        ((1, 8, 8, 16), (3, 3, 16, 16), {"padding": 1}, "patches"),
        ((1, 14, 14, 6), (5, 5, 6, 16), {}, "slices"),  # 25 copies
        ((4, 8, 8, 16), (3, 3, 16, 16), {"padding": 1}, "patches"),  # images, and rows, too few for lax
        ((4, 8, 8, 32), (3, 3, 32, 32), {"padding": 1}, "lax"),
        ((16, 4, 4, 6), (3, 3, 6, 16), {"padding": 1}, "lax"),
        ((16, 32, 32, 3), (3, 3, 3, 16), {"padding": 1}, "slices"),  # lax gathers three channels one by one
        ((16, 32, 32, 32), (5, 5, 32, 1), {"padding": 2}, "exchange"),
        ((4, 4, 4, 128), (3, 3, 128, 128), {"padding": 1}, "shifts"),  # most taps see the padding
    ],
)
def test_small_kernel_gradients(x, kernel, options, want):
    """Where calls and copies take longer than the sum: python -m experiments.bench --extras."""
    chosen = jconv.explain(shape(*x), shape(*kernel), platform="cpu", **options)
    assert chosen["kernel_grad"].algorithm == want


@pytest.mark.parametrize(
    ("x", "kernel", "options", "want"),
    [
        ((4, 1500, 384), (3, 384, 384), {"strides": 2, "padding": 1}, ("shifts", "shifts", "columns")),
        ((2, 16000, 1), (80, 1, 128), {"strides": 4}, ("patches", "patches", "columns")),
        ((8, 17, 17, 128), (1, 7, 128, 128), {"padding": ((0, 0), (3, 3))}, ("lax", "lax", "lax")),
        ((128, 32, 32, 16), (3, 3, 16, 16), {"padding": 1}, ("lax", "two_sided", "lax")),
        ((1, 32, 32, 256), (4, 4, 256, 512), {"padding": 1}, ("lax", "lax", "shifts")),
        ((4, 32, 32, 64), (6, 6, 64, 32), {"padding": 3}, ("columns", "two_sided", "lax")),
    ],
)
def test_float64(x, kernel, options, want):
    """lax computes one axis element by element, and a plane that grows: what was measured with --dtype float64."""
    with jax.enable_x64(True):
        operands = shape(*x, dtype="float64"), shape(*kernel, dtype="float64")
        chosen = jconv.explain(*operands, platform="cpu", **options)
    assert tuple(choice.algorithm for choice in chosen.choices) == want


@pytest.mark.parametrize("groups", [32, 4])
def test_complex_groups_are_not_left_to_lax(groups):
    chosen = jconv.explain(
        shape(4, 28, 28, 32, dtype="complex64"),
        shape(3, 3, 32 // groups, 32, dtype="complex64"),
        feature_group_count=groups,
        platform="cpu",
    )
    assert {choice.algorithm for choice in chosen.choices} == {"taps" if groups == 32 else "lanes"}


@pytest.mark.parametrize(("batch", "size", "want"), [(4, 4, "columns"), (8, 4, "phases"), (8, 3, "columns")])
def test_gradients_of_steps_with_a_large_kernel(batch, size, want):
    """A generator's layer: 256 places under a large kernel are a product and a fold, 512 are not if phases are alike."""
    x, kernel = shape(batch, 16, 16, 128), shape(size, size, 128, 256)
    chosen = jconv.explain(x, kernel, strides=2, padding="SAME", platform="cpu")
    assert chosen["input_grad"].algorithm == want


@pytest.mark.parametrize(
    ("x", "kernel", "options", "want"),
    [
        ((2, 6, 6, 4), (1, 1, 4, 8), {}, "lax"),  # three thin products of real numbers, which are lax's
        ((2, 6, 6, 64), (1, 1, 64, 32), {}, "matmul"),
    ],
)
def test_of_a_complex_product_the_real_ones_are_told(x, kernel, options, want, monkeypatch):
    operands = shape(*x, dtype="complex64"), shape(*kernel, dtype="complex64")
    told = jconv.explain(*operands, platform="cpu", **options)["forward"]
    assert (told.algorithm, told.reason.endswith("three products of real numbers make the complex one")) == (want, True)
    on_other = jconv.explain(*operands, platform="tpu", **options)["forward"]
    assert "real" not in on_other.reason
    picked, pick = [], choose.pick

    def recording(problem, algorithm="auto", platform="cpu"):
        row = pick(problem, algorithm, platform)
        picked.append((jnp.dtype(problem.dtype).name, row.name))
        return row

    monkeypatch.setattr(choose, "pick", recording)
    jax.clear_caches()
    jax.jit(lambda x, k: jconv.conv(x, k, **options)).trace(*operands).lower(lowering_platforms=("cpu",))
    assert picked[-1] == ("float32", want)


def test_a_complex_sum_of_taps_is_told_as_it_is():
    told = jconv.explain(
        shape(2, 9, 9, 8, dtype="complex64"),
        shape(3, 3, 1, 8, dtype="complex64"),
        feature_group_count=8,
        platform="cpu",
    )
    assert {choice.algorithm for choice in told.choices} == {"taps"}
    assert not any("real" in choice.reason for choice in told.choices)


@pytest.mark.parametrize(("batch", "size", "channels"), [(2, 56, 64), (8, 56, 64), (1, 14, 256), (8, 28, 128)])
def test_where_a_kernel_lies_changes_no_choice(batch, size, channels):
    """Both gradients of a small layer are lax's in NCHW too, whose forward kernels lie as turned ones do."""
    kernel = (3, 3, channels, channels)
    last = jconv.explain(shape(batch, size, size, channels), shape(*kernel), padding=1, platform="cpu")
    first = jconv.explain(
        shape(batch, channels, size, size),
        shape(*kernel[::-1]),
        padding=1,
        data_format="channels_first",
        platform="cpu",
    )
    assert [choice.algorithm for choice in first.choices] == [choice.algorithm for choice in last.choices]
