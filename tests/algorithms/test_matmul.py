"""1x1 layers: the kernel gradient summed up in parts of its places, and how the products of groups are called."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference
from jconv.algorithms import windows


@pytest.mark.parametrize(
    ("channels", "out", "parts"),
    [
        (5, 3, 4),  # of 84 places: more sums of 15 elements would be half of what is read for them
        (3, 5, 4),
        (400, 300, 1),  # a sum of 480 KB is not added to
        (64, 80, 1),  # nor one of 20 KB for 84 places
    ],
)
def test_in_parts(monkeypatch, channels, out, parts):
    """The parts of the places are a batched product, the narrower operand first."""
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, (3, 4, 7, n)).astype(np.float32) for n in (channels, out))
    shape = (1, 1, channels, out)
    form = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, shape, algorithm={"kernel_grad": "matmul"}))
    monkeypatch.setattr(windows, "PART_FLOPS", 1.0)
    jax.clear_caches()
    (product,) = re.findall(r"stablehlo.dot_general.*", form.lower(x, g).as_text())
    each = f"tensor<{parts}x{84 // parts}x{{}}xf32>"
    expected = [each.format(n) for n in sorted((channels, out))] if parts > 1 else []
    assert ("batching_dims" in product) == (parts > 1)
    assert re.findall(r"tensor<[^>]*>", product)[:2] == expected or parts == 1
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
