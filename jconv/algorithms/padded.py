"""A convolution whose kernel has more places than its input, a gradient whose g has, or of a long line: x padded first.

    X = x between its zeros;  y[p] = sum over t of X[p*s + t*d] w[t]        nothing is padded any more
XLA exchanges the operands of such a convolution (AlgebraicSimplifier::SwapConvOperands), and what it has then, with a
reversed kernel, XLA:CPU computes element by element: at 2 to 14 GFLOP/s, where the padded x gives 50 to 160 (64 images
of 2 x 2 x 512 under 3x3: 530 and 13 ms). Of a kernel gradient g is the kernel, longer than x wherever a layer has more
places out than in (16 x 1000 x 64, 3 taps 8 apart, padded by 16 on both sides as a causal layer's often is: 111 and
5 ms). And where a line's gradient has many taps, most of them see padding, at a third of the rate (149 x 48, 128 taps:
3.6 and 0.7 ms). Else lax pads as well, and the copy is a loss. Cost: that of the algorithm for the padded layer, and
the copy.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jconv.algorithms import windows
from jconv.geometry import Axis, Geometry

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry, product: str) -> bool:
    """Where there is padding, and the copy can gain: a line, or operands that XLA exchanges."""
    undilated = all(axis.input_dilation == 1 for axis in geometry.axes)
    pads = undilated and geometry.groups == 1 and any(axis.pads for axis in geometry.axes)
    return pads and (geometry.rank == 1 or exchanged(geometry, product))


def exchanged(geometry: Geometry, product: str) -> bool:
    """Whether XLA exchanges the operands of lax's convolution: the kernel, of a kernel gradient g, has more places.

    An axis that is summed over as a whole does not count, nor does one along which there is a single element.
    """
    taps = places = 1
    for axis in geometry.axes if product == "convolve" else [axis.for_kernel_grad() for axis in geometry.axes]:
        steps = axis.stride > 1 or axis.dilation > 1
        if axis.window == axis.input and not (axis.pads or steps):
            continue
        taps *= axis.window
        places *= axis.window if axis.input == 1 and not steps else axis.input
    return taps > places


def padded(geometry: Geometry) -> Geometry:
    """The geometry of the padded x."""

    def one(axis: Axis) -> Axis:
        return dataclasses.replace(axis, input=windows.padded_length(axis), low=0)

    return dataclasses.replace(geometry, axes=tuple(map(one, geometry.axes)))


def product(
    x: jax.Array, other: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    """`inner` computes it of the padded x, and of the kernel or g."""
    # XLA gives zeros around an operand back to the convolution, but not past this.
    x = lax.optimization_barrier(windows.pad(x, geometry))
    return inner(x, other, padded(geometry), precision, dtype)
