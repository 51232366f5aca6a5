"""Winograd's blocks and chunks, when it is chosen, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import choose, cost, winograd
from jconv.geometry import Axis, Geometry

SHAPES = {  # batch, height, width, padding of both axes
    "odd": (3, 7, 5, ((1, 1), (1, 1))),
    "even": (4, 6, 8, ((1, 1), (1, 1))),
    "valid": (2, 9, 4, ((0, 0), (0, 0))),
    "wide padding": (2, 5, 6, ((3, 0), (2, 3))),
    "seven images": (7, 5, 6, ((1, 1), (1, 1))),
    "one image": (1, 11, 6, ((1, 2), (0, 1))),
}
CHUNKS = {"all at once": 1 << 30, "images": 7000, "overlapping images": 9000, "rows": 1}


def geometry(shape) -> Geometry:
    _, *space, padding = shape
    axes = (Axis(n, 3, n + low + high - 2, low=low) for n, (low, high) in zip(space, padding))
    return Geometry(tuple(axes))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("narrow", [False, True])  # outputs, which then come first in a kernel gradient's products
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_is_taken_at_once(shape, chunk, narrow, monkeypatch):
    """All images, some, or some rows of one: the oracle's result to 1e-10, the kernel forms in one piece or 16."""
    batch, height, width, padding = SHAPES[shape]
    monkeypatch.setattr(winograd, "CHUNK_BYTES", CHUNKS[chunk])
    monkeypatch.setattr(winograd, "NARROW", 2 if narrow else 0)
    monkeypatch.setattr(winograd, "FORMS_BYTES", 0 if chunk == "images" else 1 << 20)
    window = geometry(SHAPES[shape])
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(batch, height, width, 4)), rng.normal(size=(3, 3, 4, 2))
    g = rng.normal(size=(batch, *window.output, 2))
    rest = (window, None, jnp.dtype("float64"))
    both = jax.jit(lambda x, w, g: (winograd.convolve(x, w, *rest), winograd.kernel_grad(x, g, *rest)))
    y, dw = both(x, w, g)
    np.testing.assert_allclose(y, reference.conv(x, w, padding=padding), atol=1e-10)
    np.testing.assert_allclose(dw, reference.conv_kernel_grad(x, g, w.shape, padding=padding), atol=1e-10)


def chosen(product, batch, size, channels, out) -> str:
    same = Geometry(tuple(Axis(size, 3, size, low=1) for _ in range(2)))
    return choose.pick(choose.product_problem(product, same, batch, channels, out, jnp.dtype("float32"))).name


def test_it_is_chosen_where_the_model_says_that_it_pays():
    """Many channels and enough tiles; neither few channels, nor little work, nor other dtypes than float32."""
    assert chosen("forward", 8, 14, 256, 256) == chosen("kernel_grad", 8, 14, 256, 256) == "winograd"
    assert chosen("input_grad", 4, 28, 128, 128) == "winograd"
    assert chosen("forward", 4, 56, 64, 64) == "abreast"  # as fast, and more exact
    assert chosen("forward", 4, 56, 64, 128) == chosen("forward", 2, 56, 64, 64) == "winograd"
    assert chosen("forward", 128, 32, 16, 16) == "lax"
    assert chosen("forward", 1, 8, 64, 64) == "lax"
    assert chosen("kernel_grad", 4, 14, 512, 512) == "winograd"
    assert chosen("kernel_grad", 4, 14, 1024, 1024) == "slices"  # its forms beside those of the input gradient: 134 MB
    same = Geometry(tuple(Axis(14, 3, 14, low=1) for _ in range(2)))
    problem = choose.product_problem("forward", same, 8, 256, 256, jnp.dtype("float64"))
    assert choose.pick(problem).name == "lax"


def test_a_part_of_a_product_has_no_other_gradient_beside_it(monkeypatch):
    """Of a small layer both gradients are lax's, one on each core; those of a group come one after the other."""
    same = Geometry(tuple(Axis(56, 3, 56, low=1) for _ in range(2)))
    problem = choose.product_problem("kernel_grad", same, 2, 64, 64, jnp.dtype("float32"))
    assert choose.pick(problem).name == "lax"
    assert choose.pick(dataclasses.replace(problem, part=True)).name == "winograd"
    asked, pick = [], choose.pick
    monkeypatch.setattr(choose, "pick", lambda problem, *rest: asked.append(problem) or pick(problem, *rest))
    x = jax.ShapeDtypeStruct((2, 12, 12, 128), jnp.float32)
    layer = functools.partial(jconv.conv, padding=1, feature_group_count=2)
    step = jax.jit(lambda x, k, g: jax.vjp(layer, x, k)[1](g))
    step.lower(x, jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32), x)
    assert {(problem.geometry.groups, problem.part) for problem in asked} == {(2, False), (1, True)}


def test_the_model_orders_what_was_measured():
    """More work takes longer; few output channels keep lax's convolution on one core."""
    axes = Geometry(tuple(Axis(56, 3, 56, low=1) for _ in range(2)))
    assert cost.lax_convolve(8, axes, 64, 64) == pytest.approx(2 * cost.lax_convolve(4, axes, 64, 64))
    per_flop = lambda out: cost.lax_convolve(4, axes, 64, out) / cost.flops(4, axes, 64, out)
    assert per_flop(64) > 1.5 * per_flop(128)
    tiles = winograd.tiles(axes)
    assert tiles == 28 * 28
    assert cost.winograd(4, axes, 64, 64, tiles) < cost.lax_convolve(4, axes, 64, 64)


@pytest.mark.optimised
@pytest.mark.parametrize("product", ["forward", "kernel_grad", "input_grad"])
def test_its_error_is_at_most_twice_laxs(product):
    """Against float64, in float32, on a layer for which it is chosen."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(4, 28, 28, 128)).astype("f"), (0.05 * rng.normal(size=(3, 3, 128, 128))).astype("f")
    g = rng.normal(size=x.shape).astype("f")
    forms = {
        "forward": lambda x, w, g, **how: jconv.conv(x, w, padding=1, **how),
        "kernel_grad": lambda x, w, g, **how: jconv.conv_kernel_grad(x, g, w.shape, padding=1, **how),
        "input_grad": lambda x, w, g, **how: jconv.conv_input_grad(g, w, x.shape, padding=1, **how),
    }
    with jax.enable_x64(True):
        wide = (jnp.asarray(a, jnp.float64) for a in (x, w, g))
        exact = np.asarray(forms[product](*wide, algorithm="lax"))
    error = {
        name: abs(np.asarray(forms[product](x, w, g, algorithm=name), np.float64) - exact).max()
        for name in ("lax", "winograd")
    }
    assert error["winograd"] <= 2 * max(error["lax"], np.finfo("f").eps * abs(exact).max()), error


@pytest.mark.optimised
def test_a_pointwise_bias_is_added_in_place():
    """The program needs no second array of the result: 8 x 56 x 56 x 64 floats are 6.1 MiB."""
    layer = jax.jit(lambda x, w, b: jconv.conv(x, w, b))
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((8, 56, 56, 32), (1, 1, 32, 64), (64,))]
    assert layer.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 2**20
