"""The networks in flax.linen."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.nets import Net, Program, cross_entropy

Array = jax.Array


def norm() -> nn.BatchNorm:
    """In training: the statistics of the batch."""
    return nn.BatchNorm(use_running_average=False, momentum=0.9)


def conv(features: int, size: int | Sequence[int], strides: int | Sequence[int] = 1, *, rank: int = 2, **options: Any):
    """A convolution without bias, padded alike at both ends, as PyTorch does."""
    window = (size,) * rank if isinstance(size, int) else tuple(size)
    padding = options.pop("padding", [(k // 2, k // 2) for k in window])
    return nn.Conv(features, window, strides, padding, **{"use_bias": False, **options})


class LeNet(nn.Module):
    """Two convolutions, each with a max pool, then dense layers."""

    classes: int
    features: Sequence[int]
    dense: Sequence[int]

    @nn.compact
    def __call__(self, x):
        for features in self.features:
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for features in self.dense:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.classes)(x)


class Block(nn.Module):
    """Two 3x3 or 3x3x3 convolutions and a shortcut."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        rank = x.ndim - 2
        y = nn.relu(norm()(conv(self.features, 3, self.strides, rank=rank)(x)))
        y = norm()(conv(self.features, 3, rank=rank)(y))
        if x.shape != y.shape:
            x = norm()(conv(self.features, 1, self.strides, rank=rank)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """For 32x32 images: three stages, the second and third begin with stride 2."""

    classes: int
    widths: Sequence[int]
    blocks: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(norm()(conv(self.widths[0], 3)(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = Block(width, 2 if stage > 0 and block == 0 else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class ResNet3D(nn.Module):
    """ResNet-18 with a third axis."""

    classes: int
    widths: Sequence[int]
    blocks: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(norm()(conv(self.widths[0], 7, (1, 2, 2), rank=3)(x)))
        x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), [(1, 1)] * 3)  # pyright: ignore[reportArgumentType]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = Block(width, 2 if stage > 0 and block == 0 else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2, 3)))


class InvertedResidual(nn.Module):
    """Wider by a pointwise, along space by a depthwise, narrow again by a pointwise convolution."""

    expansion: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        y, width = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = nn.relu6(norm()(conv(width, 1)(y)))
        y = nn.relu6(norm()(conv(width, 3, self.strides, feature_group_count=width)(y)))
        y = norm()(conv(self.features, 1)(y))
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """Stages of (expansion, features, blocks, strides)."""

    classes: int
    stem: int
    stages: Sequence[tuple[int, int, int, int]]
    head: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(norm()(conv(self.stem, 3, 2)(x)))
        for expansion, features, blocks, strides in self.stages:
            for block in range(blocks):
                x = InvertedResidual(expansion, features, strides if block == 0 else 1)(x)
        x = nn.relu6(norm()(conv(self.head, 1)(x)))
        return nn.Dense(self.classes)(x.mean((1, 2)))


class ConvNeXtBlock(nn.Module):
    """A 7x7 depthwise convolution, then two dense layers at each place."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        y = conv(width, 7, feature_group_count=width, use_bias=True)(x)
        y = nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-6)(y))
        y = nn.Dense(width)(nn.gelu(y, approximate=False))
        return x + self.param("scale", nn.initializers.constant(1e-6), (width,)) * y


class ConvNeXt(nn.Module):
    """Four stages; before each a convolution whose windows do not overlap."""

    classes: int
    widths: Sequence[int]
    blocks: Sequence[int]

    @nn.compact
    def __call__(self, x):
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            size = 2 if stage > 0 else 4
            x = nn.LayerNorm(epsilon=1e-6)(x) if stage > 0 else x
            x = conv(width, size, size, padding=0, use_bias=True)(x)
            x = nn.LayerNorm(epsilon=1e-6)(x) if stage == 0 else x
            for _ in range(blocks):
                x = ConvNeXtBlock()(x)
        return nn.Dense(self.classes)(nn.LayerNorm(epsilon=1e-6)(x.mean((1, 2))))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, and a shortcut."""

    features: int
    strides: int
    groups: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(norm()(conv(self.features // 2, 1)(x)))
        y = nn.relu(norm()(conv(self.features // 2, 3, self.strides, feature_group_count=self.groups)(y)))
        y = norm()(conv(self.features, 1)(y))
        if x.shape != y.shape:
            x = norm()(conv(self.features, 1, self.strides)(x))
        return nn.relu(x + y)


class ResNeXt(nn.Module):
    """Four stages of bottlenecks, each twice as wide as the last."""

    classes: int
    width: int
    blocks: Sequence[int]
    groups: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(norm()(conv(self.width, 7, 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1)] * 2)  # pyright: ignore[reportArgumentType]
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(4 * self.width * 2**stage, strides, self.groups)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class UNet(nn.Module):
    """Down by max pools, up by transposed convolutions, and what was there on the way down beside it."""

    classes: int
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x):
        *downs, bottom = self.widths
        skips = []
        for width in downs:
            x = self.twice(x, width)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = self.twice(x, bottom)
        for width, skip in zip(reversed(downs), reversed(skips), strict=True):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), padding="VALID")(x)
            x = self.twice(jnp.concatenate([skip, x], -1), width)
        return conv(self.classes, 1, use_bias=True)(x)

    def twice(self, x: Array, width: int) -> Array:
        for _ in range(2):
            x = nn.relu(conv(width, 3, use_bias=True)(x))
        return x


class WaveNet(nn.Module):
    """Gated causal convolutions whose dilation doubles; each adds to the residual and to the skip path."""

    classes: int
    residual: int
    skip: int
    dilations: int
    cycles: int

    @nn.compact
    def __call__(self, audio):
        x = nn.Conv(self.residual, (2,), padding="CAUSAL")(jax.nn.one_hot(audio, self.classes))
        skips = jnp.zeros((*x.shape[:-1], self.skip))
        for layer in range(self.cycles * self.dilations):
            dilation = 2 ** (layer % self.dilations)
            y = nn.Conv(2 * self.residual, (2,), padding="CAUSAL", kernel_dilation=dilation)(x)
            kept, gate = jnp.split(y, 2, axis=-1)
            y = jnp.tanh(kept) * nn.sigmoid(gate)
            x = x + nn.Conv(self.residual, (1,))(y)
            skips = skips + nn.Conv(self.skip, (1,))(y)
        y = nn.relu(nn.Conv(self.skip, (1,))(nn.relu(skips)))
        return nn.Conv(self.classes, (1,))(y)


CLASSES = {
    "lenet": LeNet,
    "resnet20": ResNet,
    "mobilenetv2": MobileNetV2,
    "convnext": ConvNeXt,
    "resnext50": ResNeXt,
    "unet": UNet,
    "wavenet": WaveNet,
    "resnet3d": ResNet3D,
}


def program(net: Net) -> Program:
    """The network, initialised."""
    model = CLASSES[net.name](net.classes, **net.sizes)
    x, _ = net.draw()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    state = {name: value for name, value in variables.items() if name != "params"}

    def loss(params, state, x, labels):
        logits, state = model.apply({"params": params, **state}, x, mutable=list(state))
        return cross_entropy(logits, labels), state

    return Program(variables["params"], state, loss)
