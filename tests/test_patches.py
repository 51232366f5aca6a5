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

GEOMETRIES = 25
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
    check(NAMED["empty batch, circular"], dtype)


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
    x = jnp.zeros((1, 40, 1)).at[0, 20, 0].set(np.nan)
    columns = np.asarray(jconv.unfold(x, window))
    place, tap = np.nonzero(np.isnan(columns[0]))
    equal(place + tap, np.full(window, 20))
    back = np.asarray(jconv.fold(jnp.asarray(columns), 40, window)).ravel()
    assert np.flatnonzero(np.isnan(back)).tolist() == [20]


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
