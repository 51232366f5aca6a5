"""Flip, crop and cutout against a loop in NumPy; their draws; under jit, in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train.data import augment
from experiments.train.data.augment import draw, transform

SETTINGS = {
    "nothing": {"flip": False, "crop": 0, "cutout": 0},
    "flip": {"flip": True, "crop": 0, "cutout": 0},
    "crop": {"flip": False, "crop": 2, "cutout": 0},
    "cutout": {"flip": False, "crop": 0, "cutout": 3},
    "even cutout": {"flip": False, "crop": 0, "cutout": 4},
    "all": {"flip": True, "crop": 3, "cutout": 3},
    "largest": {"flip": True, "crop": 5, "cutout": 6},
}


def in_loops(images, draws, flip, crop, cutout):
    """The same by NumPy's own padding and slices, one image after the other."""
    results = []
    for image, flipped, top, left, row, column in zip(images, *map(np.asarray, draws), strict=True):
        h, w, _ = image.shape
        padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)), mode="reflect") if crop else image
        result = padded[top : top + h, left : left + w] if crop else padded
        if flip and flipped:
            result = result[:, ::-1]
        result = result.copy()
        if cutout:
            first_row, first_column = row - cutout // 2, column - cutout // 2
            result[max(first_row, 0) : first_row + cutout, max(first_column, 0) : first_column + cutout] = 0
        results.append(result)
    return np.stack(results)


def batch(dtype=jnp.float32, n=40, shape=(6, 7, 3)):
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, *shape)), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equal_to_loops(settings, dtype):
    settings, images, key = SETTINGS[settings], batch(dtype), jax.random.key(3)
    got = jax.jit(lambda key, images: augment(key, images, **settings))(key, images)
    assert got.dtype == dtype
    want = in_loops(np.asarray(images, np.float32), draw(key, images.shape, settings["crop"]), **settings)
    np.testing.assert_array_equal(np.asarray(got, np.float32), want)


def test_the_key_decides_everything():
    images, settings = batch(), SETTINGS["all"]
    first = augment(jax.random.key(0), images, **settings)
    np.testing.assert_array_equal(first, augment(jax.random.key(0), images, **settings))
    np.testing.assert_array_equal(
        first, jax.jit(augment, static_argnames=settings)(jax.random.key(0), images, **settings)
    )
    assert (first != augment(jax.random.key(1), images, **settings)).any()


def test_draws_are_uniform():
    draws = draw(jax.random.key(0), (20_000, 6, 7, 3), crop=2)
    assert abs(np.mean(draws.flipped) - 0.5) < 0.02
    for drawn, limit in ((draws.top, 5), (draws.left, 5), (draws.centre_row, 6), (draws.centre_column, 7)):
        shares = np.bincount(drawn, minlength=limit) / 20_000
        assert len(shares) == limit
        np.testing.assert_allclose(shares, 1 / limit, atol=0.015)
    assert abs(np.corrcoef(np.stack(draws).astype(float)) - np.eye(5)).max() < 0.04


def test_no_number_is_made_up_and_nan_stays_in_its_place():
    images = batch().at[:, 3, 3].set(jnp.nan)
    got = np.asarray(augment(jax.random.key(0), images, flip=True, crop=2, cutout=0))
    assert np.isin(got[~np.isnan(got)], np.asarray(images)).all()
    assert np.isnan(got).any(-1).sum((1, 2)).max() <= 4  # itself and its reflections


def test_the_gradient_goes_back_to_where_each_pixel_came_from():
    images, draws = batch(n=5), draw(jax.random.key(1), (5, 6, 7, 3), 2)
    settings = SETTINGS["all"] | {"crop": 2}
    counts = jax.grad(lambda images: transform(images, draws, **settings).sum())(images)
    ones = np.arange(5 * 6 * 7 * 3, dtype=float).reshape(5, 6, 7, 3) + 1
    came = in_loops(ones, draws, **settings)
    want = np.bincount(came.astype(int).ravel(), minlength=ones.size + 1)[1:].reshape(ones.shape)
    np.testing.assert_array_equal(counts, want)


@pytest.mark.parametrize(
    ("images", "settings", "error", "message"),
    [
        (jnp.zeros((2, 6, 7, 3), jnp.uint8), {}, TypeError, "dtype uint8; a floating one expected"),
        (jnp.zeros((6, 7, 3)), {}, ValueError, r"shape \(6, 7, 3\)"),
        (batch(), {"crop": 6}, ValueError, "crop=6; 0 to 5 expected"),
        (batch(), {"crop": -1}, ValueError, "crop=-1"),
        (batch(), {"cutout": 7}, ValueError, "cutout=7; 0 to 6 expected"),
    ],
    ids=str,
)
def test_wrong_arguments(images, settings, error, message):
    with pytest.raises(error, match=message):
        augment(jax.random.key(0), images, **({"flip": False, "crop": 0, "cutout": 0} | settings))
