"""The measured choice of algorithms that is in use, asked for each product when it is lowered; tuning.py measures it.

It stands in a context of jax.jit's, which is a part of the keys of jax's caches. So under another choice every jitted
function, jconv's own and the user's, is traced, lowered and compiled anew, and what was compiled before is found again
when the choice is the former one. Where none is in use, a lowering asks once, and nothing else is different.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax

from jconv import _jax
from jconv.geometry import Geometry

Names = tuple[str, str, str]  # of the algorithms of the forward product, the kernel gradient, the input gradient


@dataclasses.dataclass(frozen=True)
class Product:
    """One product of a convolution as it is lowered: all that the time it takes depends on.

    Shapes are those of products.py: (x, kernel), (x, g) or (g, kernel), with one more axis in front if `examples`.
    """

    product: str  # "forward", "kernel_grad" or "input_grad"
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    operands: tuple[str, str]  # their dtypes
    result: str  # its dtype
    geometry: Geometry
    examples: bool
    precision: str
    platform: str  # "cpu", or "other"

    @property
    def batch(self) -> int:
        return self.lhs[int(self.examples)]

    @property
    def channels(self) -> int:
        return self.rhs[-2] * self.geometry.groups if self.product == "input_grad" else self.lhs[-1]

    @property
    def out(self) -> int:
        return self.rhs[-1]

    @property
    def layer(self) -> str:
        """The layer, close to how the commands take it; of a product an example, their number comes first."""
        axes = self.geometry.axes
        options = ["k" + _each(self.geometry.window)]
        for letter, values in (
            ("s", [axis.stride for axis in axes]),
            ("d", [axis.dilation for axis in axes]),
            ("e", [axis.input_dilation for axis in axes]),
        ):
            options += [letter + _each(values)] if max(values) > 1 else []
        pads = [str(axis.low) if axis.low == axis.high else f"{axis.low}:{axis.high}" for axis in axes]
        options += ["p" + _each(pads)] if set(pads) != {"0"} else []
        options += [f"g{self.geometry.groups}"] if self.geometry.groups > 1 else []
        options += [self.result] if self.result != "float32" else []
        shape = "x".join(map(str, (self.batch, *self.geometry.input, self.channels)))
        many = f"{self.lhs[0]} times " if self.examples else ""
        return f"{many}{shape} -> {self.out} {' '.join(options)}"


def _each(values: Any) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


class Choice(Protocol):
    """What is asked for the algorithm of a product that no user has forced."""

    def algorithm(self, product: Product, precision: Any) -> str:
        """A name of choose.py; "auto" leaves it to the static choice."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """The names that were measured; equal to itself alone, so that jax's caches compare it fast."""

    names: Mapping[Product, str]

    def algorithm(self, product: Product, precision: Any) -> str:
        del precision  # a part of product
        return self.names.get(product, "auto")


@functools.cache
def chosen(names: frozenset[tuple[Product, str]]) -> Chosen:
    """One object for equal names: a file that is loaded twice compiles nothing twice."""
    return Chosen(dict(names))


_choice = jax.make_user_context(None)


def in_use() -> Choice | None:
    """The choice of this thread, or else that of all."""
    return _choice.value


def set_for_all(choice: Choice | None) -> None:
    """From here on for every thread, but for the bodies of using()."""
    _jax.global_of(_choice).set_global(choice)


def for_all() -> Choice | None:
    """What set_for_all has set."""
    return _jax.global_of(_choice).get_global()


@contextlib.contextmanager
def using(choice: Choice | None) -> Iterator[None]:
    """In the body of `with`, in this thread."""
    with _choice(choice):
        yield


def algorithms(
    product: str, number: int, lhs: Any, rhs: Any, geometry: Geometry, how: Any, dtype: Any, examples: bool,
    platform: str,
) -> Names:  # fmt: skip
    """`how.algorithm`, but that the name of this product, the one of that number, is measured where it is "auto"."""
    asked, choice = how.algorithm, in_use()
    sizes = (*lhs.shape, *rhs.shape, *geometry.output)
    if choice is None or asked[number] != "auto" or not all(isinstance(n, int) and n > 0 for n in sizes):
        return asked  # a symbolic size, in an export, is none that was measured; an empty product is nothing to measure
    dtypes = (str(lhs.dtype), str(rhs.dtype))
    precision = str(how.precision)
    geometry = dataclasses.replace(geometry, turned=False)  # where the kernel lies in memory is not told apart
    found = Product(product, lhs.shape, rhs.shape, dtypes, str(dtype), geometry, examples, precision, platform)
    names = list(asked)
    names[number] = choice.algorithm(found, how.precision)
    return names[0], names[1], names[2]
