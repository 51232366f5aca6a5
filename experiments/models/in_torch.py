"""The networks in PyTorch, where it is installed: the same layers and sizes, channels first."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.models.nets import Net


def conv_norm(inputs, features, size, strides=1, groups=1, rank=2):
    """A convolution without bias and its BatchNorm."""
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[rank]
    return nn.Sequential(
        conv(inputs, features, size, strides, size // 2, groups=groups, bias=False),
        norm(features),
    )


class Residual(nn.Module):
    """Activation of the sum of a branch and a shortcut."""

    def __init__(self, branch, shortcut=None, activation=None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(self.shortcut(x) + self.branch(x))


class Mean(nn.Module):
    """Over space."""

    def forward(self, x):
        return x.mean(tuple(range(2, x.ndim)))


def lenet(net: Net, features, dense):
    """Two convolutions, each with a max pool, then dense layers."""
    layers, side, inputs = [], net.shape[1], net.shape[-1]
    for width in features:
        layers += [nn.Conv2d(inputs, width, 5), nn.ReLU(), nn.MaxPool2d(2)]
        side, inputs = (side - 4) // 2, width
    layers.append(nn.Flatten())
    for m, n in itertools.pairwise((side * side * inputs, *dense, net.classes)):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stages(inputs, widths, blocks, rank=2):
    """Blocks of two 3x3 convolutions and a shortcut; each stage but the first begins with stride 2."""
    layers = []
    for stage, width in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            branch = nn.Sequential(
                conv_norm(inputs, width, 3, strides, rank=rank), nn.ReLU(), conv_norm(width, width, 3, rank=rank)
            )
            same = inputs == width and strides == 1
            shortcut = None if same else conv_norm(inputs, width, 1, strides, rank=rank)
            layers.append(Residual(branch, shortcut, nn.ReLU()))
            inputs = width
    return layers


def resnet20(net: Net, widths, blocks):
    """For 32x32 images."""
    stem = [conv_norm(net.shape[-1], widths[0], 3), nn.ReLU()]
    return nn.Sequential(*stem, *stages(widths[0], widths, blocks), Mean(), nn.Linear(widths[-1], net.classes))


def resnet3d(net: Net, widths, blocks):
    """ResNet-18 with a third axis."""
    stem = [conv_norm(net.shape[-1], widths[0], 7, (1, 2, 2), rank=3), nn.ReLU(), nn.MaxPool3d(3, 2, 1)]
    head = [Mean(), nn.Linear(widths[-1], net.classes)]
    return nn.Sequential(*stem, *stages(widths[0], widths, blocks, rank=3), *head)


def mobilenetv2(net: Net, stem, stages, head):
    """Wider by a pointwise, along space by a depthwise, narrow again by a pointwise convolution."""
    layers, inputs = [conv_norm(net.shape[-1], stem, 3, 2), nn.ReLU6()], stem
    for expansion, features, blocks, first_strides in stages:
        for block in range(blocks):
            strides, width = first_strides if block == 0 else 1, expansion * inputs
            wider = [conv_norm(inputs, width, 1), nn.ReLU6()] if expansion > 1 else []
            depthwise = [conv_norm(width, width, 3, strides, groups=width), nn.ReLU6()]
            branch = nn.Sequential(*wider, *depthwise, conv_norm(width, features, 1))
            layers.append(Residual(branch) if strides == 1 and inputs == features else branch)
            inputs = features
    layers += [conv_norm(inputs, head, 1), nn.ReLU6(), Mean(), nn.Linear(head, net.classes)]
    return nn.Sequential(*layers)


class LayerNorm(nn.LayerNorm):
    """Over the second axis, the channels."""

    def forward(self, input):
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """A 7x7 depthwise convolution, then two dense layers at each place."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.rest = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x):
        return x + (self.scale * self.rest(self.conv(x).movedim(1, -1))).movedim(-1, 1)


def convnext(net: Net, widths, blocks):
    """Four stages; before each a convolution whose windows do not overlap."""
    layers, inputs = [], net.shape[-1]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        down = [nn.Conv2d(inputs, width, 2 if stage > 0 else 4, 2 if stage > 0 else 4)]
        layers += [LayerNorm(inputs, eps=1e-6), *down] if stage > 0 else [*down, LayerNorm(width, eps=1e-6)]
        layers += [ConvNeXtBlock(width) for _ in range(count)]
        inputs = width
    return nn.Sequential(*layers, Mean(), nn.LayerNorm(inputs, eps=1e-6), nn.Linear(inputs, net.classes))


def resnext50(net: Net, width, blocks, groups):
    """Bottlenecks of 1x1, grouped 3x3, 1x1, and a shortcut."""
    layers, inputs = [conv_norm(net.shape[-1], width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], width
    for stage, count in enumerate(blocks):
        features = 4 * width * 2**stage
        for block in range(count):
            strides, middle = 2 if stage > 0 and block == 0 else 1, features // 2
            branch = nn.Sequential(
                *(conv_norm(inputs, middle, 1), nn.ReLU()),
                *(conv_norm(middle, middle, 3, strides, groups), nn.ReLU()),
                conv_norm(middle, features, 1),
            )
            shortcut = conv_norm(inputs, features, 1, strides) if block == 0 else None
            layers.append(Residual(branch, shortcut, nn.ReLU()))
            inputs = features
    return nn.Sequential(*layers, Mean(), nn.Linear(inputs, net.classes))


class UNet(nn.Module):
    """Down by max pools, up by transposed convolutions, and what was there on the way down beside it."""

    def __init__(self, inputs, classes, widths):
        super().__init__()
        self.downs = nn.ModuleList(self.twice(m, n) for m, n in itertools.pairwise((inputs, *widths)))
        pairs = list(itertools.pairwise(reversed(widths)))
        self.transposed = nn.ModuleList(nn.ConvTranspose2d(m, n, 2, 2) for m, n in pairs)
        self.ups = nn.ModuleList(self.twice(2 * n, n) for _, n in pairs)
        self.last = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def twice(inputs, width):
        first, second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, x):
        *downs, bottom = self.downs
        skips = []
        for down in downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = bottom(x)
        for transposed, up in zip(self.transposed, self.ups, strict=True):
            x = up(torch.cat([skips.pop(), transposed(x)], 1))
        return self.last(x)


class WaveNet(nn.Module):
    """Gated causal convolutions whose dilation doubles; each adds to the residual and to the skip path."""

    def __init__(self, classes, residual, skip, dilations, cycles):
        super().__init__()
        self.classes, self.skip = classes, skip
        self.stem = nn.Conv1d(classes, residual, 2)
        layers = range(cycles * dilations)
        self.gated = nn.ModuleList(nn.Conv1d(residual, 2 * residual, 2, dilation=2 ** (i % dilations)) for i in layers)
        self.residual = nn.ModuleList(nn.Conv1d(residual, residual, 1) for _ in layers)
        self.skips = nn.ModuleList(nn.Conv1d(residual, skip, 1) for _ in layers)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, classes, 1))

    def forward(self, audio):
        x = self.stem(F.pad(F.one_hot(audio, self.classes).float().movedim(-1, 1), (1, 0)))
        skips = torch.zeros(())
        for gated, residual, skip in zip(self.gated, self.residual, self.skips, strict=True):
            kept, gate = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, 1)
            y = torch.tanh(kept) * torch.sigmoid(gate)
            x = x + residual(y)
            skips = skips + skip(y)
        return self.head(skips)


MAKE: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "resnet20": resnet20,
    "mobilenetv2": mobilenetv2,
    "convnext": convnext,
    "resnext50": resnext50,
    "unet": lambda net, widths: UNet(net.shape[-1], net.classes, widths),
    "wavenet": lambda net, **sizes: WaveNet(net.classes, **sizes),
    "resnet3d": resnet3d,
}


def model(net: Net) -> nn.Module:
    """The network, initialised, in training mode."""
    if "model" in net.sizes:
        from experiments.models import in_torch_trained

        return in_torch_trained.model(net).train()
    return MAKE[net.name](net, **net.sizes).train()


def size(module: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def memory_formats(net: Net) -> dict[str, torch.memory_format]:
    """Those that convolutions of this rank have."""
    rank = len(net.shape) - 2
    last = {2: torch.channels_last, 3: torch.channels_last_3d}
    return {"contiguous": torch.contiguous_format, **({"channels last": last[rank]} if rank in last else {})}


def step(net: Net, memory_format: Any, learning_rate: float, momentum: float) -> Callable[[], torch.Tensor]:
    """A training step on one batch, which returns the loss, a tensor, when it is done."""
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    module = model(net).to(device=device, memory_format=memory_format)
    optimizer = torch.optim.SGD(module.parameters(), learning_rate, momentum)
    images, labels = (torch.from_numpy(np.array(array)).to(device) for array in net.draw())
    labels = labels.long()
    if images.is_floating_point():
        images = images.movedim(-1, 1).contiguous(memory_format=memory_format)
    else:
        images = images.long()

    def train():
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach().cpu()

    return train
