"""x that is padded first gives the same products, where lax's convolution would go element by element."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import padded
from jconv.geometry import Axis, Geometry

BOTH, GRADIENT = ("forward", "kernel_grad"), ("kernel_grad",)
LONGER = [  # g than x, a kernel than its input, or any along a line; and the products that can be computed so
    ((2, 12, 4), (3, 4, 6), {"padding": 2}, BOTH),
    ((2, 12, 4), (3, 4, 6), {"padding": 4, "kernel_dilation": 4}, BOTH),
    ((1, 9, 3), (7, 3, 2), {"padding": ((5, 1),)}, BOTH),
    ((2, 6, 5, 4), (4, 4, 4, 6), {"padding": 2}, GRADIENT),
    ((2, 6, 5, 4), (2, 2, 4, 6), {"padding": ((2, 2), (0, 0))}, GRADIENT),
    ((3, 2, 3, 4), (3, 3, 4, 6), {"padding": 1}, ("forward",)),
    ((3, 3, 3, 4), (5, 5, 4, 6), {"padding": 2, "strides": 2}, ("forward",)),
    ((1, 3, 4, 5, 2), (2, 2, 2, 2, 3), {"padding": 1}, GRADIENT),
    ((2, 2, 2, 4), (3, 3, 4, 6), {"padding": 2, "kernel_dilation": 2}, ("forward",)),
]


def operands(shape, kernel, options):
    """Integers, so that sums are exact."""
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    y = jax.eval_shape(lambda x, k: jconv.conv(x, k, **options), x, k)
    return x, k, rng.integers(-3, 4, y.shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "kernel", "options", "products"), LONGER)
def test_it_is_the_same(shape, kernel, options, products):
    x, k, g = operands(shape, kernel, options)
    assert tuple(p for p in ("forward", "kernel_grad") if "padded" in able(shape, kernel, options, p)) == products
    forced = {**options, "algorithm": dict.fromkeys(products, "padded")}
    if "forward" in products:
        y = jax.jit(lambda x, k: jconv.conv(x, k, **forced))(x, k)
        np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    if "kernel_grad" in products:
        dw = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, **forced))(x, g)
        np.testing.assert_array_equal(dw, reference.conv_kernel_grad(x, g, kernel, **options))


def able(shape, kernel, options, product):
    """The names of the algorithms that can compute a product."""
    arguments = (jax.ShapeDtypeStruct(s, "float32") for s in (shape, kernel))
    choice = jconv.explain(*arguments, platform="cpu", **options)[product]
    return [choice.algorithm, *(name for name, _ in choice.others)]


def test_where_it_applies():
    """Where XLA exchanges the operands; and along a line, whose many taps may see padding."""
    longer, same, inside = Axis(9, 3, 11, low=2), Axis(9, 3, 9, low=1), Axis(9, 3, 7)
    assert padded.applies(Geometry((longer, same)), "kernel_grad")
    assert not padded.applies(Geometry((longer, same)), "convolve")
    assert not padded.applies(Geometry((longer, inside)), "kernel_grad")  # 11 * 7 places of 9 * 9
    assert not padded.applies(Geometry((longer, longer), groups=2), "kernel_grad")
    assert not padded.applies(Geometry((same, same)), "kernel_grad")
    assert padded.applies(Geometry((same,)), "kernel_grad")
    assert not padded.applies(Geometry((inside,)), "kernel_grad")
    short = Axis(2, 3, 2, low=1)
    assert padded.applies(Geometry((short, short)), "convolve")
    assert padded.applies(Geometry((Axis(2, 3, 2, dilation=2, low=2), short)), "convolve")
    assert not padded.applies(Geometry((short, same)), "convolve")  # 3 * 3 taps over 2 * 9 elements
    assert not padded.applies(Geometry((Axis(1, 5, 1, low=2), same)), "convolve")  # one element is no convolution
    assert not padded.applies(Geometry((Axis(2, 3, 4, input_dilation=2, low=2), short)), "convolve")


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "chosen"),
    [
        ((16, 1000, 64), (3, 64, 64), {"padding": 16, "kernel_dilation": 8}, ("lax", "padded", "lax")),
        ((8, 500, 128), (4, 128, 128), {"padding": 2}, ("lax", "padded", "lax")),
        ((8, 500, 128), (5, 128, 128), {"padding": 2}, ("lax", "lax", "lax")),
        ((2, 32, 32, 256), (4, 4, 256, 256), {"padding": 2}, ("lax", "padded", "lax")),
        ((4, 28, 28, 64), (3, 3, 64, 64), {"padding": 2}, ("abreast", "padded", "abreast")),
        ((64, 4, 4, 96), (5, 5, 96, 96), {"padding": 2}, ("padded", "slices", "padded")),
        ((64, 3, 64), (5, 64, 64), {"padding": 2}, ("padded", "lax", "padded")),
        ((1, 149, 48), (128, 48, 48), {"padding": ((64, 63),)}, ("lax", "padded", "lax")),
        ((4, 2000, 64), (31, 64, 64), {"padding": 15}, ("lax", "lax", "lax")),
        ((16, 149, 48), (32, 48, 48), {"padding": ((16, 15),)}, ("lax", "lax", "lax")),
    ],
)
def test_where_it_is_chosen(shape, kernel, options, chosen):
    """What was measured on such layers: python -m experiments.algorithms."""
    arguments = (jax.ShapeDtypeStruct(s, "float32") for s in (shape, kernel))
    assert tuple(c.algorithm for c in jconv.explain(*arguments, platform="cpu", **options).choices) == chosen


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((4, 50, 32), (4, 32, 32), {"padding": 3}),
        ((2, 12, 12, 40), (4, 4, 40, 48), {"padding": 2}),
        ((2, 9, 9, 256), (4, 4, 256, 256), {"padding": 3}),
        ((8, 4, 4, 96), (5, 5, 96, 96), {"padding": 2}),
        ((1, 6, 8, 8, 32), (3, 3, 3, 32, 32), {"padding": 2}),
        ((2, 40, 64), (8, 32, 64), {"padding": 4, "feature_group_count": 2}),
    ],
)
def test_no_convolution_goes_element_by_element(shape, kernel, options):
    """Of a step on a CPU, whatever computes its products; stock JAX's has one, which takes 10 to 100 times as long."""
    x, k, g = operands(shape, kernel, options)

    def step(x, k, g):
        y, back = jax.vjp(lambda x, k: jconv.conv(x, k, **options), x, k)
        return y, back(g)

    text = jax.jit(step).lower(x, k, g).compile().as_text()
    assert not element_by_element(text)


def element_by_element(text):
    """The convolutions of a compiled program whose operands XLA has exchanged, so that the kernel is reversed."""
    return re.findall(r".* convolution\(.*rhs_reversal=.*", text)


def test_stock_has_one():
    """The pattern finds it: else the test above could not fail."""
    x, k, g = operands((4, 50, 32), (4, 32, 32), {"padding": 3})
    stock = lambda k: jax.lax.conv_general_dilated(x, k, (1,), [(3, 3)], dimension_numbers=("NWC", "WIO", "NWC"))
    assert element_by_element(jax.jit(lambda k, g: jax.vjp(stock, k)[1](g)).lower(k, g).compile().as_text())
