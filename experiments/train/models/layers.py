"""What the models are made of: convolution, dense layer, and the two normalisations, each with its initialisation.

    batch_norm:  y = (x - mean) / sqrt(var + eps) * scale + bias,  mean and var over batch and space of each channel
    layer_norm:  the same, mean and var over the channels of each place

A layer's parameters are a dictionary of arrays. What is computed in another dtype than float32 is the product of the
convolution or dense layer; normalisation takes its statistics in float32.

Where `rows` is given, x are a device's rows of images whose height is divided along that axis of shard_map, and a
layer gives the device its rows of what it would give for whole images (halo.py).

Sources: Ioffe, Szegedy 2015, Batch Normalization; Ba, Kiros, Hinton 2016, Layer Normalization; He et al. 2015, Delving
Deep into Rectifiers (the initialisation).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jconv
from experiments.train import halo

Tree = dict[str, Any]
EPSILON = 1e-5


def channels(base: int, width: float, multiple: int = 8) -> int:
    """`base` channels by the width multiplier, to the nearest multiple, never none."""
    return max(multiple, int(base * width / multiple + 0.5) * multiple)


def conv_init(
    key: jax.Array, window: tuple[int, int], inputs: int, outputs: int, *, groups: int = 1, bias: bool = False
) -> Tree:
    """A He-normal kernel (*window, inputs // groups, outputs); a zero bias where one is wanted."""
    kernel = jax.nn.initializers.he_normal()(key, (*window, inputs // groups, outputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)} if bias else {"kernel": kernel}


def conv(
    params: Tree, x: jax.Array, *, strides: int = 1, padding: Any = "SAME", groups: int = 1, rows: str | None = None
) -> jax.Array:
    """jconv's convolution in x's dtype."""
    bias = params["bias"].astype(x.dtype) if "bias" in params else None
    kernel = params["kernel"].astype(x.dtype)
    if rows is None:
        return jconv.conv(x, kernel, bias, strides=strides, padding=padding, feature_group_count=groups)
    options = {"strides": strides, "padding": padding, "feature_group_count": groups}
    return halo.conv2d(x, kernel, bias, axis_name=rows, **options)


def max_pool(x: jax.Array, window: int, strides: int, *, rows: str | None = None) -> jax.Array:
    """jconv's max pooling, without padding."""
    if rows is None:
        return jconv.max_pool(x, window, strides)
    return halo.max_pool2d(x, window, strides, axis_name=rows)


def mean(x: jax.Array, *, rows: str | None = None) -> jax.Array:
    """The mean over space."""
    return x.mean((1, 2)) if rows is None else lax.pmean(x.mean((1, 2)), rows)


def flat(x: jax.Array, *, rows: str | None = None) -> jax.Array:
    """Space and channels as one axis; of a device's rows those of the whole image, brought together on each device."""
    if rows is not None:
        shape = (x.shape[0], x.shape[1] * lax.axis_size(rows), *x.shape[2:])
        place = (0, lax.axis_index(rows) * x.shape[1], 0, 0)
        x = lax.psum(lax.dynamic_update_slice(jnp.zeros(shape, x.dtype), x, place), rows)
    return x.reshape(x.shape[0], -1)


def dense_init(key: jax.Array, inputs: int, outputs: int) -> Tree:
    """A He-normal kernel (inputs, outputs) and a zero bias."""
    return {"kernel": jax.nn.initializers.he_normal()(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


def dense(params: Tree, x: jax.Array) -> jax.Array:
    """X @ kernel + bias in x's dtype."""
    return x @ params["kernel"].astype(x.dtype) + params["bias"].astype(x.dtype)


def norm_init(size: int, *, scale: bool = True) -> Tree:
    """Scale one (or none: then it is fixed) and bias zero."""
    return {"scale": jnp.ones(size), "bias": jnp.zeros(size)} if scale else {"bias": jnp.zeros(size)}


def batch_norm_state(size: int) -> Tree:
    """Running statistics before any batch."""
    return {"mean": jnp.zeros(size), "var": jnp.ones(size)}


def batch_norm(
    params: Tree,
    state: Tree,
    x: jax.Array,
    *,
    train: bool,
    axis_name: str | tuple[str, ...] | None,
    momentum: float = 0.9,
) -> tuple[jax.Array, Tree]:
    """Normalised x, and the running statistics: momentum * old + (1 - momentum) * the batch's, var with n - 1."""
    if train:
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        # E[x^2] - E[x]^2: both sums in one pass over x, and added up over devices at once.
        mean, square = jnp.mean(wide, axes), jnp.mean(jnp.square(wide), axes)
        count = x.size // x.shape[-1]
        if axis_name is not None:
            mean, square = lax.pmean((mean, square), axis_name)
            count *= lax.axis_size(axis_name)
        var = jnp.maximum(square - jnp.square(mean), 0.0)
        unbiased = var * (count / max(1, count - 1))
        state = {
            "mean": momentum * state["mean"] + (1 - momentum) * mean,
            "var": momentum * state["var"] + (1 - momentum) * unbiased,
        }
    else:
        mean, var = state["mean"], state["var"]
    factor = lax.rsqrt(var + EPSILON) * params.get("scale", 1.0)
    shift = params["bias"] - mean * factor
    return x * factor.astype(x.dtype) + shift.astype(x.dtype), state


def layer_norm(params: Tree, x: jax.Array) -> jax.Array:
    """Each place normalised over its channels."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, -1, keepdims=True)
    var = jnp.var(wide, -1, keepdims=True)
    return ((wide - mean) * lax.rsqrt(var + EPSILON) * params["scale"] + params["bias"]).astype(x.dtype)
