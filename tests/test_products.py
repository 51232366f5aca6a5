"""The three products as primitives: each equals the oracle, each is the transpose of another, to every order."""

import dataclasses
import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jconv import products
from jconv.algorithms import choose
from tests import cases
from tests.cases import CASES, NAMED, Case, geometry_of, precise

pytestmark = pytest.mark.usefixtures("x64")

ZEROS = [case.last for case in CASES if case.padding not in cases.REPEATS]
FEW = [
    NAMED[name]
    for name in ("everything at once", "depthwise, two a channel", "grouped", "low above reach, two axes", "patches")
]
SMALL = Case((5,), (3,), 2, ((2, 1),), 1, 2, groups=2, channels=(4, 6), name="small")
PRODUCTS = {
    # name: the product, which of (x, w, g) are its operands, the oracle
    "convolve": (products.convolve, (0, 1), lambda case, x, w: case.conv(x, w)),
    "kernel_grad": (products.kernel_grad, (0, 2), lambda case, x, g: case.kernel_grad(x, g)),
    "input_grad": (products.input_grad, (2, 1), lambda case, g, w: case.input_grad(g, w)),
}
RESULT = {"convolve": 2, "kernel_grad": 1, "input_grad": 0}  # which of (x, w, g) the result is shaped like
MADE_OF = {operands: name for name, (_, operands, _) in PRODUCTS.items()}


def operands(name, case, seed=0, dtype="float64"):
    x, w, _, g = case.draw(dtype, seed)
    return [(x, w, g)[i] for i in PRODUCTS[name][1]]


def close(got, want, **kwargs):
    np.testing.assert_allclose(np.asarray(got), want, **(precise(want) | kwargs))


@pytest.mark.parametrize("case", ZEROS, ids=str)
def test_shapes_are_known_before_anything_runs(case):
    """Abstract evaluation agrees with what the lowering of every platform gives."""
    for name, (product, _, _) in PRODUCTS.items():
        lhs, rhs = operands(name, case, dtype="float32")
        want = jax.eval_shape(functools.partial(product, geometry=geometry_of(case)), lhs, rhs)
        assert want.shape == case.shapes[(0, 1, 3)[(0, 1, 2).index(RESULT[name])]]
        for platform, examples in itertools.product(("cpu", "other"), (False, True)):
            form = functools.partial(
                getattr(choose, name), geometry=geometry_of(case), precision=None, dtype=jnp.dtype("float32"),
                algorithm=("auto",) * 3, examples=examples, platform=platform,
            )  # fmt: skip
            lead = (3,) if examples else ()
            got = jax.eval_shape(form, *(jnp.zeros((*lead, *a.shape), a.dtype) for a in (lhs, rhs)))
            assert (got.shape, got.dtype) == ((*lead, *want.shape), want.dtype), (name, platform, examples)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("case", ZEROS, ids=str)
def test_transposes_are_the_other_products(case, name):
    """One equation a transpose, the right product of the right operands: read from the jaxpr."""
    product, which, _ = PRODUCTS[name]
    arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands(name, case)]
    ct = jax.eval_shape(functools.partial(product, geometry=geometry_of(case)), *arrays)
    for unknown in (0, 1):

        def transpose(known, ct, unknown=unknown):
            linear = lambda u: product(*((u, known) if unknown == 0 else (known, u)), geometry=geometry_of(case))
            return jax.linear_transpose(linear, arrays[unknown])(ct)[0]

        jaxpr = jax.make_jaxpr(transpose)(arrays[1 - unknown], ct)
        (equation,) = jaxpr.eqns
        letter = {jaxpr.jaxpr.invars[0]: which[1 - unknown], jaxpr.jaxpr.invars[1]: RESULT[name]}
        assert equation.primitive.name == MADE_OF[tuple(letter[v] for v in equation.invars)]
        assert equation.params["geometry"] == geometry_of(case)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_products_equal_the_oracle_and_one_number_three_ways(case):
    x, w, _, g = case.draw("float64")
    y, dw, dx = jax.jit(
        lambda x, w, g: (
            products.convolve(x, w, geometry_of(case)),
            products.kernel_grad(x, g, geometry_of(case)),
            products.input_grad(g, w, geometry_of(case)),
        )
    )(x, w, g)
    close(y, case.conv(x, w))
    close(dw, case.kernel_grad(x, g))
    close(dx, case.input_grad(g, w))
    number = np.vdot(y, g)
    close(np.vdot(dw, w), number)
    close(np.vdot(dx, x), number)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("case", FEW[:3], ids=str)
def test_every_derivative_to_third_order(case, name):
    """Finite differences of forward over reverse over forward ...: a product has no other derivatives than these."""
    product = functools.partial(PRODUCTS[name][0], geometry=geometry_of(case))
    check_grads(product, operands(name, case), order=3, modes=("fwd", "rev"), eps=1e-3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_mode(name):
    """jvp, linearize, linear_transpose, jacfwd, jacrev and both hessians, equal to the oracle's numbers."""
    case = SMALL
    product, which, oracle = PRODUCTS[name]
    f = functools.partial(product, geometry=geometry_of(case))
    (lhs, rhs), (dlhs, drhs) = operands(name, case), operands(name, case, seed=1)
    want = oracle(case, lhs, rhs)
    tangent = oracle(case, dlhs, rhs) + oracle(case, lhs, drhs)
    ct = case.draw("float64", 2)[(0, 1, 3)[RESULT[name]]]
    along = lambda i, known: PRODUCTS[MADE_OF[i]][2](case, *known)  # the product that has these operands
    given = {which[0]: lhs, which[1]: rhs, RESULT[name]: ct}

    def gradient(i):  # with respect to letter i: the product of the two others
        pair = next(pair for pair in MADE_OF if i not in pair)
        return along(pair, [given[j] for j in pair])

    value, slope = jax.jit(lambda *primals: jax.jvp(f, primals, (dlhs, drhs)))(lhs, rhs)
    close(value, want)
    close(slope, tangent)
    value, linear = jax.linearize(f, lhs, rhs)
    close(value, want)
    close(linear(dlhs, drhs), tangent)
    close(jax.linear_transpose(lambda u: f(u, rhs), lhs)(ct)[0], gradient(which[0]))
    close(jax.linear_transpose(lambda u: f(lhs, u), rhs)(ct)[0], gradient(which[1]))
    value, pull = jax.vjp(f, lhs, rhs)
    for got, i in zip(pull(ct), which):
        close(got, gradient(i))
    number = lambda lhs, rhs: jnp.vdot(f(lhs, rhs), ct)
    for jacobian in (jax.jacfwd, jax.jacrev):
        for i in (0, 1):
            close(jax.jit(jacobian(number, i))(lhs, rhs), gradient(which[i]))
    # The trilinear form's mixed second derivative, times a tangent, is the product of tangent and cotangent.
    forward_reverse = jax.jit(jax.jacfwd(jax.grad(number), 1))(lhs, rhs)
    reverse_forward = jax.jit(jax.jacrev(jax.jacfwd(number), 1))(lhs, rhs)
    close(reverse_forward, np.asarray(forward_reverse))
    close(np.tensordot(np.asarray(forward_reverse), drhs, rhs.ndim), gradient_with(name, case, which, given, drhs))
    for both in (jax.jacfwd(jax.jacrev(number)), jax.jacrev(jax.jacrev(number)), jax.jacfwd(jax.jacfwd(number))):
        assert not np.any(jax.jit(both)(lhs, rhs))  # bilinear: no second derivative in one operand


def gradient_with(name, case, which, given, drhs):
    """d number / d lhs at rhs = drhs."""
    del name
    given = given | {which[1]: drhs}
    pair = next(pair for pair in MADE_OF if which[0] not in pair)
    return PRODUCTS[MADE_OF[pair]][2](case, *(given[j] for j in pair))


# vmap: in_axes of the two operands, innermost first.
VMAPS = [
    [(0, None)],
    [(None, 0)],
    [(0, 0)],
    [(-1, None)],
    [(None, 2)],
    [(2, -1)],
    [(0, None), (None, 1)],
    [(None, 0), (1, None)],
    [(0, 0), (0, None)],
    [(0, 0), (None, -1)],
    [(1, 0), (0, 2)],
    [(0, None), (0, None)],
    [(0, 0), (None, 0), (1, None)],
]


def stack(array, dims, sizes, seed):
    """`array` with a new axis for every vmap that maps it, innermost first, all entries different."""
    rng = np.random.default_rng(seed)
    for dim, size in zip(dims, sizes):
        if dim is not None:
            array = np.stack([array * rng.uniform(0.5, 1.5) for _ in range(size)], axis=dim)
    return array


def loop(f, arrays, axes, sizes):
    """What nested vmaps mean: loops."""
    if not axes:
        return f(*arrays)
    *inner, dims = axes
    entries = []
    for i in range(sizes[-1]):
        entry = [a if d is None else np.take(a, i, axis=d) for a, d in zip(arrays, dims)]
        entries.append(loop(f, entry, inner, sizes[:-1]))
    return np.stack(entries)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("axes", VMAPS, ids=str)
@pytest.mark.parametrize("case", [SMALL, dataclasses.replace(SMALL, groups=1, name="small, dense")], ids=str)
def test_vmap_is_a_loop(case, axes, name):
    product, _, oracle = PRODUCTS[name]
    sizes = [2, 3, 2][: len(axes)]
    lhs, rhs = (stack(array, [dims[i] for dims in axes], sizes, i) for i, array in enumerate(operands(name, case)))
    f = functools.partial(product, geometry=geometry_of(case))
    for dims in axes:
        f = jax.vmap(f, in_axes=dims)
    close(jax.jit(f)(lhs, rhs), loop(functools.partial(oracle, case), (lhs, rhs), axes, sizes))


@pytest.mark.parametrize("name", PRODUCTS)
def test_vmap_of_every_derivative(name):
    case = SMALL
    f = functools.partial(PRODUCTS[name][0], geometry=geometry_of(case))
    lhs, rhs = (np.stack([a, 2 * a, -a]) for a in operands(name, case))
    ct = np.ones(jax.eval_shape(f, lhs[0], rhs[0]).shape)
    forms = {
        "jvp": lambda lhs, rhs: jax.jvp(f, (lhs, rhs), (rhs.sum() * lhs, rhs))[1],
        "linearize": lambda lhs, rhs: jax.linearize(f, lhs, rhs)[1](lhs, rhs),
        "vjp": lambda lhs, rhs: jax.vjp(f, lhs, rhs)[1](ct),
        "linear_transpose": lambda lhs, rhs: jax.linear_transpose(lambda u: f(u, rhs), lhs)(ct)[0],
        "grad of grad": lambda lhs, rhs: jax.grad(lambda u: jax.grad(lambda v: (f(u, v) ** 2).sum())(rhs).sum())(lhs),
        "jacfwd": lambda lhs, rhs: jax.jacfwd(lambda u: jnp.vdot(f(u, rhs), ct))(lhs),
        "jacrev": lambda lhs, rhs: jax.jacrev(lambda u: jnp.vdot(f(lhs, u), ct))(rhs),
    }
    everything = lambda lhs, rhs: {form: f(lhs, rhs) for form, f in forms.items()}
    one = jax.jit(everything)
    for dims in ((0, 0), (0, None), (None, 0)):
        given = [a if d == 0 else a[0] for a, d in zip((lhs, rhs), dims)]
        got = jax.jit(jax.vmap(everything, dims))(*given)
        entries = [one(*(a[i] if d == 0 else a for a, d in zip(given, dims))) for i in range(3)]
        chex.assert_trees_all_close(got, jax.tree.map(lambda *a: jnp.stack(a), *entries), rtol=1e-10, atol=1e-9)


@hypothesis.settings(max_examples=20)
@hypothesis.given(case=cases.cases(zeros_only=True, layouts=False), data=hypothesis.strategies.data())
def test_vmap_over_drawn_geometries(case, data):
    """Folding and unfolding a mapped axis, over channels of groups too."""
    name = data.draw(hypothesis.strategies.sampled_from(sorted(PRODUCTS)))
    axes = data.draw(hypothesis.strategies.sampled_from(VMAPS))
    sizes = [2, 3, 2][: len(axes)]
    lhs, rhs = (stack(array, [dims[i] for dims in axes], sizes, i) for i, array in enumerate(operands(name, case)))
    f = functools.partial(PRODUCTS[name][0], geometry=geometry_of(case))
    for dims in axes:
        f = jax.vmap(f, in_axes=dims)
    close(jax.jit(f)(lhs, rhs), loop(functools.partial(PRODUCTS[name][2], case), (lhs, rhs), axes, sizes))


@pytest.mark.parametrize("name", PRODUCTS)
def test_operands_of_two_dtypes_are_multiplied_in_the_wider(name):
    """What a backward pass with preferred_element_type needs: g is float32 where x is bfloat16."""
    case = NAMED["strided"]
    product, _, oracle = PRODUCTS[name]
    lhs, rhs = operands(name, case)
    lhs = lhs.astype(jnp.bfloat16)
    got = product(lhs, rhs.astype(np.float32), geometry_of(case))
    assert got.dtype == np.float32
    want = oracle(case, lhs, rhs.astype(np.float32))
    close(got, want, rtol=1e-5, atol=1e-5 * abs(want).max())
    got = product(lhs, rhs.astype(np.float32), geometry_of(case), dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    close(got.astype(np.float64), want, rtol=1e-2, atol=1e-4 * abs(want).max())


def test_a_symbolic_zero_costs_nothing():
    case = NAMED["strided"]
    x, w, _, _ = case.draw("float64")
    f = lambda x: products.convolve(x, w, geometry_of(case))
    jaxpr = jax.make_jaxpr(lambda x, dx: jax.jvp(f, (x,), (dx,)))(x, x)
    assert [e.primitive.name for e in jaxpr.eqns] == ["convolve", "convolve"]  # the value, and the tangent of x alone
