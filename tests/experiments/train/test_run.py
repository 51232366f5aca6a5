"""Whole runs in this process: from images to the report, nothing compiled twice, and every way in which one can stop."""

import contextlib
import fcntl
import os
import signal

import jax
import numpy as np
import pytest

from experiments.train import loop
from tests.experiments.train import small


@pytest.fixture(autouse=True)
def promotion():
    """Optax counts steps in integers and multiplies them by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images" / "small.npz"
    path.parent.mkdir()
    small.write_images(path)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing stops."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_dtype_promotion("standard"):
        small.train(data, out)
    return out


@contextlib.contextmanager
def ends(status):
    with pytest.raises(SystemExit) as ended:
        yield
    assert ended.value.code == status


def at_step(monkeypatch, number, act):
    """Calls act(training) when the step of that number has been taken."""
    take = loop.Training.take

    def taken(training, *arguments, **options):
        take(training, *arguments, **options)
        if int(training.state.step) == number:
            act(training)

    monkeypatch.setattr(loop.Training, "take", taken)


def test_from_images_to_the_report(data, tmp_path, capsys):
    """The end-to-end test: augmentation, averaging, views, accumulation, the report; and it has learnt."""
    out = tmp_path / "run"
    options = {"flip": "alternating", "crop": 1, "cutout": 1, "average": "ema", "average_decay": 0.8, "views": 6}
    options |= {"accumulate": 2, "label_smoothing": 0.1, "clip": 5.0, "learning_rate": 0.05, "warmup": 0.2}
    small.train(data, out, report=True, log_every=1, **options)
    found = small.lines(out)
    logged = [line for line in found if "images_per_second" in line and not line.get("final")]
    assert [line["step"] for line in logged] == list(range(1, small.STEPS + 1))
    assert all(
        line.keys() >= {"step", "epoch", "loss", "accuracy", "images_per_second", "learning_rate", "seconds"}
        for line in logged
    )
    assert [(line["step"], line["epoch"]) for line in found if "waited_seconds" in line] == [(16, 0), (32, 1), (48, 2)]
    assert found[-1]["final"] is True
    assert found[-1]["step"] == small.STEPS
    assert found[-1]["test_accuracy"] > 0.9
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    with np.load(out / "predictions.npz") as file:
        assert (file["logits"].argmax(-1) == file["labels"]).mean() == found[-1]["test_accuracy"]
    assert (out / "report.html").stat().st_size > 10_000
    assert {"curves.png", "confusion.png", "kernels.png"} <= {path.name for path in out.glob("*.png")}
    shown = capsys.readouterr().out
    assert "step      1/48  epoch 0  loss" in shown  # plain lines: this is no terminal
    assert "test accuracy" in shown


def test_nothing_is_compiled_after_the_first_step(data, tmp_path, monkeypatch):
    compiled, after_first = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    at_step(monkeypatch, 1, lambda _: after_first.append(len(compiled)))
    train = loop.Run.train

    def trained(run):
        ended = train(run)
        run.store.wait()
        after_first.append(len(compiled))
        return ended

    monkeypatch.setattr(loop.Run, "train", trained)
    small.train(data, tmp_path / "run", average="lookahead", flip="random", crop=1)
    assert after_first[0] > 0
    assert after_first[1] == after_first[0]


def test_the_input_does_not_keep_the_step_waiting(whole):
    """Three epochs of 16 steps: the batches of all but each epoch's first step are ready before they are asked for."""
    waited = [line["waited_seconds"] for line in small.lines(whole) if "waited_seconds" in line]
    seconds = small.lines(whole)[-1]["seconds"]
    assert len(waited) == 3
    assert sum(waited) < 0.5 * seconds


def test_sigterm_saves_and_the_resumed_run_ends_with_the_same_bits(data, tmp_path, monkeypatch, whole, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 18, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        small.train(data, out)  # no SystemExit: status 0
    assert "stopped after step 18, checkpoint written" in capsys.readouterr().out
    assert not (out / "final.npz").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    small.train(data, out, resume=True)
    assert "going on from step 18" in capsys.readouterr().out
    assert small.results(out) == small.results(whole)
    small.train(data, out, resume=True)  # where all is done: the same again
    assert small.results(out) == small.results(whole)


def test_damaged_checkpoints_are_named_and_the_one_before_is_used(data, tmp_path, monkeypatch, whole, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 23, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        small.train(data, out)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept[-3:] == ["00000016", "00000020", "00000023"]
    largest = lambda name: max(
        (out / "checkpoints" / name / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file()
    )
    truncated, flipped = largest("00000023"), largest("00000020")
    os.truncate(truncated, truncated.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    content[100] ^= 4
    flipped.write_bytes(content)
    capsys.readouterr()
    small.train(data, out, resume=True)
    shown = capsys.readouterr().out
    assert f"step 23 is damaged: state/{truncated.relative_to(out / 'checkpoints/00000023/state')} has" in shown
    assert (
        f"step 20 is damaged: state/{flipped.relative_to(out / 'checkpoints/00000020/state')} has not its checksum"
        in shown
    )
    assert "going on from step 16" in shown
    assert small.results(out) == small.results(whole)


def test_nan_stops_with_step_and_layer_and_keeps_the_checkpoint(data, tmp_path, monkeypatch, capsys):
    def poison(training):
        kernel = training.state.params["dense1"]["kernel"]
        training.state.params["dense1"]["kernel"] = jax.device_put(
            np.full(kernel.shape, np.inf, np.float32), kernel.sharding
        )

    at_step(monkeypatch, 13, poison)
    with ends(1):
        small.train(data, tmp_path / "run")
    error = capsys.readouterr().err
    assert error == (
        "train: step 14 (jconv): the loss or its gradient is not finite; layer dense1: its kernel is not finite; "
        "the checkpoint of step 10 is kept\n"
    )
    assert (tmp_path / "run/checkpoints/00000010/manifest.json").exists()
    assert all(np.isfinite(line["loss"]) for line in small.lines(tmp_path / "run"))


def test_a_learning_rate_that_is_too_large_ends_so_too(data, tmp_path, capsys):
    with ends(1):
        small.train(data, tmp_path / "run", learning_rate=1e30)
    assert "the loss or its gradient is not finite; layer " in capsys.readouterr().err


def test_a_run_is_never_overwritten_unasked(data, tmp_path, capsys, whole):
    before = small.results(whole)
    with ends(2):
        small.train(data, whole)
    assert "holds a run already" in capsys.readouterr().err
    assert small.results(whole) == before
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    small.train(data, out, steps=2, epochs=1)
    small.train(data, out, steps=3, epochs=1, overwrite=True)
    assert small.lines(out)[-1]["step"] == 3
    assert (out / "mine.txt").read_text() == "keep"
    with ends(2):
        small.train(data, out, steps=4, epochs=1, resume=True)
    assert "steps=4: the run in" in capsys.readouterr().err


def test_two_processes_do_not_train_in_one_folder(data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ends(2):
            small.train(data, tmp_path / "run")
    assert "another process is training there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [({"batch": 600}, "batch=600: there are only 512 training images"), ({"crop": 8}, "crop=8: must be less than")],
)
def test_a_setting_that_does_not_fit_the_data(data, tmp_path, capsys, options, told):
    with ends(2):
        small.train(data, tmp_path / "run", **options)
    assert told in capsys.readouterr().err


def test_both_rules_side_by_side(data, tmp_path, whole):
    out = tmp_path / "run"
    small.train(data, out, rules="both", epochs=1, log_every=8)
    ours, theirs = small.lines(out), small.lines(out, "metrics_automatic.jsonl")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs):
        assert a.get("loss", a.get("test_loss")) == pytest.approx(b.get("loss", b.get("test_loss")), rel=1e-3)
    agreed = small.lines(out, "agreement.jsonl")
    assert [line["step"] for line in agreed] == [8, 16]
    for line in agreed:
        assert len(line["layers"]) == 10
        assert max(line["layers"].values()) < 1e-4
    assert (out / "final_automatic.npz").exists()
