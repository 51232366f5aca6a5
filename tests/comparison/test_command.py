"""The command: exit statuses, one clear line for what is wrong, the layer language, explain."""

import functools
import importlib
import json
import pathlib
import subprocess
import sys
import tomllib

import jax
import pytest

from jconv import cli
from jconv.algorithms import choose
from jconv.comparison import layer as layers
from jconv.explanation import explain_layer

MODULE = "tests.comparison.rules"


@pytest.fixture
def run(capsys):
    """The command in this process: (exit status, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call


def test_rules_that_agree(run, tmp_path):
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    status, out, err = run(
        *("compare", f"{MODULE}:loss", "--args", f"{MODULE}:arguments", "--repeats", "1", "--jvp-of-grad"),
        *("--html", str(page), "--json", str(figures), "--seed", "3"),
    )
    assert (status, err) == (0, "")
    assert "The rules agree on 5 arrays." in out
    assert "<!doctype html>" in page.read_text()
    read = json.loads(figures.read_text())
    assert read["seed"] == 3 and read["name"] == f"{MODULE}:loss"


def test_rules_that_disagree(run):
    status, out, err = run("compare", f"{MODULE}:wrong_loss", "--args", f"{MODULE}:arguments", "--repeats", "1")
    assert status == 1
    assert "NO" in out
    (line,) = err.splitlines()
    assert line.startswith(
        "jconv: the rules disagree: gradient of params['weights'] differs by 0.5 at index (1,): hand-"
    )
    assert "automatic" in line


def test_options_reach_compare(run):
    wrong = ("compare", f"{MODULE}:wrong_loss", "--args", f"{MODULE}:arguments", "--repeats", "1", "--no-float64")
    assert run(*wrong, "--atol", "0.6")[0] == 0
    assert run(*wrong, "--rtol", "10")[0] == 0
    assert run(*wrong, "--rule", "another")[0] == 0
    assert run(*wrong, "--rule", "another", "--rule", "scale")[0] == 1


def test_one_argument_needs_no_tuple(run):
    assert run("compare", f"{MODULE}:pool", "--args", f"{MODULE}:one_argument", "--repeats", "1")[0] == 0


def test_a_layer(run):
    status, out, err = run("compare", "--layer", "conv 1x6x6x4 -> 8 k3 s1 p1 g=2 bias", "--repeats", "1")
    assert (status, err) == (0, "")
    for words in ("conv 1x6x6x4 -> 8 k3 s1 p1 g=2 bias", "  kernel", "  bias", "  x"):
        assert words in out


WRONG = {
    "no such module": (("compare", "nowhere.at.all:f"), "there is no module 'nowhere.at.all'"),
    "no such function": (("compare", f"{MODULE}:los", "--args", f"{MODULE}:arguments"), "has no 'los'; near: loss"),
    "no colon": (("compare", MODULE), "must have the form MODULE:FUNCTION"),
    "no function": (("compare", f"{MODULE}:NUMBER"), "must be a function, it is of type int"),
    "fails": (
        ("compare", f"{MODULE}:fails", "--args", f"{MODULE}:arguments"),
        "fails failed: RuntimeError: the first line",
    ),
    "no arrays": (
        ("compare", f"{MODULE}:loss", "--args", f"{MODULE}:text_arguments"),
        "x='text' must be an array or a number, got str",
    ),
    "no arguments": (("compare", f"{MODULE}:loss"), "needs arguments: --args MODULE:FACTORY"),
    "the factory fails": (
        ("compare", f"{MODULE}:loss", "--args", f"{MODULE}:factory_fails"),
        "factory_fails failed: OSError: no data here",
    ),
    "no such factory": (("compare", f"{MODULE}:loss", "--args", f"{MODULE}:argments"), "near: arguments"),
    "nothing": (("compare",), "give either MODULE:FUNCTION or --layer"),
    "both": (("compare", f"{MODULE}:loss", "--layer", "conv 1x6x4 -> 8 k3"), "give either MODULE:FUNCTION or --layer"),
    "args of a layer": (("compare", "--layer", "conv 1x6x4 -> 8 k3", "--args", "a:b"), "--args belongs to"),
    "layer": (("compare", "--layer", "conv 1x6x4 -> 8 k9"), "the window does not fit on spatial axis 0"),
    "option": (("compare", "--nonsense"), "--nonsense"),
    "repeats": (("compare", f"{MODULE}:loss", "--repeats", "0"), "greater than or equal to 1"),
    "folder": (("compare", f"{MODULE}:loss", "--html", "."), "is a folder, not a file"),
    "no folder": (("compare", f"{MODULE}:loss", "--json", "nowhere/at/all.json"), "does its folder exist?"),
    "command": (("comprae",), "comprae"),
    "explain nothing": (("explain",), "give one layer"),
    "explain a pool": (("explain", "max_pool 1x6x4 k2"), "nothing to choose"),
    "explain a platform": (("explain", "conv 1x6x4 -> 8 k3", "--platform", "abacus"), "must be cpu, gpu or tpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line_and_exit_status_2(name, run):
    arguments, words = WRONG[name]
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("jconv: ") and words in line


def test_importing_a_broken_module_is_one_line(run, tmp_path, monkeypatch):
    (tmp_path / "broken_rule.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "other_rule.py").write_text("raise ValueError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        "importing 'broken_rule' failed: No module named 'nothing_of_that_name'" in run("compare", "broken_rule:f")[2]
    )
    status, _, err = run("compare", "other_rule:f")
    assert status == 2 and err == "jconv: compare: importing 'other_rule' failed: ValueError: not today\n"


def test_help_shows_examples(run):
    for arguments in (("compare", "--help"), ("explain", "--help"), ("--help",)):
        status, out, _ = run(*arguments)
        assert status == 0
        assert "python -m jconv" in out
        assert arguments == ("--help",) or f"  python -m jconv {arguments[0]} " in out


def test_without_typer_one_line_names_the_extra(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "jconv.comparison.command", raising=False)
    monkeypatch.delattr("jconv.comparison.command", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    status, out, err = run("compare")
    assert (status, out) == (2, "")
    assert err == "jconv: the command needs typer, which is not installed: pip install 'jconv[compare]'\n"


@pytest.mark.parametrize(("module", "options"), [("rich", ()), ("matplotlib", ("--html", "page.html"))])
def test_without_the_rest_of_the_extra(module, options, run, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = run("compare", f"{MODULE}:loss", "--args", f"{MODULE}:arguments", *options)
    assert status == 2
    assert err == f"jconv: the command needs {module}, which is not installed: pip install 'jconv[compare]'\n"


def test_installed_as_a_command():
    scripts = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["jconv"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_as_a_module_in_a_process_of_its_own():
    command = [sys.executable, "-m", "jconv", "explain", "conv 8x56x56x128 -> 128 k3 p1 g128"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "kernel gradient  taps" in done.stdout


def test_import_stays_light():
    code = "import sys, jconv; print([m for m in ('rich', 'typer', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


# The layer language.

LAYERS = {
    "conv 8x56x56x64 -> 64 k3 s1 p1": ((8, 56, 56, 64), (3, 3, 64, 64)),
    "conv 2x9x8->6 k3x5 p1x2 bias": None,  # one spatial axis
    "conv 2x9x9x8->6 k3x5 p1x2 bias": ((2, 9, 9, 8), (3, 5, 8, 6), (6,)),
    "conv 2x9x9x8 -> 8 k3 g8 d=2 bfloat16": ((2, 9, 9, 8), (3, 3, 1, 8)),
    "conv 1x8x8x4 -> 4 k2 p2:0": ((1, 8, 8, 4), (2, 2, 4, 4)),
    "conv 2x30x4 -> 4 k3 pCausal d2": ((2, 30, 4), (3, 4, 4)),
    "conv 1x4x5x6x2 -> 4 k1x2x3 s1x1x2": ((1, 4, 5, 6, 2), (1, 2, 3, 2, 4)),
    "conv_transpose 1x7x7x16 -> 8 k2 s2 o1": ((1, 7, 7, 16), (2, 2, 8, 16)),
    "conv_transpose 1x7x7x16 -> 8 k3 s2 p1 g4": ((1, 7, 7, 16), (3, 3, 2, 16)),
    "max_pool 2x8x8x3 k3 s2 p1 d2": ((2, 8, 8, 3),),
    "avg_pool 2x8x8x3 k2 s2": ((2, 8, 8, 3),),
}


@pytest.mark.parametrize("text", LAYERS)
def test_layers(text):
    if LAYERS[text] is None:
        with pytest.raises(ValueError, match="entries for 1 spatial axes"):
            layers.parse(text)
        return
    parsed = layers.parse(text)
    assert tuple(struct.shape for struct in parsed.shapes) == LAYERS[text]
    arguments = parsed.arguments()
    assert [(a.shape, a.dtype) for a in arguments] == [(s.shape, s.dtype) for s in parsed.shapes]
    assert jax.eval_shape(parsed.fun, *arguments).dtype == arguments[0].dtype


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with one of conv, conv_transpose, max_pool, avg_pool"),
        ("dense 3", "must begin with one of"),
        ("conv", "must give a shape"),
        ("conv 8x56 -> 64 k3", "must give a shape"),
        ("conv 8x56x0x3 -> 64 k3", "cannot be meant"),
        ("conv 8000x5600x5600x64 -> 64 k3", "cannot be meant"),
        ("conv 8x56x56x64 k3", "must give the number of output channels: -> 64"),
        ("conv 8x56x56x64 -> k3", "must give the number of output channels after"),
        ("conv 8x56x56x64 -> 64", "must give the window"),
        ("conv 8x56x56x64 -> 64 k3 k3", "gives the window twice, in 'k3'"),
        ("conv 8x56x56x64 -> 64 kx", "'kx', which must be a number"),
        ("conv 8x56x56x64 -> 64 k3 pnone", "a name"),
        ("conv 8x56x56x64 -> 64 k3 g3", "must divide both numbers of channels, 64 and 64"),
        ("conv 8x56x56x64 -> 64 k3 g2x4", "must give one number of groups"),
        ("conv 8x56x56x64 -> 64 k3 o1", "conv has no output padding"),
        ("conv 8x56x56x64 -> 64 k3 stride2", "'stride2'"),
        ("conv 8x56x56x64 -> 64 k3 int8", "'int8', which means nothing"),
        ("conv 8x56x56x64 -> 64 k3 float64", "needs JAX_ENABLE_X64=1"),
        ("conv 8x56x56x64 -> 64 k0", "conv: "),
        ("max_pool 8x56x56x64 -> 64 k3", "max_pool keeps its channels"),
        ("max_pool 8x56x56x64 k3 g2", "max_pool has no groups"),
    ],
)
def test_layers_that_are_none(text, words):
    with pytest.raises(ValueError) as error:
        layers.parse(text)
    assert words in str(error.value)
    assert repr(text) in str(error.value)


# explain, as the command prints it; tests/test_explain.py has the rest.


def test_explain(run):
    status, out, err = run("explain", "conv_transpose 1x28x28x1024 -> 512 k2 s2")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "conv_transpose 1x28x28x1024 -> 512 k2 s2, on cpu"
    for product in ("forward", "kernel gradient", "input gradient"):
        assert f"\n{product} " in out
    assert run("explain", "--layer", "conv_transpose 1x28x28x1024 -> 512 k2 s2")[1] == out
    assert "the vendor's library" in run("explain", "conv 1x9x9x3 -> 4 k3", "--platform", "gpu")[1]


@pytest.mark.parametrize("platform", ["cpu", "other"])
@pytest.mark.parametrize("text", [t for t in LAYERS if LAYERS[t] and not t.partition(" ")[0].endswith("pool")])
def test_explain_tells_what_the_lowering_chooses(text, platform, monkeypatch):
    """The rows that are picked while the three products are lowered are those that explain names."""
    parsed, picked = layers.parse(text), []
    outermost = choose.pick

    def recording(problem, algorithm="auto", platform="cpu"):
        row = outermost(problem, algorithm, platform)
        picked.append(row.name)
        return row

    explained = explain_layer(parsed.fun, *parsed.shapes, platform="cpu" if platform == "cpu" else "gpu")
    monkeypatch.setattr(choose, "pick", recording)
    step = lambda *arrays: jax.vjp(parsed.fun, *arrays[:-1])[1](arrays[-1])
    y = jax.eval_shape(parsed.fun, *parsed.shapes)
    jax.clear_caches()
    for number, choice in enumerate(explained.choices):
        wanted = {
            0: parsed.fun,
            1: functools.partial(one_gradient, step, 1),
            2: functools.partial(one_gradient, step, 0),
        }
        operands = parsed.shapes if number == 0 else (*parsed.shapes, y)
        picked.clear()
        jax.jit(wanted[number]).trace(*operands).lower(lowering_platforms=("cpu" if platform == "cpu" else "cuda",))
        assert choice.algorithm in picked, (choice, picked)


def one_gradient(step, which, *arrays):
    return step(*arrays)[which]
