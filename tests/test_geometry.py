"""Static window arithmetic against brute force: every (output, tap, input) triple of a small grid, written out."""

import dataclasses
import itertools
import math
import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jconv import geometry as geo
from jconv.geometry import Axis, Geometry

GRID = {
    "input": range(7),
    "window": range(1, 5),
    "stride": range(1, 4),
    "dilation": range(1, 4),
    "input_dilation": range(1, 4),
    "low": range(-3, 5),
    "high": range(-3, 5),
}


GRID_AXES = 31_530


def row(length, dilation, low, high):
    """The padded input written out: the element at each position, None for a zero."""
    elements = [a for i in range(length) for a in [i] + [None] * (dilation - 1)]
    elements = elements[: len(elements) - dilation + 1] if length else []
    elements = [None] * low + elements if low >= 0 else elements[-low:]
    return elements + [None] * high if high >= 0 else elements[:high]


def triples(axis):
    """All (output, tap, input) that meet, straight from the relation p*stride + t*dilation = a*input_dilation + low."""
    return {
        (p, t, a)
        for p, t, a in itertools.product(range(axis.output), range(axis.window), range(axis.input))
        if p * axis.stride + t * axis.dilation == a * axis.input_dilation + axis.low
    }


def axes(n):
    """Every axis of the grid over n elements where the window fits, with the high padding that it was made with."""
    rest = [GRID[name] for name in ("window", "stride", "dilation", "input_dilation", "low", "high")]
    for k, s, d, e, low, high in itertools.product(*rest):
        output = geo.places((n - 1) * e + 1 if n else 0, k, s, d, (low, high))
        if output:
            yield Axis(n, k, output, s, d, e, low), high


@pytest.mark.parametrize("n", GRID["input"])
def test_a_window_sees_what_the_padded_row_shows(n):
    for axis, high in axes(n):
        padded = row(n, axis.input_dilation, axis.low, high)
        if len(padded) != geo.dilated(n, axis.input_dilation) + axis.low + high:
            continue  # one side crops more than there is, and a list shows less than nothing as nothing
        reach = (axis.window - 1) * axis.dilation + 1
        starts = [p for p in range(0, len(padded), axis.stride) if p + reach <= len(padded)]
        assert len(starts) == axis.output, axis
        seen = {
            (i, t, padded[p + t * axis.dilation])
            for i, p in enumerate(starts)
            for t in range(axis.window)
            if padded[p + t * axis.dilation] is not None
        }
        assert seen == triples(axis), axis


def test_the_grid_is_large():
    """Issue 3 asks for an exhaustive one: this many axes, each in itself and as the axis of both gradients."""
    assert sum(1 for n in GRID["input"] for _ in axes(n)) == GRID_AXES


@pytest.mark.parametrize("n", GRID["input"])
def test_three_products_one_relation(n):
    for axis, _ in axes(n):
        met = triples(axis)
        # The kernel gradient's places are taps, its taps are places.
        assert triples(axis.for_kernel_grad()) == {(t, p, a) for p, t, a in met}, axis
        # The input gradient's places are the elements, and its window is turned.
        assert triples(axis.for_input_grad()) == {(a, axis.window - 1 - t, p) for p, t, a in met}, axis
        assert axis.for_kernel_grad().for_kernel_grad() == axis
        assert axis.for_input_grad().for_input_grad() == axis


@pytest.mark.parametrize("n", GRID["input"])
def test_high_padding_ends_where_the_last_window_ends(n):
    for axis, _ in axes(n):
        length = geo.dilated(n, axis.input_dilation)
        assert axis.low + length + axis.high == (axis.output - 1) * axis.stride + axis.reach
        for derived in (axis, axis.for_kernel_grad(), axis.for_input_grad()):
            if derived.output:
                padding = (derived.low, derived.high)
                length = geo.dilated(derived.input, derived.input_dilation)
                got = geo.places(length, derived.window, derived.stride, derived.dilation, padding)
                assert got == derived.output, derived
        beyond = {p * axis.stride + t * axis.dilation for p in range(axis.output) for t in range(axis.window)}
        outside = min(beyond) < axis.low or max(beyond) >= axis.low + geo.dilated(n, axis.input_dilation)
        assert axis.pads == outside, axis
    assert Axis(3, 2, 0).high == 0


@pytest.mark.parametrize("n", GRID["input"])
def test_crop_leaves_out_only_what_no_window_meets(n):
    for axis, _ in axes(n):
        for derived in (axis, axis.for_kernel_grad(), axis.for_input_grad()):
            left, right, cropped = derived.crop()
            assert 0 <= left <= left + right <= derived.input
            assert cropped.input == derived.input - left - right
            met = triples(derived)
            assert all(left <= a < derived.input - right for _, _, a in met), derived
            assert triples(cropped) == {(p, t, a - left) for p, t, a in met}, derived
            assert (cropped.low >= 0 and cropped.high >= 0) or cropped.input == 0, derived
            assert dataclasses.replace(cropped, input=derived.input, low=derived.low) == derived


@pytest.mark.parametrize("n", GRID["input"])
def test_taps_inside(n):
    for axis, _ in axes(n):
        if axis.input_dilation == 1:
            for place in range(axis.output):
                want = sorted(t for p, t, _ in triples(axis) if p == place)
                assert list(axis.taps_inside(place)) == want, (axis, place)


def test_places_ceil_written_out():
    """PyTorch's ceil_mode: rounded up, but a last window that starts beyond the input and its left padding is dropped."""
    for n, k, s, d, low, high in itertools.product(range(7), range(1, 4), range(1, 5), range(1, 3), range(3), range(3)):
        reach, total = (k - 1) * d + 1, n + low + high
        starts = [0] if total >= reach or total > reach - s else []
        while starts and starts[-1] + reach < total:  # something is left over: one window more
            starts.append(starts[-1] + s)
        if starts and starts[-1] >= n + low:
            starts.pop()
        assert geo.places_ceil(n, k, s, d, (low, high)) == len(starts), (n, k, s, d, low, high)


# (length, window, stride, dilation, padding), places of max_pool1d(..., ceil_mode=True): PyTorch 2.13 on a CPU said so.
PYTORCH_CEIL = [
    ((4, 2, 2, 1, 0), 2), ((5, 2, 2, 1, 0), 3), ((6, 3, 2, 1, 0), 3), ((7, 3, 2, 1, 0), 3), ((5, 1, 3, 1, 0), 2),
    ((6, 3, 2, 1, 1), 4), ((4, 2, 2, 1, 1), 3), ((5, 2, 2, 1, 1), 3), ((3, 2, 4, 1, 1), 1), ((5, 2, 4, 1, 1), 2),
    ((7, 3, 2, 2, 0), 2), ((8, 3, 3, 2, 1), 3), ((9, 3, 3, 2, 0), 3), ((3, 3, 3, 1, 1), 2), ((4, 3, 3, 1, 1), 2),
]  # fmt: skip


@pytest.mark.parametrize(("axis", "want"), PYTORCH_CEIL)
def test_places_ceil_is_pytorchs(axis, want):
    n, k, s, d, pad = axis
    assert geo.places_ceil(n, k, s, d, (pad, pad)) == want


def test_places_and_dilated():
    assert [geo.dilated(n, 3) for n in range(4)] == [0, 1, 4, 7]
    assert geo.places(5, 3, 1, 1, (0, 0)) == 3
    assert geo.places(5, 3, 1, 3, (0, 0)) == 0  # the dilated window covers 7
    assert geo.places(5, 3, 2, 1, (1, 1)) == 3
    assert geo.places(0, 1, 1, 1, (0, 0)) == 0
    assert geo.places(5, 2, 1, 1, (-3, -3)) == 0


@pytest.mark.parametrize("mode", ["SAME", "SAME_LOWER", "VALID"])
def test_padding_pair_is_laxs(mode):
    for n, k, s, d in itertools.product(range(1, 9), range(1, 5), range(1, 5), range(1, 4)):
        (want,) = lax.padtype_to_pads((n,), ((k - 1) * d + 1,), (s,), mode)
        assert geo.padding_pair(mode, n, k, s, d) == tuple(want), (n, k, s, d)
        assert mode == "VALID" or geo.places(n, k, s, d, want) == math.ceil(n / s)


@pytest.mark.parametrize("mode", ["CIRCULAR", "REFLECT", "CAUSAL"])
def test_padding_pair_is_flaxs(mode):
    """Flax pads, then convolves: a kernel with one tap that is not 0 shows how far it padded on the left."""
    for n, k, d in itertools.product((8, 9), range(1, 5), range(1, 3)):
        low, high = geo.padding_pair(mode, n, k, 1, d)
        layer = nn.Conv(1, (k,), padding=mode, kernel_dilation=(d,), use_bias=False)
        kernel = jnp.zeros((k, 1, 1)).at[0].set(1.0)
        y = layer.apply({"params": {"kernel": kernel}}, jnp.arange(1.0, n + 1).reshape(1, n, 1))
        assert y.shape[1] == n + low + high - (k - 1) * d == n
        assert y[0, low, 0] == 1.0  # tap 0 of the window at place `low` lies on the first element


def test_padding_pair_of_numbers_and_repeats():
    assert geo.padding_pair((3, -1), 5, 2, 1, 1) == (3, -1)
    assert geo.padding_pair("CAUSAL", 5, 3, 2, 2) == (4, 0)
    for mode in geo.VALUE_MODES:
        assert geo.padding_pair(mode, 5, 4, 2, 1) == (1, 2)
        assert geo.padding_pair(mode, 5, 3, 1, 2) == (2, 2)
        assert geo.padding_pair(mode, 5, 1, 1, 1) == (0, 0)


def test_adaptive_windows():
    for n, m in itertools.product(range(1, 12), range(1, 12)):
        windows = geo.adaptive_windows(n, m)
        assert windows == tuple((math.floor(i * n / m), math.ceil((i + 1) * n / m)) for i in range(m))
        assert {a for start, end in windows for a in range(start, end)} == set(range(n))
    assert geo.adaptive_windows(3, 5) == ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))  # upsampling: PyTorch's own


def test_sliding():
    got = geo.sliding("f", (6, 7), (3, 2), (2, 3), "SAME", (1, 2), (1, 1), groups=4)
    assert got == Geometry((Axis(6, 3, 3, 2, 1, 1, 0), Axis(7, 2, 3, 3, 2, 1, 1)), 4)
    assert (got.rank, got.input, got.window, got.output, got.taps) == (2, (6, 7), (3, 2), (3, 3), 6)
    got = geo.sliding("f", (4,), (2,), (1,), ((1, -1),), (1,), (3,))
    assert got.axes == (Axis(4, 2, 9, 1, 1, 3, 1),)
    floor = geo.sliding("f", (6,), (3,), (2,), "VALID", (1,))
    ceil = geo.sliding("f", (6,), (3,), (2,), "VALID", (1,), count=geo.places_ceil)
    assert (floor.output, ceil.output) == ((2,), (3,))
    assert ceil.axes[0].high == 1


def test_geometry_takes_every_axis_along():
    got = geo.sliding("f", (6, 7), (3, 2), (2, 3), "SAME", (1, 2), (2, 1), groups=2)
    assert got.for_kernel_grad().axes == tuple(axis.for_kernel_grad() for axis in got.axes)
    assert got.for_input_grad().axes == tuple(axis.for_input_grad() for axis in got.axes)
    assert got.for_kernel_grad().groups == got.for_input_grad().groups == 2
    assert (got.for_kernel_grad().window, got.for_kernel_grad().output) == (got.output, got.window)
    assert (got.for_input_grad().input, got.for_input_grad().output) == (got.output, got.input)


def test_geometry_is_a_static_value():
    one, two = (geo.sliding("f", (6,), (3,), (2,), "SAME", (1,)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, one.for_input_grad()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.groups = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.axes[0].low = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((2,), (3,), (1,), "VALID", (1,)),
            "the window does not fit on spatial axis 0: window 3 with dilation 1 covers 3",
        ),
        (((9, 2), (1, 2), (1, 1), "VALID", (1, 2)), "axis 1: window 2 with dilation 2 covers 3 elements, the input 2"),
        (((4,), (2,), (1,), ((-2, -1),), (1,)), r"padding \(-2, -1\) has 1; the output would be empty"),
        (((4,), (2,), (1,), ((-3, -9),), (1,), (2,)), r"padding \(-3, -9\) and dilation 2 has 0"),
        (((0,), (1,), (1,), "SAME", (1,)), "the output would be empty"),
    ],
)
def test_sliding_where_the_window_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match="^fun: .*" + message):
        geo.sliding("fun", *arguments)


def test_reading_integers():
    assert geo.integer("f", "n", np.int8(3)) == 3
    assert type(geo.integer("f", "n", np.int64(3))) is int
    assert geo.integer("f", "n", jnp.int32(3)) == 3
    assert geo.integers("f", "n", 2, 3) == (2, 2, 2)
    assert geo.integers("f", "n", [1, np.int32(2)], 2) == (1, 2)
    assert geo.integers("f", "n", np.array([4, 5]), 2) == (4, 5)
    assert geo.integers("f", "n", (7, 8, 9), None) == (7, 8, 9)
    assert geo.member("f", "m", "a", ("a", "b")) == "a"


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (lambda: geo.integer("f", "n", 1.0), TypeError, "f: n=1.0 must hold integers, and 1.0 is of type float"),
        (lambda: geo.integer("f", "n", True), TypeError, "f: n=True must hold integers, and True is of type bool"),
        (lambda: geo.integer("f", "n", None), TypeError, "f: n=None must hold integers"),
        (lambda: geo.integer("f", "n", "3"), TypeError, "f: n='3' must hold integers"),
        (lambda: geo.integer("f", "n", jnp.float32(3)), TypeError, "f: n=.* must hold"),
        (lambda: geo.integer("f", "n", 0, 1), ValueError, "f: n=0 must be at least 1, got 0"),
        (lambda: geo.integers("f", "n", (1, 0), 2, 1), ValueError, r"f: n=\(1, 0\) must be at least 1, got 0"),
        (lambda: geo.integers("f", "n", (1, 2), 3), ValueError, r"f: n=\(1, 2\) must be one integer or 3 of them"),
        (lambda: geo.integers("f", "n", (1, 2.0), 2), TypeError, r"f: n=\(1, 2.0\) must hold integers, and 2.0"),
        (lambda: geo.integers("f", "n", "12", 2), TypeError, "f: n='12' must hold integers"),
        (lambda: geo.integers("f", "n", 3, None), TypeError, "f: n=3 must be a sequence of integers"),
        (lambda: geo.integers("f", "n", {1: 2}, 1), TypeError, "f: n=.* must hold integers"),
        (lambda: geo.member("f", "m", "c", ("a", "b")), ValueError, "f: m='c' must be one of 'a', 'b'"),
        (lambda: geo.member("f", "m", 1, ("a", "b")), TypeError, "f: m=1 must be a string, one of 'a', 'b'"),
        (lambda: geo.padding_form("f", "WIDE", 1), ValueError, "f: padding='WIDE' must be one of 'VALID', 'SAME'"),
        (lambda: geo.padding_form("f", "same", 1), ValueError, "f: padding='same' must be one of"),
        (lambda: geo.padding_form("f", "CAUSAL", 2), ValueError, "f: padding='CAUSAL' is for one spatial axis, .* 2"),
        (lambda: geo.padding_form("f", 1.5, 1), TypeError, "f: padding=1.5 must hold integers"),
        (lambda: geo.padding_form("f", None, 1), TypeError, "f: padding=None must hold integers"),
        (
            lambda: geo.padding_form("f", (1, 2), 1),
            ValueError,
            r"f: padding=\(1, 2\) must be a name, an integer, or 1 ent",
        ),
        (lambda: geo.padding_form("f", ((1, 2, 3),), 1), ValueError, r"must hold \(low, high\) pairs, got \(1, 2, 3\)"),
        (lambda: geo.padding_form("f", ((1, 2.5),), 1), TypeError, r"f: padding=\(\(1, 2.5\),\) must hold integers"),
        (lambda: geo.padding_form("f", ("SAME",), 1), TypeError, r"f: padding=\('SAME',\) must hold integers"),
    ],
)
def test_wrong_values_are_named(read, error, message):
    with pytest.raises(error, match=f"^{message}" if message.startswith("f:") else message):
        read()


def test_padding_forms():
    for mode in geo.PADDING_MODES:
        assert geo.padding_form("f", mode, 1) == mode
    pairs = ((1, 1), (1, 1))
    assert (
        geo.padding_form("f", 1, 2)
        == geo.padding_form("f", (1, 1), 2)
        == geo.padding_form("f", [1, (1, 1)], 2)
        == pairs
    )
    assert geo.padding_form("f", np.array([[1, 2], [3, -4]]), 2) == ((1, 2), (3, -4))
    assert geo.padding_form("f", np.int32(2), 1) == ((2, 2),)
    assert geo.padding_form("f", [[0, -1]], 1) == ((0, -1),)


def test_error_messages_show_what_the_user_wrote():
    with pytest.raises(
        TypeError, match=re.escape("conv: strides=[1, True] must hold integers, and True is of type bool")
    ):
        geo.integers("conv", "strides", [1, True], 2, 1)
