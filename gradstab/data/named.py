"""The data sets that are known by name."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from gradstab.data.batches import Source, array_source
from gradstab.data.errors import DataError

Array = npt.NDArray[Any]

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Where Debian's package dataset-fashion-mnist puts the four original files.
_FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8×8×1, pixels 0 to 16.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The digits are part of scikit-learn, which is missing: pip install "gradstab[demo]"'
        ) from error
    bunch = load_digits()
    images = bunch.images[..., np.newaxis].astype(np.uint8)
    return array_source(images, bunch.target, tuple(map(str, range(10))), pixel_max=16.0)


def fashion_mnist() -> Source:
    """Return 70,000 pieces of clothing, 28×28×1, pixels 0 to 255; 10,000 of them are for testing.

    The four files are read from Keras' cache or from Debian's package, whichever has them all, and
    else downloaded by Keras.

    Raises:
        DataError: If the files are nowhere, can't be downloaded, or are broken.

    References:
        Xiao, Rasul and Vollgraf, 2017, Fashion-MNIST: a novel image dataset for benchmarking
        machine learning algorithms.
    """
    cache = _keras_home() / "datasets" / "fashion-mnist"
    for folder in (cache, _FASHION_SYSTEM_FOLDER):
        if all((folder / file).is_file() for file in _FASHION_FILES):
            parts = [read_idx(folder / file) for file in _FASHION_FILES]
            break
    else:
        (train_images, train_labels), (test_images, test_labels) = _download(
            "fashion_mnist",
            keras.datasets.fashion_mnist.load_data,
            f"put the files {', '.join(_FASHION_FILES)} into {cache}, or install Debian's package "
            f"dataset-fashion-mnist, which puts them into {_FASHION_SYSTEM_FOLDER}",
        )
        parts = [train_images, train_labels, test_images, test_labels]
    return _joined(parts, _FASHION_CLASSES)


def cifar10() -> Source:
    """Return 60,000 photographs, 32×32×3, pixels 0 to 255; 10,000 of them are for testing.

    Raises:
        DataError: If the images are not in Keras' cache and can't be downloaded.

    References:
        Krizhevsky, 2009, Learning multiple layers of features from tiny images.
    """
    (train_images, train_labels), (test_images, test_labels) = _download(
        "cifar10",
        keras.datasets.cifar10.load_data,
        f"run `keras.datasets.cifar10.load_data()` where there is a network and copy the folder "
        f"{_keras_home() / 'datasets'} from there",
    )
    return _joined([train_images, train_labels, test_images, test_labels], _CIFAR10_CLASSES)


NAMED: dict[str, Callable[[], Source]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
}


def read_idx(path: Path) -> Array:
    """Return the bytes of a gzipped IDX file, the format of MNIST, as an array.

    Two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each dimension as
    four bytes with the highest first, then the values.

    Raises:
        DataError: If the file can't be read or its length is not what its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}). Delete it and get it anew") from error
    header = 4 + 4 * (content[3] if len(content) > 3 else 0)
    if content[:3] != b"\0\0\x08" or len(content) < header:
        raise DataError(f"{path} is not an IDX file of bytes. Delete it and get it anew")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if len(content) - header != int(np.prod(shape)):
        raise DataError(
            f"{path} should hold {int(np.prod(shape))} values and holds {len(content) - header}. "
            "Delete it and get it anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _download(name: str, load_data: Callable[[], Any], otherwise: str) -> Any:
    try:
        return load_data()
    # Keras raises a bare `Exception` for a failed download, and many kinds for a broken file.
    except Exception as error:
        raise DataError(
            f"{name!r} is not in Keras' cache ({_keras_home() / 'datasets'}) in a usable form and "
            f"could not be downloaded: {error}. Without a network, {otherwise}"
        ) from error


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def _joined(parts: list[Array], class_names: tuple[str, ...]) -> Source:
    train_images, train_labels, test_images, test_labels = parts
    images = np.concatenate([train_images, test_images])
    if images.ndim == 3:
        images = images[..., np.newaxis]
    # Keras gives the labels of CIFAR-10 as a column.
    labels = np.concatenate([train_labels.reshape(-1), test_labels.reshape(-1)])
    if len(images) != len(labels):
        raise DataError(f"There are {len(images)} images and {len(labels)} labels")
    return array_source(images, labels, class_names, 255.0, num_test=len(test_images))
