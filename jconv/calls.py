"""One call of a convolution: its arguments checked, its layout brought to channels_last and back.

convolution.py has the public functions, with their documentation; rules.py the rules that these calls bind.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jconv import arguments, products, rules, value_padding
from jconv import geometry as geo
from jconv.algorithms import choose
from jconv.algorithms.views import wide
from jconv.products import How
from jconv.rules import Plan

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Call:
    """One public call's static part: the rule's plan and how its arrays are laid out."""

    plan: Plan
    data_format: str
    batched: bool
    values: tuple[tuple[tuple[int, int], ...], str] | None  # (pads, mode) where padding takes values of the input


# Layout: the rules work on (batch, *space, channels) and (*window, in // groups, out).


def _array_in(array: Array, call: Call) -> Array:
    if not call.batched:
        array = array[None]
    return array if call.data_format == "channels_last" else products.entering(array, (0, *range(2, array.ndim), 1))


def _array_out(array: Array, call: Call) -> Array:
    if call.data_format == "channels_first":
        array = products.leaving(array, (0, array.ndim - 1, *range(1, array.ndim - 1)))
    return array if call.batched else array[0]


def _kernel_in(kernel: Array, call: Call) -> Array:
    return kernel if call.data_format == "channels_last" else jnp.moveaxis(kernel, (1, 0), (-2, -1))


def _kernel_out(kernel: Array, call: Call) -> Array:
    return kernel if call.data_format == "channels_last" else jnp.moveaxis(kernel, (-2, -1), (1, 0))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run_conv(call: Call, x: Array, kernel: Array, bias: Array | None) -> Array:
    x = _array_in(x, call)
    if call.values:
        x = value_padding.pad(x, *call.values)
    return _array_out(rules.conv(call.plan, x, _kernel_in(kernel, call), bias), call)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run_kernel_grad(call: Call, x: Array, g: Array) -> Array:
    x = _array_in(x, call)
    if call.values:
        x = value_padding.pad(x, *call.values)
    return _kernel_out(rules.kernel_grad(call.plan, x, _array_in(g, call)), call)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run_input_grad(call: Call, g: Array, kernel: Array, bias: Array | None) -> Array:
    g, kernel = _array_in(g, call), _kernel_in(kernel, call)
    if call.values is None:
        return _array_out(rules.conv_transpose(call.plan, g, kernel, bias), call)
    unrounded = dataclasses.replace(call.plan, result=wide(call.plan.result))  # rounded once, when all is added
    dx = value_padding.add_back(rules.conv_transpose(unrounded, g, kernel), *call.values)
    dx = dx if bias is None else dx + bias.astype(dx.dtype)
    return _array_out(dx.astype(call.plan.result), call)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _run_bias_grad(data_format: str, g: Array) -> Array:
    g = g if data_format == "channels_last" else jnp.moveaxis(g, 1, -1)
    return rules.bias_grad(g.shape, g)


# Geometry of a call, from normalised arguments; cached, since a model repeats its layers.


@functools.lru_cache(maxsize=4096)
def _geometry(
    fun: str, space: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], padding: Any,
    kernel_dilation: tuple[int, ...], input_dilation: tuple[int, ...], groups: int,
) -> tuple[geo.Geometry, Any]:  # fmt: skip
    """Geometry over the input, and (pads, mode) if the input is to be padded with its own values first."""
    if padding not in geo.VALUE_MODES:
        return geo.sliding(fun, space, window, strides, padding, kernel_dilation, input_dilation, groups), None
    if any(e > 1 for e in input_dilation):
        raise ValueError(
            f"{fun}: padding={padding!r} takes values of the input, so input_dilation must be 1, got {input_dilation}"
        )
    pads = tuple(geo.padding_pair(padding, *item) for item in zip(space, window, strides, kernel_dilation, strict=True))
    least = 2 if padding == "REFLECT" else 1
    for n, pair in zip(space, pads, strict=True):
        if n < least and any(pair):
            raise ValueError(
                f"{fun}: padding={padding!r} needs at least {least} elements along an axis, got spatial shape {space}"
            )
    space = tuple(n + lo + hi for n, (lo, hi) in zip(space, pads, strict=True))
    return geo.sliding(fun, space, window, strides, "VALID", kernel_dilation, input_dilation, groups), (pads, padding)


@functools.lru_cache(maxsize=4096)
def _transposed_space(
    fun: str, space: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...], padding: Any,
    kernel_dilation: tuple[int, ...], output_padding: tuple[int, ...],
) -> tuple[int, ...]:  # fmt: skip
    """Spatial shape of conv_transpose's result: the smallest input of conv that gives `space`, plus output_padding."""
    result = []
    for i, (n, k, s, d, extra) in enumerate(zip(space, window, strides, kernel_dilation, output_padding, strict=True)):
        mode = padding if isinstance(padding, str) else padding[i]
        reach = geo.dilated(k, d)
        most = 0 if mode in ("SAME", "SAME_LOWER") else s - 1
        if extra > most:
            raise ValueError(
                f"{fun}: output_padding={output_padding} must be at most {most} on spatial axis {i} (stride {s}, "
                f"padding {padding!r}): the convolution that is transposed would give more than the {n} places"
            )
        if mode in ("SAME", "SAME_LOWER"):
            length = n * s
        elif mode in geo.VALUE_MODES:
            length = (n - 1) * s + 1 + extra
        else:
            low, high = geo.padding_pair(mode, 0, k, s, d)
            length = (n - 1) * s - low - high + reach + extra
        if length < 1 or n < 1:
            raise ValueError(
                f"{fun}: padding={padding!r} leaves nothing of spatial axis {i}: {n} places with stride {s} and a "
                f"window that covers {reach} give {length} elements"
            )
        result.append(length)
    return tuple(result)


def _options(
    fun: str, rank: int, strides: Any, padding: Any, input_dilation: Any, kernel_dilation: Any, groups: Any
) -> tuple[Any, ...]:
    """(strides, padding, kernel_dilation, input_dilation, groups), read, in the order of _geometry."""
    return (
        geo.integers(fun, "strides", strides, rank, 1),
        geo.padding_form(fun, padding, rank),
        geo.integers(fun, "kernel_dilation", kernel_dilation, rank, 1),
        geo.integers(fun, "input_dilation", input_dilation, rank, 1),
        geo.integer(fun, "feature_group_count", groups, 1),
    )


def _check_kernel(
    fun: str, kernel: tuple[int, ...], channels: int, groups: int, seen: str, name: str = "kernel"
) -> None:
    """Windows and channels of a kernel (*window, in // groups, out) over `channels` input channels."""
    if any(k < 1 for k in kernel[:-2]):
        raise ValueError(f"{fun}: {name} must have at least one tap along each axis, got window {kernel[:-2]}; {seen}")
    if channels % groups:
        raise ValueError(f"{fun}: feature_group_count={groups} must divide the {channels} input channels; {seen}")
    if kernel[-2] * groups != channels:
        raise ValueError(
            f"{fun}: {name} must have {channels // groups} input channels (the input's {channels} / feature_group_"
            f"count={groups}), got {kernel[-2]}; {seen}"
        )
    if kernel[-1] % groups:
        raise ValueError(
            f"{fun}: feature_group_count={groups} must divide the {name}'s {kernel[-1]} output channels; {seen}"
        )


def _check_bias(fun: str, bias: Any, out: int) -> None:
    if bias is not None and bias.shape != (out,):
        raise ValueError(f"{fun}: bias must have shape ({out},), one a result channel, got {bias.shape}")


@functools.lru_cache(maxsize=4096)
def _plan(
    fun: str, geometry: geo.Geometry, data_format: str, precision: Any, algorithm: tuple[str, str, str], operand: Any,
    result: Any, channels: int, out: int,
) -> Plan:  # fmt: skip
    choose.check(fun, algorithm, geometry, channels, out, result)
    if data_format == "channels_first":
        geometry = geometry.with_out_first()
    return Plan(geometry, How(precision, algorithm), operand, result)


def conv(
    fun: str, rank: int | None, x: Any, kernel: Any, bias: Any, strides: Any, padding: Any, input_dilation: Any,
    kernel_dilation: Any, groups: Any, data_format: Any, precision: Any, preferred_element_type: Any, algorithm: Any,
) -> Array:  # fmt: skip
    """conv of any rank, or of `rank` alone."""
    x, kernel = arguments.array(fun, "x", x), arguments.array(fun, "kernel", kernel)
    bias = None if bias is None else arguments.array(fun, "bias", bias)
    data_format = arguments.data_format(fun, data_format)
    rank = arguments.kernel_rank(fun, kernel.shape, rank)
    batched = arguments.batched(fun, "x", x.shape, rank)
    options = _options(fun, rank, strides, padding, input_dilation, kernel_dilation, groups)
    x_shape = arguments.channels_last_shape(x.shape, data_format, batched)
    k_shape = arguments.kernel_last_shape(kernel.shape, data_format)
    _check_kernel(
        fun, k_shape, x_shape[-1], options[-1], f"x has shape {x.shape}, kernel {kernel.shape}, {data_format=}"
    )
    _check_bias(fun, bias, k_shape[-1])
    arguments.same_dtype(fun, x=x, kernel=kernel, bias=bias)
    geometry, values = _geometry(fun, x_shape[int(batched) : -1], k_shape[:-2], *options)
    result = arguments.result_dtype(fun, preferred_element_type, x.dtype)
    how = arguments.precision(fun, precision), arguments.algorithm(fun, algorithm)
    plan = _plan(fun, geometry, data_format, *how, x.dtype, result, x_shape[-1], k_shape[-1])
    return _run_conv(Call(plan, data_format, batched, values), x, kernel, bias)


def _check_cotangent(fun: str, g: Any, want: tuple[int, ...], data_format: str, batched: bool, seen: str) -> None:
    """That g has the channels_last shape `want`, told in the user's layout."""
    if data_format == "channels_first":
        lead = int(batched)
        want = (*want[:lead], want[-1], *want[lead:-1])
    if g.shape != want:
        raise ValueError(f"{fun}: g must have the shape that conv gives here, {want}, got {g.shape}; {seen}")


def transpose(
    y: Any, kernel: Any, bias: Any, strides: Any, padding: Any, output_padding: Any, kernel_dilation: Any,
    feature_group_count: Any, data_format: Any, precision: Any, preferred_element_type: Any, algorithm: Any,
) -> Array:  # fmt: skip
    """conv_transpose: the input gradient, with the geometry of the convolution that is transposed."""
    fun = "conv_transpose"
    y, kernel = arguments.array(fun, "y", y), arguments.array(fun, "kernel", kernel)
    bias = None if bias is None else arguments.array(fun, "bias", bias)
    data_format = arguments.data_format(fun, data_format)
    rank = arguments.kernel_rank(fun, kernel.shape, None)
    batched = arguments.batched(fun, "y", y.shape, rank)
    options = _options(fun, rank, strides, padding, 1, kernel_dilation, feature_group_count)
    extra = geo.integers(fun, "output_padding", output_padding, rank, 0)
    y_shape = arguments.channels_last_shape(y.shape, data_format, batched)
    k_shape = arguments.kernel_last_shape(kernel.shape, data_format)
    seen = f"y has shape {y.shape}, kernel {kernel.shape}, {data_format=}"
    if y_shape[-1] != k_shape[-1]:
        raise ValueError(f"{fun}: kernel's last channels must be y's {y_shape[-1]} channels, got {k_shape[-1]}; {seen}")
    channels = k_shape[-2] * options[-1]
    _check_kernel(fun, k_shape, channels, options[-1], seen)
    _check_bias(fun, bias, channels)
    arguments.same_dtype(fun, y=y, kernel=kernel, bias=bias)
    space = _transposed_space(fun, y_shape[int(batched) : -1], k_shape[:-2], *options[:3], extra)
    geometry, values = _geometry(fun, space, k_shape[:-2], *options)
    result = arguments.result_dtype(fun, preferred_element_type, y.dtype)
    how = arguments.precision(fun, precision), arguments.algorithm(fun, algorithm)
    plan = _plan(fun, geometry, data_format, *how, y.dtype, result, channels, k_shape[-1])
    return _run_input_grad(Call(plan, data_format, batched, values), y, kernel, bias)


def kernel_grad(
    x: Any, g: Any, kernel_shape: Any, strides: Any, padding: Any, input_dilation: Any, kernel_dilation: Any,
    feature_group_count: Any, data_format: Any, precision: Any, preferred_element_type: Any, algorithm: Any,
) -> Array:  # fmt: skip
    """conv_kernel_grad: g must have the shape that conv gives."""
    fun = "conv_kernel_grad"
    x, g = arguments.array(fun, "x", x), arguments.array(fun, "g", g)
    data_format = arguments.data_format(fun, data_format)
    shape = arguments.full_shape(fun, "kernel_shape", kernel_shape)
    rank = arguments.kernel_rank(fun, shape, None, "kernel_shape")
    batched = arguments.batched(fun, "x", x.shape, rank)
    options = _options(fun, rank, strides, padding, input_dilation, kernel_dilation, feature_group_count)
    x_shape = arguments.channels_last_shape(x.shape, data_format, batched)
    k_shape = arguments.kernel_last_shape(shape, data_format)
    seen = f"x has shape {x.shape}, kernel_shape={shape}, {data_format=}"
    _check_kernel(fun, k_shape, x_shape[-1], options[-1], seen, "kernel_shape")
    geometry, values = _geometry(fun, x_shape[int(batched) : -1], k_shape[:-2], *options)
    _check_cotangent(fun, g, (*x_shape[: int(batched)], *geometry.output, k_shape[-1]), data_format, batched, seen)
    arguments.same_dtype(fun, x=x, g=g)
    result = arguments.result_dtype(fun, preferred_element_type, x.dtype)
    how = arguments.precision(fun, precision), arguments.algorithm(fun, algorithm)
    plan = _plan(fun, geometry, data_format, *how, x.dtype, result, x_shape[-1], k_shape[-1])
    return _run_kernel_grad(Call(plan, data_format, batched, values), x, g)


def input_grad(
    g: Any, kernel: Any, input_shape: Any, strides: Any, padding: Any, input_dilation: Any, kernel_dilation: Any,
    feature_group_count: Any, data_format: Any, precision: Any, preferred_element_type: Any, algorithm: Any,
) -> Array:  # fmt: skip
    """conv_input_grad: g must have the shape that conv gives."""
    fun = "conv_input_grad"
    g, kernel = arguments.array(fun, "g", g), arguments.array(fun, "kernel", kernel)
    data_format = arguments.data_format(fun, data_format)
    rank = arguments.kernel_rank(fun, kernel.shape, None)
    shape = arguments.full_shape(fun, "input_shape", input_shape)
    batched = arguments.batched(fun, "input_shape", shape, rank)
    options = _options(fun, rank, strides, padding, input_dilation, kernel_dilation, feature_group_count)
    x_shape = arguments.channels_last_shape(shape, data_format, batched)
    k_shape = arguments.kernel_last_shape(kernel.shape, data_format)
    seen = f"input_shape={shape}, kernel has shape {kernel.shape}, {data_format=}"
    _check_kernel(fun, k_shape, x_shape[-1], options[-1], seen)
    geometry, values = _geometry(fun, x_shape[int(batched) : -1], k_shape[:-2], *options)
    _check_cotangent(fun, g, (*x_shape[: int(batched)], *geometry.output, k_shape[-1]), data_format, batched, seen)
    arguments.same_dtype(fun, g=g, kernel=kernel)
    result = arguments.result_dtype(fun, preferred_element_type, g.dtype)
    how = arguments.precision(fun, precision), arguments.algorithm(fun, algorithm)
    plan = _plan(fun, geometry, data_format, *how, g.dtype, result, x_shape[-1], k_shape[-1])
    return _run_input_grad(Call(plan, data_format, batched, values), g, kernel, None)


def bias_grad(g: Any, data_format: Any) -> Array:
    """conv_bias_grad: the sum over batch and space."""
    g = arguments.array("conv_bias_grad", "g", g)
    data_format = arguments.data_format("conv_bias_grad", data_format)
    least = 2 if data_format == "channels_last" else 3
    if g.ndim < least:
        raise ValueError(f"conv_bias_grad: g must have at least {least} axes with {data_format=}, got shape {g.shape}")
    return _run_bias_grad(data_format, g)
