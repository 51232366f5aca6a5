"""The one table of named convolutions, and the strategy that draws others: what tests of the convolution core run on.

A Case is one convolution's geometry and layout. It draws arrays for it, knows what the oracle says of them (in the
user's layout) and what stock JAX computes, `stock`: one plain jax.lax convolution, whose derivatives are JAX's own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv import geometry, reference

SPATIAL = "xyzuv"
REPEATS = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}  # their names in jnp.pad


def spread(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution; lengths in elements, options as conv takes them. batch None: an unbatched input."""

    space: tuple[int, ...]
    window: tuple[int, ...]
    strides: Any = 1
    padding: Any = "VALID"
    input_dilation: Any = 1
    kernel_dilation: Any = 1
    groups: int = 1
    channels: tuple[int, int] = (2, 3)
    batch: int | None = 2
    data_format: str = "channels_last"
    name: str = ""

    def __str__(self) -> str:
        return self.name or repr(self)

    @property
    def rank(self) -> int:
        return len(self.space)

    @property
    def numbers(self) -> dict[str, Any]:
        """The options that the oracle takes too."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "input_dilation": self.input_dilation,
            "kernel_dilation": self.kernel_dilation,
            "feature_group_count": self.groups,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The options of conv, conv_kernel_grad and conv_input_grad."""
        return self.numbers | {"data_format": self.data_format}

    @property
    def transposed(self) -> dict[str, Any]:
        """The options of conv_transpose that lead from y_shape back to x_shape; "SAME" may lead to a longer one."""
        options = {k: v for k, v in self.options.items() if k != "input_dilation"}
        if isinstance(self.padding, str) and self.padding.startswith("SAME"):
            return options
        left = tuple((n - w) % s for n, w, s in zip(self.padded, self.reach, spread(self.strides, self.rank)))
        return options | {"output_padding": left}

    @property
    def reach(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, spread(self.kernel_dilation, self.rank)))

    @property
    def dilated(self) -> tuple[int, ...]:
        dilations = spread(self.input_dilation, self.rank)
        return tuple((n - 1) * e + 1 if n else 0 for n, e in zip(self.space, dilations))

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """(low, high) an axis; for the paddings that repeat elements, how many stand on each side."""
        if not isinstance(self.padding, str):
            pairs = spread(self.padding, self.rank)
            return tuple((p, p) if isinstance(p, int) else p for p in pairs)
        axes = zip(self.dilated, self.window, spread(self.strides, self.rank), spread(self.kernel_dilation, self.rank))
        return tuple(geometry.padding_pair(self.padding, *axis) for axis in axes)

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + low + high for n, (low, high) in zip(self.dilated, self.pads))

    @property
    def fits(self) -> bool:
        return all(n >= reach for n, reach in zip(self.padded, self.reach))

    @property
    def stock_is_right(self) -> bool:
        """Whether XLA:CPU computes lax's convolution and its derivatives as documented, in every dtype.

        It reads outside its input in float32 where low < 0 < high (openxla/xla#48713). The forward pass has `low`
        itself, the input gradient reach - 1 - low.
        """
        if self.padding in REPEATS:
            return True
        return all(0 <= low < reach for (low, _), reach in zip(self.pads, self.reach))

    # Shapes, in the user's layout.

    def lay(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """An array's shape in this layout, from (batch, *space, channels)."""
        batch, *space, channels = shape
        body = (*space, channels) if self.data_format == "channels_last" else (channels, *space)
        return body if self.batch is None else (batch, *body)

    @property
    def last(self) -> "Case":
        """The same convolution, channels last and batched, as the oracle has it."""
        return dataclasses.replace(self, data_format="channels_last", batch=1 if self.batch is None else self.batch)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.lay((1 if self.batch is None else self.batch, *self.space, self.channels[0]))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        inner, out = self.channels[0] // self.groups, self.channels[1]
        return (*self.window, inner, out) if self.data_format == "channels_last" else (out, inner, *self.window)

    @functools.cached_property
    def y_shape(self) -> tuple[int, ...]:
        return self.conv(np.zeros(self.x_shape), np.zeros(self.kernel_shape)).shape

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, kernel, bias and g."""
        return self.x_shape, self.kernel_shape, (self.channels[1],), self.y_shape

    @property
    def terms(self) -> int:
        """Most products that are summed for one element of any of the three results."""
        places = math.prod(self.y_shape) // self.channels[1]
        return max(1, places, math.prod(self.window) * max(self.channels) // self.groups)

    # Arrays.

    def draw(self, dtype: Any, seed: int = 0, whole: bool = False) -> list[np.ndarray]:
        """x, kernel, bias, g. `whole`: small whole numbers, whose sums in float32 are exact."""
        rng, dtype = np.random.default_rng(seed), jnp.dtype(dtype)
        arrays = []
        for shape in self.shapes:
            if whole or jnp.issubdtype(dtype, jnp.integer):
                array = rng.integers(0 if jnp.issubdtype(dtype, jnp.unsignedinteger) else -4, 5, shape)
                imaginary = rng.integers(-4, 5, shape)
            else:
                array, imaginary = rng.normal(size=shape), rng.normal(size=shape)
            arrays.append(
                (array + 1j * imaginary if jnp.issubdtype(dtype, jnp.complexfloating) else array).astype(dtype)
            )
        return arrays

    def to_last(self, array: Any) -> np.ndarray:
        array = np.asarray(array)
        array = array[None] if self.batch is None else array
        return array if self.data_format == "channels_last" else np.moveaxis(array, 1, -1)

    def from_last(self, array: np.ndarray) -> np.ndarray:
        array = array if self.data_format == "channels_last" else np.moveaxis(array, -1, 1)
        return array[0] if self.batch is None else array

    def kernel_to_last(self, kernel: Any) -> np.ndarray:
        kernel = np.asarray(kernel)
        return kernel if self.data_format == "channels_last" else np.moveaxis(kernel, (1, 0), (-2, -1))

    # What the oracle says, in the user's layout.

    def conv(self, x: Any, kernel: Any, bias: Any = None) -> np.ndarray:
        return self.from_last(reference.conv(self.to_last(x), self.kernel_to_last(kernel), bias, **self.numbers))

    def kernel_grad(self, x: Any, g: Any) -> np.ndarray:
        dkernel = reference.conv_kernel_grad(self.to_last(x), self.to_last(g), self.last.kernel_shape, **self.numbers)
        return dkernel if self.data_format == "channels_last" else np.moveaxis(dkernel, (-2, -1), (1, 0))

    def input_grad(self, g: Any, kernel: Any) -> np.ndarray:
        dx = reference.conv_input_grad(self.to_last(g), self.kernel_to_last(kernel), self.last.x_shape, **self.numbers)
        return self.from_last(dx)

    def bias_grad(self, g: Any) -> np.ndarray:
        return reference.conv_bias_grad(self.to_last(g))

    def conv_transpose(self, y: Any, kernel: Any, bias: Any = None) -> np.ndarray:
        options = {k: v for k, v in self.transposed.items() if k != "data_format"}
        return self.from_last(reference.conv_transpose(self.to_last(y), self.kernel_to_last(kernel), bias, **options))

    # What stock JAX computes.

    @property
    def dimension_numbers(self) -> tuple[str, str, str]:
        space = SPATIAL[: self.rank]
        if self.data_format == "channels_last":
            return f"N{space}C", f"{space}IO", f"N{space}C"
        return f"NC{space}", f"OI{space}", f"NC{space}"

    def stock(self, x: Any, kernel: Any, bias: Any = None, precision: Any = None) -> jax.Array:
        x, pads = jnp.asarray(x), self.pads
        first = int(self.batch is not None)
        if self.padding in REPEATS:
            axis = first + int(self.data_format == "channels_first")
            around = [(0, 0)] * axis + list(pads) + [(0, 0)] * (x.ndim - axis - self.rank)
            x, pads = jnp.pad(x, around, mode=REPEATS[self.padding]), ((0, 0),) * self.rank
        y = lax.conv_general_dilated(
            x if first else x[None],
            jnp.asarray(kernel),
            spread(self.strides, self.rank),
            pads,
            spread(self.input_dilation, self.rank),
            spread(self.kernel_dilation, self.rank),
            self.dimension_numbers,
            self.groups,
            precision=precision,
        )
        y = y if first else y[0]
        if bias is None:
            return y
        return y + jnp.reshape(bias, (-1,) if self.data_format == "channels_last" else (-1,) + (1,) * self.rank)


def geometry_of(case: Case) -> geometry.Geometry:
    """The geometry of a case whose padding is of zeros, as products take it."""
    rank = case.rank
    return geometry.sliding(
        "test",
        case.space,
        case.window,
        spread(case.strides, rank),
        case.pads,
        spread(case.kernel_dilation, rank),
        spread(case.input_dilation, rank),
        case.groups,
    )


def tolerance(dtype: Any, terms: int, want: Any, sums: Any = None, scale: float = 0.0) -> dict[str, float]:
    """How far a result may be from `want`, its float64 value: `terms` products summed in `sums`, rounded to `dtype`.

    Rounding errors grow as the root of terms. `sums` is float32 for float16 and bfloat16, else dtype. `scale`: the size
    of the sums where cancellation makes `want` smaller.
    """
    wide = min(jnp.finfo(dtype).eps, jnp.finfo(jnp.float32).eps) if sums is None else jnp.finfo(sums).eps
    size = max(scale, float(np.abs(want).max(initial=0)))
    return {"rtol": float(jnp.finfo(dtype).eps), "atol": float(2 * wide * terms**0.5 * size)}


def precise(want: Any) -> dict[str, float]:
    """float64 against the oracle: 1e-10 of the largest value."""
    return {"rtol": 1e-10, "atol": 1e-10 * max(1.0, float(np.abs(want).max(initial=0)))}


CASES = [
    # One axis, every padding.
    Case((1,), (1,), name="one element"),
    Case((5,), (3,), name="valid"),
    Case((4, 3), (4, 3), name="kernel is input"),
    Case((4, 3), (4, 3), padding=((1, 2), (0, 1)), name="kernel is input, padded"),
    Case((5,), (3,), padding="SAME", name="same"),
    Case((5,), (2,), padding="SAME", name="same, even"),
    Case((5,), (2,), padding="SAME_LOWER", name="same lower, even"),
    Case((6, 7), (3, 3), 2, "SAME", name="same, strided"),
    Case((6, 7), (3, 3), 2, "SAME_LOWER", name="same lower, strided"),
    Case((5,), (1,), 3, "SAME", name="same, stride above kernel"),
    Case((5,), (3,), 1, "SAME", kernel_dilation=2, name="same, dilated"),
    Case((3,), (2,), 2, "SAME", input_dilation=2, name="same of dilated input"),
    Case((4,), (4,), padding="CAUSAL", kernel_dilation=2, name="causal"),
    Case((6,), (3,), 2, "CAUSAL", name="causal, strided"),
    Case((4, 3), (3, 3), padding="CIRCULAR", name="circular"),
    Case((5,), (4,), 2, "CIRCULAR", name="circular, even, strided"),
    Case((2,), (6,), padding="CIRCULAR", name="circular, more than once round"),
    Case((4, 5), (3, 4), padding="REFLECT", kernel_dilation=(2, 1), name="reflect"),
    Case((4, 6), (3, 2), (2, 4), "EDGE", groups=2, channels=(2, 4), name="edge"),
    Case((3, 4), (3, 2), padding=1, name="padding an int"),
    Case((3, 4), (3, 2), padding=(1, (2, 0)), name="padding an int and a pair"),
    # Padding that is larger than the window, or negative.
    Case((3,), (2,), padding=((4, 0),), name="low above reach"),
    Case((4, 4), (2, 2), padding=((2, 0), (3, 1)), name="low above reach, two axes"),
    Case((3,), (2,), 2, ((0, 4),), name="high above reach"),
    Case((6, 5), (2, 2), padding=((-1, -2), (0, -1)), name="crop"),
    Case((4,), (2,), padding=((-1, 3),), name="crop low, pad high"),
    Case((4,), (3,), 2, ((3, -2),), name="crop high, pad low"),
    Case((3,), (2,), padding=((-5, 5),), name="crop everything, then pad"),
    Case((4,), (2,), padding=((-2, -1),), input_dilation=3, name="crop between elements"),
    # Strides and dilations.
    Case((6, 8), (2, 3), (3, 4), name="elements left over"),
    Case((7,), (2,), 5, name="stride above kernel"),
    Case((9, 9), (3, 3), 2, ((1, 1), (1, 1)), name="strided"),
    Case((8,), (3,), padding=((2, 2),), kernel_dilation=2, name="dilated"),
    Case((9,), (3,), 2, kernel_dilation=2, name="strided by its dilation"),
    Case((5, 4), (2, 3), 1, ((1, 2), (0, 3)), (2, 3), (3, 2), name="dilated both"),
    Case((4, 5), (3, 2), (3, 2), ((2, 1), (1, 1)), (2, 4), (1, 3), name="everything at once"),
    Case((4,), (3,), 4, ((1, 1),), 6, 2, name="dilations with common factors"),
    # Where a product has a simpler form.
    Case((4, 5), (1, 1), name="1x1"),
    Case((5, 4), (1, 1), 2, channels=(4, 6), groups=2, name="1x1, strided, grouped"),
    Case((4, 6), (2, 3), (2, 3), name="patches"),
    Case((5, 7), (2, 3), (2, 3), name="patches, elements left over"),
    Case((3, 2), (2, 2), padding=((1, 1), (1, 1)), input_dilation=2, name="up-convolution"),
    # Groups and channels.
    Case((4, 4), (3, 3), padding="SAME", groups=2, channels=(4, 6), name="grouped"),
    Case((5,), (3,), groups=3, channels=(3, 3), name="depthwise"),
    Case((5, 5), (2, 2), (2, 1), groups=3, channels=(3, 6), name="depthwise, two a channel"),
    Case((6, 5), (3, 3), 2, "SAME", kernel_dilation=2, groups=4, channels=(4, 4), name="depthwise, strided, dilated"),
    Case((5,), (3,), padding="SAME", groups=3, channels=(6, 3), name="one result a group"),
    Case((13, 13), (12, 12), groups=2, channels=(2, 2), name="depthwise of many taps"),
    Case((6, 6), (3, 3), padding="SAME", channels=(1, 1), name="one channel"),
    # Batches and layouts.
    Case((4, 4), (3, 3), batch=0, name="empty batch"),
    Case((4,), (2,), groups=2, channels=(2, 2), batch=0, name="empty batch, depthwise"),
    Case((4, 4), (3, 3), batch=1, name="batch of one"),
    Case((5, 4), (2, 3), padding=1, batch=None, name="unbatched"),
    Case((5, 4), (2, 3), 2, 1, data_format="channels_first", name="channels first"),
    Case(
        (5,),
        (3,),
        data_format="channels_first",
        groups=2,
        channels=(4, 6),
        batch=None,
        name="first, grouped, unbatched",
    ),
    Case((4, 4), (2, 2), padding="CIRCULAR", data_format="channels_first", name="channels first, circular"),
    Case((0,), (2,), padding=((2, 2),), name="no element"),
    # More axes.
    Case((4, 3, 5), (2, 3, 2), (1, 2, 1), "SAME", name="three axes"),
    Case((3, 3, 3), (3, 3, 3), padding=1, groups=2, channels=(2, 4), name="three axes, depthwise"),
    Case((2, 3, 2, 3), (2, 1, 2, 2), (1, 2, 1, 2), ((0, 1), (1, 0), (0, 0), (1, 1)), name="four axes"),
]
NAMED = {case.name: case for case in CASES}
assert len(NAMED) == len(CASES), "every case has a name of its own"


def draw_case(
    between: Callable[[int, int], int],
    among: Callable[[Sequence[Any]], Any],
    max_rank: int = 4,
    zeros_only: bool = False,
    layouts: bool = True,
) -> Case:
    """A convolution of any rank with every option, small; it always fits, so that no draw is thrown away.

    between: draws an integer from low to high; among: one of some options. zeros_only: no padding with elements of the
    input. layouts: channels first and unbatched inputs too.
    """
    rank = between(1, max_rank)
    most = {1: 4, 2: 3, 3: 3, 4: 2}[rank]  # taps, stride and dilation an axis; the work grows as its power of rank
    window = tuple(between(1, most) for _ in range(rank))
    strides = tuple(between(1, most) for _ in range(rank))
    kernel_dilation = tuple(between(1, min(most, 3)) for _ in range(rank))
    names = ["SAME", "SAME_LOWER", "VALID", *["CAUSAL"] * (rank == 1), *([] if zeros_only else REPEATS)]
    padding: Any = among(names) if between(0, 2) == 2 else None
    dilate = padding not in REPEATS and among([False, True])
    input_dilation = tuple(between(1, min(most, 3)) if dilate else 1 for _ in range(rank))
    if padding is None:
        padding = tuple((between(-2, most + 1), between(-2, most + 1)) for _ in range(rank))
    largest = {1: 8, 2: 6, 3: 4, 4: 3}[rank]
    space = [between(1 + (padding == "REFLECT"), largest) for _ in range(rank)]
    groups, per_group = among([(1, None), (1, None), (2, None), (3, None), (2, 1), (4, 1)])
    inner = between(1, 3) if per_group is None else per_group
    channels = (inner * groups, between(1, 3) * groups)
    case = Case(
        tuple(space), window, strides, padding, input_dilation, kernel_dilation, groups, channels,
        batch=among([2, 1, 3, 0, None] if layouts else [2, 1, 3]),
        data_format=among(geometry.DATA_FORMATS if layouts else geometry.DATA_FORMATS[:1]),
    )  # fmt: skip
    if between(0, 7) == 0 and not isinstance(padding, str):  # the kernel is the input
        return dataclasses.replace(case, window=tuple(space), padding=((0, 0),) * rank, kernel_dilation=input_dilation)
    for i in range(rank):
        while not all(n >= reach for n, reach in zip(case.padded[: i + 1], case.reach)):
            space[i] += 1
            case = dataclasses.replace(case, space=tuple(space))
    return case


@st.composite
def cases(draw: Any, max_rank: int = 4, zeros_only: bool = False, layouts: bool = True) -> Case:
    """draw_case, drawn by hypothesis."""
    return draw_case(
        lambda low, high: draw(st.integers(low, high)),
        lambda options: draw(st.sampled_from(options)),
        max_rank,
        zeros_only,
        layouts,
    )
