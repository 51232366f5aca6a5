"""LeNet and the CIFAR ResNet in Equinox: models of one example, (channels, height, width), under vmap."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp

from experiments.models.nets import Net, Program, cross_entropy


class LeNet(eqx.Module):
    """Two convolutions, each with a max pool, then dense layers."""

    convs: list[eqx.nn.Conv2d]
    denses: list[eqx.nn.Linear]
    pool: eqx.nn.MaxPool2d

    def __init__(self, shape, classes, features, dense, key):
        keys = iter(jax.random.split(key, 16))
        side, inputs = shape[1], shape[-1]
        self.convs = []
        for width in features:
            self.convs.append(eqx.nn.Conv2d(inputs, width, 5, key=next(keys)))
            side, inputs = (side - 4) // 2, width
        sizes = itertools.pairwise((side * side * inputs, *dense, classes))
        self.denses = [eqx.nn.Linear(m, n, key=next(keys)) for m, n in sizes]
        self.pool = eqx.nn.MaxPool2d(2, 2)

    def __call__(self, x, state):
        for conv in self.convs:
            x = self.pool(jax.nn.relu(conv(x)))
        x = x.ravel()
        for dense in self.denses[:-1]:
            x = jax.nn.relu(dense(x))
        return self.denses[-1](x), state


class ConvNorm(eqx.Module):
    """A convolution and its BatchNorm."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, inputs, features, size, strides, key):
        self.conv = eqx.nn.Conv2d(inputs, features, size, strides, padding=size // 2, use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(features, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        return self.norm(self.conv(x), state)


class Block(eqx.Module):
    """Two 3x3 convolutions and a shortcut."""

    first: ConvNorm
    second: ConvNorm
    shortcut: ConvNorm | None

    def __init__(self, inputs, features, strides, key):
        keys = jax.random.split(key, 3)
        self.first = ConvNorm(inputs, features, 3, strides, keys[0])
        self.second = ConvNorm(features, features, 3, 1, keys[1])
        same = inputs == features and strides == 1
        self.shortcut = None if same else ConvNorm(inputs, features, 1, strides, keys[2])

    def __call__(self, x, state):
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
    """For 32x32 images: three stages, the second and third begin with stride 2."""

    stem: ConvNorm
    blocks: list[Block]
    dense: eqx.nn.Linear

    def __init__(self, shape, classes, widths, blocks, key):
        keys = iter(jax.random.split(key, 2 + len(widths) * blocks))
        self.stem = ConvNorm(shape[-1], widths[0], 3, 1, next(keys))
        self.blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                self.blocks.append(Block(inputs, width, 2 if stage > 0 and block == 0 else 1, next(keys)))
                inputs = width
        self.dense = eqx.nn.Linear(inputs, classes, key=next(keys))

    def __call__(self, x, state):
        x, state = self.stem(x, state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.dense(x.mean((1, 2))), state


CLASSES = {"lenet": LeNet, "resnet20": ResNet}


def model(net: Net) -> tuple[eqx.Module, eqx.nn.State]:
    """The network, initialised, as a user of Equinox holds it, and BatchNorm's state."""
    return eqx.nn.make_with_state(CLASSES[net.name])(net.shape, net.classes, **net.sizes, key=jax.random.key(0))


def loss(network, state, x: jax.Array, labels: jax.Array):
    """(loss, state) of a batch (batch, height, width, channels)."""
    batched = jax.vmap(network, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    logits, state = batched(jnp.moveaxis(x, -1, 1), state)
    return cross_entropy(logits, labels), state


def program(net: Net) -> Program:
    """The network, its arrays apart."""
    network, state = model(net)
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def of_params(params, state, x, labels):
        return loss(eqx.combine(params, static), state, x, labels)

    return Program(params, state, of_params)
