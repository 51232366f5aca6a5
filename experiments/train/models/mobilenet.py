"""MobileNetV2 for 32x32 images: inverted residuals with depthwise 3x3 convolutions.

    block(x) = project(relu6(depthwise(relu6(expand(x)))))  (+ x where the shape stays)

every convolution followed by batch normalisation; expand and project are 1x1. The published table is for 224x224; for
small images the first three strides of 2 are 1, as is usual on CIFAR.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen 2018, MobileNetV2, table 2.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from experiments.train.models import layers

STEM = 32
STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
HEAD = 1280


def blocks() -> list[tuple[str, int, int, int]]:
    """(name, expansion, base channels, stride) of every block."""
    return [
        (f"stage{stage}_block{block}", expansion, base, strides if block == 0 else 1)
        for stage, (expansion, base, count, strides) in enumerate(STAGES)
        for block in range(count)
    ]


def init(
    key: jax.Array, image_shape: tuple[int, int, int], classes: int, *, width: float = 1.0
) -> tuple[layers.Tree, layers.Tree]:
    """Draws the parameters; the state is batch normalisation's."""
    keys = iter(jax.random.split(key, 3 * len(blocks()) + 3))

    def unit(window: int, inputs: int, outputs: int, groups: int = 1) -> layers.Tree:
        conv = layers.conv_init(next(keys), (window, window), inputs, outputs, groups=groups)
        return conv | {"norm": layers.norm_init(outputs)}

    inputs = layers.channels(STEM, width)
    params = {"stem": unit(3, image_shape[-1], inputs)}
    for name, expansion, base, _ in blocks():
        outputs, hidden = layers.channels(base, width), expansion * inputs
        block = {"expand": unit(1, inputs, hidden)} if expansion > 1 else {}
        block |= {"depthwise": unit(3, hidden, hidden, groups=hidden), "project": unit(1, hidden, outputs)}
        params[name] = block
        inputs = outputs
    head = layers.channels(HEAD, max(1.0, width))  # as published: the last layer is never made narrower
    params["head"] = unit(1, inputs, head)
    params["dense"] = layers.dense_init(next(keys), head, classes)
    return params, _state(params)


def _state(params: layers.Tree) -> layers.Tree:
    """Running statistics for every unit in params."""
    if "norm" in params:
        return layers.batch_norm_state(len(params["norm"]["bias"]))
    return {name: _state(each) for name, each in params.items() if name != "dense"}


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

    def unit(params: layers.Tree, state: layers.Tree, x: jax.Array, **options: int) -> tuple[jax.Array, layers.Tree]:
        y = layers.conv(params, x, padding=params["kernel"].shape[0] // 2, rows=rows, **options)
        return layers.batch_norm(params["norm"], state, y, train=train, axis_name=axis_name)

    new = {}
    with jax.named_scope("stem"):
        x, new["stem"] = unit(params["stem"], state["stem"], images.astype(dtype))
        x = jax.nn.relu6(x)
    for name, _, _, strides in blocks():
        p, s, n, y = params[name], state[name], {}, x
        with jax.named_scope(name):
            if "expand" in p:
                with jax.named_scope("expand"):
                    y, n["expand"] = unit(p["expand"], s["expand"], y)
                    y = jax.nn.relu6(y)
            with jax.named_scope("depthwise"):
                y, n["depthwise"] = unit(p["depthwise"], s["depthwise"], y, strides=strides, groups=y.shape[-1])
            with jax.named_scope("project"):
                y, n["project"] = unit(p["project"], s["project"], jax.nn.relu6(y))
            x = checkpoint_name(x + y if x.shape == y.shape else y, "block")
        new[name] = n
    with jax.named_scope("head"):
        x, new["head"] = unit(params["head"], state["head"], x)
        x = layers.mean(jax.nn.relu6(x), rows=rows)
    with jax.named_scope("dense"):
        logits = layers.dense(params["dense"], x)
    return logits.astype(jnp.float32), new if train else state
