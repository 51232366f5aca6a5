"""What mkdocs does with a page's fences before it makes HTML of it.

    ```source NAME```      the source of an object, as it is in the code: jconv.rules._conv_bwd
    ```excerpt MODULE TEXT```  a module's source from the first line that begins with the text to its end
    ```table NAME```       a table made from the code: one of TABLES
    ```math FORMULA```     LaTeX, turned into MathML, which browsers draw without a script
A page can therefore not say of the code what is no longer so.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from latex2mathml.converter import convert

import jconv
from jconv.algorithms import choose
from jconv.comparison import layer as layers
from jconv.explanation import explain_layer

FENCE = re.compile(r"^```(source|excerpt|table|math)\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this for every page."""
    return FENCE.sub(lambda found: FENCES[found[1]](found[2].strip()), markdown)


def resolve(name: str) -> Any:
    """The object of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ValueError(f"there is nothing called {name}")


def source(names: str) -> str:
    """The source of one object a line, as one block."""
    objects = [inspect.unwrap(resolve(name)) for name in names.split()]
    code = "\n\n".join(textwrap.dedent(inspect.getsource(each)).strip() for each in objects)
    module = objects[0].__module__.replace(".", "/")
    return f'```python\n{code}\n```\n<p class="source-of">From <code>{module}.py</code>.</p>'


def excerpt(names: str) -> str:
    """The end of a module, from the first line that begins with a text."""
    name, begin = names.split(maxsplit=1)
    found = resolve(name)
    lines = inspect.getsource(found).splitlines()
    (first, *_) = [number for number, line in enumerate(lines) if line.startswith(begin)]
    code = "\n".join(lines[first:]).strip()
    return f'```python\n{code}\n```\n<p class="source-of">From <code>{name.replace(".", "/")}.py</code>.</p>'


def math(formula: str) -> str:
    """A formula, displayed."""
    return f"<div>{convert(formula, display='block')}</div>"


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells: f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    return "\n".join(map(line, [titles, ["---"] * len(titles), *rows]))


def _cost(row: choose.Row) -> str:
    """The sentence about its cost that an algorithm's file opens with."""
    function = row.convolve or row.kernel_grad
    function = getattr(function, "func", function)
    text = " ".join((inspect.getdoc(inspect.getmodule(function)) or "").split())
    found = re.search(r"Cost: (.*?\.)(?: |$)", text)
    return found[1].replace("*", "×") if found else "-"


def algorithms() -> str:
    """The rows of jconv/algorithms/choose.py, in the order in which they are asked."""
    rows = []
    for number, row in enumerate(choose.TABLE, start=1):
        products = [
            name for name, f in (("forward, input", row.convolve), ("kernel", row.kernel_grad)) if f is not None
        ]
        if row.name == "spread":
            products = ["input"]
        rows.append((str(number), f"`{row.name}`", row.reason, ", ".join(products), _cost(row)))
    return _rows(("", "algorithm", "when", "products", "cost"), rows)


LAYERS = (
    ("pointwise", "conv 8x56x56x64 -> 256 k1"),
    ("dense 3 x 3", "conv 8x28x28x64 -> 64 k3 p1"),
    ("3 x 3, many channels, small map", "conv 8x7x7x512 -> 512 k3 p1"),
    ("first layer, 7 x 7", "conv 8x224x224x3 -> 64 k7 s2 p3"),
    ("strided 3 x 3", "conv 8x56x56x64 -> 128 k3 s2 p1"),
    ("depthwise 3 x 3", "conv 8x56x56x128 -> 128 k3 p1 g128"),
    ("32 groups", "conv 8x28x28x256 -> 256 k3 p1 g32"),
    ("patches of 16 x 16", "conv 8x224x224x3 -> 384 k16 s16"),
    ("three-dimensional", "conv 2x16x32x32x32 -> 32 k3 p1"),
    ("up-convolution 2 x 2", "conv_transpose 1x28x28x1024 -> 512 k2 s2"),
    ("transposed 4 x 4", "conv_transpose 8x16x16x128 -> 64 k4 s2 p1"),
)


def chosen() -> str:
    """What jconv.explain says of some layers that everybody uses, on a CPU."""
    rows = []
    for name, text in LAYERS:
        parsed = layers.parse(text)
        structs = [jax.ShapeDtypeStruct(s.shape, jnp.float32) for s in parsed.shapes]
        found = explain_layer(parsed.fun, *structs, platform="cpu")
        each = [f"`{found[product].algorithm}`" for product in ("forward", "kernel gradient", "input gradient")]
        rows.append((name, f"`{text}`", *each))
    return _rows(("layer", "as the command takes it", "forward", "kernel gradient", "input gradient"), rows)


def public() -> str:
    """Every public name, and the first line of its docstring."""
    rows = []
    for name in jconv.__all__:
        found = getattr(jconv, name)
        line = (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")
        rows.append((f"`jconv.{name}`", _code(line)))
    return _rows(("name", "what it is"), rows)


def settings() -> str:
    """Every setting of experiments.train, as its command and its TOML files take it."""
    from experiments.train.settings import FIELDS

    rows = []
    for name, field in FIELDS.items():
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
        text = field.metadata["help"] + (f" One of {choices}." if choices else "")
        rows.append((f"`--{name.replace('_', '-')}`", text, f"`{default}`" if default else ""))
    return _rows(("setting", "what it is", "default"), rows)


def _code(line: str) -> str:
    return line.replace("|", "&#124;").replace("<", "&lt;").replace("*", "\\*")


TABLES: dict[str, Callable[[], str]] = {
    "algorithms": algorithms,
    "chosen": chosen,
    "public": public,
    "settings": settings,
}
FENCES: dict[str, Callable[[str], str]] = {
    "source": source,
    "excerpt": excerpt,
    "table": lambda name: TABLES[name](),
    "math": math,
}
