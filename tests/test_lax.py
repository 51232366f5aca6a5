"""jconv.lax against jax.lax: values, derivatives, dtypes, weak types, layouts and errors, over every argument.

jax.lax is taken in float64, in which XLA's CPU convolution is right with every padding (in float32 it is not, see
jconv/geometry.py); whole numbers make most comparisons exact.
"""

import inspect
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jconv import lax as ours


def whole(shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def place(lengths, spec):
    """The shape that has lengths[i] at axis spec[i]."""
    shape = [0] * len(spec)
    for axis, length in zip(spec, lengths):
        shape[axis] = length
    return tuple(shape)


def equal(got, want):
    """Same values, shape, dtype and weak type."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert jax.typeof(a) == jax.typeof(b)
        np.testing.assert_array_equal(a, b)


def near(got, want, tol=1e-10):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol * np.abs(np.asarray(b)).max(initial=1))


def draw(seed):
    """(operands, arguments) of a random lax convolution: any layout, stride, padding, dilation and grouping."""
    rng = random.Random(seed)
    rank = rng.choice([1, 1, 2, 2, 3])
    each = lambda choices: [rng.choice(choices) for _ in range(rank)]
    strides, dilation, gaps = each([1, 1, 2, 3]), each([1, 1, 2]), each([1, 1, 2])
    window, space = each([1, 2, 3, 4]), each([1, 2, 3, 4, 5, 6])
    if rng.random() < 0.3:
        window, space = each([3, 4, 5, 6]), each([1, 2])
    pads = []
    for k, n, d, e in zip(window, space, dilation, gaps):
        low, high = rng.randint(-1, 3), rng.randint(-1, 3)
        missing = max(0, (k - 1) * d + 1 - ((n - 1) * e + 1 + low + high))
        pads.append((low + missing, high + rng.choice([0, missing])))
    form = rng.choice(["dense", "feature", "batch"])
    groups, each_in = 1 if form == "dense" else rng.choice([2, 3]), rng.randint(1, 3)
    batch = rng.randint(1, 3) * (groups if form == "batch" else 1)
    features = each_in * (groups if form == "feature" else 1)
    specs = [rng.sample(range(rank + 2), rank + 2) for _ in range(3)]
    lhs = whole(place([batch, features, *space], specs[0]), seed)
    rhs = whole(place([groups * rng.randint(1, 2), each_in, *window], specs[1]), seed + 1)
    arguments = {
        "window_strides": strides,
        "padding": pads,
        "lhs_dilation": gaps,
        "rhs_dilation": dilation,
        "dimension_numbers": lax.ConvDimensionNumbers(*map(tuple, specs)),
        f"{form if groups > 1 else 'feature'}_group_count": groups,
    }
    return (lhs, rhs), arguments


@pytest.mark.parametrize("name", ours.__all__)
def test_signatures_are_those_of_jax_lax(name):
    plain = lambda f: [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()]
    assert plain(getattr(ours, name)) == plain(getattr(lax, name))


def test_every_other_name_is_that_of_jax_lax():
    assert ours.dot_general is lax.dot_general
    assert set(dir(lax)) <= set(dir(ours))
    with pytest.raises(AttributeError):
        ours.convolute


@pytest.mark.parametrize("seed", range(60))
def test_random_convolutions(x64, seed):
    operands, arguments = draw(seed)
    f = lambda *operands: ours.conv_general_dilated(*operands, **arguments)
    equal(jax.jit(f)(*operands), lax.conv_general_dilated(*operands, **arguments))
    single = [operand.astype("float32") for operand in operands]
    np.testing.assert_array_equal(f(*single), lax.conv_general_dilated(*operands, **arguments))


@pytest.mark.parametrize("seed", range(24))
def test_derivatives(x64, seed):
    """Gradients, tangents and the mixed second derivative of random convolutions, as those of lax."""
    operands, arguments = draw(1000 + seed)
    tangents = [whole(operand.shape, seed + 2) for operand in operands]
    shape = jax.eval_shape(lambda *o: lax.conv_general_dilated(*o, **arguments), *operands).shape
    cotangent = whole(shape, seed + 3)

    def everything(module):
        f = lambda lhs, rhs: module.conv_general_dilated(lhs, rhs, **arguments)
        number = lambda lhs, rhs: jnp.vdot(f(lhs, rhs), cotangent)
        along = lambda lhs, rhs: jax.jvp(jax.grad(number, (0, 1)), (lhs, rhs), tuple(tangents))[1]
        back = lambda lhs, rhs: jax.grad(lambda r: jnp.vdot(jax.grad(number)(lhs, r), tangents[0]))(rhs)
        return lambda *o: (jax.grad(number, (0, 1))(*o), jax.jvp(f, o, tuple(tangents)), along(*o), back(*o))

    near(jax.jit(everything(ours))(*operands), jax.jit(everything(lax))(*operands))


def test_every_permutation_of_one_spatial_axis(x64):
    """All 216 layouts of a grouped, strided, dilated, padded convolution."""
    options = {"window_strides": (2,), "padding": [(1, 2)], "rhs_dilation": (2,), "feature_group_count": 2}
    lhs, rhs = whole((3, 4, 7)), whole((4, 2, 3))  # batch, features, space; out, in, window
    want = np.asarray(lax.conv_general_dilated(lhs, rhs, **options))
    orders = list(itertools.permutations(range(3)))
    for specs in itertools.product(orders, orders, orders):
        inverse = [np.argsort(spec) for spec in specs]
        numbers = lax.ConvDimensionNumbers(*specs)
        y = ours.conv_general_dilated(
            lhs.transpose(inverse[0]), rhs.transpose(inverse[1]), dimension_numbers=numbers, **options
        )
        np.testing.assert_array_equal(y, want.transpose(inverse[2]))


@pytest.mark.parametrize(
    "numbers", [None, ("NHWC", "HWIO", "NHWC"), ("NCHW", "HWIO", "NHWC"), ("WNHC", "OWIH", "CHNW")]
)
def test_layouts_in_letters_and_vmap(x64, numbers):
    """Strings name the axes; under vmap every axis of every operand, alone and together, equals the loop."""
    specs = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, numbers)
    lhs = whole((2, *place([2, 4, 5, 4], specs.lhs_spec)))
    rhs = whole((2, *place([6, 2, 3, 2], specs.rhs_spec)), 1)
    f = lambda module: (
        lambda lhs, rhs: module.conv_general_dilated(
            lhs, rhs, (2, 1), "SAME", None, (1, 2), numbers, feature_group_count=2
        )
    )
    equal(f(ours)(lhs[0], rhs[0]), f(lax)(lhs[0], rhs[0]))
    for left, right in itertools.product([None, 0, 2, 4], [None, 0, 3]):
        if left is None and right is None:
            continue
        first = lhs[0] if left is None else np.moveaxis(lhs, 0, left)
        second = rhs[0] if right is None else np.moveaxis(rhs, 0, right)
        got = jax.vmap(f(ours), (left, right), 1)(first, second)
        each = [f(lax)(lhs[0 if left is None else i], rhs[0 if right is None else i]) for i in range(2)]
        np.testing.assert_array_equal(got, np.stack(each, 1))


def test_vmap_of_the_gradient_is_a_gradient_of_each_example(x64):
    lhs, rhs = whole((3, 2, 5, 5, 4)), whole((3, 3, 2, 6))
    loss = lambda module: (
        lambda lhs, rhs: jnp.sum(
            module.conv_general_dilated(lhs, rhs, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"), 2) ** 2
        )
    )
    gradients = lambda module: jax.vmap(jax.grad(loss(module), (0, 1)), (0, None))
    near(gradients(ours)(lhs, rhs), gradients(lax)(lhs, rhs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64", "int8", "int32"])
@pytest.mark.parametrize("preferred", [None, "wider"])
def test_dtypes(dtype, preferred):
    wider = {"float32": "float32", "complex64": "complex64", "int8": "int32", "int32": "int32"}.get(dtype, "float32")
    preferred = preferred and jnp.dtype(wider)
    lhs, rhs = whole((2, 3, 6), dtype=dtype), whole((4, 3, 3), 1, dtype)
    for module in (ours, lax):
        y = module.conv(lhs, rhs, (1,), "SAME", precision="highest", preferred_element_type=preferred)
        assert y.dtype == jnp.dtype(preferred or dtype)
        np.testing.assert_array_equal(y, lax.conv(lhs, rhs, (1,), "SAME", preferred_element_type=preferred))


def test_weak_types():
    """A result is weakly typed where both operands are, in all functions, and then promotes as lax's does."""
    lhs, rhs = lax.broadcast(2.0, (1, 1, 5)), lax.broadcast(3.0, (1, 1, 3))
    assert lhs.weak_type
    for a, b in itertools.product([lhs, jnp.ones_like(lhs, "float32")], [rhs, jnp.ones_like(rhs, "float32")]):
        equal(ours.conv(a, b, (1,), "VALID"), lax.conv(a, b, (1,), "VALID"))
        equal(jax.jit(lambda a, b: ours.conv(a, b, (1,), "VALID"))(a, b), lax.conv(a, b, (1,), "VALID"))
    for reducer, initial in [(lax.max, -np.inf), (lax.add, 0.0), (lax.min, 1.5)]:
        both = [m.reduce_window(lhs, initial, reducer, (1, 1, 2)) for m in (ours, lax)]
        equal(*both)


# Transposed convolutions.


@pytest.mark.parametrize("padding", ["SAME", "VALID", [(1, 2), (0, 1)]])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("flags", [{}, {"transpose_kernel": True}, {"use_consistent_padding": True}], ids=str)
def test_conv_transpose(x64, padding, strides, flags):
    if isinstance(padding, list) and flags.get("use_consistent_padding"):
        padding = [tuple(p) for p in padding]
    channels = (2, 4) if flags.get("transpose_kernel") else (4, 2)
    lhs, rhs = whole((2, 4, 3, 4)), whole((3, 2, *channels), 1)
    f = lambda module: lambda lhs, rhs: module.conv_transpose(lhs, rhs, strides, padding, rhs_dilation=(1, 2), **flags)
    equal(f(ours)(lhs, rhs), f(lax)(lhs, rhs))
    number = lambda module: lambda lhs, rhs: jnp.sum(f(module)(lhs, rhs) ** 2)
    near(jax.grad(number(ours), (0, 1))(lhs, rhs), jax.grad(number(lax), (0, 1))(lhs, rhs))


def test_conv_transpose_of_any_rank(x64):
    for rank in range(4):
        lhs, rhs = whole((2, *(3,) * rank, 4)), whole((*(2,) * rank, 4, 3), 1)
        equal(*(module.conv_transpose(lhs, rhs, (2,) * rank, "SAME") for module in (ours, lax)))


def test_conv_with_general_padding(x64):
    lhs, rhs = whole((2, 3, 5, 4)), whole((4, 3, 2, 3), 1)
    for padding in ("VALID", [(2, -1), (0, 3)]):
        arguments = (lhs, rhs, (2, 1), padding, None if isinstance(padding, str) else (1, 2), (2, 1))
        equal(*(module.conv_with_general_padding(*arguments) for module in (ours, lax)))


# Patches and unshared kernels.

PATCHES = [
    ((3, 2), (1, 1), "VALID", None, None, None),
    ((3, 2), (2, 1), "SAME", None, (1, 2), ("NHWC", "HWIO", "NHWC")),
    ((2, 3), (1, 2), [(1, 2), (0, 3)], (2, 1), None, ("NHWC", "WOIH", "CWNH")),
    ((2, 2), (2, 2), [(-1, 2), (2, -1)], (1, 2), (2, 1), ("HNWC", "OIWH", "NCHW")),
]


def patch_operand(numbers):
    return whole(place([2, 3, 5, 4], lax.conv_dimension_numbers((1,) * 4, (1,) * 4, numbers).lhs_spec))


@pytest.mark.parametrize("case", PATCHES, ids=str)
def test_patches(x64, case):
    x = patch_operand(case[-1])
    f = lambda module: lambda x: module.conv_general_dilated_patches(x, *case, lax.Precision.HIGHEST)
    equal(f(ours)(x), f(lax)(x))
    number = lambda module: lambda x: jnp.sum(f(module)(x) ** 2)
    near(jax.hessian(number(ours))(x), jax.hessian(number(lax))(x))
    near(jax.vmap(f(ours), 1, 2)(np.stack([x, -x], 1)), jax.vmap(f(lax), 1, 2)(np.stack([x, -x], 1)))
    assert ours.conv_general_dilated_patches(x.astype("float32"), *case, None, jnp.float64).dtype == jnp.float64


@pytest.mark.parametrize("case", PATCHES, ids=str)
def test_unshared_kernels(x64, case):
    window, strides, padding, gaps, dilation, numbers = case
    x = patch_operand(numbers)
    _, rhs_spec, out_spec = lax.conv_dimension_numbers(x.shape, (1,) * 4, numbers)
    patches = lax.conv_general_dilated_patches(x, *case).shape
    kernel = whole(place([6, patches[out_spec[1]], *(patches[i] for i in out_spec[2:])], rhs_spec), 1)
    arguments = (strides, padding, window, gaps, dilation, numbers)
    f = lambda module: lambda x, k: module.conv_general_dilated_local(x, k, *arguments, precision="highest")
    equal(f(ours)(x, kernel), f(lax)(x, kernel))
    number = lambda module: lambda x, k: jnp.sum(f(module)(x, k) ** 2)
    near(jax.grad(number(ours), (0, 1))(x, kernel), jax.grad(number(lax), (0, 1))(x, kernel))


def test_patches_move_a_nan_to_its_own_column_alone():
    x = jnp.arange(5.0).at[2].set(jnp.nan).reshape(1, 1, 5)
    got, stock = (m.conv_general_dilated_patches(x, (3,), (1,), "VALID") for m in (ours, lax))
    assert np.isnan(got).sum() == 3
    assert np.isnan(stock).sum() == 9  # lax multiplies it by zero


# Window reductions.

REDUCERS = {
    "max": [lax.max, jnp.maximum, lambda a, b: lax.max(b, a), lambda a, b: jnp.where(a > b, a, b)],
    "min": [lax.min, jnp.minimum, lambda a, b: lax.select(b <= a, b, a), lambda a, b: jnp.where(a > b, b, a)],
    "add": [lax.add, jnp.add, lambda a, b: a + b],
}
WINDOWS = [
    ((1, 2, 2, 1), (1, 2, 2, 1), "VALID", None, None),
    ((1, 2, 1, 2), None, [(0, 0), (0, 1), (0, 0), (1, 0)], None, None),
    ((1, 3, 2, 1), (1, 2, 1, 1), "SAME", None, (1, 1, 2, 1)),
    ((1, 1, 3, 2), (1, 1, 2, 1), [(0, 0), (0, 0), (1, 2), (1, 0)], None, None),
    ((2, 2, 1, 3), (1, 2, 1, 1), "SAME_LOWER", None, None),
    ((1, 2, 3, 1), (1, 1, 2, 1), [(0, 0), (-1, 2), (2, -1), (0, 0)], (1, 2, 1, 1), None),
    ((2, 3, 2, 2), (1, 2, 2, 1), "VALID", (2, 1, 1, 1), (1, 1, 2, 1)),
]


def distinct(shape, seed=0):
    values = np.random.default_rng(seed).permutation(np.prod(shape))
    return (values - values.size // 2).reshape(shape).astype("float64")


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", REDUCERS)
def test_reduce_window(x64, name, window):
    """Every spelling, the identity and another number as initial value, floats and integers."""
    x = distinct((3, 5, 6, 4))
    identity = {"max": -np.inf, "min": np.inf, "add": 0.0}[name]
    for reducer, initial in itertools.product(REDUCERS[name], (identity, 7.0)):
        equal(*(module.reduce_window(x, initial, reducer, *window) for module in (ours, lax)))
    whole_numbers = x.astype("int32")
    equal(*(m.reduce_window(whole_numbers, np.int32(7), REDUCERS[name][0], *window) for m in (ours, lax)))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", REDUCERS)
def test_gradients_of_reduce_window(x64, name, window):
    """As those of lax where it has any; and where it has none, as finite differences."""
    x = distinct((3, 5, 6, 4)) / 100
    identity = {"max": -np.inf, "min": np.inf, "add": 0.0}[name]
    f = lambda module, reducer: lambda x, initial: module.reduce_window(x, initial, reducer, *window)
    number = lambda module: lambda x: jnp.sum(f(module, REDUCERS[name][0])(x, identity) ** 2)
    if window[3:] == (None, None) or name == "add":
        near(jax.grad(number(ours))(x), jax.grad(number(lax))(x))
        near(jax.jvp(number(ours), (x,), (x,)), jax.jvp(number(lax), (x,), (x,)))
    initial = np.float64(0.405 if name != "add" else 0.1)
    check_grads(f(ours, REDUCERS[name][1]), (x, initial), order=1, modes=("fwd", "rev"), eps=1e-4)


def test_what_lax_alone_reduces_stays_lax():
    x = jnp.arange(1.0, 7.0)
    equal(*(m.reduce_window(x, 1.0, lax.mul, (2,)) for m in (ours, lax)))
    pairs = (x, jnp.arange(6))
    first = lambda a, b: tuple(jnp.where(a[0] > b[0], u, v) for u, v in zip(a, b))
    equal(*(m.reduce_window(pairs, (-jnp.inf, 0), first, (2,)) for m in (ours, lax)))
    equal(*(m.reduce_window(x > 3, False, lax.bitwise_or, (2,)) for m in (ours, lax)))
    equal(*(m.reduce_window(x, -jnp.inf, lax.max, (1,)) for m in (ours, lax)))


# Empty arrays, and errors.


def test_empty_arrays():
    for lhs, rhs in [((0, 3, 5), (4, 3, 2)), ((2, 0, 5), (4, 0, 2)), ((2, 3, 0), (4, 3, 2)), ((2, 3, 5), (0, 3, 2))]:
        both = [m.conv(jnp.ones(lhs), jnp.ones(rhs), (1,), "VALID") for m in (ours, lax)]
        equal(*both)
    equal(*(m.reduce_window(jnp.ones((0, 4)), -jnp.inf, lax.max, (1, 2)) for m in (ours, lax)))
    equal(*(m.reduce_window(jnp.ones((3, 1)), 0.0, lax.add, (1, 2)) for m in (ours, lax)))


X, K = jnp.ones((2, 4, 6)), jnp.ones((4, 4, 3))
WRONG = {
    "ranks": lambda m: m.conv_general_dilated(X, K[0], (1,), "VALID"),
    "channels": lambda m: m.conv(X, K[:, :3], (1,), "VALID"),
    "feature groups": lambda m: m.conv_general_dilated(X, K, (1,), "VALID", feature_group_count=3),
    "batch groups": lambda m: m.conv_general_dilated(X, K, (1,), "VALID", batch_group_count=3),
    "both groups": lambda m: m.conv_general_dilated(X, K[:, :2], (1,), [(0, 0)], None, None, None, 2, 2),
    "no groups": lambda m: m.conv_general_dilated(X, K, (1,), "VALID", feature_group_count=0),
    "strides": lambda m: m.conv(X, K, (1, 1), "VALID"),
    "padding name": lambda m: m.conv(X, K, (1,), "FULL"),
    "padding pairs": lambda m: m.conv_general_dilated(X, K, (1,), [(1, 2, 3)]),
    "padding floats": lambda m: m.conv_general_dilated(X, K, (1,), [(1.5, 2)]),
    "string and lhs_dilation": lambda m: m.conv_general_dilated(X, K, (1,), "SAME", lhs_dilation=(2,)),
    "dtypes": lambda m: m.conv(X, K.astype("bfloat16"), (1,), "VALID"),
    "narrow result": lambda m: m.conv(X, K, (1,), "VALID", preferred_element_type=jnp.bfloat16),
    "precision": lambda m: m.conv(X, K, (1,), "VALID", precision="exact"),
    "dimension numbers": lambda m: m.conv_general_dilated(X, K, (1,), "VALID", dimension_numbers=("NCC", "OIH", "NCH")),
    "transposed padding": lambda m: m.conv_transpose(X, K, (1,), "FULL"),
    "patches": lambda m: m.conv_general_dilated_patches(X, (3, 3), (1,), "VALID"),
    "unshared": lambda m: m.conv_general_dilated_local(X, K, (1,), "VALID", (3,)),
    "reducer tree": lambda m: m.reduce_window((X, X), 0.0, lax.add, (1, 1, 2)),
    "window rank": lambda m: m.reduce_window(X, 0.0, lax.add, (2, 2)),
    "window of 0": lambda m: m.reduce_window(X, -jnp.inf, lax.max, (1, 1, 0)),
    "window strides": lambda m: m.reduce_window(X, 0.0, lax.add, (1, 1, 2), (1, 1)),
    "initial dtype": lambda m: m.reduce_window(X, 1, lax.max, (1, 1, 2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_lax(name):
    with pytest.raises(Exception) as stock:  # whatever lax raises
        WRONG[name](lax)
    with pytest.raises(type(stock.value)) as raised:
        WRONG[name](ours)
    assert str(raised.value) == str(stock.value)


def test_reduce_window_and_cumulative_sums_side_by_side():
    """lax.cumsum and the like are operations of their own, which stay."""
    x = jnp.arange(6.0)
    jaxpr = jax.make_jaxpr(lambda x: ours.reduce_window(lax.cumsum(x), 0.0, lax.add, (2,)))(x)
    names = [e.primitive.name for e in jaxpr.eqns]
    assert [name for name in names if name in ("cumsum", "window_sum", "reduce_window_sum")] == ["cumsum", "window_sum"]
