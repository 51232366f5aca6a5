"""Images divided by height: values and gradients are those of the whole image, and what is exchanged are the halos.

Four devices, each with so many rows of x. Each test compiles once for values, gradients and collective operations.
"""

import functools
import json
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jconv
from experiments.train import communication, halo

DEVICES = 4
pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs four devices")
ROWS = P(None, "rows")


def mesh(shape=(DEVICES,), names=("rows",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def drawn(*shapes):
    """Small whole numbers, of which every sum is exact, and of which many are alike."""
    generator = np.random.default_rng(0)
    return tuple(generator.integers(-3, 4, shape).astype(np.float32) for shape in shapes)


def sharded(f, grid, spec=ROWS):
    """f(x, *parameters) of x divided by `spec`."""
    return lambda x, *rest: jax.shard_map(f, mesh=grid, in_specs=(spec, *(P() for _ in rest)), out_specs=spec)(x, *rest)


def step(f):
    """y and the gradients of all operands, of a cotangent g of y."""

    def both(g, *arrays):
        y, back = jax.vjp(f, *arrays)
        return y, back(g)

    return both


def check(part, whole, arrays, spec=ROWS, grid=None, rtol=0.0):
    """`part` on the devices gives what `whole` gives of the whole image; what its program exchanges, in bytes."""
    grid = grid or mesh()
    (g,) = drawn(jax.eval_shape(whole, *arrays).shape)
    placed = [jax.device_put(a, NamedSharding(grid, P() if i > 1 else spec)) for i, a in enumerate((g, *arrays))]
    compiled = jax.jit(step(sharded(part, grid, spec))).lower(*placed).compile()
    got, want = compiled(*placed), jax.jit(step(whole))(g, *arrays)
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=rtol)
    return communication.collectives(compiled.as_text())


CONVS = {  # rows of a device, kernel, strides, padding, options, and the halo that the formulas give
    "1x1": (3, (1, 1), 1, "VALID", {}, 0, 0),
    "1x1, stride 2": (4, (1, 1), 2, "VALID", {}, 0, 0),
    "2x2, stride 2": (4, (2, 2), 2, "VALID", {}, 0, 0),
    "2x2": (3, (2, 2), 1, "SAME", {}, 0, 1),
    "2x2, lower": (3, (2, 2), 1, "SAME_LOWER", {}, 1, 0),
    "3x3": (3, (3, 3), 1, "SAME", {}, 1, 1),
    "3x3, padding 1": (3, (3, 3), 1, 1, {}, 1, 1),
    "3x3, all padding above": (3, (3, 3), 1, ((2, 0), (0, 0)), {}, 2, 0),
    "3x3, all padding below": (3, (3, 3), 1, ((0, 2), (0, 1)), {}, 0, 2),
    "3x3, padding and crop": (4, (3, 3), 1, ((3, -1), (1, 1)), {}, 3, 0),
    "3x3, crop and padding": (4, (3, 3), 1, ((-1, 3), (1, 1)), {}, 0, 3),
    "3x3, stride 2, same": (4, (3, 3), 2, "SAME", {}, 0, 1),
    "3x3, stride 2, padding 1": (4, (3, 3), 2, 1, {}, 1, 0),
    "3x3, strides 2 and 1": (4, (3, 3), (2, 1), 1, {}, 1, 0),
    "3x3, dilation 2": (3, (3, 3), 1, "SAME", {"kernel_dilation": 2}, 2, 2),
    "3x2, dilations 3 and 1": (6, (3, 2), 2, "SAME", {"kernel_dilation": (3, 1)}, 2, 3),
    "3x3, depthwise": (3, (3, 3), 1, "SAME", {"feature_group_count": 4}, 1, 1),
    "4x4, stride 2": (4, (4, 4), 2, 1, {}, 1, 1),
    "5x5": (3, (5, 5), 1, "SAME", {}, 2, 2),
    "5x5, stride 2, same": (4, (5, 5), 2, "SAME", {}, 1, 2),
    "7x7, halo of all rows": (3, (7, 7), 1, "SAME", {}, 3, 3),
    "7x7, stride 2, padding 3": (4, (7, 7), 2, 3, {}, 3, 2),
}


@pytest.mark.parametrize("name", CONVS)
def test_conv2d(name):
    """Each halo goes there and back once; the kernel's and the bias' gradients are added up once, and no more."""
    rows, window, strides, padding, options, above, below = CONVS[name]
    options = {"strides": strides, "padding": padding, **options}
    inputs = 4 // options.get("feature_group_count", 1)
    x, kernel, bias = drawn((2, DEVICES * rows, 9, 4), (*window, inputs, 4), (4,))
    part = functools.partial(halo.conv2d, axis_name="rows", **options)
    found = check(part, functools.partial(jconv.conv2d, **options), (x, kernel, bias))
    exchanged = 2 * (above + below) * 2 * 9 * 4 * 4  # there and back; a row of 2 images, 9 places, 4 float32
    want = {"all-reduce": kernel.nbytes + bias.nbytes} | ({"collective-permute": exchanged} if exchanged else {})
    assert found == want


POOLS = {  # rows of a device, window, strides, padding, dilation, and the halo
    "2x2, windows apart": (4, 2, 2, "VALID", 1, 0, 0),
    "2x2": (3, 2, None, "SAME", 1, 0, 1),
    "3x3": (3, 3, 1, "SAME", 1, 1, 1),
    "3x3, stride 2, padding 1": (4, 3, 2, 1, 1, 1, 0),
    "3x3, stride 2, same": (4, 3, 2, "SAME", 1, 0, 1),
    "3x2, dilations 2 and 1": (4, (3, 2), 1, "SAME", (2, 1), 2, 2),
    "5x5, stride 2, padding 2": (4, 5, 2, 2, 1, 2, 1),
    "3x3, padding and crop": (4, 3, 1, ((3, -1), (1, 1)), 1, 3, 0),
}


def pool_check(part, whole, case, x, rtol=0.0):
    _, window, strides, padding, dilation, above, below = case
    options = {"window_dilation": dilation}
    found = check(
        lambda x: part(x, window, strides, padding, axis_name="rows", **options),
        lambda x: whole(x, window, strides, padding, **options),
        (x,),
        rtol=rtol,
    )
    exchanged = 2 * (above + below) * x[:, 0].nbytes
    assert found == ({"collective-permute": exchanged} if exchanged else {})


@pytest.mark.parametrize("name", POOLS)
def test_max_pool2d(name):
    (x,) = drawn((2, DEVICES * POOLS[name][0], 9, 3))
    pool_check(halo.max_pool2d, jconv.max_pool, POOLS[name], x)


@pytest.mark.parametrize("name", ["3x3", "3x3, stride 2, padding 1", "3x2, dilations 2 and 1", "3x3, padding and crop"])
def test_padding_wins_no_tie_and_loses_to_nothing(name):
    """A whole image of -inf, on which only ties are: each gradient goes to the element that it goes to unsharded."""
    x = np.full((1, DEVICES * POOLS[name][0], 9, 1), -np.inf, np.float32)
    x[0, 5, 3] = np.nan
    pool_check(halo.max_pool2d, jconv.max_pool, POOLS[name], x)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_avg_pool2d(name, count_include_pad):
    """At the image's edges too, where padding counts or does not."""
    (x,) = drawn((2, DEVICES * POOLS[name][0], 9, 3))
    options = {"count_include_pad": count_include_pad}
    part, whole = (functools.partial(f, **options) for f in (halo.avg_pool2d, jconv.avg_pool))
    pool_check(part, whole, POOLS[name], x, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int32"])
def test_dtypes_of_pools(dtype):
    """All elements are below zero, so that padding with zeros would win."""
    (x,) = drawn((1, DEVICES * 4, 5, 3))
    x = jnp.asarray(x - 10, dtype)
    for part, whole, options in (
        (halo.max_pool2d, jconv.max_pool, {}),
        (halo.avg_pool2d, jconv.avg_pool, {}),
        (halo.avg_pool2d, jconv.avg_pool, {"count_include_pad": False}),
    ):
        pool = functools.partial(part, window_shape=3, padding="SAME", axis_name="rows", **options)
        got, want = jax.jit(sharded(pool, mesh()))(x), whole(x, 3, padding="SAME", **options)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=2e-7)


# The exchange by itself.


@pytest.mark.parametrize(("above", "below", "fill"), [(1, 2, 0), (3, 0, -np.inf), (0, 3, 7), (0, 0, 1)])
def test_halo_exchange(above, below, fill):
    """Each device has its rows of the padded image; a cotangent goes back to where each row came from."""
    rows = 3
    (x,) = drawn((2, DEVICES * rows, 5))
    part = functools.partial(halo.halo_exchange, above=above, below=below, axis_name="rows", fill=fill)

    def whole(x):
        padded = jnp.pad(x, ((0, 0), (above, below), (0, 0)), constant_values=fill)
        return jnp.concatenate([padded[:, i * rows :][:, : above + rows + below] for i in range(DEVICES)], axis=1)

    check(part, whole, (x,))


def test_one_device_has_the_whole_image():
    x, kernel = drawn((2, 8, 9, 3), (3, 3, 3, 4))
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    for part, whole, arrays in (
        (functools.partial(halo.conv2d, padding=1), functools.partial(jconv.conv2d, padding=1), (x, kernel)),
        (lambda x, **k: halo.max_pool2d(x, 3, 1, 1, **k), lambda x: jconv.max_pool(x, 3, 1, 1), (x,)),
    ):
        assert "collective-permute" not in check(functools.partial(part, axis_name="rows"), whole, arrays, grid=one)


def test_batch_and_height():
    """On a mesh of both, rows go to the neighbours of the same images, and kernel gradients are added up over all."""
    x, kernel = drawn((4, 8, 9, 3), (3, 3, 3, 4))
    conv = functools.partial(halo.conv2d, axis_name="rows", padding="SAME")
    whole = functools.partial(jconv.conv2d, padding="SAME")
    found = check(conv, whole, (x, kernel), P("images", "rows"), mesh((2, 2), ("images", "rows")))
    assert found == {"collective-permute": 2 * 2 * x[:2, 0].nbytes, "all-reduce": kernel.nbytes}


def test_without_the_gradient_of_the_images_the_halo_is_exchanged_once():
    x, kernel = drawn((2, 8, 9, 3), (3, 3, 3, 4))
    conv = sharded(functools.partial(halo.conv2d, axis_name="rows", padding="SAME"), mesh())
    place = lambda a, spec: jax.device_put(a, NamedSharding(mesh(), spec))
    gradient = jax.jit(jax.grad(lambda kernel, x: conv(x, kernel).sum()))
    found = communication.collectives(gradient.lower(place(kernel, P()), place(x, ROWS)).compile().as_text())
    assert found == {"collective-permute": 2 * x[:, 0].nbytes, "all-reduce": kernel.nbytes}


# Whole networks.


def network(conv, max_pool, avg_pool, params, x):
    """Convolutions with strides, dilation and channels apart, both pools; what is left of the image's rows is 1/8."""
    x = jax.nn.relu(conv(x, params["stem"], strides=2, padding=3))
    x = max_pool(x, 3, 2, 1)
    x = x + jnp.tanh(conv(x, params["wide"], padding="SAME", kernel_dilation=2))
    x = x + jnp.tanh(conv(x, params["depthwise"], padding="SAME", feature_group_count=8))
    x = avg_pool(x, 3, 2, 1, count_include_pad=False)
    return conv(x, params["head"])


def params_and_images():
    generator = np.random.default_rng(1)
    shapes = {"stem": (7, 7, 3, 8), "wide": (3, 3, 8, 8), "depthwise": (3, 3, 1, 8), "head": (1, 1, 8, 2)}
    params = {k: generator.normal(0, 0.2, shape).astype("f") for k, shape in shapes.items()}
    return params, generator.normal(size=(2, 32, 20, 3)).astype("f")


def losses():
    """(on the devices, of the whole image): the mean square of a network's result."""
    functions = [functools.partial(f, axis_name="rows") for f in (halo.conv2d, halo.max_pool2d, halo.avg_pool2d)]

    def part(params, x):
        return lax.pmean(jnp.mean(network(*functions, params, x) ** 2) / 100, "rows")

    on_devices = jax.shard_map(part, mesh=mesh(), in_specs=(P(), ROWS), out_specs=P())
    whole = lambda params, x: jnp.mean(network(jconv.conv2d, jconv.max_pool, jconv.avg_pool, params, x) ** 2) / 100
    return on_devices, whole


def test_a_training_run():
    """Ten steps end with the parameters of one device; only halos are exchanged, and gradients added up, once."""
    params, images = params_and_images()
    optimizer = optax.sgd(0.3, momentum=0.9)

    def trained(loss, images):
        @jax.jit
        def update(params, moments, images):
            value, gradient = jax.value_and_grad(loss)(params, images)
            updates, moments = optimizer.update(gradient, moments)
            return optax.apply_updates(params, updates), moments, value

        now, moments, values = params, optimizer.init(params), []
        program = update.lower(now, moments, images).compile().as_text()
        for _ in range(10):
            now, moments, value = update(now, moments, images)
            values.append(float(value))
        return now, values, communication.collectives(program)

    on_devices, whole = losses()
    *got, found = trained(on_devices, jax.device_put(images, NamedSharding(mesh(), ROWS)))
    *want, none = trained(whole, images)
    assert got[1][-1] < 0.8 * got[1][0]
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    assert found.keys() == {"all-reduce", "collective-permute"} and not none
    assert found["all-reduce"] == sum(p.nbytes for p in params.values()) + 4  # and the loss


def test_forward_mode_and_second_order():
    params, images = params_and_images()
    tangents = jax.tree.map(jnp.ones_like, params)
    got, want = (
        jax.jit(lambda p, t, loss=loss: jax.jvp(jax.grad(lambda p: loss(p, images)), (p,), (t,)))(params, tangents)
        for loss in losses()
    )
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)


# What cannot be.

WRONG = {
    "rows and stride": (lambda x, k: halo.conv2d(x, k, axis_name="rows", strides=2, padding=1), "strides=2.*3 rows"),
    "uneven": (lambda x, k: halo.conv2d(x, k, axis_name="rows"), "conv2d: padding='VALID' must give 12 .* 3 on each"),
    "values": (lambda x, k: halo.conv2d(x, k, axis_name="rows", padding="EDGE"), "padding='EDGE' must be of zeros"),
    "unbatched": (lambda x, k: halo.conv2d(x[0], k, axis_name="rows"), r"x must have 4 axes .* shape \(3, 9, 3\)"),
    "far": (
        lambda x, k: halo.conv2d(x, k, axis_name="rows", padding="SAME", kernel_dilation=4),
        "above=4 must be at most the 3 rows .* fewer than 4 devices",
    ),
    "pool, far": (lambda x, k: halo.max_pool2d(x, 9, 1, "SAME", axis_name="rows"), "above=4 must be at most the 3"),
    "pool, stride": (lambda x, k: halo.avg_pool2d(x, 2, 2, axis_name="rows"), "avg_pool2d: strides=2 must divide"),
    "negative": (lambda x, k: halo.halo_exchange(x, -1, 0, axis_name="rows"), "above=-1 must not be negative"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_a_value_error(name):
    f, message = WRONG[name]
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 12, 9, 3), (3, 3, 3, 4))]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sharded(f, mesh()), *shapes)


# Reading compiled programs.


def test_collectives_are_counted_where_they_run():
    """In a loop as often as it runs, of a conditional the branch with more of them, of a function as often as called."""
    n = 5

    def part(x):
        looped = lax.fori_loop(0, n, lambda i, x: lax.ppermute(x * 2, "rows", [(0, 1), (1, 2)]), x)
        total = lax.psum(looped.sum(0), "rows")  # 6 numbers
        gathered = lax.all_gather(x, "rows")
        return looped + total[None], gathered.astype(jnp.float16).sum(0)

    f = jax.jit(jax.shard_map(part, mesh=mesh(), in_specs=P("rows"), out_specs=P("rows")))
    found = communication.collectives(f.lower(jax.ShapeDtypeStruct((8, 6), jnp.float32)).compile().as_text())
    assert found == {"collective-permute": n * 2 * 6 * 4, "all-reduce": 6 * 4, "all-gather": 8 * 6 * 4}
    assert communication.received(found, 4) == sum(found.values()) - 2 * 6 * 4


def test_collectives_of_branches():
    def part(x, which):
        send = lambda x: lax.ppermute(x, "rows", [(0, 1)])
        return lax.switch(which, [lambda x: x, send, lambda x: send(jnp.sin(send(x)))], x)

    f = jax.jit(jax.shard_map(part, mesh=mesh(), in_specs=(P("rows"), P()), out_specs=P("rows")))
    shapes = jax.ShapeDtypeStruct((8, 6), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    assert communication.collectives(f.lower(*shapes).compile().as_text()) == {"collective-permute": 2 * 2 * 6 * 4}


def test_a_loop_of_unknown_length_is_told():
    def part(x):
        go_on = lambda x: lax.psum(x.sum(), "rows") < 9.0
        return lax.while_loop(go_on, lambda x: lax.ppermute(x + 1, "rows", [(0, 1)]), x)

    f = jax.jit(jax.shard_map(part, mesh=mesh(), in_specs=P("rows"), out_specs=P("rows")))
    with pytest.raises(ValueError, match="loop of unknown length"):
        communication.collectives(f.lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile().as_text())


# The command.


def test_rows_of_the_command(monkeypatch, tmp_path, capsys):
    """A halo is exchanged once there and once back, of the first layer there alone; lax under jit needs no less."""
    monkeypatch.setitem(
        communication.NETS, "unet", (communication.conv(5, 8, 2), communication.Layer("max_pool", 3, 1, 1))
    )
    file = tmp_path / "figures.json"
    communication.main(["--net", "unet", "--size", "32", "--batch", "2", "--devices", "4", "--json", str(file)])
    first, pool, both = json.loads(file.read_text())
    row_bytes = {"x": 2 * 32 * 3 * 4, "y": 2 * 16 * 8 * 4}
    kernel = 5 * 5 * 3 * 8 * 4
    assert first["halo"]["collectives"] == {"collective-permute": 3 * row_bytes["x"], "all-reduce": kernel}
    assert pool["halo"]["collectives"] == {"collective-permute": 2 * 2 * row_bytes["y"]}
    assert both["halo"]["received_bytes"] == first["halo"]["received_bytes"] + pool["halo"]["received_bytes"]
    for row in (first, pool, both):
        assert row["lax"]["received_bytes"] >= row["halo"]["received_bytes"]
        assert not communication.whole_images(row, "halo")
    assert communication.whole_images(pool, "jconv")
    shown = capsys.readouterr().out
    assert "max_pool 3x3" in shown and "*: gathers" in shown
    assert f"{pool['jconv']['received_bytes'] / 1024:,.0f}*" in shown


def test_the_table_in_the_book():
    """What is exact there, kernels and halos, follows from the layers; the row of max pooling is compiled."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = re.findall(
        r"^│ (\S.*?) +│ (\d+ x \d+ x \d+) +│ +([\d,]+) +│ +([\d,]+) +│ +([\d,]+)(\*?) +│ +([\d,]+) +│$", page, re.M
    )
    layers, x = communication.NETS["resnet50"], (1, 1024, 1024, 3)
    assert len(rows) == len(layers) + 1
    total = 0
    for number, (layer, row) in enumerate(zip(layers, rows)):
        y, kernel = layer.output(x), 4 * sum(map(np.prod, layer.kernels(x)))
        halo_rows = max(0, layer.padding) + max(0, layer.window - layer.stride - layer.padding)
        exchanged = halo_rows * x[2] * x[3] * 4 * (2 if number else 1) + kernel
        total += exchanged
        assert row[:2] == (str(layer), " x ".join(map(str, y[1:])))
        assert (row[2], row[6]) == (f"{kernel / 1024:,.0f}", f"{exchanged / 1024:,.0f}")
        if layer.kind == "max_pool":
            measured = communication.row_of(str(layer), [layer], x, mesh(), True)
            assert row[3] == f"{measured['lax']['received_bytes'] / 1024:,.0f}"
            assert row[4:6] == (f"{measured['jconv']['received_bytes'] / 1024:,.0f}", "*")
        x = y
    assert rows[-1][6] == f"{total / 1024:,.0f}"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--net", "vgg"], "net='vgg': must be one of resnet50, unet, convnext"),
        (["--devices", "1"], "--devices"),
        (["--size", "x"], "--size"),
        (["--devices", "5000"], "devices=5000: jax has"),
        (["--net", "unet", "--size", "24"], "size=24: max_pool 2x2/2 has 6 rows, which 4 devices cannot share evenly"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        communication.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and line in error
