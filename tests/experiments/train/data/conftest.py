"""Opens data sets with a cache of the test's own."""

import functools

import pytest

from experiments.train.data import open_dataset


@pytest.fixture
def opened(tmp_path):
    return functools.partial(open_dataset, cache_dir=tmp_path / "cache")
