"""Winograd's minimal filtering, F(2x2, 3x3): 16 multiplications where the sum over taps has 36, for 3x3 windows.

The result is cut into tiles of 2 x 2 places, which see 4 x 4 elements of the input; with
    B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]   G = [1 0 0; .5 .5 .5; .5 -.5 .5; 0 0 1]   A^T = [1 1 1 0; 0 1 -1 -1]
    y  = A^T [ (G w G^T) * (B^T x B) ] A             a tile of the result; * is, for each of the 16, a matrix product
    dw = G^T [ sum over tiles (B^T x B) * (A g A^T) ] G    its transpose in w: the kernel gradient
Every entry of B^T x B is the sum of four shifted slices, so the 16 arrays (tiles, in) are 16 fused loops; the products
are independent of one another and keep all cores busy, which lax's convolution on a CPU does not for few channels.
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
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
KERNEL = np.kron(G, G)  # (16, 9): G w G^T of a kernel as a vector of taps

Slices = Callable[[int, int], jax.Array]


def applies(geometry: Geometry) -> bool:
    plain = all(axis.window == 3 and axis.stride == axis.dilation == axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.rank == 2 and geometry.groups == 1 and plain and min(geometry.output) > 1


def tiles(geometry: Geometry) -> int:
    """Tiles of one image."""
    return math.prod(-(-places // 2) for places in geometry.output)


def _times_bt(at: Callable[[int], jax.Array]) -> list[jax.Array]:
    """B^T along one axis, of the four slices at(0) to at(3)."""
    return [at(0) - at(2), at(1) + at(2), at(2) - at(1), at(1) - at(3)]


def _times_a(at: Callable[[int], jax.Array]) -> list[jax.Array]:
    """A along one axis, of the two slices at(0) and at(1)."""
    return [at(0), at(0) + at(1), at(0) - at(1), -at(1)]


def _sixteen(times: Callable[..., list[jax.Array]], at: Slices) -> list[jax.Array]:
    """A two-sided product of a tile, M at M^T, its 16 entries in row-major order, each as (tiles, channels)."""
    column = functools.cache(lambda j: times(lambda k: at(k, j)))  # traced once, not for each of the entries
    entries = itertools.chain.from_iterable(times(lambda j, i=i: column(j)[i]) for i in range(4))
    return [entry.reshape(-1, entry.shape[-1]) for entry in entries]


def _every_second(x: jax.Array, rows: int, columns: int) -> Slices:
    """at(i, j): element (i, j) of each of rows x columns tiles of x, (images, rows, columns, channels)."""
    n, c = x.shape[0], x.shape[-1]
    return lambda i, j: lax.slice(x, (0, i, j, 0), (n, i + 2 * rows - 1, j + 2 * columns - 1, c), (1, 2, 2, 1))


def _kernel_forms(w: jax.Array, dtype: Any) -> list[jax.Array]:
    """G w G^T: 16 matrices (in, out); large ones entry by entry, since one array of all would be copied once more."""
    c, o = w.shape[-2:]
    w = w.astype(dtype)
    if 16 * c * o * w.dtype.itemsize > FORMS_BYTES:
        half = jnp.asarray(0.5, dtype)
        times = lambda at: [at(0), (at(0) + at(1) + at(2)) * half, (at(0) - at(1) + at(2)) * half, at(2)]
        return _sixteen(times, lambda i, j: w[i, j])
    flat = lax.dot_general(
        jnp.asarray(KERNEL, dtype), w.reshape(9, c * o), (((1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    return [flat[k].reshape(c, o) for k in range(16)]


def _tile_results(padded: jax.Array, forms: list[jax.Array], shape: tuple[int, int], product: Any) -> jax.Array:
    """(images, 2 * rows, 2 * columns, out) of the padded input of rows x columns tiles."""
    rows, columns = shape
    n, out = padded.shape[0], forms[0].shape[-1]
    entries = map(product, _sixteen(_times_bt, _every_second(padded, rows, columns)), forms)
    m = [entry.reshape(n, rows, columns, out) for entry in entries]
    first = [m[j] + m[4 + j] + m[8 + j] for j in range(4)]  # A^T along the rows of the tile,
    second = [m[4 + j] - m[8 + j] - m[12 + j] for j in range(4)]
    along = lambda r: jnp.stack([r[0] + r[1] + r[2], r[1] - r[2] - r[3]], axis=3)  # then along its columns
    return jnp.stack([along(first), along(second)], axis=2).reshape(n, 2 * rows, 2 * columns, out)


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
    images = windows.images_at_once(batch, rows * each, most)
    if not isinstance(batch, int) or rows * each <= most:
        return images, rows
    return 1, -(-rows // -(-rows * each // most))


def _block(x: jax.Array, image: Any, place: Any, rows: int, geometry: Geometry) -> jax.Array:
    """The padded input that 2 * rows rows of the results of one image see, from row `place` of the results on.

    Written into an array of its own: a pad that depends on the place would be fused into each of the 16 sums.
    """
    (low, left), (height, width), count = _lows(geometry), geometry.input, 2 * rows + 2
    taken = min(count, height)
    start = place - low
    at = jnp.clip(start, 0, height - taken)
    part = lax.dynamic_slice(x, (image, at, 0, 0), (1, taken, width, x.shape[-1]))
    wide = jnp.zeros((1, taken + 2 * count, 2 * _shape(geometry)[1] + 2, x.shape[-1]), x.dtype)
    wide = lax.dynamic_update_slice(wide, part, (0, count, left, 0))
    here = lax.dynamic_slice_in_dim(wide, count + start - at, count, axis=1)
    own = jnp.zeros((1, count + 1, *wide.shape[2:]), x.dtype)
    return lax.dynamic_update_slice(own, here, (0, jnp.minimum(image, 0), 0, 0))


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    run = functools.partial(_convolve, geometry=geometry, precision=precision, dtype=dtype)
    if 64 * w.shape[-2] * w.shape[-1] <= FORMS_BYTES:
        return run(x, w)
    return windows.apart(run, x, w)  # a turned kernel is turned once, not in each of 16 sums; what is large goes first


def _convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, channels, out = x.shape[0], x.shape[-1], w.shape[-1]
    (rows, columns), (height, width) = _shape(geometry), geometry.output
    product = functools.partial(jnp.matmul, precision=precision, preferred_element_type=dtype)
    forms = _kernel_forms(w, dtype)
    x = x.astype(dtype)
    images, some = _parts(batch, geometry, channels + out, CHUNK_BYTES)

    def run(x: jax.Array) -> jax.Array:
        padded = _widen(x, _lows(geometry), (2 * rows + 2, 2 * columns + 2))
        return _tile_results(padded, forms, (rows, columns), product)[:, :height, :width]

    if some == rows:
        return windows.by_images(run, x, images)

    blocks = -(-height // (2 * some))  # the last one ends with the image, and may compute some rows again

    def write(index: Any, y: jax.Array) -> jax.Array:
        image, place = index // blocks, jnp.minimum(index % blocks * 2 * some, height - 2 * some)
        part = _tile_results(_block(x, image, place, some, geometry), forms, (some, columns), product)
        return lax.dynamic_update_slice(y, part[:, :, :width], (image, place, 0, 0))

    return lax.fori_loop(0, batch * blocks, write, windows.unwritten((batch, height, width, out), dtype, x))


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    batch, channels, out = x.shape[0], x.shape[-1], g.shape[-1]
    rows, columns = _shape(geometry)
    x, g = x.astype(dtype), g.astype(dtype)
    most = windows.summed_at_once(x, g, 64 * channels * out, CHUNK_BYTES)
    images, some = _parts(batch, geometry, channels + out, most)
    sides = (((0,), (0,)), ((), ()))
    product = functools.partial(
        lax.dot_general, dimension_numbers=sides, precision=precision, preferred_element_type=dtype
    )

    def run(padded: jax.Array, g: jax.Array, rows: int) -> list[jax.Array]:
        g = _widen(g, (0, 0), (2 * rows, 2 * columns))
        lhs = _sixteen(_times_bt, _every_second(padded, rows, columns))
        return list(map(product, lhs, _sixteen(_times_a, _every_second(g, rows, columns))))

    whole = lambda x: _widen(x, _lows(geometry), (2 * rows + 2, 2 * columns + 2))
    zeros = [jnp.zeros((channels, out), dtype)] * 16
    add = lambda total, part: list(map(jnp.add, total, part))
    if images is None:
        total = run(whole(x), g, rows)
    elif some == rows:
        split = lambda array: array.reshape(batch // images, images, *array.shape[1:])
        total = lax.scan(
            lambda t, pair: (add(t, run(whole(pair[0]), pair[1], rows)), None), zeros, (split(x), split(g))
        )[0]
    else:
        blocks = -(-rows // some)
        g = _widen(g, (0, 0), (2 * some * blocks, g.shape[2]))

        def one(index: Any, total: list[jax.Array]) -> list[jax.Array]:
            image, place = index // blocks, index % blocks * 2 * some
            there = lax.dynamic_slice(g, (image, place, 0, 0), (1, 2 * some, *g.shape[2:]))
            return add(total, run(_block(x, image, place, some, geometry), there, some))

        total = lax.fori_loop(0, batch * blocks, one, zeros)
    m = jnp.stack([entry.reshape(-1) for entry in total])  # G^T [..] G
    dw = lax.dot_general(jnp.asarray(KERNEL, dtype), m, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    return dw.reshape(3, 3, channels, out)
