"""Every algorithm that the table names, on every case to which it applies, for each of the three products.

Names come from choose.TABLE, so a new algorithm is covered as soon as it has its row.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import choose, lax_conv
from jconv.geometry import Axis, Geometry
from tests import cases
from tests.cases import CASES, NAMED, Case, geometry_of, precise

PRODUCTS = ("forward", "kernel_grad", "input_grad")
DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64", "int8", "int32")

# Where the geometries of other tests are too small or too alike for an algorithm to apply or be told from another.
MORE = [
    Case((9, 8), (3, 3), padding=((1, 1), (1, 0)), channels=(16, 16), batch=1, name="16 channels"),
    Case((8, 9), (3, 3), padding=1, groups=8, channels=(32, 32), name="eight groups of four"),
    Case((6, 5, 6), (3, 3, 3), padding=1, channels=(3, 2), name="three axes, padded"),
    Case((5, 6, 7), (3, 2, 3), 2, padding=((2, 1), (0, 1), (1, 3)), channels=(4, 3), name="three axes, strided"),
    Case((5, 3, 4), (3, 1, 1), padding=((1, 1), (0, 0), (0, 0)), channels=(4, 3), name="the first of three axes"),
    Case((3, 4, 5), (1, 1, 2), (1, 1, 2), groups=2, channels=(4, 6), name="the last of three axes, grouped"),
    Case(
        (3, 5, 2, 4),
        (1, 2, 1, 1),
        padding=((0, 0), (1, 0), (0, 0), (0, 0)),
        kernel_dilation=(1, 2, 1, 1),
        name="one of four axes",
    ),
    Case((12, 12), (7, 7), 2, 3, channels=(3, 8), name="stem"),
    Case((4, 4), (2, 2), 1, ((1, 1), (1, 1)), 2, channels=(8, 4), name="up-convolution of eight channels"),
]
ALL = [case for case in [*CASES, *MORE] if case.padding not in cases.REPEATS]


def problem(case: Case, product: str, dtype: str = "float32") -> choose.Problem:
    return choose.product_problem(product, geometry_of(case), case.batch or 1, *case.channels, jnp.dtype(dtype))


def names(case: Case, product: str, dtype: str = "float32") -> list[str]:
    """The algorithms that can compute this product of this case, "auto" the first."""
    found = ["auto"]
    for name in choose.NAMES[1:]:
        try:
            choose.pick(problem(case, product, dtype), name)
        except ValueError:
            continue
        found.append(name)
    return found


def compute(case: Case, product: str, name: str, x, kernel, g):
    options = case.options | {"algorithm": {product: name}}
    if product == "forward":
        return jconv.conv(x, kernel, **options)
    if product == "kernel_grad":
        return jconv.conv_kernel_grad(x, g, case.kernel_shape, **options)
    return jconv.conv_input_grad(g, kernel, case.x_shape, **options)


def want(case: Case, product: str, x, kernel, g):
    oracle = {"forward": (case.conv, x, kernel), "kernel_grad": (case.kernel_grad, x, g)}
    f, *operands = oracle.get(product, (case.input_grad, g, kernel))
    return f(*operands)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_algorithm_equals_the_oracle(case):
    """In float64 to 1e-10."""
    x, kernel, _, g = case.draw("float64")
    pairs = [(product, name) for product in PRODUCTS for name in names(case, product)]
    got = jax.jit(lambda *arrays: [compute(case, *pair, *arrays) for pair in pairs])(x, kernel, g)
    for (product, name), value in zip(pairs, got):
        exact = want(case, product, x, kernel, g)
        np.testing.assert_allclose(value, exact, **precise(exact), err_msg=f"{product} by {name}")


def examples_of(row: choose.Row, product: str, dtype: str = "float32") -> list[Case]:
    return [case for case in ALL if row.name in names(case, product, dtype) and 0 not in case.y_shape]


@pytest.mark.parametrize("row", choose.TABLE, ids=lambda row: row.name)
def test_no_algorithm_is_left_out(row):
    """Each applies to some case, and to none of a product it does not compute."""
    seen = {product for product in PRODUCTS if examples_of(row, product)}
    assert ("kernel_grad" in seen) == (row.kernel_grad is not None)
    assert bool(seen & {"forward", "input_grad"}) == (row.convolve is not None)
    assert row.reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_algorithm_in_every_dtype(dtype):
    """Small whole numbers, whose sums are exact in float32: to the last bit, or to rounding for fast transforms."""
    chosen = {}
    for row in choose.TABLE:
        for product in PRODUCTS:
            for case in examples_of(row, product, dtype)[:2]:
                chosen.setdefault(case, []).append((product, row.name))
    with jax.enable_x64(dtype == "float64"):
        arrays = {case: [case.draw(dtype, whole=True)[i] for i in (0, 1, 3)] for case in chosen}
        everything = lambda arrays: [
            compute(c, *pair, *a) for (c, pairs), a in zip(chosen.items(), arrays) for pair in pairs
        ]
        got = jax.device_get(jax.jit(everything)([arrays[case] for case in chosen]))
    pairs = [(case, *pair) for case, pairs in chosen.items() for pair in pairs]
    for (case, product, name), value in zip(pairs, got):
        exact = want(case, product, *arrays[case]).astype(dtype)
        assert value.dtype == exact.dtype
        np.testing.assert_array_equal(value, exact, err_msg=f"{product} of {case} by {name} in {dtype}")


@pytest.mark.parametrize("platform", ["cpu", "other"])
@pytest.mark.parametrize("name", ["strided", "depthwise, two a channel", "grouped"])
def test_one_product_an_example(name, platform):
    """The form that vmap over both operands takes: on a CPU one by one, elsewhere each example a group."""
    case = NAMED[name]
    x, kernel, _, g = (np.stack([a, 2 * a[::-1], -a]) for a in case.draw("float32", whole=True))
    form = {"geometry": geometry_of(case), "precision": None, "dtype": jnp.dtype("float32")}
    operands = {"convolve": (x, kernel), "kernel_grad": (x, g), "input_grad": (g, kernel)}
    for product, pair in operands.items():
        f = functools.partial(
            getattr(choose, product), **form, algorithm=("auto",) * 3, examples=True, platform=platform
        )
        got = jax.jit(f)(*pair)
        oracle = {"convolve": case.conv, "kernel_grad": case.kernel_grad, "input_grad": case.input_grad}[product]
        np.testing.assert_array_equal(got, np.stack([oracle(*one) for one in zip(*pair)]))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_elsewhere_than_on_a_cpu_every_product_is_one_convolution(case):
    for product in PRODUCTS:
        assert choose.pick(problem(case, product), platform="other").name == "lax"
        assert choose.pick(problem(case, product), platform="cpu").wins(problem(case, product))


def test_names():
    assert list(choose.NAMES) == ["auto"] + [row.name for row in choose.TABLE]
    assert len(set(choose.NAMES)) == len(choose.NAMES)
    assert choose.TABLE[-1].name == "lax"
    assert choose.TABLE[-1].applies(problem(NAMED["four axes"], "forward", "int8"))  # whatever the problem


def test_a_forced_algorithm_that_does_not_apply_says_which_do():
    case = NAMED["strided"]
    x, kernel, _, g = case.draw("float32")
    with pytest.raises(ValueError, match=r"^conv: algorithm='matmul' does not apply to the forward product .*: .*lax"):
        jconv.conv(x, kernel, **case.options, algorithm="matmul")
    with pytest.raises(ValueError, match=r"^conv: algorithm='matmul' does not apply to the kernel_grad product"):
        jconv.conv(x, kernel, **case.options, algorithm={"kernel_grad": "matmul"})
    with pytest.raises(
        ValueError, match=r"^conv_input_grad: algorithm='taps' does not apply to the input_grad product"
    ):
        jconv.conv_input_grad(g, kernel, case.x_shape, **case.options, algorithm={"input_grad": "taps"})
    with pytest.raises(ValueError, match="does not apply to Problem"):
        choose.pick(problem(case, "forward"), "matmul")


def test_a_rules_products_have_the_algorithms_they_are_given():
    """forward, kernel_grad and input_grad each by its own name, through jax.grad."""
    case = NAMED["1x1"]
    x, kernel, _, _ = case.draw("float32")
    loss = lambda algorithm: lambda x, kernel: (jconv.conv(x, kernel, algorithm=algorithm) ** 2).sum()

    def counts(algorithm):
        text = jax.jit(jax.grad(loss(algorithm), (0, 1))).lower(x, kernel).as_text()
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    assert counts("matmul") == (0, 3)
    assert counts("lax") == (3, 0)
    assert counts({"forward": "lax"}) == (1, 2)
    assert counts({"kernel_grad": "lax", "input_grad": "lax"}) == (2, 1)


def test_a_last_step_too_long_is_no_padding():
    """An axis that XLA takes for one of groups, and aborts, is known as such whatever lies beyond its last step."""
    for n in (2, 3):  # one element left, and none
        axis = Axis(n, 3, (3 * n - 5) // 2 + 1, stride=2, input_dilation=3)
        assert lax_conv.takes(Geometry((axis,))) and lax_conv._mistaken(axis)


@pytest.mark.parametrize(
    ("size", "options", "cut"),
    [
        ((13, 12), {"strides": 4}, False),  # one step more would need elements that are not there
        ((13, 14), {"strides": 3, "padding": ((1, 0), (2, 0)), "kernel_dilation": (2, 1)}, False),
        ((13, 12), {"strides": 2, "padding": ((0, -2), (0, 0))}, True),
        ((13, 12), {"strides": 2, "padding": ((-1, 0), (0, 0))}, True),
    ],
)
def test_elements_that_no_window_touches_are_left_to_laxs_steps(size, options, cut):
    """A copy without them takes as long as a small convolution; pads below 0 are cropped all the same."""
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((2, *size, 3), (3, 4, 3, 5)))
    form = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "lax"}, **options))
    assert ("stablehlo.slice" in form.lower(x, k).as_text()) == cut
    np.testing.assert_array_equal(form(x, k), reference.conv(x, k, **options))


COMPLEX = [  # x, kernel, options, and what multiplies
    ((2, 6, 6, 8), (1, 1, 8, 16), {}, "matmul"),
    ((2, 8, 8, 4), (2, 2, 4, 8), {"strides": 2}, "matmul"),
    ((1, 5, 5, 512), (3, 3, 512, 512), {"padding": 1}, "shifts"),
]


@pytest.mark.parametrize(("shape", "kernel", "options", "algorithm"), COMPLEX)
def test_a_complex_product_is_three_real_ones(shape, kernel, options, algorithm):
    """On a CPU, as lax' convolution is; XLA's own product of complex arrays takes twice to three times as long."""
    rng = np.random.default_rng(0)
    draw = lambda dims: (rng.integers(-3, 4, dims) + 1j * rng.integers(-3, 4, dims)).astype(np.complex64)
    form = functools.partial(jconv.conv, algorithm={"forward": algorithm}, **options)
    x, k = draw(shape), draw(kernel)
    y, backward = jax.vjp(jax.jit(form), x, k)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    g = draw(y.shape)
    dx, dk = backward(g)
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, kernel, **options))
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, shape, **options))
    for platform, real in (("cpu", True), ("tpu", False)):
        lowered = jax.jit(functools.partial(jconv.conv, **options)).trace(x, k).lower(lowering_platforms=(platform,))
        products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", lowered.as_text())
        assert products
        assert real != any("complex" in product for product in products)
