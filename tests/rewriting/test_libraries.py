"""Training steps as users of Flax, Equinox and Haiku write them, with the libraries' own transformations."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jconv
from experiments.models import in_equinox, in_nnx, nets
from tests.rewriting.test_layers import FAST
from tests.test_rewrite import draw, near, stock_left

NET = nets.Net("resnet20", (4, 8, 8, 3), 5, {"widths": (4,), "blocks": 1})
X, LABELS = NET.draw()


def ran(fun, *args):
    """fun(*args), compiled in a hurry."""
    return jax.jit(fun).lower(*args).compile(FAST)(*args)


def both_forms(loss, derive):
    """The derived loss, accelerated inside of and around the library's derivative."""
    return [derive(jconv.accelerate(loss)), jconv.accelerate(derive(loss))]


# flax.linen: mutable collections, random keys, lifted transformations.


class Block(nn.Module):
    """Convolution, BatchNorm and dropout, as nn.scan takes it."""

    train: bool

    @nn.compact
    def __call__(self, x, _):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Conv(4, (3, 3), use_bias=False)(x))
        return nn.Dropout(0.5, deterministic=not self.train)(nn.relu(x)), None


STACKED = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True, "dropout": True}}
LIFTED = {
    "scan": nn.scan(Block, length=3, **STACKED),
    "vmap": nn.vmap(Block, in_axes=(0, None), **STACKED),  # pyright: ignore[reportArgumentType]
    "remat": nn.remat(Block),
    "jit": nn.jit(Block),
}


class Net(nn.Module):
    """A convolution, the block as flax lifts it, a pool."""

    lifted: str

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x, _ = LIFTED[self.lifted](train)(jnp.stack([x, -x]) if self.lifted == "vmap" else x, None)
        x = nn.max_pool(x.sum(0) if self.lifted == "vmap" else x, (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(X.shape[0], -1))


@pytest.mark.parametrize("lifted", ["scan", "vmap", "remat", "jit"])
def test_linen(lifted):
    model = Net(lifted)
    variables = ran(lambda key: model.init(key, X, False), jax.random.key(0))

    def loss(params, stats, key):
        given = {"params": params, "batch_stats": stats}
        logits, state = model.apply(given, X, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return nets.cross_entropy(logits, LABELS), state

    derive = lambda f: jax.value_and_grad(f, has_aux=True)
    args = variables["params"], variables["batch_stats"], jax.random.key(1)
    want = ran(derive(loss), *args)
    for form in both_forms(loss, derive):
        near(ran(form, *args), want, 1e-4)
        assert not stock_left(form, *args)
    apply = lambda v, x: model.apply(v, x, train=False)
    near(ran(jconv.accelerate(apply), variables, X), ran(apply, variables, X), 1e-4)


# flax.nnx: modules that change in place.


def nnx_loss(model, x, labels):
    return nets.cross_entropy(model(x), labels)


@pytest.mark.parametrize("order", ["accelerate in grad", "accelerate around grad", "accelerate around jit", "eager"])
def test_nnx(order):
    """A training step that changes a module and an optimizer; BatchNorm's averages move alike."""

    def trained(loss, around=lambda step: step):
        model = in_nnx.model(NET)
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

        def step(model, optimizer, x, labels):
            value, gradient = nnx.value_and_grad(loss)(model, x, labels)
            optimizer.update(model, gradient)
            return value

        step = around(step)
        values = [step(model, optimizer, X, LABELS) for _ in range(2)]
        return values, nnx.state(model)

    want = trained(nnx_loss, nnx.jit)
    got = {
        "accelerate in grad": lambda: trained(jconv.accelerate(nnx_loss), nnx.jit),
        "accelerate around grad": lambda: trained(nnx_loss, lambda step: nnx.jit(jconv.accelerate(step))),
        "accelerate around jit": lambda: trained(nnx_loss, lambda step: jconv.accelerate(nnx.jit(step))),
        "eager": lambda: trained(jconv.accelerate(nnx_loss)),
    }[order]()
    near(got, want, 2e-3)  # after a step the second begins from parameters that differ by rounding


def test_nnx_leaves_nothing_of_lax():
    definition, state = nnx.split(in_nnx.model(NET))

    def gradient(loss):
        def of_state(state):
            return nnx.grad(loss)(nnx.merge(definition, state, copy=True), X, LABELS)

        return of_state

    for form in (gradient(jconv.accelerate(nnx_loss)), jconv.accelerate(gradient(nnx_loss))):
        assert not stock_left(form, state)
    report = jconv.report(nnx_loss, in_nnx.model(NET), X, LABELS)
    assert len(report.replaced) == 3 and not report.left


def test_nnx_scan_and_vmap():
    """Layers stacked by nnx.vmap, run by nnx.scan; nnx.remat inside."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs):
        return nnx.Conv(4, 4, (3, 3), rngs=rngs)

    layers, (x,) = stacked(nnx.Rngs(0)), draw((2, 6, 6, 4))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return nnx.remat(lambda layer, x: nnx.relu(layer(x)))(layer, x)

    loss = lambda layers, x: forward(x, layers).sum()
    want = nnx.jit(nnx.value_and_grad(loss))(layers, x)
    for form in both_forms(loss, nnx.value_and_grad):
        near(nnx.jit(form)(layers, x), want, 1e-4)


# Equinox: filtered transformations, single examples under vmap.


@pytest.mark.parametrize("order", ["accelerate in grad", "accelerate around grad", "accelerate around jit"])
def test_equinox(order):
    model, state = in_equinox.model(NET)
    loss, derive = in_equinox.loss, lambda f: eqx.filter_value_and_grad(f, has_aux=True)
    want = eqx.filter_jit(derive(loss))(model, state, X, LABELS)
    form = {
        "accelerate in grad": eqx.filter_jit(derive(jconv.accelerate(loss))),
        "accelerate around grad": eqx.filter_jit(jconv.accelerate(derive(loss))),
        "accelerate around jit": jconv.accelerate(eqx.filter_jit(derive(loss))),
    }[order]
    arrays = lambda tree: eqx.filter(tree, eqx.is_array)
    near(arrays(form(model, state, X, LABELS)), arrays(want), 1e-3)
    params, static = eqx.partition((model, state), eqx.is_array)
    assert not stock_left(lambda params: arrays(form(*eqx.combine(params, static), X, LABELS)), params)


def test_equinox_vmap_checkpoint_and_donation():
    layers = eqx.nn.Sequential([eqx.nn.Conv2d(4, 4, 3, padding=1, key=jax.random.key(0)), eqx.nn.MaxPool2d(2, 2)])
    (x,) = draw((2, 4, 8, 8))

    def loss(layers, x):
        return eqx.filter_vmap(eqx.filter_checkpoint(layers))(x).sum()

    want = eqx.filter_jit(eqx.filter_grad(loss))(layers, x)
    for form in both_forms(loss, eqx.filter_grad):
        near(eqx.filter_jit(form)(layers, x), want, 1e-4)
        near(eqx.filter_jit(form, donate="all-except-first")(layers, jnp.array(x)), want, 1e-4)
    ensemble = eqx.filter_vmap(lambda key: eqx.nn.Conv2d(4, 3, 3, key=key))(jax.random.split(jax.random.key(1), 3))
    each = eqx.filter_vmap(lambda layer, x: jax.vmap(layer)(x).sum(), in_axes=(eqx.if_array(0), None))
    want = eqx.filter_jit(eqx.filter_grad(lambda e, x: each(e, x).sum()))(ensemble, x)
    for form in both_forms(lambda e, x: each(e, x).sum(), eqx.filter_grad):
        near(eqx.filter_jit(form)(ensemble, x), want, 1e-4)


def test_a_module_of_equinox_stays_a_pytree():
    layer = eqx.nn.Sequential([eqx.nn.Conv2d(4, 3, 3, groups=1, key=jax.random.key(0)), eqx.nn.MaxPool2d(2, 2)])
    (x,) = draw((4, 8, 8))
    loss = lambda module, x: module(x).sum()
    want = eqx.filter_grad(loss)(layer, x)
    fast = jconv.accelerate(layer)
    assert jax.tree.leaves(fast) == jax.tree.leaves(layer)
    assert fast.layers is layer.layers
    near(jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(loss))(fast, x)), jax.tree.leaves(want))
    near(jax.jit(fast)(x), layer(x))
    assert not stock_left(fast, x)
    partial = jconv.accelerate(jax.tree_util.Partial(layer, x))
    near(partial(), layer(x))


# Haiku: transform inside and outside of accelerate, state, its own jit, scan and remat.


@jax.numpy_dtype_promotion("standard")  # Haiku's layers need it
@pytest.mark.parametrize("inside", [False, True], ids=["outside of transform", "inside of transform"])
def test_haiku(inside):
    def network(x):
        conv = lambda x: jax.nn.relu(hk.Conv2D(4, 3)(x))
        x = hk.remat(conv)(x)
        body = hk.Conv2D(4, 3, feature_group_count=2)
        x = (
            hk.fori_loop(0, 2, lambda _, x: hk.dropout(hk.next_rng_key(), 0.2, body(x)), x)
            if not hk.running_init()
            else body(x)
        )
        x = hk.BatchNorm(True, True, 0.9)(hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID"), is_training=True)
        return hk.Linear(5)(hk.Flatten()(x))

    def loss_of(network):
        transformed = hk.transform_with_state(network)

        def loss(params, state, key):
            logits, state = transformed.apply(params, state, key, X)
            return nets.cross_entropy(logits, LABELS), state

        return transformed, loss

    transformed, loss = loss_of(network)
    fast_transformed, fast = loss_of(jconv.accelerate(network)) if inside else (transformed, jconv.accelerate(loss))
    args = *ran(transformed.init, jax.random.key(0), X), jax.random.key(1)
    near(ran(fast_transformed.init, jax.random.key(0), X), args[:2])
    derive = lambda f: jax.value_and_grad(f, has_aux=True)
    near(ran(derive(fast), *args), ran(derive(loss), *args), 1e-4)
    assert not stock_left(derive(fast), *args)
