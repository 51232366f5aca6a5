"""IDX files, CIFAR's binary version and .npz: what they hold, and what is refused."""

import pickle
import struct

import numpy as np
import pytest

from tests.experiments.train.data.files import cifar_file, idx, idx_folder, image_folder, picture


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, opened, zipped):
    written = idx_folder(tmp_path / "data", {"train": 40, "t10k": 15}, zipped)
    dataset = opened(tmp_path / "data")
    for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
        np.testing.assert_array_equal(split.images, written[part][0])
        np.testing.assert_array_equal(split.labels, written[part][1])
    assert dataset.classes == ("0", "1", "2", "3", "4")
    assert (dataset.form, dataset.problems, dataset.notes) == ("IDX files", (), ())


def test_idx_by_the_other_spelling(tmp_path, opened):
    idx_folder(tmp_path / "data", {"train": 40, "t10k": 15})
    for file in (tmp_path / "data").iterdir():
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(opened(tmp_path / "data").train) == 40


def test_the_t10k_pair_alone_is_split_and_that_is_said(tmp_path, opened):
    images, labels = idx_folder(tmp_path / "data", {"t10k": 100})["t10k"]
    dataset = opened(tmp_path / "data")
    assert dataset.notes == (
        "only the t10k files are there: of their 100 images 80, drawn once and for all, are for training and 20 for the test",
    )
    assert (len(dataset.train), len(dataset.test)) == (80, 20)
    places = {image.tobytes(): place for place, image in enumerate(images)}
    train, test = ([places[image.tobytes()] for image in split.images] for split in (dataset.train, dataset.test))
    assert sorted(train + test) == list(range(100))
    np.testing.assert_array_equal(dataset.train.labels, labels[train])
    np.testing.assert_array_equal(dataset.test.labels, labels[test])
    again = opened(tmp_path / "data", cache_dir=tmp_path / "other")
    assert again.checksum == dataset.checksum


TRAIN_IMAGES, T10K_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BROKEN_IDX = {
    "cut": (TRAIN_IMAGES, lambda data: data[:-1], "1,199 bytes follow the header, which says 40 x 6 x 5"),
    "longer": (TRAIN_IMAGES, lambda data: data + b"\0", "1,201 bytes follow the header"),
    "empty": (TRAIN_IMAGES, lambda data: b"", "0 bytes, shorter than an IDX header"),
    "foreign": (TRAIN_IMAGES, lambda data: b"text" * 400, "begins with 74657874, not 00000803"),
    "labels for images": (TRAIN_IMAGES, lambda data: idx(np.arange(40)), "begins with 00000801, not 00000803"),
    "huge": (TRAIN_IMAGES, lambda data: data[:4] + struct.pack(">3I", *3 * (2**32 - 1,)) + data[16:], "bytes follow"),
    "fewer labels": (T10K_LABELS, lambda data: idx(np.arange(14)), "holds 15 images, t10k-labels-idx1-ubyte 14 labels"),
}


@pytest.mark.parametrize("case", BROKEN_IDX)
@pytest.mark.parametrize("strict", [False, True])
def test_a_broken_idx_file_is_refused_by_name(tmp_path, opened, case, strict):
    idx_folder(tmp_path / "data", {"train": 40, "t10k": 15})
    name, change, message = BROKEN_IDX[case]
    file = tmp_path / "data" / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=message) as refused:
        opened(tmp_path / "data", strict=strict)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-9], lambda data: data[:99] + b"\xff" + data[100:], lambda data: b"text", lambda data: b""],
    ids=["cut", "a byte", "foreign", "empty"],
)
def test_a_broken_gzip_file_is_refused_by_name(tmp_path, opened, change):
    idx_folder(tmp_path / "data", {"train": 40, "t10k": 15}, zipped=True)
    file = tmp_path / "data" / f"{TRAIN_IMAGES}.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"open_dataset: .*{TRAIN_IMAGES}"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ((T10K_LABELS,), "holds t10k-images-idx3-ubyte, but not the labels"),
        ((TRAIN_IMAGES,), "holds train-labels-idx1-ubyte, but not the images"),
        ((T10K_LABELS, "t10k-images-idx3-ubyte"), "no test set"),
    ],
    ids=str,
)
def test_a_missing_idx_file_is_told(tmp_path, opened, missing, message):
    idx_folder(tmp_path / "data", {"train": 40, "t10k": 15})
    for name in missing:
        (tmp_path / "data" / name).unlink()
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "data")


def cifar_10(root, each=20):
    """CIFAR-10's files with few images in each; what they hold."""
    root.mkdir()
    written = {}
    for number, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        written[name] = picture(number, (each, 32, 32, 3)), np.arange(each) % 10
        cifar_file(root / name, *written[name])
    return written


def test_cifar_10(tmp_path, opened):
    *train, test = cifar_10(tmp_path / "data").values()
    dataset = opened(tmp_path / "data")
    np.testing.assert_array_equal(dataset.train.images, np.concatenate([images for images, _ in train]))
    np.testing.assert_array_equal(dataset.train.labels, np.concatenate([labels for _, labels in train]))
    np.testing.assert_array_equal(dataset.test.images, test[0])
    assert dataset.classes[::9] == ("airplane", "truck")
    assert (dataset.form, dataset.problems) == ("binary CIFAR-10", ())
    (tmp_path / "data" / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert opened(tmp_path / "data").classes == tuple("abcdefghij")


def test_cifar_100_counts_the_fine_label(tmp_path, opened):
    (tmp_path / "data").mkdir()
    for name, seed in (("train.bin", 0), ("test.bin", 1)):
        fine = np.arange(200) % 100
        cifar_file(tmp_path / "data" / name, picture(seed, (200, 32, 32, 3)), np.stack([fine // 5, fine], 1))
    dataset = opened(tmp_path / "data")
    np.testing.assert_array_equal(dataset.train.labels, np.arange(200) % 100)
    np.testing.assert_array_equal(dataset.test.images, picture(1, (200, 32, 32, 3)))
    assert len(dataset.classes) == 100
    (tmp_path / "data" / "fine_label_names.txt").write_text("\n".join(f"name{number}" for number in range(100)))
    assert opened(tmp_path / "data").classes[99] == "name99"


BROKEN_CIFAR = {
    "cut": (lambda data: data[:-1], "61,459 bytes are not whole records of 3,073"),
    "empty": (lambda data: b"", "0 bytes are not whole records of 3,073"),
    "foreign": (lambda data: b"\xff" * len(data), "record 0 has the label 255, of 10 classes"),
    "missing": (None, "missing"),
}


@pytest.mark.parametrize("case", BROKEN_CIFAR)
def test_a_broken_batch_of_cifar_is_left_out_and_a_broken_test_refused(tmp_path, opened, case):
    written = cifar_10(tmp_path / "data")
    change, reason = BROKEN_CIFAR[case]
    for name in ("data_batch_3.bin", "test_batch.bin"):
        file = tmp_path / "data" / name
        kept = file.read_bytes()
        file.unlink() if change is None else file.write_bytes(change(kept))
        if name == "test_batch.bin":
            with pytest.raises(ValueError, match=r"test_batch\.bin"):
                opened(tmp_path / "data")
            continue
        dataset = opened(tmp_path / "data")
        assert dataset.problems == ((name, reason),)
        assert len(dataset.train) == 80
        np.testing.assert_array_equal(dataset.train.images[40:60], written["data_batch_4.bin"][0])
        with pytest.raises(ValueError, match=f"1 file is left out: {name}: "):
            opened(tmp_path / "data", strict=True)
        file.write_bytes(kept)
        assert opened(tmp_path / "data", strict=True).problems == ()


def test_cifar_with_nothing_to_train_on_and_with_wrong_names(tmp_path, opened):
    cifar_10(tmp_path / "data")
    names = tmp_path / "data" / "batches.meta.txt"
    names.write_text("just these")
    dataset = opened(tmp_path / "data")
    assert dataset.problems == (("batches.meta.txt", "10 names expected, 2 found"),)
    assert dataset.classes[0] == "airplane"
    for file in (tmp_path / "data").glob("data_batch_*"):
        file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"nothing to train on .*data_batch_1.bin: 1 bytes .*data_batch_5.bin"):
        opened(tmp_path / "data")


def test_the_pickled_version_of_cifar_is_not_read(tmp_path, opened):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": 0}))
    with pytest.raises(ValueError, match="pickle is not read: take the binary version"):
        opened(tmp_path, cache_dir=tmp_path.parent / "cache")


def arrays(**changes):
    made = {
        "x_train": picture(0, (30, 6, 5, 3)),
        "y_train": np.arange(30) % 3,
        "x_test": picture(1, (9, 6, 5, 3)),
        "y_test": np.arange(9) % 3,
    }
    return {name: array for name, array in (made | changes).items() if array is not None}


def written(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_npz_as_a_file_and_in_a_folder(tmp_path, opened, packed):
    packed(tmp_path / "some.npz", **arrays())
    for path in (tmp_path / "some.npz", tmp_path):
        dataset = opened(path, cache_dir=tmp_path.parent / f"{tmp_path.name}-cache")
        np.testing.assert_array_equal(dataset.train.images, arrays()["x_train"])
        np.testing.assert_array_equal(dataset.test.labels, arrays()["y_test"])
        assert (dataset.form, dataset.classes) == (".npz", ("0", "1", "2"))


def test_npz_with_other_layouts_of_the_same(tmp_path, opened):
    columns = {"y_train": (np.arange(30) % 3)[:, None].astype(np.uint8), "x_train": picture(0, (30, 6, 5))}
    path = written(tmp_path / "data.npz", **columns, x_test=picture(1, (9, 6, 5)), classes=np.array(["a", "b", "c"]))
    dataset = opened(path)
    assert dataset.train.images.shape == (30, 6, 5, 1)
    assert dataset.train.labels.shape == (30,)
    assert dataset.classes == ("a", "b", "c")
    assert opened(path, image_size=4).test.images.shape == (9, 4, 4, 1)


WRONG_NPZ = {
    "a name is missing": ({"y_test": None}, "lacks y_test; it holds x_train"),
    "floating": ({"x_train": np.zeros((30, 6, 5, 3), np.float32)}, r"x_train is float32\(30, 6, 5, 3\); uint8"),
    "two axes": ({"x_train": picture(0, (30, 6))}, "x_train is uint8"),
    "labels as floats": ({"y_train": np.zeros(30)}, "y_train is float64"),
    "one label too few": ({"y_test": np.arange(8)}, "one integer for each of 9 images"),
    "a negative label": ({"y_test": np.arange(9) - 1}, "y_test holds labels from -1 to 7"),
    "objects": ({"y_test": np.array([{}] * 9)}, "allow_pickle=False"),
    "another size": ({"x_test": picture(1, (9, 4, 5, 3))}, r"of x_train are \(6, 5, 3\), of x_test \(4, 5, 3\)"),
    "an unknown class": ({"y_test": np.arange(9) % 4}, r"\(the test set has some\): 3"),
    "a class without images": ({"y_train": np.arange(30) % 2 * 2}, "without an image to train on.*: 1"),
    "too few names": ({"classes": np.array(["a", "b"])}, "2 classes, all different, do not serve labels up to 2"),
    "no test images": ({"x_test": picture(1, (0, 6, 5, 3)), "y_test": np.arange(0)}, "no images in the test set"),
    "no images": ({"x_train": picture(1, (0, 6, 5, 3)), "y_train": np.arange(0)}, "without an image to train on"),
}


@pytest.mark.parametrize("case", WRONG_NPZ)
def test_a_wrong_npz_is_refused(tmp_path, opened, case):
    changes, message = WRONG_NPZ[case]
    with pytest.raises(ValueError, match=message) as refused:
        opened(written(tmp_path / "data.npz", **changes))
    assert "data.npz" in str(refused.value)


def test_a_broken_npz_is_refused_wherever_it_is_broken(tmp_path, opened):
    whole = written(tmp_path / "data.npz").read_bytes()
    for broken in (b"", b"text", whole[:-1], whole[: len(whole) // 2], whole[:500] + b"\xff\0\xff" + whole[503:]):
        (tmp_path / "data.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"open_dataset: .*data\.npz"):
            opened(tmp_path / "data.npz")


def test_a_pickle_is_never_loaded(tmp_path, opened):
    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (tmp_path / "data.npz").write_bytes(pickle.dumps(Danger()))
    with pytest.raises(ValueError, match=r"data\.npz"):
        opened(tmp_path / "data.npz")
    assert not (tmp_path / "harm").exists()


def test_the_form_is_one_of_those_known_and_one_alone(tmp_path, opened):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"none of: an image folder .*; it holds nothing"):
        opened(tmp_path / "data")
    with pytest.raises(ValueError, match="no such file or folder"):
        opened(tmp_path / "data" / "nowhere")
    (tmp_path / "data" / "readme.txt").write_text("")
    with pytest.raises(ValueError, match=r"it holds readme.txt"):
        opened(tmp_path / "data")
    with pytest.raises(ValueError, match="none of: "):
        opened(tmp_path / "data" / "readme.txt")
    image_folder(tmp_path / "data")
    written(tmp_path / "data" / "a.npz")
    with pytest.raises(ValueError, match=r"of 2 forms at once: image folder and \.npz"):
        opened(tmp_path / "data")
    written(tmp_path / "data" / "b.npz")
    with pytest.raises(ValueError, match=r"2 \.npz files"):
        opened(tmp_path / "data")
