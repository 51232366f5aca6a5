"""A layer as jconv computes it and as a user of stock JAX writes it.

Each contestant brings its operators with jconv's signatures, and what a product is follows from them for both alike:
    step         y and the gradients for x, kernel and bias, of (x, kernel, bias, g)        forward + backward
    forward      y
    kernel_grad  the gradient for the kernel alone
    input_grad   the gradient for x alone
    once, loop   one small step downhill, and LOOP_STEPS of them inside one lax.scan
The stock operators are plain lax in the layouts lax is fastest in, NHWC and HWIO; a stock transposed convolution is
what `lax.conv_transpose` gives, a convolution with lhs_dilation, and its kernel is in the layout a user of it has,
(*window, in, out). With `channels_first` all are in NCHW and OIHW, jconv by its data_format. Every product returns its
whole results, so that none of its work is dead.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.bench.layers import BenchError, Layer

RESULTS = {  # what the products return; once and loop return y and operands moved, and no one checks them
    "step": ("y", "dx", "dkernel", "dbias"),
    "forward": ("y",),
    "kernel_grad": ("dkernel",),
    "input_grad": ("dx",),
}
LOOP_STEPS = 4
DOWNHILL = 1e-3  # of each gradient, so that no step of the loop repeats the one before and none leaves it
Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Form:
    """A layer ready to run: `products` are functions of `operands`, which are (x, [kernel, bias,] g) on the device."""

    operands: tuple[Any, ...]
    products: dict[str, Callable[..., Any]]
    function: Callable[..., jax.Array]  # y of all operands but g: what is differentiated
    dkernel: Callable[[np.ndarray], np.ndarray] = lambda dkernel: dkernel  # in jconv's layout
    channels_first: bool = False

    def named(self, product: str, results: Any) -> dict[str, np.ndarray]:
        """The results of a product by name, in jconv's layouts, channels last."""
        values = results if isinstance(results, tuple) else (results,)
        named = {name: np.asarray(value) for name, value in zip(RESULTS[product], values)}
        if self.channels_first:
            named = {name: channels_last(name, value) for name, value in named.items()}
        return {name: self.dkernel(value) if name == "dkernel" else value for name, value in named.items()}


def channels_last(name: str, array: Any) -> Any:
    """An operand or result in NCHW, a kernel in OIHW, in NHWC and HWIO."""
    if name in ("kernel", "dkernel"):
        return array.transpose(*range(2, array.ndim), 1, 0)
    return array if array.ndim < 2 else np.moveaxis(array, 1, -1)


def channels_first(name: str, array: Any) -> Any:
    """The way back."""
    if name in ("kernel", "dkernel"):
        return array.transpose(-1, -2, *range(array.ndim - 2))
    return array if array.ndim < 2 else jnp.moveaxis(array, -1, 1)


def draw(layer: Layer, dtype: str) -> dict[str, np.ndarray]:
    """Random operands in jconv's layouts, of the magnitudes that a network has, the same in every run."""
    generator = np.random.default_rng(sum(layer.name.encode()))
    shapes = {"x": layer.x_shape, "g": layer.y_shape}
    if layer.is_convolution:
        shapes |= {"kernel": layer.kernel_shape, "bias": (layer.out_channels,)}
    terms = math.prod(layer.window) * layer.in_channels // layer.groups
    operands = {}
    for name, shape in shapes.items():
        value = generator.standard_normal(shape, np.float32) / (math.sqrt(terms) if name == "kernel" else 1.0)
        if dtype.startswith("complex"):
            value = value * np.exp(1j * generator.uniform(0, 2 * math.pi, shape))
        operands[name] = np.asarray(value, jnp.dtype(dtype))
    return operands


def _layouts(rank: int, data_format: str) -> tuple[str, str, str]:
    space = "DHW"[-rank:] if rank < 4 else "ABDEFGHJKL"[:rank]
    first = data_format == "channels_first"
    x, kernel = (f"NC{space}", f"OI{space}") if first else (f"N{space}C", f"{space}IO")
    return x, kernel, x


def _biased(y, bias, data_format: str):
    if bias is None:
        return y
    return y + (bias if data_format == "channels_last" else bias.reshape(-1, *(1,) * (y.ndim - 2)))


def stock_conv(
    x, kernel, bias=None, *, strides, padding, kernel_dilation, feature_group_count=1, data_format="channels_last"
):
    """A convolution in lax as a user writes it; the signature is jconv.conv's."""
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=kernel_dilation,
        dimension_numbers=_layouts(x.ndim - 2, data_format),
        feature_group_count=feature_group_count,
    )
    return _biased(y, bias, data_format)


def stock_conv_transpose(
    y, kernel, bias=None, *, strides, padding, output_padding, kernel_dilation, feature_group_count=1,
    data_format="channels_last",
):  # fmt: skip
    """As lax.conv_transpose: kernel (*window, in // groups, out), its window not turned."""
    window = kernel.shape[:-2] if data_format == "channels_last" else kernel.shape[2:]
    reach = [d * (w - 1) for d, w in zip(kernel_dilation, window)]
    pads = [(r - lo, r - hi + extra) for r, (lo, hi), extra in zip(reach, padding, output_padding)]
    x = lax.conv_general_dilated(
        y,
        kernel,
        (1,) * len(reach),
        pads,
        lhs_dilation=strides,
        rhs_dilation=kernel_dilation,
        dimension_numbers=_layouts(y.ndim - 2, data_format),
        feature_group_count=feature_group_count,
    )
    return _biased(x, bias, data_format)


def _all_axes(window_shape, strides, padding: Pairs, data_format: str):
    if data_format == "channels_first":
        return (1, 1, *window_shape), (1, 1, *strides), ((0, 0), (0, 0), *padding)
    return (1, *window_shape, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))


def stock_max_pool(x, window_shape, strides, padding: Pairs, data_format="channels_last"):
    """As flax.linen.max_pool."""
    return lax.reduce_window(x, -jnp.inf, lax.max, *_all_axes(window_shape, strides, padding, data_format))


def stock_avg_pool(x, window_shape, strides, padding: Pairs, *, count_include_pad=True, data_format="channels_last"):
    """As flax.linen.avg_pool."""
    axes = _all_axes(window_shape, strides, padding, data_format)
    zero = np.zeros((), x.dtype)
    total = lax.reduce_window(x, zero, lax.add, *axes)
    if count_include_pad:
        return total / np.asarray(math.prod(window_shape), x.dtype)
    one = (1, *x.shape[1:-1], 1) if data_format == "channels_last" else (1, 1, *x.shape[2:])
    return total / lax.reduce_window(jnp.ones(one, x.dtype), zero, lax.add, *axes)


def _turned(kernel, layer: Layer):
    """A transposed layer's kernel from jconv's layout to stock JAX's and back: windows turned, in and out exchanged."""
    kernel, rank = np.asarray(kernel), len(layer.window)
    a, b = kernel.shape[rank:]
    grouped = kernel[(slice(None, None, -1),) * rank].reshape(*layer.window, a, layer.groups, b // layer.groups)
    return np.moveaxis(grouped, (-1, -2, -3), (-3, -2, -1)).reshape(*layer.window, b // layer.groups, a * layer.groups)


def stock_form(layer: Layer, operands: Mapping[str, Any]) -> Form:
    """The layer in plain lax."""
    if layer.op == "conv":
        function = functools.partial(stock_conv, **_conv_arguments(layer))
    elif layer.op == "conv_transpose":
        function = functools.partial(
            stock_conv_transpose, **_conv_arguments(layer), output_padding=layer.output_padding
        )
        form = _form(layer, function, {**operands, "kernel": _turned(operands["kernel"], layer)})
        return dataclasses.replace(form, dkernel=lambda dkernel: _turned(dkernel, layer))
    else:
        function = _pool(layer, stock_max_pool, stock_avg_pool)
    return _form(layer, function, operands)


def jconv_form(layer: Layer, operands: Mapping[str, Any]) -> Form:
    """The layer in jconv."""
    import jconv  # here, so that a benchmark of stock JAX and PyTorch alone runs without it

    if not layer.is_convolution:
        return _form(layer, _pool(layer, jconv.max_pool, jconv.avg_pool), operands)
    arguments = _conv_arguments(layer)
    if layer.op == "conv_transpose":
        function = functools.partial(jconv.conv_transpose, **arguments, output_padding=layer.output_padding)
        return _form(layer, function, operands)
    form = _form(layer, functools.partial(jconv.conv, **arguments), operands)
    alone = {product: jconv_product(layer, product, "auto") for product in ("kernel_grad", "input_grad")}
    return dataclasses.replace(form, products=form.products | alone)


def jconv_product(layer: Layer, product: str, algorithm: str) -> Callable[..., jax.Array]:
    """One product of a convolution, of (x, kernel, bias, g), by an algorithm of jconv's or "auto".

    A transposed convolution is the input gradient under another name, and its input gradient is the convolution.
    """
    import jconv

    arguments = _conv_arguments(layer)
    if layer.op == "conv":
        arguments["algorithm"] = {product: algorithm}
        if product == "forward":
            return lambda x, kernel, bias, g: jconv.conv(x, kernel, bias, **arguments)
        if product == "kernel_grad":
            return lambda x, kernel, bias, g: jconv.conv_kernel_grad(x, g, kernel.shape, **arguments)
        return lambda x, kernel, bias, g: jconv.conv_input_grad(g, kernel, x.shape, **arguments)
    if product == "kernel_grad":
        arguments["algorithm"] = {product: algorithm}
        return lambda x, kernel, bias, g: jconv.conv_kernel_grad(g, x, kernel.shape, **arguments)
    if product == "input_grad":
        arguments["algorithm"] = {"forward": algorithm}
        return lambda x, kernel, bias, g: jconv.conv(g, kernel, **arguments)
    arguments |= {"algorithm": {"input_grad": algorithm}, "output_padding": layer.output_padding}
    return lambda x, kernel, bias, g: jconv.conv_transpose(x, kernel, bias, **arguments)


def forced_form(layer: Layer, operands: Mapping[str, Any], algorithm: str) -> Form:
    """The three products alone, each by one algorithm of jconv's; an error where it does not apply."""
    products = {name: jconv_product(layer, name, algorithm) for name in ("forward", "kernel_grad", "input_grad")}
    return dataclasses.replace(jconv_form(layer, operands), products=products)


def _conv_arguments(layer: Layer) -> dict[str, Any]:
    return {
        "strides": layer.strides,
        "padding": layer.padding,
        "kernel_dilation": layer.kernel_dilation,
        "feature_group_count": layer.groups,
        "data_format": _data_format(layer),
    }


def _data_format(layer: Layer) -> str:
    return "channels_first" if layer.channels_first else "channels_last"


def _pool(layer: Layer, max_pool: Callable, avg_pool: Callable) -> Callable[[Any], jax.Array]:
    arguments: dict[str, Any] = {"data_format": _data_format(layer)}
    if layer.op == "avg_pool":
        arguments["count_include_pad"] = layer.count_include_pad
    pool = max_pool if layer.op == "max_pool" else avg_pool
    return lambda x: pool(x, layer.window, layer.strides, layer.padding, **arguments)


def _form(layer: Layer, function: Callable[..., jax.Array], operands: Mapping[str, Any]) -> Form:
    names = ("x", "kernel", "bias", "g") if layer.is_convolution else ("x", "g")
    values = [jnp.asarray(operands[name]) for name in names]
    if layer.channels_first:
        values = [channels_first(name, value) for name, value in zip(names, values, strict=True)]
    return Form(tuple(values), products_of(function), function, channels_first=layer.channels_first)


def products_of(function: Callable[..., jax.Array]) -> dict[str, Callable[..., Any]]:
    """All products of a differentiable function of (x, [kernel, bias]), each a function of (x, [kernel, bias,] g)."""

    def step(*operands):
        y, backward = jax.vjp(function, *operands[:-1])
        return y, *backward(operands[-1])

    def alone(place: int):
        def gradient(*operands):
            primals, g = list(operands[:-1]), operands[-1]
            return jax.vjp(lambda it: function(*primals[:place], it, *primals[place + 1 :]), primals[place])[1](g)[0]

        return gradient

    def once(*operands):
        y, *gradients = step(*operands)
        moved = [p - jnp.asarray(DOWNHILL, p.dtype) * d for p, d in zip(operands, gradients)]
        return y, *moved

    def loop(*operands):
        y = jnp.zeros_like(operands[-1])  # the cotangent has the result's shape

        def body(carry, _):
            return once(*carry[1:], operands[-1]), None

        return lax.scan(body, (y, *operands[:-1]), length=LOOP_STEPS)[0]

    return {
        "step": step,
        "forward": lambda *operands: function(*operands[:-1]),
        "kernel_grad": alone(1),
        "input_grad": alone(0),
        "once": once,
        "loop": loop,
    }


def form(contestant: str, layer: Layer, operands: Mapping[str, Any]) -> Form:
    """The layer as "jconv", as "jconv:ALGORITHM" or as "lax" computes it."""
    if contestant == "lax":
        return stock_form(layer, operands)
    name, _, algorithm = contestant.partition(":")
    if name != "jconv":
        raise BenchError(f"no contestant {contestant!r}: jconv, lax and torch are known")
    return forced_form(layer, operands, algorithm) if algorithm else jconv_form(layer, operands)
