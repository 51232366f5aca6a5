"""The oracle, proven from the definition alone: padded rows written out, and a loop over every place and tap."""

import ast
import dataclasses
import inspect
import itertools
import math
import re

import ml_dtypes
import numpy as np
import pytest

from jconv import reference

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "EDGE": "edge"}  # their names in numpy.pad


def padded_row(n, size, dilation=1, pads=(0, 0), input_dilation=1, repeats=None):
    """The input of a window, written out: the element at each place, None for a zero."""
    row = list(range(n))
    if repeats:
        reach = (size - 1) * dilation + 1
        row = np.pad(row, ((reach - 1) // 2, reach // 2), mode=MODES[repeats]).tolist()
    row = [a for element in row for a in [element] + [None] * (input_dilation - 1)]
    row = row[: len(row) - input_dilation + 1] if row else row
    low, high = pads
    row = [None] * max(low, 0) + row + [None] * max(high, 0)
    row = row[max(-low, 0) :]
    return row[: max(0, len(row) + min(high, 0))]


def axis_windows(row, size, stride, dilation, right_padding=0, ceil_mode=False):
    """For each place the list of what its taps see: an element, None for padding, "beyond" for what lies behind it."""
    reach, starts = (size - 1) * dilation + 1, []
    for start in range(0, len(row) + reach * stride, stride):
        fits = start + reach <= len(row)
        overhangs = start - stride + reach < len(row)  # the window before it leaves something over
        if fits or (ceil_mode and overhangs):
            starts.append(start)
    if ceil_mode and starts and starts[-1] >= len(row) - right_padding:
        starts.pop()
    behind = row + ["beyond"] * (reach + stride)
    return [[behind[start + t * dilation] for t in range(size)] for start in starts]


def see(windows, p, t):
    """The element that tap t sees at place p, one index an axis; None if an axis sees none."""
    a = tuple(axis[i][k] for axis, i, k in zip(windows, p, t, strict=True))
    return None if None in a or "beyond" in a else a


def everywhere(shape):
    return itertools.product(*map(range, shape))


# --- Convolution ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution and what its padding is as numbers, by hand: `pads`, zeros or crops; `repeats`, for the others."""

    name: str
    space: tuple
    window: tuple
    pads: tuple = ()
    padding: object = None
    repeats: str | None = None
    strides: tuple = ()
    input_dilation: tuple = ()
    kernel_dilation: tuple = ()
    groups: int = 1
    channels: tuple = (2, 3)
    batch: int = 2

    def __str__(self):
        return self.name

    @property
    def zeros(self):
        return self.pads or ((0, 0),) * len(self.space)

    @property
    def steps(self):
        one = (1,) * len(self.space)
        return self.strides or one, self.input_dilation or one, self.kernel_dilation or one

    @property
    def options(self):
        strides, input_dilation, kernel_dilation = self.steps
        return {
            "strides": strides,
            "padding": self.zeros if self.padding is None else self.padding,
            "input_dilation": input_dilation,
            "kernel_dilation": kernel_dilation,
            "feature_group_count": self.groups,
        }

    @property
    def windows(self):
        return [
            axis_windows(padded_row(n, k, d, pads, e, self.repeats), k, s, d)
            for n, k, pads, s, e, d in zip(self.space, self.window, self.zeros, *self.steps, strict=True)
        ]

    @property
    def shapes(self):
        """Shapes of x, kernel and y."""
        inputs, outputs = self.channels
        places = tuple(map(len, self.windows))
        x, y = (self.batch, *self.space, inputs), (self.batch, *places, outputs)
        return x, (*self.window, inputs // self.groups, outputs), y


def drawn(seed):
    """A random small geometry with every option."""
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 4
    draw = lambda low, high: tuple(rng.integers(low, high, rank, endpoint=True).tolist())
    groups = int(rng.integers(1, 3, endpoint=True))
    multiples = rng.integers(1, 2, 2, endpoint=True)
    return Case(
        f"drawn-{seed}",
        space=draw(1, 6 if rank < 3 else 3),
        window=draw(1, 4 if rank < 3 else 2),
        pads=tuple(zip(draw(-2, 4 if rank < 4 else 1), draw(-2, 4 if rank < 4 else 1), strict=True)),
        strides=draw(1, 3),
        input_dilation=draw(1, 3),
        kernel_dilation=draw(1, 3),
        groups=groups,
        channels=tuple((groups * multiples).tolist()),
        batch=int(rng.integers(0, 2, endpoint=True)),
    )


CASES = [
    Case("one element", (1,), (1,)),
    Case("valid", (5,), (3,), padding="VALID"),
    Case("kernel is input", (4, 3), (4, 3)),
    Case("kernel above input", (2,), (3,)),
    Case("same, odd", (5,), (3,), ((1, 1),), "SAME"),
    Case("same, even", (5,), (2,), ((0, 1),), "SAME"),
    Case("same lower, even", (5,), (2,), ((1, 0),), "SAME_LOWER"),
    Case("same, strided", (6, 7), (3, 3), ((0, 1), (1, 1)), "SAME", strides=(2, 2)),
    Case("same lower, strided", (6, 7), (3, 3), ((1, 0), (1, 1)), "SAME_LOWER", strides=(2, 2)),
    Case("same, stride above kernel", (5,), (1,), ((0, 0),), "SAME", strides=(3,)),
    Case("same, dilated", (5,), (3,), ((2, 2),), "SAME", kernel_dilation=(2,)),
    Case("same of dilated input", (3,), (2,), ((0, 1),), "SAME", strides=(2,), input_dilation=(2,)),
    Case("same, strided by three", (7, 8), (3, 3), ((1, 1), (0, 1)), "SAME", strides=(3, 3)),
    Case("causal", (4,), (4,), ((6, 0),), "CAUSAL", kernel_dilation=(2,)),
    Case("circular", (4, 3), (3, 3), padding="CIRCULAR", repeats="CIRCULAR"),
    Case("circular, even", (5,), (4,), padding="CIRCULAR", repeats="CIRCULAR", strides=(2,)),
    Case("circular, more than once round", (2,), (6,), padding="CIRCULAR", repeats="CIRCULAR"),
    Case("circular of dilated input", (4,), (3,), padding="CIRCULAR", repeats="CIRCULAR", input_dilation=(2,)),
    Case("reflect", (4, 5), (3, 4), padding="REFLECT", repeats="REFLECT", kernel_dilation=(2, 1)),
    Case("reflect, one element", (1,), (3,), padding="REFLECT", repeats="REFLECT"),
    Case("reflect, to and fro", (3, 2), (8, 6), padding="REFLECT", repeats="REFLECT"),
    Case("edge", (4, 6), (3, 2), padding="EDGE", repeats="EDGE", strides=(2, 4), groups=2, channels=(2, 4)),
    Case("int", (3, 4), (3, 2), ((1, 1), (1, 1)), 1),
    Case("int an axis", (3, 4), (3, 2), ((1, 1), (2, 2)), (1, 2)),
    Case("int and pair", (3, 4), (3, 2), ((1, 1), (2, 0)), (np.int64(1), (2, 0))),
    Case("low above reach", (3,), (2,), ((4, 0),)),
    Case("high above reach", (3,), (2,), ((0, 4),), strides=(2,)),
    Case("crop", (6, 5), (2, 2), ((-1, -2), (0, -1))),
    Case("crop low, pad high", (4,), (2,), ((-1, 3),)),
    Case("crop high, pad low", (4,), (3,), ((3, -2),), strides=(2,)),
    Case("crop everything, then pad", (3,), (2,), ((-5, 5),)),
    Case("crop everything", (3,), (2,), ((-2, -1),)),
    Case("crop between elements", (4,), (2,), ((-2, -1),), input_dilation=(3,)),
    Case("elements left over", (6, 8), (2, 3), strides=(3, 4)),
    Case("stride above kernel", (7,), (2,), strides=(5,)),
    Case("dilated both", (5, 4), (2, 3), ((1, 2), (0, 3)), input_dilation=(2, 3), kernel_dilation=(3, 2)),
    Case("grouped", (4, 4), (3, 3), ((1, 1), (1, 1)), groups=2, channels=(4, 6)),
    Case("depthwise", (5,), (3,), groups=3, channels=(3, 3)),
    Case("depthwise, two a channel", (5, 5), (2, 2), groups=3, channels=(3, 6), strides=(2, 1)),
    Case("empty batch", (4, 4), (3, 3), batch=0),
    Case("no element", (0,), (2,), ((2, 2),)),
    Case("rank 4", (2, 3, 2, 3), (2, 1, 2, 2), ((0, 1), (1, 0), (0, 0), (1, 1)), strides=(1, 2, 1, 2)),
    *map(drawn, range(60)),
]


def dense(kernel, groups):
    """A grouped kernel is a dense one with zeros off the diagonal blocks; and the blocks, to cut them out again."""
    inner, outputs = kernel.shape[-2:]
    full, blocks = np.zeros((*kernel.shape[:-2], inner * groups, outputs), kernel.dtype), []
    for i in range(groups):
        rows, columns = slice(i * inner, (i + 1) * inner), slice(i * outputs // groups, (i + 1) * outputs // groups)
        full[..., rows, columns] = kernel[..., columns]
        blocks.append((..., rows, columns))
    return full, blocks


def brute_conv(case, x, kernel, g):
    """Y, dkernel and dx: each triple (place, tap, element) adds its product to all three."""
    full, blocks = dense(kernel, case.groups)
    y, dfull, dx = np.zeros(g.shape), np.zeros(full.shape), np.zeros(x.shape)
    for p, t in itertools.product(everywhere(g.shape[1:-1]), everywhere(case.window)):
        a = see(case.windows, p, t)
        if a is not None:
            for n in range(len(x)):
                y[n, *p] += x[n, *a] @ full[t]
                dfull[t] += np.outer(x[n, *a], g[n, *p])
                dx[n, *a] += full[t] @ g[n, *p]
    return y, np.concatenate([dfull[block] for block in blocks], axis=-1), dx


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_from_its_definition(case):
    rng = np.random.default_rng(0)
    x, kernel, g = map(rng.normal, [0] * 3, [1] * 3, case.shapes)
    y, dkernel, dx = brute_conv(case, x, kernel, g)
    np.testing.assert_allclose(reference.conv(x, kernel, **case.options), y, **EXACT)
    np.testing.assert_allclose(reference.conv_kernel_grad(x, g, kernel.shape, **case.options), dkernel, **EXACT)
    np.testing.assert_allclose(reference.conv_input_grad(g, kernel, x.shape, **case.options), dx, **EXACT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_number_three_ways(case):
    rng = np.random.default_rng(1)
    x, kernel, g = (rng.integers(-4, 4, shape) for shape in case.shapes)
    number = (reference.conv(x, kernel, **case.options) * g).sum()
    assert number == (x * reference.conv_input_grad(g, kernel, x.shape, **case.options)).sum()
    assert number == (kernel * reference.conv_kernel_grad(x, g, kernel.shape, **case.options)).sum()


# With one group and zeros for padding; and a window needs a tap, so y a place.
SWAPPABLE = [case for case in CASES if case.groups == 1 and not case.repeats and 0 not in case.shapes[2]]


@pytest.mark.parametrize("case", SWAPPABLE, ids=str)
def test_stride_and_dilation_change_places_in_the_kernel_gradient(case):
    rng = np.random.default_rng(2)
    x, _, g = map(rng.normal, [0] * 3, [1] * 3, case.shapes)
    options = case.options | {"strides": case.steps[2], "kernel_dilation": case.steps[0], "padding": case.zeros}
    swapped = reference.conv(
        np.swapaxes(x, 0, -1), np.moveaxis(g, 0, -2), **options
    )  # channels for batch; g for kernel
    dkernel = swapped[(slice(None), *map(slice, case.window))]  # where elements are left over, taps too many
    want = reference.conv_kernel_grad(x, g, case.shapes[1], **case.options)
    np.testing.assert_allclose(np.moveaxis(dkernel, 0, -2), want, **EXACT)


def test_bias_is_added_and_its_gradient_is_the_sum():
    x, kernel, bias = np.ones((2, 3, 1)), np.ones((1, 1, 2)), np.array([10, 20])
    np.testing.assert_array_equal(reference.conv(x, kernel, bias)[0, 0], [11, 21])
    np.testing.assert_array_equal(reference.conv_transpose(x, np.ones((1, 2, 1)), bias)[0, 0], [11, 21])
    g = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(reference.conv_bias_grad(g), [0 + 2 + 4 + 6 + 8 + 10, 1 + 3 + 5 + 7 + 9 + 11])


def image(rows):
    return np.array(rows)[None, ..., None]


def taps(rows):
    return np.array(rows)[..., None, None]


def test_known_figures():
    # Dive into Deep Learning, figures 7.2.1 and 14.10.1-14.10.2.
    x, kernel = image([[0, 1, 2], [3, 4, 5], [6, 7, 8]]), taps([[0, 1], [2, 3]])
    np.testing.assert_array_equal(reference.conv(x, kernel), image([[19, 25], [37, 43]]))
    y, up = image([[0, 1], [2, 3]]), taps([[0, 1], [2, 3]])
    np.testing.assert_array_equal(reference.conv_transpose(y, up), image([[0, 0, 1], [0, 4, 6], [4, 12, 9]]))
    want = image([[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]])
    np.testing.assert_array_equal(reference.conv_transpose(y, up, strides=2), want)
    np.testing.assert_array_equal(reference.conv_transpose(y, up, padding=1), image([[4]]))
    # By hand: y[0] = 1*1 + 2*10, y[1] = 3*1 + 4*10 and element 5 is left over.
    x, kernel, g = np.arange(1, 6).reshape(1, 5, 1), taps([1, 10]), np.array([1, 100]).reshape(1, 2, 1)
    np.testing.assert_array_equal(reference.conv(x, kernel, strides=2).ravel(), [21, 43])
    np.testing.assert_array_equal(reference.conv_kernel_grad(x, g, (2, 1, 1), strides=2).ravel(), [301, 402])
    dx = reference.conv_input_grad(g, kernel, (1, 5, 1), strides=2)
    np.testing.assert_array_equal(dx.ravel(), [1, 10, 100, 1000, 0])


def test_kinds_of_numbers():
    odd = 2**53 + 1  # which float64 cannot hold
    y = reference.conv(np.full((1, 1, 1), odd), np.ones((1, 1, 1), np.int8))
    assert (y.dtype, y.item()) == (np.int64, odd)
    y = reference.conv(np.full((1, 1, 1), 2**64 - 1, np.uint64), np.ones((1, 1, 1), np.uint64))
    assert (y.dtype, y.item()) == (np.uint64, 2**64 - 1)
    narrow = np.ones((1, 300, 1), ml_dtypes.bfloat16)  # 257 has no bfloat16
    assert reference.conv(narrow, narrow.reshape(300, 1, 1)[:257])[0, 0, 0] == 257
    assert reference.sum_pool(narrow.astype(np.float16), 257).dtype == np.float64
    x, kernel = np.full((1, 1, 1), 1 + 2j, np.complex64), np.full((1, 1, 1), 3j, np.complex64)
    y, dkernel = reference.conv(x, kernel), reference.conv_kernel_grad(x, kernel, (1, 1, 1))
    assert (y.dtype, y.item(), dkernel.item()) == (np.complex128, -6 + 3j, -6 + 3j)  # bilinear: nothing is conjugated


# --- Transposed convolution -----------------------------------------------------------------------------------------

TRANSPOSES = [  # spatial shape of y, window, options, spatial shape of the result by the formula
    ((3,), (3,), {}, (5,)),
    ((3,), (2,), {"strides": 2}, (6,)),
    ((3,), (2,), {"strides": 3, "output_padding": 2}, (10,)),
    ((3,), (3,), {"strides": 2, "padding": 1, "output_padding": 1}, (6,)),
    ((3, 2), (3, 2), {"strides": (2, 3), "padding": ((0, 1), 1), "kernel_dilation": (2, 1)}, (8, 3)),
    ((4,), (2,), {"padding": ((3, -1),)}, (3,)),
    ((3,), (2,), {"padding": ((-1, -2),)}, (7,)),
    ((3, 4), (3, 2), {"strides": 2, "padding": "SAME"}, (6, 8)),
    ((3, 4), (3, 2), {"strides": (2, 3), "padding": "SAME_LOWER"}, (6, 12)),
    ((3,), (1,), {"strides": 4, "padding": "SAME"}, (12,)),
    ((4,), (3,), {"strides": 2, "padding": "CAUSAL", "kernel_dilation": 2, "output_padding": 1}, (8,)),
    ((3,), (4,), {"strides": 2, "padding": "CIRCULAR"}, (5,)),
    ((3,), (4,), {"strides": 2, "padding": "REFLECT", "output_padding": 1}, (6,)),
    ((3, 2), (3, 3), {"strides": 1, "padding": "EDGE"}, (3, 2)),
    ((3,), (2,), {"strides": 2, "feature_group_count": 2}, (6,)),
]


@pytest.mark.parametrize(("space", "window", "options", "result"), TRANSPOSES, ids=str)
def test_conv_transpose_is_the_adjoint(space, window, options, result):
    rng = np.random.default_rng(3)
    groups = options.get("feature_group_count", 1)
    y, kernel = rng.integers(-4, 4, (2, *space, 6)), rng.integers(-4, 4, (*window, 4 // groups, 6))
    transposed = reference.conv_transpose(y, kernel, **options)
    assert transposed.shape == (2, *result, 4)
    x = rng.integers(-4, 4, transposed.shape)
    options = {name: value for name, value in options.items() if name != "output_padding"}
    assert (reference.conv(x, kernel, **options) * y).sum() == (x * transposed).sum()


# --- Finite differences ---------------------------------------------------------------------------------------------


def slope(f, x, step):
    """The gradient of the scalar f by central differences, an element at a time."""
    gradient = np.zeros(x.shape)
    for i in everywhere(x.shape):
        e = np.zeros(x.shape)
        e[i] = step
        gradient[i] = (f(x + e) - f(x - e)) / (2 * step)
    return gradient


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_convolution_by_finite_differences(case):
    rng = np.random.default_rng(4)
    x, kernel, g = map(rng.normal, [0] * 3, [1] * 3, case.shapes)
    loss = lambda x, kernel: (reference.conv(x, kernel, **case.options) * g).sum()
    dx = slope(lambda x: loss(x, kernel), x, 1.0)  # linear in each: exact at any step
    dkernel = slope(lambda kernel: loss(x, kernel), kernel, 1.0)
    np.testing.assert_allclose(reference.conv_input_grad(g, kernel, x.shape, **case.options), dx, rtol=0, atol=1e-10)
    got = reference.conv_kernel_grad(x, g, kernel.shape, **case.options)
    np.testing.assert_allclose(got, dkernel, rtol=0, atol=1e-10)


WINDOW = ((2, 3), (2, 1), ((1, 0), (0, 2)))  # window_shape, strides, padding
MORE = {"window_dilation": (1, 2), "ceil_mode": True}
POOLS = {
    "max": (reference.max_pool, reference.max_pool_grad),
    "min": (reference.min_pool, reference.min_pool_grad),
    "sum": (reference.sum_pool, lambda x, g, *rest, **more: reference.sum_pool_grad(g, x.shape, *rest, **more)),
    "avg": (reference.avg_pool, lambda x, g, *rest, **more: reference.avg_pool_grad(g, x.shape, *rest, **more)),
} | {
    f"lp {power}": (
        lambda x, *rest, power=power, **more: reference.lp_pool(x, power, *rest, **more),
        lambda x, g, *rest, power=power, **more: reference.lp_pool_grad(x, power, g, *rest, **more),
    )
    for power in (0.5, 1, 2, 3.5, np.inf)
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_by_finite_differences(name):
    rng = np.random.default_rng(5)
    pool, grad = POOLS[name]
    x = (rng.permutation(2 * 5 * 6 * 2) + 1.0).reshape(2, 5, 6, 2) * rng.choice([-1, 1], (2, 5, 6, 2))  # no two tie
    g = rng.normal(size=pool(x, *WINDOW, **MORE).shape)
    dx = slope(lambda x: (pool(x, *WINDOW, **MORE) * g).sum(), x, 1e-4)
    np.testing.assert_allclose(grad(x, g, *WINDOW, **MORE), dx, rtol=1e-6, atol=1e-6)


# --- Pooling from its definition ------------------------------------------------------------------------------------


def drawn_pool(seed, may_ceil=True):
    """Spatial shape and arguments of a random pooling; the windows of each axis, written out."""
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    draw = lambda low, high: tuple(rng.integers(low, high, rank, endpoint=True).tolist())
    space, window, strides, dilation = draw(1, 6 if rank < 3 else 4), draw(1, 3), draw(1, 3), draw(1, 2)
    padding, ceil_mode = tuple(zip(draw(-1, 3), draw(-1, 3), strict=True)), may_ceil and bool(rng.integers(2))
    repeats = rng.choice(["CIRCULAR", "REFLECT", "EDGE"]) if seed % 5 == 4 else None
    windows = []
    for n, k, s, d, pads in zip(space, window, strides, dilation, padding, strict=True):
        zeros = (0, 0) if repeats else pads
        row = padded_row(n, k, d, zeros, repeats=repeats)
        windows.append(axis_windows(row, k, s, d, max(0, zeros[1]), ceil_mode))
    arguments = (window, strides, str(repeats) if repeats else padding)
    return space, arguments, {"window_dilation": dilation, "ceil_mode": ceil_mode}, windows


def windows_of(windows):
    """Each place, the elements that its window sees in row-major order, and the number of its taps not beyond."""
    for p in everywhere(map(len, windows)):
        axes = [axis[i] for axis, i in zip(windows, p, strict=True)]
        seen = [a for a in itertools.product(*axes) if None not in a and "beyond" not in a]
        yield p, seen, sum("beyond" not in a for a in itertools.product(*axes))


def with_surprises(rng, shape):
    """Many ties, infinities and NaNs."""
    return rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0, -np.inf, np.inf, np.nan], shape, p=[0.16] * 5 + [0.1, 0.05, 0.05])


def brute_max_pool(x, g, windows, sign=1):
    """Y, indices and dx, a window at a time: of the elements in order, the first NaN, else the first of the largest."""
    places = tuple(map(len, windows))
    y, dx = np.full((len(x), *places, x.shape[-1]), -sign * np.inf), np.zeros(x.shape)
    indices = np.full(y.shape, -1)
    for (p, seen, _), n, c in itertools.product(windows_of(windows), range(len(x)), range(x.shape[-1])):
        winner = None
        for a in seen:
            rival, best = sign * x[n, *a, c], None if winner is None else sign * x[n, *winner, c]
            if best is None or rival > best or (math.isnan(rival) and not math.isnan(best)):
                winner = a
        if winner is not None:
            y[n, *p, c], indices[n, *p, c] = x[n, *winner, c], np.ravel_multi_index(winner, x.shape[1:-1])
            dx[n, *winner, c] += g[n, *p, c]
    return y, indices, dx


@pytest.mark.parametrize("seed", range(45))
def test_max_and_min_pooling_from_the_definition(seed):
    rng = np.random.default_rng(seed)
    space, arguments, more, windows = drawn_pool(seed)
    x = with_surprises(rng, (2, *space, 2))
    g = rng.integers(1, 9, (2, *map(len, windows), 2)).astype(float)
    for pool, grad, sign in (
        (reference.max_pool, reference.max_pool_grad, 1),
        (reference.min_pool, reference.min_pool_grad, -1),
    ):
        y, indices, dx = brute_max_pool(x, g, windows, sign)
        got, at = pool(x, *arguments, **more, return_indices=True)
        np.testing.assert_array_equal(got, y)
        np.testing.assert_array_equal(at, indices)
        np.testing.assert_array_equal(pool(x, *arguments, **more), y)
        np.testing.assert_array_equal(grad(x, g, *arguments, **more), dx)


def brute_sum(x, windows, term=lambda value: value):
    """The sum of each window, the number of its elements and of its elements and padding."""
    y = np.zeros((len(x), *map(len, windows), x.shape[-1]))
    elements, taps_counted = np.zeros(y.shape[1:-1]), np.zeros(y.shape[1:-1])
    for p, seen, counted in windows_of(windows):
        elements[p], taps_counted[p] = len(seen), counted
        for a in seen:
            y[:, *p] += term(x[:, *a])
    return y, elements[..., None], taps_counted[..., None]


def brute_spread(g, shape, windows):
    dx = np.zeros(shape)
    for p, seen, _ in windows_of(windows):
        for a in seen:
            dx[:, *a] += g[:, *p]
    return dx


@pytest.mark.parametrize("seed", range(45))
def test_sum_average_and_lp_pooling_from_the_definition(seed):
    rng = np.random.default_rng(seed)
    space, arguments, more, windows = drawn_pool(seed)
    x = rng.integers(-3, 3, (2, *space, 2), endpoint=True)
    total, elements, counted = brute_sum(x, windows)
    g = rng.normal(size=total.shape)
    np.testing.assert_array_equal(reference.sum_pool(x, *arguments, **more), total)
    dx = brute_spread(g, x.shape, windows)
    np.testing.assert_allclose(reference.sum_pool_grad(g, x.shape, *arguments, **more), dx, **EXACT)
    with np.errstate(all="ignore"):
        choices = [({}, counted), ({"count_include_pad": False}, elements), ({"divisor_override": -3}, -3)]
        averages = [(choice, total / size, brute_spread(g / size, x.shape, windows)) for choice, size in choices]
    for choice, y, dx in averages:
        got = reference.avg_pool(x, *arguments, **more, **choice)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, y, **EXACT)  # nan where a window has no element
        got = reference.avg_pool_grad(g, x.shape, *arguments, **more, **choice)
        np.testing.assert_allclose(got, dx, **EXACT)
    for power in (1, 2, 3):
        y = brute_sum(x, windows, lambda value, power=power: abs(value) ** float(power))[0] ** (1 / power)
        np.testing.assert_allclose(reference.lp_pool(x, power, *arguments, **more), y, **EXACT)
    largest = brute_max_pool(abs(x), g, windows)[0]
    np.testing.assert_array_equal(reference.lp_pool(x, np.inf, *arguments, **more), np.maximum(largest, 0))


def row(*values):
    return np.array(values)[None, :, None]


def test_max_pooling_by_hand():
    inf, nan = np.inf, np.nan
    grad = lambda x, *rest, **more: reference.max_pool_grad(
        x, np.ones_like(reference.max_pool(x, *rest, **more)), *rest, **more
    ).ravel()
    np.testing.assert_array_equal(grad(row(3.0, 3.0, 3.0), 3), [1, 0, 0])  # the first of equals
    np.testing.assert_array_equal(grad(row(1.0, nan, 5.0, nan), 4), [0, 1, 0, 0])  # the first NaN
    np.testing.assert_array_equal(grad(row(-inf, -inf), 2, padding=((1, 0),)), [2, 0])  # never the padding
    np.testing.assert_array_equal(grad(row(1.0, 2.0, 9.0, 4.0), 2, window_dilation=2), [0, 0, 1, 1])
    np.testing.assert_array_equal(grad(row(1.0, 2.0, 3.0), 2, 2), [0, 1, 0])
    np.testing.assert_array_equal(grad(row(1.0, 2.0, 3.0), 2, 2, ceil_mode=True), [0, 1, 1])
    x = image([[0, 1, 2], [3, 4, 5], [6, 7, 8]])  # Dive into Deep Learning, figure 7.5.1
    y, indices = reference.max_pool(x, (2, 2), return_indices=True)
    np.testing.assert_array_equal(y, image([[4, 5], [7, 8]]))
    np.testing.assert_array_equal(indices, y)
    assert (y.dtype, indices.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize(
    ("dtype", "least", "greatest"),
    [
        (np.int8, -128, 127),
        (np.uint8, 0, 255),
        (np.int64, -(2**63), 2**63 - 1),
        (np.uint64, 0, 2**64 - 1),
        (np.float32, -np.inf, np.inf),
        (ml_dtypes.bfloat16, -np.inf, np.inf),
    ],
)
def test_a_window_wholly_in_the_padding(dtype, least, greatest):
    x = np.full((1, 1, 1), 7, dtype)
    y, indices = reference.max_pool(x, 1, padding=((1, 1),), return_indices=True)
    assert (y.ravel().tolist(), indices.ravel().tolist()) == ([least, 7, least], [-1, 0, -1])
    y, indices = reference.min_pool(x, 1, padding=((1, 1),), return_indices=True)
    assert (y.ravel().tolist(), indices.ravel().tolist()) == ([greatest, 7, greatest], [-1, 0, -1])
    np.testing.assert_array_equal(reference.max_pool_grad(x, np.ones((1, 3, 1)), 1, padding=1).ravel(), [1])
    average = reference.avg_pool(x, 1, padding=1, count_include_pad=False).ravel()
    np.testing.assert_array_equal(average, [np.nan, 7, np.nan])
    g = np.ones((1, 3, 1))
    np.testing.assert_array_equal(reference.avg_pool_grad(g, (1, 1, 1), 1, padding=1, count_include_pad=False), [[[1]]])


CEIL = [  # length, window, stride, (low, high), dilation, places rounded down, places in ceil_mode
    (5, 2, 2, (0, 0), 1, 2, 3),
    (6, 2, 2, (0, 0), 1, 3, 3),
    (5, 2, 2, (1, 1), 1, 3, 3),  # a fourth would start at 6, in the right padding: dropped
    (4, 2, 3, (1, 1), 1, 2, 2),  # a third would start at 6, behind everything: dropped
    (6, 3, 2, (1, 1), 1, 3, 4),
    (1, 2, 2, (0, 0), 1, 0, 1),
    (7, 3, 4, (0, 0), 2, 1, 2),
    (5, 3, 1, (0, 0), 1, 3, 3),
    (6, 2, 4, (0, -1), 1, 1, 2),  # the input is 5 long then
    (5, 2, 4, (0, -1), 1, 1, 1),
    (5, 1, 1, (0, 2), 1, 7, 6),  # one window is dropped, as PyTorch does, not two
]


@pytest.mark.parametrize(("n", "size", "stride", "pads", "dilation", "floor", "ceil"), CEIL)
def test_ceil_mode(n, size, stride, pads, dilation, floor, ceil):
    for ceil_mode, places in ((False, floor), (True, ceil)):
        options = {"window_dilation": dilation, "ceil_mode": ceil_mode}
        y = reference.sum_pool(np.ones((1, n, 1)), size, stride, (pads,), **options)
        assert y.shape == (1, places, 1)
        assert reference.sum_pool_grad(y, (1, n, 1), size, stride, (pads,), **options).shape == (1, n, 1)


def test_average_and_sum_pooling_by_hand():
    flat = lambda *arguments, **more: reference.avg_pool(*arguments, **more).ravel().tolist()
    assert flat(row(1, 2, 3, 4, 5, 6, 7), 3, 2) == [2, 4, 6]  # torch.nn.AvgPool1d's own example
    assert flat(row(2, 4, 6), 2, 2, 1) == [1, 5]
    assert flat(row(2, 4, 6), 2, 2, 1, count_include_pad=False) == [2, 5]
    assert flat(row(2, 4, 6, 8), 2, 2, 1, ceil_mode=True) == [1, 5, 4]
    assert flat(row(2, 4, 6), 3, 2, 1, ceil_mode=True) == [2, 10 / 3]
    assert flat(row(2, 4, 6, 8), 3, 2, 1, ceil_mode=True) == [2, 6, 4]  # the last has 8, a 0 and a tap beyond: 8 / 2
    assert flat(row(2, 4, 6, 8), 3, 2, 1, ceil_mode=True, count_include_pad=False) == [3, 6, 8]
    assert flat(row(2, 4, 6, 8), 3, 2, 1, ceil_mode=True, divisor_override=4) == [1.5, 4.5, 2]
    assert reference.sum_pool(row(2, 4, 6, 8), 2).ravel().tolist() == [6, 10, 14]
    assert reference.sum_pool(row(2, 4, 6, 8), 2).dtype == np.int64
    dx = reference.avg_pool_grad(row(6.0, 12.0), (1, 4, 1), 3)
    assert dx.ravel().tolist() == [2, 6, 6, 4]


def test_lp_pooling_by_hand():
    x, g = row(3.0, -4.0, 0.0, 0.0, 0.0), row(5.0, 4.0, 7.0, 7.0)
    assert reference.lp_pool(x, 2, 2).ravel().tolist() == [5, 4, 0, 0]
    assert reference.lp_pool(x, 1, 2).ravel().tolist() == [7, 4, 0, 0]
    assert reference.lp_pool(x, np.inf, 2).ravel().tolist() == [4, 4, 0, 0]
    assert reference.lp_pool(x, np.inf, 1, padding=1).ravel().tolist() == [0, 3, 4, 0, 0, 0, 0]
    np.testing.assert_allclose(reference.lp_pool_grad(x, 2, g, 2).ravel(), [3, -8, 0, 0, 0])  # 0 in an all-zero window
    assert reference.lp_pool_grad(x, 1, g, 2).ravel().tolist() == [5, -9, 0, 0, 0]
    assert reference.lp_pool_grad(x, np.inf, g, 2).ravel().tolist() == [0, -9, 0, 0, 0]
    assert reference.lp_pool_grad(x, 0.5, g, 2)[0, 2:].ravel().tolist() == [0, 0, 0]
    ties = reference.lp_pool_grad(row(2.0, -2.0), np.inf, row(1.0), 2)
    assert ties.ravel().tolist() == [1, 0]
    # A power that underflows makes an all-zero window too.
    assert reference.lp_pool_grad(row(1e-200), 2, row(1.0), 1).item() == 0


# --- Adaptive pooling, unpooling, patches ---------------------------------------------------------------------------


def adaptive_windows(space, output_shape):
    """Floor start, ceil end, in fractions."""
    axes = []
    for n, m in zip(space, output_shape, strict=True):
        axes.append([list(range(math.floor(i * n / m), math.ceil((i + 1) * n / m))) for i in range(m)])
    return axes


def test_adaptive_windows_by_hand():
    x = row(1.0, 2.0, 3.0, 4.0, 5.0)  # of 5 to 3: elements 0-1, 1-3, 3-4
    assert reference.adaptive_avg_pool(x, 3).ravel().tolist() == [1.5, 3, 4.5]
    y, indices = reference.adaptive_max_pool(x, 3, return_indices=True)
    assert (y.ravel().tolist(), indices.ravel().tolist()) == ([2, 4, 5], [1, 3, 4])
    assert reference.adaptive_avg_pool(row(1, 3), 4).ravel().tolist() == [1, 1, 3, 3]  # upsampling
    assert reference.adaptive_max_pool_grad(row(1, 3), row(1, 10, 100)).ravel().tolist() == [1, 110]
    assert reference.adaptive_avg_pool_grad(row(1, 10, 100), (1, 2, 1)).ravel().tolist() == [6, 105]


@pytest.mark.parametrize("seed", range(20))
def test_adaptive_pooling_from_the_definition(seed):
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    space, output_shape = rng.integers(1, 6, (2, rank), endpoint=True).tolist()
    windows = adaptive_windows(space, output_shape)
    x = with_surprises(rng, (2, *space, 2))
    g = rng.integers(1, 9, (2, *output_shape, 2)).astype(float)
    y, indices, dx = brute_max_pool(x, g, windows)
    got, at = reference.adaptive_max_pool(x, output_shape, return_indices=True)
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(at, indices)
    np.testing.assert_array_equal(reference.adaptive_max_pool_grad(x, g), dx)
    x = rng.normal(size=x.shape)
    total, elements, _ = brute_sum(x, windows)
    np.testing.assert_allclose(reference.adaptive_avg_pool(x, output_shape), total / elements, **EXACT)
    dx = brute_spread(g / elements, x.shape, windows)
    np.testing.assert_allclose(reference.adaptive_avg_pool_grad(g, x.shape), dx, **EXACT)


def test_max_unpool():
    # torch.nn.MaxUnpool1d's own example.
    y, indices = reference.max_pool(row(1, 2, 3, 4, 5, 6, 7, 8), 2, 2, return_indices=True)
    assert (y.ravel().tolist(), indices.ravel().tolist()) == ([2, 4, 6, 8], [1, 3, 5, 7])
    assert reference.max_unpool(y, indices, 8).ravel().tolist() == [0, 2, 0, 4, 0, 6, 0, 8]
    assert reference.max_unpool(y, indices, (9,)).ravel().tolist() == [0, 2, 0, 4, 0, 6, 0, 8, 0]
    assert reference.max_unpool(row(5, 6), row(-1, 1), 3).ravel().tolist() == [0, 6, 0]  # -1: dropped
    assert reference.max_unpool(row(5, 5), row(1, 1), 3).ravel().tolist() == [0, 5, 0]  # written, not added
    assert reference.max_unpool_grad(row(1, 2, 3), row(2, -1, 0, 2)).ravel().tolist() == [3, 0, 1, 3]
    for wrong in (-2, 3):
        with pytest.raises(ValueError, match="max_unpool: indices"):
            reference.max_unpool(row(5), row(wrong), 3)


def test_max_unpool_and_max_pool_are_one_gather_and_one_scatter():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, 5, 6, 3))
    y, indices = reference.max_pool(x, (2, 3), (2, 3), ((1, 0), (0, 1)), return_indices=True)
    np.testing.assert_array_equal(reference.max_unpool_grad(x, indices), y)
    g = rng.normal(size=y.shape)
    dx = reference.max_pool_grad(x, g, (2, 3), (2, 3), ((1, 0), (0, 1)))
    np.testing.assert_array_equal(reference.max_unpool(g, indices, (5, 6)), dx)
    # Each batch entry and channel has its own indices.
    for n, p, q, c in everywhere(g.shape):
        assert dx[n].reshape(30, 3)[indices[n, p, q, c], c] == g[n, p, q, c]


def test_unfold_by_hand():
    x = np.array([[1, 10], [2, 20], [3, 30]])[None]
    columns = reference.unfold(x, 2, padding=((1, 0),))  # the channel slowest, then the tap
    np.testing.assert_array_equal(columns[0], [[0, 1, 0, 10], [1, 2, 10, 20], [2, 3, 20, 30]])
    np.testing.assert_array_equal(reference.fold(columns, 3, 2, padding=((1, 0),)), x * np.array([2, 2, 1])[:, None])
    spread = reference.unfold(row(1.0, np.nan, np.inf), 2)  # moved, not multiplied
    np.testing.assert_array_equal(spread[0], [[1, np.nan], [np.nan, np.inf]])
    # A convolution is unfold and one matrix product.
    rng = np.random.default_rng(7)
    x, kernel = rng.normal(size=(2, 5, 6, 3)), rng.normal(size=(2, 3, 3, 4))
    options = {"strides": (2, 1), "padding": "REFLECT"}
    columns = reference.unfold(x, (2, 3), **options, window_dilation=(1, 2))
    y = columns @ np.moveaxis(kernel, 2, 0).reshape(18, 4)
    np.testing.assert_allclose(reference.conv(x, kernel, **options, kernel_dilation=(1, 2)), y, **EXACT)


@pytest.mark.parametrize("seed", range(30))
def test_unfold_and_fold_from_the_definition(seed):
    rng = np.random.default_rng(seed)
    space, (window, strides, padding), more, windows = drawn_pool(seed, may_ceil=False)
    options = {"strides": strides, "padding": padding, "window_dilation": more["window_dilation"]}
    places = tuple(map(len, windows))
    x, columns = rng.integers(-9, 9, (2, *space, 3)), np.zeros((2, *places, 3, *window), int)
    g, dx = rng.integers(-9, 9, columns.shape), np.zeros_like(x)
    for p, t in itertools.product(everywhere(places), everywhere(window)):
        a = see(windows, p, t)
        if a is not None:
            columns[:, *p, :, *t] = x[:, *a]
            dx[:, *a] += g[:, *p, :, *t]
    flat = (2, *places, 3 * math.prod(window))
    np.testing.assert_array_equal(reference.unfold(x, window, **options), columns.reshape(flat))
    np.testing.assert_array_equal(reference.fold(g.reshape(flat), space, window, **options), dx)


# --- Everything -----------------------------------------------------------------------------------------------------


def test_empty_batches():
    x, kernel = np.zeros((0, 4, 4, 2)), np.zeros((3, 3, 2, 5))
    g = reference.conv(x, kernel, np.zeros(5))
    assert g.shape == (0, 2, 2, 5)
    assert not reference.conv_kernel_grad(x, g, kernel.shape).any()
    assert reference.conv_input_grad(g, kernel, x.shape).shape == x.shape
    assert reference.conv_transpose(g, kernel).shape == x.shape
    assert reference.conv_bias_grad(g).tolist() == [0] * 5
    y, indices = reference.max_pool(x, 2, return_indices=True)
    assert y.shape == indices.shape == (0, 3, 3, 2)
    for dx in (
        reference.max_pool_grad(x, y, 2),
        reference.min_pool_grad(x, reference.min_pool(x, 2), 2),
        reference.avg_pool_grad(reference.avg_pool(x, 2), x.shape, 2),
        reference.sum_pool_grad(reference.sum_pool(x, 2), x.shape, 2),
        reference.lp_pool_grad(x, 2, reference.lp_pool(x, 2, 2), 2),
        reference.adaptive_max_pool_grad(x, reference.adaptive_max_pool(x, 3)),
        reference.adaptive_avg_pool_grad(reference.adaptive_avg_pool(x, 3), x.shape),
        reference.max_unpool(y, indices, 4),
        reference.fold(reference.unfold(x, 2), 4, 2),
    ):
        assert dx.shape == x.shape
    assert reference.max_unpool_grad(x, indices).shape == y.shape


def test_scalars_hold_for_every_axis_and_nothing_is_changed_in_place():
    rng = np.random.default_rng(8)
    x, kernel = rng.normal(size=(1, 7, 8, 2)), rng.normal(size=(2, 2, 2, 3))
    before = x.copy(), kernel.copy()
    one = reference.conv(x, kernel, strides=2, padding=1, input_dilation=2, kernel_dilation=3)
    two = reference.conv(x, kernel, strides=[2, 2], padding=[1, (1, 1)], input_dilation=(2, 2), kernel_dilation=(3, 3))
    np.testing.assert_array_equal(one, two)
    g = rng.normal(size=one.shape)
    options = {"strides": 2, "padding": 1, "input_dilation": 2, "kernel_dilation": 3}
    reference.conv_input_grad(g, kernel, x.shape, **options)
    np.testing.assert_array_equal(reference.max_pool(x, 2, 2), reference.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(reference.max_pool(x, 2), reference.max_pool(x, 2, 1))
    np.testing.assert_array_equal(reference.unfold(x, 2), reference.unfold(x, [2, 2], strides=(1, 1)))
    np.testing.assert_array_equal((x, kernel)[0], before[0])
    np.testing.assert_array_equal((x, kernel)[1], before[1])


@pytest.mark.parametrize(
    ("operator", "gradient"),
    [
        (reference.conv, reference.conv_kernel_grad),
        (reference.conv, reference.conv_input_grad),
        (reference.max_pool, reference.max_pool_grad),
        (reference.min_pool, reference.min_pool_grad),
        (reference.sum_pool, reference.sum_pool_grad),
        (reference.avg_pool, reference.avg_pool_grad),
        (reference.lp_pool, reference.lp_pool_grad),
    ],
)
def test_a_gradient_has_its_operator_s_options(operator, gradient):
    defaults = lambda f: {
        name: parameter.default
        for name, parameter in inspect.signature(f).parameters.items()
        if parameter.default is not parameter.empty and name not in ("bias", "return_indices")
    }
    assert defaults(gradient) == defaults(operator)
    assert defaults(gradient).get("ceil_mode") in (False, None)


def test_wrong_options_are_refused():
    x, kernel = np.zeros((1, 5, 5, 2)), np.zeros((3, 3, 2, 2))
    for wrong in ("FULL", (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"FULL|shorter|longer"):
            reference.conv(x, kernel, padding=wrong)
    with pytest.raises(ValueError, match="shorter"):
        reference.conv(x, kernel, strides=(1,))
    with pytest.raises(ValueError, match="equal division"):
        reference.conv(x, kernel, feature_group_count=3)
    with pytest.raises(ValueError, match="output_padding=1 must be 0"):
        reference.conv_transpose(x, kernel, padding="SAME", output_padding=1)


def test_a_real_layer():
    rng = np.random.default_rng(9)
    x, kernel = rng.normal(size=(2, 56, 56, 64)), rng.normal(size=(3, 3, 64, 64))
    y = reference.conv(x, kernel, padding="SAME")
    g = rng.normal(size=y.shape)
    np.testing.assert_allclose(y[1, 20, 30], np.einsum("hwi,hwio->o", x[1, 19:22, 29:32], kernel))
    np.testing.assert_allclose(y[0, 0, 55], np.einsum("hwi,hwio->o", x[0, :2, 54:], kernel[1:, :2]))
    number = (y * g).sum()
    np.testing.assert_allclose((x * reference.conv_input_grad(g, kernel, x.shape, padding="SAME")).sum(), number)
    dkernel = reference.conv_kernel_grad(x, g, kernel.shape, padding="SAME")
    np.testing.assert_allclose((kernel * dkernel).sum(), number)


SENTENCES = [
    "y is the cross-correlation of x with w",
    "the valid cross-correlation of x with g (stride and dilation change places)",
    "g summed over batch and space",
    "the full convolution of g, dilated by the stride and zero-padded, with the kernel turned by 180 degrees",
    "All three products are bilinear, and the derivative of each is made of the other two",
    "transposed convolution is the input gradient under another name",
    "max pooling is a gather by the winner's index",
    "its gradient the scatter to it (all others get 0)",
    "and each is the other's derivative",
    "average pooling is linear; its gradient spreads g / window size evenly",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_documented_sentences_stand_in_the_code(sentence):
    source = re.sub(r"[\s#]+", " ", inspect.getsource(reference)).lower()
    assert sentence.lower() in source


def test_nothing_comes_from_the_rest_of_the_library():
    tree = ast.parse(inspect.getsource(reference))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    ours = {"collections.abc", "dataclasses", "itertools", "math", "numpy", "numpy.typing", "typing"}
    assert all(isinstance(node, ast.Import) or node.level == 0 for node in imports)
    assert names <= ours
