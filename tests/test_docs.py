"""The book: its Python runs, its commands exist, its drawings are those of the script, its site has no dead link."""

import html.parser
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import jconv
from jconv import cli
from tests.blocks import Block, blocks, run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=lambda p: p.stem
)
def test_python_of_a_page(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # what a page writes does not stay
    monkeypatch.syspath_prepend(str(ROOT))
    run(page)


def test_blocks_know_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n```python\n1 / 0\n```\n")
    assert blocks(page) == [Block("python", "x = 1\n", 4), Block("sh", "ls\n", 8), Block("python", "1 / 0\n", 11)]
    with pytest.raises(ZeroDivisionError) as error:
        run(page)
    assert error.traceback[-1].lineno == 10  # counted from 0


def commands() -> list[tuple[str, str, str]]:
    """(place, command, what the page shows of its output) of every command in the book and the README."""
    found = []
    for page in (*PAGES, ROOT / "README.md"):
        for block in blocks(page):
            if block.language not in ("sh", "console", ""):
                continue
            lines, console = block.text.splitlines(), block.language != "sh"
            for number, line in enumerate(lines):
                if console and not line.startswith("$ "):
                    continue
                output = []
                for following in lines[number + 1 :] if console else ():
                    if following.startswith("$ "):
                        break
                    output.append(following)
                if line.strip() and not line.lstrip().startswith("#"):
                    place = f"{page.relative_to(ROOT)}:{block.line + number}"
                    found.append((place, line.removeprefix("$ "), "\n".join(output)))
    return found


COMMANDS = commands()


def test_every_kind_of_command_is_found():
    words = {" ".join(shlex.split(command, comments=True)[:3]) for _, command, _ in COMMANDS}
    assert {"python -m jconv", "python -m experiments.bench", "make test", "pip install ."} <= words


@pytest.mark.parametrize(("place", "command", "output"), COMMANDS, ids=[place for place, *_ in COMMANDS])
def test_a_command_is_one(place, command, output, capsys):
    """What explain prints is compared; of other commands, target, module and options are looked up."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*|srun", words[0]):
        words = words[1:]
    if words[0] == "gcloud":  # what it runs on every host
        words = shlex.split(words[-1].removeprefix("--command="))
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) - {w for w in words if "=" in w} <= set(targets), place
    elif words[:2] == ["python", "-m"] and words[2] == "jconv":
        if words[3] == "explain":
            with pytest.raises(SystemExit) as exit_status:
                cli.main(words[3:])
            assert exit_status.value.code == 0, place
            assert not output or capsys.readouterr().out.strip() == output.strip(), place
        else:
            options_exist(place, words[2], words[3:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, place
        options_exist(place, words[2], words[3:])
    elif words[:2] == ["pip", "install"]:
        for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
            text = (ROOT / "pyproject.toml").read_text()
            assert all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in extras.split(",")), place
    else:
        pytest.fail(f"{place}: {command} is of no known kind")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:jconv|tests|experiments|docs)/[\w/.-]*)`", text) + re.findall(r" (experiments/\S+)", text)
    for path in named:
        assert (ROOT / path).exists(), path


def options_exist(place: str, module: str, words: list[str]) -> None:
    """Each --option stands in the source of the command, where typer takes its name from an argument's or a string."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, place
    origin = Path(spec.origin)
    folder = origin.parent if origin.name == "__init__.py" else origin
    text = "\n".join(p.read_text() for p in (folder.rglob("*.py") if folder.is_dir() else [folder]))
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option != "--help":
            name = option[2:].replace("-", "_")
            assert f'"{option}' in text or re.search(rf"\b{name}\b\s*:", text), f"{place}: {module} has no {option}"


# The drawings.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    command = [sys.executable, str(DOCS / "drawings.py"), "--folder", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=ROOT, env=environment())
    return folder


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}


def test_the_committed_drawings_are_those_of_the_script(drawn):
    """The words and figures in them, that is: how a line is drawn is matplotlib's affair, and changes with it."""
    committed = sorted((DOCS / "drawings").iterdir())
    assert [path.name for path in committed] == sorted(path.name for path in drawn.iterdir())
    for path in committed:
        words = lambda text: re.findall(r"<text[^>]*>(.*?)</text>", text)
        text = path.read_text(encoding="utf-8")
        assert len(words(text)) > 5 and words(text) == words((drawn / path.name).read_text(encoding="utf-8")), path.name
        assert path.stat().st_size < 100_000


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Links(html.parser.HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.words = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag in ("img", "script", "link", "iframe", "source"):
            of_the_site = tag != "link" or attrs.get("rel") in ("stylesheet", "icon", "preload")
            self.loads += [attrs[name] for name in ("src", "href") if attrs.get(name) and of_the_site]

    def handle_data(self, data):
        self.words.append(data)


def test_no_link_is_dead_and_nothing_comes_from_elsewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) == len(PAGES)
    checked = 0
    for path, page in pages.items():
        for link in page.loads:
            assert not re.match(r"(https?:)?//", link), f"{path.name} loads {link}"
            assert (path.parent / urldefrag(link)[0]).exists(), f"{path.name} loads {link}"
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match(r"https?://|mailto:", target):
                continue
            at = (path.parent / unquote(target)).resolve() if target else path
            assert at in pages or at.is_file(), f"{path.name} links to {link}"
            if anchor and at in pages:
                assert unquote(anchor) in pages[at].ids, f"{path.name} links to {link}"
                checked += 1
    assert checked > 50


def test_the_api_pages_have_every_public_name(site):
    ids = set().union(*(Links(path).ids for path in (site / "api").glob("*.html")))
    missing = [
        n for n in jconv.__all__ if n != "lax" and not any(i.startswith("jconv.") and i.endswith(f".{n}") for i in ids)
    ]
    assert not missing


def test_pages_made_of_the_code(site):
    """What the fences of docs/hooks.py stand for is in the page, and formulas are MathML."""
    from jconv.algorithms import choose

    algorithms = " ".join(Links(site / "algorithms.html").words)
    assert all(row.reason in re.sub(r"\s+", " ", algorithms) for row in choose.TABLE)
    backward = (site / "backward.html").read_text(encoding="utf-8")
    assert backward.count("<math") == sum(b.language == "math" for b in blocks(DOCS / "backward.md")) >= 6
    assert "_conv_bwd" in backward
    assert "input_grad,  # <convolve(u, w), g> = <u, input_grad(g, w)>" in "".join(Links(site / "backward.html").words)
    from experiments.train.settings import FIELDS

    training = " ".join(Links(site / "training.html").words)
    assert all(f"--{name.replace('_', '-')}" in training for name in FIELDS)
    for name in NAMES:
        assert "```" not in (site / name).with_suffix(".html").read_text(encoding="utf-8"), name


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome-headless-shell")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_pages_on_a_phone(site, tmp_path):
    """No page is wider than a phone, and every picture is drawn: wide code, tables and formulas scroll by themselves."""
    frames = "".join(
        f"<iframe src='{(site / name).with_suffix('.html').as_uri()}' width=380 height=800></iframe>" for name in NAMES
    )
    told = (
        "const d = f.contentDocument; return [d.documentElement.scrollWidth, f.contentWindow.innerWidth,"
        " [...d.images].every(i => i.naturalWidth > 0), d.title]"
    )
    script = (
        "addEventListener('load', () => setTimeout(() => told.textContent = JSON.stringify("
        f"[...document.querySelectorAll('iframe')].map(f => {{ {told} }})), 500))"
    )
    (tmp_path / "outer.html").write_text(f"{frames}<p id=told></p><script>{script}</script>")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
        *("--virtual-time-budget=9000", f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{tmp_path}/outer.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (found,) = re.findall(r"<p id=\"told\">(\[.*?\])</p>", done.stdout)
    for wide, inner, drawn, title in json.loads(found):
        assert wide <= inner and drawn, title
    assert len(json.loads(found)) == len(PAGES)
