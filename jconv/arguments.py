"""Reading the arguments of public functions: every wrong one is named, with its value, before any tracing."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import geometry as geo
from jconv.algorithms import choose


def array(fun: str, argument: str, value: Any) -> Any:
    """`value` as a JAX or NumPy array of numbers; anything else, a list or None too, is a TypeError."""
    if not isinstance(value, jax.Array) and hasattr(value, "__jax_array__"):
        value = value.__jax_array__()
    if isinstance(value, np.ndarray | np.generic):
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError):  # a dtype that JAX has not: strings, float128, a structured one
            raise TypeError(
                f"{fun}: {argument} must be an array of numbers, got a NumPy array of dtype {value.dtype}"
            ) from None
    elif not isinstance(value, jax.Array):
        raise TypeError(f"{fun}: {argument}={_short(value)} must be a JAX or NumPy array, got {type(value).__name__}")
    if not jnp.issubdtype(value.dtype, np.number):
        raise TypeError(
            f"{fun}: {argument} must have a float, complex or integer dtype, got {value.dtype} of shape {value.shape}"
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def same_dtype(fun: str, **arrays: Any) -> None:
    """TypeError unless all arrays given have one dtype."""
    dtypes = {name: str(a.dtype) for name, a in arrays.items() if a is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{fun}: {' and '.join(dtypes)} must have one dtype, got {listed}; cast with .astype first")


def data_format(fun: str, value: Any) -> str:
    """`value`, checked to be "channels_last" or "channels_first"."""
    return geo.member(fun, "data_format", value, geo.DATA_FORMATS)


def kernel_rank(fun: str, kernel: Any, rank: int | None, name: str = "kernel") -> int:
    """The number of spatial axes that a kernel's shape tells; ValueError where `rank` is asked for and differs."""
    spatial = len(kernel) - 2
    if spatial < 1:
        raise ValueError(
            f"{fun}: {name} must have at least 3 axes (one window axis or more, in, out), got shape {tuple(kernel)}"
        )
    if rank is not None and spatial != rank:
        raise ValueError(
            f"{fun}: {name} must have {rank} spatial axes and so {rank + 2} axes, got shape {tuple(kernel)}"
        )
    return spatial


def batched(fun: str, argument: str, shape: tuple[int, ...], rank: int) -> bool:
    """Whether an array of `shape` has a batch axis in front of its spatial and channel axes; ValueError if neither."""
    if len(shape) not in (rank + 1, rank + 2):
        raise ValueError(
            f"{fun}: {argument} must have {rank + 2} axes (batch, {rank} spatial, channels) or, unbatched, {rank + 1}, "
            f"got shape {tuple(shape)}"
        )
    return len(shape) == rank + 2


def full_shape(fun: str, argument: str, value: Any) -> tuple[int, ...]:
    """A whole shape given as an argument: a sequence of integers that are not negative."""
    return geo.integers(fun, argument, value, None, at_least=0)


def channels_last_shape(shape: tuple[int, ...], data_format: str, has_batch: bool) -> tuple[int, ...]:
    """(batch, *space, channels) of an array's shape in `data_format`; without the batch where there is none."""
    if data_format == "channels_last":
        return shape
    lead = int(has_batch)
    return (*shape[:lead], *shape[lead + 1 :], shape[lead])


def kernel_last_shape(shape: tuple[int, ...], data_format: str) -> tuple[int, ...]:
    """(*window, in // groups, out) of a kernel's shape in `data_format`."""
    return shape if data_format == "channels_last" else (*shape[2:], shape[1], shape[0])


@functools.lru_cache(maxsize=256)
def _precision(fun: str, value: Any) -> Any:
    try:
        if isinstance(value, str):
            return jax.lax.Precision(value)
        return value if value is None or isinstance(value, jax.lax.Precision) else _preset(value)
    except ValueError:
        expected = ", ".join(repr(p.name.lower()) for p in jax.lax.Precision)
        raise ValueError(
            f"{fun}: precision={value!r} must be None, a jax.lax.Precision, or one of {expected}"
        ) from None


def _preset(value: Any) -> Any:
    if isinstance(value, jax.lax.DotAlgorithmPreset):
        return value
    raise TypeError


def precision(fun: str, value: Any) -> Any:
    """`precision` as jax.lax takes it: None, a name, a jax.lax.Precision, or a pair of these, one an operand."""
    if isinstance(value, tuple | list):
        if len(value) != 2 or not all(isinstance(v, str | jax.lax.Precision) for v in value):
            raise ValueError(
                f"{fun}: precision={value!r} must be one precision or a pair of them, each a string or a "
                "jax.lax.Precision"
            )
        return tuple(precision(fun, v) for v in value)
    try:
        return _precision(fun, value)
    except TypeError:
        raise TypeError(
            f"{fun}: precision={value!r} must be None, a string or a jax.lax.Precision, got {type(value).__name__}"
        ) from None


@functools.lru_cache(maxsize=256)
def _result_dtype(fun: str, value: Any, operand: Any, widest: Any) -> Any:
    del widest  # float64 where jax_enable_x64 is set, else float32: what the cache must tell apart
    if value is None:
        return operand
    try:
        wanted = jnp.dtype(value)
    except TypeError:
        raise TypeError(f"{fun}: preferred_element_type={value!r} must be None or a dtype") from None
    dtype = jax.dtypes.canonicalize_dtype(wanted)
    if dtype != wanted and not any(value is python for python in (int, float, complex)):
        raise ValueError(
            f"{fun}: preferred_element_type={value!r} must have at most 32 bits (complex: 64) unless jax_enable_x64 is "
            f"set; JAX would make it {dtype}"
        )
    kinds = (jnp.signedinteger, jnp.unsignedinteger, jnp.floating, jnp.complexfloating)
    if not any(jnp.issubdtype(dtype, k) and jnp.issubdtype(operand, k) for k in kinds):
        raise ValueError(f"{fun}: preferred_element_type={value!r} must be of the same kind as the operands' {operand}")
    if dtype.itemsize < operand.itemsize:
        raise ValueError(
            f"{fun}: preferred_element_type={value!r} must be as wide as the operands' {operand}, or wider"
        )
    return dtype


def result_dtype(fun: str, value: Any, operand: Any) -> Any:
    """The dtype of a product: the operands', or `preferred_element_type` of the same kind and at least as wide."""
    try:
        return _result_dtype(fun, value, operand, jax.dtypes.canonicalize_dtype("float64"))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        raise TypeError(f"{fun}: preferred_element_type={value!r} must be None or a dtype") from None


def algorithm(fun: str, value: Any) -> tuple[str, str, str]:
    """`algorithm`: a name for all three products, or a mapping from product to name; what is left out is "auto"."""
    if isinstance(value, str):
        return (geo.member(fun, "algorithm", value, choose.NAMES),) * 3
    if isinstance(value, Mapping):
        unknown = [k for k in value if k not in choose.PRODUCTS]
        if unknown:
            expected = ", ".join(map(repr, choose.PRODUCTS))
            raise ValueError(f"{fun}: algorithm={value!r} names {unknown[0]!r}, which must be one of {expected}")
        names = [geo.member(fun, "algorithm", value.get(k, "auto"), choose.NAMES) for k in choose.PRODUCTS]
        return names[0], names[1], names[2]
    raise TypeError(f"{fun}: algorithm={value!r} must be a string or a mapping from product to string")


def flag(fun: str, argument: str, value: Any) -> bool:
    """`value`, checked to be a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{fun}: {argument}={value!r} must be True or False, got {type(value).__name__}")
    return bool(value)
