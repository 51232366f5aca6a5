"""compare: wrong rules are caught by name and place, right ones pass; every form of argument and result."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.comparison.forms import equations
from jconv.comparison.result import Comparison, Difference
from jconv.comparison.side_by_side import _paired
from tests.comparison import rules
from tests.comparison.rules import draw

quick = functools.partial(jconv.compare, repeats=1)
X, K = draw((2, 6, 6, 4), (3, 3, 2, 4))


def layer(x, kernel):
    return jconv.conv(x, kernel, padding=1, feature_group_count=2)


@pytest.fixture(scope="module")
def conv_found():
    return jconv.compare(layer, X, K, jvp_of_grad=True, repeats=3)


@pytest.fixture(scope="module")
def wrong_found():
    return quick(rules.wrong_loss, *rules.arguments())


def test_it_is_a_function_of_the_package():
    assert callable(jconv.compare)
    assert jconv.compare.__module__.startswith("jconv.comparison")


def test_a_layer_of_jconv_agrees(conv_found):
    assert isinstance(conv_found, Comparison)
    assert conv_found.agrees
    assert [d.name for d in conv_found.differences] == [
        "value", "gradient of x", "gradient of kernel", "jvp of gradient of x", "jvp of gradient of kernel",
    ]  # fmt: skip
    assert conv_found.no_truth == ""
    for d in conv_found.differences:
        assert d.hand.shape == d.automatic.shape == d.truth.shape
        assert d.truth.dtype == np.float64
        assert d.hand_error < 1e-6 and d.automatic_error < 1e-6
    for d in conv_found.gradients:
        assert d.finite_difference_error("hand") < 1e-5 and d.finite_difference_error("automatic") < 1e-5
    conv_found.assert_close()


def test_the_two_forms_are_what_they_are_called(conv_found):
    """The hand-written form is jconv's products, the automatic one lax's convolutions with jax's transposes."""
    kernel = conv_found.gradients[1]
    cotangent = np.random.default_rng((0, 0)).normal(size=X.shape).astype(np.float32)
    gradient = lambda f: jax.jit(lambda x, k: jax.vjp(f, x, k)[1](cotangent)[1])(X, K)
    np.testing.assert_array_equal(kernel.hand, gradient(layer))
    np.testing.assert_array_equal(kernel.automatic, gradient(jconv.automatic(layer)))
    np.testing.assert_allclose(
        kernel.truth,
        reference.conv_kernel_grad(X.astype(float), cotangent.astype(float), K.shape, padding=1, feature_group_count=2),
        atol=1e-10,
    )


def test_costs(conv_found):
    for cost in (conv_found.hand, conv_found.automatic):
        assert cost.step.shape == cost.forward.shape == (3,)
        assert (cost.step > 0).all() and (cost.forward > 0).all()
        assert 0 < cost.compile_seconds < 60
        assert cost.kept_bytes == cost.kept_arguments_bytes == X.nbytes + K.nbytes
        assert cost.temp_bytes >= 0 and cost.flops > 0 and cost.equations > 0
    assert conv_found.hand.equations < conv_found.automatic.equations


def test_bytes_kept_are_counted_once_and_told_apart():
    found = quick(lambda x: jnp.sum(jnp.sin(x) * x), X[0], float64=False)
    assert found.automatic.kept_bytes == 3 * X[0].nbytes  # sin(x), cos(x), x
    assert found.automatic.kept_arguments_bytes == X[0].nbytes


def test_equations_of_inner_jaxprs_count():
    inner = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) * 2, None), x, length=3)[0])(1.0)
    assert equations(inner) == 3  # the scan, and two in its body


def test_a_wrong_rule_is_caught_named_and_placed(wrong_found):
    assert not wrong_found.agrees
    (bad,) = wrong_found.disagreements
    assert bad.name == "gradient of params['weights']"
    assert bad.index == (1,)
    assert bad.largest == pytest.approx(0.5, abs=1e-5)
    assert bad.hand[1] - bad.automatic[1] == pytest.approx(0.5, abs=1e-5)
    assert bad.nearer == "automatic"
    assert bad.hand_error > 0.1 and bad.automatic_error < 1e-5
    assert bad.finite_difference_error("hand") > 0.01 and bad.finite_difference_error("automatic") < 1e-5
    with pytest.raises(
        AssertionError, match=r"gradient of params\['weights'\] differs by 0.5 at index \(1,\)"
    ) as error:
        wrong_found.assert_close()
    for value in (bad.hand[1], bad.automatic[1]):
        assert f"{float(value):.7g}" in str(error.value)
    wrong_found.assert_close(atol=0.6)
    wrong_found.assert_close(rtol=10.0)
    assert wrong_found.verdict() in str(wrong_found).replace("\n", " ")


def test_a_right_rule_of_somebody_else_passes():
    found = quick(rules.loss, *rules.arguments(), jvp_of_grad=True)
    assert found.agrees
    assert len(found.jvp_of_grad) == 2


def test_a_rule_wrong_in_its_own_derivative_alone_is_caught_by_jvp_of_grad():
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * jax.lax.stop_gradient(x) * g,))
    f = lambda x: jnp.sum(square(x))
    x = draw((3,))[0]
    assert quick(f, x).agrees
    (bad,) = quick(f, x, jvp_of_grad=True).disagreements
    assert bad.name == "jvp of gradient of x"


def test_only_the_rules_that_are_named_are_derived():
    f = lambda x, p: rules.wrong_loss(x, p)
    assert quick(f, *rules.arguments(), rules=("another",), float64=False).agrees
    assert not quick(f, *rules.arguments(), rules=("scale",), float64=False).agrees


def test_who_is_right_where_the_automatic_rule_is_wrong():
    """As where XLA reads outside its input: the automatic form is off, and float64 says so."""
    d = Difference("gradient", "x", np.float32([1, 2]), np.float32([1, 9]), np.array([1.0, 2.0]), size=2.0)
    assert d.nearer == "hand"
    assert d.hand_error == 0 and d.automatic_error == 3.5
    assert not d.agrees()
    assert d.place() == (
        "gradient of x differs by 7 at index (1,): hand-written 2, automatic 9, float64 2; nearer to float64: "
        "hand-written"
    )


def test_nan_and_infinity_in_the_same_place_are_no_difference():
    odd = np.float32([np.nan, np.inf, -np.inf, 1])
    assert Difference("value", "", odd, odd.copy()).largest == 0
    for other in ([0, np.inf, -np.inf, 1], [np.nan, -np.inf, -np.inf, 1], [np.nan, 0, -np.inf, 1]):
        d = Difference("value", "", odd, np.float32(other))
        assert d.largest == np.inf
        assert d.index == ((0,) if other[0] == 0 else (1,))
        assert not d.agrees()


def test_a_gradient_that_is_nothing_but_rounding_is_no_disagreement():
    """A bias in front of a normalisation: its gradient is 0, and what comes out is noise of either form."""

    def normalised(x, bias):
        y = jconv.conv(x, jnp.asarray(K[:, :, :, :4], x.dtype), padding=1, feature_group_count=2) + bias
        y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
        return jnp.sum(jnp.sin(y) * y)

    found = quick(normalised, X, np.zeros(4, np.float32))
    bias = found.gradients[1]
    assert np.abs(bias.truth).max() < 1e-10 < np.abs(bias.automatic).max()
    assert bias.hand_error < 1e-5
    assert found.agrees
    assert quick(normalised, X, np.zeros(4, np.float32), float64=False).agrees


def test_both_equally_far_from_float64_is_rounding_and_one_alone_is_not():
    """As on a GPU that multiplies with 10 bits: 0.1 % off both ways is no disagreement, 0.1 % off one way is."""
    true = np.linspace(1, 2, 5)
    above, below, exact = (np.float32(true * (1 + slip)) for slip in (1e-3, -1e-3, 0))
    agrees = lambda hand, automatic: _paired("gradient", ["x"], [hand], [automatic], [true])[0].agrees()
    assert agrees(above, below)
    assert not agrees(above, exact)
    assert not agrees(exact, above)
    assert not agrees(np.float32(true * 1.1), np.float32(true * 0.9))


# Arguments and results of every form.


def test_modules_of_equinox():
    model = eqx.nn.Sequential(
        [eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu), eqx.nn.MaxPool2d(2, 2)]
    )
    f = eqx.filter_jit(lambda model, x: jnp.sum(jax.vmap(model)(x) ** 2))
    found = quick(f, model, draw((2, 3, 6, 6))[0])
    assert found.agrees
    assert found.no_truth == ""
    assert [d.path for d in found.gradients] == ["model.layers[0].weight", "model.layers[0].bias", "x"]


def test_arguments_that_are_no_floats_are_passed_through():
    def f(x, labels, count, flip, key, params):
        assert isinstance(count, int) and isinstance(flip, bool)
        noise = jax.random.uniform(key, (), x.dtype)
        return jnp.sum(x[labels][:count] * params["a"][0]) * (params["b"] or 1.0) + 0 * noise

    labels, key = np.array([0, 2, 1]), jax.random.key(0)
    found = quick(f, X, labels, 2, True, key, {"a": [np.ones(4, np.float32)], "b": None, "act": jnp.sin})
    assert found.agrees
    assert [d.path for d in found.gradients] == ["x", "params['a'][0]"]
    assert "random numbers" in found.no_truth


def test_argnums():
    f = lambda x, y, z: jnp.sum(x * y * z)
    three = draw((3,), (3,), (3,))
    assert [d.path for d in quick(f, *three, float64=False).gradients] == ["x", "y", "z"]
    assert [d.path for d in quick(f, *three, argnums=-1, float64=False).gradients] == ["z"]
    assert [d.path for d in quick(f, *three, argnums=(0, 2)).gradients] == ["x", "z"]


def test_names_of_arguments():
    def f(x, *rest):
        return x * rest[0]["w"]

    found = quick(f, 2.0, {"w": 3.0}, float64=False)
    assert [d.name for d in found.differences] == ["value", "gradient of x", "gradient of args[1]['w']"]
    assert quick(functools.partial(f, 2.0), {"w": 3.0}, float64=False).gradients[0].path == "args[0]['w']"


RESULTS = {
    "scalar": (lambda x: jnp.sum(x**3), ["value"]),
    "array": (lambda x: x**3, ["value"]),
    "tuple": (lambda x: (x[0], jnp.cos(x)), ["value[0]", "value[1]"]),
    "dict": (lambda x: {"y": x * x, "top": jnp.argmax(x)}, ["value['top']", "value['y']"]),
    "complex": (lambda x: jnp.exp(1j * x), ["value"]),
    "nothing of x": (lambda x: {"x": x, "one": jnp.ones((), x.dtype)}, ["value['one']", "value['x']"]),
    "empty": (lambda x: (x[:0], x), ["value[0]", "value[1]"]),
    "jitted": (jax.jit(lambda x: x**2), ["value"]),
    "donating": (jax.jit(lambda x: x**2, donate_argnums=0), ["value"]),
    "key": (lambda x: (x * x, jax.random.key(0)), ["value[0]", "value[1]"]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(name):
    f, names = RESULTS[name]
    x = draw((5,))[0]
    with jax.numpy_dtype_promotion("standard"):
        found = quick(f, x, jvp_of_grad=name == "complex")
    assert [d.name for d in found.values] == names
    assert found.agrees
    assert found.no_truth == ""
    assert found.gradients[0].finite_difference_error("automatic") < 1e-5
    assert str(found) and json.loads(found.to_json())["agrees"]


def test_complex_arguments():
    x, k = draw((1, 5, 2), (2, 2, 3))
    x, k = (x + 1j * x[::-1, ::-1]).astype("complex64"), (k - 2j * k[::-1]).astype("complex64")
    found = quick(lambda x, kernel: jconv.conv(x, kernel), x, k)
    assert found.agrees and found.no_truth == ""
    assert found.gradients[1].truth.dtype == np.complex128
    assert found.gradients[1].finite_difference_error("hand") < 1e-5
    assert found.gradients[1].hand_error < 1e-6


def test_low_precision_is_judged_by_its_own_digits():
    found = quick(layer, X.astype(jnp.bfloat16), K.astype(jnp.bfloat16))
    assert found.agrees and found.no_truth == ""
    assert found.gradients[0].hand.dtype == jnp.bfloat16
    assert 1e-4 < found.gradients[0].hand_error < 1e-2


NO_TRUTH = {
    "narrows": (lambda x: jnp.sum(x.astype(np.float32) ** 2), "computes in float32"),
    "closes over": (lambda x: jconv.conv(x, jnp.asarray(K), feature_group_count=2), "closes over"),
}


@pytest.mark.parametrize("name", NO_TRUTH)
def test_why_there_is_no_float64(name):
    f, why = NO_TRUTH[name]
    found = quick(f, X)
    assert why in found.no_truth
    assert why.split()[-1] in str(found)
    assert found.agrees
    assert all(d.truth is None and d.nearer == "" and d.hand_error is None for d in found.differences)
    assert json.loads(found.to_json())["differences"][0]["hand_error"] is None


def test_float64_arguments_have_no_wider_truth(x64):
    found = quick(rules.wrong_loss, *jax.tree.map(lambda a: a.astype(float), rules.arguments()))
    assert "float64 already" in found.no_truth
    assert [d.path for d in found.disagreements] == ["params['weights']"]
    assert found.gradients[0].hand.dtype == np.float64


def test_int8_results_must_be_equal():
    f = lambda x: (x, (x > 0).astype(np.int8))
    found = quick(f, X[0])
    assert found.values[1].tolerance() == 0
    assert found.agrees


# What cannot be compared.

WRONG = {
    "no function": (lambda: jconv.compare(3, X), TypeError, "fun=3 must be a function"),
    "text": (lambda: jconv.compare(jnp.sin, "text"), TypeError, "'text' must be an array or a number, got str"),
    "object": (lambda: jconv.compare(lambda p: 1.0, {"a": [object()]}), TypeError, r"p\['a'\]\[0\]=<object .* got object"),
    "strings": (lambda: jconv.compare(lambda x: 1.0, np.array(["a"])), TypeError, "x=.* must be an array or a number"),
    "integers alone": (lambda: jconv.compare(lambda n: 1.0, np.arange(3)), TypeError, "no argument holds floating"),
    "argnums of integers": (lambda: jconv.compare(lambda x, n: x, 1.0, 2, argnums=1), TypeError, "argnums=1: no arg"),
    "argnums": (lambda: jconv.compare(jnp.sin, 1.0, argnums=1), ValueError, "argnums=1 must name one of the 1 arg"),
    "argnums kind": (lambda: jconv.compare(jnp.sin, 1.0, argnums=("x",)), TypeError, "must be an integer or a seq"),
    "repeats": (lambda: jconv.compare(jnp.sin, 1.0, repeats=0), ValueError, "repeats=0 must be at least 1"),
    "directions": (lambda: jconv.compare(jnp.sin, 1.0, directions=1.5), TypeError, "directions=1.5 must be an integer"),
    "rtol": (lambda: jconv.compare(jnp.sin, 1.0, rtol=-1.0), ValueError, "rtol=-1.0 must be None or a number"),
    "integer result": (lambda: jconv.compare(lambda x: jnp.argmax(x), X), TypeError, "fun returns no floating-point"),
    "fails": (lambda: jconv.compare(rules.fails, *rules.arguments()), RuntimeError, "the first line"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    call, kind, match = WRONG[name]
    with pytest.raises(kind, match=match):
        call()
