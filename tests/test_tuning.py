"""autotune and Tuning: what is found, that the measured choice runs where and only where it is in use, files, errors.

A tuning that names another algorithm than the static choice is made up where a test is about its use, not its figures:
nothing needs to be timed to see a program change.
"""

import concurrent.futures
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jconv
from jconv import autotuning, cli, measured
from jconv.algorithms import choose
from jconv.comparison import cost
from jconv.tuning import Entry, Tuning, nothing_here

rng = np.random.default_rng(0)
X, K = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 8, 8), (3, 3, 8, 8)))
STACK = np.stack([K, K / 3])


def loss(kernel, x):
    return jnp.sin(jconv.conv(x, kernel, padding=1)).sum()


def made_up(fun, *args, name=None):
    """A tuning of fun(*args) that names `name` where it applies, else the static choice."""
    entries = []
    for product in autotuning.products_of(fun, *args):
        static, others = autotuning.candidates(product)
        best = name if name in others else static
        entries.append(Entry(product, static, best, dict.fromkeys({static, best}, 0.5)))
    return dataclasses.replace(nothing_here(), entries=tuple(entries))


def found(fun, *args):
    return [(p.product, p.layer) for p in autotuning.products_of(fun, *args)]


# What is found.

FORWARD, KERNEL, INPUT = [(name, "2x8x8x8 -> 8 k3 p1") for name in ("forward", "kernel_grad", "input_grad")]


def test_all_three_products_of_a_gradient():
    assert set(found(jax.grad(loss), K, X)) == {FORWARD, KERNEL}  # what sin needs, and what is asked for
    assert set(found(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), K, X)) == {FORWARD, KERNEL, INPUT}
    assert found(loss, K, X) == [FORWARD]


def scanned(stack, x):
    return jax.lax.scan(lambda x, kernel: (jconv.conv(x, kernel, padding=1), None), x, stack)[0].sum()


def remat(stack, x):
    layer = jax.checkpoint(lambda x, kernel: jnp.sin(jconv.conv(x, kernel, padding=1)))
    return layer(layer(x, stack[0]), stack[1]).sum()


def branched(stack, x):
    return jax.lax.cond(x.sum() > 0, lambda: jconv.conv(x, stack[0], padding=1).sum(), lambda: 0.0)


def repeated(stack, x):
    """A while loop has no gradient: the gradient is inside of it."""
    step = lambda stack: stack - jax.grad(scanned)(stack, x)
    return jax.lax.while_loop(lambda state: state[1] < 2, lambda state: (step(state[0]), state[1] + 1), (stack, 0))


def by_rule(stack, x):
    @jax.custom_vjp
    def layer(x, kernel):
        return jconv.conv(x, kernel, padding=1)

    layer.defvjp(
        lambda x, kernel: (layer(x, kernel), (x, kernel)),
        lambda kept, g: (
            jconv.conv_input_grad(g, kept[1], kept[0].shape, padding=1),
            jconv.conv_kernel_grad(kept[0], g, kept[1].shape, padding=1),
        ),
    )
    return layer(layer(x, stack[0]), stack[1]).sum()


def by_lax(stack, x):
    for kernel in stack:
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.sum()


@pytest.mark.parametrize("fun", [scanned, remat, branched, by_rule, jconv.accelerate(by_lax)], ids=lambda f: f.__name__)
def test_found_wherever_they_are(fun):
    products = set(found(jax.jit(jax.value_and_grad(fun)), STACK, X))
    assert products == {FORWARD, KERNEL} | ({INPUT} if fun is not branched else set())


def test_found_in_a_while_loop():
    assert set(found(repeated, STACK, X)) == {FORWARD, KERNEL, INPUT}


def test_vmap_leaves_the_shapes_that_are_lowered():
    assert set(found(jax.grad(lambda k, x: jax.vmap(loss, (None, 0))(k, x).sum()), K, np.stack([X] * 3))) == {
        ("forward", "6x8x8x8 -> 8 k3 p1"),
        ("kernel_grad", "6x8x8x8 -> 8 k3 p1"),
    }
    one = jax.vmap(jax.grad(loss), (None, 0))
    assert ("kernel_grad", "3 times 2x8x8x8 -> 8 k3 p1") in found(one, K, np.stack([X] * 3))


def test_each_device_s_own_part():
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    by_hand = jax.shard_map(
        lambda k, x: jax.lax.psum(loss(k, x), "batch"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("batch")),
        out_specs=PartitionSpec(),
    )
    assert ("kernel_grad", "1x8x8x8 -> 8 k3 p1") in found(jax.grad(by_hand), K, X)
    # A loop over examples that XLA is to divide: it calls back from another thread, where the choice holds too.
    noting, split = autotuning._Noting(), NamedSharding(mesh, PartitionSpec("batch"))
    arrays = [jax.device_put(np.stack([a] * 6), split) for a in (X, K)]
    with measured.using(noting):
        jax.jit(jax.vmap(jconv.conv)).lower(*arrays).compile()
    assert [p.lhs[0] for p in noting.asked if p.examples] == [6, 3]


def test_structs_and_static_arguments():
    layer = lambda x, kernel, options: jconv.conv(x, kernel["kernel"], **options)
    struct = jax.ShapeDtypeStruct((1, 9, 9, 8), jnp.bfloat16)
    kernel = {"kernel": jax.ShapeDtypeStruct((3, 5, 1, 16), jnp.bfloat16)}
    options = {"strides": [2, 1], "padding": "SAME", "kernel_dilation": 2, "feature_group_count": 8}
    (name,) = found(layer, struct, kernel, options)
    assert name == ("forward", "1x9x9x8 -> 16 k3x5 s2x1 d2 p2x4 g8 bfloat16")
    (name,) = found(lambda x, k: jconv.conv(x, k, padding=((2, 0), (0, -1)), input_dilation=2), X, K)
    assert name[1] == "2x8x8x8 -> 8 k3 e2 p2:0x0:-1"


def test_a_forced_algorithm_an_empty_batch_and_a_symbolic_one_are_nothing_to_measure():
    assert found(lambda x: jconv.conv(x, K, algorithm="lax"), X) == []
    assert found(lambda x: jconv.conv(x, K), X[:0]) == []
    (batch,) = jax.export.symbolic_shape("batch")
    noting, struct = autotuning._Noting(), jax.ShapeDtypeStruct((batch, 8, 8, 8), jnp.float32)
    with measured.using(noting):
        jax.export.export(jax.jit(lambda x: jconv.conv(x, K)))(struct)
    assert not noting.asked
    half = lambda x, k: jconv.conv(x, k, algorithm={"kernel_grad": "lax"}, padding=1).sum()
    assert found(jax.grad(half, argnums=(0, 1)), X, K) == [INPUT]


# What is measured.


def test_autotune_measures_every_algorithm_and_values_stay():
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    want, seen = step(K, X), []
    tuning = jconv.autotune(step, K, X, repeats=2, progress=lambda *told: seen.append(told))
    assert [(done, total) for done, total, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    assert {(entry.problem.product, entry.problem.layer) for entry in tuning.entries} == {FORWARD, KERNEL, INPUT}
    for entry in tuning.entries:
        static, others = autotuning.candidates(entry.problem)
        assert entry.static == static and len(others) > 2
        assert set(entry.seconds) | set(entry.skipped) == {static, *others}
        assert not set(entry.seconds) & set(entry.skipped)
        assert all(0 < seconds < 10 for seconds in entry.seconds.values())
        assert entry.ratio >= 1 and entry.best in entry.seconds
    with tuning:
        got = step(K, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), want, got)
    lines = str(tuning).splitlines()
    assert len(lines) == 3 + len(tuning.entries) and max(map(len, lines)) <= 100
    assert lines[2].split() == ["layer", "product", "static", "ms", "best", "ms", "ratio"]


@pytest.mark.parametrize("name", ["lax", "two_sided", "space_to_depth"])
def test_a_table_of_long_names_has_at_most_100_columns(name):
    """What is left of a line is the layer's."""
    entries = [
        Entry(product, name, name, {name: 0.1234567})
        for product in autotuning.products_of(jax.grad(loss, argnums=(0, 1)), K, X)
    ]
    lines = str(dataclasses.replace(nothing_here(), entries=tuple(entries))).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line.split()[-5:] == [name, "123.5", name, "123.5", "1.00"] for line in lines[3:])


@pytest.mark.parametrize(("times", "best"), [((100, 96), 0), ((100, 80), 1), ((100, 120), 0)])
def test_the_static_choice_stays_unless_another_is_faster_by_more_than_noise(times, best, monkeypatch):
    (product,) = autotuning.products_of(jconv.conv, X, K)
    static, others = autotuning.candidates(product)
    known = dict(zip((static, *others), times))
    fake = lambda calls, *rest: {name: np.full(3, known.get(name, 300.0)) for name in calls}
    monkeypatch.setattr(cost, "interleaved", fake)
    monkeypatch.setattr(autotuning, "HOPELESS", 1e9)
    entry = autotuning.measure(product, None, 3, 60.0)
    assert entry.best == (static, others[0])[best]
    assert entry.ratio == pytest.approx(max(1.0, 100 / times[1]))


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MOST_LINES", 3, "lines"),
        ("MOST_TEMPORARIES", -(1 << 40), "GiB of temporaries"),
        ("HOPELESS", 1e-9, "times the fastest in its first run"),
    ],
)
def test_the_hopeless_are_left_and_the_static_choice_never(limit, value, reason, monkeypatch):
    monkeypatch.setattr(autotuning, limit, value)
    (product,) = autotuning.products_of(jconv.conv, X, K)
    entry = autotuning.measure(product, None, 1, 60.0)
    assert set(entry.seconds) == {entry.static} and entry.best == entry.static and entry.ratio == 1
    assert any(reason in why for why in entry.skipped.values()), entry.skipped


def test_lax_is_not_tried_over_many_zeros():
    for strides, few in ((2, True), (3, False)):
        fun = lambda g, strides=strides: jconv.conv_input_grad(g, K, (1, 3 * strides, 3 * strides, 8), strides=strides)
        (product,) = autotuning.products_of(fun, np.ones((1, *2 * (2 + (strides == 3),), 8), np.float32))
        entry = autotuning.measure(product, None, 1, 60.0)
        assert ("lax" in entry.seconds) == few or "first run" in entry.skipped["lax"]
        assert few or entry.skipped["lax"] == "it multiplies 8 zeros an element"


def test_no_time_left():
    (product,) = autotuning.products_of(jconv.conv, X, K)
    entry = autotuning.measure(product, None, 1, 1e-9)
    assert set(entry.skipped.values()) == {"no time was left after 1e-09 s"}


def test_a_failing_algorithm_is_told_a_failing_static_choice_raises(monkeypatch):
    program, (product,) = autotuning._compiled, autotuning.products_of(jconv.conv, X, K)

    def failing(which):
        def compiled(lowered, texts, static):
            if static == which:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much\nof everything")
            return program(lowered, texts, static)

        monkeypatch.setattr(autotuning, "_compiled", compiled)
        return autotuning.measure(product, None, 1, 60.0)

    assert set(failing(False).skipped.values()) == {"it failed: RESOURCE_EXHAUSTED: too much"}
    with pytest.raises(jax.errors.JaxRuntimeError):
        failing(True)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "complex64"])
def test_every_dtype_can_be_drawn(dtype):
    (product,) = autotuning.products_of(jconv.conv, X.astype(dtype), K.astype(dtype))
    assert product.operands == (dtype, dtype)
    assert autotuning.measure(product, None, 1, 1e-9).seconds


@pytest.mark.usefixtures("x64")
def test_winograd_is_left_where_its_rounding_is_not_like_that_of_lax():
    for dtype, tried in (("float32", True), ("bfloat16", True), ("float64", False), ("complex64", False)):
        (product,) = autotuning.products_of(jconv.conv, X.astype(dtype), K.astype(dtype))
        assert ("winograd" in autotuning.candidates(product)[1]) == tried


def test_examples_are_measured_as_they_run():
    one = jax.vmap(jax.grad(loss), (None, 0))
    (product,) = [p for p in autotuning.products_of(one, K, np.stack([X] * 3)) if p.examples]
    static, others = autotuning.candidates(product)
    assert static == "patches" and "lax" in others
    assert autotuning.measure(product, None, 1, 1e-9).static == "patches"
    elsewhere = dataclasses.replace(product, platform="other")
    assert autotuning.candidates(elsewhere) == ("lax", [])


# What runs.


def text(fun, *args):
    return jax.jit(lambda *args: fun(*args)).lower(*args).as_text()


def convolutions(fun, *args):
    return text(fun, *args).count("stablehlo.convolution")


def test_the_choice_runs_in_its_place_and_only_there():
    both = jax.value_and_grad(loss, argnums=(0, 1))
    tuning = made_up(both, K, X, name="shifts")
    assert [entry.best for entry in tuning.entries] == ["shifts"] * 3
    before = text(both, K, X)
    assert convolutions(both, K, X) == 3
    with tuning as entered:
        assert entered is tuning
        assert convolutions(both, K, X) == 0
        assert convolutions(both, K, X[:1]) == 3  # not measured, so the static choice
        assert convolutions(lambda x: jconv.conv(x, K, padding=1, algorithm="lax"), X) == 1
        with made_up(both, K, X):
            assert text(both, K, X) == before
        assert convolutions(both, K, X) == 0
    assert text(both, K, X) == before
    with pytest.raises(KeyError), tuning:
        raise KeyError
    assert measured.in_use() is None


def test_the_choice_holds_for_kernels_stored_in_another_order():
    """What was measured of a layer in NHWC is of the same product in NCHW, whose kernel is (out, in, height, width)."""
    both = jax.value_and_grad(loss, argnums=(0, 1))
    first = jax.value_and_grad(lambda k, x: jconv.conv(x, k, padding=1, data_format="channels_first").sum(), (0, 1))
    operands = np.transpose(K, (3, 2, 0, 1)), np.transpose(X, (0, 3, 1, 2))
    assert convolutions(first, *operands) == 3
    with made_up(both, K, X, name="shifts"):
        assert convolutions(first, *operands) == 0


def test_what_is_compiled_is_known_again_and_never_mistaken(monkeypatch):
    """The user's own jitted function, and jconv's: a program for each choice, and none compiled twice."""
    picked, pick = [], choose.pick
    monkeypatch.setattr(choose, "pick", lambda *args, **kw: picked.append(pick(*args, **kw).name) or pick(*args, **kw))
    x = X[:, :7]  # of no other test: nothing is compiled yet
    users = jax.jit(lambda x: jconv.conv(x, K, padding=1) * 2)
    eager = lambda x: jconv.conv(x, K, padding=1)
    tuning = made_up(eager, x, name="shifts")
    for call in (users, eager):
        picked.clear()
        want = call(x)
        assert "shifts" not in picked and "lax" in picked
        picked.clear()
        with tuning:
            np.testing.assert_allclose(call(x), want, rtol=1e-4, atol=1e-5)
            assert picked and set(picked) == {"shifts"}
            picked.clear()
            call(x)
        call(x)
        with dataclasses.replace(tuning):  # equal, not the same
            call(x)
        assert not picked


def test_use_and_stop_are_for_every_thread():
    layer = lambda x: jconv.conv(x, K, padding=1)
    tuning, other = made_up(layer, X, name="shifts"), made_up(layer, X, name="patches")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        there = lambda: pool.submit(convolutions, layer, X).result()
        with tuning:
            assert convolutions(layer, X) == 0 and there() == 1
        tuning.use()
        try:
            assert convolutions(layer, X) == 0 == there()
            with made_up(layer, X):
                assert convolutions(layer, X) == 1 and there() == 0
            with pytest.raises(ValueError, match="not the one"):
                other.stop()
        finally:
            tuning.stop()
        assert convolutions(layer, X) == 1 == there()
    with pytest.raises(ValueError, match="not the one"):
        tuning.stop()


def test_in_scan_and_accelerate():
    for fun in (scanned, jconv.accelerate(by_lax)):
        step = jax.grad(fun)
        tuning = made_up(step, STACK, X, name="shifts")
        before = text(step, STACK, X)
        want = jax.jit(step)(STACK, X)
        with tuning:
            assert convolutions(step, STACK, X) == 0
            np.testing.assert_allclose(jax.jit(step)(STACK, X), want, rtol=1e-4, atol=1e-3)
        assert text(step, STACK, X) == before and "stablehlo.convolution" in before


def test_explain_tells_of_it():
    both = jax.value_and_grad(lambda x, k, b: jconv.conv(x, k, b, padding=1).sum(), argnums=(0, 1))
    transposed = jax.value_and_grad(lambda y, k: jconv.conv_transpose(y, k).sum(), argnums=(0, 1))
    b, k = np.zeros(8, np.float32), np.zeros((3, 3, 8, 8), np.float32)
    entries = made_up(both, X, K, b, name="shifts").entries + made_up(transposed, X, k, name="shifts").entries
    tuning = dataclasses.replace(nothing_here(), entries=entries)
    asked = lambda **options: jconv.explain(X, K, b, padding=1, **options)
    before = asked()
    assert not any("measured" in choice.reason for choice in before.choices)
    with tuning:
        assert {choice.algorithm for choice in asked().choices} == {"shifts"}
        assert all(choice.reason.startswith("measured") for choice in asked().choices)
        assert asked(algorithm="lax")["forward"].reason == "algorithm='lax' was asked for"
        assert asked(platform="gpu")["forward"].algorithm == "lax"
        from jconv.explanation import explain_layer

        told = explain_layer(jconv.conv_transpose, X, k)
        names = {entry.problem.product: entry.best for entry in made_up(transposed, X, k, name="shifts").entries}
        assert {choice.product: choice.algorithm for choice in told.choices} == names
        assert all(choice.reason.startswith("measured") for choice in told.choices)
    assert asked() == before


def test_where_it_cannot_be_put_to_use():
    tuning = made_up(loss, K, X)

    def inside(kernel):
        with tuning:
            return loss(kernel, X)

    for transform in (jax.jit, jax.grad, jconv.accelerate):
        with pytest.raises(ValueError, match="with tuning: a function is being traced"):
            transform(inside)(K)
    elsewhere = dataclasses.replace(tuning, platform="gpu")
    with pytest.raises(ValueError, match=r"measured on the platform 'gpu'.*'cpu'"):
        elsewhere.use()
    with pytest.raises(ValueError, match="measured on the platform 'gpu'"), elsewhere:
        pass
    assert measured.in_use() is None


# Files.


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "tuning.json"
    tuning = made_up(jax.value_and_grad(loss), K, X, name="shifts")
    tuning.save(path)
    again = Tuning.load(path)
    assert again == tuning
    with again:
        assert convolutions(loss, K, X) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["tuning.json"]
    lines = path.read_text().splitlines()
    assert sum('"layer": "2x8x8x8 -> 8 k3 p1"' in line for line in lines) == len(tuning.entries)
    dataclasses.replace(tuning, entries=()).save(path)
    assert Tuning.load(path).entries == ()
    dataclasses.replace(tuning, jax_version="0.1", cores=999).save(path)
    with pytest.warns(UserWarning, match=r"tuning.json: measured elsewhere \(cores 999, here .*, jax_version '0.1'"):
        Tuning.load(path)


def wrong(tmp_path, change):
    path = tmp_path / "tuning.json"
    made_up(loss, K, X, name="shifts").save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


WRONG = {
    "no format": (lambda d: d.pop("format"), "it is not what Tuning.save writes"),
    "version": (lambda d: d.update(version=2), "its version is 2, and 1 is read"),
    "head": (lambda d: d.update(cores="two"), "'cores' must be of type int, got \"two\""),
    "entries": (lambda d: d.update(entries={}), "'entries' must be of type list"),
    "an entry": (lambda d: d["entries"].append(3), "entry 1: 'problem' must be of type dict, got null"),
    "twice": (lambda d: d["entries"].append(d["entries"][0]), "two entries are about the same problem"),
    "product": (lambda d: d["entries"][0].update(product="backward"), "entry 0: 'product' must be one of forward"),
    "best": (
        lambda d: d["entries"][0].update(best="matmul"),
        "'best' must be an algorithm with 'seconds' that applies",
    ),
    "static": (lambda d: d["entries"][0].update(static="columns"), "'static' must be an algorithm with 'seconds'"),
    "seconds": (lambda d: d["entries"][0].update(seconds={"lax": -1}), "'seconds' must be positive numbers"),
    "lhs": (lambda d: d["entries"][0]["problem"].update(lhs=[2, 8, "x", 4]), "'lhs' must be positive integers"),
    "rank": (lambda d: d["entries"][0]["problem"].update(lhs=[2, 8, 4]), "'lhs' and 'rhs' must have 4 axes"),
    "dtype": (
        lambda d: d["entries"][0]["problem"].update(operands=["floaty", "float32"]),
        "must be dtypes, got 'floaty'",
    ),
    "operands": (lambda d: d["entries"][0]["problem"].update(operands=["float32"]), "'operands' must be two dtypes"),
    "groups": (lambda d: d["entries"][0]["problem"].update(groups=True), "'groups' must be of type int, got true"),
    "no groups": (lambda d: d["entries"][0]["problem"].update(groups=0), "'problem' is none: "),
    "axis": (lambda d: d["entries"][0]["problem"]["axes"][0].pop("low"), "'low' must be of type int, got null"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_file(name, tmp_path):
    change, words = WRONG[name]
    path = wrong(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(words)):
        Tuning.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"text"'])
def test_a_foreign_file(content, tmp_path):
    path = tmp_path / "tuning.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: it is no")):
        Tuning.load(path)
    with pytest.raises(ValueError, match=re.escape(f"autotune: file: {path}: it is no")):
        jconv.autotune(loss, K, X, file=path)
    assert path.read_bytes() == content


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        Tuning.load(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="at all"):
        jconv.autotune(loss, K, X, file=tmp_path / "at all" / "tuning.json")


def test_a_file_is_added_to_and_what_it_knows_is_not_measured_again(tmp_path, monkeypatch):
    path, timed, measure = tmp_path / "tuning.json", [], autotuning.measure

    def counting(product, *rest):
        if path.exists():  # each is kept as soon as it is measured
            assert len(Tuning.load(path).entries) == len(timed)
        timed.append(product.product)
        return measure(product, *rest)

    monkeypatch.setattr(autotuning, "measure", counting)
    first = jconv.autotune(loss, K, X, repeats=1, file=path)
    assert timed == ["forward"] and Tuning.load(path) == first
    both = jconv.autotune(jax.value_and_grad(loss), K, X, repeats=1, file=str(path))
    assert timed == ["forward", "kernel_grad"] and Tuning.load(path) == both
    assert both.entries[0] == first.entries[0]
    assert jconv.autotune(loss, K, X, file=path) == both and len(timed) == 2
    dataclasses.replace(first, cores=999).save(path)
    with pytest.raises(ValueError, match="was measured elsewhere, or with another jax"):
        jconv.autotune(loss, K, X, file=path)


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((3,), {}, TypeError, "fun=3 must be a function, got int"),
        ((loss, K, X), {"repeats": 0}, ValueError, "repeats=0 must be at least 1"),
        ((loss, K, X), {"repeats": 1.5}, TypeError, "repeats=1.5 must be an integer, got float"),
        ((loss, K, X), {"repeats": True}, TypeError, "repeats=True must be an integer"),
        ((loss, K, X), {"seconds": 0}, ValueError, "seconds=0 must be positive"),
        ((loss, K, X), {"seconds": float("nan")}, ValueError, "seconds=nan must be positive"),
        ((loss, K, X), {"seconds": "1"}, TypeError, "seconds='1' must be a number, got str"),
        ((loss, K, X), {"file": 3}, TypeError, "file=3 must be a path, got int"),
        ((jnp.sin, X), {}, ValueError, "fun binds no convolution of jconv whose algorithm is free"),
        ((by_lax, STACK, X), {}, ValueError, "give accelerate(fun)"),
    ],
)
def test_wrong_arguments(arguments, options, error, words):
    with pytest.raises(error, match=re.escape(f"autotune: {words}") if words[0] != "g" else re.escape(words)):
        jconv.autotune(*arguments, **options)


def test_not_while_something_is_traced():
    with pytest.raises(ValueError, match="autotune: a function is being traced"):
        jax.jit(lambda x: jconv.autotune(loss, K, x))(X)


def test_errors_of_fun_are_its_own():
    with pytest.raises(ValueError, match="conv: kernel must have 3 input channels"):
        jconv.autotune(loss, K, X[..., :3])


# The command.


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["autotune", *map(str, arguments)])
        return stopped.value.code or 0, *capsys.readouterr()

    return call


def example():
    return K, X


def test_command(run, tmp_path):
    path = tmp_path / "tuning.json"
    status, out, err = run("--layer", "conv 1x6x6x4 -> 8 k3 p1 g2 bias", "--file", path, "--repeats", 1, "--seconds", 1)
    assert (status, err) == (0, "")
    assert [line.split()[4:6] for line in out.splitlines()[3:]] != []
    assert {entry.problem.product for entry in Tuning.load(path).entries} == {"forward", "kernel_grad", "input_grad"}
    assert {entry.problem.layer for entry in Tuning.load(path).entries} == {"1x6x6x4 -> 8 k3 p1 g2"}
    status, out, err = run(f"{__name__}:loss", "--args", f"{__name__}:example", "--file", path, "--repeats", 1)
    assert (status, err) == (0, "")
    assert out.strip() == str(Tuning.load(path)) and out.count(" forward ") == 2
    assert run("--layer", "conv 1x6x6x4 -> 8 k3 p1 g2 bias", "--file", path)[1] == out  # all known


REFUSED = {
    "nothing": ((), "give either MODULE:FUNCTION or --layer"),
    "both": (("a:b", "--layer", "conv 1x6x4 -> 8 k3"), "give either MODULE:FUNCTION or --layer"),
    "args of a layer": (("--layer", "conv 1x6x4 -> 8 k3", "--args", "a:b"), "--args belongs to MODULE:FUNCTION"),
    "a pool": (("--layer", "max_pool 1x6x4 k2"), "there is nothing to measure"),
    "a layer": (("--layer", "conv 1x6x4 -> 8 k9"), "the window does not fit"),
    "no module": (("nowhere.at.all:f",), "autotune: there is no module 'nowhere.at.all'"),
    "no arguments": ((f"{__name__}:loss",), "needs arguments: --args MODULE:FACTORY"),
    "no convolution": ((f"{__name__}:by_lax", "--args", f"{__name__}:stacked"), "autotune: fun binds no convolution"),
    "repeats": (("a:b", "--repeats", "0"), "greater than or equal to 1"),
    "a folder": (("a:b", "--file", "."), "is a folder"),
    "a foreign file": (("--layer", "conv 1x6x4 -> 8 k3", "--file", __file__), "autotune: file: "),
}


def stacked():
    return STACK, X


@pytest.mark.parametrize("name", REFUSED)
def test_command_one_line_and_exit_status_2(name, run):
    arguments, words = REFUSED[name]
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("jconv: ") and words in line


def test_help_has_an_example(run):
    status, out, _ = run("--help")
    assert status == 0 and "  python -m jconv autotune " in out
