"""LeNet-5 with ReLU and max pooling: [5x5 convolution, bias, ReLU, 2x2 max pool] twice, then three dense layers.

Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition. The convolutions
are padded, so that small images fit too.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from experiments.train.models import layers

CHANNELS = (6, 16)
HIDDEN = (120, 84)


def init(
    key: jax.Array, image_shape: tuple[int, int, int], classes: int, *, width: float = 1.0
) -> tuple[layers.Tree, layers.Tree]:
    """Draws the parameters; there is no state."""
    height, breadth, inputs = image_shape
    if min(height, breadth) < 4:
        raise ValueError(f"lenet: images of {height}x{breadth} are too small, it needs 4x4 or more")
    keys = iter(jax.random.split(key, len(CHANNELS) + len(HIDDEN) + 1))
    params = {}
    for number, base in enumerate(CHANNELS):
        outputs = layers.channels(base, width, 2)
        params[f"conv{number}"] = layers.conv_init(next(keys), (5, 5), inputs, outputs, bias=True)
        inputs, height, breadth = outputs, height // 2, breadth // 2
    size = height * breadth * inputs
    for number, outputs in enumerate((*(layers.channels(base, width, 4) for base in HIDDEN), classes)):
        params[f"dense{number}"] = layers.dense_init(next(keys), size, outputs)
        size = outputs
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
    for number in range(len(CHANNELS)):
        with jax.named_scope(f"conv{number}"):
            x = layers.max_pool(jax.nn.relu(layers.conv(params[f"conv{number}"], x, rows=rows)), 2, 2, rows=rows)
            x = checkpoint_name(x, "block")
    x = layers.flat(x, rows=rows)
    for number in range(len(HIDDEN) + 1):
        with jax.named_scope(f"dense{number}"):
            x = layers.dense(params[f"dense{number}"], x if number == 0 else jax.nn.relu(x))
    return x.astype(jnp.float32), state
