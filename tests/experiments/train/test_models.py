"""The models: shapes, the parameters counted in the papers, widths, dtypes, both rules, and normalisation's statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jconv
from experiments.train.models import MODELS, airbench, layers, resnet

IMAGE = (32, 32, 3)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # ResNet-20: 269,722 (0.27 M in the paper, table 6); MobileNetV2 with ten classes: 2,236,682; airbench94: 1,971,352 trained.
        ("resnet", 269_722),
        ("mobilenet", 2_236_682),
        ("airbench", 1_971_352),
        ("lenet", 136_886),
        ("convnext", 1_520_986),
    ],
)
def test_parameters(name, parameters):
    shapes, _ = jax.eval_shape(lambda: MODELS[name].init(jax.random.key(0), IMAGE, 10))
    assert count(shapes) == parameters


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [IMAGE, (28, 28, 1), (16, 16, 3)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_shapes(name, shape, dtype):
    model = MODELS[name]
    params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 7, width=0.25))
    for train in (True, False):
        apply = functools.partial(model.apply, train=train, dtype=dtype)
        logits, after = jax.eval_shape(apply, params, state, jax.ShapeDtypeStruct((5, *shape), jnp.float32))
        assert (logits.shape, logits.dtype) == ((5, 7), jnp.float32)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.parametrize(("name", "size"), [("lenet", 3), ("airbench", 8)])
def test_images_that_are_too_small(name, size):
    with pytest.raises(ValueError, match=f"{name}: images of {size}x{size} are too small"):
        MODELS[name].init(jax.random.key(0), (size, size, 1), 10)


@pytest.mark.parametrize("name", ["lenet", "airbench"])
def test_gradients_of_both_rules(name):
    """The others are of the same layers; their rules are tested where the layers are."""
    model = MODELS[name]
    params, state = model.init(jax.random.key(0), (16, 16, 3), 4, width=0.1)
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    loss = lambda params: jnp.mean(jnp.square(model.apply(params, state, images, train=True)[0]))
    ours = jax.jit(jax.grad(loss))(params)
    theirs = jax.jit(jax.grad(jconv.automatic(loss)))(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert jnp.linalg.norm(a - b) <= 1e-4 * jnp.linalg.norm(b) + 1e-7
    assert all(jnp.linalg.norm(leaf) > 0 for leaf in jax.tree.leaves(ours))


def test_batch_norm_is_its_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (6, 5, 4, 3))
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.5, 0.0, -1.0])}
    state = {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)}
    mean, var, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), x.size // 3
    y, after = layers.batch_norm(params, state, jnp.float32(x), train=True, axis_name=None, momentum=0.75)
    want = (x - mean) / np.sqrt(var + layers.EPSILON) * np.array([1, 2, 3]) + np.array([0.5, 0, -1])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after["mean"], 0.75 + 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 1.5 + 0.25 * var * n / (n - 1), rtol=1e-4)
    y, same = layers.batch_norm(params, state, jnp.float32(x), train=False, axis_name=None)
    np.testing.assert_allclose(
        y, (x - 1) / np.sqrt(2 + layers.EPSILON) * np.array([1, 2, 3]) + params["bias"], atol=1e-4
    )
    assert same is state


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    params, state = layers.norm_init(3), layers.batch_norm_state(3)
    x = jax.random.normal(jax.random.key(0), (8, 2, 2, 3)) * jnp.arange(1.0, 9.0)[:, None, None, None]
    whole = layers.batch_norm(params, state, x, train=True, axis_name=None)
    local = functools.partial(layers.batch_norm, train=True, axis_name="data")
    split = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=(P("data"), P()))
    chex.assert_trees_all_close(split(params, state, x), whole, rtol=1e-5, atol=1e-5)


def test_whitened_patches_have_the_identity_as_covariance():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 9, 9, 3))
    images = (noise + 0.7 * np.roll(noise, 1, 2) + 0.5 * noise[..., ::-1]).astype(
        np.float32
    )  # neighbours and colours go together
    _, state = airbench.init(jax.random.key(0), (9, 9, 3), 10, width=0.1)
    kernel = airbench.prepare(state, images)["whiten"]["kernel"]
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    y = np.asarray(jconv.conv(images, kernel[..., :12])).reshape(-1, 12)
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(12), atol=0.01)


def test_a_dirac_kernel_hands_its_first_inputs_on():
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    y = jconv.conv(x, airbench.dirac(jax.random.key(0), 4, 6), padding="SAME")
    np.testing.assert_allclose(y[..., :4], x, rtol=1e-6)
    assert jnp.abs(y[..., 4:]).min() > 0


def test_the_resnet_shortcut_takes_every_other_place_and_adds_zeros():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    y = resnet.shortcut(x, 2, 5)
    np.testing.assert_array_equal(y[..., :2], x[:, ::2, ::2])
    assert y.shape == (1, 2, 2, 5)
    assert not y[..., 2:].any()
