"""Groups one after the other, each a dense convolution small enough to stay in cache.

    y[.., group] = conv(x[.., group], w[.., group])      and the same for the kernel gradient
lax runs a grouped convolution as one naive loop, and its derivative as an even slower one. Here channels are brought
together by group first (one copy of x and of the result), and a few images of one group at a time go through the best
algorithm for a dense convolution. Cost: the convolution's multiply-adds and two copies.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Geometry

CHUNK_BYTES = 4 << 20  # input and result of the images of one group taken at once
ROWS = 8  # parts that the rows of a kernel gradient are added up in, if there are PART places in each:
PART = 256  # of a long window the parts' sums are larger than their operands
VECTOR = 16  # channels up to which groups are joined: block-diagonal kernels, whose zeros cost less than short rows

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    return geometry.groups > 1


def _joined(geometry: Geometry, channels: int, out: int) -> int:
    """How many groups to compute as one, a divisor of them: enough to fill a vector."""
    groups = geometry.groups
    widest = max(channels, out) // groups
    return max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * widest <= VECTOR))


def _dense(geometry: Geometry) -> Geometry:
    return dataclasses.replace(geometry, groups=1)


def _by_group(x: jax.Array, groups: int, images: int) -> jax.Array:
    """x (batch, *space, channels) as (groups, batch / images, images, *space, channels of a group)."""
    x = x.reshape(x.shape[0] // images, images, *x.shape[1:-1], groups, x.shape[-1] // groups)
    return jnp.moveaxis(x, -2, 0)


def _kernels(w: jax.Array, groups: int, joined: int) -> jax.Array:
    """w as (groups / joined, *window, joined * in, joined * out): zero between groups that are computed as one."""
    *window, c, o = w.shape
    w = jnp.moveaxis(w.reshape(*window, c, groups // joined, joined, o // groups), -3, 0)
    if joined == 1:
        return w[..., 0, :]
    same = jnp.eye(joined, dtype=bool)[:, None, :, None]
    blocks = jnp.where(same, w[..., None, :, :, :], jnp.zeros((), w.dtype))  # (.., joined, c, joined, o)
    return blocks.reshape(groups // joined, *window, joined * c, joined * (o // groups))


def _own(dw: jax.Array, joined: int) -> jax.Array:
    """The kernel gradients of the groups out of those of the joined ones: (groups / joined, .., c, joined, o)."""
    *lead, c, o = dw.shape
    dw = dw.reshape(*lead, joined, c // joined, joined, o // joined)
    return jnp.moveaxis(jnp.diagonal(dw, axis1=-4, axis2=-2), -1, -2)


def _images(x: jax.Array, geometry: Geometry, out: int, groups: int) -> int:
    """How many images of one of `groups` groups to take at once, a divisor of the batch.

    What patches the dense convolution takes of them, if any, it takes from cache itself.
    """
    elements = math.prod(geometry.input) * (x.shape[-1] // groups) + math.prod(geometry.output) * (out // groups)
    return windows.images_at_once(x.shape[0], elements * x.dtype.itemsize, CHUNK_BYTES) or x.shape[0]


def _map(group: Callable[[Any], jax.Array], operands: tuple[jax.Array, jax.Array], groups: int) -> jax.Array:
    """`group` of each group's operands, several at once: each is too small for more than one core."""
    at_once = next(n for n in (4, 3, 2, 1) if groups % n == 0)
    several = lambda part: jnp.stack([group((part[0][i], part[1][i])) for i in range(at_once)])
    if groups == at_once:
        return several(operands)
    split = lambda array: array.reshape(groups // at_once, at_once, *array.shape[1:])
    y = lax.map(several, jax.tree.map(split, operands))
    return y.reshape(groups, *y.shape[2:])


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product) -> jax.Array:
    batch, out = x.shape[0], w.shape[-1]
    joined = _joined(geometry, x.shape[-1], out)
    groups = geometry.groups // joined
    images = _images(x, geometry, out, groups)

    def group(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, kernel = pair
        run = lambda x: inner(x, kernel, _dense(geometry), precision, dtype)
        return run(x[0])[None] if images == batch else lax.map(run, x)

    y = _map(group, (_by_group(x, groups, images), _kernels(w, geometry.groups, joined)), groups)
    return jnp.moveaxis(y, 0, -2).reshape(batch, *geometry.output, out)  # from (groups, parts, images, .., out)


def _by_rows(x: jax.Array, g: jax.Array, geometry: Geometry, run: Callable[..., jax.Array]) -> jax.Array:
    """run(x, g, geometry) as a sum over parts of the rows: a sum of some thousand terms loses less in pieces.

    lax adds the terms of a dense kernel gradient one after the other; those of a grouped one it adds more exactly.
    """
    axis = geometry.axes[0]
    count = min(ROWS, math.prod(geometry.output) // PART) if axis.output >= 4 * ROWS else 1
    if count < 2:
        return run(x, g, geometry)
    parts = next((n for n in range(count, count // 2, -1) if axis.output % n == 0), count)
    rows = -(-axis.output // parts)
    missing = parts * rows - axis.output  # rows beyond the last, whose g is 0
    here = dataclasses.replace(axis, input=(rows - 1) * axis.stride + axis.reach, output=rows, low=0)
    part = dataclasses.replace(geometry, axes=(here, *geometry.axes[1:]))
    x = windows.pad_axis(x, 1, axis.low, axis.high + missing * axis.stride)
    g = windows.pad_axis(g, 1, 0, missing)

    def add(index: Any, total: jax.Array) -> jax.Array:
        seen = windows.take_along(x, index * rows * axis.stride, here.input, axis=1)
        return total + run(seen, windows.take_along(g, index * rows, rows, axis=1), part)

    shape = jax.eval_shape(lambda x, g: run(x[:, : here.input], g[:, :rows], part), x, g)
    return lax.fori_loop(0, parts, add, jnp.zeros(shape.shape, shape.dtype))


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    batch, channels, out = x.shape[0], x.shape[-1], g.shape[-1]
    joined = _joined(geometry, channels, out)
    groups = geometry.groups // joined
    images = _images(x, geometry, out, groups)

    def group(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        run = lambda x, g: _by_rows(x, g, _dense(geometry), lambda x, g, part: inner(x, g, part, precision, dtype))
        if images == batch:
            return run(pair[0][0], pair[1][0])
        add = lambda total, part: (total + run(*part), None)
        return lax.scan(add, jnp.zeros((*geometry.window, channels // groups, out // groups), dtype), pair)[0]

    dw = _map(group, (_by_group(x, groups, images), _by_group(g, groups, images)), groups)
    dw = jnp.moveaxis(_own(dw, joined), 0, -3)  # (*window, in, groups / joined, joined, out)
    return dw.reshape(*geometry.window, channels // geometry.groups, out)
