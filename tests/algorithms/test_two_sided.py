"""Kernel gradients whose taps are shared out between the sides of x and g: the same, of fewer copies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import patches, two_sided
from jconv.geometry import Axis, Geometry

LAYERS = [  # x, kernel, options
    ((3, 11, 7, 5), (3, 3, 5, 4), {"padding": 1}),
    ((2, 12, 9, 2), (5, 3, 2, 6), {"padding": ((4, 0), (0, 3)), "kernel_dilation": (1, 2)}),
    ((2, 12, 13, 3), (4, 6, 3, 4), {"strides": (2, 3), "padding": ((1, 2), (5, 0))}),
    ((1, 13, 8, 4), (4, 2, 4, 3), {"strides": (1, 2), "padding": ((3, -1), (0, 1)), "kernel_dilation": (3, 1)}),
    ((1, 6, 5, 3), (3, 3, 3, 2), {"padding": ((9, 0), (0, 2)), "strides": (2, 1)}),  # windows on padding alone
    ((3, 30, 4), (6, 4, 2), {"padding": ((9, 2),), "strides": 2}),
    ((2, 30, 1), (12, 1, 2), {"padding": ((0, 5),), "kernel_dilation": 2, "strides": 4}),
    ((2, 7, 5, 4, 2), (3, 2, 3, 2, 3), {"padding": 1}),
]


def arrays(shape, kernel, options):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    y = jax.eval_shape(lambda x, k: jconv.conv(x, k, **options), x, np.zeros(kernel, np.float32))
    return x, rng.integers(-3, 4, y.shape).astype(np.float32)


def kernel_grad(kernel, options):
    return functools.partial(
        jconv.conv_kernel_grad, kernel_shape=kernel, algorithm={"kernel_grad": "two_sided"}, **options
    )


@pytest.mark.parametrize("bytes_at_once", [1, 4000, 1 << 20], ids=["a row", "a few rows or images", "all"])
@pytest.mark.parametrize(("shape", "kernel", "options"), LAYERS)
def test_it_is_the_same(monkeypatch, shape, kernel, options, bytes_at_once):
    """On whole numbers exactly."""
    monkeypatch.setattr(two_sided, "CHUNK_BYTES", bytes_at_once)
    monkeypatch.setattr(two_sided, "IMAGE_BYTES", 2 * bytes_at_once)
    jax.clear_caches()
    x, g = arrays(shape, kernel, options)
    got = jax.jit(kernel_grad(kernel, options))(x, g)
    np.testing.assert_array_equal(got, reference.conv_kernel_grad(x, g, kernel, **options))
    jax.clear_caches()


@pytest.mark.parametrize("channels", [(4, 4), (4, 100), (100, 4)], ids=str)
@pytest.mark.parametrize(
    "axes",
    [
        (Axis(9, 6, 4),),
        (Axis(9, 4, 4, stride=2, low=2),),
        (Axis(14, 3, 8, dilation=3), Axis(9, 4, 3, stride=2)),
        (Axis(5, 3, 5, low=1), Axis(5, 3, 5, low=1)),
    ],
    ids=lambda axes: str(len(axes)),
)
def test_each_tap_and_place_is_met_once(axes, channels):
    """Every (place, tap) of the layer is one (r, u, v), and the way chosen copies no more than any other."""
    for found in two_sided._shared(Geometry(axes)):
        for share, axis in zip(found, axes, strict=True):
            met = set()
            for u, v in itertools.product(range(share.beside_g), range(share.beside_x)):
                for r in range(share.first, share.first + share.places):
                    place, element = r - u * share.step, r * axis.stride + v * axis.dilation - axis.low
                    if 0 <= place < axis.output and 0 <= element < axis.input:
                        tap = share.beside_x * u + v
                        assert element == place * axis.stride + tap * axis.dilation - axis.low
                        met.add((place, tap))
            inside = {(p, t) for p in range(axis.output) for t in axis.taps_inside(p)}
            assert met == inside
    chosen = two_sided.copied(two_sided.shares(Geometry(axes), *channels), *channels)
    assert chosen == min(two_sided.copied(found, *channels) for found in two_sided._shared(Geometry(axes)))


def test_few_channels_on_both_sides_copy_less_than_patches():
    """3x3 from 16 to 16 channels: three taps on each side."""
    axis = Axis(32, 3, 32, low=1)
    assert two_sided.copied(two_sided.shares(Geometry((axis, axis)), 16, 16), 16, 16) == 2 * 3 * 16
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    held = {}
    for name in ("two_sided", "patches"):
        f = functools.partial(
            jconv.conv_kernel_grad, kernel_shape=(3, 3, 16, 16), padding=1, algorithm={"kernel_grad": name}
        )
        compiled = jax.jit(f).lower(shape(128, 32, 32, 16), shape(128, 32, 32, 16)).compile()
        held[name] = compiled.memory_analysis().temp_size_in_bytes
    assert held["two_sided"] < 1.5 * two_sided.CHUNK_BYTES < held["patches"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_large_image_comes_in_bands(batch):
    """Both sides of 256 x 256 places are 25 MB."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    f = jax.jit(kernel_grad((3, 3, 16, 16), {"padding": 1}))
    compiled = f.lower(shape(batch, 256, 256, 16), shape(batch, 256, 256, 16)).compile()
    image = 4 * 256 * 256 * 16
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * image + 2 * two_sided.CHUNK_BYTES


@pytest.mark.parametrize(
    ("x", "kernel", "options", "algorithm"),
    [
        ((128, 32, 32, 16), (3, 3, 16, 16), {"padding": 1}, "two_sided"),
        ((8, 64, 64, 21), (3, 3, 21, 21), {"padding": 16, "kernel_dilation": 16}, "two_sided"),
        ((32, 32, 32, 8), (7, 7, 8, 8), {"padding": 3}, "two_sided"),
        ((2, 16, 32, 32, 8), (3, 3, 3, 8, 16), {"padding": 1}, "two_sided"),
        ((64, 32, 32, 16), (3, 3, 16, 64), {"padding": 1}, "two_sided"),
        ((16, 20, 20, 16), (3, 3, 16, 64), {"padding": 1}, "patches"),
        ((32, 32, 32, 32), (3, 3, 32, 32), {"padding": 1}, "winograd"),
    ],
)
def test_where_it_is_chosen(x, kernel, options, algorithm):
    """Where it copies less than patches would and copies are most of the time, or patches would leave the caches."""
    assert (
        jconv.explain(*(jax.ShapeDtypeStruct(s, "float32") for s in (x, kernel)), **options)["kernel_grad"].algorithm
        == algorithm
    )


@pytest.mark.parametrize(("size", "channels", "module"), [(32, 16, two_sided), (8, 128, patches)])
def test_examples_share_their_taps_out_unless_their_kernels_are_large(monkeypatch, size, channels, module):
    """A gradient for each of 64 examples: of both sides with few channels, of patches where results are most of it."""
    used = []
    for each in (two_sided, patches):
        plain = each.kernel_grads
        note = lambda *args, each=each, plain=plain: used.append(each) or plain(*args)
        monkeypatch.setattr(each, "kernel_grads", note)
    operand = jax.ShapeDtypeStruct((64, size, size, channels), "float32")
    kernel = (3, 3, channels, channels)
    grads = jax.vmap(lambda x, g: jconv.conv_kernel_grad(x[None], g[None], kernel, padding=1))
    jax.jit(grads).lower(operand, operand)
    assert used == [module]


@pytest.mark.parametrize("batch", [1, 2])
def test_each_example_gets_its_gradient(batch):
    """On whole numbers exactly."""
    shape, kernel, options = (5, batch, 9, 8, 5), (3, 3, 5, 4), {"padding": 1}
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.integers(-3, 4, s).astype(np.float32)) for s in (shape, (5, batch, 9, 8, 4)))
    geometry = Geometry(tuple(Axis(n, 3, n, low=1) for n in (9, 8)))
    got = jax.jit(lambda x, g: two_sided.kernel_grads(x, g, geometry, None, jnp.dtype("float32")))(x, g)
    for each, xs, gs in zip(got, x, g, strict=True):
        np.testing.assert_array_equal(each, reference.conv_kernel_grad(xs, gs, kernel, **options))
