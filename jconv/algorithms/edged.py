"""A plane convolution without padding, as one with a row of zeros before its first: XLA:CPU then copies no patches.

    y = y'[1:]      y' the convolution from one place earlier on, whose first row sees zeros
XLA:CPU's library convolves a padded plane where it stands. Of one without any padding it first writes down all patches
of all images: 8 x 112 x 112 x 24 under 3x3 to 32 maps 80 MB anew in each call, 64 to 85 ms, and with one row of zeros
more it is 14 to 16. A kernel gradient likewise, from one tap earlier on. Cost: that of lax's convolution, and one row
of places, or of taps.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import lax

from jconv.algorithms import lax_conv, windows
from jconv.geometry import Geometry

PATCHES_BYTES = 11 << 19  # of all patches, from which an allocator maps them anew or they leave the caches
LEAST_PATCHED = 8  # channels from which the library makes patches,
MOST_IN_PLACE = 16  # where there are more channels or outputs than this


def applies(geometry: Geometry) -> bool:
    plain = all(axis.input_dilation == 1 and not axis.pads for axis in geometry.axes)
    return plain and geometry.rank == 2 and geometry.groups == 1 and geometry.taps > 1 and 0 not in geometry.output


def pays(geometry: Geometry, batch: Any, channels: int, out: int) -> bool:
    """Whether a convolution's patches are so many that to write them down is most of its time."""
    if not applies(geometry) or not isinstance(batch, int):
        return False
    patched = channels >= LEAST_PATCHED and max(channels, out) > MOST_IN_PLACE
    return patched and 4 * batch * math.prod(geometry.output) * geometry.taps * channels >= PATCHES_BYTES


def pays_kernel_grad(geometry: Geometry, batch: Any, channels: int, out: int) -> bool:
    """The same of a kernel gradient, of which the images are the channels and the taps the places."""
    return pays(geometry.for_kernel_grad(), channels, batch, out) if isinstance(batch, int) else False


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    first, last = geometry.axes
    earlier = dataclasses.replace(first, low=first.low + first.stride, output=first.output + 1)
    return lax_conv.convolve(x, w, dataclasses.replace(geometry, axes=(earlier, last)), precision, dtype)[:, 1:]


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    dim = max(range(geometry.rank), key=lambda i: geometry.axes[i].window)  # along which one more is the least
    axes = list(geometry.axes)
    axes[dim] = dataclasses.replace(axes[dim], low=axes[dim].low + axes[dim].dilation, window=axes[dim].window + 1)

    def own() -> jax.Array:
        more = lax_conv.kernel_grad(x, g, dataclasses.replace(geometry, axes=tuple(axes)), precision, dtype)
        return lax.slice_in_dim(more, 1, None, axis=dim)

    # so that devices do not add up the tap that is dropped
    return windows.divided(own, (*geometry.window, x.shape[-1], g.shape[-1]), dtype)
