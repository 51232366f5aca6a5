"""Axes along which the window is one place are joined to one; a kernel gradient along the first axis, row after row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import joined, shifts
from jconv.geometry import Axis, Geometry

ALONE = [  # x, kernel, options: windows along the first axis alone
    ((2, 6, 3, 4, 5), (3, 1, 1, 5, 3), {"padding": ((1, 1), (0, 0), (0, 0))}),
    ((2, 7, 12, 3), (4, 1, 3, 5), {"padding": ((2, 1), (0, 0)), "strides": (2, 1)}),
    ((1, 9, 12, 3), (3, 1, 3, 3), {"padding": ((5, 0), (0, 0)), "kernel_dilation": (3, 1)}),
    ((3, 2, 12, 4), (3, 1, 4, 2), {"padding": ((2, 2), (0, 0))}),  # no place sees all taps
    ((1, 3, 12, 2), (2, 1, 2, 3), {"padding": ((4, 0), (0, 0))}),  # some places see none
]


def lowered_kernel_grad(shape, kernel, options):
    """The program of a kernel gradient by shifts, which gives the reference's on whole numbers exactly."""
    rng = np.random.default_rng(0)
    drawn = lambda *shape: rng.integers(-3, 4, shape).astype(np.float32)
    x = drawn(*shape)
    g = drawn(*reference.conv(x, drawn(*kernel), **options).shape)
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "shifts"}, **options))
    np.testing.assert_array_equal(f(x, g), reference.conv_kernel_grad(x, g, kernel, **options))
    return f.lower(x, g).as_text()


@pytest.mark.parametrize(("shape", "kernel", "options"), ALONE)
def test_row_after_row(monkeypatch, shape, kernel, options):
    """On whole numbers exactly; no array of more than a row is made but the operands."""
    monkeypatch.setattr(shifts, "LONG_ROW", 12)
    jax.clear_caches()
    assert "stablehlo.while" in lowered_kernel_grad(shape, kernel, options)
    jax.clear_caches()


VALID = [  # x, kernel, options: no window sees padding along the first of three axes
    ((2, 7, 5, 4, 3), (3, 2, 3, 3, 4), {"padding": ((0, 0), (1, 0), (1, 1))}),
    ((1, 9, 4, 4, 2), (2, 2, 2, 2, 3), {"strides": (3, 1, 2)}),
    ((2, 9, 4, 4, 4), (3, 2, 2, 4, 2), {"kernel_dilation": (3, 1, 1)}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), VALID)
def test_plane_after_plane(shape, kernel, options):
    """Products of the taps of one plane after the other, where no place of the first axis sees padding."""
    text = lowered_kernel_grad(shape, kernel, options)
    assert "stablehlo.while" in text
    assert text.count("stablehlo.dot_general") == kernel[1] * kernel[2]


def whole(n: int) -> Axis:
    return Axis(n, 1, n)


SLIDING = Axis(5, 3, 5, low=1)


@pytest.mark.parametrize(
    ("axes", "want"),
    [
        ((SLIDING, whole(3), whole(4)), (SLIDING, whole(12))),
        ((whole(3), whole(4), SLIDING), (whole(12), SLIDING)),
        ((whole(2), whole(3), SLIDING, whole(4), whole(5)), (whole(6), SLIDING, whole(20))),
        ((whole(3), SLIDING, whole(4)), None),  # no neighbours
        ((SLIDING, whole(3), Axis(4, 1, 2, stride=2)), None),
        ((SLIDING, whole(3), Axis(4, 1, 6, low=1)), None),
        ((SLIDING, whole(3), Axis(4, 1, 4, low=1)), None),  # as long, but one element later
        ((SLIDING, whole(3), Axis(2, 1, 3, input_dilation=2)), None),
    ],
)
def test_what_is_joined(axes, want):
    assert joined.applies(Geometry(axes)) == (want is not None)
    assert joined.lower(Geometry(axes)).axes == (want or axes)


def test_the_temporal_half_is_a_plane():
    """The 3x1x1 of a (2+1)-D layer: a convolution of two axes with long rows, and nothing else of its size."""
    x, k = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 56, 56, 144), (3, 1, 1, 144, 64)))
    form = lambda x, k: jconv.conv(x, k, padding=((1, 1), (0, 0), (0, 0)))
    assert "tensor<1x16x3136x144xf32>" in jax.jit(form).lower(x, k).as_text()
    chosen = jconv.explain(x, k, padding=((1, 1), (0, 0), (0, 0)), platform="cpu")
    assert [choice.algorithm for choice in chosen.choices] == ["joined"] * 3
    small = jconv.explain(
        *(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 4, 7, 7, 256), (3, 1, 1, 256, 256))),
        padding=((1, 1), (0, 0), (0, 0)), platform="cpu",
    )  # fmt: skip
    assert small["forward"].algorithm == "shifts"  # a row of 49 places stays on one core, products of 196 do not
