"""A small ConvNeXt: a 2x2 patch stem, three stages of blocks with depthwise 7x7 convolutions, mean, norm, dense.

    block(x) = x + scale * (gelu(norm(depthwise(x)) @ expand) @ contract)

norm is over the channels, expand goes to four times as many. Between stages: norm, then a 2x2 convolution with stride
2. The published stem is 4x4 with stride 4, for 224x224; a 32x32 image is halved three times, not five.

Source: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, A ConvNet for the 2020s.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from experiments.train.models import layers

CHANNELS = (48, 96, 192)
BLOCKS = (2, 2, 4)
LAYER_SCALE = 1e-6  # of each residual branch at first


def init(
    key: jax.Array, image_shape: tuple[int, int, int], classes: int, *, width: float = 1.0
) -> tuple[layers.Tree, layers.Tree]:
    """Draws the parameters; there is no state."""
    keys = iter(jax.random.split(key, 3 * sum(BLOCKS) + len(CHANNELS) + 1))
    params, inputs = {}, image_shape[-1]
    for stage, (base, count) in enumerate(zip(CHANNELS, BLOCKS)):
        outputs = layers.channels(base, width)
        down = {"conv": layers.conv_init(next(keys), (2, 2), inputs, outputs, bias=True)}
        down["norm"] = layers.norm_init(outputs if stage == 0 else inputs)  # the stem's stands behind it
        params[f"down{stage}"] = down
        for block in range(count):
            params[f"stage{stage}_block{block}"] = {
                "depthwise": layers.conv_init(next(keys), (7, 7), outputs, outputs, groups=outputs, bias=True),
                "norm": layers.norm_init(outputs),
                "expand": layers.dense_init(next(keys), outputs, 4 * outputs),
                "contract": layers.dense_init(next(keys), 4 * outputs, outputs),
                "scale": jnp.full(outputs, LAYER_SCALE),
            }
        inputs = outputs
    params["norm"] = layers.norm_init(inputs)
    params["dense"] = layers.dense_init(next(keys), inputs, classes)
    return params, {}


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
    """Logits of images; the model is the same in training."""
    del train, axis_name  # no layer differs
    x = images.astype(dtype)
    for stage, count in enumerate(BLOCKS):
        down = params[f"down{stage}"]
        with jax.named_scope(f"down{stage}"):
            if stage == 0:
                x = layers.layer_norm(down["norm"], layers.conv(down["conv"], x, strides=2, rows=rows))
            else:
                x = layers.conv(down["conv"], layers.layer_norm(down["norm"], x), strides=2, rows=rows)
            x = checkpoint_name(x, "block")
        for block in range(count):
            name = f"stage{stage}_block{block}"
            p = params[name]
            with jax.named_scope(name):
                with jax.named_scope("depthwise"):
                    y = layers.layer_norm(p["norm"], layers.conv(p["depthwise"], x, groups=x.shape[-1], rows=rows))
                with jax.named_scope("expand"):
                    y = jax.nn.gelu(layers.dense(p["expand"], y))
                with jax.named_scope("contract"):
                    y = layers.dense(p["contract"], y) * p["scale"].astype(dtype)
                x = checkpoint_name(x + y, "block")
    with jax.named_scope("dense"):
        logits = layers.dense(params["dense"], layers.layer_norm(params["norm"], layers.mean(x, rows=rows)))
    return logits.astype(jnp.float32), state
