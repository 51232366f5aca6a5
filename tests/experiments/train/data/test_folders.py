"""Image folders: classes, pixels and labels, what is left out, and what is refused."""

import os
import re

import numpy as np
import pytest

from experiments.train.data import decode, folders, open_dataset
from tests.experiments.train.data.files import CLASSES, encoded, image_folder, picture, seed_of


def the_pictures(split, number, shape=(8, 8, 3)):
    return np.stack([picture(seed_of(split, label, place), shape) for label in range(3) for place in range(number)])


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_every_image_with_its_class_in_the_order_of_the_names(tmp_path, opened, workers, monkeypatch):
    monkeypatch.setattr(folders, "CHUNK", 5)  # several requests
    root = image_folder(tmp_path / "data")
    heard = []
    dataset = opened(root, workers=workers, progress=lambda done, total: heard.append((done, total)))
    assert dataset.classes == CLASSES
    assert dataset.form == "image folder"
    for split, number in ((dataset.train, 4), (dataset.test, 2)):
        name = "train" if split is dataset.train else "test"
        np.testing.assert_array_equal(split.images, the_pictures(name, number))
        np.testing.assert_array_equal(split.labels, np.repeat(np.arange(3), number))
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert isinstance(split.images, np.memmap)
        assert not split.images.flags.writeable
    assert dataset.problems == ()
    assert heard == [(5, 18), (10, 18), (12, 18), (17, 18), (18, 18)]
    np.testing.assert_allclose(dataset.mean, (dataset.train.images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, (dataset.train.images / 255).std((0, 1, 2)), rtol=1e-12)


def test_greyscale_images_have_one_channel_and_three_among_colours(tmp_path, opened):
    root = image_folder(tmp_path / "data", shape=(8, 8))
    assert opened(root).train.images.shape == (12, 8, 8, 1)
    (root / "test" / "eel" / "colour.png").write_bytes(encoded(picture(5)))
    dataset = opened(root)
    assert dataset.train.images.shape == (12, 8, 8, 3)
    np.testing.assert_array_equal(dataset.train.images, np.stack(3 * [the_pictures("train", 4, (8, 8))], -1))
    np.testing.assert_array_equal(dataset.test.images[-1], picture(5))


def test_val_serves_as_the_test_set_and_test_goes_first(tmp_path, opened):
    root = image_folder(tmp_path / "data")
    (root / "test").rename(root / "val")
    assert len(opened(root).test) == 6
    (root / "test" / "cat").mkdir(parents=True)
    (root / "test" / "cat" / "one.PNG").write_bytes(encoded(picture(1)))
    dataset = opened(root)
    assert len(dataset.test) == 1
    assert "val/ is not read" in dataset.notes[0]


def broken_folder(root):
    """An image folder with every kind of file that is left out; and their reasons."""
    image_folder(root)
    png = encoded(picture(3))
    (root / "train" / "cat" / "001.png").write_bytes(png[:-30])
    (root / "train" / "cat" / "empty.jpg").write_bytes(b"")
    (root / "train" / "dog" / "notes.txt").write_text("not an image")
    (root / "train" / "dog" / "text.png").write_text("not an image either")
    (root / "train" / "eel" / "inner").mkdir()
    (root / "train" / "README").write_text("about")
    (root / "train" / ".hidden").mkdir()
    (root / "test" / "cat" / "nowhere.jpg").symlink_to("no/such/file")
    os.mkfifo(root / "test" / "cat" / "pipe.jpg")
    return {
        "train/cat/001.png": "[Tt]runcated|broken",
        "train/cat/empty.jpg": "empty",
        "train/dog/notes.txt": "not named as an image",
        "train/dog/text.png": "neither a JPEG nor a PNG",
        "train/eel/inner": "a folder inside a class",
        "train/README": "not in the folder of a class",
        "train/.hidden": "hidden",
        "test/cat/nowhere.jpg": "No such file",
        "test/cat/pipe.jpg": "not a regular file",
    }


def test_what_is_no_image_is_named_and_left_out(tmp_path, opened):
    reasons = broken_folder(tmp_path / "data")
    for _ in range(2):  # decoded, then from the cache
        dataset = opened(tmp_path / "data")
        assert {problem.path for problem in dataset.problems} == set(reasons)
        for path, reason in dataset.problems:
            assert re.search(reasons[path], reason), (path, reason)
        np.testing.assert_array_equal(dataset.train.images, np.delete(the_pictures("train", 4), 1, axis=0))
        np.testing.assert_array_equal(dataset.train.labels, [0] * 3 + [1] * 4 + [2] * 4)


def test_strict_refuses_them_by_name_also_from_the_cache(tmp_path, opened):
    reasons = broken_folder(tmp_path / "data")
    for _ in range(2):
        with pytest.raises(ValueError, match="strict, and 9 files are left out") as refused:
            opened(tmp_path / "data", strict=True)
        assert all(path in str(refused.value) for path in reasons)
    assert len(opened(tmp_path / "data").problems) == 9


def _empty_class(root):
    for file in (root / "train" / "dog").iterdir():
        file.unlink()


def _corrupt_class(root):
    for file in (root / "train" / "dog").iterdir():
        file.write_bytes(b"")


def _corrupt_test(root):
    for file in (root / "test").glob("*/*"):
        file.write_bytes(b"")


def _corrupt(root):
    for file in root.glob("*/*/*"):
        file.write_bytes(b"")


def _no_classes(root):
    (root / "train").rename(root / "elsewhere")
    (root / "train").mkdir()


REFUSED = {
    "no test": (lambda root: (root / "test").rename(root / "other"), "holds train/, but neither test/ nor val/"),
    "no train": (lambda root: (root / "train").rename(root / "other"), "holds test/, but no train/"),
    "no classes": (_no_classes, "train/ .* holds no folders"),
    "a class without images": (_empty_class, "the class train/dog/ .* is without images"),
    "a class of broken images": (
        _corrupt_class,
        "classes without an image to train on .*: dog; 4 files are left out: ",
    ),
    "a test set of broken images": (_corrupt_test, "no images in the test set; 6 files"),
    "broken images alone": (_corrupt, "none of the 18 image files"),
    "an unknown class": (
        lambda root: (root / "test" / "eel").rename(root / "test" / "emu"),
        "test/ holds classes.*: emu",
    ),
    "another size": (
        lambda root: (root / "test" / "dog" / "001.png").write_bytes(encoded(picture(1, (9, 7, 3)))),
        "different sizes: test/dog/001.png is 9 x 7 pixels .*those before it 8 x 8; image_size= ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("workers", [1, 2])
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, opened, case, workers):
    root = image_folder(tmp_path / "data")
    change, message = REFUSED[case]
    change(root)
    with pytest.raises(ValueError, match=message):
        opened(root, workers=workers)
    assert not list((tmp_path / "cache").glob("*.images")), "nothing is kept of it"
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_image_size_makes_one_size_of_many(tmp_path, opened):
    root = image_folder(tmp_path / "data")
    (root / "test" / "dog" / "001.png").write_bytes(encoded(picture(1, (19, 7, 3))))
    assert opened(root, image_size=6).test.images.shape == (6, 6, 6, 3)
    assert opened(root, image_size=(4, 12)).train.images.shape == (12, 4, 12, 3)
    assert len(list((tmp_path / "cache").glob("*.images"))) == 2


FATAL = """
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("decode", {path!r})
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
decode = program.decode
def fatal(path, size=None):
    if path.endswith("dog/002.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, size)
program.decode = fatal
program.main()
"""


def test_a_file_that_kills_its_decoder_is_named(tmp_path, opened, monkeypatch):
    """As a bug in a decoding library would."""
    root = image_folder(tmp_path / "data")
    program = tmp_path / "program.py"
    program.write_text(FATAL.format(path=decode.__file__))
    monkeypatch.setattr(decode, "__file__", str(program))
    monkeypatch.setattr(folders, "CHUNK", 5)
    dataset = opened(root, workers=2)
    assert [problem.path for problem in dataset.problems] == ["train/dog/002.png"]
    assert "the decoder ended with status -9" in dataset.problems[0].reason
    np.testing.assert_array_equal(dataset.train.images, np.delete(the_pictures("train", 4), 6, axis=0))


def test_names_of_any_bytes(tmp_path, opened):
    root = image_folder(tmp_path / "data")
    odd = os.fsencode(root / "train" / "cat") + b"/new\nline \xff.png"
    with open(odd, "wb") as file:
        file.write(encoded(picture(7)))
    for workers in (1, 2):
        assert len(opened(root, workers=workers, image_size=(8, 8 + workers)).train) == 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": (1, 2, 3)}, "image_size="),
        ({"image_size": 2.5}, "image_size=2.5"),
    ],
    ids=str,
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        open_dataset(image_folder(tmp_path / "data"), cache_dir=tmp_path / "cache", **arguments)


def test_a_decoder_that_cannot_be_started_is_told(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "no" / "python"))
    with pytest.raises(OSError, match="No such file"):
        opened(image_folder(tmp_path / "data"), workers=2)
    assert len(opened(tmp_path / "data", workers=1).train) == 12
