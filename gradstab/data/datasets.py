"""Data sets split, batched and ready to train on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradstab._validation import check_choice, check_float, check_int
from gradstab.data.arguments import check_arrays, check_image_size
from gradstab.data.batches import Source, array_source, by_epoch, in_order, reshuffled
from gradstab.data.container import Datasets
from gradstab.data.errors import DataError
from gradstab.data.images import read_folder
from gradstab.data.named import NAMED
from gradstab.data.splits import check_fractions, stratified_split

_DEFAULT_TEST_FRACTION = 0.2


def load(
    name_or_folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    validation_fraction: float = 0.1,
    test_fraction: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    color_mode: str | None = None,
    seed: int = 0,
    shuffle: bool = True,
) -> Datasets:
    """Load a data set by name, or images from a folder, split and batched.

    | name | what | input | training and validation, test |
    |---|---|---|---|
    | `"digits"` | handwritten digits, inside scikit-learn | 8×8×1, 0 to 16 | 1,797, split by seed |
    | `"fashion_mnist"` | photographs of clothing | 28×28×1, 0 to 255 | 60,000, 10,000 |
    | `"cifar10"` | photographs of 10 classes | 32×32×3, 0 to 255 | 50,000, 10,000 |
    | a folder | holds a folder of images for each class | `image_size`, 0 to 255 | split by seed |

    All splits have the same class proportions and never share an example. In a folder an example is
    a file: duplicates are not detected. `fashion_mnist` and `cifar10` come from Keras' cache
    (`$KERAS_HOME`, else `~/.keras`), else over the network; `fashion_mnist` also from Debian's
    package dataset-fashion-mnist. Every image of a folder is decoded once before this returns, so
    that a broken file is found now, not during training; up to a gigabyte is kept in memory.

    In `fit`, pass `shuffle=False`: Keras can't shuffle a `tf.data.Dataset` and warns.

    Args:
        name_or_folder: A name from the table, or a path. Write `"./digits"` for a folder of that
            name.
        batch_size: Examples per batch.
        validation_fraction: Share of the data (without a separate test set) for validation.
        test_fraction: Share of the data for testing, by default 0.2. Not allowed for data sets with
            a test set of their own.
        image_size: Height and width, or one number for both, to which the images of a folder are
            resized. None keeps their own size, which must then be the same for all.
        color_mode: `"rgb"` (the default) or `"grayscale"`, for a folder.
        seed: Seed of the splits and, with the number of the epoch, of the order of training
            batches.
        shuffle: Whether training batches are shuffled.

    Returns:
        The splits, with class names.

    Raises:
        DataError: If the data is unknown, missing, broken or too small; a `ValueError`.
        ImportError: If scikit-learn (digits) or pillow (folders) is missing.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range or not for this data.

    Example:
        >>> from gradstab.data import load
        >>> datasets = load("digits", batch_size=64, seed=1)
        >>> len(datasets.train), len(datasets.test), datasets.class_names[:3]
        (20, 6, ('0', '1', '2'))
    """
    if not isinstance(name_or_folder, (str, os.PathLike)):
        raise TypeError(
            f"`name_or_folder` must be a name or a path. Received: {name_or_folder!r}. Arrays go "
            "into `gradstab.data.from_arrays`"
        )
    if isinstance(name_or_folder, str) and name_or_folder in NAMED:
        for argument, given in (("image_size", image_size), ("color_mode", color_mode)):
            if given is not None:
                raise ValueError(
                    f"`{argument}` is for folders; the images of {name_or_folder!r} are taken as "
                    f"they are. Received: {argument}={given!r}"
                )
        prepare: Callable[[], Source] = NAMED[name_or_folder]
    else:
        folder = Path(name_or_folder)
        if not folder.is_dir():
            raise DataError(
                f"`name_or_folder` must be one of {', '.join(map(repr, NAMED))}, or a folder that "
                f"holds a folder of images for each class. Received: {os.fspath(folder)!r}, which "
                f"is {'a file' if folder.exists() else 'not there'}"
            )
        size = check_image_size(image_size)
        mode = check_choice("color_mode", color_mode or "rgb", ("rgb", "grayscale"))
        prepare = partial(read_folder, folder, image_size=size, color_mode=mode)
    return _split(
        os.fspath(name_or_folder),
        prepare,
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        shuffle=shuffle,
    )


def from_arrays(
    inputs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    test: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    batch_size: int = 32,
    validation_fraction: float = 0.1,
    test_fraction: float | None = None,
    class_names: Sequence[str] | None = None,
    pixel_max: float | None = None,
    seed: int = 0,
    shuffle: bool = True,
    name: str = "arrays",
) -> Datasets:
    """Split and batch arrays that are in memory already, as `load` does.

    Args:
        inputs: `(n, ...)`, of any real type. Bytes stay bytes until they are in a batch.
        labels: `(n,)`, integers from 0, each class at least once.
        test: Inputs and labels of a test set of its own.
        batch_size: Examples per batch.
        validation_fraction: The part of `inputs` that is set aside to choose by.
        test_fraction: The part that is set aside to score with, by default 0.2; not with `test`.
        class_names: A name for each class, by default its number.
        pixel_max: Largest value that an input can have: by default 255 for bytes, else the
            largest finite magnitude among the training inputs.
        seed: Decides the splits, and with the number of the epoch the order of training batches.
        shuffle: Whether training batches are shuffled.
        name: What the data is called.

    Raises:
        DataError: If a class has too few examples; a `ValueError`.
        TypeError: If an argument has the wrong type.
        ValueError: If lengths or shapes do not fit, or an argument is out of its range.

    Example:
        >>> import numpy as np
        >>> from gradstab.data import from_arrays
        >>> from_arrays(np.zeros((50, 4)), np.arange(50) % 5, batch_size=10)
        Datasets(name='arrays', input_shape=(4,), num_classes=5, train=35, validation=5, test=10)
    """
    all_inputs, all_labels = check_arrays("inputs", inputs, "labels", labels)
    num_test = 0
    if test is not None:
        test_inputs, test_labels = check_arrays("test[0]", test[0], "test[1]", test[1])
        if test_inputs.shape[1:] != all_inputs.shape[1:]:
            raise ValueError(
                "`test` must hold inputs of the same shape as `inputs`. Received: "
                f"{test_inputs.shape[1:]} beside {all_inputs.shape[1:]}"
            )
        num_test = len(test_inputs)
        all_inputs = np.concatenate([all_inputs, test_inputs])
        all_labels = np.concatenate([all_labels, test_labels])
    num_classes = int(all_labels.max()) + 1
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
    if len(names) < num_classes:
        raise ValueError(
            f"`class_names` must name every class. Received: {len(names)} names for labels up to "
            f"{num_classes - 1}"
        )
    if pixel_max is not None:
        pixel_max = check_float("pixel_max", pixel_max)
    elif all_inputs.dtype == np.uint8:
        pixel_max = 255.0
    return _split(
        name,
        lambda: array_source(all_inputs, all_labels, names, pixel_max, num_test),
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        shuffle=shuffle,
    )


def _split(
    name: str,
    prepare: Callable[[], Source],
    *,
    batch_size: int,
    validation_fraction: float,
    test_fraction: float | None,
    seed: int,
    shuffle: bool,
) -> Datasets:
    # Arguments first: reading a large folder to find that one of them is wrong helps nobody.
    batch_size = check_int("batch_size", batch_size)
    seed = check_int("seed", seed, minimum=0)
    fractions = {
        "validation": validation_fraction,
        "test": _DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction,
    }
    check_fractions(fractions)
    source = prepare()
    num_own = len(source.labels) - source.num_test
    if source.num_test:
        if test_fraction is not None:
            raise ValueError(
                f"{name!r} has a test set of its own, so `test_fraction` must be left out. "
                f"Received: test_fraction={test_fraction!r}"
            )
        del fractions["test"]
    rows = stratified_split(source.labels[:num_own], fractions, source.class_names, seed)
    if source.num_test:
        rows["test"] = np.arange(num_own, len(source.labels))
    pixel_max = source.pixel_max
    if pixel_max is None:
        magnitudes = np.abs(source.fetch(rows["train"])[0])
        pixel_max = float(magnitudes.max(where=np.isfinite(magnitudes), initial=0.0)) or 1.0
    return Datasets(
        train=reshuffled(by_epoch(source, rows["train"], batch_size, seed=seed, shuffle=shuffle)),
        validation=in_order(source, rows["validation"], batch_size),
        test=in_order(source, rows["test"], batch_size),
        class_names=source.class_names,
        name=name,
        input_shape=source.input_shape,
        pixel_max=pixel_max,
        rows=rows,
        _source=source,
    )
