"""The arguments that say what the data is, shared by the commands that take some."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any, Final

from gradstab.cli.console import InputError, refusing_bad_input, seed_number, whole_number

BATCH_SIZE: Final = 32
SEED: Final = 0
# Those of `gradstab.data`, which can't be asked before TensorFlow is imported.
NAMES: Final = ("digits", "fashion_mnist", "cifar10")


def add_data_arguments(parser: argparse.ArgumentParser, *, of_a_run: bool = False) -> None:
    """Add the arguments that say what the data is.

    Args:
        parser: Gets the arguments.
        of_a_run: Whether what is left out is taken from a run, instead of having a default.
    """
    left_out = "that of the run" if of_a_run else "%(default)s"
    parser.add_argument(
        "--data",
        required=not of_a_run,
        metavar="DATA",
        help=f"{', '.join(NAMES)}, or a folder with one folder of images per class",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=None if of_a_run else BATCH_SIZE,
        metavar="N",
        help=f"images per step ({left_out})",
    )
    parser.add_argument(
        "--image-size",
        type=whole_number(8),
        metavar="PIXELS",
        help="height and width to which the images of a folder are resized (their own)",
    )
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=None if of_a_run else SEED,
        metavar="N",
        help=f"of the splits, the first weights and the order of the data ({left_out})",
    )


def check_data(data: str, image_size: int | None) -> None:
    """Refuse data that can't be there, before TensorFlow takes seconds to be imported.

    Raises:
        InputError: If it is neither a known name nor a folder, or can't be read.
    """
    if data not in NAMES:
        if not Path(data).is_dir():
            raise InputError(
                f"--data must be one of {', '.join(NAMES)}, or a folder with one folder of images "
                f"per class. Received: --data {data}, which is "
                f"{'a file' if Path(data).exists() else 'not there'}"
            )
        return
    if image_size is not None:
        raise InputError(
            f"--image-size is for folders; the images of {data} are taken as they are. Received: "
            f"--image-size {image_size}"
        )
    if data == "digits" and importlib.util.find_spec("sklearn") is None:
        raise InputError(
            '--data digits needs scikit-learn, which is missing: pip install "gradstab[demo]"'
        )


def load_data(data: str, batch_size: int, image_size: int | None, seed: int) -> Any:
    """Return the `Datasets` that the command line names."""
    from gradstab.data.datasets import load

    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    if image_size is not None:
        options["image_size"] = image_size
    with refusing_bad_input():
        return load(data, **options)
