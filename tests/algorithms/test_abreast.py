"""Images side by side: no window sees two of them, every image's places come back in order, and how many they are."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import abreast
from jconv.geometry import Axis, Geometry

LAYERS = [  # x, kernel, options
    ((6, 5, 7, 3), (3, 3, 3, 4), {"padding": 1}),
    ((4, 5, 7, 3), (3, 5, 3, 4), {}),  # nothing is padded: the places of a pitch outnumber those of an image
    ((6, 4, 5, 2), (2, 4, 2, 3), {"padding": ((0, 1), (3, 0))}),
    ((6, 4, 5, 2), (2, 4, 2, 3), {"padding": ((0, 1), (0, 3))}),
    ((4, 6, 9, 2), (3, 3, 2, 3), {"padding": ((2, 2), (4, 3)), "kernel_dilation": (2, 3)}),
    ((6, 6, 9, 2), (3, 3, 2, 3), {"padding": ((1, 0), (2, 1)), "strides": (2, 4)}),
    ((4, 3, 5, 2), (1, 3, 2, 3), {"padding": ((0, 0), (4, 3))}),  # more places than the windows see elements
    ((4, 6, 9, 2), (1, 2, 2, 3), {"strides": (1, 5)}),  # what stands between two windows meets none
    ((4, 6, 9, 2), (2, 3, 2, 3), {"padding": ((0, 0), (-2, 1)), "strides": (1, 2)}),
]


@pytest.fixture
def smallest(monkeypatch):
    """Rows are wide enough as soon as two images stand side by side."""
    jax.clear_caches()
    monkeypatch.setattr(abreast, "ROW_FLOPS", 0.0)
    monkeypatch.setattr(abreast, "enough_places", lambda places, count: count > 1)
    yield monkeypatch
    jax.clear_caches()


@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
@pytest.mark.parametrize("count", [2, None])
def test_it_is_the_same(smallest, shape, kernel, options, count):
    """On whole numbers exactly, two at a time or all images in one row."""
    if count is None:
        smallest.setattr(abreast, "ROW_FLOPS", float("inf"))
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (shape, kernel))
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "abreast"}, **options))
    np.testing.assert_array_equal(f(x, k), reference.conv(x, k, **options))
    assert [images for images, *_ in convolved(f, x, k)] == [shape[0] // (count or shape[0])]


@pytest.mark.parametrize(
    ("batch", "size", "channels", "want"),
    [
        (8, 128, 42, 2),  # five would be a row of enough, and hold 27 MB: eight, the next divisor, 44
        (4, 256, 21, 1),  # 11 MB each
        (2, 512, 18, 2),  # one alone holds 38: nothing is saved
        (8, 28, 32, 8),
    ],
)
def test_what_they_hold(batch, size, channels, want):
    """Not so many that they, and their results, are mapped anew in each call."""
    axis = Axis(input=size, window=3, output=size, low=1)
    assert abreast.abreast(batch, Geometry((axis, axis)), channels, channels) == want


@pytest.mark.parametrize("cut", [2, 3])
@pytest.mark.parametrize(("shape", "kernel", "options"), [(s, k, o) for s, k, o in LAYERS if k[0] > 1])
def test_bands(smallest, shape, kernel, options, cut):
    """Each image cut in bands, all of them side by side: on whole numbers exactly."""
    rows = reference.conv(np.zeros(shape), np.zeros(kernel), **options).shape[1]
    height = -(-rows // cut)
    smallest.setattr(abreast, "bands", lambda batch, *_: -(-rows // height) if batch == shape[0] else 1)
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in (shape, kernel))
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "abreast"}, **options))
    np.testing.assert_array_equal(f(x, k), reference.conv(x, k, **options))
    reach = (kernel[0] - 1) * options.get("kernel_dilation", (1, 1))[0] + 1
    assert [band for _, band, *_ in convolved(f, x, k)] == [(height - 1) * options.get("strides", (1, 1))[0] + reach]


@pytest.mark.parametrize(
    ("batch", "size", "channels", "want"),
    [
        (4, 64, 32, 5),  # 4.7e6 operations in a row of all images
        (128, 32, 16, 1),  # 65,536 places times channels
        (64, 56, 64, 1),  # some images are enough
        (1, 56, 64, 5),
        (1, 14, 64, 1),  # bands of one row would be computed from three
        (1, 224, 64, 1),
        (1, 64, 128, 1),  # a row has nearly enough operations
    ],
)
def test_how_many_bands(batch, size, channels, want):
    axis = Axis(input=size, window=3, output=size, low=1)
    assert abreast.bands(batch, Geometry((axis, axis)), channels, channels) == want


@pytest.mark.parametrize(("batch", "channels", "out", "filled"), [(2, 21, 18, 24), (1, 17, 20, 20), (3, 20, 24, 20)])
def test_channels_fill_vectors(batch, channels, out, filled):
    """21 channels are computed as 24, of one image too; what is even is left as it is."""
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((batch, 5, 6, channels), (3, 3, channels, out)))
    f = jax.jit(lambda x, k: jconv.conv(x, k, padding=1, algorithm={"forward": "abreast"}))
    np.testing.assert_array_equal(f(x, k), reference.conv(x, k, padding=1))
    assert [shape[-1] for shape in convolved(f, x, k)] == [filled]


def convolved(f, *operands):
    """The shapes that the program's convolutions have for their first operand."""
    found = re.findall(r"stablehlo\.convolution.* : \(tensor<([\dx]+)xf32>", f.lower(*operands).as_text())
    return [tuple(map(int, dims.split("x"))) for dims in found]


def test_a_few_rows_at_a_time(smallest):
    """Chunks of the batch in one loop, each of several rows of two images."""
    smallest.setattr(abreast, "CHUNK_BYTES", 4 * 2 * 2 * (5 * 8 * 3 + 5 * 8 * 4))
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((12, 5, 7, 3), (3, 3, 3, 4)))
    f = jax.jit(lambda x, k: jconv.conv(x, k, padding=1, algorithm={"forward": "abreast"}))
    np.testing.assert_array_equal(f(x, k), reference.conv(x, k, padding=1))
    assert convolved(f, x, k) == [(2, 5, 16, 3)]


@pytest.mark.parametrize(
    ("batch", "width", "channels", "out", "want"),
    [
        (64, 56, 64, 64, 16),  # 1.4e6 operations a row
        (8, 56, 64, 64, 8),  # too few: all
        (7, 56, 64, 64, 7),  # a prime number: all
        (1, 56, 64, 64, 1),
        (8, 512, 64, 512, 1),  # a row is many blocks as it is
        (8, 224, 64, 64, 1),  # and so is one of few operations but 14,336 places times channels
    ],
)
def test_how_many(batch, width, channels, out, want):
    """One row's operations, 2 * width * taps * channels * out, reach ROW_FLOPS; taps are 3 x 1 here."""
    axes = (Axis(input=8, window=3, output=8, low=1), Axis(input=width, window=1, output=width))
    assert abreast.abreast(batch, Geometry(axes), channels, out) == want


def test_where_it_is_chosen():
    """Where lax keeps a row of one image on one core; not for one image, wide rows, or what is not worth a copy."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    chosen = lambda x, k, **options: jconv.explain(shape(*x), shape(*k), platform="cpu", **options)["forward"].algorithm
    assert chosen((8, 28, 28, 32), (5, 5, 32, 96), padding=2) == "abreast"
    assert chosen((128, 16, 16, 32), (3, 3, 32, 32), padding=1) == "abreast"
    assert chosen((1, 28, 28, 32), (5, 5, 32, 96), padding=2) != "abreast"
    assert chosen((8, 28, 256, 64), (5, 5, 64, 128), padding=2) != "abreast"
    assert chosen((8, 64, 64, 4), (3, 3, 4, 4), padding=1) != "abreast"
