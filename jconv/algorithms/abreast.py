"""Several images side by side as one wide image, with zeros between them: for images too narrow to fill all cores.

    x'[n, y, i * pitch + a] = x[n * abreast + i, y, a],   y[n * abreast + i, y, p] = y'[n, y, i * pitch / stride + p]
XLA:CPU hands a plane convolution to the cores in blocks of its width and its output channels, one row of one image
after the other; a row that is a single block stays on one core (8 x 56 x 56 x 64 by 3x3 to 64: 20 ms, and 13 ms as two
or four images side by side). A kernel gradient or an input gradient beside it fills the other core; a forward pass has
nothing beside it. Cost: the multiply-adds of the convolution and of the zeros between the images, a copy of x and one
of the result.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import cost, lax_conv, windows
from jconv.geometry import Axis, Geometry

ROW_FLOPS = 19e6  # of a row of a wide image that is surely two blocks or more
ROW_PLACES = 2 * 3 * 1024  # width * channels of one, too: a block is at most 64 x 64 large, or 128 x 32
WIDE_PLACES = 2 * ROW_PLACES  # of one image's row, which is then blocks enough, whatever there is to compute
VECTOR = 4  # channels
LEAST_FILLED = 16  # channels up to which none are added
LEAST_WANTED = 1.25  # times a row, up to which it is nearly enough, and a copy of all bands costs more than it gains
MOST_AGAIN = 0.3  # of a band's rows, that its neighbour sees too
MOST_BYTES = 16 << 20  # of wide images and their results, which would be mapped anew in each call
CHUNK_BYTES = 8 << 20  # of the wide images and their results of one step


def applies(geometry: Geometry) -> bool:
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.rank == 2 and geometry.groups == 1 and undilated and geometry.taps > 1


def pitch(axis: Axis) -> int:
    """Elements from the start of an image to that of the next: no window sees two, and every place has its own."""
    seen = (axis.output - 1) * axis.stride + axis.reach - axis.low
    return -(-max(axis.input + axis.low, seen, axis.output * axis.stride) // axis.stride) * axis.stride


def abreast(batch: Any, geometry: Geometry, channels: int, out: int, most_bytes: float = MOST_BYTES) -> int:
    """How many images side by side: the fewest, a divisor of the batch, whose rows are of ROW_FLOPS, or all.

    Fewer, where they and their results take more than most_bytes, and one does not.
    """
    if not isinstance(batch, int):  # symbolic, in an export
        return 1
    each = cost.flops(1, geometry, channels, out) / geometry.output[0]  # of one row
    places = geometry.output[-1] * out
    if places >= WIDE_PLACES:
        return 1
    enough = lambda n: n * each >= ROW_FLOPS and enough_places(places, n)
    count = min((n for n in range(1, batch + 1) if batch % n == 0 and enough(n)), default=max(1, batch))
    held = 4 * (math.prod(geometry.input) * channels + math.prod(geometry.output) * out)
    return count if held > most_bytes else windows.images_at_once(count, held, most_bytes) or count


def bands(batch: Any, geometry: Geometry, channels: int, out: int) -> int:
    """In how many bands to cut each image, for all of them side by side to be rows long enough; 1 for none."""
    if not isinstance(batch, int) or abreast(batch, geometry, channels, out) < batch:
        return 1
    each = batch * cost.flops(1, geometry, channels, out) / geometry.output[0]
    places = batch * geometry.output[-1] * out
    if each == 0 or places >= WIDE_PLACES or (each >= ROW_FLOPS and enough_places(places, 1)):
        return 1
    wanted, rows = max(ROW_FLOPS / each, ROW_PLACES / places), geometry.axes[0]
    if not LEAST_WANTED <= wanted <= rows.output:
        return 1
    count = math.ceil(wanted)
    again = rows.reach - rows.stride  # rows that two bands see
    height = -(-rows.output // count)
    return -(-rows.output // height) if 0 < again <= MOST_AGAIN * height * rows.stride else 1


def _cut(x: jax.Array, rows: Axis, count: int) -> tuple[jax.Array, Axis]:
    """x as bands of rows, (batch * bands, rows of a band, ...), and the first axis of one of them."""
    height = -(-rows.output // count)
    band = dataclasses.replace(rows, input=(height - 1) * rows.stride + rows.reach, output=height, low=0)
    total = (count - 1) * height * rows.stride + band.input
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (rows.low, total - rows.low - rows.input, 0), *((0, 0, 0),) * 2))
    starts = range(0, count * height * rows.stride, height * rows.stride)
    parts = [lax.slice_in_dim(x, start, start + band.input, axis=1) for start in starts]
    return jnp.stack(parts, axis=1).reshape(-1, band.input, *x.shape[2:]), band


def enough_places(places: int, count: int) -> bool:
    """Whether rows of `count` images, `places` of width times channels each, are two blocks."""
    return count * places >= ROW_PLACES


def missing(channels: int) -> int:
    """Channels of zeros that fill the last vector: XLA:CPU runs 21 channels in and out at a third of the rate of 24."""
    return -channels % VECTOR if channels > LEAST_FILLED else 0


def convolve(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, most_bytes: float = MOST_BYTES
) -> jax.Array:
    batch, channels, out = x.shape[0], x.shape[-1], w.shape[-1]
    cut = bands(batch, geometry, channels, out)
    if cut > 1:
        parts, band = _cut(x, geometry.axes[0], cut)
        inner = Geometry((band, geometry.axes[1]))
        y = convolve(parts, w, inner, precision, dtype, math.inf)  # copied already: all side by side
        return y.reshape(batch, cut * band.output, *y.shape[2:])[:, : geometry.output[0]]
    count, more = abreast(batch, geometry, channels, out, most_bytes), (missing(channels), missing(out))
    if (count <= 1 and not any(more)) or not isinstance(batch, int):
        return lax_conv.convolve(x, w, geometry, precision, dtype)
    w = lax.pad(w, jnp.zeros((), w.dtype), ((0, 0, 0), (0, 0, 0), *((0, n, 0) for n in more)))
    rows, last = geometry.axes
    apart = pitch(last)
    wide = dataclasses.replace(last, input=count * apart, output=count * (apart // last.stride))

    def run(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, count, rows.input, last.input, channels).swapaxes(1, 2)
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0),) * 3 + ((0, apart - last.input, 0), (0, more[0], 0)))
        x, cropped = windows.crop(x.reshape(-1, rows.input, wide.input, w.shape[-2]), Geometry((rows, wide)))
        y = lax_conv.convolve(x, w, cropped, precision, dtype)
        y = y.reshape(-1, rows.output, count, apart // last.stride, w.shape[-1])
        y = y[:, :, :, : last.output, :out].swapaxes(1, 2)
        return y.reshape(-1, rows.output, last.output, out)

    wide_bytes = rows.input * apart * w.shape[-2] + rows.output * (apart // last.stride) * w.shape[-1]
    each = count * x.dtype.itemsize * wide_bytes
    images = windows.images_at_once(batch // count, each, CHUNK_BYTES)
    # A loop even of one step, which XLA unrolls: what loops over the batch is split over devices by _sharding.
    return windows.by_images(run, x, (images or batch // count) * count)
