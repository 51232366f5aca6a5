"""A layer typed by hand, such as 'conv 8x56x56x64 -> 64 k3 s1 p1', as a function and its arguments.

    OP SHAPE [-> OUT] kWINDOW [sSTRIDES] [pPADDING] [dDILATION] [gGROUPS] [oOUTPUT_PADDING] [bias] [DTYPE]
OP is one of conv, conv_transpose, max_pool, avg_pool; SHAPE is batch x space x channels, channels last; OUT the number
of output channels of a convolution. A window, stride, dilation is one number or one a spatial axis: k3 or k3x5. Padding
is p1, p1x2, LOW:HIGH as in p2:0, or a name: pSAME. g=4 reads as g4.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import convolution, geometry, pooling

CONVOLUTIONS, POOLS = ("conv", "conv_transpose"), ("max_pool", "avg_pool")
DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64")
EXAMPLE = "conv 8x56x56x64 -> 64 k3 s1 p1"
LETTERS = {"k": "window", "s": "strides", "p": "padding", "d": "dilation", "g": "groups", "o": "output_padding"}
MOST_BYTES = 2**33  # of a layer's input: a size that was meant differently


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer; lengths in elements, shapes channels last."""

    text: str
    op: str
    shape: tuple[int, ...]
    out: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any = 0
    dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()
    bias: bool = False
    dtype: str = "float32"

    @property
    def fun(self) -> Callable[..., jax.Array]:
        """The layer as a function of its arrays, named as the operator's own."""
        options: dict[str, Any] = {"strides": self.strides, "padding": self.padding}
        if self.op in POOLS:
            pool = pooling.max_pool if self.op == "max_pool" else pooling.avg_pool
            return functools.partial(pool, window_shape=self.window, window_dilation=self.dilation, **options)
        options |= {"kernel_dilation": self.dilation, "feature_group_count": self.groups}
        if self.op == "conv":
            return lambda x, kernel, bias=None: convolution.conv(x, kernel, bias, **options)
        options |= {"output_padding": self.output_padding}
        return lambda y, kernel, bias=None: convolution.conv_transpose(y, kernel, bias, **options)

    @property
    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of the arguments of fun."""
        shapes = [self.shape]
        if self.op == "conv":
            shapes.append((*self.window, self.shape[-1] // self.groups, self.out))
        elif self.op == "conv_transpose":  # the kernel of the convolution that it transposes
            shapes.append((*self.window, self.out // self.groups, self.shape[-1]))
        if self.bias:
            shapes.append((self.out,))
        return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)) for shape in shapes)

    def arguments(self, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Standard normal arrays, kernels scaled by the root of their fan-in."""
        rng = np.random.default_rng(seed)
        drawn = []
        for i, struct in enumerate(self.shapes):
            fan_in = math.prod(struct.shape[:-1]) if i == 1 else 1
            values = rng.normal(size=struct.shape)
            if jnp.issubdtype(struct.dtype, jnp.complexfloating):
                values = values + 1j * rng.normal(size=struct.shape)
            drawn.append(np.asarray(values / np.sqrt(max(1, fan_in))).astype(struct.dtype))
        return tuple(drawn)


def parse(text: str) -> Layer:
    """The layer that `text` describes, checked.

    Raises:
      ValueError: it describes none; the message says which word, and shows an example.

    Example:
      >>> layer = parse("conv 8x56x56x64 -> 64 k3 s1 p1 g=4")
      >>> layer.groups, [struct.shape for struct in layer.shapes]
      (4, [(8, 56, 56, 64), (3, 3, 16, 64)])
    """
    words = text.replace("->", " -> ").split()
    if not words or words[0] not in CONVOLUTIONS + POOLS:
        raise _wrong(text, f"must begin with one of {', '.join(CONVOLUTIONS + POOLS)}")
    op, rest = words[0], words[1:]
    if not rest or not re.fullmatch(r"\d+(x\d+){2,}", rest[0]):
        raise _wrong(text, "must give a shape after the operator: batch x space x channels, such as 8x56x56x64")
    shape = tuple(map(int, rest[0].split("x")))
    if 0 in shape[1:] or 4 * math.prod(shape) > MOST_BYTES:
        raise _wrong(text, f"has a shape, {rest[0]}, that cannot be meant")
    rest = rest[1:]
    out = shape[-1]
    if rest[:1] == ["->"]:
        if op in POOLS:
            raise _wrong(text, f"has '->', but {op} keeps its channels")
        if len(rest) < 2 or not re.fullmatch(r"[1-9]\d*", rest[1]):
            raise _wrong(text, "must give the number of output channels after '->'")
        out, rest = int(rest[1]), rest[2:]
    elif op in CONVOLUTIONS:
        raise _wrong(text, "must give the number of output channels: -> 64")
    given = _options(text, op, rest, len(shape) - 2)
    layer = Layer(text, op, shape, out, **given)
    if op in CONVOLUTIONS and (shape[-1] % layer.groups or out % layer.groups):
        raise _wrong(text, f"has g{layer.groups}, which must divide both numbers of channels, {shape[-1]} and {out}")
    if layer.dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise _wrong(text, "asks for float64, which needs JAX_ENABLE_X64=1")
    try:
        jax.eval_shape(layer.fun, *layer.shapes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {text!r}: {error}") from None
    return layer


def _options(text: str, op: str, words: list[str], rank: int) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for word in words:
        letter, value = word[0], word[1:].removeprefix("=")
        if word in DTYPES:
            name, read = "dtype", word
        elif word == "bias" and op in CONVOLUTIONS:
            name, read = "bias", True
        elif letter in LETTERS and value:
            name = LETTERS[letter]
            if (name == "groups" and op in POOLS) or (name == "output_padding" and op != "conv_transpose"):
                raise _wrong(text, f"has {word!r}, and {op} has no {name.replace('_', ' ')}")
            read = _padding(text, word, value, rank) if name == "padding" else _integers(text, word, value, rank)
        else:
            raise _wrong(text, f"has {word!r}, which means nothing here")
        if name in given:
            raise _wrong(text, f"gives the {name.replace('_', ' ')} twice, in {word!r}")
        given[name] = read
    if "window" not in given:
        raise _wrong(text, "must give the window: k3 or k3x5")
    if "groups" in given:
        if len(set(given["groups"])) != 1 or given["groups"][0] < 1:
            raise _wrong(text, "must give one number of groups, at least 1: g4")
        given["groups"] = given["groups"][0]
    ones = {"strides": (1,) * rank, "dilation": (1,) * rank, "output_padding": (0,) * rank}
    return ones | given


def _integers(text: str, word: str, value: str, rank: int) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)*", value):
        raise _wrong(text, f"has {word!r}, which must be a number, or one a spatial axis, as in {word[0]}3x5")
    numbers = tuple(map(int, value.split("x")))
    return numbers * rank if len(numbers) == 1 else _ranked(text, word, numbers, rank)


def _padding(text: str, word: str, value: str, rank: int) -> Any:
    if value.upper() in geometry.PADDING_MODES:
        return value.upper()
    if not re.fullmatch(r"-?\d+(:-?\d+)?(x-?\d+(:-?\d+)?)*", value):
        raise _wrong(text, f"has {word!r}, which must be a number, low:high, one of these a spatial axis, or a name")
    pairs = []
    for entry in value.split("x"):
        low, _, high = entry.partition(":")
        pairs.append((int(low), int(high or low)))
    return tuple(pairs * rank) if len(pairs) == 1 else _ranked(text, word, tuple(pairs), rank)


def _ranked(text: str, word: str, entries: tuple[Any, ...], rank: int) -> tuple[Any, ...]:
    if len(entries) != rank:
        raise _wrong(text, f"has {word!r}, with {len(entries)} entries for {rank} spatial axes")
    return entries


def _wrong(text: str, what: str) -> ValueError:
    return ValueError(f"layer {text!r} {what}; an example: '{EXAMPLE}'")
