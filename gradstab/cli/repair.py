"""`gradstab repair`: the smallest change that makes a model learn, and the repaired model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from gradstab.cli.console import (
    InputError,
    quiet_tensorflow,
    refusing_bad_input,
    say,
    seed_number,
    whole_number,
    write_whole,
)

SUMMARY: Final = "find the smallest change that makes a model learn, and show it as a diff"
DESCRIPTION: Final = (
    "Diagnoses a compiled model, tries changes for the findings on copies, and removes changes "
    "that do not help. Writes repair.txt and repair.html to the output folder, and "
    "model.keras, the repaired model with fresh weights. The given file stays as it is. Exit code "
    "1 where the model is not repairable."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", type=Path, metavar="MODEL.keras", help="a compiled model")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="digits, fashion_mnist, cifar10, a folder of images, or two files as x.npy,y.npy",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--epochs", type=whole_number(1), default=10, help="planned (%(default)s)")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=32, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--budget", type=float, default=3.0, metavar="N", help="in planned trainings (%(default)s)"
    )
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="(%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Repair, print and write, and return the exit code."""
    if not arguments.model.is_file():
        raise InputError(f"there is no model: {arguments.model}")
    with refusing_bad_input():
        quiet_tensorflow()
        from gradstab.cli.diagnose import load_arrays
        from gradstab.cli.evaluate import load_model
        from gradstab.diagnosis.page import page
        from gradstab.repairs import repair

        model = load_model(arguments.model)
        x, y = load_arrays(arguments.data, arguments.batch_size, arguments.seed)
        repaired = repair(
            model, x, y, epochs=arguments.epochs, batch_size=arguments.batch_size,
            budget=arguments.budget, seed=arguments.seed,
        )  # fmt: skip
    say(str(repaired))
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output / "repair.txt", f"{repaired}\n")
    write_whole(arguments.output / "repair.html", page("Repair", repaired.to_html()))
    repaired.model.save(arguments.output / "model.keras")
    say(arguments.output)
    return int(repaired.verdict == "not repairable")
