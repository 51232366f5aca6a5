"""Pooling against the oracle, and against jax.grad of lax where that is right; derivatives: test_pool_derivatives.py.

`make test` runs the named cases of tests/pool_cases.py and GEOMETRIES drawn ones, the same at every run.
"""

import dataclasses
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jconv
from jconv import reference
from tests.cases import precise, tolerance
from tests.pool_cases import CASES, MODES, NAMED, Pool, pools

GEOMETRIES = {"oracle": 40, "exact": 20, "adaptive": 25}
FLOATS = ("float32", "bfloat16", "float16", "float64")
INTEGERS = ("int8", "uint8", "int32", "uint32")
equal = functools.partial(np.testing.assert_array_equal, strict=True)


def pull(f, x, g):
    """y = f(x), and the gradient of <y, g>."""
    y, back = jax.vjp(f, x)
    return y, back(g.astype(y.dtype))[0]


def family(case: Pool, x, g, names=None):
    """Everything that the poolings compute of one case, by name; of `names` alone."""
    bind = lambda f, **more: functools.partial(f, **case.options, data_format=case.data_format, **more)
    poolings = {
        "max_pool": bind(jconv.max_pool),
        "min_pool": bind(jconv.min_pool),
        "sum_pool": bind(jconv.sum_pool),
        "avg_pool": bind(jconv.avg_pool),
        "avg_pool, padding not counted": bind(jconv.avg_pool, count_include_pad=False),
        "avg_pool, divisor": bind(jconv.avg_pool, divisor_override=-3),
        "lp_pool 1": bind(jconv.lp_pool, p=1),
        "lp_pool 2": bind(jconv.lp_pool, p=2),
        "lp_pool 3.5": bind(jconv.lp_pool, p=3.5),
        "lp_pool inf": bind(jconv.lp_pool, p=math.inf),
    }
    got = {}
    for name, f in poolings.items():
        if names is not None and name not in names:
            continue
        if jnp.issubdtype(x.dtype, jnp.floating):
            got[name], got[f"{name}'s dx"] = pull(f, x, g)
        else:
            got[name] = f(x)
    if case.padding not in MODES:
        for name in ("max_pool", "min_pool") if names is None else ("max_pool",):
            values, got[f"{name}'s indices"] = bind(getattr(jconv, name), return_indices=True)(x)
            got[f"{name} with indices"] = values
    return got


def oracle(case: Pool, x, g):
    """What `family` must be."""
    x, g, options = case.to_last(x), case.to_last(g), case.options
    want = {}
    for name in ("max_pool", "min_pool"):
        extreme, gradient = getattr(reference, name), getattr(reference, f"{name}_grad")
        want[name], want[f"{name}'s indices"] = extreme(x, **options, return_indices=True)
        want[f"{name} with indices"] = want[name]
        want[f"{name}'s dx"] = gradient(x, g, **options)
    want["sum_pool"] = reference.sum_pool(x, **options)
    want["sum_pool's dx"] = reference.sum_pool_grad(g, x.shape, **options)
    for name, more in {
        "avg_pool": {},
        "avg_pool, padding not counted": {"count_include_pad": False},
        "avg_pool, divisor": {"divisor_override": -3},
    }.items():
        want[name] = reference.avg_pool(x, **options, **more)
        want[f"{name}'s dx"] = reference.avg_pool_grad(g, x.shape, **options, **more)
    for p in (1, 2, 3.5, math.inf):
        want[f"lp_pool {p}"] = reference.lp_pool(x, p, **options)
        want[f"lp_pool {p}'s dx"] = reference.lp_pool_grad(x, p, g, **options)
    return {name: case.out(value) for name, value in want.items()}


def check_oracle(case: Pool, seed: int = 0) -> None:
    """In float64 to 1e-10, with ties."""
    x, g = case.draw("float64", seed), case.draw("float64", seed + 1, case.y_shape)
    with jax.enable_x64(True):
        got = jax.device_get(jax.jit(functools.partial(family, case))(x, g))
    want = oracle(case, x, g)
    for name, value in got.items():
        finite = np.where(np.isfinite(want[name]), want[name], 0)
        assert value.dtype == ("int32" if "indices" in name and "with" not in name else "float64"), name
        np.testing.assert_allclose(value, want[name], **precise(finite), err_msg=f"{name} of {case!r}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_cases_against_the_oracle(case):
    check_oracle(case)


@hypothesis.settings(max_examples=GEOMETRIES["oracle"])
@hypothesis.given(case=pools(), seed=st.integers(0, 9))
def test_drawn_geometries_against_the_oracle(case, seed):
    check_oracle(case, seed)


def check_exact(case: Pool, dtype: str, names=None) -> None:
    """On small whole numbers, whose sums are exact in float32: equal to the oracle rounded once; averages to rounding."""
    x, g = case.draw(dtype), case.draw(dtype, 1, case.y_shape)
    with jax.enable_x64(dtype == "float64"):
        got = jax.device_get(jax.jit(functools.partial(family, case, names=names))(x, g))
    want = oracle(case, x, g)
    for name, value in got.items():
        if "lp_pool" in name and ("inf" not in name):  # roots are not exact
            continue
        if name.startswith(("max", "min", "sum")):
            assert value.dtype == ("int32" if name.endswith("indices") and "with" not in name else dtype), name
        with np.errstate(invalid="ignore", over="ignore"):
            expected = want[name].astype(value.dtype)
        if "avg" in name:  # XLA may multiply by 1 / window size
            rounded = tolerance(str(value.dtype), case.terms, want[name])
            np.testing.assert_allclose(value, want[name], **rounded, err_msg=name)
        else:
            equal(value, expected, err_msg=f"{name} of {case!r}")


EXACT = [
    NAMED[name]
    for name in ("overlapping, padded", "stride 1, padded", "blocks, elements left over", "dilated, strided, padded",
                 "windows wholly in the padding, two axes", "ceil, padded", "long window", "circular")
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_whole_numbers_are_exact(case, dtype):
    check_exact(case, dtype)


@pytest.mark.optimised
@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_cases_as_users_run_them(case):
    check_exact(case, "float32", ("max_pool", "sum_pool", "avg_pool, padding not counted", "lp_pool inf"))


@hypothesis.settings(max_examples=GEOMETRIES["exact"])
@hypothesis.given(case=pools(), dtype=st.sampled_from(FLOATS + INTEGERS))
def test_drawn_whole_numbers_are_exact(case, dtype):
    check_exact(case, dtype)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("case", EXACT[:3], ids=str)
def test_complex_sums(case, dtype):
    x, g = case.draw(dtype), case.draw(dtype, 1, case.y_shape)
    options = case.options | {"data_format": case.data_format}
    with jax.enable_x64(dtype == "complex128"):
        y, dx = pull(functools.partial(jconv.sum_pool, **options), x, g)
        mean, dmean = pull(functools.partial(jconv.avg_pool, **options), x, g)
    equal(np.asarray(y), reference.sum_pool(x, **case.options).astype(dtype))
    equal(np.asarray(dx), reference.sum_pool_grad(g, x.shape, **case.options).astype(dtype))
    np.testing.assert_allclose(mean, reference.avg_pool(x, **case.options), rtol=1e-6)
    np.testing.assert_allclose(dmean, reference.avg_pool_grad(g, x.shape, **case.options), rtol=1e-5, atol=1e-6)


def stock(case: Pool, x, operator, initial):
    dilation = case.dilation if isinstance(case.dilation, tuple) else (case.dilation,) * case.rank
    strides = (1,) * case.rank if case.strides is None else case.strides
    strides = (strides,) * case.rank if isinstance(strides, int) else strides
    window = (1, *case.window, 1)
    pads = ((0, 0), *case.pads, (0, 0))
    initial = jnp.array(initial, x.dtype)
    return lax.reduce_window(x, initial, operator, window, (1, *strides, 1), pads, window_dilation=(1, *dilation, 1))


STOCK = [
    case
    for case in CASES
    if case.padding not in MODES
    and not case.ceil_mode
    and case.data_format == "channels_last"
    and case.batch is not None
    and case.dilation == 1
    and all(low >= 0 and high >= 0 for low, high in case.pads)
    and "wholly" not in case.name
    and 0 not in case.space
]


@pytest.mark.parametrize("case", STOCK, ids=str)
def test_against_jax_grad_of_lax(case):
    """Distinct values: lax sends the gradient of a NaN, and of a tie with its padding's -inf, elsewhere."""
    x, g = jnp.asarray(case.draw("float32", whole=False)), jnp.asarray(case.draw("float32", 1, case.y_shape))
    for f, operator, initial in (
        (jconv.max_pool, lax.max, -np.inf),
        (jconv.min_pool, lax.min, np.inf),
        (jconv.sum_pool, lax.add, 0),
    ):
        got = pull(functools.partial(f, **case.options), x, g)
        want = pull(functools.partial(stock, case, operator=operator, initial=initial), x, g)
        if operator is not lax.add:
            equal(np.asarray(got[0]), np.asarray(want[0]))
        for a, b in zip(got, want):
            finite = np.where(np.isfinite(b), b, 0)  # -inf of a window wholly in the padding
            np.testing.assert_allclose(a, b, **tolerance("float32", case.terms, finite))


def test_jax_grad_runs_the_hand_written_pieces():
    """The jaxpr holds our primitives, and nothing that JAX derived from reduce_window."""
    x = jnp.ones((1, 6, 6, 1))

    def names(f):
        return {eqn.primitive.name for eqn in jax.make_jaxpr(jax.grad(lambda x: f(x).sum()))(x).eqns}

    seen = names(lambda x: jconv.max_pool(x, (2, 2)))
    assert {"winner", "scatter_winner"} <= seen
    seen |= names(lambda x: jconv.avg_pool(x, (2, 2)))
    assert {"window_sum", "window_spread"} <= seen
    seen |= names(lambda x: jconv.unfold(x, (2, 2))) | names(lambda x: jconv.adaptive_max_pool(x, (4, 4)))
    assert {"expand", "collect"} <= seen
    stock_names = ("reduce_window", "select_and_scatter", "select_and_gather", "scatter-add", "conv_general_dilated")
    assert not [name for name in seen if name.startswith(stock_names)]
    text = jax.jit(jax.grad(lambda x: jconv.max_pool(x, (3, 3), 2, 1).sum())).lower(x).as_text()
    assert "reduce_window" not in text
    assert "stablehlo.scatter" not in text


@pytest.mark.parametrize(
    ("window", "dtype"), [((2, 2), "uint8"), ((16, 16), "uint8"), ((16, 17), "uint16"), ((257, 256), "int32")]
)
def test_the_index_alone_is_kept(window, dtype):
    """Between forward and backward: one small integer for each output, and nothing else."""
    x = jax.ShapeDtypeStruct((1, 258, 257, 2), jnp.float32)
    residuals = jax.eval_shape(lambda x: jax.vjp(lambda x: jconv.max_pool(x, window), x)[1], x)
    leaves = jax.tree.leaves(residuals)
    places = (1, 259 - window[0], 258 - window[1], 2)
    assert [(leaf.shape, leaf.dtype) for leaf in leaves] == [(places, jnp.dtype(dtype))]
    for f in (jconv.avg_pool, jconv.sum_pool):
        assert not jax.tree.leaves(jax.eval_shape(lambda x, f=f: jax.vjp(lambda x: f(x, window), x)[1], x))


@pytest.mark.optimised
def test_indices_and_values_are_computed_once():
    """The winner of the indices and that of the rule are one computation in the compiled program."""
    f = lambda x: jconv.max_pool(x, (2, 2), 2, return_indices=True)
    g = lambda x: jconv.max_pool(x, (2, 2), 2)
    x = jnp.ones((1, 8, 8, 4))
    count = lambda f: jax.jit(f).lower(x).compile().as_text().count(" maximum(")
    assert count(lambda x: jax.vjp(f, x, has_aux=True)[0]) <= count(g)


# Ties, NaN, infinities.


def line(*values, dtype=np.float32):
    return jnp.asarray(np.array(values, dtype).reshape(1, -1, 1))


def winners(f, x, **options):
    """(y, indices, gradient of the sum) of a pooling of a line."""
    y, indices = f(x, **options, return_indices=True)
    dx = jax.grad(lambda x: jnp.sum(f(x, **options)))(x)
    return [np.asarray(v).ravel().tolist() for v in (y, indices, dx)]


def test_the_first_of_equals_wins():
    y, indices, dx = winners(jconv.max_pool, line(1, 5, 5, 2, 5), window_shape=3)
    assert (y, indices, dx) == ([5, 5, 5], [1, 1, 2], [0, 2, 1, 0, 0])
    y, indices, dx = winners(jconv.min_pool, line(0.0, -0.0, 0.0), window_shape=2)
    assert (indices, dx) == ([0, 1], [1, 1, 0])
    square = jnp.ones((1, 3, 3, 1))
    indices = jconv.max_pool(square, (2, 2), return_indices=True)[1]
    assert indices.ravel().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("f", [jconv.max_pool, jconv.min_pool])
@pytest.mark.parametrize("window", [2, 3, 20])
def test_the_first_nan_wins(f, window):
    values = np.arange(40.0)
    values[[4, 5, 9, 25, 26]] = np.nan
    x = line(*values)
    y, indices, dx = winners(f, x, window_shape=window, padding=1)
    want, places = getattr(reference, f.__name__)(np.asarray(x), window, padding=1, return_indices=True)
    equal(np.array(y), want.ravel())
    assert indices == places.ravel().tolist()
    gradient = getattr(reference, f"{f.__name__}_grad")(np.asarray(x), np.ones(want.shape), window, padding=1)
    assert dx == gradient.ravel().tolist()


@pytest.mark.parametrize("window", [(3, 2), (5, 5), (20, 3)])
def test_nan_in_two_axes(window):
    x = np.random.default_rng(0).integers(-3, 4, (2, 21, 6, 2)).astype(np.float32)
    x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    x[np.random.default_rng(2).random(x.shape) < 0.3] = -np.inf
    y, indices = jconv.max_pool(x, window, (2, 1), 2, return_indices=True)
    want, places = reference.max_pool(x, window, (2, 1), 2, return_indices=True)
    equal(np.asarray(y), want.astype(np.float32))
    equal(np.asarray(indices), places.astype(np.int32))


@pytest.mark.parametrize("window", [3, 20])
def test_padding_never_wins(window):
    """Not even over -inf, or the least integer: XLA's padding ties with it, and the gradient is lost."""
    x = line(*[-np.inf] * 4)
    _, indices, dx = winners(jconv.max_pool, x, window_shape=window, padding=window - 1)
    assert min(indices) >= 0
    assert sum(dx) == 4 + window - 1
    least = jnp.full((1, 4, 1), np.iinfo(np.int32).min)
    indices = jconv.max_pool(least, window, padding=window - 1, return_indices=True)[1]
    assert indices.min() >= 0
    _, indices, _ = winners(jconv.min_pool, line(np.inf, np.inf), window_shape=2, padding=((2, 2),))
    assert indices == [-1, 0, 0, 1, -1]


def test_windows_wholly_in_the_padding():
    y, indices, dx = winners(jconv.max_pool, line(1, 2), window_shape=2, strides=2, padding=((4, 3),))
    assert (y, indices, dx) == ([-np.inf, -np.inf, 2, -np.inf], [-1, -1, 1, -1], [0, 1])
    x = line(1, 2, dtype=np.int8)
    assert jconv.max_pool(x, 2, 2, ((4, 3),)).ravel().tolist() == [-128, -128, 2, -128]
    assert jconv.min_pool(x, 2, 2, ((4, 3),)).ravel().tolist() == [127, 127, 1, 127]
    assert np.isnan(jconv.avg_pool(line(1.0), 1, padding=1, count_include_pad=False)).ravel().tolist() == [1, 0, 1]
    dx = jax.grad(lambda x: jnp.nansum(jconv.avg_pool(x, 1, padding=1, count_include_pad=False)))(line(1.0))
    assert dx.ravel().tolist() == [1]


def test_indices_known_by_hand():
    """A 4 x 4 image, 3 x 3 windows with stride 2 and padding 1: what PyTorch says."""
    x = jnp.asarray(np.array([[9, 1, 2, 3], [4, 5, 6, 7], [8, 9, 1, 2], [3, 4, 5, 9]], np.float32).reshape(1, 4, 4, 1))
    y, indices = jconv.max_pool(x, (3, 3), 2, 1, return_indices=True)
    assert y.ravel().tolist() == [9, 7, 9, 9]
    assert indices.ravel().tolist() == [0, 7, 9, 9]
    assert indices.dtype == jnp.int32


def test_dilated_max_pooling_has_a_gradient():
    """JAX has none: its reduce_window says `Window dilation not implemented`."""
    x = line(3, 1, 2, 5, 4, 0)
    dx = jax.grad(lambda x: jnp.sum(jconv.max_pool(x, 2, window_dilation=3) * jnp.array([1.0, 2, 4]).reshape(1, 3, 1)))
    assert dx(x).ravel().tolist() == [0, 0, 4, 1, 2, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_sums_in_float32(dtype):
    """The winner of 441 windows gets 441, where jax.grad of lax and PyTorch stop at 256."""
    x = np.zeros((1, 61, 61, 1), dtype)
    x[0, 30, 30, 0] = 1
    dx = jax.grad(lambda x: jnp.sum(jconv.max_pool(x, (21, 21)).astype(jnp.float32)))(jnp.asarray(x))
    assert dx[0, 30, 30, 0] == jnp.array(441, dtype)
    ones = jnp.ones((1, 400, 1), dtype)
    assert jconv.sum_pool(ones, 400).item() == 400
    assert jconv.avg_pool(ones, 400).item() == 1
    dx = jax.grad(lambda x: jnp.sum(jconv.sum_pool(x, 300, padding=299).astype(jnp.float32)))(ones)
    assert np.all(np.asarray(dx) == jnp.array(300, dtype))
    dx = jax.grad(lambda x: jnp.sum(jconv.sum_pool(x, 400, padding="CIRCULAR").astype(jnp.float32)))(ones[:, :1])
    assert dx.item() == 400
    dx = jax.grad(lambda x: jnp.sum(jconv.adaptive_max_pool(x, 900).astype(jnp.float32)))(jnp.ones((1, 1, 1), dtype))
    assert dx.item() == jnp.array(900, dtype)


def test_integers_divide_to_float():
    x = line(1, 2, 4, dtype=np.int16)
    y = jconv.avg_pool(x, 2)
    assert (y.dtype, y.ravel().tolist()) == (jnp.float32, [1.5, 3])
    assert jconv.lp_pool(x, 2, 2).dtype == jnp.float32
    assert jconv.adaptive_avg_pool(x, 2).ravel().tolist() == [1.5, 3]
    assert jconv.sum_pool(line(100, 100, dtype=np.int8), 2).ravel().tolist() == [-56]


# lp_pool where derivatives are special.


def test_lp_pool_at_zero():
    zeros = jnp.zeros((1, 4, 1))
    for p in (0.5, 1, 1.5, 2, 3, math.inf):
        f = lambda x, p=p: jnp.sum(jconv.lp_pool(x, p, 2))
        assert not np.any(jax.grad(f)(zeros)), p
        assert np.all(np.isfinite(jax.hessian(f)(zeros))), p
        some = jnp.array([0.0, 2, 0, -3]).reshape(1, 4, 1)
        assert np.all(np.isfinite(jax.grad(f)(some))), p
        assert np.all(np.isfinite(jax.hessian(f)(some))), p
    # |x|^2 is smooth at 0, so its curvature there counts: y = sqrt(x^2 + 4), d2y/dx2 = 1/2.
    hessian = jax.hessian(lambda a: jnp.sum(jconv.lp_pool(jnp.stack([a, 2.0]).reshape(1, 2, 1), 2, 2)))(0.0)
    assert hessian == 0.5


# Adaptive pooling, global pooling, unpooling.


def check_adaptive(space, output, batch=2, channels=2, data_format="channels_last") -> None:
    case = Pool(space, space, batch=batch, channels=channels, data_format=data_format)
    x = case.draw("float64")
    y_shape = dataclasses.replace(case, space=output).x_shape
    g = case.draw("float64", 1, y_shape)

    def run(x, g):
        y, indices = jconv.adaptive_max_pool(x, output, return_indices=True, data_format=data_format)
        y_only, dx = pull(
            functools.partial(jconv.adaptive_max_pool, output_shape=output, data_format=data_format), x, g
        )
        mean = functools.partial(jconv.adaptive_avg_pool, output_shape=output, data_format=data_format)
        return y, indices, y_only, dx, *pull(mean, x, g)

    with jax.enable_x64(True):
        got = jax.jit(run)(x, g)
    last, g = case.to_last(x), case.to_last(g)
    y, indices = reference.adaptive_max_pool(last, output, return_indices=True)
    want = y, indices, y, reference.adaptive_max_pool_grad(last, g), reference.adaptive_avg_pool(last, output)
    for a, b in zip(got, (*want, reference.adaptive_avg_pool_grad(g, last.shape))):
        np.testing.assert_allclose(a, case.out(b), **precise(b), err_msg=f"{space} to {output}")


@pytest.mark.parametrize(
    ("space", "output"),
    [((6,), (3,)), ((7,), (3,)), ((3,), (7,)), ((1,), (20,)), ((8, 6), (3, 4)), ((7, 5), (1, 5)), ((40,), (2,)),
     ((37,), (2,)), ((4, 3, 5), (3, 2, 7))],
)  # fmt: skip
def test_adaptive_pools_against_the_oracle(space, output):
    check_adaptive(space, output)


@hypothesis.settings(max_examples=GEOMETRIES["adaptive"])
@hypothesis.given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 11)), min_size=1, max_size=3),
    batch=st.sampled_from([2, 0, None]),
    data_format=st.sampled_from(["channels_last", "channels_first"]),
)
def test_drawn_adaptive_pools(lengths, batch, data_format):
    space, output = zip(*lengths)
    check_adaptive(space, output, batch, 2, data_format)


def test_a_nan_stays_in_its_adaptive_windows():
    y = jconv.adaptive_avg_pool(line(1, 2, np.nan, 4, 5, 6, 7), 3)
    assert np.isnan(y).ravel().tolist() == [True, True, False]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_global_pools_are_windows_as_large_as_the_input(data_format):
    case = Pool((5, 4), (5, 4), data_format=data_format)
    x = jnp.asarray(case.draw("float32"))
    options = {"window_shape": case.window, "data_format": data_format}
    equal(np.asarray(jconv.global_max_pool(x, data_format=data_format)), np.asarray(jconv.max_pool(x, **options)))
    equal(np.asarray(jconv.global_avg_pool(x, data_format=data_format)), np.asarray(jconv.avg_pool(x, **options)))


@pytest.mark.parametrize(
    "case", [NAMED[n] for n in ("overlapping, padded", "channels first", "unbatched", "empty batch")], ids=str
)
def test_max_unpool_puts_values_back(case):
    x = jnp.asarray(case.draw("float32", whole=False))
    y, indices = jconv.max_pool(x, **case.options, return_indices=True, data_format=case.data_format)
    back = functools.partial(jconv.max_unpool, indices=indices, output_shape=case.space, data_format=case.data_format)
    g = jnp.asarray(case.draw("float32", 1))
    got = pull(back, y, g)
    want = reference.max_unpool(case.to_last(y), case.to_last(indices), case.space)
    equal(np.asarray(got[0]), case.out(want).astype(np.float32))
    gradient = reference.max_unpool_grad(case.to_last(g), case.to_last(indices))
    equal(np.asarray(got[1]), case.out(gradient).astype(np.float32))


def test_max_unpool_drops_what_is_outside():
    y, indices = line(1, 2, 3), jnp.array([-1, 2, 0]).reshape(1, 3, 1)
    assert jconv.max_unpool(y, indices, 4).ravel().tolist() == [3, 0, 2, 0]
    far = indices.at[0, 1, 0].set(9)
    with pytest.raises(
        ValueError, match=r"max_unpool: indices must be from -1 to 3, elements of output_shape=4, got 9"
    ):
        jconv.max_unpool(y, far, 4)
    f = lambda y, i: jconv.max_unpool(y, i, 4)
    assert jax.jit(f)(y, far).ravel().tolist() == [3, 0, 0, 0]
    dy = jax.jit(jax.grad(lambda y, i: jnp.sum(f(y, i) * 5)))(y, far)
    assert dy.ravel().tolist() == [0, 0, 5]
    assert f(line(1, 2), jnp.array([1, 1], jnp.uint8).reshape(1, 2, 1)).ravel().tolist() == [0, 2, 0, 0]
    two = jnp.stack([indices, far])
    out = jax.vmap(jax.jit(f), (None, 0))(y, two)
    assert out[:, 0, :, 0].tolist() == [[3, 0, 2, 0], [3, 0, 0, 0]]


@pytest.mark.parametrize(
    ("padding", "places"),
    [(((0, 0), (2, -2)), (2, 1)), (((5, -4), (2, -1)), (3, 2)), (((1, 0), (4, -3)), (3, 2)), (((0, 0), (1, -2)), None)],
)
def test_ceil_mode_with_padding_that_crops_more_than_the_input(padding, places):
    """What is left of an axis is padding before the input: as many places as the oracle has."""
    x, options = np.ones((1, 2, 1, 1)), {"padding": padding, "ceil_mode": True}
    if places is None:
        with pytest.raises(ValueError, match="the window does not fit on spatial axis 1"):
            jconv.sum_pool(x, (1, 1), **options)
        return
    for ours, oracle in ((jconv.sum_pool, reference.sum_pool), (jconv.avg_pool, reference.avg_pool)):
        y = ours(x, (1, 1), **options)
        assert y.shape == (1, *places, 1)
        np.testing.assert_array_equal(y, oracle(x, (1, 1), **options))
