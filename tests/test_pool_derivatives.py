"""Derivatives of poolings and patches: finite differences, and every transformation against every other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

import jconv

pytestmark = pytest.mark.usefixtures("x64")

DERIVED = {
    "max_pool": lambda x: jconv.max_pool(x, (3, 2), (2, 1), 1),
    "min_pool, dilated": lambda x: jconv.min_pool(x, (2, 2), 1, 1, window_dilation=2),
    "max_pool, circular": lambda x: jconv.max_pool(x, (2, 2), 2, "CIRCULAR"),
    "max_pool, channels first": lambda x: jconv.max_pool(x, (2, 1), 2, data_format="channels_first"),
    "sum_pool": lambda x: jconv.sum_pool(x, (3, 2), (2, 1), 1),
    "avg_pool": lambda x: jconv.avg_pool(x, (3, 3), 2, 1, count_include_pad=False, ceil_mode=True),
    "lp_pool 2": lambda x: jconv.lp_pool(x, 2, (3, 2), 1, 1),
    "lp_pool 3": lambda x: jconv.lp_pool(x, 3, (3, 2), 2),
    "lp_pool inf": lambda x: jconv.lp_pool(x, math.inf, (3, 2), 2),
    "adaptive_max_pool": lambda x: jconv.adaptive_max_pool(x, (3, 2)),
    "adaptive_avg_pool": lambda x: jconv.adaptive_avg_pool(x, (3, 7)),
    "global_max_pool": jconv.global_max_pool,
    "global_avg_pool": jconv.global_avg_pool,
    "max_unpool": lambda x: jconv.max_unpool(x, jnp.asarray(UNPOOLED), (9, 8)),
    "unfold": lambda x: jconv.unfold(x, (3, 2), strides=(2, 1), padding=1),
    "fold": lambda x: jconv.fold(x, (6, 5), (2, 1), padding=((0, 1), (0, 0))),
}
UNPOOLED = np.random.default_rng(3).permuted(np.tile(np.arange(60)[:, None], (2, 1, 2)).reshape(2, 60, 2), axis=1)
UNPOOLED = UNPOOLED[:, :30].reshape(2, 6, 5, 2)
X = np.random.default_rng(0).permutation(np.linspace(0.5, 2.5, 120)).reshape(2, 6, 5, 2) * np.where(
    np.arange(120).reshape(2, 6, 5, 2) % 3, 1, -1
)


@pytest.mark.parametrize("name", DERIVED)
def test_finite_differences(name):
    """Order 2, reverse and forward; values are 0.016 apart, and the step is 1e-5."""
    f = jax.jit(DERIVED[name])
    check_grads(f, (jnp.asarray(X),), order=2, modes=("rev", "fwd"), eps=1e-5, rtol=1e-5, atol=1e-5)


def forms(f, x, v):
    """By name: (what a transformation of f gives, the same by another road)."""
    loss = lambda x: jnp.sum(jnp.sin(f(x)))
    grad, pair = jax.grad(loss), jnp.stack([x, -x, v])
    gradients = [grad(a) for a in pair]
    line = lambda s: loss(x + jnp.tensordot(s, pair[1:], 1) * 1e-3)
    s = jnp.zeros(2)
    return {
        "jit": (jax.jit(grad)(x), gradients[0]),
        "checkpoint": (jax.grad(jax.checkpoint(loss))(x), gradients[0]),
        "jvp": (jax.jvp(loss, (x,), (v,))[1], jnp.vdot(gradients[0], v)),
        "jvp of grad": (jax.jvp(grad, (x,), (v,))[1], jax.grad(lambda x: jnp.vdot(grad(x), v))(x)),
        "vmap": (jax.vmap(f)(pair), jnp.stack([f(a) for a in pair])),
        "vmap of grad": (jax.vmap(grad, 1, 1)(pair.swapaxes(0, 1)), jnp.stack(gradients, 1)),
        "grad of vmap": (jax.grad(lambda a: jax.vmap(loss)(a).sum())(pair), jnp.stack(gradients)),
        "scan": (lax.scan(lambda c, a: (c, grad(a)), 0.0, pair)[1], jnp.stack(gradients)),
        "jacrev": (jax.jacrev(line)(s), jax.jacfwd(line)(s)),
        "hessian": (jax.hessian(line)(s), jax.jacrev(jax.jacrev(line))(s)),
        "linearize": (jax.linearize(f, x)[1](v), jax.jvp(f, (x,), (v,))[1]),
    }


@pytest.mark.parametrize("name", DERIVED)
def test_transformations(name):
    """jit, vmap, jvp, jacobians, hessian, checkpoint and scan all say the same."""
    v = np.random.default_rng(1).normal(size=X.shape)
    for form, (got, want) in jax.jit(functools.partial(forms, DERIVED[name]))(X, v).items():
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=form)
