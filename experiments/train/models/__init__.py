"""The models of experiments.train: each a module of two plain functions over jconv, its parameters nested dictionaries.

    init(key, image_shape, classes, *, width) -> (params, state)
    apply(params, state, images, *, train, dtype, axis_name, rows) -> (logits, state)

image_shape is (height, width, channels), images (batch, *image_shape) normalised. `params` are trained, `state` is
not: the running means and variances of batch normalisation, and kernels that stay as they are. `width` multiplies
every number of channels. `dtype` is that of the computation; parameters, statistics and logits are float32. `train`
says whether batch normalisation takes its statistics from the batch; in training the state comes back updated, else
as it was. With `axis_name` the statistics are those of all the devices along that axis of shard_map. (Under jit with
a sharded batch they are the whole batch's without it.) With `rows` the images are a device's rows of images whose
height is divided along that axis of shard_map (spatial.py).

The end of a block is marked by checkpoint_name(x, "block"): with --remat only these are kept for the backward pass.
Every layer stands in a jax.named_scope of its name in `params`, by which a run says where a loss became NaN.
"""

import types

from experiments.train.models import airbench, convnext, lenet, mobilenet, resnet

MODELS: dict[str, types.ModuleType] = {
    "lenet": lenet,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "airbench": airbench,
}
