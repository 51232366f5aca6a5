"""Settings of jax that a program may have made: every operator, and what is derived of it, is traced and lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), "float32")


IMAGES, KERNEL = draw(2, 8, 8, 4), draw(3, 3, 4, 6)
LAYERS = {
    "conv": (lambda x, k, b: jconv.conv(x, k, b, strides=2, padding="SAME"), IMAGES, KERNEL, draw(6)),
    "depthwise": (lambda x, k: jconv.conv(x, k, feature_group_count=4), IMAGES, draw(3, 3, 1, 8)),
    "grouped": (lambda x, k: jconv.conv(x, k, feature_group_count=2), IMAGES, draw(3, 3, 2, 8)),
    "circular": (lambda x, k: jconv.conv(x, k, padding="CIRCULAR"), IMAGES, KERNEL),
    "pointwise": (jconv.conv, IMAGES, draw(1, 1, 4, 2)),
    "3-D": (jconv.conv, draw(2, 5, 5, 5, 4), draw(3, 3, 3, 4, 2)),
    "conv_transpose": (lambda y, k, b: jconv.conv_transpose(y, k, b, strides=2), IMAGES, draw(3, 3, 5, 4), draw(5)),
    "max_pool": (lambda x: jconv.max_pool(x, 3, 2, padding="SAME"), IMAGES),
    "max_pool, indices": (lambda x: jconv.max_pool(x, 3, 2, padding=1, return_indices=True)[0], IMAGES),
    "avg_pool": (lambda x: jconv.avg_pool(x, 3, 2, padding="SAME", count_include_pad=False), IMAGES),
    "lp_pool": (lambda x: jconv.lp_pool(x, 3, 2), IMAGES),
    "adaptive_avg_pool": (lambda x: jconv.adaptive_avg_pool(x, (3, 3)), IMAGES),
    "adaptive_max_pool": (lambda x: jconv.adaptive_max_pool(x, (3, 3)), IMAGES),
    "unfold": (lambda x: jconv.unfold(x, (3, 3)), IMAGES),
    "fold": (lambda columns: jconv.fold(columns, (8, 8), (3, 3)), draw(2, 6, 6, 36)),
    "lax convolution": (
        lambda x, k: jconv.lax.conv_general_dilated(x, k, (1, 1), "SAME", None, None, NHWC),
        IMAGES,
        KERNEL,
    ),
    "lax reduction": (lambda x: jconv.lax.reduce_window(x, 0.5, jax.lax.max, (1, 2, 2, 1)), IMAGES),
    "lax patches": (lambda x: jconv.lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "SAME"), IMAGES),
}
DERIVED = {
    "value": lambda f, axes: f,
    "gradient": jax.grad,
    "along": lambda f, axes: lambda *args: jax.jvp(jax.grad(f, axes), args, args),
    "each": lambda f, axes: lambda *args: jax.vmap(jax.grad(f, axes))(*(jnp.stack([a, a]) for a in args)),
}


@pytest.mark.parametrize("derived", DERIVED)
@pytest.mark.parametrize("layer", LAYERS)
def test_no_promotion_of_ranks(layer, derived):
    """jax_numpy_rank_promotion="raise", as jax's own tests run, makes no error inside of jconv."""
    fun, *arrays = LAYERS[layer]
    loss = lambda *args: jnp.sum(fun(*args) ** 2)
    with jax.numpy_rank_promotion("raise"):
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones((2, 3)) + jnp.ones(3)
        jax.jit(DERIVED[derived](loss, range(len(arrays)))).lower(*arrays)


def test_leaks_are_looked_for():
    """No tracer outlives its trace, in a rule, in the rewriting, or in what they keep for the next call."""
    loss = lambda x, k: jnp.sum(jconv.lax.conv_general_dilated(x, k, (1, 1), "SAME", None, None, NHWC) ** 2)
    pooled = lambda x, k: jnp.sum(jconv.max_pool(jconv.conv(x, k), 2, 2))
    with jax.checking_leaks():
        for fun in (loss, pooled, jconv.accelerate(functools.partial(loss))):
            jax.jit(jax.grad(fun, (0, 1))).lower(IMAGES, KERNEL)
