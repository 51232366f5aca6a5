"""The one table of named poolings, and the strategy that draws others: what tests of pooling and patches run on."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np

from jconv import geometry, reference

MODES = geometry.VALUE_MODES


def each(value: Any, rank: int) -> tuple[Any, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


@dataclasses.dataclass(frozen=True)
class Pool:
    """One sliding window; lengths in elements, options as max_pool takes them. batch None: an unbatched input."""

    space: tuple[int, ...]
    window: tuple[int, ...]
    strides: Any = None
    padding: Any = "VALID"
    dilation: Any = 1
    ceil_mode: bool = False
    channels: int = 2
    batch: int | None = 2
    data_format: str = "channels_last"
    name: str = ""

    def __str__(self) -> str:
        return self.name or repr(self)

    @property
    def rank(self) -> int:
        return len(self.space)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of a pooling behind x, those that the oracle takes too."""
        return {
            "window_shape": self.window,
            "strides": self.strides,
            "padding": self.padding,
            "window_dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    @property
    def patches(self) -> dict[str, Any]:
        """The arguments of unfold behind x."""
        options = {k: v for k, v in self.options.items() if k != "ceil_mode"}
        return options | {"strides": 1 if self.strides is None else self.strides}

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """(low, high) an axis, for paddings that are not of values."""
        if not isinstance(self.padding, str):
            return tuple((p, p) if isinstance(p, int) else p for p in each(self.padding, self.rank))
        strides = each(1 if self.strides is None else self.strides, self.rank)
        axes = zip(self.space, self.window, strides, each(self.dilation, self.rank))
        return tuple(geometry.padding_pair(self.padding, *axis) for axis in axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        body = (*self.space, self.channels) if self.data_format == "channels_last" else (self.channels, *self.space)
        return body if self.batch is None else (self.batch, *body)

    @functools.cached_property
    def y_shape(self) -> tuple[int, ...]:
        return self.out(reference.sum_pool(self.to_last(np.zeros(self.x_shape)), **self.options)).shape

    @property
    def terms(self) -> int:
        return math.prod(self.window)

    def to_last(self, array: Any) -> np.ndarray:
        array = np.asarray(array)
        array = array[None] if self.batch is None else array
        return array if self.data_format == "channels_last" else np.moveaxis(array, 1, -1)

    def out(self, array: Any) -> np.ndarray:
        array = array if self.data_format == "channels_last" else np.moveaxis(array, -1, 1)
        return array[0] if self.batch is None else array

    def draw(self, dtype: Any, seed: int = 0, shape: Any = None, whole: bool = True) -> np.ndarray:
        """x, or an array of `shape`: small whole numbers with many ties, or real numbers, all different."""
        rng, dtype = np.random.default_rng(seed), jnp.dtype(dtype)
        shape = self.x_shape if shape is None else shape
        if not whole:
            return rng.permutation(np.linspace(-2, 2, math.prod(shape) + 1)[1:]).reshape(shape).astype(dtype)
        array = rng.integers(0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -3, 4, shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return (array + 1j * rng.integers(-3, 4, shape)).astype(dtype)
        return array.astype(dtype)


CASES = [
    Pool((1,), (1,), name="one element"),
    Pool((6,), (2,), name="stride 1"),
    Pool((4, 6), (2, 2), 2, name="blocks"),
    Pool((5, 7), (2, 3), (2, 3), name="blocks, elements left over"),
    Pool((7, 8), (3, 3), 2, 1, name="overlapping, padded"),
    Pool((6, 6), (3, 3), 2, ((0, 1), (0, 1)), name="overlapping, padded above"),
    Pool((5, 4), (3, 3), 1, 1, name="stride 1, padded"),
    Pool((7,), (2,), 3, name="gaps"),
    Pool((7,), (2,), 3, ((2, 2),), name="gaps, padded"),
    Pool((4, 3), (4, 3), name="window is input"),
    Pool((4, 3), (6, 3), padding=((1, 1), (0, 0)), name="window is input and its padding"),
    Pool((3,), (2,), 1, ((3, 2),), name="windows wholly in the padding"),
    Pool((3, 4), (2, 2), 2, ((4, 3), (2, 2)), name="windows wholly in the padding, two axes"),
    Pool((2,), (2,), 4, ((3, 3),), 3, name="taps on both sides of the input"),
    Pool((8,), (3,), 1, "VALID", 2, name="dilated"),
    Pool((7, 6), (3, 2), 2, 2, (2, 3), name="dilated, strided, padded"),
    Pool((9,), (3,), 2, "SAME", 3, name="same, dilated"),
    Pool((6, 7), (3, 2), 2, "SAME", name="same"),
    Pool((6, 7), (3, 2), 2, "SAME_LOWER", name="same lower"),
    Pool((6,), (3,), 2, "CAUSAL", name="causal"),
    Pool((4, 5), (3, 2), 1, "CIRCULAR", name="circular"),
    Pool((4, 5), (3, 4), 2, "REFLECT", name="reflect"),
    Pool((4, 5), (2, 3), (1, 2), "EDGE", 2, name="edge"),
    Pool((7, 8), (3, 2), (2, 3), ceil_mode=True, name="ceil"),
    Pool((6, 5), (3, 2), 2, 1, ceil_mode=True, name="ceil, padded"),
    Pool((7,), (2,), 4, 1, ceil_mode=True, name="ceil, last window dropped"),
    Pool((8,), (3,), 2, ((0, -1),), ceil_mode=True, name="ceil, cropped above"),
    Pool((8, 5), (3, 1), 2, ((-1, -2), (1, -1)), 1, True, name="ceil, cropped"),
    Pool((8,), (2,), 3, ((1, 0),), 3, True, name="ceil, dilated"),
    Pool((1, 5), (2, 2), 1, ((2, -1), (0, 0)), ceil_mode=True, name="ceil, cropped to nothing"),
    Pool((6, 5), (2, 2), 1, ((-1, -2), (0, -1)), name="crop"),
    Pool((5,), (2,), 1, ((-1, 3),), name="crop low, pad high"),
    Pool((40,), (20,), 3, ((5, 4),), name="long window"),
    Pool((40,), (20,), 1, ((19, 19),), name="long window, stride 1"),
    Pool((40,), (40,), name="long window is input"),
    Pool((60,), (18,), 25, 5, 2, name="long window, gaps, dilated"),
    Pool((20, 19), (17, 18), (2, 1), 3, name="two long windows"),
    Pool((20, 19), (20, 19), name="300 taps"),
    Pool((6, 5), (3, 2), 2, 1, batch=0, name="empty batch"),
    Pool((4, 5), (3, 2), 1, "CIRCULAR", batch=0, name="empty batch, circular"),
    Pool((6, 5), (3, 2), 2, 1, channels=0, name="no channel"),
    Pool((6, 5), (3, 2), 2, 1, batch=None, name="unbatched"),
    Pool((6, 5), (3, 2), 2, 1, data_format="channels_first", name="channels first"),
    Pool((6,), (3,), 2, 1, batch=None, data_format="channels_first", name="channels first, unbatched"),
    Pool((0,), (2,), 1, 2, name="no element"),
    Pool((4, 5, 3), (2, 3, 2), (2, 1, 2), ((0, 1), (1, 1), (1, 0)), name="three axes"),
    Pool((3, 4, 2, 3), (2, 2, 1, 2), (1, 2, 1, 1), 1, name="four axes"),
]
NAMED = {case.name: case for case in CASES}
assert len(NAMED) == len(CASES), "every case has a name of its own"


def draw_pool(between: Callable[[int, int], int], among: Callable[[Sequence[Any]], Any], max_rank: int = 4) -> Pool:
    """A pooling of any rank with every option, small; it always fits, so that no draw is thrown away.

    between: draws an integer from low to high; among: one of some options.
    """
    rank = between(1, max_rank)
    most = {1: 6, 2: 4, 3: 3, 4: 2}[rank]
    window = tuple(between(1, most) for _ in range(rank))
    strides = tuple(between(1, most) for _ in range(rank)) if among([True, False]) else None
    dilation = tuple(among([1, 1, 1, 2, 3][: most + 1]) for _ in range(rank))
    padding: Any = among([None, None, None, "VALID", "SAME", "SAME_LOWER", *MODES])
    if padding is None:
        padding = tuple((between(-2, most), between(-2, most)) for _ in range(rank))
    space = [between(1 + (padding == "REFLECT"), {1: 9, 2: 7, 3: 4, 4: 3}[rank]) for _ in range(rank)]
    case = Pool(
        tuple(space), window, strides, padding, dilation, among([False, True]), between(1, 3),
        among([2, 1, 0, None]), among(geometry.DATA_FORMATS),
    )  # fmt: skip
    for i in range(rank):
        # In ceil_mode a last window that starts in the right padding is dropped, be it the only one.
        while sum(case.pads[i]) + space[i] < (window[i] - 1) * dilation[i] + 1 or (
            case.ceil_mode and space[i] + case.pads[i][0] <= 0
        ):
            space[i] += 1
            case = dataclasses.replace(case, space=tuple(space))
    return case


@st.composite
def pools(draw: Any, max_rank: int = 4) -> Pool:
    """draw_pool, drawn by hypothesis."""
    between = lambda low, high: draw(st.integers(low, high))
    return draw_pool(between, lambda options: draw(st.sampled_from(options)), max_rank)
