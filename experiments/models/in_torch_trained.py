"""The networks of experiments.train in PyTorch, where it is installed: the same layers and sizes, channels first."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from experiments.models import in_torch
from experiments.models.nets import Net
from experiments.train.models import airbench, convnext, lenet, mobilenet, resnet
from experiments.train.models.layers import channels


class Padded(nn.Conv2d):
    """A convolution of stride 1 whose result is as large as its input."""

    def __init__(self, inputs, features, size, **options):
        super().__init__(inputs, features, size, padding="same", **options)


def make_lenet(net: Net, width):
    """Two padded convolutions, each with a max pool, then dense layers."""
    layers, side, inputs = [], net.shape[1], net.shape[-1]
    for base in lenet.CHANNELS:
        layers += [Padded(inputs, channels(base, width, 2), 5), nn.ReLU(), nn.MaxPool2d(2)]
        side, inputs = side // 2, channels(base, width, 2)
    layers.append(nn.Flatten())
    hidden = [channels(base, width, 4) for base in lenet.HIDDEN]
    for m, n in itertools.pairwise((side * side * inputs, *hidden, net.classes)):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Shortcut(nn.Module):
    """Every other place, where the block's first convolution has stride 2, and channels of zeros."""

    def __init__(self, strides, more):
        super().__init__()
        self.strides, self.more = strides, more

    def forward(self, x):
        return F.pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, 0, self.more))


def make_resnet(net: Net, width):
    """ResNet-20 with shortcuts that have no parameters."""
    inputs = channels(resnet.CHANNELS[0], width)
    layers = [in_torch.conv_norm(net.shape[-1], inputs, 3), nn.ReLU()]
    for stage, base in enumerate(resnet.CHANNELS):
        for block in range(resnet.BLOCKS):
            outputs, strides = channels(base, width), 2 if stage > 0 and block == 0 else 1
            branch = nn.Sequential(
                in_torch.conv_norm(inputs, outputs, 3, strides), nn.ReLU(), in_torch.conv_norm(outputs, outputs, 3)
            )
            layers.append(in_torch.Residual(branch, Shortcut(strides, outputs - inputs), nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, in_torch.Mean(), nn.Linear(inputs, net.classes))


def make_mobilenet(net: Net, width):
    """Wider by a pointwise, along space by a depthwise, narrow again by a pointwise convolution."""
    inputs = channels(mobilenet.STEM, width)
    layers = [in_torch.conv_norm(net.shape[-1], inputs, 3), nn.ReLU6()]
    for _, expansion, base, strides in mobilenet.blocks():
        hidden, outputs = expansion * inputs, channels(base, width)
        wider = [in_torch.conv_norm(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [in_torch.conv_norm(hidden, hidden, 3, strides, groups=hidden), nn.ReLU6()]
        branch = nn.Sequential(*wider, *depthwise, in_torch.conv_norm(hidden, outputs, 1))
        layers.append(in_torch.Residual(branch) if strides == 1 and inputs == outputs else branch)
        inputs = outputs
    head = channels(mobilenet.HEAD, max(1.0, width))
    layers += [in_torch.conv_norm(inputs, head, 1), nn.ReLU6(), in_torch.Mean(), nn.Linear(head, net.classes)]
    return nn.Sequential(*layers)


def make_convnext(net: Net, width):
    """Three stages; before each a 2x2 convolution whose windows do not overlap."""
    layers, inputs = [], net.shape[-1]
    for stage, (base, count) in enumerate(zip(convnext.CHANNELS, convnext.BLOCKS, strict=True)):
        outputs = channels(base, width)
        norm, down = in_torch.LayerNorm(inputs if stage > 0 else outputs), nn.Conv2d(inputs, outputs, 2, 2)
        layers += [norm, down] if stage > 0 else [down, norm]
        layers += [in_torch.ConvNeXtBlock(outputs) for _ in range(count)]
        inputs = outputs
    return nn.Sequential(*layers, in_torch.Mean(), nn.LayerNorm(inputs), nn.Linear(inputs, net.classes))


class Shift(nn.BatchNorm2d):
    """Batch normalisation with a bias, and a scale that stays 1."""

    def __init__(self, features):
        super().__init__(features, momentum=1 - airbench.MOMENTUM)
        self.weight.requires_grad_(False)


class Head(nn.Module):
    """A max pool over what is left of space, a dense layer without bias, and a scale."""

    def __init__(self, inputs, side, classes):
        super().__init__()
        self.window = min(3, side)
        self.dense = nn.Linear(inputs * (side // self.window) ** 2, classes, bias=False)

    def forward(self, x):
        return airbench.HEAD_SCALE * self.dense(F.max_pool2d(x, self.window).flatten(1))


def make_airbench(net: Net, width):
    """Whitening, whose kernel is not trained, then three stages of two convolutions and a max pool."""
    inputs = 2 * airbench.WINDOW**2 * net.shape[-1]
    whiten = nn.Conv2d(net.shape[-1], inputs, airbench.WINDOW)
    whiten.weight.requires_grad_(False)
    layers: list[nn.Module] = [whiten, nn.GELU("tanh")]
    for base in airbench.CHANNELS:
        outputs = channels(base, width)
        layers += [Padded(inputs, outputs, 3, bias=False), nn.MaxPool2d(2), Shift(outputs), nn.GELU("tanh")]
        layers += [Padded(outputs, outputs, 3, bias=False), Shift(outputs), nn.GELU("tanh")]
        inputs = outputs
    return nn.Sequential(*layers, Head(inputs, (net.shape[1] - airbench.WINDOW + 1) // 8, net.classes))


MAKE = {
    "lenet": make_lenet,
    "resnet": make_resnet,
    "mobilenet": make_mobilenet,
    "convnext": make_convnext,
    "airbench": make_airbench,
}


def model(net: Net) -> torch.nn.Module:
    """The network, initialised."""
    return MAKE[net.sizes["model"]](net, net.sizes["width"])
