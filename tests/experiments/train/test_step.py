"""One step: schedules, masks, optimizers, smoothing, accumulation, averages, mixed precision, and what NaN leaves."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.train import nonfinite
from experiments.train import step as steps
from experiments.train.settings import AVERAGES, LEARNING_RATES, SCHEDULES, Settings

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TOTAL = 40


def init(key, image_shape, classes, *, width=1.0):
    """A model that is one dense layer and a normalisation's bias."""
    del width
    kernel = 0.1 * jax.random.normal(key, (int(np.prod(image_shape)), classes))
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(classes)}, "norm": {"bias": jnp.zeros(classes)}}, {
        "seen": jnp.zeros(())
    }


def apply(params, state, images, *, train, dtype=jnp.float32, axis_name=None):
    del axis_name
    x = images.reshape(len(images), -1).astype(dtype)
    with jax.named_scope("dense"):
        x = x @ params["dense"]["kernel"].astype(dtype) + params["dense"]["bias"].astype(dtype)
    with jax.named_scope("norm"):
        x = x.astype(jnp.float32) + params["norm"]["bias"]
    return x, {"seen": state["seen"] + 1} if train else state


@pytest.fixture(autouse=True)
def promotion():
    """Optax counts steps in integers and multiplies them by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


MODEL = types.SimpleNamespace(init=init, apply=apply)


def make(**options):
    settings = Settings(data="x", out="y", **({"batch": 8, "weight_decay": 0.0} | options))
    state = steps.init(settings, MODEL, *init(jax.random.key(0), (4, 4, 3), 5), TOTAL)
    return settings, state, steps.make_step(settings, MODEL, "jconv", TOTAL, MEAN, STD)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    return {"images": images, "labels": rng.integers(0, 5, 8).astype(np.int32), "mirror": np.zeros(8, bool)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    settings = Settings(data="x", out="y", schedule=name, learning_rate=2.0, warmup=0.25, first_rate=0.2, last_rate=0.1)
    rates = np.array([steps.schedule(settings, 100)(step) for step in range(101)])
    assert rates[0] == pytest.approx(0.4)
    assert rates[25] == pytest.approx(2.0) == rates.max()
    assert rates[100] == pytest.approx(2.0 if name == "constant" else 0.2)
    assert (np.diff(rates[:26]) > 0).all()
    straight = {"triangular": 1.1, "one_cycle": 1.1, "cosine": 1.1, "constant": 2.0}
    assert rates[62:64].mean() == pytest.approx(straight[name], rel=0.02)  # half-way down
    assert rates[6] == pytest.approx(0.613 if name == "one_cycle" else 0.784, rel=0.05)  # a quarter of the way up


def test_masks():
    params, _ = init(jax.random.key(0), (4, 4, 3), 5)
    assert steps.decayed(params) == {"dense": {"kernel": True, "bias": False}, "norm": {"bias": False}}
    assert steps.norm_biases(params) == {"dense": {"kernel": False, "bias": False}, "norm": {"bias": True}}


def test_one_step_of_sgd_is_its_formula():
    """g + decay * w; nesterov: momentum * g + g at the first step; times the rate; times 64 for the norm's bias."""
    settings, state, step = make(
        momentum=0.8, weight_decay=0.1, bias_rate=64.0, learning_rate=0.5, schedule="constant", warmup=0.0
    )
    some = batch()
    images, labels = steps.prepare(settings, state, some, MEAN, STD)

    def loss(params):
        logits = apply(params, state.state, images, train=True)[0]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), labels])

    value, grads = jax.value_and_grad(loss)(state.params)
    new, metrics = jax.jit(step)(state, some)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-6)
    moved = jax.tree.map(lambda a, b: (a - b) / 0.5, state.params, new.params)
    want = 1.8 * (grads["dense"]["kernel"] + 0.1 * state.params["dense"]["kernel"])
    np.testing.assert_allclose(moved["dense"]["kernel"], want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["dense"]["bias"], 1.8 * grads["dense"]["bias"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["norm"]["bias"], 64 * 1.8 * grads["norm"]["bias"], rtol=1e-4, atol=1e-6)
    assert (int(new.step), float(new.state["seen"])) == (1, 1.0)


RATES = {"sgd": 0.05, "adamw": 0.02, "lion": 0.01, "muon": 0.02}  # for forty steps


@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_every_optimizer_learns(optimizer):
    _, state, step = make(optimizer=optimizer, clip=1.0, learning_rate=RATES[optimizer])
    step, some = jax.jit(step), batch()
    losses = []
    for _ in range(TOTAL):
        state, metrics = step(state, some)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_clipping():
    _, state, step = make(clip=1e-3, momentum=0.0, learning_rate=1.0, schedule="constant", warmup=0.0)
    new, _ = jax.jit(step)(state, batch())
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, new.params, state.params))
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_label_smoothing():
    settings, state, _ = make(label_smoothing=0.25)
    some = batch()
    images, labels = steps.prepare(settings, state, some, MEAN, STD)
    value, _ = steps.make_loss(settings, MODEL)(state.params, state.state, images, labels)
    logs = jax.nn.log_softmax(apply(state.params, state.state, images, train=True)[0])
    wanted = 0.75 * np.eye(5)[labels] + 0.25 / 5
    assert float(value) == pytest.approx(-float((logs * wanted).sum(-1).mean()), rel=1e-5)


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"remat": True}, {"accumulate": 2, "remat": True}], ids=str)
def test_accumulation_and_remat_change_no_gradient(options):
    some = batch()
    parts = []
    for more in ({}, options):
        settings, state, _ = make(**more)
        gradients = jax.jit(steps.make_gradients(settings, MODEL, "jconv"))
        parts.append(gradients(state.params, state.state, *steps.prepare(settings, state, some, MEAN, STD)))
    (loss, _, accuracy, grads), (loss2, _, accuracy2, grads2) = parts
    chex.assert_trees_all_close((loss, accuracy, grads), (loss2, accuracy2, grads2), rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_so_and_keeps_float32():
    settings, state, step = make(dtype="bfloat16")
    new, metrics = jax.jit(step)(state, batch())
    assert {leaf.dtype for leaf in jax.tree.leaves((new.params, new.moments)) if leaf.ndim} == {jnp.dtype("float32")}
    _, same, wide = make()
    _, wanted = jax.jit(wide)(same, batch())
    assert 0 < abs(float(metrics["loss"] - wanted["loss"])) < 0.02
    loss = steps.make_loss(settings, MODEL)
    assert "bf16" in str(jax.make_jaxpr(loss)(state.params, state.state, jnp.zeros((8, 4, 4, 3)), jnp.zeros(8, int)))


def test_ema():
    _, state, step = make(average="ema", average_decay=0.15)
    new, _ = jax.jit(step)(state, batch())
    assert new.evaluated == (new.average["params"], new.average["state"])
    decay = 0.15  # less than (1 + 1) / (10 + 1)
    want = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.params, new.params)
    chex.assert_trees_all_close(new.average["params"], want, rtol=1e-6)


def test_lookahead_goes_back_to_its_average_every_five_steps():
    _, state, step = make(average="lookahead")
    step, first = jax.jit(step), state
    for number in range(1, TOTAL + 1):
        before, (state, _) = state, step(state, batch(number))
        if number == TOTAL:
            chex.assert_trees_all_equal(state.average, before.average)
        if number % 5 == 0:
            # XLA may compute the average once for each of the two, and round differently.
            chex.assert_trees_all_close(state.params, state.average["params"], rtol=1e-6, atol=1e-8)
        else:
            chex.assert_trees_all_equal(state.average, before.average)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, state.params, first.params)) > 0


def test_the_step_is_a_pure_function_of_its_state():
    _, state, step = make(flip="random", crop=1)
    step = jax.jit(step)
    chex.assert_trees_all_equal(step(state, batch()), step(state, batch()))
    later = step(state._replace(step=state.step + 1), batch())[1]["loss"]
    assert later != step(state, batch())[1]["loss"]  # other flips and crops


def test_mirror():
    settings, state, _ = make()
    some = batch() | {"mirror": np.arange(8) % 2 == 0}
    mirrored, _ = steps.prepare(settings, state, some, MEAN, STD)
    plain, _ = steps.prepare(settings, state, batch(), MEAN, STD)
    np.testing.assert_array_equal(mirrored[::2], plain[::2, :, ::-1])
    np.testing.assert_array_equal(mirrored[1::2], plain[1::2])


def test_views_are_averaged():
    settings, state, _ = make()
    images = batch()["images"]
    logits = lambda views, images: steps.make_logits(settings, MODEL, "jconv", MEAN, STD, views)(
        state.params, state.state, images
    )
    one, mirrored = logits(1, images), logits(1, images[:, :, ::-1])
    np.testing.assert_allclose(logits(2, images), (one + mirrored) / 2, rtol=1e-5, atol=1e-6)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    moved = (logits(2, padded[:, 2:, 2:]) + logits(2, padded[:, :-2, :-2])) / 2
    np.testing.assert_allclose(logits(6, images), (logits(2, images) + moved) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_step_that_is_not_finite_changes_nothing_ever_after(average):
    _, state, step = make(average=average)
    step = jax.jit(step)
    bad = state._replace(
        params=state.params
        | {"dense": state.params["dense"] | {"kernel": state.params["dense"]["kernel"].at[0, 0].set(jnp.inf)}}
    )
    stuck, metrics = step(bad, batch())
    assert not metrics["fine"]
    chex.assert_trees_all_equal(stuck._replace(failed=bad.failed), bad)
    mended = stuck._replace(params=state.params)
    chex.assert_trees_all_equal(step(mended, batch())[0], mended)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda params: params | {"norm": {"bias": params["norm"]["bias"].at[1].set(jnp.nan)}}, "layer norm: its bias"),
        (lambda params: params | {"dense": params["dense"] | {"kernel": jnp.full_like(params["dense"]["kernel"], 3e38)}}, "layer dense: its output"),
        (lambda params: params | {"norm": {"bias": jnp.full(5, -3.4e38).at[0].set(3.4e38)}}, "layer loss: its output"),
    ],
    ids=["parameter", "output", "loss"],
)  # fmt: skip
def test_the_layer_that_is_not_finite_is_named(change, told):
    settings, state, _ = make(label_smoothing=0.1)
    state = state._replace(params=change(state.params))
    assert nonfinite.where(settings, MODEL, "jconv", state, batch(), MEAN, STD).startswith(told)
