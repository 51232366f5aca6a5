"""LeNet and the CIFAR ResNet in flax.nnx."""

import functools
import itertools

import jax
from flax import nnx

from experiments.models.nets import Net, Program, cross_entropy


class LeNet(nnx.Module):
    """Two convolutions, each with a max pool, then dense layers."""

    def __init__(self, shape, classes, features, dense, *, rngs: nnx.Rngs):
        side, inputs = shape[1], shape[-1]
        convs = []
        for width in features:
            convs.append(nnx.Conv(inputs, width, (5, 5), padding="VALID", rngs=rngs))
            side, inputs = (side - 4) // 2, width
        self.convs = nnx.List(convs)
        sizes = itertools.pairwise((side * side * inputs, *dense, classes))
        self.denses = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in sizes])

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for dense in self.denses[:-1]:
            x = nnx.relu(dense(x))
        return self.denses[-1](x)


class ConvNorm(nnx.Module):
    """A convolution and its BatchNorm."""

    def __init__(self, inputs, features, size, strides=1, *, rngs: nnx.Rngs):
        padding = size // 2
        self.conv = nnx.Conv(inputs, features, (size, size), strides, padding=padding, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs, features, strides, *, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, features, 3, strides, rngs=rngs)
        self.second = ConvNorm(features, features, 3, rngs=rngs)
        same = inputs == features and strides == 1
        self.shortcut = (lambda x: x) if same else ConvNorm(inputs, features, 1, strides, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.shortcut(x) + self.second(nnx.relu(self.first(x))))


class ResNet(nnx.Module):
    """For 32x32 images: three stages, the second and third begin with stride 2."""

    def __init__(self, shape, classes, widths, blocks, *, rngs: nnx.Rngs):
        self.stem = ConvNorm(shape[-1], widths[0], 3, rngs=rngs)
        inputs, made = widths[0], []
        for stage, width in enumerate(widths):
            for block in range(blocks):
                made.append(Block(inputs, width, 2 if stage > 0 and block == 0 else 1, rngs=rngs))
                inputs = width
        self.blocks = nnx.List(made)
        self.dense = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean((1, 2)))


CLASSES = {"lenet": LeNet, "resnet20": ResNet}


def model(net: Net) -> nnx.Module:
    """The network, initialised, as a user of nnx holds it."""
    return CLASSES[net.name](net.shape, net.classes, **net.sizes, rngs=nnx.Rngs(0))


def program(net: Net) -> Program:
    """The network, split into a definition, parameters and the rest."""
    definition, params, state = nnx.split(model(net), nnx.Param, ...)
    return Program(params, state, functools.partial(loss, definition))


def loss(definition, params, state, x: jax.Array, labels: jax.Array):
    """(loss, state)."""
    merged = nnx.merge(definition, params, state, copy=True)
    value = cross_entropy(merged(x), labels)
    return value, nnx.split(merged, nnx.Param, ...)[2]
