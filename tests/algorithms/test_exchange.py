"""A kernel gradient with x and g exchanged is the same one; what is computed inside is another, chosen anew."""

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import exchange
from jconv.geometry import Axis, Geometry


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 7, 9, 6), (3, 2, 6, 2), {"padding": ((1, 0), (2, 3))}),
        ((1, 9, 8, 3), (2, 3, 3, 5), {"kernel_dilation": (3, 2), "padding": 1}),
        ((2, 9, 5), (4, 5, 1), {"padding": ((-1, 6),)}),
        ((1, 4, 5, 6, 4), (2, 3, 2, 4, 2), {}),
    ],
)
def test_it_is_the_same(shape, kernel, options):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    y = jax.eval_shape(lambda x, k: jconv.conv(x, k, **options), x, np.zeros(kernel, np.float32))
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "exchange"}, **options))
    np.testing.assert_array_equal(f(x, g), reference.conv_kernel_grad(x, g, kernel, **options))


def test_where_it_applies():
    axis = Axis(input=8, window=3, output=6)
    assert exchange.applies(Geometry((axis, axis)))
    assert not exchange.applies(Geometry((axis, axis), groups=2))
    assert not exchange.applies(Geometry((axis, Axis(input=9, window=3, output=4, stride=2))))
    assert not exchange.applies(Geometry((axis, Axis(input=4, window=3, output=5, input_dilation=2))))


def test_few_outputs_of_many_channels():
    """The three outputs' taps are copied, not the 64 channels'."""
    x, g = jax.ShapeDtypeStruct((2, 24, 24, 64), "float32"), jax.ShapeDtypeStruct((2, 24, 24, 3), "float32")
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, (9, 9, 64, 3), padding=4))
    choice = jconv.explain(x, jax.ShapeDtypeStruct((9, 9, 64, 3), "float32"), padding=4, platform="cpu")["kernel_grad"]
    assert choice.algorithm == "exchange"
    text = f.lower(x, g).as_text()
    assert "x27xf32>" in text  # nine rows of taps of three outputs, side by side
    assert "x576xf32>" not in text  # nine rows of taps of 64 channels


@pytest.mark.parametrize("batch", [1, 2])
def test_one_image_is_no_single_sum(batch):
    """Exchanged, a last layer's gradient of one image is a first layer's, which lax adds up place after place.

    At most twice the error of lax' own gradient of the layer, over 4096 places.
    """
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((batch, 64, 64, n)).astype(np.float32) for n in (32, 3))
    kernel = (3, 3, 32, 3)
    exact = reference.conv_kernel_grad(x, g, kernel, padding=1)
    error = lambda dk: np.abs(dk - exact).max()
    ours = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, padding=1))(x, g)
    dims = ("NHWC", "HWIO", "NHWC")
    stock = lambda k: jax.lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dims)
    (lax_s,) = jax.jit(lambda g: jax.vjp(stock, np.zeros(kernel, np.float32))[1](g))(g)
    assert error(ours) <= 2 * error(lax_s)
