"""A kernel gradient whose taps are shared out: some beside the channels of x, the others beside those of g.

With t = m*u + v for 0 <= v < m along each axis, and p*s + t*d = r*s + v*d for r = p + u*step, step = m*d/s:
    X[r, v, c]        = x[r*s + v*d - low, c]                          the patches of a window of m taps
    G[r, u, o]        = g[r - u*step, o]                               0 outside
    dw[m*u + v, c, o] = sum over n, r of X[n, r, v, c] G[n, r, u, o]   one matrix product
Patches are the case of m = window: of 3x3 and 16 channels on both sides they copy 9*16 + 16 elements a place, this
3*16 + 3*16, and a product with 48 x 48 results uses the registers better than one with 144 x 16. Cost: the
convolution's multiply-adds, and those copies, of a few images or rows of one, from cache.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import matmul, windows
from jconv.geometry import Axis, Geometry

CHUNK_BYTES = 2 << 20  # of both sides held at once,
IMAGE_BYTES = 8 << 20  # and of one image, beyond which it comes in bands of rows
MOST_TAPS = 64  # of a side
SPELLED_OUT = 32  # of them, of which a program has a copy each; more are copied axis after axis


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and undilated and geometry.taps > 1 and bool(_shared(geometry))


@dataclasses.dataclass(frozen=True)
class Share:
    """How the taps of one axis are shared out, and the places r that are summed over."""

    axis: Axis
    beside_x: int  # m
    beside_g: int  # window / m
    step: int  # places from one tap of g to the next
    first: int  # place whose patch is the first to meet x,
    places: int  # and so many from there

    def of_x(self) -> tuple[int, int]:
        """The first element of x that is read, and how many are."""
        stride, reach = self.axis.stride, (self.beside_x - 1) * self.axis.dilation + 1
        return self.first * stride - self.axis.low, (self.places - 1) * stride + reach if self.places else 0

    def of_g(self) -> tuple[int, int]:
        """The same of g."""
        before = (self.beside_g - 1) * self.step
        return self.first - before, self.places + before


def share(axis: Axis, beside_x: int) -> Share:
    """The axis with so many taps of each patch beside x."""
    beside_g = axis.window // beside_x
    step = beside_x * axis.dilation // axis.stride if beside_g > 1 else 0
    reach = (beside_x - 1) * axis.dilation + 1
    first = max(0, -((reach - 1 - axis.low) // axis.stride))  # whose patch ends on element 0 or later
    last = min(axis.output + (beside_g - 1) * step, (axis.input - 1 + axis.low) // axis.stride + 1)
    return Share(axis, beside_x, beside_g, step, first, max(0, last - first))


@functools.lru_cache(maxsize=1024)
def _shared(geometry: Geometry) -> tuple[tuple[Share, ...], ...]:
    """All ways to share out the taps: a part of them that divides them, in steps of g's places, along each axis."""

    def ways(axis: Axis) -> list[Share]:
        unit = axis.stride // math.gcd(axis.stride, axis.dilation)
        parts = (m for m in range(1, axis.window + 1) if axis.window % m == 0)
        return [share(axis, m) for m in parts if m == axis.window or m % unit == 0]

    found = itertools.product(*map(ways, geometry.axes))
    return tuple(shares for shares in found if max(_beside(shares)) <= MOST_TAPS)


def _beside(shares: Sequence[Share]) -> tuple[int, int]:
    """Taps beside x, and beside g."""
    return math.prod(s.beside_x for s in shares), math.prod(s.beside_g for s in shares)


def shares(geometry: Geometry, channels: int, out: int) -> tuple[Share, ...]:
    """The way that copies the fewest elements for each place."""
    return min(_shared(geometry), key=lambda found: copied(found, channels, out))


def copied(found: Sequence[Share], channels: int, out: int) -> int:
    """Elements of both sides for each place."""
    beside_x, beside_g = _beside(found)
    return beside_x * channels + beside_g * out


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    channels, out = x.shape[-1], g.shape[-1]
    found = shares(geometry, channels, out)
    if 0 in (s.places for s in found):  # all that the windows see is padding
        return jnp.zeros((*geometry.window, channels, out), dtype)
    product = lambda x, g, found=found, padded=0: matmul.transposed_product(
        _side_of_x(x, found, padded), _side_of_g(g, found, padded), precision, dtype
    )
    row = math.prod(s.places for s in found[1:]) * copied(found, channels, out) * x.dtype.itemsize
    images = windows.images_at_once(x.shape[0], found[0].places * row, CHUNK_BYTES)
    large = isinstance(x.shape[0], int) and images in (None, 1) and found[0].places * row > IMAGE_BYTES
    if large:
        at_once, add_up = 1, _by_rows(product, found, max(1, CHUNK_BYTES // row))
    elif images is None:
        return _kernel(product(x, g), found)
    else:
        at_once, add_up = images, lambda x, g, total: total + product(x, g)
    few = lambda array, index: windows.take_along(array, index * at_once, at_once)
    add = lambda index, total: add_up(few(x, index), few(g, index), total)
    zeros = jnp.zeros([taps * n for taps, n in zip(_beside(found), (channels, out), strict=True)], dtype)
    return _kernel(lax.fori_loop(0, x.shape[0] // at_once, add, zeros), found)


def _by_rows(product: Callable[..., jax.Array], found: tuple[Share, ...], rows: int) -> Callable[..., jax.Array]:
    """A function of an image and its g that adds `product` of so many rows of places at a time to a total."""
    places = found[0].places
    alike = max(n for n in range(1, rows + 1) if places % n == 0)
    rows = alike if 2 * alike > rows else -(-places // -(-places // rows))  # else as even as can be
    blocks = -(-places // rows)
    whole, part = (dataclasses.replace(found[0], places=n) for n in (blocks * rows, rows))

    def add_up(x: jax.Array, g: jax.Array, total: jax.Array) -> jax.Array:
        x, g = _region(x, [whole.of_x()]), _region(g, [whole.of_g()])

        def add(block: Any, total: jax.Array) -> jax.Array:
            here = windows.take_along(x, block * rows * part.axis.stride, part.of_x()[1], axis=1)
            there = windows.take_along(g, block * rows, part.of_g()[1], axis=1)
            return total + product(here, there, (part, *found[1:]), 1)

        return lax.fori_loop(0, blocks, add, total)

    return add_up


def kernel_grads(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The kernel gradient of each of x (examples, batch, *input, in): of a few at a time, as one batched product."""
    channels, out = x.shape[-1], g.shape[-1]
    found = shares(geometry, channels, out)
    if 0 in (s.places for s in found):
        return jnp.zeros((x.shape[0], *geometry.window, channels, out), dtype)

    def few(x: jax.Array, g: jax.Array, examples: int) -> jax.Array:
        sides = _side_of_x(x, found), _side_of_g(g, found)
        sides = (side.reshape(examples, -1, side.shape[-1]) for side in sides)
        batched = (((1,), (1,)), ((0,), (0,)))
        return lax.dot_general(*sides, batched, precision=precision, preferred_element_type=dtype)

    places = x.shape[1] * math.prod(s.places for s in found)
    dw = windows.by_examples(few, x, g, places * copied(found, channels, out) * x.dtype.itemsize)
    return jax.vmap(lambda dw: _kernel(dw, found))(dw)


def _side_of_x(x: jax.Array, found: Sequence[Share], padded: int = 0) -> jax.Array:
    """X of some images, (rows, taps * in); along the first `padded` axes x is what is read and no more."""
    x = _region(x, [s.of_x() for s in found], padded)
    starts = [[v * s.axis.dilation for v in range(s.beside_x)] for s in found]
    return _beside_each_other(x, starts, [s.places for s in found], [s.axis.stride for s in found])


def _side_of_g(g: jax.Array, found: Sequence[Share], padded: int = 0) -> jax.Array:
    """G of the same, (rows, taps * out)."""
    g = _region(g, [s.of_g() for s in found], padded)
    starts = [[u * s.step for u in reversed(range(s.beside_g))] for s in found]
    return _beside_each_other(g, starts, [s.places for s in found], [1 for _ in found])


def _beside_each_other(
    array: jax.Array, starts: Sequence[Sequence[int]], places: Sequence[int], strides: Sequence[int]
) -> jax.Array:
    """The slices of some images from each of `starts`, as channels: (rows, slices * channels)."""
    channels, rank = array.shape[-1], len(places)
    lead = array.shape[:1] if array.shape[0] != 1 else ()  # XLA would lay out an axis of one anywhere, and copy for it
    array = array if lead else array.reshape(array.shape[1:])
    count = math.prod(map(len, starts))

    def beside(array: jax.Array, axes: Sequence[int]) -> jax.Array:
        """The slices along some axes, whole along the others."""
        parts = []
        for start in itertools.product(*(starts[i] if i in axes else [0] for i in range(rank))):
            stops = [b + (n - 1) * s + 1 if n else b for b, n, s in zip(start, places, strides, strict=True)]
            stops = [stops[i] if i in axes else array.shape[len(lead) + i] for i in range(rank)]
            steps = [strides[i] if i in axes else 1 for i in range(rank)]
            zeros, ones = (0,) * len(lead), (1,) * len(lead)
            parts.append(lax.slice(array, (*zeros, *start, 0), (*lead, *stops, array.shape[-1]), (*ones, *steps, 1)))
        return jnp.concatenate(parts, axis=-1)

    if count <= SPELLED_OUT:
        array = beside(array, range(rank))
    else:  # axis after axis: a call for each, or XLA would have every copy compute its own rows
        for axis in reversed(range(rank)):
            array = windows.apart(functools.partial(beside, axes=[axis]), array)
    return array.reshape(-1, count * channels)


def _region(array: jax.Array, regions: Sequence[tuple[int, int]], skipped: int = 0) -> jax.Array:
    """So many elements from a start on along the spatial axes but those skipped, with zeros where there are none."""
    widths = [(-start, start + length - size, 0) for (start, length), size in zip(regions, array.shape[1:])]
    widths[:skipped] = [(0, 0, 0)] * skipped
    widths = [(0, 0, 0), *widths, *[(0, 0, 0)] * (array.ndim - 1 - len(widths))]
    return lax.pad(array, jnp.zeros((), array.dtype), widths) if any(map(any, widths)) else array


def _kernel(dw: jax.Array, found: Sequence[Share]) -> jax.Array:
    """The product (taps * in, taps * out) as the kernel (*window, in, out)."""
    beside_x, beside_g = zip(*((s.beside_x, s.beside_g) for s in found), strict=True)
    rank = len(found)
    channels, out = dw.shape[0] // math.prod(beside_x), dw.shape[1] // math.prod(beside_g)
    dw = dw.reshape(*beside_x, channels, *beside_g, out)
    order = [axis for i in range(rank) for axis in (rank + 1 + i, i)]
    return dw.transpose(*order, rank, 2 * rank + 1).reshape(*(s.axis.window for s in found), channels, out)
