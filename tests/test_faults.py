"""A run that is killed, whose disk is full, that is told to stop: tests/faults.py, with five kills."""

import pytest

from tests import faults


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def test_killed_at_random_moments_it_ends_with_the_same_bits(place):
    data = faults.images(place)
    whole, seconds = faults.unhurt(data, place)
    faults.kill(data, place, whole, seconds, kills=5, seed=0)
    faults.full(data, place, whole)
