"""The cache: used, made anew where the source changed or it was damaged, whole whatever happens to its writers."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.train.data import cache, dataset, open_dataset
from tests.experiments.train.data.files import encoded, image_folder, picture

ROOT = Path(__file__).parents[4]


@pytest.fixture
def decodings(monkeypatch):
    """Grows by one whenever a source is read."""
    seen = []
    write = dataset._write
    monkeypatch.setattr(dataset, "_write", lambda *arguments: (seen.append(1), write(*arguments)))
    return seen


def test_the_second_opening_decodes_nothing_and_is_the_same(tmp_path, opened, decodings):
    root = image_folder(tmp_path / "data")
    first, second = opened(root), opened(root)
    assert len(decodings) == 1
    np.testing.assert_array_equal(first.train.images, second.train.images)
    same = ("classes", "checksum", "mean", "std", "problems", "notes", "form", "cache")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.cache.parent == tmp_path / "cache"


def test_the_checksum_is_of_the_contents_wherever_they_came_from(tmp_path, opened):
    first, moved = opened(image_folder(tmp_path / "one")), opened(image_folder(tmp_path / "two"))
    assert first.checksum == moved.checksum
    (tmp_path / "two" / "test" / "eel" / "001.png").write_bytes(encoded(picture(4)))
    assert opened(tmp_path / "two").checksum != first.checksum


def _changed(root):
    (root / "train" / "cat" / "000.png").write_bytes(encoded(picture(77)))


def _touched(root):
    os.utime(root / "train" / "cat" / "000.png", ns=(0, 0))


CHANGES = {
    "a file changed": _changed,
    "a file touched": _touched,
    "a file added": lambda root: (root / "test" / "cat" / "new.png").write_bytes(encoded(picture(77))),
    "a file removed": lambda root: (root / "train" / "cat" / "000.png").unlink(),
    "a file renamed": lambda root: (root / "train" / "cat" / "000.png").rename(root / "train" / "cat" / "9.png"),
    "a foreign file added": lambda root: (root / "train" / "cat" / "x.txt").write_text("foreign"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_is_decoded_anew(tmp_path, opened, decodings, change):
    root = image_folder(tmp_path / "data")
    opened(root)
    CHANGES[change](root)
    again = opened(root)
    assert len(decodings) == 2
    assert opened(root).checksum == again.checksum
    assert len(decodings) == 2
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1


def test_a_damaged_cache_is_found_and_made_anew_wherever_it_is_damaged(tmp_path, opened, decodings):
    root = image_folder(tmp_path / "data")
    first = opened(root)
    whole = first.cache.read_bytes()
    _, entries = cache.read_meta(first.cache)
    ends = [entry["offset"] + first_bytes for entry in entries.values() for first_bytes in (0, 5)]
    cut = [whole[:length] for length in (0, 1, 100, len(whole) // 2, len(whole) - 56, len(whole) - 1)]
    places = [*ends, len(whole) - 1, len(whole) - 20, len(whole) - 40, len(whole) - 200]
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    foreign = [b"text", b"\0" * len(whole), whole + b"\0"]
    for number, damaged in enumerate([*cut, *flipped, *foreign], 2):
        first.cache.write_bytes(damaged)
        assert opened(root).checksum == first.checksum
        assert len(decodings) == number, "it was not seen"
        assert first.cache.read_bytes() == whole


def test_what_is_mapped_stays_when_the_cache_is_made_anew(tmp_path, opened):
    root = image_folder(tmp_path / "data")
    first = opened(root)
    before = np.array(first.train.images)
    _changed(root)
    second = opened(root)
    np.testing.assert_array_equal(first.train.images, before)
    assert (second.train.images[0] != before[0]).any()


def test_the_cache_lies_in_the_users_caches_and_never_inside_the_data(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert open_dataset(root).cache.parent == tmp_path / "caches" / "jconv" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_dataset(root).cache.parent == tmp_path / "home" / ".cache" / "jconv" / "datasets"
    for inside in (root, root / "train" / "cache"):
        with pytest.raises(ValueError, match="is inside the data"):
            open_dataset(root, cache_dir=inside)


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written or read: .*; cache_dir= puts it elsewhere"):
        open_dataset(image_folder(tmp_path / "data"), cache_dir=tmp_path / "file" / "cache")


# Processes of their own: killed, out of room, two at once.

OPEN = """
import resource, sys
from experiments.train.data import open_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[4]),))
print(open_dataset(sys.argv[1], cache_dir=sys.argv[2], workers=int(sys.argv[3])).checksum)
"""


def start(tmp_path, workers=1, largest_file=resource.RLIM_INFINITY):
    arguments = [tmp_path / "data", tmp_path / "cache", workers, largest_file]
    command = [sys.executable, "-c", OPEN, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, opened):
    root = image_folder(tmp_path / "data", train=40, shape=(32, 32, 3))
    out, error = (process := start(tmp_path, largest_file=100_000)).communicate()
    assert process.returncode == 1
    assert out == ""
    assert "cannot be written or read: File too large; cache_dir= puts it elsewhere" in error.splitlines()[-1]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(opened(root).train) == 120


def test_a_killed_writer_leaves_no_half_cache(tmp_path, opened):
    root = image_folder(tmp_path / "data", train=700)
    process = start(tmp_path, workers=2)
    cache_dir = tmp_path / "cache"
    while not any(file.stat().st_size for file in _partials(cache_dir)):  # until it is in the midst of writing
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(cache_dir.glob("*.images"))
    assert len(_partials(cache_dir)) == 1
    assert len(opened(root).train) == 2100
    assert not _partials(cache_dir), "what it left is cleared away"


def _partials(folder):
    with contextlib.suppress(FileNotFoundError):
        return [file for file in folder.iterdir() if file.suffix == ".partial"]
    return []


def test_two_at_once_have_the_same(tmp_path, opened):
    image_folder(tmp_path / "data", train=100)
    processes = [start(tmp_path) for _ in range(2)]
    heard = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], heard
    assert {out.strip() for out, _ in heard} == {opened(tmp_path / "data").checksum}
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the cache and its lock


def test_the_program_that_decodes_starts_without_jax():
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1]); sys.exit('jax' in sys.modules or 'experiments' in sys.modules)"
    )
    program = ROOT / "experiments" / "train" / "data" / "decode.py"
    assert subprocess.run([sys.executable, "-c", code, str(program)], check=False).returncode == 0
