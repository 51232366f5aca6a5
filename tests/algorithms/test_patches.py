"""Kernel gradients of a few rows or examples at a time: as of all at once, in a program of bounded size and memory."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import patches, windows

CASES = {  # examples, batch, space, in, kernel, options
    "one image": (7, 1, (8, 9), 5, (3, 3, 5, 4), {"padding": "SAME"}),
    "two images, cropped and strided": (6, 2, (8, 9), 5, (3, 2, 5, 4), {"strides": 2, "padding": ((1, -1), (0, 2))}),
    "few places": (5, 1, (3, 3), 6, (3, 3, 6, 4), {"padding": "SAME"}),
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
    monkeypatch.setattr(windows, "_examples_at_once", lambda examples, bytes_each: at_once)
    got = jax.jit(jax.vmap(f))(x, g)
    want = jnp.stack([f(*pair) for pair in zip(x, g)])
    assert got.dtype == want.dtype
    wide = np.asarray(want, np.float32)
    np.testing.assert_allclose(np.asarray(got, np.float32), wide, rtol=2e-5 if dtype == "float32" else 2**-7, atol=2e-5)


def test_how_many_examples_at_a_time():
    at_once = functools.partial(windows._examples_at_once, bytes_each=windows.EXAMPLES_BYTES // 5)
    assert at_once(64) == 4  # the largest divisor within five
    assert at_once(61) == 5  # a prime: five at a time, the last one alone
    assert at_once(3) == 3
    assert windows._examples_at_once(64, 2 * windows.EXAMPLES_BYTES) == 1


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
        assert memory.temp_size_in_bytes < 1.5 * own + 2 * windows.EXAMPLES_BYTES
        sizes.append(len(lowered.as_text()))
    assert sizes[1] < 1.02 * sizes[0]


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 11, 7, 4), (3, 3, 4, 2), {"padding": 1}),  # more channels in than out, and fewer
        ((1, 12, 7, 5), (3, 2, 5, 6), {"strides": (3, 2), "padding": ((2, 1), (0, 1))}),
        ((1, 12, 7, 2), (3, 2, 2, 6), {"kernel_dilation": (2, 1)}),
        ((2, 13, 3), (4, 3, 5), {"strides": 2}),
    ],
)
def test_rows_at_a_time(monkeypatch, shape, kernel, options, rows):
    """An image whose patches are too many is taken a few rows at a time, the last ones with some of the rows before."""
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
    y = jax.eval_shape(functools.partial(jconv.conv, **options), jnp.zeros(shape), jnp.zeros(kernel))
    g = np.random.default_rng(1).integers(-3, 4, y.shape).astype(np.float32)
    row = 4 * math.prod(kernel[:-1]) * math.prod(y.shape[2:-1])
    monkeypatch.setattr(patches, "SUMMED_BYTES", rows * row)
    jax.clear_caches()
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "patches"}, **options))
    assert "while" in f.lower(x, g).as_text()
    np.testing.assert_array_equal(f(x, g), reference.conv_kernel_grad(x, g, kernel, **options))  # whole numbers
    jax.clear_caches()


@pytest.mark.optimised
def test_rows_that_no_number_divides_take_no_copy():
    """571 rows are a prime: zeros below x and g, to take 572 by some, were a copy of 83 MB."""
    x, g = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 229, 333, 1), (1, 227, 331, 64)))
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 1, 64), algorithm="patches"))
    text = f.lower(x, g).compile().as_text()
    assert "while" in text
    assert not [size for size in shapes_of(text) if size > 227 * 331 * 64]


def shapes_of(text):
    """Elements of each array that an instruction of a program results in."""
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"= f32\[([\d,]+)\]", text)]


@pytest.mark.optimised
def test_memory_of_a_large_image():
    """Some megabytes, where all of its patches are 29."""
    x = jax.ShapeDtypeStruct((1, 224, 224, 16), jnp.float32)
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 16, 16), padding=1, algorithm="patches"))
    memory: Any = f.lower(x, x).compile().memory_analysis()
    padded = 4 * 226 * 226 * 16
    assert memory.temp_size_in_bytes < 1.2 * 2 * padded + 3 * patches.SUMMED_BYTES
