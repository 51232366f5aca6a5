"""Convolution and pooling of images whose height is divided among devices, inside jax.shard_map.

A device holds n of an image's N = n * devices rows. Along the height, window k with dilation d and stride s, output
row p reads the input rows p*s - low to p*s - low + d*(k-1). A device computes n / s output rows, for which it needs,
beside its own rows,
    above = low                       rows that the device above it has, its last ones
    below = d*(k-1) + 1 - s - low     rows that the device below it has, its first ones
and no others: the halo. It is exchanged once in the forward pass (lax.ppermute), and kept: the kernel gradient reads
the same rows. What a device's windows give to the rows of others goes back the same way in the backward pass, for that
is the transpose of lax.ppermute: as many bytes again. A kernel that is the same on all devices gets the sum of their
gradients, once.

Beyond the image's first and last row there is padding: zeros in a convolution and an average, and in a max what loses
to every element. So each device has its rows of what jconv.conv, max_pool or avg_pool gives for the whole image, and
of its gradients.

    conv = functools.partial(halo.conv2d, axis_name="rows", padding="SAME")
    rows = PartitionSpec(None, "rows")  # of (batch, height, width, channels)
    jax.shard_map(conv, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(x, kernel)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jconv
from jconv import geometry as geo

Array = jax.Array


def halo_exchange(x: Array, above: int, below: int, *, axis_name: str, fill: Any = 0) -> Array:
    """X (batch, rows, ...) with the last rows of the device above in front, and the first of the one below behind it.

    Args:
      x: this device's rows.
      above: how many rows the device above gives.
      below: how many the device below gives.
      axis_name: the mesh axis that the height is divided along, in order.
      fill: stands above the first device's rows and below the last one's.

    Returns:
      (batch, above + rows + below, ...).

    Raises:
      ValueError: a device has fewer rows than it is to give.
    """
    rows, devices = x.shape[1], lax.axis_size(axis_name)
    for side, count in (("above", above), ("below", below)):
        if count < 0:
            raise ValueError(f"halo_exchange: {side}={count} must not be negative")
        if count > rows:
            raise ValueError(
                f"halo_exchange: {side}={count} must be at most the {rows} rows that a device has, since a halo comes "
                f"from the next device alone; divide the height among fewer than {devices} devices"
            )
    down, up = [(i, i + 1) for i in range(devices - 1)], [(i + 1, i) for i in range(devices - 1)]

    def received(part: Array, sends: list[tuple[int, int]], last: int) -> Array:
        """The next device's part; at the image's edge `fill`."""
        if not sends:
            return jnp.full_like(part, fill)
        part = lax.ppermute(part, axis_name, sends)  # zeros where nothing is sent
        return part if fill == 0 else jnp.where(lax.axis_index(axis_name) == last, jnp.full_like(part, fill), part)

    parts = [received(x[:, rows - above :], down, 0)] if above else []
    parts.append(x)
    if below:
        parts.append(received(x[:, :below], up, devices - 1))
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else x


@dataclasses.dataclass(frozen=True)
class Halo:
    """The rows that a device's windows reach beyond its own; negative where they leave out some of its own."""

    above: int
    below: int
    height: geo.Axis  # of the whole image
    width: geo.Axis

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What is left to pad once the halo is there: the width, and of the height what is to be cropped."""
        return (min(self.above, 0), min(self.below, 0)), (self.width.low, self.width.high)

    def exchange(self, x: Array, axis_name: str, fill: Any = 0) -> Array:
        """X with the halo around it."""
        return halo_exchange(x, max(self.above, 0), max(self.below, 0), axis_name=axis_name, fill=fill)


def halo_of(fun: str, x: Array, window_shape: Any, strides: Any, padding: Any, dilation: Any, axis_name: str) -> Halo:
    """The halo of a window over x (batch, rows, width, channels), this device's part.

    Raises:
      ValueError: the devices would not have equally many output rows, or the halo is larger than a device's part.
    """
    if x.ndim != 4:
        raise ValueError(f"{fun}: x must have 4 axes (batch, rows, width, channels), got shape {x.shape}")
    form = geo.padding_form(fun, padding, 2)
    if form in geo.VALUE_MODES:
        raise ValueError(f"{fun}: padding={padding!r} must be of zeros: 'VALID', 'SAME', 'SAME_LOWER' or numbers")
    rows, devices = x.shape[1], lax.axis_size(axis_name)
    steps = geo.integers(fun, "strides", 1 if strides is None else strides, 2, 1)
    taps = geo.integers(fun, "dilation", dilation, 2, 1)
    window = geo.integers(fun, "window_shape", window_shape, 2, 1)
    height, width = geo.sliding(fun, (rows * devices, x.shape[2]), window, steps, form, taps).axes
    output = rows // height.stride
    if rows % height.stride:
        raise ValueError(
            f"{fun}: strides={strides!r} must divide the rows of a device along the height, got {rows} rows on each of "
            f"{devices} devices"
        )
    if height.output != output * devices:
        raise ValueError(
            f"{fun}: padding={padding!r} must give {output * devices} output rows, {output} on each of {devices} "
            f"devices, for a window that covers {height.reach} rows with stride {height.stride}, and gives "
            f"{height.output}; 'SAME' does"
        )
    return Halo(height.low, height.reach - height.stride - height.low, height, width)


def conv2d(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    axis_name: str,
    strides: Any = 1,
    padding: Any = "VALID",
    kernel_dilation: Any = 1,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    algorithm: Any = "auto",
) -> Array:
    """This device's rows of jconv.conv of the whole image.

    Args:
      x: (batch, rows, width, in), this device's part.
      kernel: (height, width, in // feature_group_count, out), the same on all devices.
      bias: (out,), or None.
      axis_name: the mesh axis that the height is divided along.
      strides: as in jconv.conv, and so are all that follow; padding is of zeros.
      padding: it must give N / s output rows in all, as "SAME" does and (k - 1) / 2 of an odd window.
      kernel_dilation: see jconv.conv.
      feature_group_count: see jconv.conv.
      precision: see jconv.conv.
      preferred_element_type: see jconv.conv.
      algorithm: see jconv.conv.

    Returns:
      (batch, rows / s, out_width, out).

    Raises:
      ValueError: the rows or the output rows cannot be shared evenly, or the halo is larger than a device's part; and
        as jconv.conv.
    """
    halo = halo_of("conv2d", x, kernel.shape[:2], strides, padding, kernel_dilation, axis_name)
    return jconv.conv2d(
        halo.exchange(x, axis_name),
        kernel,
        bias,
        strides=strides,
        padding=halo.padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        algorithm=algorithm,
    )


def max_pool2d(
    x: Array,
    window_shape: Any,
    strides: Any = None,
    padding: Any = "VALID",
    *,
    axis_name: str,
    window_dilation: Any = 1,
) -> Array:
    """This device's rows of jconv.max_pool of the whole image; arguments and errors as conv2d, strides=None means 1.

    The rows of padding above the image come first in a window, and would win a tie with an element of -inf: so the
    first device has jconv pad them, which never lets padding win. Those below the image come last, and lose every tie.
    """
    halo = halo_of("max_pool2d", x, window_shape, strides, padding, window_dilation, axis_name)
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    extended = halo.exchange(x, axis_name, least)

    def pool(extended: Array, padded: int = 0) -> Array:
        (low, high), width = halo.padding
        return jconv.max_pool(
            extended[:, padded:],
            window_shape,
            strides,
            ((low + padded, high), width),
            window_dilation=window_dilation,
        )

    if halo.above <= 0:
        return pool(extended)
    return lax.cond(lax.axis_index(axis_name) == 0, lambda rows: pool(rows, halo.above), pool, extended)


def avg_pool2d(
    x: Array,
    window_shape: Any,
    strides: Any = None,
    padding: Any = "VALID",
    *,
    axis_name: str,
    window_dilation: Any = 1,
    count_include_pad: bool = True,
) -> Array:
    """This device's rows of jconv.avg_pool of the whole image; arguments and errors as conv2d, strides=None means 1.

    Where padding does not count, a sum is divided by how many elements of the whole image its window holds, which at
    the first and the last device is fewer.
    """
    halo = halo_of("avg_pool2d", x, window_shape, strides, padding, window_dilation, axis_name)
    extended = halo.exchange(x, axis_name)
    options = {"strides": strides, "padding": halo.padding, "window_dilation": window_dilation}
    if count_include_pad:
        return jconv.avg_pool(extended, window_shape, **options)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.result_type(float))
    wide = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)  # as jconv sums
    total = jconv.sum_pool(extended.astype(wide), window_shape, **options)
    tall, broad = (
        np.array([len(axis.taps_inside(p)) for p in range(axis.output)], wide) for axis in (halo.height, halo.width)
    )
    mine = jnp.asarray(tall.reshape(lax.axis_size(axis_name), -1))[lax.axis_index(axis_name)]
    return (total / (mine[None, :, None, None] * broad[None, None, :, None])).astype(dtype)
