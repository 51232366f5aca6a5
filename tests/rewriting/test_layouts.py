"""What follows on a convolution in NCHW is done on the array as the convolution has left it, and means the same."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import partial_eval

import jconv
from jconv.rewriting import layouts, table, walk

SHAPE, CHANNELS = (2, 3, 6, 5), 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal(SHAPE, np.float32)
FIRST, LAST = (RNG.standard_normal((4, i, 3, 3), np.float32) / 4 for i in (3, 4))
WIDE = RNG.standard_normal((4, 8, 3, 3), np.float32) / 4
BIAS = RNG.standard_normal((4, 1, 1), np.float32)
FULL = RNG.standard_normal((2, 4, 6, 5), np.float32)  # of the result of a layer, and not of any
STAYS = dataclasses.replace(table.BY_JCONV, transposed=None)  # accelerate as it would be without
conv = lambda x, kernel, strides=1: lax.conv(x, kernel, (strides, strides), "SAME")


def normalised(x):
    mean = x.mean((0, 2, 3), keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean((0, 2, 3), keepdims=True) + 1e-5) * BIAS + BIAS


def of_one_example(x):
    """As equinox has it: layers of one example, each of which makes a batch of one of it."""
    return jax.vmap(lambda x: jax.nn.relu(jnp.squeeze(x[None] * BIAS[None], 0)))(x)


ALONE = {  # what stands between two layers, without a transpose
    "a bias": lambda x: x + BIAS,
    "a broadcast bias": lambda x: x + jnp.broadcast_to(BIAS, x.shape[1:]),
    "a number": lambda x: 2 * x - 0.5,
    "relu": jax.nn.relu,
    "activations": lambda x: jax.nn.gelu(jax.nn.silu(x)) + jax.nn.elu(x) * jax.nn.sigmoid(x),
    "leaky relu, clipped": lambda x: jnp.clip(jax.nn.leaky_relu(x), -0.5, 3),
    "where": lambda x: jnp.where(x > 0.1, x**3, jnp.tanh(x)),
    "abs, max and min": lambda x: jnp.maximum(abs(x), jnp.minimum(x, 0.3)),
    "batch normalisation": lambda x: jax.nn.relu(normalised(x)),
    "layer normalisation": lambda x: x - x.mean(1, keepdims=True),
    "softmax over channels": lambda x: jax.nn.softmax(x, 1),
    "a shortcut": lambda x: x + jax.nn.relu(x + BIAS),
    "squeeze and excite": lambda x: x * jax.nn.sigmoid(x.mean((2, 3), keepdims=True)),
    "one example": of_one_example,
    "another layer": lambda x: x + conv(x, LAST),
    "max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "SAME"),
    "average pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 3, 3), (1, 1, 1, 1), "SAME") / 9,
    "pad, slice and rev": lambda x: lax.rev(lax.pad(x, 0.5, ((0, 0, 0), (0, 0, 0), (1, 2, 0), (0, 1, 1))), (3,))[
        :, :, :-3:1, 1:6
    ],
    "another dtype": lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
    "jit": jax.jit(lambda x: jax.nn.relu(x) * 2),
    "stop_gradient": lambda x: x * lax.stop_gradient(x),
}
MORE = {  # what has no rule, or would cost a transpose itself
    "another array": lambda x: x + FULL,
    "and nothing of it": lambda x: (x * FULL) + x,
    "an order of its own": lambda x: jnp.cumsum(x, axis=2),
    "a sort": lambda x: jnp.sort(x, axis=1),
    "flat": lambda x: jnp.tanh(x.reshape(2, -1)).reshape(x.shape),
    "turned": lambda x: jnp.swapaxes(jnp.swapaxes(x, 2, 3) * 2, 2, 3) + x,
    "moved": lambda x: jnp.moveaxis(jnp.moveaxis(x, 1, -1) + BIAS.ravel(), -1, 1),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(x + BIAS)),
    "scan": lambda x: lax.scan(lambda c, _: (jax.nn.relu(c + BIAS), None), x, length=2)[0],
    "an outer product": lambda x: jnp.einsum("nchw,ncHw->nchw", x, x),
    "a function with a rule of its own": jax.nn.softplus,
    "one place": lambda x: x.at[0, 1, 2, 3].add(1.0),
    "a reduction's own order": lambda x: x + x.sum(0, keepdims=True) + x.max((0, 1))[None, None],
}


def net(between):
    return lambda x, first, last: (jnp.sin(conv(between(conv(x, first)), last)) * FULL).sum()


def transposes(fun, *args):
    """Of images of a layer, of those that anything reads."""
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    image = lambda aval: {5, 6} <= set(aval.shape) and aval.size >= X.size
    return sum(e.primitive.name in ("transpose", "ordered") and image(e.outvars[0].aval) for e in jaxpr.eqns)


@pytest.mark.parametrize("name", [*ALONE, *MORE])
def test_it_means_the_same(name):
    """Values and gradients, with accelerate inside of grad, around it, and around a jit of it."""
    fun = net({**ALONE, **MORE}[name])
    stock = jax.value_and_grad(fun, (0, 1, 2))
    inside = jax.jit(jax.value_and_grad(jconv.accelerate(fun), (0, 1, 2)))
    around, jitted = jax.jit(jconv.accelerate(stock)), jconv.accelerate(jax.jit(stock))
    eager = jconv.accelerate(stock)
    want = jax.jit(stock)(X, FIRST, LAST)
    for form in (inside, around, jitted, eager):
        for a, b in zip(jax.tree.leaves(form(X, FIRST, LAST)), jax.tree.leaves(want), strict=True):
            # sums of 2 * 6 * 5 * 4 float32 terms; of bfloat16 the roundings are the same or one apart
            np.testing.assert_allclose(a, b, rtol=0, atol=(2e-2 if "dtype" in name else 2e-5) * np.abs(b).max())


@pytest.mark.parametrize("name", MORE)
def test_no_more_is_transposed_than_without(name):
    fun = lambda x, first, last: conv(MORE[name](conv(x, first)), last)
    assert transposes(jconv.accelerate(fun), X, FIRST, LAST) <= transposes(walk.apply(STAYS, fun), X, FIRST, LAST)


def test_two_orders_in_one_operation():
    fun = lambda x: conv((y := jax.nn.relu(conv(x, FIRST))) * 2 + jnp.swapaxes(y, 2, 3), LAST)
    x = RNG.standard_normal((2, 3, 6, 6), np.float32)
    np.testing.assert_allclose(jax.jit(jconv.accelerate(fun))(x), jax.jit(fun)(x), rtol=0, atol=2e-5)


def test_a_jit_that_says_more_than_what_to_compute_stays():
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for inner, stays in ((jax.jit(jnp.tanh), False), (jax.jit(jnp.tanh, out_shardings=where), True)):
        jaxpr = jax.make_jaxpr(jconv.accelerate(lambda x, inner=inner: inner(conv(x, FIRST))))(X).jaxpr
        assert stays == any(e.primitive.name == "jit" for e in jaxpr.eqns)


@pytest.mark.parametrize("name", ALONE)
def test_nothing_is_transposed_between_layers(name):
    """But what enters the first layer and leaves the last."""
    fun = lambda x, first, last: conv(ALONE[name](conv(x, first)), last)
    assert transposes(jconv.accelerate(fun), X, FIRST, LAST) == 2
    step = net(ALONE[name])
    for form in (jax.grad(jconv.accelerate(step), (0, 1, 2)), jconv.accelerate(jax.grad(step, (0, 1, 2)))):
        assert transposes(form, X, FIRST, LAST) <= 6  # x and dy, for two products each, y and dx


def test_channels_of_two_layers_side_by_side():
    def fun(x, first, last):
        return conv(jnp.concatenate([conv(x, first), jax.nn.relu(conv(x, first * 2))], 1), last)

    np.testing.assert_allclose(
        jax.jit(jconv.accelerate(fun))(X, FIRST, WIDE), jax.jit(fun)(X, FIRST, WIDE), rtol=0, atol=1e-5
    )
    assert transposes(jconv.accelerate(fun), X, FIRST, WIDE) == 3  # x enters twice


def test_a_model_that_turns_its_arrays_itself_gets_what_was_computed():
    """NCHW for the layer alone: what is brought into NHWC behind it is the product's own result."""
    fun = lambda x, kernel: jnp.moveaxis(conv(jnp.moveaxis(x, -1, 1), kernel), 1, -1) * 2
    x = np.moveaxis(X, 1, -1)
    np.testing.assert_allclose(jconv.accelerate(fun)(x, FIRST), fun(x, FIRST), rtol=0, atol=1e-5)
    jaxpr = jax.make_jaxpr(jconv.accelerate(fun))(x, FIRST).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True])
    assert not any(e.primitive.name == "ordered" and e.params["leaves"] for e in jaxpr.eqns)


@pytest.mark.parametrize("shape", [(1, 3, 6, 5), (2, 1, 6, 5), (2, 3, 1, 5), (1, 1, 1, 1), (2, 3, 6, 1)])
@pytest.mark.parametrize("name", ["one example", "batch normalisation", "squeeze and excite", "max pool"])
def test_axes_of_one(shape, name):
    kernel, last = np.ones((4, shape[1], 3, 3), np.float32) / 4, LAST
    fun = lambda x: conv(ALONE[name](conv(x, kernel)), last)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    for form in (jconv.accelerate(fun), jconv.accelerate(jax.jit(fun))):
        np.testing.assert_allclose(form(x), fun(x), rtol=0, atol=2e-5)
    want = jax.grad(lambda x: (fun(x) ** 2).sum())(x)
    got = jax.jit(jconv.accelerate(jax.grad(lambda x: (fun(x) ** 2).sum())))(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * max(1, np.abs(want).max()))


def test_results_that_leave_are_in_the_models_order():
    """Each of several, one of them of the middle."""

    def fun(x, first, last):
        middle = jax.nn.relu(conv(x, first))
        return {"middle": middle, "sum": middle.sum(1), "last": conv(middle, last), "mean": middle.mean((0, 2, 3))}

    got, want = jax.jit(jconv.accelerate(fun))(X, FIRST, LAST), fun(X, FIRST, LAST)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5)


def test_nothing_is_computed_twice_outside_of_jit(monkeypatch):
    """Where nobody leaves out what nobody reads."""
    monkeypatch.setattr(layouts.Layouts, "keep", lambda *_: pytest.fail("kept"))
    fun = lambda x: jax.nn.relu(conv(x, FIRST)) * 2
    np.testing.assert_allclose(jconv.accelerate(fun)(X), fun(X), rtol=0, atol=1e-5)
    grad = jax.grad(lambda x: fun(x).sum())
    np.testing.assert_allclose(jconv.accelerate(grad)(X), grad(X), rtol=0, atol=1e-5)


def test_a_model_in_nhwc_is_the_program_that_it_was():
    def fun(x, first, last):
        layer = lambda x, kernel: lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return layer(jax.nn.relu(layer(x, first) - x.mean()), last).sum()

    operands = np.moveaxis(X, 1, -1), FIRST.transpose(2, 3, 1, 0), LAST.transpose(2, 3, 1, 0)
    for derived in (lambda fun: fun, jax.grad):
        texts = [
            jax.jit(derived(form)).lower(*operands).as_text()
            for form in (walk.apply(STAYS, fun), jconv.accelerate(fun))
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("layer", ["vmap", "vmap of grad"])
def test_under_vmap(layer):
    """Accelerate inside of it: a layer of one example has its own order of axes, and vmap another."""
    fun = lambda x: (conv(normalised(conv(x[None], FIRST)), LAST) ** 2).sum()
    fun = fun if layer == "vmap" else jax.grad(fun)
    got, want = jax.jit(jax.vmap(jconv.accelerate(fun)))(X), jax.vmap(fun)(X)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_over_devices(kind):
    """The batch is split; with explicit sharding each value has its own, and what follows keeps it."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    fun = lambda x, first, last: jnp.tanh(conv(normalised(conv(x, first)), last))
    with jax.set_mesh(mesh):
        place = lambda array, spec: jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
        x = place(X, jax.sharding.PartitionSpec("data"))
        first, last = (place(kernel, jax.sharding.PartitionSpec()) for kernel in (FIRST, LAST))
        got = jax.jit(jconv.accelerate(fun))(x, first, last)
        np.testing.assert_allclose(got, jax.jit(fun)(x, first, last), rtol=0, atol=2e-5)
        followed = transposes(jconv.accelerate(fun), x, first, last) < transposes(
            walk.apply(STAYS, fun), x, first, last
        )
    assert followed == (kind == jax.sharding.AxisType.Auto)
    assert got.sharding.spec[0] == "data"


def test_inside_of_shard_map():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    fun = lambda x, first: (jax.nn.relu(conv(x, first) * 2 + BIAS) ** 2).sum()
    each = lambda fun: lambda x, first: lax.psum(jax.grad(fun)(first, x), "data")
    turned = lambda first, x: fun(x, first)
    run = lambda fun: jax.jit(jax.shard_map(each(fun), mesh=mesh, in_specs=spec, out_specs=spec[1]))(X, FIRST)
    np.testing.assert_allclose(run(jconv.accelerate(turned)), run(turned), rtol=0, atol=1e-3)
    whole = jax.jit(jconv.accelerate(jax.shard_map(each(turned), mesh=mesh, in_specs=spec, out_specs=spec[1])))
    np.testing.assert_allclose(whole(X, FIRST), run(turned), rtol=0, atol=1e-3)


def test_a_symbolic_batch():
    fun = jax.jit(jconv.accelerate(lambda x: conv(normalised(conv(x, FIRST)), LAST)))
    (batch,) = jax.export.symbolic_shape("batch")
    program = jax.export.export(fun)(jax.ShapeDtypeStruct((batch, *SHAPE[1:]), np.float32))
    np.testing.assert_allclose(program.call(X), fun(X), rtol=0, atol=2e-5)
