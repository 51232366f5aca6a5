"""Winograd's minimal filtering, F(2x2, 3x3): 16 multiplications where the sum over taps has 36, for 3x3 windows.

The result is cut into tiles of 2 x 2 places, which see 4 x 4 elements of the input; with
    B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]   G = [1 0 0; .5 .5 .5; .5 -.5 .5; 0 0 1]   A^T = [1 1 1 0; 0 1 -1 -1]
    y  = A^T [ (G w G^T) * (B^T x B) ] A             a tile of the result; * is, for each of the 16, a matrix product
    dw = G^T [ sum over tiles (B^T x B) * (A g A^T) ] G    its transpose in w: the kernel gradient
The first and last of four rows of B^T are x[k] - x[k + 2] for k = 0 and 1, the others x[2] + x[1] and x[2] - x[1]: each
pair is one expression, with a sign that is 1 and -1, so that B^T x B is four fused loops, of four slices each, and not
sixteen: a loop takes longer to compile than to run. Each is the operand of a batched matrix product; all four keep all
cores busy, which lax's convolution on a CPU does not for few channels. A^T m A is one loop in the same way.
Entries of A, B and G are halves or whole: small whole numbers stay exact. An infinity spreads over its tile as NaN.
Cost: 16 * tiles * in * out multiply-adds, a 2.25th of the convolution's, and 4 * (in + out) additions a place.
Source: Lavin and Gray 2016, Fast algorithms for convolutional neural networks, section 4.1.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

FORMS_BYTES = 4 << 20
CHUNK_BYTES = 14 << 20  # of the 16 arrays before and after the products, of which some two thirds live at once:
# beyond 32 MiB glibc's malloc maps fresh pages for every call, which costs more than the products
NARROW = 64  # channels out, where in are twice as many: three quarters of the time, more the other way round
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
PAIRS = np.stack([G[0], -G[3]]), G[1:3]  # the last row's other sign is that of A's last row, which is left out there
GROUPS = [np.einsum("ia,jb->jiab", rows, columns).reshape(4, 9) for rows in PAIRS for columns in PAIRS]
Pair = Callable[[jax.Array, int, int], jax.Array]  # of x, an axis and its tiles: a pair of rows of a matrix, (2, ...)


def applies(geometry: Geometry) -> bool:
    plain = all(axis.window == 3 and axis.stride == axis.dilation == axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.rank == 2 and geometry.groups == 1 and plain and min(geometry.output) > 1


def tiles(geometry: Geometry) -> int:
    """Tiles of one image."""
    return math.prod(-(-places // 2) for places in geometry.output)


def _signed(x: jax.Array, axis: int) -> jax.Array:
    """x and -x along an axis of length 1."""
    sign = jnp.array([1, -1], x.dtype)
    return x * sign.reshape([2 if i == axis else 1 for i in range(x.ndim)])


def _evens_and_odds(x: jax.Array, axis: int) -> jax.Array:
    """(2, ...): every second place of an axis, from the first and from the second on."""
    x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)


def _every_second(x: jax.Array, axis: int, tiles: int, first: int) -> jax.Array:
    """(1, ...): the element of that number of each tile along an axis."""
    return lax.slice_in_dim(x, first, first + 2 * tiles - 1, 2, axis=axis)[None]


def _outer_of_bt(x: jax.Array, axis: int, tiles: int) -> jax.Array:
    """x[0] - x[2] and x[1] - x[3] of each tile."""
    at = lambda first: lax.slice_in_dim(x, first, first + 2 * tiles, axis=axis)
    return _evens_and_odds(at(0) - at(2), axis)


def _inner_of_bt(x: jax.Array, axis: int, tiles: int) -> jax.Array:
    """x[2] + x[1] and x[2] - x[1]."""
    return _every_second(x, axis, tiles, 2) + _signed(_every_second(x, axis, tiles, 1), 0)


def _outer_of_a(g: jax.Array, axis: int, tiles: int) -> jax.Array:
    """g[0] and g[1], the latter not negated."""
    del tiles
    return _evens_and_odds(g, axis)


def _inner_of_a(g: jax.Array, axis: int, tiles: int) -> jax.Array:
    """g[0] + g[1] and g[0] - g[1]."""
    return _every_second(g, axis, tiles, 0) + _signed(_every_second(g, axis, tiles, 1), 0)


BT, A = (_outer_of_bt, _inner_of_bt), (_outer_of_a, _inner_of_a)


def _groups(matrix: tuple[Pair, Pair], x: jax.Array, shape: tuple[int, int]) -> list[jax.Array]:
    """A two-sided product of each tile, M x M^T, as GROUPS has it: four times (4, tiles, channels)."""
    pairs = (along(down(x, 1, shape[0]), 3, shape[1]) for down, along in itertools.product(matrix, matrix))
    return [pair.reshape(4, -1, x.shape[-1]) for pair in pairs]


def _kernel_forms(stored: jax.Array, turned: bool, dtype: Any) -> list[jax.Array]:
    """G w G^T of a kernel as it is stored: four times (4, in, out), or (4, out, in) of a turned one."""
    *_, c, o = stored.shape
    flat = stored.astype(dtype).reshape(9, c * o)
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    groups = [group[:, ::-1] if turned else group for group in GROUPS]  # a turned kernel's last tap is stored first
    return [product(jnp.asarray(group, dtype), flat).reshape(4, c, o) for group in groups]


def _tile_results(
    padded: jax.Array, forms: list[jax.Array], shape: tuple[int, int], out: int, product: Any
) -> jax.Array:
    """(images, 2 * rows, 2 * columns, out) of the padded input of rows x columns tiles: A^T m A of each."""
    (rows, columns), n = shape, padded.shape[0]
    m = (y.reshape(2, 2, n, rows, columns, out) for y in map(product, _groups(BT, padded, shape), forms))
    outer, across, down, both = (y.transpose(2, 3, 1, 4, 0, 5) for y in m)
    pick = lambda y, axis, k: lax.slice_in_dim(y, k, k + 1, axis=axis)
    added = lambda outer, inner, axis: outer + (pick(inner, axis, 0) + _signed(pick(inner, axis, 1), axis))
    y = added(added(outer, across, 4), added(down, both, 4), 2)  # (images, rows, 2, columns, 2, out)
    return y.reshape(n, 2 * rows, 2 * columns, out)


def _shape(geometry: Geometry) -> tuple[int, int]:
    rows, columns = (-(-places // 2) for places in geometry.output)
    return rows, columns


def _widen(x: jax.Array, lows: tuple[int, int], lengths: tuple[int, int]) -> jax.Array:
    """x (images, rows, columns, channels) with zeros around it, `lows` before it, of `lengths` in all."""
    pads = [(low, n - low - have, 0) for low, n, have in zip(lows, lengths, x.shape[1:3], strict=True)]
    return x if not any(map(any, pads)) else lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _lows(geometry: Geometry) -> tuple[int, int]:
    return geometry.axes[0].low, geometry.axes[1].low


def _parts(batch: Any, geometry: Geometry, channels: int, most: int) -> tuple[int | None, int]:
    """(images taken at once, None for all; rows of tiles taken at once) so that the arrays take `most` bytes."""
    rows, columns = _shape(geometry)
    each = 16 * 4 * columns * channels
    images = windows.images_in_turn(batch, rows * each, most)
    if not isinstance(batch, int) or rows * each <= most:
        return images, rows
    return 1, -(-rows // -(-rows * each // most))


def _block(x: jax.Array, image: Any, place: Any, rows: int, geometry: Geometry) -> jax.Array:
    """The padded input that 2 * rows rows of the results of one image see, from row `place` of the results on.

    Written into an array of its own: a pad that depends on the place would be fused into each of the four sums.
    """
    (low, left), (height, width), count = _lows(geometry), geometry.input, 2 * rows + 2
    taken = min(count, height)
    start = place - low
    at = jnp.clip(start, 0, height - taken)
    part = windows.take(x, (image, at, 0, 0), (1, taken, width, x.shape[-1]))
    wide = jnp.zeros((1, taken + 2 * count, 2 * _shape(geometry)[1] + 2, x.shape[-1]), x.dtype)
    wide = windows.put(wide, part, (0, count, left, 0))
    here = windows.take_along(wide, count + start - at, count, axis=1)
    own = jnp.zeros((1, count + 1, *wide.shape[2:]), x.dtype)
    return windows.put(own, here, (0, jnp.minimum(image, 0), 0, 0))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    run = functools.partial(_convolve, geometry=geometry, out=w.shape[-1], precision=precision, dtype=dtype)
    w = windows.as_stored(w, geometry)
    if 64 * w.shape[-2] * w.shape[-1] <= FORMS_BYTES:
        return run(x, w)
    return windows.apart(run, x, w)  # what is large goes first


def _convolve(x: jax.Array, stored: jax.Array, geometry: Geometry, out: int, precision: Any, dtype: Any) -> jax.Array:
    batch, channels = x.shape[0], x.shape[-1]
    (rows, columns), (height, width) = _shape(geometry), geometry.output
    sides = (((2,), (2 if geometry.turned else 1,)), ((0,), (0,)))
    product = functools.partial(
        lax.dot_general, dimension_numbers=sides, precision=precision, preferred_element_type=dtype
    )
    forms = _kernel_forms(stored, geometry.turned, dtype)
    x = x.astype(dtype)
    images, some = _parts(batch, geometry, channels + out, CHUNK_BYTES)

    def run(x: jax.Array) -> jax.Array:
        padded = _widen(x, _lows(geometry), (2 * rows + 2, 2 * columns + 2))
        return _tile_results(padded, forms, (rows, columns), out, product)[:, :height, :width]

    if some == rows:
        return windows.by_images(run, x, images)

    blocks = -(-height // (2 * some))  # the last one ends with the image, and may compute some rows again

    def write(index: Any, y: jax.Array) -> jax.Array:
        image, block = windows.unravelled(index, (batch, blocks))
        place = windows.start_of(block, 2 * some, height)
        part = _tile_results(_block(x, image, place, some, geometry), forms, (some, columns), out, product)
        return windows.put(y, part[:, :, :width], (image, place, 0, 0))

    return lax.fori_loop(0, batch * blocks, write, windows.unwritten((batch, height, width, out), dtype, x))


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, channels, out = x.shape[0], x.shape[-1], g.shape[-1]
    rows, columns = _shape(geometry)
    x, g = x.astype(dtype), g.astype(dtype)
    most = windows.summed_at_once(x, g, 64 * channels * out, CHUNK_BYTES)
    images, some = _parts(batch, geometry, channels + out, most)
    sides = (((1,), (1,)), ((0,), (0,)))
    product = functools.partial(
        lax.dot_general, dimension_numbers=sides, precision=precision, preferred_element_type=dtype
    )

    narrow = out <= NARROW and channels >= 2 * NARROW  # and first in the products: see matmul.transposed_product

    def run(padded: jax.Array, g: jax.Array, rows: int) -> list[jax.Array]:
        g = _widen(g, (0, 0), (2 * rows, 2 * columns))
        sides = _groups(BT, padded, (rows, columns)), _groups(A, g, (rows, columns))
        return list(map(product, *(sides[::-1] if narrow else sides)))

    whole = lambda x: _widen(x, _lows(geometry), (2 * rows + 2, 2 * columns + 2))
    zeros = [jnp.zeros((4, out, channels) if narrow else (4, channels, out), dtype)] * 4
    add = lambda total, part: list(map(jnp.add, total, part))
    if images is None:
        total = run(whole(x), g, rows)
    elif some == rows:

        def few(index: Any, total: list[jax.Array]) -> list[jax.Array]:
            first = windows.start_of(index, images, batch)
            here, there = (windows.take_along(array, first, images) for array in (x, g))
            there = windows.fresh(there, index, images, batch, axis=0)
            return add(total, run(whole(here), there, rows))

        total = lax.fori_loop(0, -(-batch // images), few, zeros)
    else:
        blocks = -(-rows // some)
        g = _widen(g, (0, 0), (2 * some * blocks, g.shape[2]))

        def one(index: Any, total: list[jax.Array]) -> list[jax.Array]:
            image, block = windows.unravelled(index, (batch, blocks))
            place = block * 2 * some
            there = windows.take(g, (image, place, 0, 0), (1, 2 * some, *g.shape[2:]))
            return add(total, run(_block(x, image, place, some, geometry), there, some))

        total = lax.fori_loop(0, batch * blocks, one, zeros)
    terms = zip(np.concatenate(GROUPS), (entries[i] for entries in total for i in range(4)), strict=True)
    # G^T [..] G: one loop, and no array of all entries beside them
    dw = functools.reduce(lax.add, (jnp.asarray(share.reshape(3, 3, 1, 1), dtype) * m for share, m in terms))
    return dw.swapaxes(-2, -1) if narrow else dw
