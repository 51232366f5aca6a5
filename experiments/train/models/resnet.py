"""ResNet-20 for small images: a 3x3 convolution, three stages of three blocks at 16, 32 and 64 channels, mean, dense.

    block(x) = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

The second and third stage halve the image; the shortcut there takes every other place and adds channels of zeros (the
paper's option A, without parameters).

Source: He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, section 4.2.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from experiments.train.models import layers

CHANNELS = (16, 32, 64)
BLOCKS = 3  # a stage: 6 * 3 + 2 = 20 layers


def init(
    key: jax.Array, image_shape: tuple[int, int, int], classes: int, *, width: float = 1.0
) -> tuple[layers.Tree, layers.Tree]:
    """Draws the parameters; the state is batch normalisation's."""
    keys = iter(jax.random.split(key, 2 * len(CHANNELS) * BLOCKS + 2))
    inputs = layers.channels(CHANNELS[0], width)
    params = {"stem": layers.conv_init(next(keys), (3, 3), image_shape[-1], inputs), "norm": layers.norm_init(inputs)}
    state = {"norm": layers.batch_norm_state(inputs)}
    for stage, base in enumerate(CHANNELS):
        outputs = layers.channels(base, width)
        for block in range(BLOCKS):
            params[f"stage{stage}_block{block}"] = {
                "conv0": layers.conv_init(next(keys), (3, 3), inputs, outputs),
                "norm0": layers.norm_init(outputs),
                "conv1": layers.conv_init(next(keys), (3, 3), outputs, outputs),
                "norm1": layers.norm_init(outputs),
            }
            state[f"stage{stage}_block{block}"] = {
                "norm0": layers.batch_norm_state(outputs),
                "norm1": layers.batch_norm_state(outputs),
            }
            inputs = outputs
    params["dense"] = layers.dense_init(next(keys), inputs, classes)
    return params, state


def apply(
    params: layers.Tree,
    state: layers.Tree,
    images: jax.Array,
    *,
    train: bool,
    dtype: jnp.dtype | type = jnp.float32,
    axis_name: str | tuple[str, ...] | None = None,
    rows: str | None = None,
) -> tuple[jax.Array, layers.Tree]:
    """Logits of images, and the state after them."""
    new = {}
    norm = lambda name, params, state, x: layers.batch_norm(
        params[name], state[name], x, train=train, axis_name=axis_name
    )
    with jax.named_scope("stem"):
        x, new["norm"] = norm("norm", params, state, layers.conv(params["stem"], images.astype(dtype), rows=rows))
        x = checkpoint_name(jax.nn.relu(x), "block")
    for stage in range(len(CHANNELS)):
        for block in range(BLOCKS):
            name = f"stage{stage}_block{block}"
            p, s, n = params[name], state[name], {}
            strides = 2 if stage > 0 and block == 0 else 1
            with jax.named_scope(name):
                with jax.named_scope("conv0"):
                    y, n["norm0"] = norm(
                        "norm0", p, s, layers.conv(p["conv0"], x, strides=strides, padding=1, rows=rows)
                    )
                with jax.named_scope("conv1"):
                    y, n["norm1"] = norm("norm1", p, s, layers.conv(p["conv1"], jax.nn.relu(y), rows=rows))
                x = checkpoint_name(jax.nn.relu(y + shortcut(x, strides, y.shape[-1])), "block")
            new[name] = n
    with jax.named_scope("dense"):
        logits = layers.dense(params["dense"], layers.mean(x, rows=rows))
    return logits.astype(jnp.float32), new if train else state


def shortcut(x: jax.Array, strides: int, outputs: int) -> jax.Array:
    """Every strides-th place of x, with channels of zeros behind its own."""
    return jnp.pad(x[:, ::strides, ::strides], [(0, 0)] * 3 + [(0, outputs - x.shape[-1])])
