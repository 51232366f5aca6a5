"""The demo: its model, its data, its two trainings and its command line."""

import io
import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import digits

HAND, STOCK = digits.LAYERS.values()


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's adam raises a float to an integer power
        yield


def test_data_is_every_real_digit_once_and_the_split_is_fixed():
    (train_images, train_labels), (test_images, test_labels) = digits.load()
    chex.assert_shape([train_images, test_images], [(1347, 8, 8), (450, 8, 8)])
    assert (train_images.min(), train_images.max()) == (0, 1)
    assert set(np.unique(test_labels)) == set(range(10))
    whole = digits.load_digits().images.sum()
    assert 16 * float(train_images.sum() + test_images.sum()) == pytest.approx(whole, rel=1e-6)
    chex.assert_trees_all_equal(digits.load(), ((train_images, train_labels), (test_images, test_labels)))


def test_batches_are_drawn_by_the_seed_and_hold_each_image_once_an_epoch():
    images = jnp.arange(3 * digits.BATCH + 1)
    seen = [np.asarray(batch) for batch, _ in digits.batches(images, images, steps=7, seed=0)]
    assert [len(batch) for batch in seen] == 7 * [digits.BATCH]
    for epoch in (seen[:3], seen[3:6]):
        assert len(np.unique(np.concatenate(epoch))) == 3 * digits.BATCH
    chex.assert_trees_all_equal(seen[0], np.asarray(next(digits.batches(images, images, steps=1, seed=0))[0]))
    other = np.asarray(next(digits.batches(images, images, steps=1, seed=1))[0])
    assert (seen[0] != other).any()


def test_both_layers_give_the_same_logits_and_gradients():
    params = digits.init(jax.random.key(0))
    batch = next(digits.batches(*digits.load()[0], steps=1, seed=0))
    chex.assert_shape(digits.apply(HAND, params, batch[0]), (digits.BATCH, 10))
    gradient = jax.jit(jax.value_and_grad(digits.loss, argnums=1), static_argnums=0)
    hand, stock = gradient(HAND, params, *batch), gradient(STOCK, params, *batch)
    chex.assert_trees_all_close(hand, stock, rtol=1e-4, atol=1e-5)


def test_the_step_is_donated_its_arguments():
    batch = next(digits.batches(*digits.load()[0], steps=1, seed=0))
    training = digits.prepare(HAND, 1, 0, batch)
    training.step(training.params, training.state, *batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(training.params))


def test_both_reach_98_percent():
    heard = []
    results = digits.train(300, 0, lambda *news: heard.append(news[:2]))
    assert heard == [(name, number) for number in range(1, 301) for name in digits.LAYERS]
    for training in results["trainings"].values():
        assert training["test_accuracy"] >= 0.98
        assert training["final_loss"] < 0.1 < training["losses"][0]
        assert len(training["losses"]) == 300
    assert results["gradient_difference"] < 1e-5


def test_in_float64_the_loss_curves_are_one(x64, monkeypatch):
    # In float32 the last bit of a gradient is a few percent of the loss some hundred steps later; in float64 it is not.
    sets = [(images.astype(float), labels) for images, labels in digits.load()]
    monkeypatch.setattr(digits, "load", lambda: sets)
    results = digits.train(20, 0, lambda *news: None)
    assert results["gradient_difference"] < 1e-13
    assert results["loss_curve_difference"] < 1e-10


def test_the_command_shows_a_table_and_writes_a_picture_and_all_figures(tmp_path, capsys):
    picture, figures = tmp_path / "digits.png", tmp_path / "digits.json"
    digits.main(["--steps", "2", "--seed", "3", "--out", str(picture), "--json", str(figures)])
    shown = capsys.readouterr().out
    for expected in (
        "step     2/2",
        "test accuracy",
        "gradients at step 0",
        "median step",
        "compilation",
        str(picture),
    ):
        assert expected in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    results = json.loads(figures.read_text())
    assert (results["steps"], results["seed"]) == (2, 3)
    assert list(results["trainings"]) == list(digits.LAYERS)
    for training in results["trainings"].values():
        assert training["median_step_seconds"] > 0
        assert training["compile_seconds"] > 0
        assert [steps for steps, _ in training["test_accuracies"]] == [2]


def test_a_terminal_sees_a_bar_for_each_training():
    screen = io.StringIO()
    with digits.progress(Console(file=screen, force_terminal=True, width=100), 5) as report:
        for name in digits.LAYERS:
            report(name, 5, 0.25)
    for expected in (*digits.LAYERS, "5/5", "loss 0.2500", "\x1b["):
        assert expected in screen.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps.*greater than or equal to 1"),
        (["--steps", "many"], "--steps.*integer"),
        (["--steps", "1.5"], "--steps.*integer"),
        (["--steps"], "--steps.*requires an argument"),
        (["--seed", "-1"], "--seed.*greater than or equal to 0"),
        (["--seed", str(2**31)], "--seed.*2147483647"),
        (["--out", "."], "--out.*is a folder"),
        (["--out", "no/such/folder/digits.png"], "--out.*no/such/folder.*cannot be written"),
        (["--json", "no/such/folder/digits.json"], "--json.*no/such/folder.*cannot be written"),
        (["--epochs", "3"], "No such option.*--epochs"),
        (["extra"], "unexpected extra argument.*extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_ends_in_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        digits.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_help_names_every_option_and_shows_examples():
    command = [sys.executable, "-m", "experiments.digits", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for expected in (
        "--steps",
        "--seed",
        "--out",
        "--json",
        "Examples:",
        "python -m experiments.digits --json digits.json",
    ):
        assert expected in shown
