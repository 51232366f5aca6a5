"""unfold and fold against the oracle, against lax's patches, and against each other."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jconv
from jconv import reference
from tests.pool_cases import CASES, NAMED, Pool, pools

GEOMETRIES = 40
equal = functools.partial(np.testing.assert_array_equal, strict=True)
UNCEILED = [case for case in CASES if not case.ceil_mode and case.terms < 400]


def check(case: Pool, dtype: str, seed: int = 0) -> None:
    """On small whole numbers, unfold and fold, each with its gradient, equal the oracle."""
    x = case.draw(dtype, seed)
    columns = reference.unfold(case.to_last(x), **case.patches)
    g = case.draw(dtype, seed + 1, case.out(columns).shape)
    folded = reference.fold(case.to_last(g), case.space, **case.patches)
    unfold = functools.partial(jconv.unfold, **case.patches, data_format=case.data_format)
    fold = functools.partial(jconv.fold, output_shape=case.space, **case.patches, data_format=case.data_format)

    def run(x, g):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return unfold(x), fold(g)
        (y, back), (u, again) = jax.vjp(unfold, x), jax.vjp(fold, g)
        return y, u, *again(x), *back(g)

    with jax.enable_x64(dtype in ("float64", "complex128")):
        got = jax.device_get(jax.jit(run)(x, g))
    for value, want in zip(got, (columns, folded, columns, folded)):
        equal(value, case.out(want).astype(dtype), err_msg=f"{case!r}")


@pytest.mark.parametrize("case", UNCEILED, ids=str)
def test_named_cases_against_the_oracle(case):
    check(case, "float64")


@hypothesis.settings(max_examples=GEOMETRIES)
@hypothesis.given(case=pools().filter(lambda case: not case.ceil_mode), seed=st.integers(0, 9))
def test_drawn_geometries_against_the_oracle(case, seed):
    check(case, "float64", seed)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "complex64", "complex128", "int8", "uint8", "int32"]
)
def test_dtypes(dtype):
    check(NAMED["dilated, strided, padded"], dtype)
    check(NAMED["long window"], dtype)


@pytest.mark.parametrize("case", [NAMED["overlapping, padded"], NAMED["three axes"], NAMED["dilated"]], ids=str)
def test_columns_stand_as_in_lax(case):
    x = jnp.asarray(case.draw("float32"))
    rank = case.rank
    spread = lambda value: (value,) * rank if isinstance(value, int) else tuple(value)
    letters = "xyz"[:rank]
    patches = lax.conv_general_dilated_patches(
        x, case.window, spread(case.patches["strides"]), case.pads, rhs_dilation=spread(case.dilation),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )  # fmt: skip
    equal(np.asarray(jconv.unfold(x, **case.patches)), np.asarray(patches))


@pytest.mark.parametrize("window", [3, 20])
def test_a_nan_stays_in_its_own_column(window):
    """lax's patches multiply by zeros, which spreads it."""
    x = jnp.zeros((1, 40, 1)).at[0, 25, 0].set(np.nan)
    columns = np.asarray(jconv.unfold(x, window))
    place, tap = np.nonzero(np.isnan(columns[0]))
    equal(place + tap, np.full(window, 25))
    back = np.asarray(jconv.fold(jnp.asarray(columns), 40, window)).ravel()
    assert np.flatnonzero(np.isnan(back)).tolist() == [25]


def test_low_precision_is_added_in_float32():
    ones = jnp.ones((1, 600, 300), jnp.bfloat16)
    assert jconv.fold(ones, 899, 300)[0, 450, 0] == jnp.bfloat16(300)
    square = jnp.ones((1, 40, 40, 400), jnp.bfloat16)
    assert jconv.fold(square, (59, 59), 20)[0, 30, 30, 0] == jnp.bfloat16(400)


def test_the_program_is_bounded():
    """Long windows are one gather and a loop, not a line a tap."""
    size = lambda f, *args: len(jax.jit(f).lower(*args).as_text().splitlines())
    x = jnp.ones((1, 700, 1))
    assert size(lambda x: jconv.unfold(x, 600), x) < 200
    assert size(lambda c: jconv.fold(c, 700, 600), jnp.ones((1, 101, 600))) < 200


ARRAY = np.zeros((2, 6, 5, 3), np.float32)
VALUE, TYPE = ValueError, TypeError
WRONG = {
    "list": (jconv.unfold, ([1.0], 2), {}, TYPE, r"unfold: x=\[1.0\] must be a JAX or NumPy array"),
    "booleans": (jconv.unfold, (ARRAY > 0, 2), {}, TYPE, "unfold: x must have a float, complex or integer dtype"),
    "window 0": (jconv.unfold, (ARRAY, 0), {}, VALUE, "unfold: window_shape=0 must be at least 1, got 0"),
    "window large": (jconv.unfold, (ARRAY, (7, 2)), {}, VALUE, "unfold: the window does not fit on spatial axis 0"),
    "stride 0": (jconv.unfold, (ARRAY, 2), {"strides": 0}, VALUE, "unfold: strides=0 must be at least 1"),
    "stride float": (jconv.unfold, (ARRAY, 2), {"strides": 1.0}, TYPE, "unfold: strides=1.0 must hold integers"),
    "padding": (jconv.unfold, (ARRAY, 2), {"padding": "all"}, VALUE, "unfold: padding='all' must be one of"),
    "dilation": (jconv.unfold, (ARRAY, 2), {"window_dilation": -1}, VALUE, "unfold: window_dilation=-1 must be at least 1"),
    "format": (jconv.unfold, (ARRAY, 2), {"data_format": 1}, TYPE, "unfold: data_format=1 must be a string"),
    "rank": (jconv.unfold, (ARRAY, (2, 2, 2, 2)), {}, VALUE, "unfold: x must have 6 axes"),
    "fold list": (jconv.fold, ([1.0], 4, 2), {}, TYPE, r"fold: columns=\[1.0\] must be a JAX or NumPy array"),
    "fold places": (jconv.fold, (ARRAY, (6, 5), 2), {}, VALUE, r"fold: columns must have \(5, 4\) places, .* got shape"),
    "fold channels": (jconv.fold, (ARRAY, (7, 6), 2), {}, VALUE, "fold: columns must have a multiple of 4 channels"),
    "fold output": (jconv.fold, (ARRAY, (0, 6), 2), {}, VALUE, r"fold: output_shape=\(0, 6\) must be at least 1"),
    "fold output float": (jconv.fold, (ARRAY, 7.5, 2), {}, TYPE, "fold: output_shape=7.5 must hold integers"),
    "fold window": (jconv.fold, (ARRAY, (7, 6), (2, 2, 2)), {}, VALUE, r"fold: window_shape=\(2, 2, 2\) must be one integer or 2"),
    "fold stride": (jconv.fold, (ARRAY, (7, 6), 2), {"strides": 0}, VALUE, "fold: strides=0 must be at least 1"),
    "fold padding": (jconv.fold, (ARRAY, (7, 6), 2), {"padding": 0.5}, TYPE, "fold: padding=0.5 must hold integers"),
    "fold reflect": (jconv.fold, (ARRAY, (1, 6), 2), {"padding": "REFLECT"}, VALUE, "fold: padding='REFLECT' needs at least 2"),
    "fold format": (jconv.fold, (ARRAY, (7, 6), 2), {"data_format": "CHW"}, VALUE, "fold: data_format='CHW' must be one of"),
    "fold rank": (jconv.fold, (ARRAY, (7, 6, 5, 4), 2), {}, VALUE, "fold: columns must have 6 axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    f, args, options, error, match = WRONG[name]
    with pytest.raises(error, match=match):
        f(*args, **options)
