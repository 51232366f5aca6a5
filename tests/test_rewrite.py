"""accelerate, automatic and report: every place where a convolution hides, every way a function is called."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jconv

NHWC = ("NHWC", "HWIO", "NHWC")
STOCK = {
    *("conv_general_dilated", "reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
    *("select_and_scatter_add", "select_and_gather_add"),
}
PRODUCTS = {"convolve", "kernel_grad", "input_grad"}


def draw(*shapes, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


X, K = draw((2, 6, 6, 4), (3, 3, 4, 4))
DEPTHWISE = draw((3, 3, 1, 4), seed=1)[0]


def conv(x, kernel, groups=1, strides=(1, 1)):
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=NHWC, feature_group_count=groups)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def near(got, want, tol=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert jax.typeof(a) == jax.typeof(b)
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol * np.abs(np.asarray(b)).max(initial=1e-3))


def count(fun, *args):
    """How often each primitive stands in fun's jaxpr, bodies and rules that have run included."""
    found = collections.Counter()
    stack = [jax.make_jaxpr(fun)(*args)]
    while stack:
        value = stack.pop()
        if isinstance(value, ClosedJaxpr):
            stack.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            for equation in value.eqns:
                found[equation.primitive.name] += 1
                stack.extend(equation.params.values())
        elif isinstance(value, tuple | list):
            stack.extend(value)
    return found


def stock_left(fun, *args):
    return {name: n for name, n in count(fun, *args).items() if name in STOCK}


def accelerates(fun, *args, order=1, mode="rev"):
    """fun gives the same accelerated, and so does its derivative with accelerate inside and around; nothing stock is left."""
    number = lambda *args: sum(jnp.sum(leaf * jnp.cos(leaf)) for leaf in jax.tree.leaves(fun(*args)))
    along = lambda f: lambda *args: jax.jvp(f, args, args)[1]
    if mode == "rev":
        derive = lambda f: lambda *args: jax.grad(f, range(len(args)))(*args)
        derive_again = (lambda f: along(derive(f))) if order == 2 else derive
    else:
        derive = derive_again = along
    fast = jconv.accelerate(number)
    forms = [
        lambda *args: (jconv.accelerate(fun)(*args), derive(fast)(*args), derive_again(fast)(*args)),
        jconv.accelerate(lambda *args: (fun(*args), derive(number)(*args), derive_again(number)(*args))),
        jconv.accelerate(jax.jit(lambda *args: (fun(*args), derive(number)(*args), derive_again(number)(*args)))),
    ]
    want = jax.jit(lambda *args: (fun(*args), derive(number)(*args), derive_again(number)(*args)))(*args)
    for form in forms:
        near(jax.jit(form)(*args), want, 1e-4)
        assert not stock_left(form, *args)


# Places where a convolution hides. Each function takes x and a kernel.


def in_scan(x, kernel):
    return lax.scan(lambda c, k: (jnp.tanh(conv(c, k)), jnp.mean(c)), x, jnp.stack([kernel, 2 * kernel]))


def in_while(x, kernel):
    goes_on = lambda s: (conv(s[1], kernel)[0, 0, 0, 0] < 1e9) & (s[0] < 3)
    return lax.while_loop(goes_on, lambda s: (s[0] + 1, jnp.tanh(conv(s[1], kernel))), (0, x))[1]


def in_cond(x, kernel):
    return lax.cond(jnp.sum(x) > 0, lambda: conv(x, kernel), lambda: conv(x, kernel, strides=(1, 1)) * 2)


def in_switch(x, kernel):
    return lax.switch(1, [lambda: x, lambda: conv(x, kernel), lambda: -conv(x, kernel)])


def in_platform_dependent(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=conv, default=lambda x, k: conv(x, k) * 1.0)


def in_remat(x, kernel):
    return jax.checkpoint(lambda x: jnp.sin(conv(jnp.sin(conv(x, kernel)), kernel)))(x)


def in_remat_with_policy(x, kernel):
    policy = jax.checkpoint_policies.save_only_these_names("middle")
    name = lambda y: checkpoint_name(y, "middle")
    return jax.checkpoint(lambda x, k: jnp.sin(conv(name(jnp.sin(conv(x, k))), k)), policy=policy)(x, kernel)


def in_jit(x, kernel):
    return jax.jit(lambda x: jax.jit(conv)(jax.nn.relu(x), kernel) + 1)(x)


def in_vmap(x, kernel):
    return jax.vmap(lambda x: conv(x[None], kernel)[0])(x)


def in_vmap_of_kernels(x, kernel):
    return jax.vmap(lambda k: conv(x, k), out_axes=1)(jnp.stack([kernel, 3 * kernel]))


def in_vmap_of_both(x, kernel):
    return jax.vmap(lambda x, k: conv(x[None], k))(x, jnp.stack([kernel, 3 * kernel]))


def in_custom_vmap(x, kernel):
    f = jax.custom_batching.custom_vmap(lambda x: conv(x[None], kernel)[0])
    f.def_vmap(lambda size, mapped, x: (conv(x, kernel), True))
    return f(x[0]), jax.vmap(f)(x)


def in_custom_jvp(x, kernel):
    f = jax.custom_jvp(lambda x, k: conv(x, k))
    f.defjvp(lambda primals, tangents: (conv(*primals), conv(tangents[0], primals[1]) + conv(primals[0], tangents[1])))
    return f(x, kernel)


def in_linear_solve(x, kernel):
    matvec = lambda v: v + 0.01 * conv(v, kernel)
    richardson = lambda matvec, b: functools.reduce(lambda v, _: v + b - matvec(v), range(4), b)
    return lax.custom_linear_solve(matvec, x, richardson, lambda vecmat, b: richardson(vecmat, b))


def in_map_and_fori(x, kernel):
    return lax.fori_loop(0, 2, lambda i, c: lax.map(lambda one: conv(one[None], kernel)[0], c), x)


def pooled(x, kernel):
    y = max_pool(conv(x, kernel))
    return lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME") / 4.0


def in_closed_jaxpr(x, kernel):
    return jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(conv)(x, kernel))(x, kernel)[0]


PLACES = [
    *(in_scan, in_while, in_cond, in_switch, in_platform_dependent, in_remat, in_remat_with_policy, in_jit, in_vmap),
    *(in_vmap_of_kernels, in_vmap_of_both, in_custom_vmap, in_custom_jvp, in_linear_solve, in_map_and_fori, pooled),
    in_closed_jaxpr,
]


ONLY_FORWARD = (in_while, in_custom_vmap)  # in stock jax
SECOND_ORDER = (in_scan, in_remat, in_jit, in_vmap, pooled)


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_places(place):
    accelerates(place, X, K, order=2 if place in SECOND_ORDER else 1, mode="fwd" if place in ONLY_FORWARD else "rev")


def test_while_has_two_parts():
    assert count(in_while, X, K)["conv_general_dilated"] == 2
    assert count(jconv.accelerate(in_while), X, K)["convolve"] == 2


def test_shard_map():
    mesh = jax.make_mesh((2,), ("i",), (AxisType.Auto,), devices=jax.devices()[:2])

    def loss(x, kernel):
        local = lambda x, k: lax.psum(jnp.sum(max_pool(conv(x, k)) ** 2), "i")
        return jax.shard_map(local, mesh=mesh, in_specs=(P("i"), P()), out_specs=P())(x, kernel)

    gradient = jax.grad(loss, (0, 1))
    want = jax.jit(gradient)(X, K)
    for form in (jax.grad(jconv.accelerate(loss), (0, 1)), jconv.accelerate(gradient)):
        near(jax.jit(form)(X, K), want)
        assert not stock_left(form, X, K)
    near(jconv.accelerate(loss)(X, K), jax.jit(loss)(X, K))


@pytest.mark.parametrize(
    ("size", "options"),
    [(15, {}), (7, {"padding": (-1, 0)}), (8, {"padding": (1, -3)}), (9, {"strides": 4})],
    ids=["less than a stride", "left cut off", "right cut off", "a stride and more"],
)
def test_automatic_derives_a_pool_that_leaves_elements_over(size, options):
    """Jax's own derivative of a maximum fails on negative padding, so none is handed to it."""
    x = np.random.default_rng(0).permutation(size * size).reshape(1, size, size, 1).astype(np.float32)
    loss = lambda x: (jconv.max_pool(x, 2, **({"strides": 2} | options)) ** 2).sum()
    want = jax.value_and_grad(loss)(x)
    value, gradient = jax.jit(jax.value_and_grad(jconv.automatic(loss)))(x)
    assert value == want[0]
    np.testing.assert_array_equal(gradient, want[1])


@pytest.mark.parametrize(
    ("x", "kernel", "padding", "made"),
    [
        ((1, 1, 2, 2, 8), (3, 3, 3, 8, 8), 1, "convolve"),  # 9 of 27 taps see anything: not 4 times x
        ((8, 1, 1, 8), (3, 3, 8, 8), 1, "convolve"),
        ((2, 3, 3, 4), (9, 9, 4, 6), 8, "convolve, operands exchanged"),  # all 81
        ((2, 2, 2, 4), (5, 5, 4, 6), 2, "convolve"),
    ],
)
def test_operands_are_exchanged_where_many_taps_meet_a_small_input(x, kernel, padding, made):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), "float32") for shape in (x, kernel))
    space = "DHW"[-(x.ndim - 2) :]
    fun = lambda x, kernel: lax.conv_general_dilated(
        x,
        kernel,
        [1] * len(space),
        [(padding, padding)] * len(space),
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )
    assert [note.became for note in jconv.report(fun, x, kernel).replaced] == [made]
    near(jconv.accelerate(fun)(x, kernel), fun(x, kernel), 1e-5)
