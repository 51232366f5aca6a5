"""Convolutions and poolings under every transformation of JAX: the values are those of lax under the same one.

Each of FORMS turns f(x, kernel, bias) into a function of the same arrays; a test applies it to all of LAYERS twice,
with jconv's layer and with stock JAX's, and compares.
"""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jconv
from tests.cases import Case

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer as jconv has it and as stock JAX has it, functions of (x, kernel, bias)."""

    ours: Callable[..., Any]
    stock: Callable[..., Any]
    arrays: tuple[Any, ...]


def conv_layer(case: Case) -> Layer:
    return Layer(functools.partial(jconv.conv, **case.options), case.stock, tuple(case.draw("float64")[:3]))


def transposed_layer(case: Case) -> Layer:
    _, kernel, _, y = case.draw("float64")
    ours = functools.partial(jconv.conv_transpose, **case.transposed)
    pads = [(reach - 1 - low, reach - 1 - high) for (low, high), reach in zip(case.pads, case.reach)]

    def stock(y, kernel, bias):
        transpose = functools.partial(lax.conv_transpose, rhs_dilation=None, transpose_kernel=True)
        return transpose(y, kernel, (case.strides,), pads, dimension_numbers=case.dimension_numbers) + bias

    return Layer(ours, stock, (y, kernel, np.ones(case.channels[0])))


def pool_layer(name: str, initial: float, operation: Callable[..., Any], divisor: int) -> Layer:
    """A pooling of x * kernel + bias, so that it has as many arrays as the others."""
    rng = np.random.default_rng(0)
    x = rng.permutation(np.linspace(-2, 2, 40)).reshape(2, 10, 2)  # distinct values, apart by more than a step
    ours = lambda x, kernel, bias: getattr(jconv, name)(x * kernel + bias, 3, 2, ((1, 2),))

    def stock(x, kernel, bias):
        x = x * kernel + bias
        window = ((1, 3, 1), (1, 2, 1), ((0, 0), (1, 2), (0, 0)))
        return lax.reduce_window(x, np.array(initial, x.dtype), operation, *window) / divisor

    return Layer(ours, stock, (x, rng.uniform(0.9, 1.1, (10, 2)), np.array([1.0, -1.0])))


LAYERS = {
    "dense": conv_layer(Case((6, 5), (3, 2), (2, 1), ((1, 2), (0, 1)))),
    "depthwise": conv_layer(Case((6,), (3,), 1, "SAME", kernel_dilation=2, groups=2, channels=(2, 4))),
    "channels first": conv_layer(Case((5,), (3,), padding="CIRCULAR", data_format="channels_first")),
    "transposed": transposed_layer(Case((5,), (3,), 2, ((1, 1),))),
    "max_pool": pool_layer("max_pool", -np.inf, lax.max, 1),
    "avg_pool": pool_layer("avg_pool", 0, lax.add, 3),
}


def loss(f):
    return lambda x, kernel, bias: jnp.sin(f(x, kernel, bias)).sum()


def tangents(*arrays):
    return tuple(jnp.cos(a + i) for i, a in enumerate(arrays))


def stacked(array, axis=0):
    return jnp.stack([array, 2 * array, -array], axis)


def cubed(f):
    """grad of grad of grad, along directions that differ."""
    one = lambda g: lambda *arrays: sum(jnp.vdot(a, t) for a, t in zip(jax.grad(g, (0, 1))(*arrays), tangents(*arrays)))
    return jax.grad(one(one(loss(f))), (0, 1))


def scanned(f):
    """The kernel is carried, the inputs are scanned over, outputs are stacked."""

    def run(x, kernel, bias):
        def body(kernel, x):
            y = f(x, kernel, bias)
            return kernel * (1 + jnp.tanh(y.mean())), y

        kernel, ys = lax.scan(body, kernel, stacked(x))
        return jnp.sin(kernel).sum() + jnp.sin(ys).sum()

    return run


def whiled(f):
    def run(x, kernel, bias):
        more = lambda state: state[0] < 3
        step = lambda state: (state[0] + 1, state[1] * (1 + 0.1 * jnp.tanh(f(state[1], kernel, bias).mean())))
        return lax.while_loop(more, step, (0, x))[1]

    return run


def conditional(f):
    other = lambda x, kernel, bias: 2 * f(-x, kernel, bias)
    return lambda x, kernel, bias: lax.cond(x.ravel()[0] > 0, f, other, x, kernel, bias)


def vmapped(in_axes, f, out_axes=0):
    """f mapped over the arrays that in_axes names, each stacked along that axis."""

    def run(*arrays):
        arrays = [a if axis is None else stacked(a, axis) for a, axis in zip(arrays, in_axes)]
        return jax.vmap(f, in_axes, out_axes)(*arrays)

    return run


def nested(outer, inner, f):
    return vmapped(outer, vmapped(inner, f))


def summed(f):
    """grad's outermost function: one number."""
    return lambda *arrays: jnp.sin(f(*arrays)).sum()


ALL = (0, 1, 2)
FORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(loss(f), ALL),
    "grad of x": lambda f: jax.grad(loss(f), 0),
    "grad of the kernel": lambda f: jax.grad(loss(f), 1),
    "grad of the bias": lambda f: jax.grad(loss(f), 2),
    "value_and_grad": lambda f: jax.value_and_grad(loss(f), ALL),
    "grad of grad": lambda f: jax.grad(summed(jax.grad(loss(f), 1)), ALL),
    "grad of grad of grad": cubed,
    "jvp": lambda f: lambda *a: jax.jvp(f, a, tangents(*a)),
    "jvp of x": lambda f: lambda x, k, b: jax.jvp(lambda x: f(x, k, b), (x,), (jnp.cos(x),)),
    "jvp of the bias": lambda f: lambda x, k, b: jax.jvp(lambda b: f(x, k, b), (b,), (jnp.cos(b),)),
    "jvp of grad": lambda f: lambda *a: jax.jvp(jax.grad(loss(f), ALL), a, tangents(*a)),
    "grad of jvp": lambda f: jax.grad(lambda *a: summed(lambda *a: jax.jvp(f, a, tangents(*a))[1])(*a), ALL),
    "jvp of jvp": lambda f: lambda *a: jax.jvp(lambda *a: jax.jvp(f, a, tangents(*a))[1], a, tangents(*a)),
    "linearize": lambda f: lambda *a: jax.linearize(f, *a)[1](*tangents(*a)),
    "vjp": lambda f: lambda *a: jax.vjp(f, *a)[1](jnp.cos(f(*a))),
    "jacrev": lambda f: jax.jacrev(f, 1),
    "jacfwd": lambda f: jax.jacfwd(f, 1),
    "jacrev of x": lambda f: jax.jacrev(f, 0),
    "hessian": lambda f: jax.hessian(loss(f), 1),
    "jacrev of jacrev": lambda f: jax.jacrev(jax.jacrev(loss(f), 1), 1),
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(loss(f), 1), 1),
    "vmap of x": functools.partial(vmapped, (0, None, None)),
    "vmap of x, axis 2": functools.partial(vmapped, (2, None, None), out_axes=-1),
    "vmap of the kernel": functools.partial(vmapped, (None, 0, None)),
    "vmap of the kernel, last axis": functools.partial(vmapped, (None, -1, None), out_axes=1),
    "vmap of the bias": functools.partial(vmapped, (None, None, 0)),
    "vmap of both": functools.partial(vmapped, (0, 0, None)),
    "vmap of all, other axes": functools.partial(vmapped, (1, 2, 1)),
    "vmap of x in vmap of x": functools.partial(nested, (0, None, None), (1, None, None)),
    "vmap of x in vmap of the kernel": functools.partial(nested, (None, 1, None), (0, None, None)),
    "vmap of both in vmap of x": functools.partial(nested, (0, None, None), (0, 0, 0)),
    "vmap of both in vmap of both": functools.partial(nested, (1, 0, None), (0, 1, 0)),
    "grad of vmap of x": lambda f: jax.grad(summed(vmapped((0, None, None), f)), ALL),
    "grad of vmap of both": lambda f: jax.grad(summed(vmapped((0, 0, None), f)), ALL),
    "vmap of grad": lambda f: vmapped((0, None, None), jax.grad(loss(f), ALL)),
    "vmap of grad, kernels too": lambda f: vmapped((0, 0, 0), jax.grad(loss(f), ALL)),
    "vmap of jvp": lambda f: vmapped((0, 0, None), lambda *a: jax.jvp(f, a, tangents(*a))[1]),
    "jvp of vmap": lambda f: lambda *a: jax.jvp(vmapped((0, None, None), f), a, tangents(*a)),
    "vmap of hessian": lambda f: vmapped((0, None, None), jax.hessian(loss(f), 2)),
    "grad of vmap of grad": lambda f: jax.grad(summed(vmapped((0, None, None), jax.grad(loss(f), 1))), ALL),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(loss(f)), ALL),
    "checkpoint, nothing saved": lambda f: jax.grad(
        jax.checkpoint(loss(f), policy=jax.checkpoint_policies.nothing_saveable), ALL
    ),
    "checkpoint, grad of grad": lambda f: jax.grad(summed(jax.grad(jax.checkpoint(loss(f)), 1)), ALL),
    "scan": scanned,
    "grad of scan": lambda f: jax.grad(scanned(f), ALL),
    "grad of scan of checkpoint": lambda f: jax.grad(scanned(jax.checkpoint(f)), ALL),
    "vmap of grad of scan": lambda f: vmapped((0, None, None), jax.grad(scanned(f), ALL)),
    "jvp of scan": lambda f: lambda *a: jax.jvp(scanned(f), a, tangents(*a)),
    "map": lambda f: lambda x, k, b: lax.map(lambda x: f(x, k, b), stacked(x)),
    "cond": conditional,
    "grad of cond": lambda f: jax.grad(loss(conditional(f)), ALL),
    "vmap of cond": lambda f: vmapped((0, None, None), conditional(f)),
    "while": whiled,
    "jvp of while": lambda f: lambda *a: jax.jvp(whiled(f), a, tangents(*a)),
    "jit in jit": lambda f: jax.jit(lambda *a: jax.jit(loss(f))(*a) + jax.jit(loss(f))(*a)),
}


def everywhere(form: str, side: str) -> Callable[..., Any]:
    """`form` of every layer, as one function of all their arrays."""

    def run(arrays):
        return {name: FORMS[form](getattr(layer, side))(*arrays[name]) for name, layer in LAYERS.items()}

    return run


ARRAYS = {name: layer.arrays for name, layer in LAYERS.items()}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_values_are_laxs(form):
    ours, stock = (jax.jit(everywhere(form, side))(ARRAYS) for side in ("ours", "stock"))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, stock)
    chex.assert_trees_all_close(ours, stock, **CLOSE)


EAGER = ["grad", "jvp of grad", "vmap of both", "grad of scan", "grad of vmap of x", "checkpoint", "cond"]


@pytest.mark.optimised
@pytest.mark.parametrize("form", EAGER)
def test_values_are_laxs_in_float32_without_jit(form):
    """As users run it: x64 off, each call compiled by itself."""
    layer = LAYERS["dense"]
    arrays = [a.astype(np.float32) for a in layer.arrays]
    ours, stock = (FORMS[form](f)(*arrays) for f in (layer.ours, layer.stock))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, stock)
    assert {a.dtype for a in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    chex.assert_trees_all_close(ours, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x64", [False, True])
def test_x64_on_and_off(x64):
    layer = LAYERS["dense"]
    with jax.enable_x64(x64):
        arrays = [jnp.asarray(a) for a in layer.arrays]  # float64 only with x64
        ours, stock = (jax.jit(FORMS["grad"](f))(*arrays) for f in (layer.ours, layer.stock))
        assert ours[0].dtype == (np.float64 if x64 else np.float32)
        chex.assert_trees_all_close(ours, stock, rtol=1e-4, atol=1e-4)
        narrow = [a.astype(np.float32) for a in layer.arrays]
        assert {a.dtype for a in FORMS["grad"](layer.ours)(*narrow)} == {np.dtype(np.float32)}


def test_without_jit_at_all():
    layer = LAYERS["depthwise"]
    arrays = [a.astype(np.float32) for a in layer.arrays]
    with jax.disable_jit():
        ours = FORMS["grad"](layer.ours)(*arrays)
    chex.assert_trees_all_close(ours, FORMS["grad"](layer.stock)(*arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_eval_shape(name):
    layer = LAYERS[name]
    shapes = [jax.ShapeDtypeStruct(a.shape, np.float32) for a in layer.arrays]
    for form in ("jit", "grad", "hessian"):
        ours, stock = (jax.eval_shape(FORMS[form](f), *shapes) for f in (layer.ours, layer.stock))
        chex.assert_trees_all_equal_shapes_and_dtypes(ours, stock)


@pytest.mark.parametrize("name", LAYERS)
def test_checking_leaks_and_debug_nans(name):
    layer = LAYERS[name]
    arrays = [a.astype(np.float32) for a in layer.arrays]
    want = FORMS["grad"](layer.stock)(*arrays)
    with jax.checking_leaks():
        chex.assert_trees_all_close(jax.jit(FORMS["grad"](layer.ours))(*arrays), want, rtol=1e-4, atol=1e-4)
        jax.make_jaxpr(FORMS["jvp of grad"](layer.ours))(*arrays)
        jax.make_jaxpr(FORMS["vmap of grad"](layer.ours))(*arrays)
    with jax.debug_nans(True):
        chex.assert_trees_all_close(jax.jit(FORMS["grad"](layer.ours))(*arrays), want, rtol=1e-4, atol=1e-4)
        layer.ours(*arrays).block_until_ready()
        with pytest.raises(FloatingPointError):
            layer.ours(arrays[0] * np.nan, *arrays[1:])


def test_donation():
    """A training step that gives its parameters away, as in the README."""
    layer = LAYERS["dense"]
    x, kernel, bias = (jnp.asarray(a, jnp.float32) for a in layer.arrays)

    def step(f, params, x):
        gradient = jax.grad(lambda params: loss(f)(x, *params))(params)
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, gradient)

    want = jax.jit(functools.partial(step, layer.stock))((kernel, bias), x)
    given = (kernel + 0, bias + 0)
    got = jax.jit(functools.partial(step, layer.ours), donate_argnums=0)(given, x)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    assert all(p.is_deleted() for p in given)
    assert not x.is_deleted()


# jax.export.


@pytest.mark.parametrize("name", LAYERS)
def test_export_round_trip(name):
    layer = LAYERS[name]
    arrays = [a.astype(np.float32) for a in layer.arrays]
    f = jax.jit(FORMS["value_and_grad"](layer.ours))
    exported = jax.export.export(f, platforms=["cpu", "cuda"])(*arrays)
    again = jax.export.deserialize(exported.serialize())
    if name == "avg_pool":  # fused otherwise when compiled for several platforms: a rounding
        chex.assert_trees_all_close(again.call(*arrays), f(*arrays), rtol=1e-6, atol=1e-7)
    else:
        chex.assert_trees_all_equal(again.call(*arrays), f(*arrays))


def test_export_takes_the_hand_written_gradient_along():
    layer = LAYERS["dense"]
    arrays = [a.astype(np.float32) for a in layer.arrays]
    blob = jax.export.export(jax.jit(layer.ours))(*arrays).serialize(vjp_order=2)
    again = jax.export.deserialize(blob).call
    want = FORMS["grad"](layer.stock)(*arrays)
    chex.assert_trees_all_close(FORMS["grad"](again)(*arrays), want, rtol=1e-4, atol=1e-5)
    want = FORMS["grad of grad"](layer.stock)(*arrays)
    chex.assert_trees_all_close(FORMS["grad of grad"](again)(*arrays), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["jit", "grad", "vmap of x", "vmap of grad"])
def test_export_with_a_symbolic_batch(name, form):
    layer = LAYERS[name]
    x, kernel, bias = (a.astype(np.float32) for a in layer.arrays)
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (kernel, bias)]
    exported = jax.export.export(jax.jit(FORMS[form](layer.ours)))(
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), *shapes
    )
    again = jax.export.deserialize(exported.serialize()).call
    for size in (1, 2, 5):
        several = np.resize(x, (size, *x.shape[1:]))
        want = FORMS[form](layer.stock)(several, kernel, bias)
        chex.assert_trees_all_close(again(several, kernel, bias), want, rtol=1e-4, atol=1e-4)


# Several devices: conftest.py asks for four CPUs.

DEVICES = 4
needs_devices = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs four devices")


def mesh(kind=AxisType.Auto, shape=(DEVICES,), names=("i",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def large(name):
    """A layer's arrays with a batch that four devices can share."""
    x, kernel, bias = (a.astype(np.float32) for a in LAYERS[name].arrays)
    return np.concatenate([x, 2 * x, -x, x + 1]), kernel, bias


def varying(kernel):
    """The kernel as one that differs from device to device: pcast is jax 0.9's name, pvary the one before."""
    return lax.pcast(kernel, "i", to="varying") if hasattr(lax, "pcast") else lax.pvary(kernel, "i")


SHARDED = {
    # what the devices compute, the specification of its result
    "forward": (lambda f: f, P("i")),
    "gradient inside, summed over the devices": (lambda f: lambda x, k, b: jax.grad(loss(f), (1, 2))(x, k, b), P()),
    "gradient of x inside": (lambda f: lambda x, k, b: jax.grad(loss(f), 0)(x, k, b), P("i")),
    "gradient of every device": (
        lambda f: lambda x, k, b: jax.grad(loss(f), 1)(x, varying(k), b)[None],
        P("i"),
    ),
    "grad of psum": (lambda f: lambda x, k, b: jax.grad(lambda k: lax.psum(loss(f)(x, k, b), "i"))(k), P()),
    "jvp inside": (lambda f: lambda x, k, b: jax.jvp(lambda k: f(x, k, b), (k,), (jnp.cos(k),))[1], P("i")),
    "hessian inside": (lambda f: lambda x, k, b: jax.hessian(loss(f), 2)(x, k, b), P()),
    "vmap inside": (lambda f: lambda x, k, b: jax.vmap(f, (0, None, None))(x[:, None], k, b), P("i")),
    "vmap of grad inside": (
        lambda f: lambda x, k, b: jax.vmap(jax.grad(loss(f), 1), (0, None, None))(x[:, None], k, b),
        P("i"),
    ),
    "scan inside": (lambda f: lambda x, k, b: jax.grad(summed(FORMS["map"](f)), 1)(x, k, b), P()),
}


@needs_devices
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", SHARDED)
def test_shard_map(form, name):
    """check_vma: what varies over the devices is tracked, and the gradient of the replicated kernel is summed."""
    arrays = large(name)
    transform, spec = SHARDED[form]
    one = lambda f: jax.shard_map(
        transform(f), mesh=mesh(), in_specs=(P("i"), P(), P()), out_specs=spec, check_vma=True
    )
    ours, stock = (jax.jit(one(f))(*arrays) for f in (LAYERS[name].ours, LAYERS[name].stock))
    chex.assert_trees_all_close(ours, stock, rtol=1e-4, atol=1e-4)


@needs_devices
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_of_shard_map(name):
    """From outside: the kernel's gradient is the sum over the devices, and equals the gradient on one device."""
    arrays = large(name)

    def outside(f):
        parts = jax.shard_map(f, mesh=mesh(), in_specs=(P("i"), P(), P()), out_specs=P("i"))
        return jax.jit(jax.grad(loss(parts), ALL))

    ours = outside(LAYERS[name].ours)(*arrays)
    want = jax.jit(jax.grad(loss(LAYERS[name].stock), ALL))(*arrays)
    chex.assert_trees_all_close(ours, outside(LAYERS[name].stock)(*arrays), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(ours, want, rtol=1e-4, atol=1e-4)


@needs_devices
@pytest.mark.parametrize("layout", ["batch", "batch and out channels", "everywhere the same"])
@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_jit_with_sharded_inputs(name, layout):
    arrays = large(name)
    if layout == "batch":
        grid, specs = mesh(), (P("i"), P(), P())
    elif layout == "batch and out channels" and name == "depthwise":
        grid, specs = mesh(shape=(2, 2), names=("i", "j")), (P("i"), P(None, None, "j"), P("j"))
    else:
        grid, specs = mesh(), (P(), P(), P())
    placed = [jax.device_put(a, NamedSharding(grid, spec)) for a, spec in zip(arrays, specs)]
    for form in ("jit", "value_and_grad", "jvp of grad"):
        want = jax.jit(FORMS[form](LAYERS[name].stock))(*arrays)
        chex.assert_trees_all_close(jax.jit(FORMS[form](LAYERS[name].ours))(*placed), want, rtol=1e-4, atol=1e-4)
    if layout == "batch":
        y = jax.jit(LAYERS[name].ours)(*placed)
        assert y.sharding.is_equivalent_to(NamedSharding(grid, P("i")), y.ndim)  # not gathered


@needs_devices
def test_explicit_sharding():
    """Meshes whose axes are in the types: x split over the batch, the kernel on every device."""
    arrays, grid = large("dense"), mesh(AxisType.Explicit)
    with jax.set_mesh(grid):
        placed = [jax.device_put(a, NamedSharding(grid, spec)) for a, spec in zip(arrays, (P("i"), P(), P()))]
        for form in ("jit", "grad"):
            want = jax.jit(FORMS[form](LAYERS["dense"].stock))(*placed)
            got = jax.jit(FORMS[form](LAYERS["dense"].ours))(*placed)
            chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)
            assert [g.aval.sharding for g in jax.tree.leaves(got)] == [w.aval.sharding for w in jax.tree.leaves(want)]


# Compilation.


@pytest.fixture
def compilations():
    """A list that grows by one with every program that XLA compiles."""
    seen = []

    def listen(event, seconds, **kwargs):
        del seconds, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def calls(x, kernel, bias, g):
    """Each public function, its static arguments built anew: now as tuples, now as lists."""
    kind = itertools.cycle((tuple, list))

    def options():
        make = next(kind)
        return {"strides": make([2, 1]), "padding": make([(1, 1), make([0, 2])]), "kernel_dilation": make([1, 2])}

    return [
        lambda: jconv.conv(x, kernel, bias, **options()),
        lambda: jconv.conv2d(x, kernel, **options()),
        lambda: jconv.conv_transpose(g, kernel, **options(), output_padding=next(kind)([1, 0])),
        lambda: jconv.conv_kernel_grad(x, g, next(kind)(kernel.shape), **options()),
        lambda: jconv.conv_input_grad(g, kernel, next(kind)(x.shape), **options()),
        lambda: jconv.conv_bias_grad(g),
        lambda: jax.grad(lambda k: jconv.conv(x, k, bias, **options()).sum())(kernel),
    ]


def test_nothing_is_compiled_twice_for_equal_static_arguments(compilations):
    case = Case((6, 5), (3, 2), (2, 1), ((1, 1), (0, 2)), kernel_dilation=(1, 2))
    for call in calls(*(jnp.asarray(a) for a in case.draw("float32"))):
        call()
        before = len(compilations)
        assert before
        for _ in range(3):
            call()
        assert len(compilations) == before


def test_a_public_call_is_one_program(compilations):
    """The public functions jit themselves: an eager call does not run operation by operation."""
    case = Case((7, 6), (3, 2), (2, 1), padding="CIRCULAR", data_format="channels_first", batch=None)
    x, kernel, bias, _ = (jnp.asarray(a) for a in case.draw("float32"))
    jax.block_until_ready((x, kernel, bias))
    before = len(compilations)
    jconv.conv(x, kernel, bias, **case.options)
    assert len(compilations) == before + 1


def test_a_jitted_function_is_traced_once():
    case = Case((6, 5), (3, 2))
    x, kernel, _, _ = case.draw("float32")
    f = jax.jit(lambda x, k, padding: jconv.conv(x, k, padding=padding), static_argnums=2)
    for _ in range(3):
        f(x, kernel, ((1, 1), (0, 1)))
    assert f._cache_size() == 1
    step = jax.jit(jax.grad(lambda k, x: jconv.conv(x, k).sum()))
    for scale in range(3):
        step(kernel * scale, x)
    assert step._cache_size() == 1


# import jconv.

PROBE = """
    import sys, time
    begin = time.process_time()
    import jax, jax.numpy, numpy
    before, modules = time.process_time(), set(sys.modules)
    import jconv
    print(before - begin, time.process_time() - before)
    print(*sorted(set(sys.modules) - modules))
    later = ("autotune", "compare", "explain", "Tuning")
    assert all(callable(getattr(jconv, name)) for name in later) and set(later) <= set(dir(jconv))
"""


def probe(**environment):
    code = textwrap.dedent(PROBE)
    run = [sys.executable, "-c", code]
    output = subprocess.run(run, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout
    seconds, modules = output.splitlines()
    jax_seconds, jconv_seconds = map(float, seconds.split())
    return jconv_seconds / max(1.0, jax_seconds / JAX_SECONDS), modules.split()


JAX_SECONDS = 0.45  # what import jax takes on an idle machine; on one that is not, imports are slower alike


def test_import_is_light_and_asks_for_no_backend(tmp_path):
    """With a platform that does not exist, the first question for a backend is an error.

    0.1 s of processor time, the best of some. One import before them compiles the modules, and they read what it
    compiled, whether or not the machine's own setting is to keep that.
    """
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    probe(**kept)
    fastest = float("inf")
    for _ in range(10):
        seconds, modules = probe(JAX_PLATFORMS="none_such", **kept)
        fastest = min(fastest, seconds)
        foreign = {name.split(".")[0] for name in modules} - {"jconv"} - set(sys.stdlib_module_names)
        assert foreign <= {"jax", "jaxlib"}, foreign
        later = ("jconv.autotuning", "jconv.comparison", "jconv.explanation", "jconv.tuning")
        assert not any(name.startswith(later) for name in modules)
        if fastest < 0.1:
            return
    raise AssertionError(f"import jconv takes {fastest:.3f} s of processor time")
