"""What programs are made of: the hand-written products by name, what a gradient keeps, the convolutions that XLA gets.

Nothing here looks at values. A jaxpr shows what jax.grad does before anything is lowered, where jconv has primitives of
its own; StableHLO and the traced algorithms show what is lowered.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import ad

import jconv
from jconv import _jax
from jconv.algorithms import choose
from tests.cases import CASES, NAMED, REPEATS, Case, geometry_of

PRODUCTS = {"convolve", "kernel_grad", "input_grad"}
DENSE = Case((7, 6), (3, 2), (2, 1), ((1, 2), (0, 1)), channels=(4, 6), name="dense")
DEPTHWISE = Case((7, 6), (3, 3), 1, "SAME", groups=4, channels=(4, 8), name="depthwise")
FIRST = Case((7, 6), (3, 3), 2, 1, groups=2, channels=(4, 6), data_format="channels_first", name="channels first")
LAYERS = [DENSE, DEPTHWISE, FIRST]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of the jaxprs within it too."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for inner in _jax.jaxprs_in_params(equation.params):
            yield from equations(inner)


def primitives(f: Any, *arrays: Any) -> list[str]:
    return [equation.primitive.name for equation in equations(jax.make_jaxpr(f)(*arrays))]


def loss(f: Any) -> Any:
    return lambda *arrays: jnp.sin(f(*arrays)).sum()


def conv(case: Case) -> Any:
    return functools.partial(jconv.conv, **case.options)


def transposed(case: Case) -> Any:
    return functools.partial(jconv.conv_transpose, **case.transposed)


# jax.grad runs the products, and only those that are asked for.

GRADS = {  # wrt: the products in the jaxpr of the gradient of a loss: forward, then what the argument needs
    "conv": {
        0: ["convolve", "input_grad"],
        1: ["convolve", "kernel_grad"],
        2: ["convolve"],
        (0, 1): ["convolve", "input_grad", "kernel_grad"],
        (0, 2): ["convolve", "input_grad"],
        (1, 2): ["convolve", "kernel_grad"],
        (0, 1, 2): ["convolve", "input_grad", "kernel_grad"],
    },
    "conv_transpose": {
        0: ["input_grad", "convolve"],
        1: ["input_grad", "kernel_grad"],
        2: ["input_grad"],
        (0, 1, 2): ["input_grad", "convolve", "kernel_grad"],
    },
}


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize(("name", "wrt"), [(name, wrt) for name in GRADS for wrt in GRADS[name]], ids=str)
def test_grad_computes_only_what_is_asked_for(name, wrt, case):
    x, kernel, bias, g = case.draw("float32")
    f, arrays = conv(case), (x, kernel, bias)
    if name == "conv_transpose":
        f, arrays = transposed(case), (g, kernel, np.zeros(case.channels[0], np.float32))
    found = [p for p in primitives(jax.grad(loss(f), wrt), *arrays) if p in PRODUCTS]
    assert found == GRADS[name][wrt]


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_rules_of_the_gradients_are_the_triad_too(case):
    x, kernel, _, g = case.draw("float32")
    kernel_grad = loss(lambda x, g: jconv.conv_kernel_grad(x, g, case.kernel_shape, **case.options))
    input_grad = loss(lambda g, k: jconv.conv_input_grad(g, k, case.x_shape, **case.options))
    found = lambda f, wrt, *arrays: [p for p in primitives(jax.grad(f, wrt), *arrays) if p in PRODUCTS]
    assert found(kernel_grad, 0, x, g) == ["kernel_grad", "input_grad"]
    assert found(kernel_grad, 1, x, g) == ["kernel_grad", "convolve"]
    assert found(input_grad, 0, g, kernel) == ["input_grad", "convolve"]
    assert found(input_grad, 1, g, kernel) == ["input_grad", "kernel_grad"]


def orders(f: Any, wrt: int) -> list[Any]:
    """A loss and its gradients up to the third, as functions of all the arrays."""
    functions = [loss(f)]
    for _ in range(3):
        functions.append(loss(jax.grad(functions[-1], wrt)))
    return functions


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_no_order_of_derivative_holds_a_convolution_of_lax(case):
    """Before lowering there is none at all: whatever jax differentiates, it differentiates products."""
    arrays = case.draw("float32")[:3]
    jvp = lambda *arrays: jax.jvp(conv(case), arrays, arrays)
    for f in (jvp, *orders(conv(case), 0)[1:], *orders(conv(case), 1)[1:]):
        found = primitives(f, *arrays)
        assert "conv_general_dilated" not in found
        assert set(found) & PRODUCTS


POOLS = {
    # name: the pooling, and what its gradient is made of
    "max_pool": (lambda x: jconv.max_pool(x, 3, 2, 1), {"winner", "scatter_winner"}),
    "max_pool, dilated": (lambda x: jconv.max_pool(x, 2, window_dilation=2), {"winner", "scatter_winner"}),
    "min_pool": (lambda x: jconv.min_pool(x, 2, 2), {"winner", "scatter_winner"}),
    "avg_pool": (lambda x: jconv.avg_pool(x, 2, 2, ceil_mode=True), {"window_sum", "window_spread"}),
    "sum_pool": (lambda x: jconv.sum_pool(x, 3, 1, "SAME"), {"window_sum", "window_spread"}),
    "lp_pool": (lambda x: jconv.lp_pool(x, 3, 2, 2), {"lp_pool", "window_spread"}),
    "adaptive_avg_pool": (lambda x: jconv.adaptive_avg_pool(x, 4), {"expand", "collect"}),
    "adaptive_max_pool": (lambda x: jconv.adaptive_max_pool(x, 4), {"winner", "scatter_winner"}),
    "unfold": (lambda x: jconv.unfold(x, 3), {"expand", "collect"}),
}
OF_LAX = {
    "conv_general_dilated", "reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min",
    "select_and_scatter", "select_and_scatter_add", "select_and_gather_add",
}  # fmt: skip


@pytest.mark.parametrize("name", POOLS)
def test_gradients_of_pools_are_made_of_their_pieces(name):
    pool, pieces = POOLS[name]
    x = np.arange(2 * 7 * 7 * 3, dtype=np.float32).reshape(2, 7, 7, 3)
    found = set(primitives(jax.grad(loss(pool)), x))
    assert found >= pieces
    assert not found & OF_LAX
    assert not set(primitives(jax.grad(loss(jax.grad(loss(pool)))), x)) & OF_LAX


@pytest.fixture
def poisoned(monkeypatch):
    """Taking any derivative of a convolution or windowed reduction of lax is an error."""

    def refuse(name):
        def rule(*args, **kwargs):
            raise AssertionError(f"jax differentiates lax's {name}")

        return rule

    rules = [ad.primitive_jvps, ad.primitive_transposes]
    found = {p for table in rules for p in table if p.name in OF_LAX}
    assert {p.name for p in found} >= {"conv_general_dilated", "reduce_window_sum"}
    for primitive in found:
        for table in rules:
            if primitive in table:
                monkeypatch.setitem(table, primitive, refuse(primitive.name))


@pytest.mark.usefixtures("poisoned")
def test_no_derivative_of_lax_is_ever_taken():
    """However the gradient is taken and wherever it is lowered: poisoned rules would raise."""
    for case in LAYERS:
        arrays, f = case.draw("float32")[:3], conv(case)
        jvp = lambda *arrays, f=f: jax.jvp(f, arrays, arrays)
        mapped = lambda *arrays, f=f: jax.vmap(jax.grad(loss(f), (0, 1)), (0, None, None))(arrays[0][None], *arrays[1:])
        for function in (jvp, mapped, jax.hessian(loss(f), 2), *orders(f, 0), *orders(f, 1)):
            jax.jit(function).lower(*arrays)
    x = np.ones((2, 7, 7, 3), np.float32)
    for pool, _ in POOLS.values():
        for function in orders(pool, 0):
            jax.jit(function).lower(x)
    with pytest.raises(AssertionError, match="jax differentiates lax's conv_general_dilated"):
        jax.grad(lambda k: DENSE.stock(DENSE.draw("float32")[0], k).sum())(DENSE.draw("float32")[1])


# What a gradient keeps.


def residuals(f: Any, *arrays: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of what jax.vjp keeps for the backward pass: the leaves of the function that it returns."""
    kept = jax.eval_shape(lambda *arrays: jax.vjp(f, *arrays)[1], *arrays)
    return sorted((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_each_gradient_keeps_only_the_other_operand(case):
    x, kernel, bias, g = case.draw("float32")
    last = case.last  # rules work channels last
    shaped = lambda *shapes: sorted((shape, "float32") for shape in shapes)
    f = conv(case)
    assert residuals(lambda x: f(x, kernel, bias), x) == shaped(last.kernel_shape)
    assert residuals(lambda k: f(x, k, bias), kernel) == shaped(last.x_shape)
    assert residuals(lambda b: f(x, kernel, b), bias) == []
    assert residuals(lambda k, b: f(x, k, b), kernel, bias) == shaped(last.x_shape)
    assert residuals(f, x, kernel, bias) == shaped(last.x_shape, last.kernel_shape)
    back = transposed(case)
    assert residuals(lambda y: back(y, kernel), g) == shaped(last.kernel_shape)
    assert residuals(lambda k: back(g, k), kernel) == shaped(last.y_shape)


def test_pools_keep_only_what_their_gradient_needs():
    """Max pooling an index within the window, one byte up to 256 taps; sums nothing; unfold nothing."""
    x = np.ones((2, 40, 40, 3), np.float32)
    assert residuals(lambda x: jconv.max_pool(x, 2, 2), x) == [((2, 20, 20, 3), "uint8")]
    assert residuals(lambda x: jconv.max_pool(x, 16, 4), x) == [((2, 7, 7, 3), "uint8")]
    assert residuals(lambda x: jconv.max_pool(x, (16, 17), 4), x) == [((2, 7, 6, 3), "uint16")]
    assert residuals(lambda x: jconv.sum_pool(x, 2, 2), x) == []
    assert residuals(lambda x: jconv.avg_pool(x, 3, 2, "SAME", count_include_pad=False), x) == []
    assert residuals(lambda x: jconv.unfold(x, 3), x) == []


# What XLA gets. Inside scan, while and cond its CPU compiler runs any layout but one up to 40 times slower.


def assert_canonical(equation: Any, where: str) -> None:
    """(N...C, ...IO, N...C), one batch group, no negative padding."""
    params, ndim = equation.params, equation.invars[0].aval.ndim
    dims, space = params["dimension_numbers"], tuple(range(1, ndim - 1))
    assert tuple(dims.lhs_spec) == (0, ndim - 1, *space), where
    assert tuple(dims.rhs_spec) == (ndim - 1, ndim - 2, *range(ndim - 2)), where
    assert tuple(dims.out_spec) == (0, ndim - 1, *space), where
    assert params["batch_group_count"] == 1, where
    assert all(low >= 0 and high >= 0 for low, high in params["padding"]), where


def lowered(case: Case, product: str, algorithm: str, examples: bool, platform: str) -> Any:
    """The jaxpr of what `product` is lowered to."""
    x, kernel, _, g = (jax.ShapeDtypeStruct(s, np.float32) for s in case.last.shapes)
    pair = {"convolve": (x, kernel), "kernel_grad": (x, g), "input_grad": (g, kernel)}[product]
    if examples:
        pair = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in pair]
    form = functools.partial(
        getattr(choose, product), geometry=geometry_of(case), precision=None, dtype=jnp.dtype("float32"),
        algorithm=(algorithm,) * 3, examples=examples, platform=platform,
    )  # fmt: skip
    return jax.make_jaxpr(form)(*pair)


@pytest.mark.parametrize("case", [case for case in CASES if case.padding not in REPEATS], ids=str)
def test_every_convolution_is_canonical(case):
    """Every product, by the algorithm that is chosen and by lax, alone and one an example, on each platform.

    Derivatives of every order are these products of the same geometry, so this is all that is ever emitted.
    """
    found = 0
    for product in sorted(PRODUCTS):
        for algorithm, examples, platform in (
            ("auto", False, "cpu"),
            ("lax", False, "cpu"),
            ("auto", True, "cpu"),
            ("auto", False, "other"),
            ("auto", True, "other"),
        ):
            for equation in equations(lowered(case, product, algorithm, examples, platform)):
                if equation.primitive.name == "conv_general_dilated":
                    found += 1
                    assert_canonical(equation, f"{product} by {algorithm}, {platform}, {examples=}")
    assert found or 0 in case.shapes[0] or case.name == "crop everything, then pad"  # an empty sum


def _channels_first(x, kernel):
    return jconv.conv(x, kernel, padding=1, data_format="channels_first")


@jconv.accelerate
def _of_lax(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NCHW", "OIHW", "NCHW"))


@pytest.mark.parametrize("layer", [_channels_first, _of_lax])
def test_what_leaves_in_another_layout_is_transposed_apart(layer):
    """XLA:CPU would fuse the transpose, and Winograd's last sums with it, into each reader of the result."""

    def apart(f, channels=32, platform="cpu"):
        shapes = (2, channels, 16, 16), (channels, channels, 3, 3)
        traced = jax.jit(f).trace(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        moved = rf"\(tensor<2x16x16x{channels}xf32>\) -> tensor<2x{channels}x16x16xf32>"
        return len(re.findall(rf'call @.*inlineable = "false".*{moved}', text))

    assert apart(layer) == 1
    assert apart(jax.grad(loss(layer), 1)) == 1  # what a kernel's gradient needs of y
    assert apart(jax.grad(loss(layer), 0)) == 2  # and the gradient for x
    assert apart(jax.grad(loss(jax.grad(loss(layer), 0)), 0)) >= 3
    assert apart(layer, channels=4) == 0  # less than a call takes
    assert apart(jax.grad(loss(layer), 0), platform="tpu") == 0


@pytest.mark.parametrize(("wanted", "operands"), [(0, 1), (1, 2), ((0, 1), 3)])
def test_what_stays_in_its_layout_is_not_set_apart(wanted, operands):
    """The sums of a channels_last layer are fused with what reads them."""
    shapes = (2, 16, 16, 32), (3, 3, 32, 32)
    layer = jax.jit(jax.grad(loss(lambda x, kernel: jconv.conv(x, kernel, padding=1)), wanted))
    text = layer.lower(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)).as_text()
    convolved = set(re.findall(r"(%\w+) = stablehlo.convolution", text))
    apart = re.findall(r'call @[^(]*\((%\w+)\).*inlineable = "false"', text)
    assert convolved
    assert len(apart) == operands  # g of the input gradient, x and g of the kernel's
    assert not convolved & set(apart)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 28, 28, 48), (3, 3, 48, 32), {"strides": 2}),  # a product a tap
        ((4, 32, 32, 16), (3, 3, 16, 16), {}),  # a few images at a time
        ((2, 256, 32), (2, 32, 32), {"kernel_dilation": 4}),
    ],
)
def test_what_gives_an_operand_is_computed_once(shape, kernel, options):
    """And not by each of the products, or by each of the slices that one takes of it."""

    def squares(x, kernel):
        return (jconv.conv(jax.nn.relu(x), kernel, padding="SAME", **options) ** 2).sum()

    operands = (jax.ShapeDtypeStruct(dims, "float32") for dims in (shape, kernel))
    text = jax.jit(jax.grad(squares, (0, 1))).lower(*operands).compile().as_text()
    assert len(re.findall(r" maximum\(", text)) == 1


@pytest.mark.optimised
def test_what_gives_an_operand_is_computed_once_for_all_examples():
    def squares(kernel, x):
        return (jconv.conv(jax.nn.relu(x)[None], kernel, padding="SAME") ** 2).sum()

    operands = (jax.ShapeDtypeStruct(dims, "float32") for dims in ((3, 3, 16, 16), (64, 32, 32, 16)))
    each = jax.vmap(jax.grad(squares, (0, 1)), in_axes=(None, 0))
    assert len(re.findall(r" maximum\(", jax.jit(each).lower(*operands).compile().as_text())) == 1


@pytest.mark.parametrize(("size", "strides", "apart"), [(1, 1, True), (1, 2, False), (3, 1, False)])
def test_a_forward_product_that_reads_x_as_it_is_shares_it(size, strides, apart):
    """What pads or skips some of x may be computed with what gives x."""
    shapes = (2, 16, 16, 32), (size, size, 32, 32)
    layer = jax.jit(lambda x, kernel: jconv.conv(x, kernel, strides=strides, padding="SAME"))
    text = layer.lower(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)).as_text()
    assert ("inlineable" in text) == apart


@pytest.mark.parametrize("row", choose.TABLE, ids=lambda row: row.name)
def test_every_algorithm_emits_canonical_convolutions(row):
    for case in CASES:
        if case.padding in REPEATS or 0 in case.x_shape:
            continue
        for product, operand in (("convolve", "forward"), ("kernel_grad", "kernel_grad"), ("input_grad", "input_grad")):
            problem = choose.product_problem(operand, geometry_of(case), 1, *case.channels, jnp.dtype("float32"))
            if row.function(problem.product) is not None and row.applies(problem):
                for equation in equations(lowered(case, product, row.name, False, "cpu")):
                    if equation.primitive.name == "conv_general_dilated":
                        assert_canonical(equation, f"{product} of {case} by {row.name}")


def stepped(case: Case) -> Any:
    """Gradients in a scan, within a cond."""

    def run(x, kernel, bias):
        def body(kernel, x):
            dkernel = jax.grad(loss(conv(case)), 1)(x, kernel, bias)
            return kernel - lax.cond(x.ravel()[0] > 0, lambda: dkernel, lambda: 2 * dkernel), ()

        return lax.scan(body, kernel, jnp.stack([x, x]))[0]

    return run


PROGRAMS = {
    "grad": lambda case: jax.grad(loss(conv(case)), (0, 1, 2)),
    "grad of grad": lambda case: jax.grad(loss(jax.grad(loss(conv(case)), 1)), (0, 1)),
    "vmap of grad": lambda case: (
        lambda x, k, b: jax.vmap(jax.grad(loss(conv(case)), (0, 1)), (0, None, None))(x[None], k, b)
    ),
    "vmap of grad, kernels too": lambda case: (
        lambda x, k, b: jax.vmap(jax.grad(loss(conv(case)), (0, 1)), (0, 0, None))(x[None], k[None], b)
    ),
    "jvp of grad": lambda case: lambda *a: jax.jvp(jax.grad(loss(conv(case)), (0, 1, 2)), a, a),
    "scan": stepped,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("case", [*LAYERS, NAMED["everything at once"], NAMED["low above reach, two axes"]], ids=str)
def test_stablehlo_of_whole_programs_is_canonical(case, program):
    """Read from the text that XLA gets, for a CPU and for a GPU, of programs of every kind."""
    x, kernel, bias, _ = case.draw("float32")
    traced = jax.jit(PROGRAMS[program](case)).trace(x, kernel, bias)
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = re.findall(r"dim_numbers = (\[[^=]*?\]), window", text)
        assert set(found) <= {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "[b, 0, f]x[0, i, o]->[b, 0, f]"}
        assert set(re.findall(r"batch_group_count = (\d+)", text)) <= {"1"}
        assert len(found) == text.count("stablehlo.convolution")
        assert found or platform == "cpu"
        for pads in re.findall(r"pad = \[(\[.*?\])\]", text):
            assert "-" not in pads


# The vmap trap: Equinox's everyday form, a loss over examples that is mapped, with one kernel for all of them.


def unbatched(case: Case) -> Case:
    return dataclasses.replace(case, batch=None)


@pytest.mark.parametrize("case", [DENSE, DEPTHWISE], ids=str)
def test_a_shared_kernel_has_one_gradient(case):
    """Not one an example that are then summed: read from the shapes in the jaxpr, of one vmap and of two."""
    x, kernel, _, _ = case.draw("float32")
    mean = lambda one, kernel: jnp.sin(conv(unbatched(case))(one, kernel)).mean()
    once = lambda x, kernel: jax.vmap(mean, (0, None))(x, kernel).mean()
    twice = lambda x, kernel: jax.vmap(once, (0, None))(x, kernel).mean()
    for f, images in ((once, x), (twice, np.stack([x, x, x]))):
        every = equations(jax.make_jaxpr(jax.grad(f, 1))(images, kernel))
        (equation,) = [e for e in every if e.primitive.name == "kernel_grad"]
        assert equation.outvars[0].aval.shape == kernel.shape
        assert not equation.params["examples"]
        assert equation.invars[0].aval.shape == (np.prod(images.shape[:-3]), *x.shape[1:])  # folded into the batch


@pytest.mark.optimised
@pytest.mark.parametrize(
    "case",
    [
        Case((28, 28), (3, 3), padding=1, channels=(32, 32), batch=16, name="dense, 16 x 28 x 28 x 32"),
        Case((28, 28), (3, 3), padding=1, groups=64, channels=(64, 64), batch=16, name="depthwise, 16 x 28 x 28 x 64"),
    ],
    ids=str,
)
def test_a_shared_kernels_gradient_takes_no_more_memory_than_stocks(case):
    x, kernel, _, _ = case.draw("float32")

    def temporary_bytes(f):
        mapped = lambda kernel, x: jax.vmap(lambda one: jnp.sin(f(one, kernel)).mean())(x).mean()
        return jax.jit(jax.grad(mapped)).lower(kernel, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(conv(unbatched(case))) <= 1.2 * temporary_bytes(unbatched(case).stock)


def test_a_kernel_an_example_has_a_gradient_an_example():
    x, kernel, _, _ = DENSE.draw("float32")
    kernels = np.stack([kernel, kernel])
    f = jax.grad(lambda k: jax.vmap(lambda x, k: conv(DENSE)(x[None], k).sum())(x, k).sum())
    (equation,) = [e for e in equations(jax.make_jaxpr(f)(kernels)) if e.primitive.name == "kernel_grad"]
    assert equation.outvars[0].aval.shape == kernels.shape


def products_of_kernels(fun, *shapes):
    """Which axis of the second operand each matrix product of the lowered program sums over."""
    text = jax.jit(fun).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).as_text()
    return set(re.findall(r"stablehlo.dot_general .*contracting_dims = \[\d\] x \[(\d)\]", text))


@pytest.mark.parametrize(("window", "algorithm"), [((3, 3), "shifts"), ((1, 1), "matmul")])
def test_a_kernel_stored_out_first_is_read_as_it_is_stored(window, algorithm):
    """(out, in, height, width), of models in NCHW: XLA brings large ones into another order element by element."""
    how = {"padding": "SAME", "algorithm": {"forward": algorithm}}
    last = lambda x, k: jconv.conv(x, k, **how)
    assert products_of_kernels(last, (2, 6, 7, 20), (*window, 20, 24)) == {"0"}
    first = lambda x, k: jconv.conv(x, k, data_format="channels_first", **how)
    assert products_of_kernels(first, (2, 20, 6, 7), (24, 20, *window)) == {"1"}


@pytest.mark.parametrize(("order", "axis"), [("OIHW", "1"), ("HWIO", "0"), ("HWOI", "1")])
def test_accelerate_reads_a_kernel_as_it_is_stored(order, axis):
    sizes = {"O": 512, "I": 256, "H": 3, "W": 3}

    def layer(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NCHW", order, "NCHW"))

    shapes = (1, 256, 4, 4), tuple(sizes[letter] for letter in order)
    assert products_of_kernels(jconv.accelerate(layer), *shapes) == {axis}
