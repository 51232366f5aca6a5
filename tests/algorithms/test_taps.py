"""Depthwise windows of more taps than one program writes out, and batches of more images than are padded at once."""

import functools
import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import phases, taps

LAYERS = [  # x, kernel, options; the taps of each are more than UNROLLED
    ((2, 12, 11, 3), (9, 9, 1, 3), {"padding": 4}),
    ((1, 9, 8, 4), (9, 8, 1, 8), {"padding": 3, "strides": 2}),
    ((1, 19, 23, 2), (8, 9, 1, 2), {"kernel_dilation": (1, 2), "strides": (2, 1)}),
    ((1, 5, 6, 7, 2), (5, 4, 5, 1, 2), {"padding": 2}),
    ((2, 90, 3), (75, 1, 3), {"padding": ((37, 37),)}),
    ((1, 300, 2), (131, 1, 4), {"kernel_dilation": 2, "strides": 3}),
    ((2, 3, 99, 2), (2, 70, 1, 2), {"padding": ((0, 1), (69, 0))}),
]
OF_GROUPS = ((2, 40, 12), (30, 3, 4), {"feature_group_count": 4, "padding": ((29, 0),)})  # taps * channels


@pytest.mark.parametrize(("shape", "kernel", "options"), [*LAYERS, OF_GROUPS])
def test_many_taps_are_the_same(shape, kernel, options):
    options = {"feature_group_count": shape[-1], **options}
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    assert np.prod(kernel[:-1]) > taps.UNROLLED
    form = functools.partial(jconv.conv, algorithm={"forward": "taps", "kernel_grad": "taps"}, **options)
    y, backward = jax.vjp(form, x, k)
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    dx, dk = backward(g)
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, kernel, **options))
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, shape, **options))


IMAGES = [  # x, kernel, options
    ((6, 7, 5, 4), (3, 3, 1, 4), {"padding": 1}),
    ((6, 8, 9, 4), (3, 5, 1, 8), {"padding": ((0, 1), (2, 1)), "strides": 2}),
    ((4, 9, 9, 3), (9, 9, 1, 3), {"padding": 4}),
    ((6, 30, 4), (5, 1, 4), {"padding": ((8, 0),), "kernel_dilation": 2}),
    ((4, 5, 6, 6), (3, 3, 2, 3), {"padding": 1}),
]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("shape", "kernel", "options"), IMAGES)
def test_a_few_images_at_a_time(monkeypatch, shape, kernel, options, images):
    """All three products: exact, of whole numbers."""
    options = {"feature_group_count": shape[-1] // kernel[-2], **options}
    padded = 4 * images * int(np.prod(shape[1:])) * 4  # at least
    for module in (taps, phases):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
        monkeypatch.setattr(module, "FEW_BYTES", padded)
    monkeypatch.setattr(taps, "CHUNK_BYTES", padded)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    y, backward = jax.vjp(functools.partial(jconv.conv, **options), x, k)
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    dx, dk = backward(g)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, kernel, **options))
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, shape, **options))
    jax.clear_caches()


@pytest.mark.optimised
@pytest.mark.parametrize("strides", [1, 2])
def test_many_images_are_not_held_twice(strides):
    """Neither a padded copy of x and of g, nor zeros that two loops share, nor all phases: 4 MB, not twice 51."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = functools.partial(jconv.conv, strides=strides, padding=1, feature_group_count=32)

    def step(x, k, g):
        y, backward = jax.vjp(form, x, k)
        return y, *backward(g)

    places = 112 // strides
    operands = shape(32, 112, 112, 32), shape(3, 3, 1, 32), shape(32, places, places, 32)
    assert jax.jit(step).lower(*operands).compile().memory_analysis().temp_size_in_bytes < 16 << 20


@pytest.mark.parametrize(
    ("counts", "several"),
    [
        ([4, 28, 1], [1, 7, 1]),
        ([4, 29, 1], [4, 1, 1]),  # images that divide before rows that do not
        ([1, 29, 4], [1, 1, 4]),  # runs of a row, too
        ([1, 29, 1], [1, 8, 1]),  # 32 rows, three of which are zeros
        ([3, 6, 8, 29, 1], [1, 1, 8, 1, 1]),
    ],
)
def test_what_one_step_of_a_kernel_gradient_takes(counts, several):
    assert taps._taken_at_once(counts, 8) == several


@pytest.mark.optimised
@pytest.mark.parametrize("size", [56, 57])
def test_an_odd_image_takes_no_copy_more(size):
    """Beside x with its padding, which the forward product has anyway."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 1, 144), strides=2, padding=1, feature_group_count=144)
    compiled = jax.jit(form).lower(shape(4, size, size, 144), shape(4, *[(size + 1) // 2] * 2, 144)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * 4 * 4 * (size + 2) ** 2 * 144


@pytest.mark.optimised
def test_no_index_stands_in_the_sum():
    """XLA:CPU makes no vector of a loop that reads from a place that changes: a tenth of the speed."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = jax.jit(lambda x, k: jconv.conv(x, k, padding=4, feature_group_count=60))
    text = form.lower(shape(4, 28, 28, 60), shape(9, 9, 1, 60)).compile().as_text()
    loops = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    sums = [loop for loop in loops if "multiply(" in loop and "f32" in loop and "add(" in loop and "slice(" in loop]
    assert sums and not any("dynamic-slice(" in loop for loop in sums)


@pytest.mark.parametrize(("window", "products"), [((3, 3), 8 * 3), ((7, 7), 8 * 7), ((1, 13), 4 * 13), ((1, 64), 64)])
def test_size_of_a_kernel_gradients_program(window, products):
    """For each tap of the last axis up to IN_STEP rows are written out, and no more of both than UNROLLED."""
    x = np.zeros((2, 16, 80, 8), np.float32)
    f = lambda x: jconv.conv_kernel_grad(x, x, (*window, 1, 8), padding="SAME", feature_group_count=8)
    found = re.findall(r"stablehlo\.multiply.*x8xf32>", jax.jit(f).lower(x).as_text())
    assert len(found) == products <= taps.UNROLLED


@pytest.mark.parametrize(
    ("space", "strides"), [((13, 21), 1), ((19, 43), 2), ((3, 8, 35), 1), ((101,), 1), ((107,), 3)]
)
def test_rows_and_runs_that_do_not_divide(monkeypatch, space, strides):
    """Places beyond the last are zeros of g: exact on whole numbers, where rows and runs of a row are in uneven parts."""
    monkeypatch.setattr(taps, "SUM_BYTES", 256)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    options = {"padding": 1, "strides": strides, "feature_group_count": 4}
    kernel = (*(3 for _ in space), 1, 4)
    output = [(n - 1) // strides + 1 for n in space]
    x, g = (rng.integers(-3, 4, (2, *size, 4)).astype(np.float32) for size in (space, output))
    found = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "taps"}, **options))(
        x, g
    )
    np.testing.assert_array_equal(found, reference.conv_kernel_grad(x, g, kernel, **options))
    jax.clear_caches()
