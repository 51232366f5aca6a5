"""The settings of a run: bounds, the TOML file, what wins over what, and the command's errors."""

import json
import re

import pytest

from experiments.train.__main__ import main
from experiments.train.settings import FIELDS, Settings, as_dict, read_toml, resolve

GIVEN = {"data": "images", "out": "run"}


def test_defaults_are_valid_and_json_brings_them_back():
    settings = Settings(**GIVEN)
    assert Settings(**json.loads(json.dumps(dict(as_dict(settings))))) == settings


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("epochs", 0, "epochs=0: must be at least 1"),
        ("epochs", 2.5, "epochs=2.5: must be an integer"),
        ("epochs", True, "epochs=True: must be an integer"),
        ("model", "vgg", "model='vgg': must be one of lenet, resnet"),
        ("views", 3, "views=3: must be one of 1, 2, 6"),
        ("learning_rate", float("nan"), "learning_rate=nan: must be at least 0"),
        ("weight_decay", float("inf"), "weight_decay=inf: must be finite"),
        ("label_smoothing", 1.5, "label_smoothing=1.5: must be at most"),
        ("remat", 1, "remat=1: must be true or false"),
        ("accumulate", 3, "accumulate=3: must divide the batch of 128"),
        ("data", "", "data: no folder"),
        ("out", "", "out: no folder"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(name, value, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        Settings(**(GIVEN | {name: value}))


def test_the_optimizer_has_its_own_learning_rate():
    assert Settings(**GIVEN, optimizer="adamw").learning_rate == 1e-3
    assert Settings(**GIVEN, optimizer="adamw", learning_rate=0.5).learning_rate == 0.5


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('data = "images"\nout = "run"\nlearning-rate = 1\nbatch = 64\n')
    settings = resolve({"batch": 32}, file)
    assert (settings.batch, settings.learning_rate) == (32, 1.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "unknown setting 'epoch'; did you mean epochs?"),
        ("qqqq = 3", "unknown setting 'qqqq'; known are data, out"),
        ("[train]\nepochs = 3", "unknown setting 'train'"),
        ("epochs = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, told):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"config={re.escape(str(file))}: .*{re.escape(told)}"):
        read_toml(file)


def test_a_resumed_run_has_its_own_settings(tmp_path):
    began = Settings(data="images", out=str(tmp_path), epochs=7, batch=64)
    (tmp_path / "settings.json").write_text(json.dumps(dict(as_dict(began))))
    assert resolve({"out": str(tmp_path), "resume": True}).epochs == 7
    assert resolve({"out": str(tmp_path), "resume": True, "keep": 9}).keep == 9  # changes nothing in what comes out
    with pytest.raises(ValueError, match=r"batch=32: the run in .* has 64"):
        resolve({"out": str(tmp_path), "resume": True, "batch": 32})


def test_resume_where_nothing_is_takes_what_is_given(tmp_path):
    assert resolve({"out": str(tmp_path / "new"), "data": "images", "resume": True}).epochs == FIELDS["epochs"].default


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "x", "--out", "y", "--epochs", "many"], "Input should be a valid integer"),
        (["--data", "x", "--out", "y", "--colour", "red"], "No such option"),
        (["--data", "x", "--out", "y", "--rules", "mine"], "rules='mine': must be one of jconv, automatic, both"),
        (["--data", "x"], "out: no folder"),
        (["--out", "y", "--config", "nowhere.toml"], "config=nowhere.toml: No such file"),
        (["--data", "nowhere", "--out", "y"], "nowhere"),
    ],
)
def test_the_command_ends_in_one_line_and_status_2(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train: ")
    assert error.count("\n") == 1
    assert told in error


def test_help_has_every_setting_and_examples(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')} /" in text, name
    assert "Examples:" in text
