"""Functions to compare: right rules, wrong ones, and arguments of every kind. The command's tests name this module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jconv


def draw(*shapes, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def scaled(slip):
    """x * weights, whose gradient of the weights is off by `slip` in its entry 1."""

    @jax.custom_vjp
    def scale(x, weights):
        return x * weights

    def backward(residuals, g):
        x, weights = residuals
        return g * weights, jnp.sum(g * x, axis=0).at[1].add(slip)

    scale.defvjp(lambda x, weights: (x * weights, (x, weights)), backward)
    return scale


right, wrong = scaled(0.0), scaled(0.5)


def loss(x, params):
    return jnp.sum(jnp.sin(right(x, params["weights"])))


def wrong_loss(x, params):
    return jnp.sum(jnp.sin(wrong(x, params["weights"])))


def arguments():
    x, weights = draw((4, 3), (3,))
    return x, {"weights": weights}


def one_argument():
    return draw((2, 6, 6, 4))[0]


def pool(x):
    return jconv.max_pool(x, 2, 2)


def text_arguments():
    return "text", np.ones(3)


def fails(x, params):
    raise RuntimeError("the first line\nthe second line")


def factory_fails():
    raise OSError("no data here")


NUMBER = 3
layer = functools.partial(jconv.conv, padding="SAME")
