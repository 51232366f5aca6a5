"""The elements of every window side by side, along one axis, and back: expand moves values, collect adds what it moved.

    expand     y[.., p, t, ..] = x[.., a, ..], a the element that tap t sees at place p
    collect    x[.., a, ..] = sum of y[.., p, t, ..] over the (p, t) that see a
The windows of an axis are those of a geometry.Axis, with 0 where a tap sees padding, or Adaptive. An element is seen
from a few places, neighbours, the last of which is known: collect is that many gathers, added in a fixed order.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.geometry import Axis

Array = jax.Array
UNROLLED = 16  # slices or gathers that one program spells out; longer windows are one gather, and a loop back


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Window p of `output` over `input` elements: from floor(p n / m) to before ceil((p + 1) n / m), as in PyTorch.

    Narrower and wider windows alternate and neighbours overlap; where m > n, an element is in several. A window
    narrower than `window`, by one, repeats its last element.
    """

    input: int
    output: int
    dilation: int = 1

    @property
    def even(self) -> bool:
        """Whether all windows are alike and none overlap."""
        return self.input % self.output == 0

    @property
    def window(self) -> int:
        """Elements of the widest window: p n mod m takes the multiples of gcd(n, m), m - gcd(n, m) the largest."""
        n, m = self.input, self.output
        return n // m if n % m == 0 else -(-(n + m - math.gcd(n, m)) // m)


Windows = Axis | Adaptive


def starts(windows: Windows) -> np.ndarray:
    """The element under tap 0 at each place; below 0 in the padding."""
    place = np.arange(windows.output)
    if isinstance(windows, Axis):
        return place * windows.stride - windows.low
    return place * windows.input // windows.output


def sizes(windows: Windows) -> np.ndarray:
    """Number of taps of the window at each place, repeated ones not counted."""
    if isinstance(windows, Axis):
        return np.full(windows.output, windows.window)
    return -(-np.arange(1, windows.output + 1) * windows.input // windows.output) - starts(windows)


def _last(windows: Windows) -> np.ndarray:
    """For each element the last place whose window starts at or before it."""
    element = np.arange(windows.input)
    if isinstance(windows, Axis):
        return np.minimum((element + windows.low) // windows.stride, windows.output - 1)
    return ((element + 1) * windows.output - 1) // windows.input


def _overlap(windows: Windows) -> int:
    """The most places that see one element."""
    if isinstance(windows, Axis):
        return min(windows.output, -(-windows.reach // windows.stride))
    return Adaptive(windows.output, windows.input).window  # places and elements change roles


def expand(x: Array, *, dim: int, windows: Windows, platform: str) -> Array:
    """Short windows as one strided slice a tap, others as one gather."""
    del platform
    if isinstance(windows, Axis) and windows.window <= UNROLLED:
        pads = [(windows.low, windows.high, 0) if i == dim else (0, 0, 0) for i in range(x.ndim)]
        padded = lax.pad(x, jnp.zeros((), x.dtype), pads)
        reach = (windows.output - 1) * windows.stride + 1
        firsts = [tap * windows.dilation for tap in range(windows.window)]
        taps = [lax.slice_in_dim(padded, first, first + reach, windows.stride, axis=dim) for first in firsts]
        return jnp.stack(taps, axis=dim + 1)
    element = starts(windows)[:, None] + np.arange(windows.window) * windows.dilation
    if isinstance(windows, Adaptive):
        element = np.minimum(element, (starts(windows) + sizes(windows) - 1)[:, None])
    taken = jnp.take(x, np.clip(element, 0, max(windows.input - 1, 0)), axis=dim, mode="clip")
    there = (element >= 0) & (element < windows.input)
    if there.all():
        return taken
    there = there.reshape([there.shape[i - dim] if i in (dim, dim + 1) else 1 for i in range(taken.ndim)])
    return jnp.where(there, taken, jnp.zeros((), x.dtype))


def collect(g: Array, *, dim: int, windows: Windows, platform: str) -> Array:
    """The adjoint of expand; float16 and bfloat16 are added in float32."""
    del platform
    wide = jnp.float32 if g.dtype in (jnp.float16, jnp.bfloat16) else g.dtype
    flat = g.reshape(*g.shape[:dim], windows.output * windows.window, *g.shape[dim + 2 :])
    last, start, size, element = _last(windows), starts(windows), sizes(windows), np.arange(windows.input)
    repeats = bool((size < windows.window).any())

    def taken(place: Any, tap: Any, there: Any) -> Array:
        entry = jnp.where(there, place * windows.window + tap, 0)
        there = jnp.asarray(there).reshape([-1 if i == dim else 1 for i in range(flat.ndim)])
        values = jnp.take(flat, entry, axis=dim, mode="clip").astype(wide)
        return jnp.where(there, values, jnp.zeros((), wide))

    def add(shift: Any, total: Array) -> Array:
        """total and what the shift-th last window over each element gives it."""
        place = last - shift
        within = jnp.maximum(place, 0)
        tap, rest = jnp.divmod(element - jnp.asarray(start)[within], windows.dilation)
        there = (place >= 0) & (rest == 0) & (tap >= 0) & (tap < jnp.asarray(size)[within])
        total = total + taken(place, tap, there)
        if repeats:  # the last element of a narrower window stands in its last entry once more
            again = there & (tap == jnp.asarray(size)[within] - 1) & (tap < windows.window - 1)
            total = total + taken(place, windows.window - 1, again)
        return total

    total = jnp.zeros((*g.shape[:dim], windows.input, *g.shape[dim + 2 :]), wide)
    if 0 in total.shape or 0 in flat.shape:
        return total.astype(g.dtype)
    overlap = _overlap(windows)
    if overlap > UNROLLED:
        return lax.fori_loop(0, overlap, add, total).astype(g.dtype)
    for shift in range(overlap):
        total = add(shift, total)
    return total.astype(g.dtype)
