"""Padding with values of the input: CIRCULAR repeats it, REFLECT mirrors it at its border elements, EDGE repeats these.

Each moves values and adds nothing, so it is linear, and its adjoint adds each padded element back to where it came
from.
"""

import functools

import jax
import jax.numpy as jnp

MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}


def pad(x: jax.Array, pads: tuple[tuple[int, int], ...], mode: str) -> jax.Array:
    """x (batch, *space, channels) with `pads` (low, high) values of its own around each spatial axis."""
    if not any(map(any, pads)) or x.size == 0:
        shape = (x.shape[0], *(n + lo + hi for n, (lo, hi) in zip(x.shape[1:-1], pads, strict=True)), x.shape[-1])
        return x.reshape(shape) if x.size else jnp.zeros(shape, x.dtype)
    wide = jnp.float32 if x.dtype in (jnp.float16, jnp.bfloat16) else x.dtype  # in which the adjoint adds
    return jnp.pad(x.astype(wide), ((0, 0), *pads, (0, 0)), mode=MODES[mode]).astype(x.dtype)


def add_back(u: jax.Array, pads: tuple[tuple[int, int], ...], mode: str) -> jax.Array:
    """The adjoint of pad: u of the padded shape, each padded element added to the element it repeats."""
    space = tuple(n - lo - hi for n, (lo, hi) in zip(u.shape[1:-1], pads, strict=True))
    like = jax.ShapeDtypeStruct((u.shape[0], *space, u.shape[-1]), u.dtype)
    if u.size == 0:
        return jnp.zeros(like.shape, like.dtype)
    (x,) = jax.linear_transpose(functools.partial(pad, pads=pads, mode=mode), like)(u)
    return x
