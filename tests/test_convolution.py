"""conv and its gradients against the oracle, against jax.grad of lax, and against finite differences.

`make test` runs the named cases of tests/cases.py and GEOMETRIES drawn ones, the same at every run; `make test-deep`
draws 10,000 others (tests/deep.py).
"""

import functools
import re

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jconv
from tests.cases import CASES, NAMED, REPEATS, Case, cases, precise, spread, tolerance

# Drawn geometries that `make test` runs: each float64 against the oracle, whole numbers exactly, jax.grad of lax.
GEOMETRIES = {"oracle": 100, "exact": 50, "stock": 30}

FLOATS = ("float32", "bfloat16", "float16", "float64", "complex64", "complex128")
INTEGERS = ("int8", "uint8", "int16", "int32")
WIDE = ("float64", "complex128")


def gradients(f):
    """(y, dx, dkernel, dbias) of y = f(x, kernel, bias) with cotangent g, as jax.grad has them."""

    def run(x, kernel, bias, g):
        y, pull = jax.vjp(f, x, kernel, bias)
        return y, *pull(g)

    return run


def transposable(case: Case) -> bool:
    """Whether the case is a convolution that conv_transpose can lead back from."""
    return all(e == 1 for e in spread(case.input_dilation, case.rank)) and 0 not in case.space


def products(case: Case, x, kernel, bias, g):
    """Everything the convolution family computes of one case, by name."""
    conv = functools.partial(jconv.conv, **case.options)
    y, dx, dkernel, dbias = gradients(conv)(x, kernel, bias, g)
    got = {
        "conv": y,
        "conv's dx": dx,
        "conv's dkernel": dkernel,
        "conv's dbias": dbias,
        "conv without bias": conv(x, kernel),
        "conv_kernel_grad": jconv.conv_kernel_grad(x, g, case.kernel_shape, **case.options),
        "conv_input_grad": jconv.conv_input_grad(g, kernel, case.x_shape, **case.options),
    }
    if case.data_format == "channels_last" or case.batch is not None:
        got["conv_bias_grad"] = jconv.conv_bias_grad(g, data_format=case.data_format)
    if transposable(case):
        transpose = functools.partial(jconv.conv_transpose, **case.transposed)
        got["conv_transpose"] = transpose(g, kernel)
        # Its gradients with the cotangent that is 1 everywhere: conv of ones, and the kernel gradient of ones.
        total = lambda g, kernel, bias: transpose(g, kernel, bias).sum()
        names = ("conv_transpose's dy", "conv_transpose's dkernel", "conv_transpose's dbias")
        zero = jnp.zeros(case.channels[0], x.dtype)
        got |= dict(zip(names, jax.grad(total, (0, 1, 2))(g, kernel, zero)))
    if jnp.issubdtype(x.dtype, jnp.floating):
        # The rules of the gradients: derivatives of a bilinear product are the two other products.
        dkernel = lambda x, g: jnp.vdot(jconv.conv_kernel_grad(x, g, case.kernel_shape, **case.options), kernel)
        dx = lambda g, kernel: jnp.vdot(jconv.conv_input_grad(g, kernel, case.x_shape, **case.options), x)
        got["conv_kernel_grad's dx"], got["conv_kernel_grad's dg"] = jax.grad(dkernel, (0, 1))(x, g)
        got["conv_input_grad's dg"], got["conv_input_grad's dkernel"] = jax.grad(dx, (0, 1))(g, kernel)
    return got


def oracle(case: Case, x, kernel, bias, g):
    """What `products` must be."""
    y, dkernel, dx = case.conv(x, kernel), case.kernel_grad(x, g), case.input_grad(g, kernel)
    want = {
        "conv": case.conv(x, kernel, bias),
        "conv's dx": dx,
        "conv's dkernel": dkernel,
        "conv's dbias": case.bias_grad(g),
        "conv without bias": y,
        "conv_kernel_grad": dkernel,
        "conv_input_grad": dx,
        "conv_bias_grad": case.bias_grad(g),
    }
    if transposable(case):
        result = case.conv_transpose(g, kernel)
        longer = Case(
            space=case.to_last(result).shape[1:-1],
            **{k: v for k, v in vars(case).items() if k not in ("space", "y_shape")},
        )
        ones = np.ones(result.shape)
        want["conv_transpose"] = result
        want["conv_transpose's dy"] = longer.conv(ones, kernel)
        want["conv_transpose's dkernel"] = longer.kernel_grad(ones, g)
        want["conv_transpose's dbias"] = np.full(case.channels[0], result.size / case.channels[0])
    if np.isrealobj(np.asarray(x)):
        want |= {"conv_kernel_grad's dx": dx, "conv_kernel_grad's dg": y}
        want |= {"conv_input_grad's dg": y, "conv_input_grad's dkernel": dkernel}
    return want


def check_oracle(case: Case, seed: int = 0) -> None:
    """In float64: every product of `case` to 1e-10 of the oracle, and one number three ways. deep.py runs this too."""
    arrays = case.draw("float64", seed)
    with jax.enable_x64(True):
        got = jax.device_get(jax.jit(functools.partial(products, case))(*arrays))
    want = oracle(case, *arrays)
    for name, value in got.items():
        assert value.dtype == np.float64, name
        np.testing.assert_allclose(value, want[name], **precise(want[name]), err_msg=f"{name} of {case!r}")
    x, kernel, _, g = arrays
    number = np.vdot(got["conv without bias"], g)
    size = np.vdot(abs(got["conv without bias"]), abs(g))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10 * (1 + size), err_msg=f"{case!r}")
    close(np.vdot(x, got["conv_input_grad"]), number)  # <conv(x, k), g> = <x, conv_input_grad(g, k)>
    close(np.vdot(kernel, got["conv_kernel_grad"]), number)  # = <k, conv_kernel_grad(x, g)>


@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_cases_against_the_oracle(case):
    check_oracle(case)


@hypothesis.settings(max_examples=GEOMETRIES["oracle"])
@hypothesis.given(case=cases())
def test_drawn_geometries_against_the_oracle(case):
    check_oracle(case)


def check_exact(case: Case, dtype: str, seed: int = 0) -> None:
    """On small whole numbers, whose sums are exact in float32, every product equals the oracle's, rounded once."""
    arrays = case.draw(dtype, seed, whole=True)

    def family(x, kernel, bias, g):
        conv = functools.partial(jconv.conv, **case.options)
        if x.dtype.kind in "iu":
            return conv(x, kernel, bias), *(
                jconv.conv_input_grad(g, kernel, case.x_shape, **case.options),
                jconv.conv_kernel_grad(x, g, case.kernel_shape, **case.options),
            )
        return gradients(conv)(x, kernel, bias, g)

    with jax.enable_x64(dtype in WIDE):
        got = jax.device_get(jax.jit(family)(*arrays))
    x, kernel, bias, g = arrays
    want = case.conv(x, kernel, bias), case.input_grad(g, kernel), case.kernel_grad(x, g), case.bias_grad(g)
    for name, value, exact in zip(("y", "dx", "dkernel", "dbias"), got, want, strict=False):
        assert value.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(value, exact.astype(dtype), err_msg=f"{name} of {case!r} in {dtype}")


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_whole_numbers_are_exact_in_every_dtype(dtype):
    for name in ("strided", "depthwise, two a channel"):
        check_exact(NAMED[name], dtype)


@hypothesis.settings(max_examples=GEOMETRIES["exact"])
@hypothesis.given(case=cases(), dtype=st.sampled_from(FLOATS + INTEGERS))
def test_drawn_whole_numbers_are_exact(case, dtype):
    check_exact(case, dtype)


def check_stock(case: Case, dtype: str, seed: int = 0) -> None:
    """Value and gradients against lax's, within the rounding errors of the two."""
    arrays = case.draw(dtype, seed)
    with jax.enable_x64(dtype in WIDE):
        ours = jax.device_get(jax.jit(gradients(functools.partial(jconv.conv, **case.options)))(*arrays))
        stock = jax.device_get(jax.jit(gradients(case.stock))(*arrays))
    x, kernel, bias, g = (abs(a.astype(np.complex128)).real for a in arrays)
    sizes = case.conv(x, kernel, bias), case.input_grad(g, kernel), case.kernel_grad(x, g), case.bias_grad(g)
    for name, got, want, size in zip(("y", "dx", "dkernel", "dbias"), ours, stock, sizes):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        wide = np.complex128 if got.dtype.kind == "c" else np.float64
        loose = tolerance(dtype, case.terms, want, sums=dtype, scale=size.max(initial=0))  # stock sums in dtype
        np.testing.assert_allclose(
            got.astype(wide), want.astype(wide), err_msg=f"{name} of {case!r} in {dtype}", **loose
        )


@pytest.mark.parametrize("dtype", FLOATS)
def test_jax_grad_of_lax(dtype):
    check_stock(NAMED["everything at once"], dtype)


@hypothesis.settings(max_examples=GEOMETRIES["stock"])
@hypothesis.given(case=cases().filter(lambda case: case.stock_is_right), dtype=st.sampled_from(FLOATS))
def test_drawn_geometries_against_jax_grad_of_lax(case, dtype):
    check_stock(case, dtype)


def check_float32(case: Case) -> None:
    """Value and gradients against the oracle, within the rounding errors of float32."""
    arrays = case.draw("float32")
    x, kernel, bias, g = arrays
    got = jax.device_get(jax.jit(gradients(functools.partial(jconv.conv, **case.options)))(*arrays))
    want = case.conv(x, kernel, bias), case.input_grad(g, kernel), case.kernel_grad(x, g), case.bias_grad(g)
    for name, value, exact in zip(("y", "dx", "dkernel", "dbias"), got, want):
        loose = tolerance("float32", case.terms, exact, scale=1.0)
        np.testing.assert_allclose(value, exact, err_msg=f"{name} of {case!r}", **loose)


@pytest.mark.parametrize("case", [case for case in CASES if not case.stock_is_right], ids=str)
def test_where_jax_grad_of_lax_is_wrong_the_oracle_is_the_judge(case):
    """low padding < 0, or > dilation * (kernel - 1): XLA:CPU reads outside its input in float32 (openxla/xla#48713)."""
    check_float32(case)


@pytest.mark.optimised
@pytest.mark.parametrize("case", CASES, ids=str)
def test_named_cases_as_users_run_them(case):
    check_float32(case)


# Finite differences. Second order: the derivative of each rule is again made of rules.

DIFFERENCES = {
    "conv": lambda case, x, k, b, g: (lambda x, k, b: jconv.conv(x, k, b, **case.options), (x, k, b)),
    "conv_transpose": lambda case, x, k, b, g: (
        lambda y, k, b: jconv.conv_transpose(y, k, b, **case.transposed),
        (g, k, np.ones(case.channels[0])),
    ),
    "conv_kernel_grad": lambda case, x, k, b, g: (
        lambda x, g: jconv.conv_kernel_grad(x, g, case.kernel_shape, **case.options),
        (x, g),
    ),
    "conv_input_grad": lambda case, x, k, b, g: (
        lambda g, k: jconv.conv_input_grad(g, k, case.x_shape, **case.options),
        (g, k),
    ),
    "conv_bias_grad": lambda case, x, k, b, g: (
        functools.partial(jconv.conv_bias_grad, data_format=case.data_format),
        (g,),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize(
    "case", [NAMED["channels first"], NAMED["reflect"], NAMED["depthwise, two a channel"]], ids=str
)
def test_finite_differences(case, name):
    f, arrays = DIFFERENCES[name](case, *case.draw("float64"))
    f = jax.jit(f)
    check_grads(f, arrays, order=2, modes=("rev",), eps=1e-3, atol=1e-5, rtol=1e-5)
    check_grads(f, arrays, order=1, modes=("fwd",), eps=1e-3, atol=1e-5, rtol=1e-5)


# The public functions.


def test_conv1d_conv2d_conv3d_are_conv():
    for name, function in (("causal", jconv.conv1d), ("strided", jconv.conv2d), ("three axes", jconv.conv3d)):
        case = NAMED[name]
        arrays = case.draw("float32")[:3]
        chex.assert_trees_all_equal(function(*arrays, **case.options), jconv.conv(*arrays, **case.options))


def test_scalar_options_broadcast_over_the_axes():
    x, kernel = jnp.ones((1, 9, 9, 2)), jnp.ones((2, 2, 1, 2))
    one = jconv.conv(x, kernel, strides=2, padding=1, input_dilation=2, kernel_dilation=3, feature_group_count=2)
    each = jconv.conv(
        x, kernel, strides=[2, 2], padding=[(1, 1), 1], input_dilation=(2, 2), kernel_dilation=np.array([3, 3]),
        feature_group_count=np.int64(2),
    )  # fmt: skip
    chex.assert_trees_all_equal(one, each)


def test_arrays_of_numpy_and_of_wrappers():
    case = NAMED["valid"]
    x, kernel, bias, _ = case.draw("float32")

    class Parameter:
        """What Flax's and Equinox's variables offer."""

        def __jax_array__(self):
            return jnp.asarray(kernel)

    want = jconv.conv(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias))
    chex.assert_trees_all_equal(jconv.conv(x, kernel, bias), want)
    chex.assert_trees_all_equal(jconv.conv(x, Parameter(), bias), want)
    assert isinstance(jconv.conv(x, kernel), jax.Array)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [("bfloat16", "float32"), ("float16", "float32"), ("int8", "int32"), ("uint8", "uint32"), ("float32", "float64")],
)
def test_preferred_element_type(dtype, result):
    """The result has it, sums are not rounded before; gradients have the operands' dtypes."""
    case = NAMED["strided"]
    x, kernel, _, _ = case.draw(dtype)
    x = x if x.dtype.kind not in "iu" else x * 20  # so that the sums do not fit
    conv = functools.partial(jconv.conv, **case.options, preferred_element_type=result)
    with jax.enable_x64(result == "float64"):
        y = conv(x, kernel)
        assert y.dtype == result
        want = case.conv(x, kernel)
        np.testing.assert_allclose(y, want, **tolerance("float32", case.terms, want) if y.dtype.kind == "f" else {})
        if dtype != "float32":
            assert not np.array_equal(np.asarray(y), want.astype(dtype).astype(result))  # wider than dtype can hold
        if y.dtype.kind == "f":
            g = case.draw(result, seed=1)[3]
            dx, dkernel = jax.vjp(conv, x, kernel)[1](g)
            assert dx.dtype == dkernel.dtype == dtype
            want = case.input_grad(g, kernel), case.kernel_grad(x, g)
            for got, exact in zip((dx, dkernel), want):
                np.testing.assert_allclose(got.astype(result), exact, **tolerance(dtype, case.terms, exact))
        x, kernel, _, g = case.draw(dtype, whole=True)
        for got, exact in (
            (jconv.conv_kernel_grad, case.kernel_grad(x, g)),
            (jconv.conv_input_grad, case.input_grad(g, kernel)),
        ):
            pair, shape = ((x, g), case.kernel_shape) if got is jconv.conv_kernel_grad else ((g, kernel), case.x_shape)
            value = got(*pair, shape, **case.options, preferred_element_type=result)
            assert value.dtype == result
            np.testing.assert_array_equal(value, exact)


def test_low_precision_is_summed_in_float32():
    """4,096 ones: bfloat16 sums would stop at 256, float16 ones at 2,048."""
    for dtype in ("bfloat16", "float16"):
        long, wide = jnp.ones((64, 64, 1), dtype), jnp.ones((1, 1, 4096), dtype)
        sums = [
            jconv.conv(wide, wide.reshape(1, 4096, 1)),
            jconv.conv_kernel_grad(long, long, (1, 1, 1)),
            jconv.conv_input_grad(wide, wide, (1, 1, 1)),
            jconv.conv_bias_grad(long),
        ]
        assert [float(y.ravel()[0]) for y in sums] == [4096.0] * 4
        kernel, bias = jnp.ones((1, 1, 1), dtype), jnp.zeros(1, dtype)
        for padding in ("VALID", "EDGE"):
            back = functools.partial(jconv.conv_transpose, long, kernel, padding=padding)
            assert float(jax.vjp(back, bias)[1](long)[0].item()) == 4096


def test_the_bias_is_added_before_the_one_rounding():
    x, kernel, bias = (jnp.asarray(v, jnp.bfloat16).reshape(1, 1, 1) for v in (1.0, 256.0, 1.0))
    got = jconv.conv(x + 2**-7, kernel, bias.ravel())  # 258 + 1, and bfloat16 has even numbers only there
    assert float(got.ravel()[0]) == float(jnp.asarray(259.0, jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kernel", [(1, 1, 32, 64), (3, 3, 32, 64), (3, 3, 1, 32)])
def test_on_a_cpu_low_precision_is_multiplied_in_float32(dtype, kernel):
    """With a bias too: a product of bfloat16 takes twice as long where a core has no such multiplications."""
    shapes = [(2, 14, 14, 32), kernel, kernel[-1:]]
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    layer = functools.partial(jconv.conv, strides=2, feature_group_count=32 // kernel[2])
    step = jax.jit(lambda *operands: jax.vjp(layer, *operands)[1](layer(*operands)))
    computed = re.findall(r"stablehlo\.(?:dot_general|convolution|multiply)\b.*", step.lower(*operands).as_text())
    assert any("f32" in line for line in computed)
    assert not [line for line in computed if "bf16" in line or "f16" in line]


@pytest.mark.parametrize(
    "precision", ["default", "high", "highest", jax.lax.Precision.HIGHEST, ("high", "highest"), None]
)
def test_precision_reaches_lax(precision):
    case = NAMED["strided"]
    x, kernel, _, _ = case.draw("float32")
    conv = functools.partial(jconv.conv, **case.options, precision=precision)
    ours = jax.jit(jax.grad(lambda k: conv(x, k).sum())).lower(kernel).as_text()
    stock = jax.jit(functools.partial(case.stock, precision=precision)).lower(x, kernel).as_text()
    # A convolution's is printed as precision_config = [#stablehlo<precision HIGH>, ...], a product's as precision = [...].
    config = lambda text: {
        tuple(re.findall(r"DEFAULT|HIGHEST|HIGH", pair))
        for pair in re.findall(r"precision(?:_config)? = \[([^\]]*)\]", text)
    }
    assert config(ours) == config(stock)


# An input gradient takes every input shape that leads to g's shape.


def test_input_grad_takes_every_input_shape():
    g, kernel = np.arange(1.0, 4, dtype=np.float32).reshape(1, 3, 1), np.ones((2, 1, 1), np.float32)
    for n in (8, 9, 10):
        case = Case((n,), (2,), 3, channels=(1, 1), batch=1)
        got = jconv.conv_input_grad(g, kernel, (1, n, 1), strides=3)
        np.testing.assert_array_equal(got, case.input_grad(g, kernel))
        assert got.shape == (1, n, 1)
    with pytest.raises(ValueError, match=r"conv_input_grad: g must have the shape that conv gives here, \(1, 4, 1\)"):
        jconv.conv_input_grad(g, kernel, (1, 11, 1), strides=3)


def test_integers_wrap_as_lax_wraps():
    x, kernel = jnp.full((1, 4, 1), 100, jnp.int8), jnp.full((2, 1, 1), 2, jnp.int8)
    want = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    np.testing.assert_array_equal(jconv.conv(x, kernel), want)
    assert int(want[0, 0, 0]) == (400 + 128) % 256 - 128


def test_every_padding_is_among_the_cases():
    seen = {case.padding for case in CASES if isinstance(case.padding, str)}
    assert seen >= {"SAME", "SAME_LOWER", "VALID", "CAUSAL", *REPEATS}
