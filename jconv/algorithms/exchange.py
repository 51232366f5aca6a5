"""A kernel gradient with x and g exchanged, for a layer of few output channels.

    dw[t] = sum over p of x[p + t*d - low] g[p] = sum over a of g[a + low - t*d] x[a]        (stride 1)
so x and g change places: the kernel gradient of the input gradient's geometry, turned by 180 degrees. What an algorithm
copies once a tap is its first operand, so the one with fewer channels should stand there. Cost: that of the algorithm.
"""

from collections.abc import Callable
from typing import Any

import jax

from jconv.algorithms import windows
from jconv.geometry import Geometry

Product = Callable[[jax.Array, jax.Array, Geometry, Any, Any], jax.Array]


def applies(geometry: Geometry) -> bool:
    plain = all(axis.stride == 1 and axis.input_dilation == 1 for axis in geometry.axes)
    return geometry.groups == 1 and plain


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: Any, dtype: Any, inner: Product
) -> jax.Array:
    """`inner` computes the exchanged product."""
    return windows.turned(inner(g, x, geometry.for_input_grad(), precision, dtype), 1)
