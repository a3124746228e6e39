"""The data sets known by name: where they are looked for, and what is said when they are not."""

import gzip
import struct
import sys

import keras
import numpy as np
import pytest

from gradstab.data import DataError, load, named

FASHION = named._FASHION_FILES
fashion_is_installed = all((named._FASHION_SYSTEM_FOLDER / file).is_file() for file in FASHION)


def idx_bytes(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither a cache nor a system folder nor a network."""

    def fail():
        raise Exception("URL fetch failure on https://host: no route")  # as Keras raises it

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(named, "_FASHION_SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    return tmp_path


def put_small_fashion(folder, value):
    folder.mkdir(parents=True)
    for file, number in zip(FASHION, (60, 60, 20, 20), strict=True):
        labels = np.arange(number) % 10
        content = labels if "labels" in file else np.full((number, 28, 28), value)
        (folder / file).write_bytes(idx_bytes(content))


def test_idx_files_are_read_as_their_header_says(tmp_path):
    expected = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "three.gz"
    path.write_bytes(idx_bytes(expected))
    assert np.array_equal(named.read_idx(path), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip at all", "can't be read"),
        (idx_bytes(np.arange(100))[:-12], "can't be read"),
        (gzip.compress(b"\0\0\x0d\1\0\0\0\1data"), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\3\0\0"), "not an IDX file"),
        (gzip.compress(b""), "not an IDX file"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\5abc"), "should hold 5 values and holds 3"),
    ],
    # By itself pytest names them by their bytes, in which gzip writes the time of day: then two
    # processes do not collect the same tests.
    ids=["no gzip", "cut off", "another type", "cut header", "empty", "too few values"],
)
def test_broken_idx_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        named.read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(
    not fashion_is_installed, reason=f"no Fashion-MNIST in {named._FASHION_SYSTEM_FOLDER}"
)
def test_fashion_mnist_is_read_in_place(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    datasets = load("fashion_mnist")
    assert not (tmp_path / "keras").exists()
    sizes = [len(datasets.rows[split]) for split in ("train", "validation", "test")]
    assert sizes == [54_000, 6_000, 10_000]
    assert (datasets.input_shape, datasets.num_classes) == ((28, 28, 1), 10)
    # Published: the test set begins with an ankle boot, a pullover, two pairs of trousers, a shirt,
    # and holds 1,000 of each class.
    images, labels = datasets.arrays("test")
    assert [datasets.class_names[label] for label in labels[:5]] == [
        "Ankle boot",
        "Pullover",
        "Trouser",
        "Trouser",
        "Shirt",
    ]
    assert np.array_equal(np.bincount(labels), [1000] * 10)
    assert (images.min(), images.max(), datasets.pixel_max) == (0.0, 255.0, 255.0)
    # Published mean of the training pixels: 0.2860 of 255.
    whole = np.concatenate([datasets.arrays("train")[0], datasets.arrays("validation")[0]])
    assert whole.mean(dtype=np.float64) / 255 == pytest.approx(0.2860, abs=1e-4)


def test_the_cache_of_keras_comes_before_the_system_folder(nowhere):
    put_small_fashion(nowhere / "system", 2)
    assert load("fashion_mnist").arrays("train")[0].max() == 2
    put_small_fashion(nowhere / "keras" / "datasets" / "fashion-mnist", 1)
    assert load("fashion_mnist").arrays("train")[0].max() == 1
    (nowhere / "keras" / "datasets" / "fashion-mnist" / FASHION[2]).unlink()
    assert load("fashion_mnist").arrays("train")[0].max() == 2


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_data_that_cannot_be_had_says_where_it_was_looked_for(nowhere, name):
    with pytest.raises(DataError, match="no route") as caught:
        load(name)
    assert str(nowhere / "keras" / "datasets") in str(caught.value)
    if name == "fashion_mnist":
        assert str(nowhere / "system") in str(caught.value)
        assert FASHION[0] in str(caught.value)


def test_cifar10_keeps_its_test_set(monkeypatch):
    rows = np.arange(120, dtype=np.uint8)
    images = np.broadcast_to(rows[:, None, None, None], (120, 32, 32, 3))
    labels = (rows % 10)[:, None]  # a column, as Keras gives it
    parts = (images[:100], labels[:100]), (images[100:], labels[100:])
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: parts)
    datasets = load("cifar10", validation_fraction=0.2)
    assert datasets.input_shape == (32, 32, 3)
    assert datasets.class_names[0] == "airplane"
    assert np.array_equal(datasets.arrays("test")[0][:, 0, 0, 0], rows[100:])
    assert len(datasets.rows["validation"]) == 20
    with pytest.raises(ValueError, match="test set of its own"):
        load("cifar10", test_fraction=0.2)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"gradstab\[demo\]"):
        load("digits")
