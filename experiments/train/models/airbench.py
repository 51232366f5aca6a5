"""The network of airbench94, made to train fast on CIFAR-10.

    whiten 2x2, GELU, 3 times [3x3 convolution, 2x2 max pool, norm, GELU, 3x3 convolution, norm, GELU], max, dense / 9

The first layer's kernel is not trained: its outputs are the patches of the training images along the eigenvectors of
their covariance, each divided by the root of its eigenvalue, and the same with the other sign. Every further
convolution begins as the identity on its first inputs' channels (a Dirac kernel), the other outputs as drawn. Batch
normalisation has a bias, of large learning rate (--bias-rate), and no scale.

Source: Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv:2404.00498).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jconv
from experiments.train.models import layers

CHANNELS = (64, 256, 256)
WINDOW = 2  # of the whitening layer
WHITENING_EPSILON = 5e-4  # added to the eigenvalues
WHITENED_IMAGES = 5000  # that the covariance is taken of
MOMENTUM = 0.6  # of batch normalisation
HEAD_SCALE = 1 / 9


def init(
    key: jax.Array, image_shape: tuple[int, int, int], classes: int, *, width: float = 1.0
) -> tuple[layers.Tree, layers.Tree]:
    """Draws the parameters. The whitening kernel, in the state, is that of independent pixels until `prepare`."""
    if min(image_shape[:2]) < 9:
        raise ValueError(f"airbench: images of {image_shape[0]}x{image_shape[1]} are too small, it needs 9x9 or more")
    patch = WINDOW * WINDOW * image_shape[-1]
    inputs = 2 * patch
    keys = iter(jax.random.split(key, 2 * len(CHANNELS) + 1))
    params: layers.Tree = {"whiten": {"bias": jnp.zeros(inputs)}}
    state: layers.Tree = {"whiten": {"kernel": _both_signs(jnp.eye(patch), image_shape[-1])}}
    for stage, base in enumerate(CHANNELS):
        outputs = layers.channels(base, width)
        params[f"stage{stage}"] = {
            "conv0": {"kernel": dirac(next(keys), inputs, outputs)},
            "norm0": layers.norm_init(outputs, scale=False),
            "conv1": {"kernel": dirac(next(keys), outputs, outputs)},
            "norm1": layers.norm_init(outputs, scale=False),
        }
        state[f"stage{stage}"] = {name: layers.batch_norm_state(outputs) for name in ("norm0", "norm1")}
        inputs = outputs
    height, breadth = (((size - WINDOW + 1) // 8) for size in image_shape[:2])
    size = inputs * max(1, height // 3) * max(1, breadth // 3)
    bound = size**-0.5
    params["dense"] = {"kernel": jax.random.uniform(next(keys), (size, classes), minval=-bound, maxval=bound)}
    return params, state


def dirac(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """A 3x3 kernel whose first outputs are the inputs, and whose others are uniform within 1 / sqrt(fan in)."""
    bound = (9 * inputs) ** -0.5
    kernel = jax.random.uniform(key, (3, 3, inputs, outputs), minval=-bound, maxval=bound)
    same = min(inputs, outputs)
    return kernel.at[..., :same].set(0.0).at[1, 1, jnp.arange(same), jnp.arange(same)].set(1.0)


def prepare(state: layers.Tree, images: np.ndarray) -> layers.Tree:
    """The state with the whitening kernel of normalised training images (n, height, width, channels)."""
    inputs = images.shape[-1]
    patches = np.lib.stride_tricks.sliding_window_view(images[:WHITENED_IMAGES], (WINDOW, WINDOW), axis=(1, 2))
    patches = np.moveaxis(patches, 3, -1).reshape(-1, WINDOW * WINDOW * inputs).astype(np.float64)
    covariance = patches.T @ patches / len(patches)
    values, vectors = np.linalg.eigh(covariance)
    kernel = vectors / np.sqrt(values + WHITENING_EPSILON)  # a column an output
    return state | {"whiten": {"kernel": _both_signs(jnp.asarray(kernel, jnp.float32), inputs)}}


def _both_signs(kernel: jax.Array, inputs: int) -> jax.Array:
    return jnp.concatenate([kernel, -kernel], axis=-1).reshape(WINDOW, WINDOW, inputs, -1)


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
    if rows is not None:
        raise ValueError("airbench: its first convolution has no padding, so devices cannot share its rows evenly")

    def norm(params: layers.Tree, state: layers.Tree, x: jax.Array) -> tuple[jax.Array, layers.Tree]:
        return layers.batch_norm(params, state, x, train=train, axis_name=axis_name, momentum=MOMENTUM)

    new = {"whiten": state["whiten"]}
    with jax.named_scope("whiten"):
        whiten = state["whiten"] | params["whiten"]
        x = checkpoint_name(jax.nn.gelu(layers.conv(whiten, images.astype(dtype), padding="VALID")), "block")
    for stage in range(len(CHANNELS)):
        name = f"stage{stage}"
        p, s, n = params[name], state[name], {}
        with jax.named_scope(name):
            with jax.named_scope("conv0"):
                x, n["norm0"] = norm(p["norm0"], s["norm0"], jconv.max_pool(layers.conv(p["conv0"], x), 2, 2))
                x = jax.nn.gelu(x)
            with jax.named_scope("conv1"):
                x, n["norm1"] = norm(p["norm1"], s["norm1"], layers.conv(p["conv1"], x))
                x = checkpoint_name(jax.nn.gelu(x), "block")
        new[name] = n
    with jax.named_scope("dense"):
        window = tuple(min(3, size) for size in x.shape[1:3])
        x = jconv.max_pool(x, window, window).reshape(x.shape[0], -1)
        logits = x @ params["dense"]["kernel"].astype(dtype) * HEAD_SCALE
    return logits.astype(jnp.float32), new if train else state
