"""The networks: their sizes, real and tiny, their inputs, and the libraries that they are written in.

The widths are those of the papers, the images are small, so that a step of stock JAX takes seconds at most.
    lenet        LeCun, Bottou, Bengio, Haffner 1998, LeNet-5; with ReLU and max pooling
    resnet20     He, Zhang, Ren, Sun 2016, section 4.2, projections where the shape changes
    mobilenetv2  Sandler, Howard, Zhu, Zhmoginov, Chen 2018
    convnext     Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022, ConvNeXt-T; no stochastic depth
    resnext50    Xie, Girshick, Dollar, Tu, He 2017, 32x4d
    unet         Ronneberger, Fischer, Brox 2015; padded, so that it needs no crops
    wavenet      van den Oord and others 2016; 8-bit audio, dilations 1 to 512, twice
    resnet3d     Hara, Kataoka, Satoh 2018, 3D ResNet-18
and, in the library "jconv", the five of experiments.train.models with their names there behind "cifar-".
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LIBRARIES = ("linen", "nnx", "equinox", "haiku")
OURS = "jconv"  # the networks of experiments.train, which are written over jconv: stock is what automatic makes of them


@dataclasses.dataclass(frozen=True)
class Net:
    """One network: the shape of its input, without the channels of audio, which is drawn as integers; its sizes."""

    name: str
    shape: tuple[int, ...]  # (batch, *space, channels)
    classes: int
    sizes: dict[str, Any]  # what its class takes in every library
    a_label: tuple[int, ...] = ()  # the shape of an example's labels
    libraries: tuple[str, ...] = ("linen",)

    def draw(self) -> tuple[jax.Array, jax.Array]:
        """A batch: images from a normal distribution, or audio, and labels."""
        rng = np.random.default_rng(0)
        labels = rng.integers(self.classes, size=(self.shape[0], *self.a_label))
        if len(self.shape) == 2:
            return jnp.asarray(rng.integers(self.classes, size=self.shape), "int32"), jnp.asarray(labels, "int32")
        return jnp.asarray(rng.normal(size=self.shape), "float32"), jnp.asarray(labels, "int32")


MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
TRAINED = {"lenet": 64, "resnet": 32, "mobilenet": 16, "convnext": 32, "airbench": 64}  # and their batches here
NETS = {
    net.name: net
    for net in (
        Net("lenet", (64, 32, 32, 1), 10, {"features": (6, 16), "dense": (120, 84)}, (), LIBRARIES),
        Net("resnet20", (32, 32, 32, 3), 10, {"widths": (16, 32, 64), "blocks": 3}, (), LIBRARIES),
        Net("mobilenetv2", (8, 64, 64, 3), 1000, {"stem": 32, "stages": MOBILENET, "head": 1280}),
        Net("convnext", (4, 64, 64, 3), 1000, {"widths": (96, 192, 384, 768), "blocks": (3, 3, 9, 3)}),
        Net("resnext50", (2, 64, 64, 3), 1000, {"width": 64, "blocks": (3, 4, 6, 3), "groups": 32}),
        Net("unet", (1, 64, 64, 3), 2, {"widths": (64, 128, 256, 512, 1024)}, (64, 64)),
        Net("wavenet", (2, 2048), 256, {"residual": 32, "skip": 256, "dilations": 10, "cycles": 2}, (2048,)),
        Net("resnet3d", (1, 16, 64, 64, 3), 400, {"widths": (64, 128, 256, 512), "blocks": 2}),
        *(
            Net(f"cifar-{model}", (batch, 32, 32, 3), 10, {"model": model, "width": 1.0}, (), (OURS,))
            for model, batch in TRAINED.items()
        ),
    )
}

# The same networks, few channels on few pixels: for the tests.
TINY_MOBILENET = ((1, 4, 1, 1), (6, 6, 2, 2), (6, 8, 1, 2))
TINY = {
    net.name: net
    for net in (
        Net("lenet", (2, 16, 16, 1), 10, {"features": (3, 4), "dense": (8, 6)}, (), LIBRARIES),
        Net("resnet20", (4, 8, 8, 3), 5, {"widths": (4, 6), "blocks": 2}, (), LIBRARIES),
        Net("mobilenetv2", (4, 16, 16, 3), 5, {"stem": 6, "stages": TINY_MOBILENET, "head": 8}),
        Net("convnext", (2, 16, 16, 3), 5, {"widths": (4, 6), "blocks": (1, 2)}),
        Net("resnext50", (4, 16, 16, 3), 5, {"width": 8, "blocks": (1, 2), "groups": 4}),
        Net("unet", (1, 8, 8, 3), 2, {"widths": (4, 6, 8)}, (8, 8)),
        Net("wavenet", (2, 24), 8, {"residual": 4, "skip": 6, "dilations": 3, "cycles": 2}, (24,)),
        Net("resnet3d", (2, 8, 16, 16, 3), 5, {"widths": (4, 6), "blocks": 1}),
        *(
            Net(f"cifar-{model}", (2, 16, 16, 3), 5, {"model": model, "width": 0.1}, (), (OURS,))
            for model in ("lenet", "convnext", "airbench")
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A network in one library of JAX, initialised: loss(params, state, x, labels) -> (loss, state)."""

    params: Any
    state: Any  # BatchNorm's running averages
    loss: Any

    @property
    def size(self) -> int:
        """How many parameters are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over all labels, one an example, a pixel or a moment."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -picked.mean()


def program(net: Net, library: str) -> Program:
    """The network in this library."""
    return importlib.import_module(f"experiments.models.in_{library}").program(net)


def rows(nets: dict[str, Net] | None = None) -> list[tuple[str, str]]:
    """(network, library) of every model."""
    return [(net.name, library) for net in (NETS if nets is None else nets).values() for library in net.libraries]
