"""Kernel gradients of many examples, a few at a time: as one at a time, in a program whose size and memory are bounded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv.algorithms import patches

CASES = {  # examples, batch, space, in, kernel, options
    "one image": (7, 1, (8, 9), 5, (3, 3, 5, 4), {"padding": "SAME"}),
    "two images, cropped and strided": (6, 2, (8, 9), 5, (3, 2, 5, 4), {"strides": 2, "padding": ((1, -1), (0, 2))}),
    "few channels": (5, 2, (8, 9), 2, (3, 3, 2, 4), {}),
    "one axis, dilated": (3, 2, (9,), 6, (3, 6, 4), {"kernel_dilation": 2}),
}


def arrays(name, dtype):
    examples, batch, space, channels, kernel, options = CASES[name]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((examples, batch, *space, channels))
    f = functools.partial(jconv.conv_kernel_grad, kernel_shape=kernel, **options)
    y = jax.eval_shape(functools.partial(jconv.conv, **options), jnp.zeros(x.shape[1:]), jnp.zeros(kernel))
    return f, jnp.asarray(x, dtype), jnp.asarray(generator.standard_normal((examples, *y.shape)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_each_example_gets_its_gradient(name, at_once, dtype, monkeypatch):
    f, x, g = arrays(name, dtype)
    monkeypatch.setattr(patches, "_at_once", lambda examples, bytes_each: at_once)
    got = jax.jit(jax.vmap(f))(x, g)
    want = jnp.stack([f(*pair) for pair in zip(x, g)])
    assert got.dtype == want.dtype
    wide = np.asarray(want, np.float32)
    np.testing.assert_allclose(np.asarray(got, np.float32), wide, rtol=2e-5 if dtype == "float32" else 2**-7, atol=2e-5)


def test_how_many_examples_at_a_time():
    at_once = functools.partial(patches._at_once, bytes_each=patches.EXAMPLES_BYTES // 5)
    assert at_once(64) == 4  # the largest divisor within five
    assert at_once(61) == 5  # a prime: five at a time, the last one alone
    assert at_once(3) == 3
    assert patches._at_once(64, 2 * patches.EXAMPLES_BYTES) == 1


def test_memory_and_program_do_not_grow_with_the_examples():
    """Beside the gradients themselves, temporary memory is what the batch takes, however many examples there are."""
    kernel = (3, 3, 8, 8)
    f = jax.vmap(lambda x, g: jconv.conv_kernel_grad(x[None], g[None], kernel, padding="SAME"))

    sizes = []
    for examples in (64, 512):
        x = jax.ShapeDtypeStruct((examples, 16, 16, 8), jnp.float32)
        own = 2 * 4 * examples * 16 * 16 * 8 + 4 * examples * 9 * 64  # the operands, which XLA copies, and the result
        lowered = jax.jit(f).lower(x, x)
        memory: Any = lowered.compile().memory_analysis()
        assert memory.temp_size_in_bytes < 1.5 * own + 2 * patches.EXAMPLES_BYTES
        sizes.append(len(lowered.as_text()))
    assert sizes[1] < 1.02 * sizes[0]
