"""The report of a run: what it reads, its table, its pictures and its page, with a browser and without."""

import html.parser
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jconv
from experiments.train import report
from experiments.train.models import MODELS
from experiments.train.report import files, layers, plots, table
from tests.experiments.train import runs

PICTURES = ("curves", "confusion", "mistakes", "kernels", "features", "speed")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    sys.modules["experiments.train.models.tiny"] = runs.model()
    yield
    del sys.modules["experiments.train.models.tiny"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    path, images = runs.write(tmp_path_factory.mktemp("both"), both=True)
    report.write(path)
    return path, images


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("one"))[0]


@pytest.fixture
def one(written, tmp_path):
    """The folder of a run with one rule, to be broken."""
    return shutil.copytree(written, tmp_path / "run")


class Page(html.parser.HTMLParser):
    """What a page refers to, its tags, and the text in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.words, self.alts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.references += [attrs[name] for name in ("src", "href", "srcset", "action", "data") if name in attrs]
        self.alts += [attrs["alt"]] if "alt" in attrs else []

    def handle_data(self, data):
        self.words.append(data)


def test_page(both):
    text = (both[0] / "report.html").read_text(encoding="utf-8")
    read = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    assert len(read.references) == 7 and all(r.startswith("data:image/png;base64,") for r in read.references)
    assert not re.search(r"https?:|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    assert len(set(read.alts)) == 7 and all(read.alts)
    words = re.sub(r"\s+", " ", " ".join(read.words))
    assert "tiny on trees" in words
    assert "75.00% right of 40 test images" in words
    assert "<cedar> & co" in words and "<cedar>" not in text  # escaped, and read back
    for row in table.rows(report.read(both[0])):
        assert all(cell in words for cell in row), row
    assert "batch 8 width 1.0" in words
    assert "not of one model" not in words


def test_page_of_one_rule(one):
    assert report.write(one) == one / "report.html"
    assert not (one / "agreement.png").exists()
    assert {p.stem for p in one.glob("*.png")} == set(PICTURES)
    assert "automatic" not in re.sub(r"<style>.*?</style>", "", (one / "report.html").read_text(), flags=re.DOTALL)


def test_pictures_are_files_of_some_size_and_not_blank(both):
    for name in (*PICTURES, "agreement"):
        with Image.open(both[0] / f"{name}.png") as image:
            assert image.width == int(plots.WIDTH * report.DPI) and image.height > 150
            assert len(set(image.convert("L").getextrema())) == 2


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome-headless-shell")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize("width", [360, 1200])
def test_page_in_a_browser(both, width, tmp_path):
    """Nothing is wider than the screen, and every picture is drawn; a script that is put into a copy tells."""
    told = "[document.documentElement.scrollWidth, innerWidth, ...[...document.images].map(i => i.naturalWidth)]"
    script = f"<script>addEventListener('load', () => document.title = JSON.stringify({told}))</script>"
    text = (both[0] / "report.html").read_text().replace("<details>", "<details open>")
    (tmp_path / "inner.html").write_text(text.replace("</body>", script + "</body>"))
    outer = (  # a frame, since a browser's own window has a least width
        f"<iframe id=f src=inner.html width={width} height=800></iframe><p id=told></p><script>"
        "addEventListener('load', () => setTimeout(() => told.textContent = f.contentDocument.title, 300))</script>"
    )
    (tmp_path / "outer.html").write_text(outer)
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
        *("--virtual-time-budget=3000", f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{tmp_path}/outer.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (found,) = re.findall(r"<p id=\"told\">\[(.*?)\]</p>", done.stdout)
    wide, inner, *pictures = map(int, found.split(","))
    assert inner == width and wide <= width
    assert pictures == [int(plots.WIDTH * report.DPI)] * 7


# The figures.


def test_table(both):
    rows = {row[0]: row[1:] for row in table.rows(report.read(both[0]))}
    assert rows["parameters"] == ("428", "")  # 3*3*3*4 + 3*3*4*8 + 8*4
    assert rows["steps"] == ("60", "60") and rows["epochs"] == ("3", "3")
    assert rows["test accuracy"] == ("75.00%", "75.00%") and len(rows["test loss"]) == 2
    assert rows["best test accuracy"][0].endswith("epoch 3")
    assert rows["time"] == ("3 min 20 s", "3 min 20 s")
    assert rows["speed, hand-written / automatic"] == ("1.50", "")
    assert rows["gradients at the first logged step"][0] == "differ by 2.0e-07 at most"
    assert rows["gradients at the last"][0] == "differ by 6.0e-06 at most"
    text = table.text(report.read(both[0]))
    assert all(len(line) <= table.WIDTH for line in text.splitlines())
    assert "hand-written" in text and "3 min 20 s" in text


def test_durations():
    assert [table.duration(s) for s in (0.25, 59.94, 61, 3599, 5400)] == [
        "0.2 s", "59.9 s", "1 min 01 s", "59 min 59 s", "1 h 30 min",
    ]  # fmt: skip


def test_confusion(both):
    run = report.read(both[0])
    want = np.diag([7, 7, 8, 8]) + np.roll(np.diag([3, 3, 2, 2]), 1, axis=1)
    np.testing.assert_array_equal(plots.confusion_matrix(run.predictions), want)
    figure = plots.confusion(run.predictions, run.classes)
    panel = figure.axes[0]
    assert [int(t.get_text()) for t in panel.texts] == want.ravel().tolist()
    assert panel.get_title() == "30 of 40 test images right"
    assert table.confusions(run)[0] == ("ash", "birch", "3 of 10")
    assert len(table.confusions(run)) == 4


def test_curves_are_those_of_the_log(both):
    run = report.read(both[0])
    loss, accuracy, rate = plots.curves(run.log, run.automatic).axes
    assert loss.get_yscale() == "log"
    lines = {line.get_label(): line for line in loss.lines}
    assert set(lines) == {f"{r} {w}" for r in ("hand-written", "automatic") for w in ("training batch", "test")}
    np.testing.assert_allclose(lines["automatic training batch"].get_ydata(), run.automatic.column("loss"))
    np.testing.assert_array_equal(lines["hand-written test"].get_xdata(), [20, 40, 60])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), run.log.column("learning_rate"))
    assert len(accuracy.lines) == 4


@pytest.mark.parametrize(("losses", "ticks"), [([2.5, 2.0, 1.5], "2"), ([100.0, 1.0, 0.1], None)])
def test_a_loss_within_a_decade_has_plain_ticks(losses, ticks):
    log = files.Log(tuple({"step": n, "loss": loss} for n, loss in enumerate(losses)), (), None)
    axis = plots.curves(log).axes[0].yaxis
    assert (axis.get_minor_formatter()(2.0, 0) == "2") == (ticks == "2")


def test_a_long_curve_is_smoothed_and_stays_in_place():
    values = np.arange(1000.0) + np.where(np.arange(1000) % 2, 5, -5)
    smooth = plots._smooth(values)
    assert abs(smooth - np.arange(1000)).max() < 6 and abs(np.diff(smooth)[20:-20]).max() < 2


def test_speed_ratio_is_of_the_steps_that_both_have():
    log = lambda rows: files.Log(tuple({"step": s, "images_per_second": v} for s, v in rows), (), None)
    steps, ratios = plots.speed_ratios(log([(1, 30), (2, 40), (4, 9)]), log([(2, 20), (1, 10), (3, 7), (4, None)]))
    assert steps.tolist() == [1, 2] and ratios.tolist() == [3, 2]


@pytest.mark.parametrize("count", [3, 30])
def test_agreement_has_one_curve_a_parameter(count):
    steps = np.arange(1, 6)
    curves = {f"params/stage/{i}/kernel": np.full(5, 1e-7 * (i + 1)) for i in range(count)}
    found = files.Agreement(steps, 1.0 / steps, 1.0 / steps + 1e-6, curves)
    figure = plots.agreement(found)
    above, below = figure.axes[:2]
    assert [line.get_ydata()[0] for line in above.lines] == pytest.approx([1e-7 * (i + 1) for i in range(count)])
    np.testing.assert_allclose(below.lines[0].get_ydata(), 1e-6 / (1.0 / steps + 1e-6))
    assert not above.texts
    assert bool(figure.legends) == (count <= plots.NAMED) and len(figure.axes) == (2 if count <= plots.NAMED else 3)
    figure.canvas.draw()


def test_gradients_that_are_alike_are_drawn_as_0():
    steps = np.arange(1, 4)
    found = files.Agreement(steps, 1.0 / steps, 1.0 / steps, {"a": np.zeros(3), "b": np.array([3e-7, 0, 6e-7])})
    figure = plots.agreement(found)
    alike, other = figure.axes[0].lines[:2]
    np.testing.assert_allclose(alike.get_ydata(), 1e-7)
    np.testing.assert_allclose(other.get_ydata(), [3e-7, 1e-7, 6e-7])
    assert figure.axes[0].texts[0].get_text().startswith("0: bit for bit")
    figure.canvas.draw()


def test_the_images_that_are_kept(both):
    path, images = both
    predictions = report.read(path).predictions
    labels, logits = runs.answers()
    # The first of three classes, which are mistakes too, then the other mistakes, the surest first.
    assert predictions.shown.tolist() == list(range(10))
    np.testing.assert_array_equal(predictions.images, images[:10])
    assert predictions.shown[predictions.mistakes()].tolist() == list(range(10))
    np.testing.assert_array_equal(predictions.labels, labels)
    assert predictions.accuracy == 0.75
    np.testing.assert_allclose(predictions.probabilities, np.asarray(jax.nn.softmax(logits)), rtol=1e-5)


def test_mistakes_are_drawn_with_both_names(both):
    run = report.read(both[0])
    drawn = [panel for panel in plots.mistakes(run.predictions, run.classes).axes if panel.images]
    assert len(drawn) == 10
    assert drawn[0].get_title() == "birch (100 %)\nis ash"
    np.testing.assert_array_equal(drawn[3].images[0].get_array(), both[1][3])


# What is in the model.


def test_convolutions_of_a_model():
    params, state = runs.init(jax.random.key(0), runs.IMAGE, 4)
    images = jax.random.normal(jax.random.key(1), (2, *runs.IMAGE))
    apply = lambda v, x: runs.apply(v["params"], v["state"], x, train=False)[0]
    found = layers.convolutions(apply, {"params": params, "state": state}, images)
    assert [layer.name for layer in found] == ["first", "blocks/0"]
    first = jconv.conv(images, params["first"]["kernel"], padding="SAME")
    np.testing.assert_allclose(found[0].output, first, atol=1e-5)
    second = jconv.conv(jconv.max_pool(jax.nn.relu(first), 2, 2), params["blocks"][0]["kernel"])
    np.testing.assert_allclose(found[1].output, second, atol=1e-5)
    np.testing.assert_array_equal(found[1].kernel, params["blocks"][0]["kernel"])


def test_a_kernel_that_is_computed_has_a_number():
    apply = lambda v, x: jconv.conv(x, v["kernel"] - v["kernel"].mean()).sum()
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 4))
    (found,) = layers.convolutions(apply, {"kernel": kernel}, jnp.ones((1, 5, 5, 3)))
    assert found.name == "convolution 1"
    np.testing.assert_allclose(found.kernel, kernel - kernel.mean(), atol=1e-6)


def test_equal_kernels_have_names_of_their_own():
    kernels = {
        "params": {"a": jnp.ones((1, 1, 3, 3)), "b": jnp.ones((1, 1, 3, 3))},
        "state": {"c": jnp.zeros((1, 1, 3, 3))},
    }
    apply = lambda v, x: jconv.conv(
        jconv.conv(jconv.conv(x, v["params"]["a"]), v["params"]["b"]), v["state"]["c"]
    ).sum()
    found = layers.convolutions(apply, kernels, jnp.ones((1, 5, 5, 3)))
    assert [layer.name for layer in found] == ["a", "b", "c"]


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layer_of_every_model_sees_the_image(name):
    model, shape = MODELS[name], (32, 32, 3)
    params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 10, width=0.25))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), {"params": params, "state": state})
    apply = lambda v, x: model.apply(v["params"], v["state"], x, train=False)[0]
    found = layers.convolutions(apply, zeros, np.zeros((1, *shape), np.float32))
    assert found[0].kernel.ndim == 4 and found[0].kernel.shape[2] == 3
    assert len({layer.name for layer in found}) == len(found) >= 2


def test_layers_are_spread():
    of = lambda n, size: layers.Layer(str(n), np.zeros((1, 1, 1, 1)), np.zeros((1, size, size, 1)))
    many = [of(n, 8) for n in range(10)] + [of(10, 1)]
    assert [layer.name for layer in layers.spread(many, 4)] == ["0", "3", "6", "9"]
    assert [layer.name for layer in layers.spread(many[-3:], 4)] == ["8", "9"]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_kernels_before_and_after(channels):
    kernel = np.linspace(-1, 1, 3 * 3 * channels * 5).reshape(3, 3, channels, 5)
    layer = lambda k: layers.Layer("stem", k, np.zeros((1, 4, 4, 5)))
    left, right = plots.kernels(layer(np.zeros_like(kernel)), layer(kernel)).axes
    assert left.get_title() == "before" and right.get_title() == "after"
    tile = left.images[0].get_array()[:24, :24]  # one kernel of 3 x 3, eight pixels a weight
    assert tile.shape == (24, 24, 3) and np.all(tile == 0.5)  # 0 is grey
    corner = right.images[0].get_array()[0, 0]
    drawn = kernel[..., 0] if channels != 2 else kernel[..., 0].mean(-1, keepdims=True)
    np.testing.assert_allclose(corner, np.broadcast_to(0.5 + drawn[0, 0] / (2 * abs(drawn).max()), 3))


def test_parameters_come_back(tmp_path):
    params = {"a": [jnp.ones((2, 3), jnp.bfloat16), jnp.arange(3)], "b": {"c": jnp.float32(4)}}
    files.save_parameters(tmp_path / "x.npz", params, {"n": np.int32(7)})
    back, state = files.load_parameters(tmp_path / "x.npz", params, {"n": np.int32(0)})
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert back["a"][0].dtype == jnp.bfloat16 and state["n"] == 7
    assert set(files.load_arrays(tmp_path / "x.npz")) == {"params/a/0", "params/a/1", "params/b/c", "state/n"}
    with pytest.raises(ValueError, match=r"wants an array 'params/a/0' of shape \(5,\), the file has one of shape"):
        files.load_parameters(tmp_path / "x.npz", {"a": [jnp.ones(5)]}, {})
    with pytest.raises(ValueError, match="the file has none"):
        files.load_parameters(tmp_path / "x.npz", {"z": jnp.ones(5)}, {})


# Folders that are not whole.


def test_a_run_that_was_stopped(one):
    for name in ("predictions.npz", "final.npz"):
        (one / name).unlink()
    kept = (one / "metrics.jsonl").read_text().splitlines()[:-1]
    (one / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 61, "lo')
    words = report.write(one).read_text()
    assert "The run did not reach its end." in words and "no confusion matrix" in words
    assert {p.stem for p in one.glob("*.png")} == {"curves", "speed"}
    rows = dict(table.rows(report.read(one)))
    assert rows["steps"] == "60" and rows["test accuracy"] == "not reached"


def test_figures_that_are_no_numbers(one):
    (one / "predictions.npz").unlink()
    rows = [
        {"step": 1, "epoch": 1, "loss": None},
        {"step": 2, "epoch": 1, "loss": float("nan"), "images_per_second": 3},
    ]
    runs.lines(one / "metrics.jsonl", rows)
    assert "did not reach its end" in report.write(one).read_text()


def test_predictions_of_another_model_are_told(one):
    (one / "initial.npz").unlink()
    text = (one / "metrics.jsonl").read_text().replace('"test_accuracy": 0.75', '"test_accuracy": 0.8')
    (one / "metrics.jsonl").write_text(text)
    assert "predictions.npz has 75.00% right, but metrics.jsonl says 80.00%" in report.write(one).read_text()


def break_json(path):
    (path / "settings.json").write_text("{")


def break_line(path):
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": \n{"step": 3, "loss": 1}\n')


def break_arrays(path):
    (path / "final.npz").write_bytes((path / "final.npz").read_bytes()[:200])


def break_classes(path):
    (path / "classes.json").write_text(json.dumps(["one"]))


def break_predictions(path):
    np.savez(path / "predictions.npz", labels=np.zeros(3))


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (break_json, "settings.json is no JSON"),
        (break_line, "metrics.jsonl, line 2, is no JSON"),
        (break_arrays, "final.npz cannot be read"),
        (break_classes, "classes.json names 1 classes, but predictions.npz has logits of 4"),
        (break_predictions, "predictions.npz lacks logits, shown, images, mean, std"),
        (lambda path: (path / "metrics.jsonl").unlink(), "holds no run: it has no metrics.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(breaking, words, one):
    breaking(one)
    with pytest.raises(ValueError, match=words):
        report.write(one)


def test_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train.report", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"report: {tmp_path} holds no run: it has no settings.json\n"


def test_a_first_layer_that_is_not_trained_is_told(one):
    arrays = files.load_arrays(one / "final.npz")
    arrays["params/first/kernel"] = files.load_arrays(one / "initial.npz")["params/first/kernel"]
    np.savez(one / "final.npz", **arrays)
    assert "This layer is not trained." in report.write(one).read_text()
