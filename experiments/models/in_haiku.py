"""LeNet and the CIFAR ResNet in Haiku."""

import haiku as hk
import jax

from experiments.models.nets import Net, Program, cross_entropy


def lenet(x, classes, features, dense):
    """Two convolutions, each with a max pool, then dense layers."""
    for width in features:
        x = jax.nn.relu(hk.Conv2D(width, 5, padding="VALID")(x))
        x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")
    x = hk.Flatten()(x)
    return hk.nets.MLP((*dense, classes))(x)


def conv_norm(x, features, size, strides=1):
    """A convolution and its BatchNorm, in training."""
    x = hk.Conv2D(features, size, strides, padding=[(size // 2, size // 2)] * 2, with_bias=False)(x)
    return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training=True)


def block(x, features, strides):
    """Two 3x3 convolutions and a shortcut."""
    y = jax.nn.relu(conv_norm(x, features, 3, strides))
    y = conv_norm(y, features, 3)
    shortcut = x if x.shape == y.shape else conv_norm(x, features, 1, strides)
    return jax.nn.relu(shortcut + y)


def resnet(x, classes, widths, blocks):
    """For 32x32 images: three stages, the second and third begin with stride 2."""
    x = jax.nn.relu(conv_norm(x, widths[0], 3))
    for stage, width in enumerate(widths):
        for i in range(blocks):
            x = block(x, width, 2 if stage > 0 and i == 0 else 1)
    return hk.Linear(classes)(x.mean((1, 2)))


FUNCTIONS = {"lenet": lenet, "resnet20": resnet}


def program(net: Net) -> Program:
    """The network, transformed and initialised."""
    network = hk.transform_with_state(lambda x: FUNCTIONS[net.name](x, net.classes, **net.sizes))
    x, _ = net.draw()
    params, state = jax.jit(network.init)(jax.random.key(0), x)

    def loss(params, state, x, labels):
        logits, state = network.apply(params, state, None, x)
        return cross_entropy(logits, labels), state

    return Program(params, state, loss)
