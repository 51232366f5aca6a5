"""Wrong arguments of every public operator, and what the error must say: the table that tests/test_errors.py runs.

RIGHT has a call of each operator that works. A case replaces one or more of its arguments. SETTINGS has the values that
are wrong wherever an argument of that name occurs; tests/wrong_details.py the cases of single operators.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jconv

VALUE, TYPE = ValueError, TypeError


@dataclasses.dataclass(frozen=True)
class Traced:
    """An argument that jax.jit traces, so that it has no value where it must be static."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A call of `operator`, right but for `arguments`; `match`: the message behind "operator: "."""

    operator: str
    arguments: dict[str, Any]
    error: type[Exception]
    match: str
    note: str = ""

    def __str__(self) -> str:
        values = ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items())
        return f"{self.operator}({values}){self.note and f' {self.note}'}"

    def call(self) -> Any:
        arguments = RIGHT[self.operator] | self.arguments
        function = getattr(jconv, self.operator)
        traced = {name: a.value for name, a in arguments.items() if isinstance(a, Traced)}
        static = {name: a for name, a in arguments.items() if name not in traced}
        return jax.jit(lambda traced: function(**static, **traced))(traced) if traced else function(**static)


def _brief(value: Any) -> str:
    text = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) < 50 else f"{text[:47]}..."


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


X, KERNEL, Y = zeros(2, 6, 5, 4), zeros(3, 2, 4, 6), zeros(2, 4, 4, 6)
IMAGE = zeros(2, 6, 5, 3)
ONE = {"x": zeros(2, 6, 4), "kernel": zeros(3, 4, 6), "bias": zeros(6)}
TWO = {"x": X, "kernel": KERNEL, "bias": zeros(6)}
THREE = {"x": zeros(2, 6, 5, 3, 4), "kernel": zeros(3, 2, 2, 4, 6), "bias": zeros(6)}
POOL = {"x": IMAGE, "window_shape": (3, 2)}
RIGHT: dict[str, dict[str, Any]] = {
    "conv": TWO,
    "conv1d": ONE,
    "conv2d": TWO,
    "conv3d": THREE,
    "conv_transpose": {"y": Y, "kernel": KERNEL, "bias": zeros(4)},
    "conv_kernel_grad": {"x": X, "g": Y, "kernel_shape": KERNEL.shape},
    "conv_input_grad": {"g": Y, "kernel": KERNEL, "input_shape": X.shape},
    "conv_bias_grad": {"g": Y},
    "max_pool": POOL,
    "min_pool": POOL,
    "avg_pool": POOL,
    "sum_pool": POOL,
    "lp_pool": POOL | {"p": 2},
    "adaptive_max_pool": {"x": IMAGE, "output_shape": (2, 4)},
    "adaptive_avg_pool": {"x": IMAGE, "output_shape": (2, 4)},
    "global_max_pool": {"x": IMAGE},
    "global_avg_pool": {"x": IMAGE},
    "max_unpool": {"y": IMAGE, "indices": zeros(*IMAGE.shape, dtype=np.int32), "output_shape": (9, 8)},
    "unfold": {"x": IMAGE, "window_shape": (2, 2)},
    "fold": {"columns": zeros(2, 5, 4, 12), "output_shape": (6, 5), "window_shape": (2, 2)},
}
RANK = {"conv1d": 1, "conv3d": 3}  # all others have two spatial axes


ARRAYS = ("x", "kernel", "bias", "y", "g", "indices", "columns")


class Wrapper:
    """Offers an array, as Flax's variables do, but has none."""

    def __repr__(self) -> str:
        return "Wrapper()"

    def __jax_array__(self) -> Any:
        return [1]


# What stands in no array argument: (value, error, what the message says of it behind the argument's name).
NO_ARRAYS = [
    ([[1.0, 2.0]], TYPE, r"=\[\[1.0, 2.0\]\] must be a JAX or NumPy array, got list"),
    ((1.0,), TYPE, r"=\(1.0,\) must be a JAX or NumPy array, got tuple"),
    (None, TYPE, "=None must be a JAX or NumPy array, got NoneType"),
    (2.5, TYPE, "=2.5 must be a JAX or NumPy array, got float"),
    ("x", TYPE, "='x' must be a JAX or NumPy array, got str"),
    (jax.ShapeDtypeStruct((2, 6, 5, 4), "float32"), TYPE, "=ShapeDtypeStruct.* must be a JAX or NumPy array, got Sh"),
    (Wrapper(), TYPE, r"=\[1\] must be a JAX or NumPy array, got list"),
    (np.array(["a", "b"]), TYPE, " must be an array of numbers, got a NumPy array of dtype <U1"),
    (np.array([None]), TYPE, " must be an array of numbers, got a NumPy array of dtype object"),
    (np.zeros(3, "M8[s]"), TYPE, " must be an array of numbers, got a NumPy array of dtype datetime64"),
    (np.zeros(3, [("a", "f4")]), TYPE, " must be an array of numbers, got a NumPy array of dtype .*'a'"),
    (np.zeros((2, 6, 5, 4), bool), TYPE, r" must have a float, complex or integer dtype, got bool of shape \(2, 6, 5, 4\)"),
    (jax.random.key(0), TYPE, r" must have a float, complex or integer dtype, got key.* of shape \(\)"),
]  # fmt: skip


# Settings: (value, error, what the message says behind "argument=value ").

Row = tuple[Any, type[Exception], str]
SHAPE = "must be a sequence of integers, one an axis"
STATIC = "must hold static Python integers"
INTEGERS = "must hold integers, and"
FORMATS = "one of 'channels_last', 'channels_first'"
MODES = "must be one of 'VALID', 'SAME', 'SAME_LOWER', 'CAUSAL', 'CIRCULAR', 'REFLECT', 'EDGE'"


def lengths(rank: int) -> list[Row]:
    """For one integer, or one a spatial axis."""
    ones = (1,) * (rank - 1)
    return [
        (1.5, TYPE, f"{INTEGERS} 1.5 is of type float"),
        (math.nan, TYPE, f"{INTEGERS} nan is of type float"),
        ("2", TYPE, f"{INTEGERS} '2' is of type str"),
        (b"\2\2", TYPE, f"{INTEGERS} .* is of type bytes"),
        (True, TYPE, f"{INTEGERS} True is of type bool"),
        (None, TYPE, f"{INTEGERS} None is of type NoneType"),
        ({2: 2}, TYPE, f"{INTEGERS} .* is of type dict"),
        ((*ones, 2.0), TYPE, f"{INTEGERS} 2.0 is of type float"),
        ([*ones, None], TYPE, f"{INTEGERS} None is of type NoneType"),
        (np.ones(rank), TYPE, f"{INTEGERS} 1.0 is of type float"),
        (Traced(np.int32(1)), TYPE, f"{STATIC}, got"),
        (Traced(np.ones(rank, np.int32)), TYPE, f"{STATIC}, not traced ones"),
    ]


def many(rank: int, most: int = 7) -> list[Row]:
    """As lengths, and the wrong number of entries."""
    return [
        *lengths(rank),
        ((1,) * most, VALUE, f"must be one integer or {rank} of them, one a spatial axis, got {most}"),
        ((), VALUE, f"must be one integer or {rank} of them, one a spatial axis, got 0"),
    ]


def at_least(least: int, rank: int) -> list[Row]:
    below = least - 1
    return [
        (below, VALUE, f"must be at least {least}, got {below}"),
        (-2, VALUE, f"must be at least {least}, got -2"),
        ((*(1,) * (rank - 1), below), VALUE, f"must be at least {least}, got {below}"),
        (np.full(rank, -1), VALUE, f"must be at least {least}, got -1"),
    ]


def settings(rank: int) -> dict[str, list[Row]]:
    """What is wrong for an argument of that name in every operator of `rank` spatial axes."""
    zero = (0,) * (rank - 1)
    steps = [*many(rank), *at_least(1, rank)]
    sizes = [
        *lengths(rank),
        *at_least(1, rank),
        ((), VALUE, "must (have an entry for each|be one integer or 2 of them, one a) spatial axis"),
    ]
    whole = [
        (3, TYPE, SHAPE),
        (None, TYPE, SHAPE),
        ("3246", TYPE, SHAPE),
        ({3, 2, 4, 6}, TYPE, SHAPE),
        (np.array(3), TYPE, SHAPE),
        ((3.0, 2, 4, 6), TYPE, f"{INTEGERS} 3.0 is of type float"),
        ((3, 2, None, 6), TYPE, f"{INTEGERS} None is of type NoneType"),
        ((3, -2, 4, 6), VALUE, "must be at least 0, got -2"),
        (Traced(np.ones(4, np.int32)), TYPE, f"{STATIC}, not traced ones"),
    ]
    flags = [
        (1, TYPE, "must be True or False, got int"),
        (None, TYPE, "must be True or False, got NoneType"),
        ("no", TYPE, "must be True or False, got str"),
        (Traced(np.bool_(True)), TYPE, "must be True or False, got "),
    ]
    return {
        "strides": steps,
        "kernel_dilation": steps,
        "input_dilation": steps,
        "window_dilation": steps,
        "output_padding": [*many(rank), *at_least(0, rank)],
        "window_shape": sizes,
        "output_shape": sizes,
        "kernel_shape": whole,
        "input_shape": whole,
        "padding": [
            ("FULL", VALUE, MODES),
            ("same", VALUE, MODES),
            ("", VALUE, MODES),
            (0.5, TYPE, f"{INTEGERS} 0.5 is of type float"),
            (None, TYPE, f"{INTEGERS} None is of type NoneType"),
            (True, TYPE, f"{INTEGERS} True is of type bool"),
            (b"SAME", TYPE, f"{INTEGERS} .* is of type bytes"),
            ({0: 1}, TYPE, f"{INTEGERS} .* is of type dict"),
            ((0,) * 7, VALUE, rf"must be a name, an integer, or {rank} entries \(an integer or a .* axis, got 7"),
            (((0, 0, 0), *zero), VALUE, r"must hold \(low, high\) pairs, got \(0, 0, 0\)"),
            (((0, 0.5), *zero), TYPE, f"{INTEGERS} 0.5 is of type float"),
            (((0, (0, 0)), *zero), TYPE, f"{INTEGERS} .* is of type tuple"),
            (("SAME", *zero), TYPE, f"{INTEGERS} 'SAME' is of type str"),
            (Traced(np.int32(1)), TYPE, f"{STATIC}, got"),
            (Traced(np.ones(rank, np.int32)), TYPE, f"{STATIC}, not traced ones"),
            *([("CAUSAL", VALUE, f"is for one spatial axis, and there are {rank}")] if rank > 1 else []),
        ],
        "feature_group_count": [
            *at_least(1, 1)[:2],
            (2.0, TYPE, f"{INTEGERS} 2.0 is of type float"),
            ("2", TYPE, f"{INTEGERS} '2' is of type str"),
            (None, TYPE, f"{INTEGERS} None is of type NoneType"),
            (True, TYPE, f"{INTEGERS} True is of type bool"),
            ((2, 2), TYPE, f"{INTEGERS} .* is of type tuple"),
            (Traced(np.int32(1)), TYPE, f"{STATIC}, got"),
        ],
        "data_format": [
            ("NHWC", VALUE, f"must be {FORMATS}"),
            ("Channels_Last", VALUE, f"must be {FORMATS}"),
            (None, TYPE, f"must be a string, {FORMATS}"),
            (1, TYPE, f"must be a string, {FORMATS}"),
            (["channels_last"], TYPE, f"must be a string, {FORMATS}"),
            (Traced(np.int32(1)), TYPE, f"must be a string, {FORMATS}"),
        ],
        "precision": [
            ("best", VALUE, "must be None, a jax.lax.Precision, or one of 'default', 'high', 'highest'"),
            (1.5, TYPE, "must be None, a string or a jax.lax.Precision, got float"),
            ({}, TYPE, "must be None, a string or a jax.lax.Precision, got dict"),
            (("high",) * 3, VALUE, "must be one precision or a pair of them"),
            (("high", None), VALUE, "must be one precision or a pair of them, each a string or a jax.lax.Precision"),
            ((("high", "high"), "high"), VALUE, "must be one precision or a pair of them"),
            ((jax.lax.DotAlgorithmPreset.F32_F32_F32, "high"), VALUE, "must be one precision or a pair of them"),
            (Traced(np.int32(1)), TYPE, "must be None, a string or a jax.lax.Precision, got"),
        ],
        "preferred_element_type": [
            ("float99", TYPE, "must be None or a dtype"),
            (3, TYPE, "must be None or a dtype"),
            ({}, TYPE, "must be None or a dtype"),
            (zeros(2), TYPE, "must be None or a dtype"),
            (Traced(np.int32(1)), TYPE, "must be None or a dtype"),
            ("float16", VALUE, "must be as wide as the operands' float32, or wider"),
            (jnp.bfloat16, VALUE, "must be as wide as the operands' float32, or wider"),
            ("int32", VALUE, "must be of the same kind as the operands' float32"),
            (np.complex64, VALUE, "must be of the same kind as the operands' float32"),
            (bool, VALUE, "must be of the same kind as the operands' float32"),
            ("S3", VALUE, "must be of the same kind as the operands' float32"),
            ("f4,f4", VALUE, "must be of the same kind as the operands' float32"),
            ("float64", VALUE, "must have at most 32 bits .* unless jax_enable_x64 is set"),
            (np.dtype("float64"), VALUE, "must have at most 32 bits .* unless jax_enable_x64 is set"),
        ],
        "algorithm": [
            ("fast", VALUE, "must be one of 'auto', "),
            (None, TYPE, "must be a string or a mapping from product to string"),
            (["lax"], TYPE, "must be a string or a mapping from product to string"),
            ({"backward": "lax"}, VALUE, "names 'backward', which must be one of 'forward', 'kernel_grad', 'input_grad'"),
            ("matmul", VALUE, "does not apply to the forward product of this layer .* these do: .*lax"),
        ],
        "ceil_mode": flags,
        "return_indices": flags,
        "count_include_pad": flags,
        "divisor_override": [
            (0, VALUE, "must not be zero"),
            (10**20, VALUE, "must .* fit in 64 bits"),
            (2.5, TYPE, f"{INTEGERS} 2.5 is of type float"),
            ("4", TYPE, f"{INTEGERS} '4' is of type str"),
            (True, TYPE, f"{INTEGERS} True is of type bool"),
            ((2, 2), TYPE, f"{INTEGERS} .* is of type tuple"),
            (Traced(np.int32(2)), TYPE, f"{STATIC}, got"),
        ],
        "p": [
            (0, VALUE, "must be above 0"),
            (-math.inf, VALUE, "must be above 0"),
            (-2.5, VALUE, "must be above 0"),
            (math.nan, VALUE, "must be above 0"),
            (10**20, VALUE, "must be above 0 and fit in 64 bits, or inf"),
            ("2", TYPE, "must be a static number, got str"),
            (True, TYPE, "must be a static number, got bool"),
            (None, TYPE, "must be a static number, got NoneType"),
            (2j, TYPE, "must be a static number, got complex"),
            ((2, 2), TYPE, "must be a static number, got tuple"),
            (Traced(np.float32(2)), TYPE, "must be a static number, got"),
        ],
    }  # fmt: skip


def everywhere(operator: str) -> Iterator[Wrong]:
    """The cases of `operator` that follow from the names of its arguments."""
    table = settings(RANK.get(operator, 2))
    if operator == "fold":  # may fold to nothing
        table["output_shape"] = [*lengths(2), *at_least(0, 2)]
    for argument, parameter in inspect.signature(getattr(jconv, operator)).parameters.items():
        if argument in ARRAYS:
            for value, error, match in NO_ARRAYS:
                if value is not None or parameter.default is not None:  # bias=None: no bias
                    yield Wrong(operator, {argument: value}, error, f"{argument}{match}")
        for value, error, expected in table.get(argument, []):
            if value is None and parameter.default is None:
                continue  # strides=None: 1, where that is the default
            shown = ".*" if isinstance(value, Traced | np.ndarray) else re.escape(repr(value))
            yield Wrong(operator, {argument: value}, error, f"{argument}={shown} {expected}")
