"""Few outputs: the columns of an image too large for a cache come in bands of its rows."""

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import columns, worth_input_grad
from jconv.algorithms.choose import Problem
from jconv.geometry import Axis, Geometry

LAYERS = [  # x, kernel, options
    ((2, 10, 7, 5), (3, 3, 5, 2), {"padding": 1}),
    ((1, 14, 6, 3), (5, 2, 3, 1), {"padding": ((4, 0), (0, 3))}),
    ((2, 12, 5, 4), (4, 3, 4, 3), {"input_dilation": (2, 3), "kernel_dilation": (3, 1), "padding": 2}),
    ((3, 30, 4), (6, 4, 2), {"padding": ((9, 0),), "kernel_dilation": 2}),
    ((1, 8, 5, 4, 2), (3, 2, 3, 2, 2), {"padding": 1, "input_dilation": (1, 2, 1)}),
    ((2, 13, 5, 4, 2), (3, 2, 3, 2, 2), {"padding": 1}),  # 13 rows come one by one
]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_bands_are_the_same(monkeypatch, shape, kernel, options, rows):
    """In bands of so many rows at most: exact, of whole numbers."""
    row = 4 * int(np.prod(kernel[:-2])) * kernel[-1] * int(np.prod(shape[2:-1]))
    monkeypatch.setattr(columns, "CHUNK_BYTES", rows * row)
    monkeypatch.setattr(columns, "IMAGE_BYTES", 0)
    assert columns.bands(shape[1], shape[1] * row) > 1
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    y = jconv.conv(x, k, algorithm={"forward": "columns"}, **options)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    jax.clear_caches()


def test_a_large_image_is_not_held_under_all_taps():
    """81 taps of three outputs at 128 x 128 places are 16 MB; a band of them and the result fit a cache."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = jax.jit(lambda x, k: jconv.conv(x, k, padding=4, algorithm={"forward": "columns"}))
    compiled = form.lower(shape(1, 128, 128, 16), shape(9, 9, 16, 3)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * columns.CHUNK_BYTES


@pytest.mark.parametrize("length", [32, 61])  # the latter has no parts alike but planes
def test_a_large_volume_comes_in_bands(length):
    """27 taps of an output at 61 x 64 x 64 places are 27 MB: neither they nor an image of x are held for a band."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = jax.jit(lambda g, w: jconv.conv_input_grad(g, w, (2, length, 64, 64, 1), padding=1))
    layer = shape(2, length, 64, 64, 1), shape(3, 3, 3, 1, 16)
    assert jconv.explain(*layer, padding=1)["input_grad"].algorithm == "columns"
    compiled = form.lower(shape(2, length, 64, 64, 16), layer[1]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * columns.CHUNK_BYTES


@pytest.mark.parametrize(
    ("channels", "out", "window", "wins"),
    [
        (320, 4, 3, True),
        (64, 6, 3, True),
        (32, 7, 3, True),
        (64, 8, 3, False),
        (32, 3, 9, False),
        (16, 3, 9, True),
        (64, 1, 5, True),
    ],
)
def test_the_cost_decides(channels, out, window, wins):
    """Outputs that fill no vector, or of many channels, are folded; large windows of middling channels are not."""
    axis = Axis(128, window, 128, low=window // 2)
    assert (
        worth_input_grad.folded_wins(Problem("convolve", 1, channels, out, Geometry((axis, axis)), np.dtype("float32")))
        == wins
    )


def test_long_folds_are_several_sums(monkeypatch):
    """The gradient for the one channel of a 9x9 layer: one sum of 81 shares is less exact than four side by side."""
    shape, kernel = (2, 33, 33, 1), (9, 9, 1, 64)
    rng = np.random.default_rng(0)
    g, k = (rng.standard_normal(s).astype(np.float32) for s in ((*shape[:-1], 64), kernel))
    want = reference.conv_input_grad(np.asarray(g, np.float64), np.asarray(k, np.float64), shape, padding=4)

    def error():
        jax.clear_caches()
        got = jconv.conv_input_grad(g, k, shape, padding=4, algorithm={"input_grad": "columns"})
        return np.sqrt(np.mean((np.asarray(got) - want) ** 2))

    several = error()
    monkeypatch.setattr(columns, "MOST_SUMS", 1)
    assert several < 0.8 * error()
    jax.clear_caches()
