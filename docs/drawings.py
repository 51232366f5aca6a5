"""The drawings of the book: python docs/drawings.py writes them to docs/drawings/, as SVG.

Every number in them is computed by jconv, from the inputs that stand at the top of each function, and its neighbours in
the drawing are what it is made of.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import jconv

HERE = Path(__file__).parent / "drawings"
COLOURS = {"x": "#cfe3f7", "kernel": "#fbe0c3", "g": "#d5efd3", "y": "#e7dcf4", "zero": "#f1f1f1", "no": "#ffffff"}
STRONG = {"x": "#5a9bd8", "kernel": "#f0a04b", "g": "#62b35c", "y": "#9b79c9", "zero": "#c4c4c4", "no": "#ffffff"}
INK, SOFT = "#222222", "#8a8a8a"

# Text stays text, and equal numbers give an equal file.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "jconv", "font.family": "sans-serif", "font.size": 10}


class Board:
    """A figure on which cells are one unit wide and y points down."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width * 0.36, height * 0.36))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        self.axes.set_axis_off()

    def text(self, x: float, y: float, words: str, **options: Any) -> None:
        """Words around a point."""
        self.axes.text(x, y, words, **({"ha": "center", "va": "center", "color": INK} | options))

    def grid(
        self,
        x: float,
        y: float,
        values: Any,
        kind: str,
        *,
        strong: Sequence[tuple[int, int]] = (),
        kinds: Mapping[tuple[int, int], str] | None = None,
        labels: Any = None,
    ) -> None:
        """A matrix with its upper left corner at (x, y); `strong` cells stand out; `kinds` colours cells otherwise."""
        values = np.atleast_2d(values)
        for row, column in np.ndindex(values.shape):
            each = (kinds or {}).get((row, column), kind)
            colour = (STRONG if (row, column) in strong else COLOURS)[each]
            self.axes.add_patch(
                Rectangle((x + column, y + row), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2)
            )
            words = _number(values[row, column]) if labels is None else np.atleast_2d(labels)[row, column]
            bold = {"fontweight": "bold"} if (row, column) in strong else {}
            grey = {"color": SOFT} if each in ("zero", "no") and not bold else {}
            self.text(x + column + 0.5, y + row + 0.53, words, fontsize=9, **bold, **grey)

    def frame(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """An outline around cells."""
        self.axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=_dark(kind), linewidth=2.2, joinstyle="round")
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], kind: str = "", bend: float = 0.0) -> None:
        """From one point to another."""
        colour = _dark(kind) if kind else SOFT
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                color=colour,
                linewidth=1.3,
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=1,
                shrinkB=1,
            )
        )

    def box(self, x: float, y: float, width: float, height: float, words: str, kind: str) -> None:
        """Words in a rounded box."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.35",
                facecolor=COLOURS[kind],
                edgecolor=_dark(kind),
                linewidth=1.4,
            )
        )
        self.text(x + width / 2, y + height / 2, words, fontsize=10)


def _number(value: Any) -> str:
    value = float(value)
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}".rstrip("0")


def _dark(kind: str) -> str:
    return {"x": "#1f6fb5", "kernel": "#c76a0a", "g": "#2b8424", "y": "#6a3fa8", "zero": "#888888", "no": "#888888"}[
        kind
    ]


# What is drawn. One example serves the three products: a 5 x 5 input, a 3 x 3 kernel, a cotangent of ones and twos.

X = np.array([[1, 0, 2, 1, 0], [0, 1, 3, 0, 1], [2, 1, 0, 1, 2], [0, 2, 1, 0, 1], [1, 0, 1, 2, 0]], np.float32)
W = np.array([[1, 0, -1], [2, 0, 1], [0, 1, 1]], np.float32)
G = np.array([[1, 0, 2], [0, 1, 0], [2, 0, 1]], np.float32)


def _conv(x: np.ndarray, w: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(jconv.conv(x[None, ..., None], w[..., None, None], **options))[0, ..., 0]


def _gradients(x: np.ndarray, w: np.ndarray, g: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(dx, dw) of conv(x, w) for the cotangent g."""
    _, back = jax.vjp(lambda x, w: jconv.conv(x, w, **options), x[None, ..., None], w[..., None, None])
    dx, dw = back(np.asarray(g[None, ..., None]))
    return np.asarray(dx)[0, ..., 0], np.asarray(dw)[..., 0, 0]


def _cells(top: int, left: int, height: int, width: int) -> list[tuple[int, int]]:
    return [(top + row, left + column) for row in range(height) for column in range(width)]


def forward() -> Board:
    """The sliding window: y[1, 2] of a 5 x 5 input and a 3 x 3 kernel."""
    y, place = _conv(X, W), (1, 2)
    window = X[place[0] : place[0] + 3, place[1] : place[1] + 3]
    board = Board(20, 9.2)
    board.grid(1, 2, X, "x", strong=_cells(*place, 3, 3))
    board.frame(1 + place[1], 2 + place[0], 3, 3, "kernel")
    board.grid(8.5, 3, W, "kernel")
    board.grid(14.5, 3, y, "y", strong=[place])
    for x, words in ((3.5, "x"), (10, "kernel w"), (16, "y")):
        board.text(x, 1, words, fontsize=12, fontweight="bold")
    board.text(7.25, 4.5, "⋆", fontsize=18)
    board.text(13, 4.5, "=", fontsize=16)
    board.arrow((1 + place[1] + 3, 2 + place[0] + 1.5), (8.4, 4.5), "kernel", bend=-0.25)
    terms = " + ".join(f"{_number(a)}·{_signed(b)}" for a, b in zip(window.ravel(), W.ravel(), strict=True) if a and b)
    board.text(10, 8.3, f"y[1, 2] = {terms} = {_number(y[place])}", fontsize=10)
    return board


def _signed(value: Any) -> str:
    return f"({_number(value)})" if value < 0 else _number(value)


def kernel_gradient() -> Board:
    """The kernel gradient: x correlated with g, which slides over it as the kernel did."""
    dw, tap = _gradients(X, W, G)[1], (0, 2)
    window = X[tap[0] : tap[0] + 3, tap[1] : tap[1] + 3]
    board = Board(20, 9.2)
    board.grid(1, 2, X, "x", strong=_cells(*tap, 3, 3))
    board.frame(1 + tap[1], 2 + tap[0], 3, 3, "g")
    board.grid(8.5, 3, G, "g")
    board.grid(14.5, 3, dw, "kernel", strong=[tap])
    for x, words in ((3.5, "x"), (10, "g, shaped like y"), (16, "dw")):
        board.text(x, 1, words, fontsize=12, fontweight="bold")
    board.text(7.25, 4.5, "⋆", fontsize=18)
    board.text(13, 4.5, "=", fontsize=16)
    board.arrow((1 + tap[1] + 3, 2 + tap[0] + 1.5), (8.4, 4.2), "g", bend=-0.15)
    terms = " + ".join(f"{_number(a)}·{_number(b)}" for a, b in zip(window.ravel(), G.ravel(), strict=True) if a and b)
    board.text(10, 8.3, f"dw[0, 2] = {terms} = {_number(dw[tap])}: x as tap (0, 2) sees it, times g", fontsize=10)
    return board


def input_gradient() -> Board:
    """The input gradient: g with zeros around it, correlated with the kernel turned by 180 degrees."""
    dx, place = _gradients(X, W, G)[0], (2, 1)
    padded, turned = np.pad(G, 2), W[::-1, ::-1]
    kinds = dict.fromkeys(_cells(2, 2, 3, 3), "g")
    window = padded[place[0] : place[0] + 3, place[1] : place[1] + 3]
    board = Board(24, 10.4)
    strong = [at for at in _cells(*place, 3, 3) if at in kinds]
    board.grid(1, 2, padded, "zero", kinds=kinds, strong=strong)
    board.frame(1 + place[1], 2 + place[0], 3, 3, "kernel")
    board.grid(10.5, 4, turned, "kernel")
    board.grid(16.8, 3, dx, "x", strong=[place])
    for x, words in ((4.5, "g, zero-padded"), (12, "w, turned by 180°"), (19.3, "dx")):
        board.text(x, 1, words, fontsize=12, fontweight="bold")
    board.text(9.25, 5.5, "⋆", fontsize=18)
    board.text(15.2, 5.5, "=", fontsize=16)
    board.arrow((1 + place[1] + 2, 2 + place[0]), (12, 3.9), "kernel", bend=-0.3)
    pairs = [(a, b) for a, b in zip(window.ravel(), turned.ravel(), strict=True) if a and b]
    terms = " + ".join(f"{_number(a)}·{_signed(b)}" for a, b in pairs)
    board.text(12, 9.7, f"dx[2, 1] = {terms} = {_number(dx[place])}", fontsize=10)
    return board


def strides() -> Board:
    """Stride and dilation change places: one axis, window 3, stride 2."""
    x, w, g = (
        np.array([1, 2, 0, 1, 3, 1, 2], np.float32),
        np.array([1, -1, 2], np.float32),
        np.array([1, 2, 1], np.float32),
    )
    y = np.asarray(jconv.conv(x[None, :, None], w[:, None, None], strides=2))[0, :, 0]
    _, back = jax.vjp(lambda x, w: jconv.conv(x, w, strides=2), x[None, :, None], w[:, None, None])
    dx, dw = (np.asarray(each).ravel() for each in back(g[None, :, None]))
    board = Board(25, 14)

    # Forward: places two elements apart.
    board.text(0.4, 0.9, "Forward: stride 2, taps side by side", ha="left", fontweight="bold")
    board.grid(1, 1.6, x, "x", strong=_cells(0, 2, 1, 3))
    board.grid(3, 2.8, w, "kernel")
    board.grid(19, 1.6, y, "y", strong=[(0, 1)])
    board.text(17, 2.1, "y[1] =", ha="right")
    terms = " + ".join(f"{_number(a)}·{_signed(b)}" for a, b in zip(x[2:5], w, strict=True))
    board.text(17, 3.3, f"{terms} = {_number(y[1])}", ha="center")

    # Kernel gradient: g's elements two apart.
    board.text(0.4, 5.6, "Kernel gradient: stride 1, the elements of g two apart", ha="left", fontweight="bold")
    board.grid(1, 6.3, x, "x", strong=[(0, 1), (0, 3), (0, 5)])
    spaced = np.zeros(5)
    spaced[::2] = g
    board.grid(2, 7.5, spaced, "no", kinds={(0, i): "g" for i in (0, 2, 4)}, labels=[*"1 2 1"])
    board.grid(19, 6.3, dw, "kernel", strong=[(0, 1)])
    board.text(17, 6.8, "dw[1] =", ha="right")
    terms = " + ".join(f"{_number(a)}·{_number(b)}" for a, b in zip(x[1:6:2], g, strict=True))
    board.text(17, 8, f"{terms} = {_number(dw[1])}", ha="center")

    # Input gradient: zeros between the elements of g.
    board.text(
        0.4, 10.3, "Input gradient: stride 1, g dilated by 2 and zero-padded, w turned", ha="left", fontweight="bold"
    )
    wide = np.pad(spaced, 2)
    kinds = {(0, 2 + i): "g" for i in (0, 2, 4)}
    board.grid(1, 11, wide, "zero", kinds=kinds, strong=[(0, 4)])
    board.frame(1 + 4, 11, 3, 1, "kernel")
    board.grid(1 + 4, 12.2, w[::-1], "kernel")
    board.grid(17, 11, dx, "x", strong=[(0, 4)])
    board.text(16, 11.5, "dx[4] =", ha="right")
    terms = " + ".join(f"{_number(a)}·{_signed(b)}" for a, b in zip(wide[4:7], w[::-1], strict=True) if a)
    board.text(17, 12.7, f"{terms} = {_number(dx[4])}", ha="center")
    return board


def max_pooling() -> Board:
    """Max pooling: y gathers each window's winner, and g goes back to it alone."""
    x = np.array([[1, 3, 2, 0], [5, 4, 1, 2], [0, 1, 2, 2], [2, 0, 1, 0]], np.float32)
    g = np.array([[7, 8], [9, 6]], np.float32)
    pool = lambda x: jconv.max_pool(x, 2, 2)
    y, back = jax.vjp(pool, x[None, ..., None])
    dx = np.asarray(back(g[None, ..., None])[0])[0, ..., 0]
    winners = [tuple(at) for at in np.argwhere(dx)]
    board = Board(26, 8.2)
    board.grid(1, 2, x, "x", strong=winners)
    board.grid(8, 3, np.asarray(y)[0, ..., 0], "y")
    board.grid(13.5, 3, g, "g")
    board.grid(19, 2, dx, "zero", kinds=dict.fromkeys(winners, "g"), strong=winners)
    for left in (1, 19):
        for top, side in ((2, left), (2, left + 2), (4, left), (4, left + 2)):
            board.frame(side, top, 2, 2, "zero")
    for at, words in ((3, "x"), (9, "y"), (14.5, "g"), (21, "dx")):
        board.text(at, 1, words, fontsize=12, fontweight="bold")
    board.arrow((5.1, 4), (7.9, 4), "x")
    board.arrow((15.6, 4), (18.9, 4), "g")
    board.text(6.5, 3.3, "gather", fontsize=9, color=_dark("x"))
    board.text(17.2, 3.3, "scatter", fontsize=9, color=_dark("g"))
    board.text(
        13, 7.4, "Between two equal elements, as in the last window, the first in row-major order wins.", fontsize=9.5
    )
    return board


def average_pooling() -> Board:
    """Average pooling: g is spread evenly; where windows overlap, shares add up."""
    g = np.array([[4, 8], [12, 0]], np.float32)
    x = np.zeros((3, 3), np.float32)
    _, back = jax.vjp(lambda x: jconv.avg_pool(x, 2, 1), x[None, ..., None])
    dx = np.asarray(back(g[None, ..., None])[0])[0, ..., 0]
    board = Board(23, 7.4)
    board.grid(1, 2.5, g, "g", strong=[(0, 0)])
    board.text(2, 1, "g", fontsize=12, fontweight="bold")
    share = np.zeros((3, 3))
    share[:2, :2] = g[0, 0] / 4
    board.grid(8, 2, share, "no", kinds=dict.fromkeys(_cells(0, 0, 2, 2), "g"), labels=_shares(share))
    board.frame(8, 2, 2, 2, "g")
    board.text(9.5, 1, "the share of g[0, 0]", fontsize=10)
    board.grid(17, 2, dx, "x", strong=[(1, 1)])
    board.text(18.5, 1, "dx", fontsize=12, fontweight="bold")
    board.arrow((3.2, 3.5), (7.8, 3.5), "g")
    board.text(5.5, 2.9, "÷ 4", fontsize=10, color=_dark("g"))
    board.arrow((11.2, 3.5), (16.8, 3.5))
    board.text(14, 2.9, "+ the others'", fontsize=9, color=SOFT)
    total = " + ".join(_number(each / 4) for each in g.ravel())
    board.text(
        11.5,
        6.5,
        f"Four windows of 2 x 2, stride 1, see the middle: dx[1, 1] = {total} = {_number(dx[1, 1])}",
        fontsize=9.5,
    )
    return board


def _shares(share: np.ndarray) -> np.ndarray:
    return np.array([[_number(each) if each else "" for each in row] for row in share])


def triad() -> Board:
    """The closed triad: each product's derivatives are the other two."""
    board = Board(24, 11.6)
    board.box(7.5, 0.8, 9, 2.2, "forward\ny = conv(x, w)", "y")
    board.box(0.8, 7.2, 9.4, 2.2, "kernel gradient\ndw = kernel_grad(x, g)", "kernel")
    board.box(13.8, 7.2, 9.4, 2.2, "input gradient\ndx = input_grad(g, w)", "x")
    pairs = (((9.6, 3.1), (5.0, 7.1), "kernel"), ((14.4, 3.1), (19.0, 7.1), "x"), ((10.3, 8.3), (13.7, 8.3), "zero"))
    for start, end, kind in pairs:
        board.arrow(start, end, kind)
        board.arrow(end, start, kind)
    board.text(6.3, 4.9, "the same x", fontsize=9, color=_dark("kernel"), ha="right")
    board.text(17.7, 4.9, "the same w", fontsize=9, color=_dark("x"), ha="left")
    board.text(12, 7.6, "the same g", fontsize=8.5, color=SOFT)
    board.text(12, 10.8, "⟨conv(x, w), g⟩ = ⟨w, kernel_grad(x, g)⟩ = ⟨x, input_grad(g, w)⟩", fontsize=10.5)
    return board


def layers() -> Board:
    """What stands above what: operator, rule, products, algorithms."""
    board = Board(24, 14.2)
    rows = (
        ("operator", "jconv.conv(x, kernel, …)", "arguments checked, layout, padding;\nfolds vmap into the batch", "y"),
        ("rule", "rules._conv, _conv_fwd, _conv_bwd", "hand-written forward and backward pass,\na jax.custom_vjp", "g"),
        (
            "products",
            "convolve, kernel_grad, input_grad",
            "primitives, each the derivative\nof the other two",
            "kernel",
        ),
        (
            "algorithms",
            "matmul, taps, phases, …, lax",
            "one table, by geometry, dtype, platform;\nno calculus here",
            "x",
        ),
    )
    for number, (name, code, words, kind) in enumerate(rows):
        top = 0.7 + 3.4 * number
        board.box(0.8, top, 9.6, 2.4, f"{name}\n{code}", kind)
        board.text(11.2, top + 1.2, words, ha="left", fontsize=9.5)
        if number:
            board.arrow((5.6, top - 0.95), (5.6, top - 0.05))
    return board


DRAWINGS: dict[str, Callable[[], Board]] = {
    each.__name__: each
    for each in (forward, kernel_gradient, input_gradient, strides, max_pooling, average_pooling, triad, layers)
}


def draw(folder: Path) -> list[Path]:
    """Writes every drawing into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(SETTINGS):
        for name, each in DRAWINGS.items():
            written.append(folder / f"{name}.svg")
            each().figure.savefig(written[-1], metadata={"Date": None}, facecolor="white")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws the pictures of the book.")
    parser.add_argument("--folder", type=Path, default=HERE, help="where to (default: docs/drawings)")
    for path in draw(parser.parse_args().folder):
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")
