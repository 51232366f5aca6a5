"""The order of an epoch, batches that are ready in time, and evaluation."""

import gc
import threading
import time

import numpy as np
import pytest

from experiments.train.data import Batches, Split, evaluation_batches, order

FIRST_ORDER, OTHER_ORDER = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4], [7, 1, 9, 6, 0, 4, 2, 8, 3, 5]


def split(n=23):
    return Split(
        np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8),
        np.arange(n, dtype=np.int32),
    )


def places(batches):
    with batches:
        return [labels.tolist() for _, labels in batches]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_the_order_is_a_permutation_that_seed_and_epoch_decide():
    assert sorted(order(0, 0, 1000)) == list(range(1000))
    np.testing.assert_array_equal(order(3, 5, 1000), order(3, 5, 1000))
    orders = [order(seed, epoch, 1000).tolist() for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9
    assert order(0, 0, 0).size == 0
    assert order(2**40, 1, 5).tolist() == order(np.int64(2**40), np.int32(1), 5).tolist()


def test_the_order_is_the_same_in_every_version():
    assert order(0, 0, 10).tolist() == FIRST_ORDER
    assert order(7, 3, 10).tolist() == OTHER_ORDER


def test_every_image_may_come_first():
    firsts = np.bincount([order(seed, 0, 10)[0] for seed in range(1000)], minlength=10)
    assert firsts.min() > 60  # 100 expected, standard deviation 9.5


@pytest.mark.parametrize("arguments", [(-1, 0, 5), (0, -1, 5), (0, 0, -5), (0.5, 0, 5), (True, 0, 5)], ids=str)
def test_wrong_arguments_of_order(arguments):
    with pytest.raises(ValueError, match=r"order: .*an integer from 0 expected"):
        order(*arguments)


def test_an_epoch_holds_each_image_at_most_once_with_its_label():
    data = split()
    with Batches(data, 5, seed=1, epoch=2) as batches:
        assert len(batches) == 4
        seen = []
        for images, labels in batches:
            assert images.shape == (5, 2, 3, 1)
            np.testing.assert_array_equal(images, data.images[labels])
            seen += labels.tolist()
        assert len(batches) == 0
    assert seen == order(1, 2, 23)[:20].tolist()


def test_it_starts_at_any_batch():
    whole = places(Batches(split(), 5, seed=1, epoch=2))
    for start in range(5):
        assert places(Batches(split(), 5, seed=1, epoch=2, start=start)) == whole[start:]


def test_its_thread_ends_with_the_iteration_with_close_and_when_it_is_forgotten():
    assert not threads()
    assert len(list(Batches(split(), 5, seed=0, epoch=0))) == 4
    assert not threads()
    batches = Batches(split(), 1, seed=0, epoch=0)
    next(batches)
    assert threads()
    batches.close()
    batches.close()
    assert not threads()
    assert list(batches) == []
    batches = Batches(split(), 1, seed=0, epoch=0)
    next(batches)
    del batches
    gc.collect()
    until = time.monotonic() + 10
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert not threads()


def test_no_more_than_depth_are_made_ahead():
    class Counting:
        labels = np.arange(100)
        made = 0

        @property
        def images(self):
            Counting.made += 1
            return np.zeros((100, 1, 1, 1), np.uint8)

    with Batches(Counting(), 1, seed=0, epoch=0, depth=3) as batches:
        Counting.made = 0  # what asking for the length took
        for taken in range(5):
            time.sleep(0.05)
            assert Counting.made <= taken + 3
            next(batches)


class Slow:
    """Images that take 20 ms a batch."""

    def __init__(self):
        self.images, self.labels = np.zeros((10, 1, 1, 1), np.uint8), SlowLabels(np.arange(10))


class SlowLabels(np.ndarray):
    def __new__(cls, values):
        return values.view(cls)

    def __getitem__(self, chosen):
        time.sleep(0.02)
        return super().__getitem__(chosen)


def test_a_slow_step_never_waits_and_a_fast_one_is_counted():
    with Batches(Slow(), 1, seed=0, epoch=0) as batches:
        for _ in batches:
            pass
        assert 0.15 < batches.waited_seconds < 2
    with Batches(Slow(), 1, seed=0, epoch=0) as batches:
        time.sleep(0.3)
        waited = []
        for _ in batches:
            waited.append(batches.waited_seconds)
            time.sleep(0.1)
        assert waited[-1] < 0.02


def test_an_error_in_its_thread_is_told_to_who_asks():
    class Torn:
        images, labels = np.zeros((10, 1, 1, 1), np.uint8), np.arange(3)

    with pytest.raises(IndexError), Batches(Torn(), 5, seed=0, epoch=0) as batches:
        next(batches)
    assert not threads()


@pytest.mark.parametrize(
    "arguments", [{"batch": 0}, {"batch": 24}, {"start": -1}, {"start": 5}, {"depth": 0}, {"seed": -1}], ids=str
)
def test_wrong_arguments(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Batches(split(), **({"batch": 5, "seed": 0, "epoch": 0} | arguments))
    assert not threads()


@pytest.mark.parametrize("batch", [1, 5, 23, 30])
def test_evaluation_sees_every_image_once_and_says_which_are_none(batch):
    seen = []
    for images, labels, mask in evaluation_batches(split(), batch):
        assert images.shape == (batch, 2, 3, 1)
        assert (images.dtype, labels.dtype, mask.dtype) == (np.uint8, np.int32, bool)
        assert labels.shape == mask.shape == (batch,)
        np.testing.assert_array_equal(images[mask, 0, 0, 0], labels[mask])
        assert not images[~mask].any()
        seen += labels[mask].tolist()
    assert seen == list(range(23))
    with pytest.raises(ValueError, match="batch=0"):
        evaluation_batches(split(), 0)
