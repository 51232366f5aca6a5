"""The networks of experiments.train, over jconv itself: what is stock here is jconv.automatic of the loss."""

import jax

from experiments.models.nets import Net, Program, cross_entropy
from experiments.train.models import MODELS


def program(net: Net) -> Program:
    """The network, initialised; the channels as its `sizes` say."""
    model = MODELS[net.sizes["model"]]
    params, state = model.init(jax.random.key(0), net.shape[1:], net.classes, width=net.sizes["width"])

    def loss(params, state, x, labels):
        logits, state = model.apply(params, state, x, train=True)
        return cross_entropy(logits, labels), state

    return Program(params, state, loss)
