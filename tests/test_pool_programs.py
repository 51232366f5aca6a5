"""What a pooling compiles to on a CPU: no arrays between, no gathering of a divided batch, a bounded program."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import pools
from jconv.geometry import Axis, Geometry

GATHERS = """
import jax, jax.numpy as jnp, jconv
from jax.sharding import Mesh, NamedSharding, PartitionSpec
x = jax.device_put(jnp.ones((8, 12, 12, 4)), NamedSharding(Mesh(jax.devices(), "batch"), PartitionSpec("batch")))
overlap, apart, whole, long = (3, 3, 2, 1), (2, 2, 2, 0), (12, 12, 1, 0), (11, 11, 1, 5)
for pool in (jconv.max_pool, jconv.avg_pool):
    for rows, columns, stride, pad in (overlap, apart, whole, long):
        f = lambda x: jax.vjp(lambda x: pool(x, (rows, columns), stride, pad), x)
        step = jax.jit(lambda x: (lambda y, pull: (y, *pull(y)))(*f(x)))
        text = step.lower(x).compile().as_text()
        assert "all-gather" not in text and "all-reduce" not in text, (pool, rows)
        print("divided")
"""


def test_a_divided_batch_stays_divided():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", GATHERS], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["divided"] * 8


def compiled(pool, shape, window, strides, padding):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def step(x, g):
        y, pull = jax.vjp(lambda x: pool(x, window, strides, padding), x)
        return y, *pull(g)

    g = jax.eval_shape(lambda x: pool(x, window, strides, padding), x)
    return jax.jit(step).lower(x, g).compile()


@pytest.mark.parametrize(("shape", "rows"), [((8, 28, 28, 32), 0), ((64, 112, 112, 32), 16), ((64, 112, 112, 256), 0)])
def test_a_large_sum_over_all_places_adds_rows_first(shape, rows):
    """What the caches hold, and long rows, XLA's own reduction adds up as fast."""
    pool = jax.jit(lambda x: jconv.avg_pool(x, shape[1:3]))
    text = pool.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).as_text()
    assert text.count("stablehlo.slice") == rows


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA:CPU fuses")
@pytest.mark.parametrize("pool", [jconv.max_pool, jconv.avg_pool], ids=["max", "avg"])
@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((2, 32, 32, 64), (3, 3), 2, ((0, 1), (0, 1))),
        ((2, 33, 33, 64), (3, 3), 2, 1),
        ((2, 28, 28, 64), (3, 3), 1, 1),
        ((2, 32, 32, 64), (2, 2), 2, 0),
        ((2, 2049, 64), (4,), 4, 0),
        ((2, 2048, 64), (3,), 2, 1),
        ((2, 8, 15, 15, 32), (2, 2, 2), 2, ((0, 0), (0, 1), (0, 1))),
    ],
    ids=str,
)
def test_nothing_is_written_down_between(pool, shape, window, strides, padding):
    """Of a maximum the index alone, one byte a place; of an average nothing."""
    program = compiled(pool, shape, window, strides, padding)
    places = np.prod(jax.eval_shape(lambda: jconv.max_pool(jnp.zeros(shape), window, strides, padding)).shape)
    slack = 8192  # constants of the gathers, alignment
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= (places if pool is jconv.max_pool else 0) + slack


@pytest.mark.parametrize(
    ("space", "window", "strides", "padding"),
    [
        ((40,), (37,), 1, 9),
        ((50,), (37,), 3, 9),
        ((100,), (100,), 1, 0),
        ((12, 11), (12, 11), 1, 0),
        ((5, 4), (5, 4), 1, 0),  # as large as the input, though few taps
        ((80,), (66,), 66, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_long_windows(space, window, strides, padding, dtype):
    """Ties, 0 and -0, -inf and NaN in windows that are reduced in steps, folded or looped over: the first winner."""
    generator = np.random.default_rng(0)
    x = generator.integers(-2, 3, (2, *space, 3)).astype(np.float32)
    x[0, ..., 0][generator.random(space) < 0.1] = np.nan
    x[0, ..., 0][generator.random(space) < 0.1] = -np.nan
    x[1, ..., 1] = -np.inf
    x[1, ..., 2] = np.where(generator.random(space) < 0.5, 0.0, -0.0)
    x = x.astype(jnp.dtype(dtype))
    pads = ((padding, padding),) * len(space)
    arguments = {"window_shape": window, "strides": strides, "padding": pads}
    y, indices = reference.max_pool(x, **arguments, return_indices=True)
    got, seen = jconv.max_pool(x, **arguments, return_indices=True)
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(y, np.float32))
    np.testing.assert_array_equal(seen, indices)
    g = generator.integers(-3, 4, y.shape).astype(x.dtype)
    dx = jax.vjp(functools.partial(jconv.max_pool, **arguments), x)[1](g)[0]
    want = np.zeros((2, int(np.prod(space)), 3), np.float32)
    np.add.at(want, (np.arange(2)[:, None, None], indices.reshape(2, -1, 3), np.arange(3)), g.reshape(2, -1, 3))
    np.testing.assert_array_equal(dx, want.reshape(x.shape))


@pytest.mark.parametrize("space", [(7, 7), (2, 5, 6), (300,)], ids=str)
def test_a_global_pool_is_one_reduction_of_x(space):
    """Forward alone, of a maximum and of an average of many channels: x is reduced as it is, and nothing is sliced."""
    x = jax.ShapeDtypeStruct((4, *space, 256), "float32")
    for pool in (jconv.global_max_pool, jconv.global_avg_pool):
        text = jax.jit(pool).lower(x).as_text()
        shape = "x".join(map(str, x.shape))
        assert len(re.findall(rf"stablehlo.reduce\(.*tensor<{shape}xf32>", text)) == 1
        assert "stablehlo.slice" not in text and "stablehlo.reduce_window" not in text


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA:CPU fuses")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("window", "strides"), [((3, 3), (2, 2)), ((2, 2), (2, 2)), ((13, 13), (1, 1)), ((40, 40), (1, 1))]
)
def test_half_precision_is_compared_as_integers(window, strides, dtype):
    """Nothing is widened to float32 and rounded again, as XLA:CPU does with each slice of a bfloat16 array."""
    x = jax.ShapeDtypeStruct((2, 40, 40, 16), jnp.dtype(dtype))
    for f in (jconv.max_pool, jconv.min_pool):
        for indices in (False, True):
            pool = functools.partial(f, window_shape=window, strides=strides, return_indices=indices)
            assert "f32[" not in jax.jit(pool).lower(x).compile().as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pool", [jconv.max_pool, jconv.min_pool])
def test_every_half_precision_number(pool, dtype):
    """Each of the 65,536 beside another drawn one: the greater, the least, and NaN before all, subnormal ones too."""
    bits = np.arange(2**16, dtype=np.uint16)
    other = np.random.default_rng(0).permutation(bits)
    x = np.stack([bits, other], axis=1).view(jnp.dtype(dtype)).reshape(1, -1, 1)
    got, where = pool(x, 2, 2, return_indices=True)
    oracle = reference.max_pool if pool is jconv.max_pool else reference.min_pool
    with np.errstate(invalid="ignore"):  # numpy's word for a signalling NaN
        want, there = oracle(x.astype(np.float64), 2, 2, return_indices=True)
        np.testing.assert_array_equal(np.asarray(got).astype(np.float64), want)
    np.testing.assert_array_equal(where, there)


def test_a_corner_of_four_axes_gets_nothing_from_windows_that_do_not_see_it():
    """Every window's first tap has won, so the last element along any axis gets nothing."""
    geometry = Geometry(tuple(Axis(input=4, window=2, output=3) for _ in range(4)))
    g = jnp.ones((1, 3, 3, 3, 3, 1))
    dx = pools.scatter(g, jnp.zeros(g.shape, jnp.uint8), geometry=geometry, platform="cpu")
    want = np.zeros((4, 4, 4, 4))
    want[:3, :3, :3, :3] = 1
    np.testing.assert_array_equal(dx[0, ..., 0], want)
