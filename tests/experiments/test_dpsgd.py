"""Private training: what it measures is the step that both contestants take, and it is taken."""

import json

import jax
import numpy as np
import pytest

from experiments import dpsgd
from experiments.train.models import resnet


@pytest.fixture
def small(monkeypatch):
    """A network of one block: what is compiled is a tenth."""
    monkeypatch.setattr(resnet, "CHANNELS", (16,))
    monkeypatch.setattr(resnet, "BLOCKS", 1)


@pytest.mark.usefixtures("small")
def test_both_contestants_take_the_same_step(tmp_path, capsys):
    dpsgd.main(["--batch", "3", "--image", "8", "--repeats", "1", "--json", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["parameters_apart"] < 1e-5
    assert result["jconv"]["images_per_second"] == pytest.approx(3 / result["jconv"]["step_seconds"])
    assert "images/s" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_each_gradient_is_clipped():
    """Without noise and with a bound below every gradient's norm, the mean of n unit vectors times the bound."""
    params, _ = resnet.init(jax.random.key(0), (8, 8, 3), 10, width=1.0)
    optimizer = dpsgd.private_sgd(clip=1e-3, noise=0.0, rate=1.0, seed=0)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("f")
    labels = np.arange(4, dtype=np.int32)
    after, _ = jax.jit(dpsgd.make_step("jconv", optimizer))(params, optimizer.init(params), images, labels)
    each = jax.jit(jax.vmap(jax.grad(dpsgd.loss), in_axes=(None, 0, 0)))(params, images, labels)
    flat = np.concatenate([np.reshape(leaf, (4, -1)) for leaf in jax.tree.leaves(each)], axis=1)
    want = 1e-3 * (flat / np.linalg.norm(flat, axis=1, keepdims=True)).mean(0)
    moved = jax.tree.map(lambda a, b: np.ravel(a - b), params, after)
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(moved)), want, atol=1e-6)


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--image", "x"], ["--unknown"]])
def test_a_wrong_option_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        dpsgd.main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_groups_of_channels_are_normalised():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (5, 4, 24)).astype("float32")
    params = {name: rng.normal(size=24).astype("float32") for name in ("scale", "bias")}
    groups = x.astype("float64").reshape(5, 4, dpsgd.GROUPS, 3)
    mean, var = groups.mean((0, 1, 3), keepdims=True), groups.var((0, 1, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(var + dpsgd.EPSILON)).reshape(x.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(dpsgd.group_norm(params, x), want, rtol=1e-5, atol=1e-5)
