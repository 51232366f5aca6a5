"""One matrix product, where each element of the input meets one tap at most.

1x1 kernels, patches, a window as large as the input:
    convolve:     (batch * output, taps * in) times (taps * in, out)
    kernel_grad:  (taps * in, batch * output) times (batch * output, out)
Applies where the windows do not overlap and nothing is padded or dilated: stride = window ("patchify"), window 1 with
any stride, or one place. An input gradient of such a window is the product with the transpose, spread back over the
patches. Cost: the multiply-adds of the convolution and, for windows of more than one tap, one copy of the input.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

APART = 16  # groups up to which one product a group beats a batched one, for which XLA:CPU turns x and y round,
JOINED = 56  # unless the zeros of one with a block-diagonal matrix cost so few multiply-adds an element that is copied,
JOINED_SUM = 28  # of a kernel gradient, whose blocks are written once,
JOINED_FLOPS = 4e6  # or it is done before several are called
TRANSPOSED = 64  # channels from which the narrower operand is transposed before a product over the rows of both
READ_FOR_WRITTEN = 8  # elements of both operands for each that a part's sum has, from which adding them up is cheap
MOST_TRANSPOSED = windows.MAPPED // 2  # bytes; more may be mapped anew in each call
SMALL = 1 << 14  # elements of x below which it is not worth a pass


def applies(geometry: Geometry) -> bool:
    return all(_tiles(axis) for axis in geometry.axes)


def applies_spread(geometry: Geometry) -> bool:
    """Whether the convolution is the input gradient of one that applies."""
    return all(_tiles(axis) for axis in geometry.for_input_grad().axes)


def _tiles(axis: Axis) -> bool:
    if axis.pads or axis.low < 0 or axis.input_dilation > 1:
        return False
    return axis.window == 1 or (axis.dilation == 1 and (axis.output == 1 or axis.stride == axis.window))


def _patches(x: jax.Array, geometry: Geometry) -> jax.Array:
    """(batch, *output, groups, taps * in // groups): the windows' elements, in the order of the kernel's rows."""
    batch, channels, groups = x.shape[0], x.shape[-1], geometry.groups
    starts, stops, steps, split = [0], [batch], [1], [batch]
    for axis in geometry.axes:
        starts.append(0)
        if axis.window == 1:
            stops.append((axis.output - 1) * axis.stride + 1)
            steps.append(axis.stride)
        else:
            stops.append(axis.output * axis.window)
            steps.append(1)
        split += [axis.output, axis.window]
    x = lax.slice(x, (*starts, 0), (*stops, channels), (*steps, 1))
    x = x.reshape(*split, groups, channels // groups)
    rank = geometry.rank
    order = [0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2), 2 * rank + 2]
    return x.transpose(order).reshape(batch, *geometry.output, groups, geometry.taps * (channels // groups))


def _rows(w: jax.Array, groups: int) -> jax.Array:
    """w as (groups, taps * in // groups, out // groups)."""
    rows, out = math.prod(w.shape[:-1]), w.shape[-1]
    return w.reshape(rows, groups, out // groups).swapaxes(0, 1)


def _diagonal(rows: jax.Array) -> jax.Array:
    """(groups, in, out) as the diagonal blocks of one matrix (groups * in, groups * out)."""
    groups, channels, out = rows.shape
    if groups == 1:
        return rows[0]
    same = jnp.eye(groups, dtype=bool)[:, None, :, None]
    blocks = jnp.where(same, rows[:, :, None, :], jnp.zeros((), rows.dtype))
    return blocks.reshape(groups * channels, groups * out)


def _joined(patches: jax.Array, out: int, most: int) -> bool:
    """Whether patches (rows, groups, in) and `out` channels are one product: of one group, or of few and small ones."""
    rows, groups, channels = patches.shape
    if groups == 1 or groups > APART or not isinstance(rows, int):
        return groups == 1
    zeros, copied = (groups - 1) * channels * out, groups * channels + out
    return zeros <= most * copied or 2 * rows * groups * channels * out <= JOINED_FLOPS


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    groups, out = geometry.groups, w.shape[-1]
    patches, shape = _patches(x, geometry), (x.shape[0], *geometry.output)
    patches = patches.reshape(math.prod(shape), *patches.shape[-2:])
    product = functools.partial(jnp.matmul, precision=precision, preferred_element_type=dtype)
    if geometry.turned and groups == geometry.taps == 1:
        stored = windows.as_stored(w, geometry).reshape(out, -1)
        return windows.rows_product(patches[:, 0], stored, precision, dtype).reshape(*shape, out)
    rows = _rows(w, groups)
    if _joined(patches, out, JOINED):
        y = product(patches.reshape(patches.shape[0], -1), _diagonal(rows))
    elif groups <= APART:
        y = jnp.concatenate([product(patches[:, i], rows[i]) for i in range(groups)], axis=-1)
    else:
        y = jnp.einsum("ngc,gco->ngo", patches, rows, precision=precision, preferred_element_type=dtype)
    return y.reshape(*shape, out)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    groups, out, channels = geometry.groups, g.shape[-1], x.shape[-1]
    patches = _patches(x, geometry).reshape(-1, groups, geometry.taps * channels // groups)
    g = g.reshape(-1, groups, out // groups)

    if _joined(patches, out, JOINED_SUM):
        rows = patches.shape[0]
        small = 4 * geometry.taps * channels * out <= windows.SMALL_SUM  # else adding parts up costs more than it saves
        flops = 2 * patches.size * out if small and isinstance(rows, int) else None
        dw = _summed_in_parts(patches.reshape(rows, -1), g.reshape(rows, out), flops, precision, dtype)
        if groups > 1:  # their own blocks
            dw = dw.reshape(groups, geometry.taps * channels // groups, groups, out // groups)
            dw = jnp.moveaxis(jnp.diagonal(dw, axis1=0, axis2=2), -1, 1)
    elif groups <= APART:
        product = lambda i: _narrow_first(patches[:, i], g[:, i], precision, dtype)
        dw = jnp.concatenate([product(i) for i in range(groups)], axis=-1)
    else:
        dw = jnp.einsum("ngc,ngo->cgo", patches, g, precision=precision, preferred_element_type=dtype)
    return dw.reshape(*geometry.window, channels // groups, out)


def _summed_in_parts(x: jax.Array, g: jax.Array, flops: Any, precision: Any, dtype: Any) -> jax.Array:
    """x^T g as a sum over parts of the rows, since each sum is then the shorter: one batched product, read in place.

    A loop over the parts would copy each on one core, half the time of the whole on some machines. It remains where
    what is to be transposed first is large: it is then done in the caches.
    """
    rows, (channels, out) = x.shape[0], (x.shape[1], g.shape[1])
    most = rows * (channels + out) // (READ_FOR_WRITTEN * channels * out) if isinstance(flops, int) else 1
    parts = windows.parts_of(rows, flops, most=most)
    if parts == 1:
        return transposed_product(x, g, precision, dtype)
    narrow, wide = (g, x) if out < channels else (x, g)
    transposed = narrow.shape[1] >= TRANSPOSED
    if transposed and narrow.size * narrow.dtype.itemsize > MOST_TRANSPOSED:
        return windows.in_parts(lambda x, g: transposed_product(x, g, precision, dtype), x, g, flops)

    def run() -> jax.Array:
        first, second = (array.reshape(parts, rows // parts, array.shape[1]) for array in (narrow, wide))
        if transposed:
            first = lax.optimization_barrier(first.swapaxes(1, 2))
        summed = (2 if transposed else 1,), (1,)
        each = lax.dot_general(first, second, (summed, ((0,), (0,))), precision, preferred_element_type=dtype)
        dw = lax.optimization_barrier(each).sum(0)
        return dw if narrow is x else dw.T

    return windows.divided(run, (channels, out), dtype)  # the parts need not be of one device each


def transposed_product(x: jax.Array, g: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """x^T g, for x (rows, in) and g (rows, out).

    XLA:CPU packs the first operand anew for each few columns of the second, so the narrower one comes first: 1.5 ms for
    5.0 with 6272 rows of 512 and 24. A product over the first axis of both operands runs at half the rate of one of
    rows with columns, on some machines; so what comes first is written out transposed, where it has channels enough,
    behind a barrier, or XLA would fold it into the product again.
    """
    rows, channels = x.shape
    out = g.shape[1]
    if not isinstance(rows, int) or rows * channels < SMALL:
        return first_axes_product(x, g, precision, dtype)
    if out < channels and (out < TRANSPOSED or rows >= channels):
        return lax.optimization_barrier(_transposed_first(g, x, precision, dtype)).T
    return _transposed_first(x, g, precision, dtype)


def _transposed_first(x: jax.Array, g: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    rows, channels = x.shape
    if channels < TRANSPOSED or rows < channels:
        return first_axes_product(x, g, precision, dtype)
    columns = lax.optimization_barrier(x.T)
    return lax.dot_general(columns, g, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=dtype)


def _narrow_first(x: jax.Array, g: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """x^T g of the channels of one group, which are too few to be worth a transposed copy."""
    if g.shape[1] < x.shape[1]:
        return lax.optimization_barrier(first_axes_product(g, x, precision, dtype)).T
    return first_axes_product(x, g, precision, dtype)


def first_axes_product(x: jax.Array, g: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """x^T g as it stands: one product over the first axis of both."""
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=dtype)


def convolve_spread(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The convolution of x, dilated by its stride, with w: each element of x gives one patch of the result."""
    groups, out, rank = geometry.groups, w.shape[-1], geometry.rank
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(-1, groups, channels // groups)
    if geometry.turned and groups == 1:
        stored = windows.as_stored(w, geometry).reshape(geometry.taps * out, channels)
        y = windows.rows_product(x[:, 0], stored, precision, dtype)
    else:
        w = lax.rev(w, range(rank))  # tap t of the patch is tap window - 1 - t here
        w = w.reshape(geometry.taps, channels // groups, groups, out // groups)
        y = jnp.einsum("ngc,tcgo->ntgo", x, w, precision=precision, preferred_element_type=dtype)
    y = y.reshape(batch, *geometry.input, *geometry.window, out)
    order = [0, *(i for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1), strict=True) for i in pair)]
    y = y.transpose(*order, 2 * rank + 1)
    pads = []
    for axis in geometry.for_input_grad().axes:  # the axis of the patches: input and output changed back
        if axis.window == 1:
            gap = axis.stride - 1  # only each stride-th element was touched
            pads.append((0, axis.input - (axis.output - 1) * axis.stride - 1, gap))
        else:
            pads.append((0, axis.input - axis.output * axis.window, 0))
    y = y.reshape(batch, *(n * k for n, k in zip(geometry.input, geometry.window, strict=True)), out)
    if any(map(any, pads)):
        y = lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    return y
