"""1x1 layers: the kernel gradient summed up in parts of its places, and how the products of groups are called."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import matmul, windows


@pytest.mark.parametrize(
    ("channels", "out", "rows", "most_transposed", "sums"),
    [
        (5, 3, 3, None, "batched"),
        (3, 5, 3, None, "batched"),
        (80, 64, 60, None, "batched transposed"),  # 64 channels are turned round first,
        (64, 80, 60, 1000, "loop"),  # in a loop where they are many bytes
        (64, 80, 3, None, "one"),  # 20 KB, of which several would be half of what 84 places have
        (400, 300, 20, None, "one"),  # 480 KB
    ],
)
def test_in_parts(monkeypatch, channels, out, rows, most_transposed, sums):
    """A small sum is one of several, each of some of the places: a batched product, the narrower operand first."""
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, (rows, 4, 7, n)).astype(np.float32) for n in (channels, out))
    shape = (1, 1, channels, out)
    form = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, shape, algorithm={"kernel_grad": "matmul"}))
    monkeypatch.setattr(windows, "PART_FLOPS", 1.0)
    if most_transposed is not None:
        monkeypatch.setattr(matmul, "MOST_TRANSPOSED", most_transposed)
    jax.clear_caches()
    text = form.lower(x, g).as_text()
    (product,) = re.findall(r"stablehlo.dot_general.*", text)
    first, second = ([int(n) for n in shape.split("x")] for shape in re.findall(r"tensor<([0-9x]*)xf32>", product)[:2])
    if "batched" in sums:
        parts, places = first[0], 28 * rows // first[0]
        narrow, wide = sorted((channels, out))
        assert parts > 1
        assert first == ([parts, narrow, places] if "transposed" in sums else [parts, places, narrow])
        assert second == [parts, places, wide]
    assert ("batching_dims" in product) == ("batched" in sums)
    assert ("while" in text and "batching_dims" not in product) == (sums == "loop")
    np.testing.assert_array_equal(form(x, g), reference.conv_kernel_grad(x, g, shape))  # whole numbers: exact
    jax.clear_caches()


@pytest.mark.parametrize(
    ("places", "groups", "channels", "products"),
    [
        (12, 3, (160, 40), {"joined"}),  # done before three are called
        (2500, 3, (160, 40), {"apart"}),
        (2500, 2, (64, 64), {"joined", "apart"}),  # forward a block-diagonal matrix, for a kernel gradient too large
        (60, 32, (4, 4), {"batched"}),
    ],
)
def test_products_of_groups(places, groups, channels, products):
    """One block-diagonal matrix for few small groups, a product a group for up to 16, a batched one for more."""
    rng = np.random.default_rng(0)
    c, o = channels
    x, g = (rng.integers(-2, 3, (places, 1, groups * n)).astype(np.float32) for n in (c, o))
    w = rng.integers(-2, 3, (1, c, groups * o)).astype(np.float32)
    how = {"feature_group_count": groups, "algorithm": "matmul"}
    forms = [
        (lambda x, w: jconv.conv(x, w, **how), (x, w), reference.conv(x, w, feature_group_count=groups)),
        (
            lambda x, g: jconv.conv_kernel_grad(x, g, w.shape, **how),
            (x, g),
            reference.conv_kernel_grad(x, g, w.shape, feature_group_count=groups),
        ),
    ]
    expected = {"joined": (1, 0), "apart": (groups, 0), "batched": (1, 1)}
    seen = []
    for form, operands, want in forms:
        np.testing.assert_array_equal(form(*operands), want)  # whole numbers: exact
        dots = re.findall(r"stablehlo.dot_general.*", jax.jit(form).lower(*operands).as_text())
        seen.append((len(dots), sum("batching_dims" in dot for dot in dots)))
    assert set(seen) == {expected[product] for product in products}, seen
