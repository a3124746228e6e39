"""A folder of class folders of images."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from gradstab.data.batches import Fetch, Source, array_source
from gradstab.data.errors import DataError

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
# Above this the images stay on the disk and are decoded for each batch.
_MAX_BYTES_IN_MEMORY = 2**30
# Pixels above which images are decoded one at a time: four of 169 megapixels at once took 2 GiB.
_LARGE_IMAGE = 2**24
_one_large_image = threading.Lock()
_MAX_NAMED = 10
_ORIENTATION = 0x0112  # tag of EXIF
_PIXEL_MAX = 255.0


def read_folder(folder: Path, *, image_size: tuple[int, int] | None, color_mode: str) -> Source:
    """Return the images in the class folders of `folder`, each of which was decoded once.

    Args:
        folder: Holds one folder for each class; images may lie deeper in it. Hidden files and
            files that are not images by their name are left out.
        image_size: Height and width to which images are resized (bilinear). None keeps their own,
            which then has to be the same for all.
        color_mode: `"rgb"` or `"grayscale"`.

    Raises:
        DataError: If there are fewer than two classes, a class without images, an image that
            can't be decoded, or no common size.
        ImportError: If pillow is not installed.
    """
    _need_pillow()
    files_of = _images_by_class(folder)
    paths = [path for files in files_of.values() for path in files]
    labels = np.repeat(np.arange(len(files_of)), [len(files) for files in files_of.values()])
    decode = partial(_decode, image_size=image_size, color_mode=color_mode)
    images, shape = _decode_all(paths, decode)
    class_names = tuple(files_of)
    if images is not None:
        return array_source(images, labels, class_names, _PIXEL_MAX)
    return Source(
        _file_fetch(paths, labels, decode, shape), labels, class_names, shape, _PIXEL_MAX, slow=True
    )


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    class_folders = [entry for entry in inside if entry.is_dir()]
    names = [entry.name for entry in class_folders]
    if len(names) < 2:
        raise DataError(
            f"{folder} must hold at least two folders, one of images for each class. Received: "
            f"{names[0] if names else 'none'}"
        )
    if {name.lower() for name in names} <= _SPLIT_NAMES:
        raise DataError(
            f"{folder} holds splits ({', '.join(names)}), not classes, and splitting is done here. "
            f"Pass a folder with one folder of images for each class, such as {class_folders[-1]}"
        )
    files_of = {
        entry.name: sorted(
            file
            for file in entry.rglob("*")
            if file.suffix.lower() in _SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        for entry in class_folders
    }
    empty = [name for name, files in files_of.items() if not files]
    if empty:
        raise DataError(
            f"Every class folder in {folder} must hold images ({', '.join(_SUFFIXES)}). Received "
            f"none in: {_listed(empty)}. Add images or remove the folder"
        )
    return files_of


def _decode_all(paths: Sequence[Path], decode: Any) -> tuple[Any, tuple[int, ...]]:
    """Return all images if they fit in memory, else None, and the shape of each of them."""
    images: Any = None
    shape: tuple[int, ...] | None = None
    sizes: Counter[tuple[int, ...]] = Counter()
    broken: list[str] = []

    def attempt(path: Path) -> Any:
        try:
            return decode(path)
        # A broken file makes pillow raise almost anything; whatever it is, the file is to blame.
        except Exception as error:
            return f"{path} ({error})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, image in enumerate(pool.map(attempt, paths)):
            if isinstance(image, str):
                broken.append(image)
                continue
            if shape is None:
                shape = image.shape
                if len(paths) * image.size <= _MAX_BYTES_IN_MEMORY:
                    images = np.empty((len(paths), *shape), np.uint8)
            sizes[image.shape[:2]] += 1
            if images is not None and image.shape == shape:
                images[row] = image
    if broken:
        raise DataError(
            f"{len(broken)} of {len(paths)} images can't be read: {_listed(broken)}. Repair or "
            "remove them"
        )
    if len(sizes) > 1:
        smallest, largest = min(sizes), max(sizes)
        raise DataError(
            f"The images have {len(sizes)} different sizes, from {smallest} to {largest} (height, "
            "width). Pass a size for all of them, such as image_size=(64, 64)"
        )
    return images, shape or ()


def _file_fetch(
    paths: Sequence[Path], labels: npt.NDArray[Any], decode: Any, shape: tuple[int, ...]
) -> Fetch:
    with tf.device("CPU:0"):
        all_labels = tf.constant(labels, tf.int64)

    def read(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.stack([decode(paths[row]) for row in rows])

    def fetch(rows: Any) -> tuple[Any, Any]:
        images = tf.ensure_shape(tf.numpy_function(read, [rows], tf.uint8), (None, *shape))
        return tf.cast(images, tf.float32), tf.gather(all_labels, rows)

    return fetch


def _decode(
    path: Path, *, image_size: tuple[int, int] | None, color_mode: str
) -> npt.NDArray[np.uint8]:
    import PIL.Image

    with PIL.Image.open(path) as header:
        if header.mode in ("I", "F") or header.mode.startswith("I;"):
            raise ValueError(f"pixels of mode {header.mode}; 8 bits per channel are expected")
        is_large = header.width * header.height > _LARGE_IMAGE
    with _one_large_image if is_large else contextlib.nullcontext():
        with PIL.Image.open(path) as opened:
            image = _upright(opened).convert("L" if color_mode == "grayscale" else "RGB")
        if image_size is not None and image.size != image_size[::-1]:
            image = image.resize(image_size[::-1], PIL.Image.Resampling.BILINEAR)
    array: npt.NDArray[np.uint8] = keras.utils.img_to_array(
        image, data_format="channels_last", dtype="uint8"
    )
    return array


def _upright(image: Any) -> Any:
    """Return an image as its EXIF entry says that it was taken: phones only note a rotation."""
    import PIL.ImageOps

    with contextlib.suppress(Exception):  # a broken entry says nothing
        if image.getexif().get(_ORIENTATION, 1) != 1:
            return PIL.ImageOps.exif_transpose(image)
    return image


def _need_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Images are decoded by pillow, which is not installed: pip install "gradstab[demo]"'
        ) from error


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
