import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments import algorithms
from experiments.bench import __main__ as command
from experiments.bench import against, choice, contestants, floors, layers, measure, report, results, runner, truth
from jconv.algorithms import choose

ROOT = pathlib.Path(__file__).parents[2]
PLANE = {"batch": 2, "strides": [1, 1], "padding": [[1, 1], [1, 1]]}
TOYS = [
    PLANE | {
        "name": "toy_grouped", "op": "conv", "family": "grouped", "spatial": [8, 9], "in_channels": 4,
        "out_channels": 6, "kernel": [3, 2], "strides": [2, 1], "padding": [[1, 0], [2, 1]], "kernel_dilation": [1, 2],
        "groups": 2,
    },
    PLANE | {
        "name": "toy_up", "op": "conv_transpose", "family": "transposed", "spatial": [5, 6], "in_channels": 4,
        "out_channels": 6, "kernel": [3, 4], "strides": [2, 2], "padding": [[1, 1], [1, 2]], "groups": 2,
        "output_padding": [1, 0],
    },
    PLANE | {
        "name": "toy_max", "op": "max_pool", "family": "maxpool", "spatial": [8, 8], "in_channels": 4,
        "window": [3, 3], "strides": [2, 2], "padding": [[0, 1], [0, 1]],
    },
    PLANE | {
        "name": "toy_avg", "op": "avg_pool", "family": "avgpool", "spatial": [8, 8], "in_channels": 4,
        "window": [3, 3], "count_include_pad": False,
    },
]  # fmt: skip
PATCH = layers.from_json(
    {
        "name": "patch", "op": "conv", "family": "strided", "batch": 3, "spatial": [8, 6], "in_channels": 2,
        "out_channels": 4, "kernel": [8, 2], "strides": [1, 2], "padding": [[0, 0], [0, 0]],
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "toys.json"
    path.write_text(json.dumps(TOYS[:3]))
    return path


def run_command(*arguments, module="experiments.bench"):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole_run(toys):
    """The command on all toys, jconv against lax: (what it printed, its JSON, the plot's path)."""
    json_file, plot = toys.with_name("out.json"), toys.with_name("out.png")
    done = run_command(
        toys, "--repeats", 1, "--contestants", "jconv,lax", "--json", json_file, "--plot", plot, "--lock", toys
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(json_file.read_text()), plot


def test_json_has_every_figure(whole_run):
    _, run, _ = whole_run
    assert run["settings"]["dtype"] == "float32"
    assert run["machine"]["versions"]["jax"] == jax.__version__
    assert [row["name"] for row in run["rows"]] == [toy["name"] for toy in TOYS[:3]]
    for row in run["rows"]:
        assert "error" not in row
        for product in ("step", "forward"):
            for contestant in ("jconv", "lax"):
                facts = row["runs"][product][contestant]
                assert len(facts["seconds"]) >= 1, facts
                assert min(facts["seconds"]) > 0
                assert facts["compile_seconds"] > 0
                assert facts["temp_bytes"] >= 0
        kept = {name: row["runs"]["step"][name]["kept_bytes"] for name in ("jconv", "lax")}
        assert kept["jconv"]["total"] <= kept["lax"]["total"]
        for contestant in ("jconv", "lax"):
            errors = row["errors"]["step"][contestant]
            assert set(errors) == ({"y", "dx"} if "window" in row["layer"] and "pool" in row["layer"]["op"] else
                                   {"y", "dx", "dkernel", "dbias"})  # fmt: skip
            assert max(errors.values()) < 1e-5


def test_output_has_every_table_and_a_plot(whole_run):
    printed, _, plot = whole_run
    for expected in ("by layer", "by family", "Floors:", "lax / jconv", "all 3", *(toy["name"] for toy in TOYS[:3])):
        assert expected in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_rows_products_loop_and_against(whole_run, toys):
    earlier = toys.with_name("out.json")
    json_file = toys.with_name("one.json")
    arguments = ("--repeats", 2, "--contestants", "lax", "--products", "--in-loop", "--json", json_file)
    done = run_command(toys, "--rows", "^toy_g", *arguments, "--against", earlier)
    assert done.returncode == 0, done.stderr
    run = json.loads(json_file.read_text())
    assert [row["name"] for row in run["rows"]] == ["toy_grouped"]
    assert set(run["rows"][0]["runs"]) == {"step", "forward", "kernel_grad", "input_grad", "once", "loop"}
    assert "Each product alone" in done.stdout
    assert "One step inside lax.scan" in done.stdout
    assert "Against" in done.stdout


def test_channels_first(toys):
    """Kept in the file, and no run of NHWC is held against it."""
    json_file = toys.with_name("first.json")
    arguments = ("--rows", "^toy_up", "--repeats", 1, "--contestants", "jconv,lax", "--channels-first", "--products")
    done = run_command(toys, *arguments, "--json", json_file)
    assert done.returncode == 0, done.stderr
    run = json.loads(json_file.read_text())
    assert run["settings"]["channels_first"]
    assert run["rows"][0]["layer"]["channels_first"]
    assert max(run["rows"][0]["errors"]["step"]["jconv"].values()) < 1e-5
    assert all(run["rows"][0]["runs"][product]["jconv"]["seconds"] for product in ("step", "kernel_grad", "input_grad"))
    done = run_command(toys, "--against", json_file)
    assert done.returncode == 2
    assert "channels_first is False now and was True then" in done.stderr


def test_an_eager_layer_runs_in_no_loop(toys):
    """lax.scan outside of jit is compiled at every call: that would be timed."""
    rows, json_file = toys.with_name("eager_layer.json"), toys.with_name("eager.json")
    rows.write_text(json.dumps([TOYS[0] | {"eager": True}]))
    done = run_command(rows, "--repeats", 1, "--contestants", "jconv", "--in-loop", "--json", json_file)
    assert done.returncode == 0, done.stderr
    runs = json.loads(json_file.read_text())["rows"][0]["runs"]
    assert runs["step"]["jconv"]["seconds"]
    assert not {"once", "loop"} & set(runs)


def test_algorithms_side_by_side(toys):
    json_file = toys.with_name("algorithms.json")
    arguments = (toys, "--rows", "toy_up", "--repeats", 1, "--json", json_file)
    done = run_command(*arguments, module="experiments.algorithms")
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s" in done.stdout
    for product in ("forward", "kernel_grad", "input_grad"):
        assert product in done.stdout
    run = json.loads(json_file.read_text())
    assert min(run["peak"].values()) > 1e8
    (row,) = run["rows"]
    assert {"jconv", "lax", "jconv:lax", "jconv:phases"} <= set(row["runs"]["forward"])
    assert "does not apply" in row["runs"]["kernel_grad"]["jconv:phases"]["error"]
    for product in ("forward", "kernel_grad", "input_grad"):
        assert max(max(errors.values()) for errors in row["errors"][product].values()) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "cannot read nowhere.json"),
        (["TOYS", "--rows", "vgg"], "--rows 'vgg' matches none of the 3 layers"),
        (["TOYS", "--rows", "("], "is not a regular expression"),
        (["TOYS", "--contestants", "mxnet"], "must name some of jconv, lax, torch"),
        (["TOYS", "--against", "TOYS"], "is not what --json writes"),
        (["TOYS", "--batch-scale", "0"], "--batch-scale 0.0 must be positive"),
        ([], "name a file of layers, or --extras"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_status_2(arguments, message, toys):
    called = CliRunner().invoke(command.app, [str(toys) if argument == "TOYS" else argument for argument in arguments])
    assert called.exit_code == 2
    assert message in called.stderr
    assert len(called.stderr.strip().splitlines()) == 1
    assert called.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("{}", "must hold a list of layers"),
        (json.dumps([TOYS[0] | {"op": "fft"}]), "layer toy_grouped: op='fft' is none of conv,"),
        (json.dumps([{k: v for k, v in TOYS[0].items() if k != "strides"}]), "the key 'strides' is missing"),
        (json.dumps([TOYS[0] | {"strides": [1]}]), "one entry a spatial axis expected"),
        (json.dumps([TOYS[0] | {"kernel": [99, 1]}]), "the window does not fit"),
        (json.dumps([TOYS[0] | {"groups": 4}]), "groups=4 must divide"),
        (json.dumps(TOYS[:1] * 2), "the name 'toy_grouped' stands for more than one layer"),
    ],
)
def test_wrong_files_are_named_with_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "layers.json"
    path.write_text(text)
    with pytest.raises(layers.BenchError, match=message):
        layers.read(path)


def test_odd_and_scaled_layers():
    odd = layers.odd(PATCH)
    assert odd.spatial == (9, 7)
    assert odd.window == (9, 2)  # a window over the whole of an axis grows with it
    assert layers.scaled(PATCH, 0.1).batch == 1
    assert layers.scaled(PATCH, 4).batch == 12


@pytest.mark.parametrize("toy", [*TOYS, PATCH.to_json()], ids=lambda toy: toy["name"])
@pytest.mark.parametrize(
    "change", [lambda layer: layer, layers.odd, layers.channels_first], ids=["even", "odd", "NCHW"]
)
@pytest.mark.parametrize("contestant", ["lax", "jconv"])
def test_forms_are_what_float64_says(toy, change, contestant):
    layer = change(layers.from_json(toy))
    operands = contestants.draw(layer, "float32")
    form = contestants.form(contestant, layer, operands)
    batch, channels = form.operands[0].shape[0], form.operands[0].shape[1 if layer.channels_first else -1]
    assert (batch, channels) == (layer.batch, layer.in_channels)
    wanted = truth.step(layer, operands)
    for product, names in contestants.RESULTS.items():
        if product != "kernel_grad" or layer.is_convolution:
            got = form.named(product, jax.jit(form.products[product])(*form.operands))
            assert list(got) == [name for name in names if name in wanted]
            assert [got[name].shape for name in got] == [wanted[name].shape for name in got]
            assert max(truth.errors(got, wanted).values()) < 1e-6


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy["name"])
def test_torch_forms_are_what_float64_says(toy):
    pytest.importorskip("torch")
    from experiments.bench import torch_forms

    layer = layers.from_json(toy)
    operands = contestants.draw(layer, "float32")
    wanted = truth.step(layer, operands)
    for memory_format in torch_forms.memory_formats(layer):
        got = torch_forms.call(layer, operands, memory_format, "step")()
        images = [np.moveaxis(tensor.numpy(), 1, -1) for tensor in got[:2]]
        kernels = [tensor.numpy().transpose(*range(2, tensor.ndim), 1, 0) for tensor in got[2:3]]
        named = dict(zip(wanted, (*images, *kernels, *(tensor.numpy() for tensor in got[3:])), strict=True))
        assert max(truth.errors(named, wanted).values()) < 1e-6


def test_float64_keeps_the_identity_of_the_three_products():
    for toy in TOYS[:2]:
        layer = layers.from_json(toy)
        operands = contestants.draw(layer, "float32")
        true = truth.step(layer, operands)
        want = np.vdot(true["y"] - operands["bias"], operands["g"])
        got = np.vdot(operands["x"], true["dx"]), np.vdot(operands["kernel"], true["dkernel"])
        np.testing.assert_allclose(got, want)
        np.testing.assert_allclose(true["dbias"], operands["g"].sum((0, 1, 2)), rtol=1e-5)


FAKE_WORKER = """
import json, os, sys, time
job = json.load(sys.stdin)
tell = lambda **event: print(json.dumps(event), flush=True)
for contestant in job["contestants"]:
    if ["step", contestant] in job["skip"]:
        continue
    tell(begin=["step", contestant], stage="first call", expected_seconds=0)
    if contestant == "lax":
        time.sleep(60)
    if contestant == "torch":
        os._exit(11)
    tell(of=["step", contestant], facts={"seconds": [0.5]})
tell(done=True)
"""


def test_a_crash_and_a_timeout_of_one_lose_no_other(monkeypatch):
    monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", FAKE_WORKER))
    stages = []
    row = runner.run_layer(
        PATCH, contestants=("lax", "torch", "jconv"), products=("step",), dtype="float32", repeats=1, timeout=2.0,
        stage=stages.append,
    )  # fmt: skip
    assert row["runs"]["step"]["lax"] == {"over_limit": 2.0, "stage": "first call"}
    assert "ended with 11 during first call" in row["runs"]["step"]["torch"]["error"]
    assert row["runs"]["step"]["jconv"] == {"seconds": [0.5]}
    assert results.ratio(row, "step", "lax", "jconv") == results.Figure(4.0, "≥")
    assert str(results.ratio(row, "step", "lax", "jconv")) == "≥4.00"
    assert results.ratio(row, "step", "torch", "jconv") is None
    assert report.failures([row])[0] == "patch: lax step: first call took more than 2 s"
    assert "step lax first call" in stages


def test_a_disturbed_row_is_timed_again(tmp_path):
    cores = iter([1.0, 0.5, 0.01])
    measured = lambda: {"others": {"step": next(cores), "forward": 0.0}}
    assert results.disturbed(runner.undisturbed(measured, None, retries=1))
    assert not results.disturbed(runner.undisturbed(measured, tmp_path / "lock", retries=1))


def made_row(name="a", family="depthwise", lax=30.0, jconv=1.0, torch=1.0, layer=PATCH, **jconv_facts):
    figures = {"temp_bytes": 2**20, "compile_seconds": 0.1, "kept_bytes": {"total": 100, "arguments": 100}}
    forms = {
        "jconv": figures | {"seconds": [jconv] * 5} | jconv_facts,
        "lax": figures | {"seconds": [lax] * 5},
        "torch": {"seconds": [torch] * 5},
    }
    errors = {"step": {"jconv": {"y": 1e-7}, "lax": {"y": 1e-7}}}
    return {
        "name": name, "family": family, "layer": dataclasses.replace(layer, name=name, family=family).to_json(),
        "runs": {"step": forms, "forward": forms}, "errors": errors,
    }  # fmt: skip


def missed(*rows, dtype="float32"):
    return [check.what for check in floors.checks(list(rows), dtype) if not check.holds]


def test_floors_hold_and_miss():
    assert missed(made_row()) == []
    assert missed(made_row(lax=29)) == ["depthwise: lax / jconv"]
    assert missed(made_row(torch=0.5)) == ["depthwise: PyTorch / jconv"]
    assert missed(made_row(lax=300), made_row("b", lax=4)) == ["depthwise: worst lax / jconv"]
    assert missed(made_row(lax=0.9), dtype="float64") == ["forward: worst lax / jconv"]
    assert missed(made_row(temp_bytes=2**21)) == ["temporaries: jconv / lax"]
    assert missed(made_row(kept_bytes={"total": 101, "arguments": 0})) == [
        "kept for the backward pass: worst jconv / lax"
    ]
    assert missed(made_row(compile_seconds=3.2)) == ["compile time: jconv / lax", "compile time: most seconds over lax"]
    assert missed(made_row() | {"errors": {"step": {"jconv": {"y": 1e-6}, "lax": {"y": 2e-7}}}}) == [
        "error against float64: worst jconv / lax"
    ]
    tiny = made_row("tiny", "extras", lax=0.8, layer=dataclasses.replace(PATCH, floor=0.9))
    assert missed(tiny) == ["tiny: lax / jconv", "forward: worst lax / jconv"]


def test_changes_beyond_the_noise_alone_are_told():
    settings = {"dtype": "float32", "batch_scale": 1.0, "odd": False, "platform": "cpu"}
    then = {"settings": settings, "rows": [made_row(jconv=1.0), made_row("b", jconv=1.0), made_row("c", jconv=1.0)]}
    now = {"settings": settings, "rows": [made_row(jconv=1.5), made_row("b", jconv=0.8), made_row("c", jconv=1.04)]}
    found = against.changes(now, then)
    verdicts = {change.name: change.verdict for change in found if change[1:3] == ("step", "jconv")}
    assert verdicts == {"a": "slower", "b": "faster", "c": "same"}
    console = Console(width=160, file=io.StringIO())
    console.print(report.of_changes(found, "then.json"))
    assert "4 of 18 times differ beyond the noise" in console.file.getvalue()
    with pytest.raises(layers.BenchError, match="dtype is 'float32' now and was 'float16' then"):
        against.changes(now, {"settings": settings | {"dtype": "float16"}, "rows": []})


def test_spread_widens_the_noise():
    assert against.spread([1.0, 1.0, 1.0]) == 0
    assert against.spread([0.8, 1.0, 1.2]) == pytest.approx(0.2)


@pytest.mark.parametrize(("seconds", "expected"), [(1e-4, 25), (0.05, 10), (1.0, 5), (4.0, 3), (11.0, 0)])
def test_rounds(seconds, expected):
    assert measure.rounds(seconds, 5) == expected


def test_interleaved_times_every_form_in_turn():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ABC"}
    times = measure.interleaved(calls, dict.fromkeys("AB", 1.0) | {"C": 20.0}, repeats=2)
    assert called == ["A", "B", "A", "B"]
    assert [len(times[name]) for name in "ABC"] == [2, 2, 1]
    assert times["C"] == [20.0]


def test_no_form_always_follows_the_same_one():
    """What runs straight after PyTorch takes longer: in six rounds each of three forms begins twice."""
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ABC"}
    measure.interleaved(calls, dict.fromkeys("ABC", 1.0), repeats=6)
    rounds = ["".join(called[i : i + 3]) for i in range(0, len(called), 3)]
    assert sorted(rounds) == ["ABC", "ACB", "BAC", "BCA", "CAB", "CBA"]


def test_kept_bytes_counts_each_array_once():
    x = np.ones((4,), np.float32)
    kept = measure.kept_bytes(lambda x, w: jax.numpy.sin(x) * w * w, (x, x))
    assert kept == {"total": 4 * 4 * 4, "arguments": 16}  # cos(x), sin(x), sin(x) w, and w itself
    assert types.SimpleNamespace(**measure.kept_bytes(lambda x: x * 2, (x,))).total == 0


def test_the_static_choice_is_held_against_the_fastest(toys):
    json_file = toys.with_name("check.json")
    check = lambda *options: CliRunner().invoke(algorithms.app, [str(toys), "--check", "--repeats", "1", *options])
    done = check("--json", str(json_file))
    assert done.exit_code == 0, done.output
    run, out = json.loads(json_file.read_text()), " ".join(done.output.split())
    assert [row["name"] for row in run["rows"]] == ["toy_grouped", "toy_up"]
    for row in run["rows"]:
        assert set(row["products"]) == set(choose.PRODUCTS)
        for found in row["products"].values():
            assert found["static"] in found["seconds"] and not set(found["seconds"]) & set(found["skipped"])
    assert choice.verdict(run["rows"]) in out and "Left out: 1 poolings" in out
    refused = check("--rows", "max")
    assert refused.exit_code == 2 and "--check needs a convolution" in refused.output


def test_the_verdict_counts_products_and_layers():
    found = lambda static, best: {"static": "lax", "seconds": {"lax": static, "taps": best}}
    rows = [
        {
            "products": {"forward": found(1.0, 2.0), "kernel_grad": found(1.2, 1.0)}
        },  # slow by 20 % in one, 10 % together
        {"products": {"forward": found(3.0, 2.0)}},
    ]
    assert choice.ratios(rows[0]) == {"forward": 1.0, "kernel_grad": 1.2}
    assert choice.layer_ratio(rows[0]) == pytest.approx(1.1)
    assert choice.verdict(rows) == (
        "The static choice is within 15% of the fastest on 1 of 3 products, 33%; 1 of 2 layers (all products together), 50%."
    )
