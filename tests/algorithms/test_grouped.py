"""Groups one after the other: a kernel gradient's sum is in pieces only where they are long."""

import re

import jax
import numpy as np
import pytest

import jconv
from jconv import reference


@pytest.mark.parametrize(("places", "parts"), [(300, 1), (31, 1), (1024, 4), (1031, 4), (4096, 8), (4100, 5)])
def test_parts_of_a_sum(places, parts):
    """Each of 256 places or more: a long window's partial sums would be larger than what is summed."""
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-3, 4, (1, places, n)).astype(np.float32) for n in (4, 6))
    options = {"padding": ((2, 2),), "feature_group_count": 2}
    f = jax.jit(lambda x, g: jconv.conv_kernel_grad(x, g, (5, 2, 6), algorithm={"kernel_grad": "grouped"}, **options))
    text = f.lower(x, g).as_text()
    ends = re.findall(r"cond \{\s*(?:%\S+ = stablehlo.constant dense<(\d+)>)?", text)
    assert set(ends) == ({str(parts)} if parts > 1 else set())  # of the loops of both groups
    np.testing.assert_array_equal(f(x, g), reference.conv_kernel_grad(x, g, (5, 2, 6), **options))


@pytest.mark.parametrize(("batch", "loops"), [(4, False), (64, True)])
def test_images_of_wide_groups_are_taken_at_once(batch, loops):
    """Of a group 4 MiB of input and result at a time; each part would turn the group's kernel into its form anew."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (batch, 13, 13, 128)).astype(np.float32)
    k = rng.integers(-3, 4, (3, 3, 64, 128)).astype(np.float32)
    options = {"padding": 1, "feature_group_count": 2}
    f = jax.jit(lambda x, k: jconv.conv(x, k, algorithm={"forward": "grouped"}, **options))
    assert ("stablehlo.while" in f.lower(x, k).as_text()) == loops
    few = x[:4]
    np.testing.assert_allclose(f(few, k), reference.conv(few, k, **options), atol=1e-2)
