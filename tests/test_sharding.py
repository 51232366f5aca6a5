"""A batch split over devices stays split: of every algorithm the compiled program adds up kernel gradients, no more.

A program gathers where XLA brings together what the devices hold. Each test compiles for four devices and reads the
collective operations off the compiled program. Images are taken one at a time, so that small arrays see every loop.
"""

import contextlib
import functools
import re
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jconv
import jconv.algorithms
from jconv.algorithms import choose, windows

DEVICES = 4
pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs four devices")

SAME = {"padding": "SAME"}
LAYERS = {  # (x, kernel, options): what each algorithm computes, the first of them where it would be chosen for
    "matmul": ((8, 3, 3, 6), (1, 1, 6, 5), {}),  # 72 places in 3 parts, which no device has
    "spread": ((8, 4, 4, 6), (2, 2, 6, 5), {"strides": 2}),
    "joined": ((8, 3, 4, 4, 6), (3, 1, 1, 6, 5), SAME),
    "interleaved": ((8, 5, 5, 6), (3, 3, 6, 5), {**SAME, "kernel_dilation": 2}),
    "slices": ((8, 3, 4, 4, 6), (3, 3, 3, 6, 5), SAME),
    "subpixel": ((8, 11, 11, 2), (4, 4, 2, 5), {"strides": 2}),
    "columns": ((8, 5, 5, 6), (3, 3, 6, 1), SAME),
    "phases": ((8, 5, 5, 6), (3, 3, 6, 5), {"strides": 2}),
    "space_to_depth": ((8, 12, 6), (4, 6, 5), {"strides": 2}),
    "taps": ((8, 5, 5, 6), (3, 3, 1, 6), {**SAME, "feature_group_count": 6}),
    "lanes": ((8, 5, 5, 16), (3, 3, 4, 16), {**SAME, "feature_group_count": 4}),
    "grouped": ((8, 5, 5, 40), (3, 3, 20, 40), {**SAME, "feature_group_count": 2}),
    "shifts": ((8, 5, 5, 6), (3, 3, 6, 5), SAME),
    "patches": ((8, 5, 5, 6), (3, 3, 6, 5), SAME),
    "padded": ((8, 2, 2, 6), (3, 3, 6, 5), {"padding": 2}),
    "abreast": ((8, 5, 5, 6), (3, 3, 6, 5), SAME),
    "edged": ((8, 5, 5, 6), (3, 3, 6, 5), {}),
    "lax": ((8, 5, 5, 6), (3, 3, 6, 5), SAME),
}
BY_DEFAULT = ((8, 5, 5, 6), (3, 3, 6, 5), SAME)


def mesh(shape=(DEVICES,), names=("i",)):
    return jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


def collectives(compiled: Any) -> dict[str, list[int]]:
    """The collective operations of a compiled program: for each kind the elements of each result."""
    found: dict[str, list[int]] = {}
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled):
        sizes = [
            np.prod([int(n) for n in dims.split(",") if n], dtype=int) for dims in re.findall(r"\[(.*?)\]", result)
        ]
        found.setdefault(kind, []).extend(sizes)
    return found


def drawn(*shapes, dtype: Any = np.float32):
    generator = np.random.default_rng(0)
    return tuple(generator.standard_normal(shape).astype(dtype) for shape in shapes)


def placed(grid, arrays, specs):
    return [jax.device_put(a, NamedSharding(grid, spec)) for a, spec in zip(arrays, specs, strict=True)]


def run(f, arrays, specs, grid=None):
    """(result, collectives) of f on four devices."""
    arrays = placed(grid or mesh(), arrays, specs)
    compiled = jax.jit(f).lower(*arrays).compile()
    return compiled(*arrays), collectives(compiled.as_text())


def step(f):
    """Forward and backward with a dense cotangent: y and the gradients of all operands."""
    return jax.value_and_grad(lambda *arrays: jnp.sin(f(*arrays)).sum(), argnums=tuple(range(3)))


@pytest.fixture
def one_image_at_a_time(monkeypatch):
    for module in vars(jconv.algorithms).values():
        for name in ("CHUNK_BYTES", "SUMMED_BYTES"):
            if isinstance(module, types.ModuleType) and hasattr(module, name):
                monkeypatch.setattr(module, name, 1)
    for name in ("PART_FLOPS", "PART_FLOPS_OF_VOLUME"):  # and sums in as many parts as there may be
        monkeypatch.setattr(windows, name, 1.0)


def layer(algorithm):
    x, kernel, options = LAYERS.get(algorithm, BY_DEFAULT)
    able = {}
    for product in choose.PRODUCTS:  # the algorithm for as many products as it computes
        conv = functools.partial(jconv.conv, **options, algorithm={product: algorithm})
        with contextlib.suppress(ValueError):
            jax.eval_shape(conv, *map(jnp.zeros, (x, kernel)))
            able[product] = algorithm
    assert able, algorithm
    return (x, kernel, kernel[-1:]), lambda x, k, b: jconv.conv(x, k, b, **options, algorithm=able)


@pytest.mark.usefixtures("one_image_at_a_time")
@pytest.mark.parametrize("algorithm", choose.NAMES)
def test_each_device_computes_its_images(algorithm):
    """The kernel's and the bias' gradients are added up over the devices once, and nothing is gathered."""
    shapes, conv = layer(algorithm)
    arrays = drawn(*shapes)
    (value, gradients), found = run(step(conv), arrays, (P("i"), P(), P()))
    assert found.keys() == {"all-reduce"}, found
    assert sum(found["all-reduce"]) == 1 + sum(a.size for a in arrays[1:]), found  # the loss is a sum, too
    assert gradients[0].sharding.is_equivalent_to(NamedSharding(mesh(), P("i")), arrays[0].ndim)
    want = jax.jit(step(conv))(*arrays)
    chex.assert_trees_all_close((value, gradients), want, rtol=2e-5, atol=2e-5)


def test_layouts_are_changed_where_the_images_are():
    """Results and gradients in another layout are large enough to be transposed in calls of their own."""
    x, kernel, bias = drawn((8, 16, 24, 24), (16, 16, 3, 3), (16,))
    conv = lambda x, k, b: jconv.conv(x, k, b, padding=1, data_format="channels_first")
    (value, gradients), found = run(step(conv), (x, kernel, bias), (P("i"), P(), P()))
    assert found.keys() == {"all-reduce"}, found
    assert sum(found["all-reduce"]) == 1 + kernel.size + bias.size, found
    assert gradients[0].sharding.is_equivalent_to(NamedSharding(mesh(), P("i")), x.ndim)
    chex.assert_trees_all_close((value, gradients), jax.jit(step(conv))(x, kernel, bias), rtol=2e-5, atol=2e-5)


def unpooled(x):
    y, indices = jconv.max_pool(x, 2, 2, return_indices=True)
    return jconv.max_unpool(y, indices, (6, 5))


POOLS = {
    "max_pool": lambda x: jconv.max_pool(x, 3, 2, "SAME"),
    "max_pool, windows apart": lambda x: jconv.max_pool(x, 2, 2),
    "max_pool over a long window": lambda x: jconv.max_pool(x, 21, 1, "SAME"),
    "avg_pool over a long window": lambda x: jconv.avg_pool(x, 21, 1, "SAME"),
    "lp_pool": lambda x: jconv.lp_pool(x, 2, 3, 2),
    "adaptive_max_pool": lambda x: jconv.adaptive_max_pool(x, 4),
    "adaptive_avg_pool": lambda x: jconv.adaptive_avg_pool(x, 4),
    "fold": lambda x: jconv.fold(jconv.unfold(x, 3), (6, 5), 3),
    "max_unpool": unpooled,
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_need_no_other_device(name):
    (x,) = drawn((8, 6, 5, 3))
    f = lambda x: (POOLS[name](x), jax.grad(lambda x: jnp.sin(POOLS[name](x)).sum())(x))
    got, found = run(f, (x,), (P("i"),))
    assert not found
    chex.assert_trees_all_close(got, jax.jit(f)(x), rtol=1e-6, atol=1e-6)


GRIDS = {  # the mesh, and the axes of it over which the batch is split
    "first axis": ((2, 2), P("i")),
    "last axis": ((2, 2), P("j")),
    "both axes, the last one first": ((2, 2), P(("j", "i"))),
    "not at all": ((2, 2), P()),
    "batch and height": ((2, 2), P("i", "j")),
}


@pytest.mark.usefixtures("one_image_at_a_time")
@pytest.mark.parametrize("name", GRIDS)
def test_other_meshes(name):
    """Values do not depend on how x is split; where it is along the batch alone, nothing is gathered."""
    shape, spec = GRIDS[name]
    conv = lambda x, k, b: jconv.conv(x, k, b, padding="SAME", algorithm="patches")
    arrays = drawn((8, 4, 4, 6), (3, 3, 6, 5), (5,))
    devices = jax.devices()[: np.prod(shape)]
    grid = jax.sharding.Mesh(np.array(devices).reshape(shape), ("i", "j"))
    got, found = run(step(conv), arrays, (spec, P(), P()), grid)
    chex.assert_trees_all_close(got, jax.jit(step(conv))(*arrays), rtol=2e-5, atol=2e-5)
    if name in ("first axis", "last axis"):
        assert found.keys() == {"all-reduce"}, found


@pytest.mark.usefixtures("one_image_at_a_time")
def test_a_batch_that_the_devices_cannot_share_evenly():
    conv = lambda x, k, b: jconv.conv(x, k, b, padding="SAME", algorithm="patches")
    arrays = drawn((6, 4, 4, 6), (3, 3, 6, 5), (5,))
    inside = lambda x, k, b: step(conv)(jax.lax.with_sharding_constraint(x, NamedSharding(mesh(), P("i"))), k, b)
    got, _ = run(inside, arrays, (P(), P(), P()))
    chex.assert_trees_all_close(got, jax.jit(step(conv))(*arrays), rtol=2e-5, atol=2e-5)


def per_example(conv):
    return lambda x, k, b: jax.vmap(lambda x: step(conv)(x[None], k, b)[1][1:])(x)


def scanned(conv):
    def f(x, k, b):
        return jax.lax.scan(lambda total, s: (total + s * step(conv)(x, k, b)[1][1], None), k, jnp.ones(3))[0]

    return f


FORMS = {
    "examples": (per_example, P("i"), 0),  # each gradient where its example is
    "scan": (scanned, P(), 1),
    "checkpoint": (lambda conv: lambda *a: step(jax.checkpoint(conv))(*a)[1][1], P(), 1),
    "jvp": (lambda conv: lambda *a: jax.jvp(conv, a, a)[1], P("i"), 0),
}


@pytest.mark.usefixtures("one_image_at_a_time")
@pytest.mark.parametrize("form", FORMS)
def test_transformations(form):
    transform, spec, sums = FORMS[form]
    f = transform(lambda x, k, b: jconv.conv(x, k, b, padding="SAME", algorithm="patches"))
    arrays = drawn((8, 4, 4, 6), (3, 3, 6, 5), (5,))
    got, found = run(f, arrays, (P("i"), P(), P()))
    assert found.keys() <= {"all-reduce"}, found
    assert len(found.get("all-reduce", ())) == sums, found
    first = jax.tree.leaves(got)[0]
    assert first.sharding.is_equivalent_to(NamedSharding(mesh(), spec), first.ndim)
    chex.assert_trees_all_close(got, jax.jit(f)(*arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_image_at_a_time", "x64")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "complex128"])
def test_dtypes(dtype):
    """Sums of bfloat16 are added up over the devices in float32, and rounded once."""
    x, kernel, g = (jnp.asarray(a, dtype) for a in drawn((8, 4, 4, 6), (3, 3, 6, 5), (8, 4, 4, 5), dtype=np.float64))
    f = lambda x, g: jconv.conv_kernel_grad(x, g, kernel.shape, padding="SAME", algorithm="patches")
    got, found = run(f, (x, g), (P("i"), P("i")))
    assert found == {"all-reduce": [kernel.size]}
    exact = f(*(a.astype("complex128" if dtype == "complex128" else "float64") for a in (x, g)))
    assert got.dtype == dtype
    rtol = 2**-8 if dtype == "bfloat16" else 1e-12
    np.testing.assert_allclose(np.asarray(got, exact.dtype), exact, rtol=rtol, atol=rtol / 100)


@pytest.mark.usefixtures("one_image_at_a_time")
def test_one_device_and_shard_map_run_the_program_itself():
    conv = lambda x, k: jconv.conv(x, k, padding="SAME", algorithm="patches")
    arrays = drawn((8, 4, 4, 6), (3, 3, 6, 5))
    inside = jax.shard_map(conv, mesh=mesh(), in_specs=(P("i"), P()), out_specs=P("i"))
    for f in (conv, inside):
        assert "CustomSPMDPartitioning" not in jax.jit(f).lower(*arrays).as_text()
    split = placed(mesh(), arrays, (P("i"), P()))
    assert "CustomSPMDPartitioning" in jax.jit(conv).lower(*split).as_text()
