"""Predictions of a run: the model's own numbers, from any of its parameters, on the screen, as JSON and as an artefact."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import predict
from experiments.train import checkpoints, settings, step
from experiments.train.models import MODELS
from experiments.train.report import files

SHAPE, CLASSES = (12, 10, 3), ("ant", "bee", "[red]cow", "dog", "eel", "fox", "gnu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # as in the command, where optimizers need it
        yield


def variables(seed, model="lenet", shape=SHAPE, width=0.5):
    return MODELS[model].init(jax.random.key(seed), shape, len(CLASSES), width=width)


def run_folder(path, shape=SHAPE, **options):
    """A run of a network that was never trained; its final parameters are variables(0)."""
    path.mkdir(parents=True)
    options = {"data": "nowhere", "out": str(path), "width": 0.5} | options
    chosen = settings.Settings(**options)
    (path / "settings.json").write_text(json.dumps(dict(settings.as_dict(chosen))))
    (path / "classes.json").write_text(json.dumps(CLASSES))
    channels = shape[-1]
    (path / "images.json").write_text(json.dumps({"shape": shape, "mean": MEAN[:channels], "std": STD[:channels]}))
    files.save_parameters(path / "final.npz", *variables(0, chosen.model, shape, chosen.width))
    return path


def pictures(path, number=3, shape=SHAPE):
    """PNG files and their pixels."""
    path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (number, *shape), np.uint8)
    names = [path / f"[b]{place}.png" for place in range(number)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image.squeeze()).save(name)
    return names, pixels


def wanted(pixels, params, state, model="lenet"):
    """Probabilities, in NumPy but for the model."""
    channels = pixels.shape[-1]
    images = (pixels / 255 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    logits, _ = MODELS[model].apply(params, state, jnp.asarray(images, jnp.float32), train=False)
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(1, keepdims=True)


def in_json(capsys, *arguments):
    predict.main(["--json", *map(str, arguments)])
    return json.loads(capsys.readouterr().out)


def test_json_has_the_models_probabilities_in_order(tmp_path, capsys):
    run, (names, pixels) = run_folder(tmp_path / "run"), pictures(tmp_path / "images")
    rows = in_json(capsys, "--run", run, *names)
    assert [row["image"] for row in rows] == list(map(str, names))
    for row, shares in zip(rows, wanted(pixels, *variables(0)), strict=True):
        order = np.argsort(-shares)[:5]
        assert [each["class"] for each in row["predictions"]] == [CLASSES[label] for label in order]
        np.testing.assert_allclose([each["probability"] for each in row["predictions"]], shares[order], rtol=1e-4)
    rows = in_json(capsys, "--run", run, "--top", 100, names[0])
    assert sum(each["probability"] for each in rows[0]["predictions"]) == pytest.approx(1)
    assert len(rows[0]["predictions"]) == 7


def test_more_images_than_a_batch_are_each_as_alone(tmp_path, monkeypatch):
    model, (names, pixels) = predict.load(run_folder(tmp_path / "run")), pictures(tmp_path / "images", 7)
    monkeypatch.setattr(predict, "BATCH", 3)
    images = predict.read_images(names, model.image_shape)
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_allclose(predict.probabilities(model, images), wanted(pixels, *variables(0)), rtol=1e-4)


def test_the_table_has_names_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, (names, pixels) = run_folder(tmp_path / "run"), pictures(Path("images"), 2)
    predict.main(["--run", str(run), "--top", "7", *map(str, names)])
    shown = capsys.readouterr().out
    for share in wanted(pixels, *variables(0)).ravel():
        assert f"{share:.2%}" in shown
    assert shown.count("[red]cow") == 2
    assert "images/[b]0.png" in shown
    assert "images/[b]1.png" in shown


@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_becomes_what_the_model_takes(tmp_path, channels):
    colour, grey = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8), np.full((30, 40), 9, np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    images = predict.read_images([tmp_path / "colour.png", tmp_path / "grey.png"], (12, 10, channels))
    want = colour if channels == 3 else colour @ np.array([0.299, 0.587, 0.114])[:, None]
    np.testing.assert_allclose(images[0], want, atol=0.5 if channels == 1 else 0)
    np.testing.assert_array_equal(images[1], np.full((12, 10, channels), 9))
    with pytest.raises(ValueError, match="4 channels; image files have 1 or 3"):
        predict.read_images([], (12, 10, 4))


def save_checkpoints(run, seeds_and_accuracies, average="none"):
    """Checkpoints 1, 2, ... with the parameters variables(seed)."""
    chosen = settings.Settings(**settings.read_run(run))
    store = checkpoints.Checkpoints(run / "checkpoints", keep=9)
    for number, (seed, accuracy) in enumerate(seeds_and_accuracies, 1):
        state = step.init(chosen, MODELS["lenet"], *variables(seed), 10)
        if average == "ema":  # the average is what is evaluated, not the parameters
            state = state._replace(params=variables(99)[0])
        store.save(number, {"jconv": state}, {"test_accuracy": accuracy})
    store.close()


@pytest.mark.parametrize("average", ["none", "ema"])
def test_the_best_and_the_last_checkpoint(tmp_path, average):
    run = run_folder(tmp_path / "run", average=average)
    save_checkpoints(run, [(5, 0.3), (6, 0.7), (7, 0.4), (8, None)], average)
    _, pixels = pictures(tmp_path / "images")
    for which, seed in (("best", 6), ("last", 8), ("final", 0)):
        found = predict.probabilities(predict.load(run, predict.Which(which)), pixels)
        np.testing.assert_allclose(found, wanted(pixels, *variables(seed)), rtol=1e-4)
    before = sorted((run / "checkpoints").rglob("*"))
    array = max((run / "checkpoints" / "00000004" / "state").rglob("*"), key=lambda each: each.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000004 is damaged: .* bytes of"):
        predict.load(run, predict.Which.LAST)
    assert sorted((run / "checkpoints").rglob("*")) == before, "a run is only read"


# The artefact: loaded where neither this code nor jconv can be imported.

LOAD = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("experiments", "jconv", "tests"):
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Forbidden())
import json
from pathlib import Path
import jax, numpy as np
from jax import export
folder, pixels, out = map(Path, sys.argv[1:])
model = export.deserialize(bytearray((folder / "model.jax").read_bytes()))
about = json.loads((folder / "model.json").read_text())
images = np.load(pixels)
assert list(images.shape[1:]) == about["image_shape"]
one, all_of_them = np.asarray(model.call(images[:1])), np.asarray(model.call(images))
assert not {"jconv", "experiments"} & {name.split(".")[0] for name in sys.modules}
np.savez(out, one=one, all=all_of_them)
"""


def test_the_artefact_needs_jax_alone(tmp_path, capsys):
    run, (names, pixels) = run_folder(tmp_path / "run"), pictures(tmp_path / "images", 5)
    predict.main(["--run", str(run), "--export", str(tmp_path / "new" / "folder"), str(names[0])])
    assert "model.jax and model.json written" in capsys.readouterr().out
    folder = tmp_path / "new" / "folder"
    assert sorted(each.name for each in folder.iterdir()) == ["model.jax", "model.json"]
    about = json.loads((folder / "model.json").read_text())
    assert (about["classes"], about["mean"], about["std"]) == (list(CLASSES), list(MEAN), list(STD))
    assert about["sha256"] == hashlib.sha256((folder / "model.jax").read_bytes()).hexdigest()
    np.save(tmp_path / "pixels.npy", pixels)
    arguments = [folder, tmp_path / "pixels.npy", tmp_path / "logits.npz"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments)], check=True, cwd=tmp_path)
    model = predict.load(run)
    want = np.asarray(jax.jit(model.logits)(model.params, model.state, pixels))
    with np.load(tmp_path / "logits.npz") as found:
        np.testing.assert_allclose(found["all"], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["one"], want[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_every_network_is_exported_for_any_number_of_images(tmp_path, model):
    own = {"airbench": {"views": 2}, "resnet": {"dtype": "bfloat16"}}
    options = {"model": model, "width": 0.1} | own.get(model, {})
    loaded = predict.load(run_folder(tmp_path / "run", (32, 32, 3), **options))
    predict.export(loaded, tmp_path)
    artefact = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    assert artefact.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    want = np.asarray(jax.jit(loaded.logits)(loaded.params, loaded.state, images))
    loose = 2e-2 if model == "resnet" else 1e-4
    np.testing.assert_allclose(artefact.call(images), want, rtol=loose, atol=loose * abs(want).max())


# What is wrong.


def _without(name):
    return lambda run: (run / name).unlink()


def _with(name, text):
    return lambda run: (run / name).write_text(text)


def _another_model(run):
    files.save_parameters(run / "final.npz", *variables(0, width=1.0))


WRONG = {
    "no folder": (["--run", "RUN/nowhere", "IMAGE"], None, "run=.*nowhere: no such folder"),
    "no run": (["--run", "RUN", "IMAGE"], _without("settings.json"), "settings.json is missing"),
    "no classes": (["--run", "RUN", "IMAGE"], _without("classes.json"), "classes.json is missing"),
    "not ended": (["--run", "RUN", "IMAGE"], _without("final.npz"), "not come to its end .*--which last"),
    "no checkpoint": (["--run", "RUN", "--which", "last", "IMAGE"], None, "there is no checkpoint$"),
    "no best": (["--run", "RUN", "--which", "best", "IMAGE"], None, "no checkpoint whose accuracy was measured"),
    "settings": (["--run", "RUN", "IMAGE"], _with("settings.json", "{"), "settings.json cannot be read"),
    "a setting": (["--run", "RUN", "IMAGE"], _with("settings.json", '{"model": "x"}'), "model='x'"),
    "images.json": (
        ["--run", "RUN", "IMAGE"],
        _with("images.json", '{"shape": [1, 2]}'),
        "must hold shape, mean and std",
    ),
    "parameters": (["--run", "RUN", "IMAGE"], _with("final.npz", "text"), "final.npz cannot be read"),
    "another model": (["--run", "RUN", "IMAGE"], _another_model, "the model wants an array .* of shape"),
    "which": (["--run", "RUN", "--which", "first", "IMAGE"], None, "'first' is not one of"),
    "top": (["--run", "RUN", "--top", "0", "IMAGE"], None, "--top"),
    "nothing to do": (["--run", "RUN"], None, "no images given, and no --export"),
    "no run given": (["IMAGE"], None, "Missing option '--run'"),
    "an option": (["--run", "RUN", "--fast", "IMAGE"], None, "No such option"),
    "no image": (["--run", "RUN", "IMAGE", "nowhere.jpg"], None, "nowhere.jpg: No such file"),
    "a folder": (["--run", "RUN", "RUN"], None, "Is a directory"),
    "two": (
        ["--run", "RUN", "RUN/classes.json", "b.jpg"],
        None,
        r"classes.json: neither a JPEG nor a PNG file \(and 1 more\)",
    ),
    "export": (["--run", "RUN", "--export", "RUN/classes.json/in"], None, "classes.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_one_line_with_status_2(tmp_path, capsys, case):
    arguments, change, message = WRONG[case]
    run, (names, _) = run_folder(tmp_path / "run"), pictures(tmp_path / "images", 1)
    if change:
        change(run)
    with pytest.raises(SystemExit) as ended:
        predict.main([each.replace("RUN", str(run)).replace("IMAGE", str(names[0])) for each in arguments])
    out, error = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert error.startswith("predict: ")


def test_help_names_every_option_and_shows_examples():
    command = [sys.executable, "-m", "experiments.predict", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for expected in ("--run", "--which", "--top", "--json", "--export", "images", "cat.jpg"):
        assert expected in shown
