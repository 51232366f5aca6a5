"""Checkpoints: whole or not there, kept by age and accuracy, and damage found wherever it is."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.train import checkpoints
from experiments.train.checkpoints import CheckpointError, Checkpoints

TREE = {
    "params": {"kernel": jnp.arange(600.0).reshape(20, 30)},
    "step": jnp.int32(7),
    "failed": jnp.bool(False),
    "average": {},
}


@pytest.fixture
def store(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", 2)
    yield store
    store.close()


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_it_comes_back_bit_for_bit(store):
    store.save(7, TREE, {"test_accuracy": 0.5, "note": [1, 2]})
    store.wait()
    found, info, problems = store.restore(TREE)
    chex.assert_trees_all_equal(found, TREE)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, TREE)
    assert (info, problems) == ({"step": 7, "test_accuracy": 0.5, "note": [1, 2]}, [])


def test_it_is_of_the_moment_it_was_asked_for(store):
    """The step after it is given the state's buffers to write into."""
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones_like(x), tree), donate_argnums=0)
    tree = {"kernel": jnp.zeros((500, 500))}
    store.warm(tree)
    store.save(1, tree, {})
    for _ in range(20):
        tree = change(tree)
    store.wait()
    found, _, _ = store.restore(tree)
    assert not found["kernel"].any()


def test_the_last_and_the_best_are_kept(store):
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, None), (4, 0.3), (5, 0.4)):
        store.save(step, TREE, {"test_accuracy": accuracy})
    store.wait()
    assert store.steps() == [2, 4, 5]


def test_where_none_is_there_is_none(store):
    assert store.restore(TREE) == (None, {}, [])


def test_what_a_kill_left_half_written_is_removed(store, tmp_path):
    store.save(1, TREE, {})
    store.wait()
    shutil.copytree(tmp_path / "checkpoints" / "00000001", tmp_path / "checkpoints" / "00000002.partial")
    again = Checkpoints(tmp_path / "checkpoints", 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    again.close()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_damage_of_any_file_is_found_and_named(store, tmp_path, damage):
    store.save(1, TREE, {})
    store.wait()
    whole = tmp_path / "checkpoints" / "00000001"
    assert checkpoints.damaged(whole) is None
    assert len(files(whole)) > 5
    for path in files(whole):
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        hurt = copy / path.relative_to(whole)
        content = bytearray(hurt.read_bytes())
        if damage == "removed":
            hurt.unlink()
        elif damage == "truncated":
            hurt.write_bytes(content[:-1])
        else:
            content[len(content) // 2] ^= 1
            hurt.write_bytes(content)
        told = checkpoints.damaged(copy)
        assert told is not None, path
        if path.name != "manifest.json":
            assert told.startswith(str(path.relative_to(whole))), (path, told)
        shutil.rmtree(copy)


def test_the_one_before_a_damaged_one_is_used(store, tmp_path):
    for step in (1, 2):
        store.save(step, TREE | {"step": jnp.int32(step)}, {})
    store.wait()
    run = tmp_path / "checkpoints" / "00000002" / "run.json"
    run.write_bytes(run.read_bytes()[:-3])
    found, info, problems = store.restore(TREE)
    assert (int(found["step"]), info["step"]) == (1, 1)
    assert len(problems) == 1
    assert problems[0].startswith("the checkpoint of step 2 is damaged: run.json has ")
    assert store.steps() == [1]  # the other is set aside


def test_where_every_one_is_damaged_it_says_so(store, tmp_path):
    store.save(1, TREE, {})
    store.wait()
    (tmp_path / "checkpoints" / "00000001" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step 1 is damaged: manifest.json cannot be read; no whole one is left"):
        store.restore(TREE)


def test_one_that_cannot_be_written_is_told_with_the_last_good_one(store, tmp_path, monkeypatch):
    store.save(1, TREE, {})
    store.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "manifest", full)
    store.save(2, TREE, {})
    told = r"the checkpoint of step 2 could not be written \(No space left on device\); the last good one is of step 1"
    with pytest.raises(CheckpointError, match=told):
        store.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_the_manifest_names_every_file(store, tmp_path):
    store.save(1, TREE, {})
    store.wait()
    folder = tmp_path / "checkpoints" / "00000001"
    told = set(json.loads((folder / "manifest.json").read_bytes())["files"])
    assert told | {"manifest.json"} == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
