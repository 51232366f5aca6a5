"""What a comparison looks like: the table, JSON, the picture, the page."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv.comparison import cost, page, table
from tests.comparison import rules


@pytest.fixture(scope="module")
def found():
    return jconv.compare(rules.wrong_loss, *rules.arguments(), repeats=2, jvp_of_grad=True, name="my <rule> & more")


def test_table(found):
    text = str(found)
    assert all(len(line) <= 100 for line in text.splitlines())
    for words in (
        "my <rule> & more",
        "params['weights']",
        "jvp of gradient of",
        "NO",
        "forward + backward",
        "equations",
    ):
        assert words in text
    assert "The rules disagree: gradient of params['weights'] differs by 0.5 at index (1,)" in text.replace("\n", " ")


def test_long_names_and_sizes_stay_within_100_columns():
    params = {"a rather long name of a block": {f"layer_{i}": {"kernel" * 4: np.ones(2, np.float32)} for i in range(2)}}
    f = lambda params: sum(jnp.sum(k["kernel" * 4]) for k in params["a rather long name of a block"].values())
    text = str(jconv.compare(f, params, repeats=1, name="f" * 250))
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "layer_1" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 us"), (2e-7, "0.2 us"), (0.0012345, "1.23 ms"), (0.9999, "1e+03 ms"), (83.0, "83 s"), (4000.0, "4000 s")],
)
def test_seconds(value, shown):
    assert table.seconds(value) == shown


def test_what_was_timed_once_has_no_spread():
    once, twice = (str(jconv.compare(jnp.sin, 1.0, repeats=n, float64=False)) for n in (1, 2))
    assert "timed once" in once and "±" not in once
    assert "medians of 2 rounds" in twice and twice.count("±") == 5


def test_slow_programs_are_timed_by_their_first_calls(monkeypatch):
    monkeypatch.setattr(cost, "SLOW_SECONDS", 0.02)
    monkeypatch.setattr(cost, "ENOUGH_SECONDS", 0.01)
    calls = {"slow": 0, "fast": 0}

    def call(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    times = cost.interleaved({"slow": lambda: call("slow", 0.03), "fast": lambda: call("fast", 0.001)}, repeats=9)
    assert calls == {"slow": 1, "fast": 2}
    assert len(times["slow"]) == len(times["fast"]) == 1
    assert times["slow"][0] >= 0.03


def test_amounts():
    assert table.amount(0, "B") == "0 B"
    assert table.amount(1234, "B") == "1.23 kB"
    assert table.amount(5.6e9, "flop") == "5.6 Gflop"
    assert table.amount(None, "B") == "not told"


def test_json(found):
    read = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["agrees"] is False
    assert [d["path"] for d in read["differences"]] == ["", *["x", "params['weights']"] * 2]
    bad = read["differences"][2]
    assert (bad["index"], bad["agrees"], bad["nearer_to_float64"]) == ([1], False, "automatic")
    assert bad["hand_at_index"] - bad["automatic_at_index"] == pytest.approx(0.5, abs=1e-5)
    assert len(read["costs"]["hand"]["step"]) == 2


def test_json_of_what_is_not_finite():
    @np.errstate(all="ignore")
    def run():
        return jconv.compare(lambda x: jnp.log(x) * 0, np.zeros(2, np.float32), repeats=1, float64=False)

    read = json.loads(run().to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["differences"][0]["hand_at_index"] == "nan"


def test_plot(found):
    figure = found.plot()
    above, below = figure.axes
    assert [label.get_text() for label in above.get_yticklabels()][2] == "gradient of params['weights']"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "hand-written - automatic", "hand-written - float64", "automatic - float64",
    }  # fmt: skip
    assert [bar.get_width() for bar in below.patches] == pytest.approx(
        [
            1e3 * t
            for c in ("forward_seconds", "step_seconds")
            for t in (getattr(found.hand, c), getattr(found.automatic, c))
        ]
    )
    red = [bar for bar in above.patches if bar.get_facecolor()[0] > 0.8 and bar.get_facecolor()[1] < 0.3]
    assert len(red) == 1
    figure.canvas.draw()


class Page(html.parser.HTMLParser):
    """What a page refers to, and the text in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.words, self.viewport = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.references += [attrs[name] for name in ("src", "href", "srcset", "action", "data") if name in attrs]
        if attrs.get("name") == "viewport":
            self.viewport = attrs["content"]

    def handle_data(self, data):
        self.words.append(data)


def test_page(found, tmp_path):
    found.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Page(text)
    assert read.viewport == "width=device-width, initial-scale=1"
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    assert len(read.references) == 1 and read.references[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    words = " ".join(read.words)
    assert "my <rule> & more" in words  # escaped, and read back
    assert "gradient of params['weights'] differs by 0.5 at index (1,)" in words
    assert "The rules disagree." in words
    assert read.tags.count("tr") == 2 + len(found.differences) + 8
    assert text.count('class="no"') == 1
    for tag in ("html", "head", "body", "table", "thead", "tbody", "style"):
        assert text.count(f"<{tag}") - text.count(f"<{tag}er") >= 1 and f"</{tag}>" in text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome-headless-shell")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize("width", [360, 1200])
def test_page_in_a_browser(found, width, tmp_path):
    """Nothing is wider than the screen, and the picture is drawn; a script that is put into a copy tells."""
    text = page.html(found)
    report = "[document.documentElement.scrollWidth, innerWidth, document.images[0].naturalWidth, innerHeight]"
    told = f"<script>addEventListener('load', () => document.title = JSON.stringify({report}))</script>"
    (tmp_path / "inner.html").write_text(text.replace("</body>", told + "</body>"))
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
    (told,) = re.findall(r"<p id=\"told\">\[(.*?)\]</p>", done.stdout)
    wide, inner, picture, _ = map(int, told.split(","))
    assert inner == width
    assert wide <= width
    assert picture > 500


def test_page_of_rules_that_agree(tmp_path):
    jconv.compare(rules.loss, *rules.arguments(), repeats=1).to_html(str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "The rules agree on 3 arrays." in text
    assert 'class="no"' not in text


@pytest.mark.parametrize(("module", "show"), [("rich", str), ("matplotlib", lambda found: found.plot())])
def test_without_the_extra_the_error_names_it(found, module, show, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module} .*pip install 'jconv\[compare\]'"):
        show(found)
    with pytest.raises(AssertionError, match="weights"):
        found.assert_close()  # needs neither


@jax.custom_vjp
def infinite_by_hand(x):
    return x * x


infinite_by_hand.defvjp(lambda x: (x * x, x), lambda x, g: (g / (x - x[0]),))

ODD = {
    "nan": (lambda x: jnp.log(x), np.float32([-1, 2])),
    "inf": (lambda x: 1 / x, np.float32([0, 2])),
    "one is infinite": (infinite_by_hand, np.float32([1, 2])),
    "zero gradient": (lambda x: jnp.sum(0 * x), np.float32([1, 2])),
    "empty": (lambda x: x * 2, np.zeros((0, 3), np.float32)),
    "complex": (lambda x: x * x, np.complex64([1 + 1j, 2])),
    "bfloat16": (lambda x: x * x, np.ones(3, jnp.bfloat16)),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_the_numbers_are_it_can_be_shown(name):
    f, x = ODD[name]
    odd = jconv.compare(f, x, repeats=1)
    assert odd.agrees == (name != "one is infinite")
    assert str(odd) and json.loads(odd.to_json()) and odd.verdict()
    assert page.html(odd).startswith("<!doctype html>")  # with the picture in it
