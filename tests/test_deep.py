"""The deep run in small: every family passes, a planted fault is found, and its line runs it again."""

import json
import re

import jax
import numpy as np
import pytest

from jconv import reference
from tests import deep
from tests.deep_families import FAMILIES, Draw, Want


def test_a_geometry_of_each_family_passes(tmp_path, capsys):
    count = len(FAMILIES) + 1
    assert deep.main(["--geometries", str(count), "--seed", "3", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"seed 3, saved in {tmp_path / 'deep-3.json'}\n")
    assert out.endswith(f"{count} passed, 0 failed\n")
    saved = json.loads((tmp_path / "deep-3.json").read_text())
    assert (saved["seed"], saved["geometries"], saved["failures"]) == (3, count, [])


def test_a_planted_fault_is_found_and_its_line_runs_it_again(tmp_path, capsys, monkeypatch):
    """The oracle is made to disagree in the tenth digit, in all that is a kernel gradient."""
    right = reference.conv_kernel_grad
    monkeypatch.setattr(reference, "conv_kernel_grad", lambda *args, **options: right(*args, **options) * (1 + 1e-9))
    assert deep.main(["--geometries", "2", "--seed", "11", "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.endswith("1 passed, 1 failed\n")
    line = re.search(r"FAILED (--seed 11 --only 0)  conv in float64, Case\(.*AssertionError: .*dkernel", out)
    assert line, out
    failures = json.loads((tmp_path / "deep-11.json").read_text())["failures"]
    assert [failure["index"] for failure in failures] == [0]
    assert deep.main([*line[1].split(), "--out", str(tmp_path)]) == 1
    monkeypatch.undo()
    assert deep.main([*line[1].split(), "--out", str(tmp_path)]) == 0


def test_seeds_are_drawn_and_saved(tmp_path, capsys):
    assert deep.main(["--geometries", "0", "--out", str(tmp_path)]) == 0
    seed = int(re.match(r"seed (\d+)", capsys.readouterr().out)[1])
    assert json.loads((tmp_path / f"deep-{seed}.json").read_text())["seed"] == seed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_geometry_depends_on_seed_and_index_alone(family):
    make, dtypes = FAMILIES[family]
    first, again, low = (make(Draw(1, 7), np.dtype(jax.numpy.dtype(d))) for d in ("float64", "float64", dtypes[0]))
    assert repr(first.case) == repr(again.case) == repr(low.case)
    jax.tree.map(np.testing.assert_array_equal, first.arrays, again.arrays)
    assert repr(make(Draw(1, 8), np.dtype("float64")).case) != repr(first.case)


def test_all_dtypes_come_in_turn():
    seen = {deep.settle(index) for index in range(9 * len(FAMILIES))}
    assert seen == {(family, dtype) for family, (_, dtypes) in FAMILIES.items() for dtype in dtypes}


def test_how_near_a_result_must_be():
    want = Want(np.array([1.0, 100.0]), terms=4, size=200.0)
    deep.near("y", np.array([1.0, 100.0]) + 1e-8, want, "float64")
    with pytest.raises(AssertionError, match="y"):
        deep.near("y", np.array([1.0, 100.0]) + 1e-7, want, "float64")
    half = np.array([1.0, 100.0], np.float16)
    deep.near("y", half + np.float16(0.0009), want, "float16")
    with pytest.raises(AssertionError, match="y"):
        deep.near("y", half * np.float16(1.003), want, "float16")
    with pytest.raises(AssertionError, match="y is float16"):
        deep.near("y", half, want, "float32")
    with pytest.raises(AssertionError, match=r"y has shape \(1,\)"):
        deep.near("y", half[:1], want, "float16")
    deep.near("y", np.array([3], np.int8), Want(np.array([259])), "int8")  # wraps, as lax does
    with pytest.raises(AssertionError, match="y"):
        deep.near("y", np.array([4], np.int8), Want(np.array([259])), "int8")
