"""The layers of Flax, Equinox and Haiku over their options: stock against accelerated, inside and around grad."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jconv
import jconv.lax
from tests.test_rewrite import draw, stock_left

LINE, PLANE, SPACE = draw((2, 9, 4), (2, 8, 7, 4), (2, 5, 6, 4, 4))
INPUTS = {1: LINE, 2: PLANE, 3: SPACE}


FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile, not to run


def agrees(apply, params, x):
    """Results and gradients of apply(params, x), stock, accelerated inside of grad, and accelerated around grad."""

    def loss(params, x):
        y = apply(params, x)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    graded = lambda f: jax.value_and_grad(f, (0, 1), has_aux=True)
    inside, around = graded(jconv.accelerate(loss)), jconv.accelerate(graded(loss))
    forms = jax.jit(lambda *args: [f(*args) for f in (graded(loss), inside, around)])
    want, *results = forms.lower(params, x).compile(FAST)(params, x)
    narrowest = max(jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves((params, x, want)))
    tol = 64 * float(narrowest) if narrowest < 1e-3 else 0.05  # they round between layers
    for got in results:
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            assert jax.typeof(a) == jax.typeof(b)
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(a, b, rtol=tol, atol=tol * max(1, np.abs(b).max()))
    assert not stock_left(inside, params, x)
    assert not stock_left(around, params, x)


def drawn(init, *args):
    """Parameters of the shapes that init gives."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0), *args))
    return tree.unflatten([draw(leaf.shape, seed=i, dtype=leaf.dtype)[0] for i, leaf in enumerate(leaves)])


def masked(*shape):
    return (jnp.arange(np.prod(shape)) % 3 > 0).astype("float32").reshape(shape)


# Flax. Each has (rank of its input, layer).
LINEN = {
    "conv": (2, nn.Conv(6, (3, 3))),
    "conv without batch": (0, nn.Conv(6, (3, 3))),
    "conv with batches": (-1, nn.Conv(6, (3, 3))),
    "conv 1-D": (1, nn.Conv(6, (3,), 2)),
    "conv 3-D": (3, nn.Conv(3, (3, 2, 3), (1, 2, 1))),
    "circular": (2, nn.Conv(6, (3, 3), 2, "CIRCULAR")),
    "circular dilated": (2, nn.Conv(6, (2, 3), padding="CIRCULAR", kernel_dilation=2)),
    "causal": (1, nn.Conv(6, (3,), padding="CAUSAL", kernel_dilation=2)),
    "reflect": (2, nn.Conv(6, (3, 3), padding="REFLECT")),
    "pairs": (2, nn.Conv(6, (3, 3), padding=((2, 0), (-1, 3)))),
    "padding low only": (2, nn.Conv(6, (2, 2), padding=((3, 0), (2, -1)))),
    "valid, no bias": (2, nn.Conv(6, (3, 3), padding="VALID", use_bias=False)),
    "mask": (2, nn.Conv(6, (3, 3), mask=masked(3, 3, 4, 6))),
    "depthwise": (2, nn.Conv(8, (3, 3), 2, feature_group_count=4)),
    "groups": (2, nn.Conv(6, (3, 3), feature_group_count=2, kernel_dilation=(2, 1))),
    "input dilation": (2, nn.Conv(6, (3, 3), padding=1, input_dilation=2)),
    "pointwise": (2, nn.Conv(6, (1, 1), 2)),
    "dtype": (2, nn.Conv(6, (3, 3), dtype="bfloat16")),
    "float16": (2, nn.Conv(6, (3, 3), dtype="float16", param_dtype="float16")),
    "param_dtype": (2, nn.Conv(6, (3, 3), param_dtype="bfloat16", dtype="float32")),
    "precision": (2, nn.Conv(6, (3, 3), precision="highest")),
    "hook": (2, nn.Conv(6, (3, 3), conv_general_dilated=jconv.lax.conv_general_dilated)),
    "hook's class": (2, nn.Conv(6, (3, 3), conv_general_dilated_cls=lambda: jconv.lax.conv_general_dilated)),
    "transpose": (2, nn.ConvTranspose(6, (3, 3), (2, 2))),
    "transpose valid": (2, nn.ConvTranspose(6, (2, 4), (2, 3), padding="VALID", use_bias=False)),
    "transpose circular": (2, nn.ConvTranspose(6, (3, 3), (2, 2), padding="CIRCULAR")),
    "transpose pairs": (2, nn.ConvTranspose(6, (3, 3), (2, 1), padding=((1, 2), (0, 2)), kernel_dilation=(1, 2))),
    "transpose turned": (2, nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True)),
    "transpose mask": (2, nn.ConvTranspose(6, (3, 3), mask=masked(3, 3, 4, 6), dtype="bfloat16")),
    "transpose 1-D": (1, nn.ConvTranspose(6, (4,), (2,))),
    "transpose 3-D": (3, nn.ConvTranspose(2, (2, 2, 2), (2, 2, 2))),
    "local": (2, nn.ConvLocal(6, (3, 2), (2, 1))),
    "local circular": (1, nn.ConvLocal(6, (3,), padding="CIRCULAR")),
    "local causal": (1, nn.ConvLocal(6, (3,), padding="CAUSAL", use_bias=False)),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    rank, layer = LINEN[name]
    x = PLANE[0] if rank == 0 else PLANE[:, None] if rank == -1 else INPUTS[rank]
    agrees(layer.apply, drawn(layer.init, x), x)


POOLS = {
    "max": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max overlapping, same": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "max, stride 1": lambda x: nn.max_pool(x, (3, 2)),
    "max, pairs": lambda x: nn.max_pool(x, (3, 3), (2, 1), ((1, 0), (1, 1))),
    "max without batch": lambda x: jnp.stack([nn.max_pool(each, (2, 2), (2, 2)) for each in x]),
    "min": lambda x: nn.pooling.min_pool(x, (2, 3), (2, 2), "SAME"),
    "avg": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "avg, same": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "avg, without padding": lambda x: nn.avg_pool(x, (3, 3), (1, 2), "SAME", count_include_pad=False),
    "sum by pool": lambda x: nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID"),
    "nnx max": lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
    "nnx min": lambda x: nnx.min_pool(x, (2, 2), (1, 2)),
    "nnx avg": lambda x: nnx.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False),
    "haiku max": lambda x: hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID"),
    "haiku max, same": lambda x: hk.max_pool(x, (3, 3, 1), (2, 1, 1), "SAME"),
    "haiku max, channels first": lambda x: hk.max_pool(x, (1, 2, 2), (1, 2, 2), "SAME", channel_axis=1),
    "haiku avg": lambda x: hk.avg_pool(x, (2, 2, 1), (2, 2, 1), "VALID"),
    "haiku avg, same": lambda x: hk.avg_pool(x, (3, 3, 1), (2, 2, 1), "SAME"),
}


@jax.numpy_dtype_promotion("standard")  # the averages divide by integers
@pytest.mark.parametrize("name", POOLS)
def test_pools(name):
    agrees(lambda _, x: POOLS[name](x), {}, PLANE)


NNX = {
    "conv": (2, nnx.Conv, (4, 6, (3, 3)), {}),
    "circular": (2, nnx.Conv, (4, 6, (3, 3)), {"padding": "CIRCULAR", "strides": 2}),
    "causal": (1, nnx.Conv, (4, 6, (3,)), {"padding": "CAUSAL", "kernel_dilation": 2}),
    "reflect": (1, nnx.Conv, (4, 6, (3,)), {"padding": "REFLECT"}),
    "mask": (2, nnx.Conv, (4, 6, (3, 3)), {"mask": masked(3, 3, 4, 6), "use_bias": False}),
    "depthwise": (2, nnx.Conv, (4, 8, (3, 3)), {"feature_group_count": 4, "strides": (2, 1)}),
    "dtype": (2, nnx.Conv, (4, 6, (3, 3)), {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}),
    "hook": (2, nnx.Conv, (4, 6, (3, 3)), {"conv_general_dilated": jconv.lax.conv_general_dilated}),
    "3-D": (3, nnx.Conv, (4, 2, (3, 3, 3)), {"padding": 1, "input_dilation": 2}),
    "transpose": (2, nnx.ConvTranspose, (4, 6, (3, 3)), {"strides": (2, 2)}),
    "transpose circular": (2, nnx.ConvTranspose, (4, 6, (3, 3)), {"strides": (2, 2), "padding": "CIRCULAR"}),
    "transpose turned": (1, nnx.ConvTranspose, (4, 6, (3,)), {"strides": 2, "transpose_kernel": True}),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    rank, layer, sizes, options = NNX[name]
    definition, params, rest = nnx.split(layer(*sizes, **options, rngs=nnx.Rngs(0)), nnx.Param, ...)
    agrees(lambda params, x: nnx.merge(definition, params, rest)(x), params, INPUTS[rank])


KEY = jax.random.key(0)
EQUINOX = {
    "Conv1d": (1, eqx.nn.Conv1d(4, 6, 3, 2, key=KEY)),
    "Conv2d": (2, eqx.nn.Conv2d(4, 6, 3, padding=1, key=KEY)),
    "Conv2d, strings": (2, eqx.nn.Conv2d(4, 6, 3, 2, padding="SAME", use_bias=False, key=KEY)),
    "Conv2d circular": (2, eqx.nn.Conv2d(4, 6, 3, padding="SAME", padding_mode="CIRCULAR", key=KEY)),
    "Conv2d reflect": (2, eqx.nn.Conv2d(4, 6, 3, padding=1, padding_mode="REFLECT", key=KEY)),
    "Conv2d replicate": (2, eqx.nn.Conv2d(4, 6, 3, padding=1, padding_mode="REPLICATE", key=KEY)),
    "Conv2d depthwise": (2, eqx.nn.Conv2d(4, 8, 3, groups=4, dilation=2, key=KEY)),
    "Conv2d groups": (2, eqx.nn.Conv2d(4, 6, (3, 2), (2, 1), groups=2, key=KEY)),
    "Conv2d pairs": (2, eqx.nn.Conv2d(4, 6, 2, padding=((3, 0), (0, 2)), key=KEY)),
    "Conv2d bfloat16": (2, eqx.nn.Conv2d(4, 6, 3, dtype=jnp.bfloat16, key=KEY)),
    "Conv3d": (3, eqx.nn.Conv3d(4, 3, 3, 2, padding=1, key=KEY)),
    "ConvTranspose1d": (1, eqx.nn.ConvTranspose1d(4, 6, 4, 2, key=KEY)),
    "ConvTranspose2d": (2, eqx.nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, padding=1, key=KEY)),
    "ConvTranspose2d groups": (2, eqx.nn.ConvTranspose2d(4, 6, 3, 2, groups=2, dilation=2, key=KEY)),
    "ConvTranspose3d": (3, eqx.nn.ConvTranspose3d(4, 2, 2, 2, key=KEY)),
    "MaxPool1d": (1, eqx.nn.MaxPool1d(2, 2)),
    "MaxPool2d": (2, eqx.nn.MaxPool2d(3, 2, padding=1)),
    "MaxPool2d ceil": (2, eqx.nn.MaxPool2d(3, 2, use_ceil=True)),
    "MaxPool3d": (3, eqx.nn.MaxPool3d(2, 2)),
    "AvgPool1d": (1, eqx.nn.AvgPool1d(2, 2)),
    "AvgPool2d": (2, eqx.nn.AvgPool2d((3, 2), (2, 1), padding=1)),
    "AvgPool3d": (3, eqx.nn.AvgPool3d(2, 2)),
    "AdaptiveAvgPool2d": (2, eqx.nn.AdaptiveAvgPool2d(3)),
    "AdaptiveMaxPool2d": (2, eqx.nn.AdaptiveMaxPool2d((2, 3))),
}


@pytest.mark.parametrize("name", EQUINOX)
def test_equinox(name):
    """Layers of one example, channels first, under vmap."""
    rank, layer = EQUINOX[name]
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    x = jnp.moveaxis(INPUTS[rank], -1, 1)
    x = x.astype(jnp.bfloat16) if "bfloat16" in name else x
    agrees(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, x)


HAIKU = {
    "Conv1D": (1, lambda: hk.Conv1D(6, 3, 2)),
    "Conv1D causal": (1, lambda: hk.Conv1D(6, 3, rate=2, padding=hk.pad.causal)),
    "Conv2D": (2, lambda: hk.Conv2D(6, 3)),
    "Conv2D NCHW": (2, lambda: hk.Conv2D(6, 3, 2, data_format="NCHW")),
    "Conv2D rate": (2, lambda: hk.Conv2D(6, (3, 2), rate=2, padding="VALID", with_bias=False)),
    "Conv2D mask": (2, lambda: hk.Conv2D(6, 3, mask=masked(3, 3, 4, 6))),
    "Conv2D groups": (2, lambda: hk.Conv2D(6, 3, 2, feature_group_count=2)),
    "Conv2D padding function": (2, lambda: hk.Conv2D(6, 3, padding=(hk.pad.full, hk.pad.reverse_causal))),
    "Conv3D": (3, lambda: hk.Conv3D(3, 3, 2)),
    "ConvND": (2, lambda: hk.ConvND(2, 6, 3, padding=((1, 2), (0, 1)))),
    "ConvND without batch": (0, lambda: hk.ConvND(2, 6, 3)),
    "Conv1DTranspose": (1, lambda: hk.Conv1DTranspose(6, 4, 2)),
    "Conv2DTranspose": (2, lambda: hk.Conv2DTranspose(6, 3, 2)),
    "Conv2DTranspose NCHW": (2, lambda: hk.Conv2DTranspose(6, 3, 2, padding="VALID", data_format="NCHW")),
    "Conv2DTranspose shape": (2, lambda: hk.Conv2DTranspose(6, 3, 2, output_shape=(16, 13))),
    "ConvNDTranspose": (3, lambda: hk.ConvNDTranspose(3, 2, 2, 2, with_bias=False)),
    "DepthwiseConv1D": (1, lambda: hk.DepthwiseConv1D(2, 3)),
    "DepthwiseConv2D": (2, lambda: hk.DepthwiseConv2D(2, 3, 2)),
    "DepthwiseConv2D NCHW": (2, lambda: hk.DepthwiseConv2D(1, (3, 3), data_format="NCHW", rate=2)),
    "DepthwiseConv3D": (3, lambda: hk.DepthwiseConv3D(1, 3)),
    "SeparableDepthwiseConv2D": (2, lambda: hk.SeparableDepthwiseConv2D(1, (3, 3), padding="SAME")),
    "MaxPool": (2, lambda: hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")),
    "AvgPool": (2, lambda: hk.AvgPool((2, 2, 1), (2, 2, 1), "SAME")),
}


@jax.numpy_dtype_promotion("standard")  # Haiku's layers need it
@pytest.mark.parametrize("name", HAIKU)
def test_haiku(name):
    rank, layer = HAIKU[name]
    network = hk.without_apply_rng(hk.transform(lambda x: layer()(x)))
    x = PLANE[0] if rank == 0 else INPUTS[rank]
    x = jnp.moveaxis(x, -1, 1) if "NCHW" in name else x
    agrees(network.apply, drawn(network.init, x), x)
