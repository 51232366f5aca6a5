"""Static window arithmetic: which output, which tap and which input meet. Integers only, no arrays.

Along one axis a window of `window` taps slides over `input` elements and gives `output` places. Output p, tap t and
input a meet where
    p * stride + t * dilation = a * input_dilation + low
(low: elements of padding on the left; input_dilation: the input's elements stand that far apart, zeros between them).
The three products of a convolution are three sums over the same triples (p, t, a), so each is a convolution whose axis
is this one with two letters changed:
    y[p]  = sum of x[a] w[t]     Axis itself
    dw[t] = sum of x[a] g[p]     Axis.for_kernel_grad: p and t change places, and with them stride and dilation
    dx[a] = sum of g[p] w[t]     Axis.for_input_grad: p and a change places, with them stride and input dilation; the
                                 window is turned, since t enters the relation with the sign of p
Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning, relationships 6-14; low and the
dilations carried along.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

PADDING_MODES = ("VALID", "SAME", "SAME_LOWER", "CAUSAL", "CIRCULAR", "REFLECT", "EDGE")
VALUE_MODES = ("CIRCULAR", "REFLECT", "EDGE")  # padding with values of the input, not with zeros
DATA_FORMATS = ("channels_last", "channels_first")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One spatial axis of a sliding window; lengths in elements. See the module's docstring for the relation."""

    input: int
    window: int
    output: int
    stride: int = 1
    dilation: int = 1
    input_dilation: int = 1
    low: int = 0

    @property
    def reach(self) -> int:
        """Length that the dilated window covers."""
        return (self.window - 1) * self.dilation + 1

    @property
    def high(self) -> int:
        """Padding on the right that gives exactly `output` places; negative where trailing input meets no window."""
        if self.output == 0:
            return 0
        return (self.output - 1) * self.stride + self.reach - self.low - dilated(self.input, self.input_dilation)

    @property
    def pads(self) -> bool:
        """Whether any window reaches beyond the input."""
        return self.low > 0 or self.high > 0

    def for_kernel_grad(self) -> "Axis":
        """The axis of the valid cross-correlation of x with g: stride and dilation change places."""
        return dataclasses.replace(
            self, window=self.output, output=self.window, stride=self.dilation, dilation=self.stride
        )

    def for_input_grad(self) -> "Axis":
        """The axis of the full convolution of g, dilated by the stride, with the window turned by 180 degrees."""
        return dataclasses.replace(
            self,
            input=self.output,
            output=self.input,
            stride=self.input_dilation,
            input_dilation=self.stride,
            low=(self.window - 1) * self.dilation - self.low,
        )

    def crop(self) -> tuple[int, int, "Axis"]:
        """How many elements on the left and right meet no window, and the axis without them: its pads are >= 0."""
        left = min(self.input, -(min(self.low, 0) // self.input_dilation))
        right = min(self.input - left, -(min(self.high, 0) // self.input_dilation))
        low = self.low + left * self.input_dilation
        return left, right, dataclasses.replace(self, input=self.input - left - right, low=low)

    def plain(self) -> "Axis":
        """The same axis with the steps between single elements, which mean nothing, set to 1."""
        return dataclasses.replace(
            self,
            stride=self.stride if self.output > 1 else 1,
            dilation=self.dilation if self.window > 1 else 1,
            input_dilation=self.input_dilation if self.input > 1 else 1,
        )

    def taps_inside(self, place: int) -> range:
        """The taps of the window at output `place` that fall on an element of an input with input_dilation 1."""
        start = place * self.stride - self.low  # input under tap 0
        first = max(0, -(start // self.dilation)) if start < 0 else 0
        last = (self.input - 1 - start) // self.dilation
        return range(first, max(first, min(self.window - 1, last) + 1))

    def places_inside(self, tap: int) -> tuple[int, int, int]:
        """(first, last, element): `tap` is on an undilated input at places first <= p < last, at first on element."""
        offset = tap * self.dilation - self.low
        first = max(0, -(offset // self.stride))
        last = min(self.output, (self.input - 1 - offset) // self.stride + 1)
        return first, max(first, last), first * self.stride + offset


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All spatial axes of a window, and the number of groups that the channels are split into.

    turned: in memory the kernel's out channels come before the in, since it is that of an input gradient, turned by a
    view, or stored (out, in, *window). A hint to the algorithms, for the same values.
    backward: it is an input gradient's, beside which a kernel gradient is computed. A hint to their choice.
    """

    axes: tuple[Axis, ...]
    groups: int = 1
    turned: bool = False
    backward: bool = False

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def input(self) -> tuple[int, ...]:
        return tuple(axis.input for axis in self.axes)

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(axis.window for axis in self.axes)

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(axis.output for axis in self.axes)

    @property
    def taps(self) -> int:
        return math.prod(self.window)

    def with_out_first(self) -> "Geometry":
        """For a kernel stored (out, in, *window); groups stay as they are, since their channels are copied first."""
        return self if self.groups > 1 else dataclasses.replace(self, turned=True)

    def for_kernel_grad(self) -> "Geometry":
        return dataclasses.replace(self, axes=tuple(axis.for_kernel_grad() for axis in self.axes))

    def for_input_grad(self) -> "Geometry":
        axes = tuple(axis.for_input_grad() for axis in self.axes)
        return dataclasses.replace(self, axes=axes, turned=not self.turned, backward=not self.backward)


def dilated(length: int, dilation: int) -> int:
    """Length of `length` elements that stand `dilation` apart."""
    return (length - 1) * dilation + 1 if length else 0


def places(length: int, window: int, stride: int, dilation: int, padding: tuple[int, int]) -> int:
    """Number of places of a window over `length` elements; 0 where the dilated window does not fit."""
    return max(0, (length + sum(padding) - dilated(window, dilation)) // stride + 1)


def places_ceil(length: int, window: int, stride: int, dilation: int, padding: tuple[int, int]) -> int:
    """As places, rounded up; a last window that starts in the right padding is dropped (PyTorch's ceil_mode)."""
    count = max(0, -((dilated(window, dilation) - length - sum(padding)) // stride) + 1)
    return count - 1 if count and (count - 1) * stride >= length + padding[0] else count


# Reading what a user gave. Every check names the function, the argument, its value and what was expected.


def integer(fun: str, argument: str, value: Any, at_least: int | None = None, whole: Any = None) -> int:
    """`value` as an int; TypeError if it is none, ValueError if below `at_least`. `whole`: what the user wrote."""
    whole = value if whole is None else whole
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{fun}: {argument}={whole!r} must hold integers, and {value!r} is of type {type(value).__name__}"
        )
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{fun}: {argument}={whole!r} must hold static Python integers, got {value!r}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{fun}: {argument}={whole!r} must be at least {at_least}, got {number}")
    return number


def _listed(fun: str, argument: str, value: Any) -> list[Any]:
    """A NumPy or JAX array as a list; TypeError where it is traced and has no values."""
    try:
        return value.tolist()
    except TypeError:
        raise TypeError(f"{fun}: {argument}={value!r} must hold static Python integers, not traced ones") from None


def integers(fun: str, argument: str, value: Any, rank: int | None, at_least: int | None = None) -> tuple[int, ...]:
    """One integer for each of `rank` spatial axes; a scalar stands for all of them. rank None: as many as given."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        if getattr(value, "ndim", 0) == 1:
            value = tuple(_listed(fun, argument, value))
        elif rank is None:
            raise TypeError(f"{fun}: {argument}={value!r} must be a sequence of integers, one an axis")
        else:
            return (integer(fun, argument, value, at_least),) * rank
    if rank is not None and len(value) != rank:
        raise ValueError(
            f"{fun}: {argument}={value!r} must be one integer or {rank} of them, one a spatial axis, got {len(value)}"
        )
    return tuple(integer(fun, argument, v, at_least, whole=value) for v in value)


def member(fun: str, argument: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value`, checked to be one of `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{fun}: {argument}={value!r} must be a string, one of {', '.join(map(repr, choices))}")
    if value not in choices:
        raise ValueError(f"{fun}: {argument}={value!r} must be one of {', '.join(map(repr, choices))}")
    return value


def padding_form(fun: str, padding: Any, rank: int) -> str | tuple[tuple[int, int], ...]:
    """Padding as the user wrote it, checked: one of PADDING_MODES, or a (low, high) pair a spatial axis."""
    if isinstance(padding, str):
        mode = member(fun, "padding", padding, PADDING_MODES)
        if mode == "CAUSAL" and rank != 1:
            raise ValueError(f"{fun}: padding='CAUSAL' is for one spatial axis, and there are {rank}")
        return mode
    if not isinstance(padding, Sequence) or isinstance(padding, bytes):
        if getattr(padding, "ndim", 0) > 0 and hasattr(padding, "tolist"):
            return padding_form(fun, _listed(fun, "padding", padding), rank)
        both = integer(fun, "padding", padding)
        return ((both, both),) * rank
    if len(padding) != rank:
        raise ValueError(
            f"{fun}: padding={padding!r} must be a name, an integer, or {rank} entries (an integer or a (low, high) "
            f"pair), one a spatial axis, got {len(padding)}"
        )
    pairs: list[tuple[int, int]] = []
    for entry in padding:
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            if len(entry) != 2:
                raise ValueError(f"{fun}: padding={padding!r} must hold (low, high) pairs, got {entry!r}")
            low, high = (integer(fun, "padding", v, whole=padding) for v in entry)
            pairs.append((low, high))
        else:
            both = integer(fun, "padding", entry, whole=padding)
            pairs.append((both, both))
    return tuple(pairs)


def padding_pair(mode: str | tuple[int, int], length: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """(low, high) of one axis of `length` elements; for the VALUE_MODES how many values stand there, as in Flax."""
    if not isinstance(mode, str):
        return mode
    reach = dilated(window, dilation)
    if mode == "VALID":
        return 0, 0
    if mode == "CAUSAL":
        return reach - 1, 0
    if mode in VALUE_MODES:
        return (reach - 1) // 2, reach // 2
    total = max(0, (-(-length // stride) - 1) * stride + reach - length)  # SAME: ceil(length / stride) places
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME" else (large, small)


def sliding(
    fun: str,
    shape: tuple[int, ...],
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str | tuple[tuple[int, int], ...],
    window_dilation: tuple[int, ...],
    input_dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    count: Callable[..., int] = places,
) -> Geometry:
    """Geometry of a window over an input of spatial `shape`, all arguments normalised; `count`: places or places_ceil.

    Raises:
      ValueError: the window fits nowhere along an axis, so that the result would be empty.
    """
    axes = []
    for i, (n, k, s, d) in enumerate(zip(shape, window, strides, window_dilation, strict=True)):
        e = input_dilation[i] if input_dilation else 1
        length = dilated(n, e)
        low, high = padding_pair(padding if isinstance(padding, str) else padding[i], length, k, s, d)
        output = count(length, k, s, d, (low, high))
        if output == 0:
            raise ValueError(
                f"{fun}: the window does not fit on spatial axis {i}: window {k} with dilation {d} covers "
                f"{dilated(k, d)} elements, the input {n} with padding ({low}, {high})"
                f"{f' and dilation {e}' if e > 1 else ''} has {max(0, length + low + high)}; the output would be empty"
            )
        axes.append(Axis(n, k, output, s, d, e, low))
    return Geometry(tuple(axes), groups)


@functools.lru_cache(maxsize=4096)
def adaptive_windows(length: int, output: int) -> tuple[tuple[int, int], ...]:
    """[start, end) of each of `output` adaptive windows: floor(i n / m) and ceil((i + 1) n / m), as in PyTorch."""
    return tuple((i * length // output, -(-(i + 1) * length // output)) for i in range(output))
