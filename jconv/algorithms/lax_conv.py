"""One jax.lax convolution, always in canonical layout (N...C, ...IO, N...C) with batch_group_count 1.

XLA's CPU compiler brings a convolution to its fast form only at the top level of a program; inside scan, while and cond
any other layout runs a naive loop, up to 40 times slower (jax-ml/jax#12868). So every convolution is emitted in the one
layout that is fast everywhere, with transposes around it. Cost: batch * output * taps * in // groups * out
multiply-adds.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jconv.geometry import Axis, Geometry

SPATIAL = "xyzuvwabcdefgh"


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    if x.size == 0 or w.size == 0 or 0 in geometry.output:
        return jnp.zeros((x.shape[0], *geometry.output, w.shape[-1]), dtype)
    safe = dataclasses.replace(
        geometry, axes=tuple(_one_more(axis) if _mistaken(axis) else axis for axis in geometry.axes)
    )
    if safe != geometry:
        y = convolve(x, w, safe, precision, dtype)
        return lax.slice(y, (0,) * y.ndim, (x.shape[0], *geometry.output, w.shape[-1]))
    space = SPATIAL[: geometry.rank]
    dims = lax.conv_dimension_numbers(x.shape, w.shape, (f"N{space}C", f"{space}IO", f"N{space}C"))
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=[axis.stride for axis in geometry.axes],
        padding=[(axis.low, _high(axis)) for axis in geometry.axes],
        lhs_dilation=[axis.input_dilation for axis in geometry.axes],
        rhs_dilation=[axis.dilation for axis in geometry.axes],
        dimension_numbers=dims,
        feature_group_count=geometry.groups,
        precision=precision,
        preferred_element_type=dtype,
    )


def takes(geometry: Geometry) -> bool:
    """Whether convolve takes elements that no window touches as they are: the last step would be too long for one more.

    To crop them is a copy: of 64 x 85 x 85 x 4 it takes as long as the convolution by steps of 4.
    """
    return all(axis.low >= 0 and _high(axis) >= 0 for axis in geometry.axes)


def _high(axis: Axis) -> int:
    """Padding on the right: none, where what is left is shorter than a step."""
    return 0 if 0 > axis.high > -axis.stride else axis.high


def _mistaken(axis: Axis) -> bool:
    """Whether XLA takes the axis for one of groups (AlgebraicSimplifier::SwapConvOperands) and aborts the process."""
    pads = axis.low or _high(axis) or axis.dilation > 1
    return not pads and axis.input_dilation > 1 and axis.window == axis.input_dilation == axis.stride + 1


def _one_more(axis: Axis) -> Axis:
    """The axis with one place more on the right, and so with padding there."""
    return dataclasses.replace(axis, output=axis.output + 1)


def kernel_grad(x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any) -> jax.Array:
    """The batch is summed over and takes the channels' place: x (in // groups, *input, groups * batch), g as kernel."""
    groups, batch, channels = geometry.groups, x.shape[0], x.shape[-1]
    if x.size == 0 or g.size == 0:
        return jnp.zeros((*geometry.window, channels // groups, g.shape[-1]), dtype)
    lhs = x.reshape(*x.shape[:-1], groups, channels // groups)
    lhs = jnp.moveaxis(lhs, (-1, 0), (0, -1)).reshape(channels // groups, *geometry.input, groups * batch)
    rhs = jnp.moveaxis(g, 0, -2)  # (*output, batch, out)
    dw = convolve(lhs, rhs, geometry.for_kernel_grad(), precision, dtype)  # (in // groups, *window, out)
    return jnp.moveaxis(dw, 0, -2)
