"""Depthwise windows of more taps than one program writes out, and batches of more images than are padded at once."""

import functools
import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import phases, taps
from jconv.geometry import sliding

LAYERS = [  # x, kernel, options; the taps of each are more than UNROLLED
    ((2, 12, 11, 3), (9, 9, 1, 3), {"padding": 4}),
    ((1, 9, 8, 4), (9, 8, 1, 8), {"padding": 3, "strides": 2}),
    ((1, 19, 23, 2), (8, 9, 1, 2), {"kernel_dilation": (1, 2), "strides": (2, 1)}),
    ((1, 5, 6, 7, 2), (5, 4, 5, 1, 2), {"padding": 2}),
    ((2, 90, 3), (75, 1, 3), {"padding": ((37, 37),)}),
    ((1, 300, 2), (131, 1, 4), {"kernel_dilation": 2, "strides": 3}),
    ((2, 3, 99, 2), (2, 70, 1, 2), {"padding": ((0, 1), (69, 0))}),
]
OF_GROUPS = ((2, 40, 12), (30, 3, 4), {"feature_group_count": 4, "padding": ((29, 0),)})  # taps * channels


@pytest.mark.parametrize(("shape", "kernel", "options"), [*LAYERS, OF_GROUPS])
def test_many_taps_are_the_same(shape, kernel, options):
    options = {"feature_group_count": shape[-1], **options}
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    assert np.prod(kernel[:-1]) > taps.UNROLLED
    form = functools.partial(jconv.conv, algorithm={"forward": "taps", "kernel_grad": "taps"}, **options)
    y, backward = jax.vjp(form, x, k)
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    dx, dk = backward(g)
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, kernel, **options))
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, shape, **options))


IMAGES = [  # x, kernel, options
    ((6, 7, 5, 4), (3, 3, 1, 4), {"padding": 1}),
    ((6, 8, 9, 4), (3, 5, 1, 8), {"padding": ((0, 1), (2, 1)), "strides": 2}),
    ((4, 9, 9, 3), (9, 9, 1, 3), {"padding": 4}),
    ((6, 30, 4), (5, 1, 4), {"padding": ((8, 0),), "kernel_dilation": 2}),
    ((4, 5, 6, 6), (3, 3, 2, 3), {"padding": 1}),
]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("shape", "kernel", "options"), IMAGES)
def test_a_few_images_at_a_time(monkeypatch, shape, kernel, options, images):
    """All three products: exact, of whole numbers."""
    options = {"feature_group_count": shape[-1] // kernel[-2], **options}
    padded = 4 * images * int(np.prod(shape[1:])) * 4  # at least
    for module in (taps, phases):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
        monkeypatch.setattr(module, "FEW_BYTES", padded)
    monkeypatch.setattr(taps, "CHUNK_BYTES", padded)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, s).astype(np.float32) for s in (shape, kernel))
    y, backward = jax.vjp(functools.partial(jconv.conv, **options), x, k)
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    dx, dk = backward(g)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, kernel, **options))
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, shape, **options))
    jax.clear_caches()


@pytest.mark.optimised
@pytest.mark.parametrize("strides", [1, 2])
def test_many_images_are_not_held_twice(strides):
    """Neither a padded copy of x and of g, nor zeros that two loops share, nor all phases: 1 MB, not twice 51."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = functools.partial(jconv.conv, strides=strides, padding=1, feature_group_count=32)

    def step(x, k, g):
        y, backward = jax.vjp(form, x, k)
        return y, *backward(g)

    places = 112 // strides
    operands = shape(32, 112, 112, 32), shape(3, 3, 1, 32), shape(32, places, places, 32)
    assert (
        jax.jit(step).lower(*operands).compile().memory_analysis().temp_size_in_bytes
        < (2 if strides == 1 else 16) << 20
    )


@pytest.mark.parametrize(
    ("counts", "several"),
    [
        ([4, 28, 1], [1, 7, 1]),
        ([4, 29, 1], [4, 1, 1]),  # images that divide before rows that do not
        ([1, 29, 4], [1, 1, 4]),  # runs of a row, too
        ([1, 29, 1], [1, 8, 1]),  # 32 rows, three of which the step before had
        ([3, 6, 8, 29, 1], [1, 1, 8, 1, 1]),
    ],
)
def test_what_one_step_of_a_kernel_gradient_takes(counts, several):
    assert taps._taken_at_once(counts, 8) == several


@pytest.mark.optimised
@pytest.mark.parametrize("size", [56, 57])
def test_a_kernel_gradient_takes_no_copies(size):
    """The sums alone: x and g are read where they are, an odd image's too."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = lambda x, g: jconv.conv_kernel_grad(x, g, (3, 3, 1, 144), strides=2, padding=1, feature_group_count=144)
    compiled = jax.jit(form).lower(shape(4, size, size, 144), shape(4, *[(size + 1) // 2] * 2, 144)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * 9 * 29 * 144


@pytest.mark.optimised
def test_no_index_stands_in_the_sum():
    """XLA:CPU makes no vector of a loop that reads from a place that changes: a tenth of the speed."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = jax.jit(lambda x, k: jconv.conv(x, k, padding=4, feature_group_count=60))
    text = form.lower(shape(4, 28, 28, 60), shape(9, 9, 1, 60)).compile().as_text()
    loops = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    sums = [loop for loop in loops if "multiply(" in loop and "f32" in loop and "add(" in loop and "slice(" in loop]
    assert sums and not any("dynamic-slice(" in loop for loop in sums)


@pytest.mark.optimised
@pytest.mark.parametrize(("space", "strides"), [((14, 14), 1), ((28, 29), 2), ((4, 9, 9), 1), ((300,), 1)])
def test_a_kernel_gradient_is_one_loop(space, strides):
    """What a step gathers from x is multiplied where it is gathered: XLA:CPU fuses no gather into a broadcast."""
    options = {"padding": 1, "strides": strides, "feature_group_count": 64}
    output = [(n - 1) // strides + 1 for n in space]
    x, g = (jax.ShapeDtypeStruct((20, *size, 64), "float32") for size in (space, output))
    form = lambda x, g: jconv.conv_kernel_grad(x, g, (*(3 for _ in space), 1, 64), **options)
    text = jax.jit(form).lower(x, g).compile().as_text()
    loops = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    sums = [loop for loop in loops if re.search(r"f32\S* gather\(|f32\S* dynamic-slice\(", loop)]
    assert len(sums) == 1
    assert len(re.findall(r"f32\S* multiply\(", sums[0])) <= taps.IN_STEP


@pytest.mark.parametrize("window", [(3, 3), (7, 7), (1, 64), (31, 31)])
def test_size_of_a_kernel_gradients_program(window):
    """Up to IN_STEP rows are written out, whatever the window."""
    x = np.zeros((2, 16, 80, 8), np.float32)
    f = lambda x: jconv.conv_kernel_grad(x, x, (*window, 1, 8), padding="SAME", feature_group_count=8)
    found = re.findall(r"stablehlo\.multiply.*x8xf32>", jax.jit(f).lower(x).as_text())
    assert len(found) == taps.IN_STEP


@pytest.mark.parametrize(
    ("space", "strides"), [((13, 21), 1), ((19, 43), 2), ((3, 8, 35), 1), ((101,), 1), ((107,), 3)]
)
def test_rows_and_runs_that_do_not_divide(monkeypatch, space, strides):
    """What two steps have is counted once: exact on whole numbers, where rows and runs of a row are in uneven parts."""
    monkeypatch.setattr(taps, "SUM_BYTES", 256)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    options = {"padding": 1, "strides": strides, "feature_group_count": 4}
    kernel = (*(3 for _ in space), 1, 4)
    output = [(n - 1) // strides + 1 for n in space]
    x, g = (rng.integers(-3, 4, (2, *size, 4)).astype(np.float32) for size in (space, output))
    found = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, kernel, algorithm={"kernel_grad": "taps"}, **options))(
        x, g
    )
    np.testing.assert_array_equal(found, reference.conv_kernel_grad(x, g, kernel, **options))
    jax.clear_caches()


def way_of(shape, kernel, padding, strides=1, kernel_dilation=1):
    rank = len(shape) - 2
    padding = padding if isinstance(padding, tuple) else ((padding, padding),) * rank
    spread = [(n,) * rank for n in (strides, kernel_dilation, 1)]
    geometry = sliding("conv", shape[1:-1], kernel[:-2], spread[0], padding, *spread[1:], groups=shape[-1])
    x, w = (jax.ShapeDtypeStruct(dims, "float32") for dims in (shape, kernel))
    way = taps._way(x, w, geometry, "float32", taps._images(x, geometry, shape[-1], "float32", taps.FEW_BYTES))
    return None if way is None else way.__name__


@pytest.mark.parametrize(
    ("shape", "kernel", "options", "way"),
    [
        ((8, 28, 28, 192), (3, 3, 1, 192), {"padding": 1}, "_in_place"),
        ((4, 56, 56, 144), (5, 5, 1, 144), {"padding": 2, "strides": 2}, "_in_place"),
        ((1, 33, 33, 960), (3, 3, 1, 960), {"padding": 2, "kernel_dilation": 2}, "_in_place"),
        ((2, 2048, 1024), (4, 1, 1024), {"padding": ((3, 0),)}, "_in_place"),
        ((8, 112, 112, 24), (3, 3, 1, 24), {"padding": 1}, None),  # few channels
        ((16, 112, 112, 24), (3, 3, 1, 24), {"padding": 1}, "_in_place"),  # whose padded copy is mapped anew
        ((1, 7, 7, 96), (3, 3, 1, 96), {"padding": 1}, None),  # small
        ((4, 28, 28, 64), (3, 3, 1, 128), {"padding": 1}, None),  # a multiplier
        ((4, 28, 28, 64), (2, 2, 1, 64), {"padding": 1}, None),  # no tap sees an element at every place
        ((8, 56, 56, 96), (7, 7, 1, 96), {"padding": 3}, None),  # masks cost more than a copy
        ((8, 56, 56, 128), (7, 7, 1, 128), {"padding": 3}, "_in_place"),  # but for one that is mapped anew
        ((1, 14, 14, 512), (7, 7, 1, 512), {"padding": 3}, "_in_blocks"),
        ((1, 14, 14, 509), (7, 7, 1, 509), {"padding": 3}, None),  # no divisor
        ((1, 14, 14, 512), (27, 27, 1, 512), {"padding": 13}, "_block_by_block"),
        ((2, 28, 28, 256), (9, 9, 1, 256), {"padding": 4}, None),
    ],
)
def test_how_depthwise_windows_are_computed(shape, kernel, options, way):
    assert way_of(shape, kernel, **options) == way


DEPTHWISE = [  # x, window, options
    ((2, 7, 6, 8), (3, 3), {"padding": 1}),
    ((1, 9, 8, 8), (3, 5), {"padding": ((0, 1), (2, 1)), "strides": 2}),
    ((2, 11, 6, 8), (2, 3), {"padding": ((3, 0), (2, 2)), "kernel_dilation": (3, 2)}),
    ((3, 20, 8), (4,), {"padding": ((3, 0),)}),
    ((1, 4, 5, 6, 8), (3, 1, 3), {"padding": (1, 0, 1), "strides": (1, 2, 1)}),
    ((1, 5, 5, 8), (3, 3), {"padding": 0}),
    ((1, 4, 12, 8), (5, 5), {"padding": 2}),
]


@pytest.mark.parametrize("way", ["_in_place", "_in_blocks", "_block_by_block"])
@pytest.mark.parametrize(("shape", "window", "options"), DEPTHWISE)
def test_each_way_is_the_same(monkeypatch, shape, window, options, way):
    monkeypatch.setattr(taps, "_way", lambda *_: getattr(taps, way))
    monkeypatch.setattr(taps, "BLOCK", 4)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    options = {**options, "feature_group_count": shape[-1]}
    x, k = (rng.integers(-3, 4, dims).astype(np.float32) for dims in (shape, (*window, 1, shape[-1])))
    form = functools.partial(jconv.conv, algorithm={"forward": "taps"}, **options)
    np.testing.assert_array_equal(jax.jit(form)(x, k), reference.conv(x, k, **options))
    jax.clear_caches()


@pytest.mark.parametrize("way", ["_in_place", "_in_blocks", "_block_by_block"])
def test_an_infinity_at_the_edge_is_no_nan(monkeypatch, way):
    """What stands for the padding is an element of the edge: it must not be multiplied by 0."""
    monkeypatch.setattr(taps, "_way", lambda *_: getattr(taps, way))
    jax.clear_caches()
    x, k = np.ones((1, 6, 6, 4), np.float32), np.ones((3, 3, 1, 4), np.float32)
    x[0, 0, 2], x[0, 5, 5] = np.inf, -np.inf
    y = jax.jit(lambda x, k: jconv.conv(x, k, padding=1, feature_group_count=4, algorithm="taps"))(x, k)
    np.testing.assert_array_equal(y, reference.conv(x, k, padding=1, feature_group_count=4))
    assert not np.isnan(y).any()
    jax.clear_caches()


def test_an_infinity_at_the_edge_leaves_other_kernel_gradients():
    x, g = np.ones((2, 13, 13, 4), np.float32), np.ones((2, 13, 13, 4), np.float32)
    x[0, 0, 2, 1], x[1, 12, 12, 2] = np.inf, -np.inf
    options = {"padding": 1, "feature_group_count": 4}
    dk = jconv.conv_kernel_grad(x, g, (3, 3, 1, 4), algorithm={"kernel_grad": "taps"}, **options)
    np.testing.assert_array_equal(dk, reference.conv_kernel_grad(x, g, (3, 3, 1, 4), **options))


@pytest.mark.optimised
@pytest.mark.parametrize("padding", [0, 1])
def test_what_makes_the_input_is_computed_once(padding):
    """And not for each tap that reads it, as XLA:CPU would: 36 ms in the place of 1.4 for a GELU of 4 x 112 x 112 x 32."""
    x, k = np.zeros((4, 56, 56, 32), np.float32), np.zeros((3, 3, 1, 32), np.float32)
    form = lambda x, k: jconv.conv(jax.nn.gelu(x), k, padding=padding, feature_group_count=32)
    text = jax.jit(form).lower(x, k).compile().as_text()
    made = [loop for loop in text.split("\n\n") if " tanh(" in loop]
    assert len(made) == 1
    assert not re.search(r" (gather|slice)\(", made[0])


@pytest.mark.optimised
def test_the_input_is_read_where_it_is():
    """No padded copy, and the bias is added in the loop of all taps."""
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")
    form = lambda x, k, b: jconv.conv(x, k, b, padding=1, feature_group_count=64)
    compiled = jax.jit(form).lower(shape(4, 56, 56, 64), shape(3, 3, 1, 64), shape(64)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1 << 12
    assert len(re.findall(r" fusion\(", compiled.as_text())) == 1


FEW = [  # x, kernel, options; of 2 to 8 channels, without groups
    ((2, 7, 6, 3), (3, 3, 3, 16), {"padding": 1}),
    ((1, 9, 8, 4), (3, 5, 4, 6), {"padding": ((0, 1), (2, 1)), "strides": 2}),
    ((3, 20, 8), (4, 8, 12), {"padding": ((6, 0),), "kernel_dilation": 2}),
    ((1, 4, 5, 6, 2), (3, 2, 3, 2, 8), {"padding": 1, "strides": (1, 2, 1)}),
    ((2, 5, 5, 5), (2, 2, 5, 3), {"padding": 0}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), FEW)
def test_few_channels_are_the_same(shape, kernel, options):
    rng = np.random.default_rng(0)
    x, k = (rng.integers(-3, 4, dims).astype(np.float32) for dims in (shape, kernel))
    y = jax.jit(functools.partial(jconv.conv, algorithm={"forward": "taps"}, **options))(x, k)
    np.testing.assert_array_equal(y, reference.conv(x, k, **options))


def test_few_channels_of_an_input_gradient():
    """Whose kernel is turned."""
    rng = np.random.default_rng(0)
    g, k = (rng.integers(-3, 4, dims).astype(np.float32) for dims in ((2, 7, 6, 3), (3, 2, 16, 3)))
    options = {"padding": ((1, 1), (1, 0))}
    dx = jconv.conv_input_grad(g, k, (2, 7, 6, 16), algorithm={"input_grad": "taps"}, **options)
    np.testing.assert_array_equal(dx, reference.conv_input_grad(g, k, (2, 7, 6, 16), **options))


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "wins"),
    [
        ((8, 224, 224, 3), (3, 3, 3, 32), 2, True),  # MobileNet's first layer, forward against lax 6.5
        ((128, 32, 32, 3), (3, 3, 3, 16), 1, True),  # ResNet-20's, 3.5
        ((1, 224, 224, 3), (3, 3, 3, 64), 1, True),  # VGG's, 2.2
        ((8, 2000, 3), (3, 3, 32), 1, True),  # 3.1
        ((8, 224, 224, 8), (3, 3, 8, 8), 1, True),  # 2.2
        ((4, 224, 224, 3), (7, 7, 3, 64), 2, False),  # ResNet's: too many terms
        ((8, 112, 112, 4), (4, 4, 4, 64), 1, False),  # too many numbers
        ((32, 2000, 8), (2, 8, 96), 1, False),  # too many outputs
        ((32, 128, 128, 16), (2, 2, 16, 12), 1, False),  # too many channels
        ((1, 28, 28, 3), (3, 3, 3, 16), 1, False),  # few places
        ((8, 224, 224, 3), (1, 1, 3, 32), 1, False),  # a matrix product
    ],
)
def test_where_few_channels_win(shape, kernel, strides, wins):
    x, k = (jax.ShapeDtypeStruct(dims, "float32") for dims in (shape, kernel))
    choice = jconv.explain(x, k, strides=strides, padding="SAME", platform="cpu")["forward"]
    assert (choice.algorithm == "taps") == wins


@pytest.mark.optimised
@pytest.mark.parametrize("padding", [0, 1])
def test_few_channels_are_one_loop(padding):
    """Beside the padding, and what makes the input is computed once, though it is cheap."""
    x, k = np.zeros((4, 64, 64, 2), np.float32), np.zeros((2, 2, 2, 16), np.float32)
    form = lambda x, k, b: jconv.conv(jax.nn.relu(x), k, b, padding=padding)
    text = jax.jit(form).lower(x, k, np.zeros(16, np.float32)).compile().as_text()
    made = [loop for loop in text.split("\n\n") if " maximum(" in loop]
    assert len(made) == 1
    assert " slice(" not in made[0]
    assert len(re.findall(r" fusion\(", text)) == 2


@pytest.mark.optimised
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"kernel_dilation": 2}])
def test_a_loop_moves_no_view_in_front_of_it(options):
    """g is the same in all steps: XLA would write down once what each tap sees of it, up to 8 arrays of its size."""
    conv = functools.partial(jconv.conv, padding="SAME", feature_group_count=48, **options)
    x, kernel = jax.ShapeDtypeStruct((1, 64, 64, 48), np.float32), jax.ShapeDtypeStruct((3, 3, 1, 48), np.float32)
    g = jax.eval_shape(conv, x, kernel)

    def loop(x, kernel, g):
        def step(carry, _):
            y, backward = jax.vjp(conv, x, carry[1])
            dx, dkernel = backward(g)
            return (carry[0] + dx, carry[1] - dkernel * y.sum()), None

        return jax.lax.scan(step, (x, kernel), length=4)[0]

    program = jax.jit(loop).lower(x, kernel, g).compile().as_text()
    assert "gather" in program
    assert "gather" not in program[program.index("ENTRY") :]


@pytest.mark.optimised
@pytest.mark.parametrize(("channels", "size"), [(64, 3), (1, 5)])
def test_a_kernel_is_read_in_the_order_of_the_loop(channels, size):
    """One that was stored (out, in, height, width): XLA would have the loop take each number of its vector from afar."""
    shapes = (8, 56, 56, channels), (64, 1, size, size)
    form = functools.partial(jconv.conv, padding="SAME", feature_group_count=channels, algorithm={"forward": "taps"})
    layer = jax.jit(lambda x, k: form(x, k.transpose(2, 3, 1, 0)))
    text = layer.lower(*(jax.ShapeDtypeStruct(dims, np.float32) for dims in shapes)).compile().as_text()
    loops = [loop for loop in text.split("\n\n") if " multiply(" in loop]
    assert loops
    read = [layout for loop in loops for layout in re.findall(rf"f32\[{size},{size}[\d,]*64\]{{([\d,]+)}}", loop)]
    assert all(layout.split(",") == sorted(layout.split(","), reverse=True) for layout in read)
