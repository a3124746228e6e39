"""`gradstab evaluate`: metrics of a trained model on test data, and its gradients over depth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from gradstab.cli.begun import COMMAND_FILE
from gradstab.cli.console import (
    InputError,
    quiet_tensorflow,
    read_command,
    refusing_bad_input,
    say,
    table,
    whole_number,
)
from gradstab.cli.data_arguments import (
    BATCH_SIZE,
    SEED,
    add_data_arguments,
    check_data,
    load_data,
)
from gradstab.cli.gradient_profile import (
    THRESHOLDS,
    LayerGradient,
    first_to_last,
    judge,
    measure,
)
from gradstab.cli.train import describe_metrics

SUMMARY: Final = "test a trained model, and show its gradients layer by layer"
DESCRIPTION: Final = (
    "Prints the metrics of a trained model on test data, the gradient norm of each layer's kernel "
    "on test batches, the ratio of the first to the last, and whether gradients vanish or "
    "explode. For a run directory, the data are those of the run, unless --data is given."
)
_DATA: Final = ("data", "batch_size", "image_size", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", type=Path, metavar="RUN_DIR_OR_MODEL", help="a run directory or a .keras file"
    )
    add_data_arguments(parser, of_a_run=True)
    parser.add_argument(
        "--gradient-batches",
        type=whole_number(1),
        default=16,
        metavar="N",
        help="number of test batches over which gradients are averaged (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print and return the exit code."""
    file = arguments.model / "model.keras" if arguments.model.is_dir() else arguments.model
    if not file.is_file():
        raise InputError(f"there is no model: {file}")
    data = _data(arguments, file.parent / COMMAND_FILE)
    check_data(data["data"], data["image_size"])
    with refusing_bad_input():
        quiet_tensorflow()
        model = load_model(file)
    datasets = load_data(**data)
    with refusing_bad_input():
        _check_shapes(model, datasets, data["data"])
    metrics = model.evaluate(datasets.test, verbose=0, return_dict=True)
    say(describe_metrics(metrics, file))
    profile = measure(model, datasets.test.take(arguments.gradient_batches))
    accuracy = metrics.get("accuracy", metrics.get("sparse_categorical_accuracy", 0.0))
    _report(profile, learned=accuracy > 2 / datasets.num_classes)
    return 0


def _data(arguments: argparse.Namespace, command_file: Path) -> dict[str, Any]:
    """Return what the data is: as the person says, else as the run has it."""
    given = {name: getattr(arguments, name) for name in _DATA}
    known: dict[str, Any] = {"batch_size": BATCH_SIZE, "image_size": None, "seed": SEED}
    if command_file.is_file():
        command = read_command(command_file)
        known.update({name: command[name] for name in _DATA if name in command})
    if given["data"] is None and "data" not in known:
        raise InputError(f"--data is needed, since there is no {command_file} that names it")
    return {name: known.get(name) if given[name] is None else given[name] for name in _DATA}


def load_model(file: Path) -> Any:
    """Return the compiled model in a file, or refuse it in one line."""
    import keras

    import gradstab  # noqa: F401  its classes have to be registered

    try:
        model = keras.models.load_model(file, safe_mode=True)
    except Exception as error:  # a broken archive makes Keras raise almost anything
        told = (str(error).strip() or type(error).__name__)[:300]
        raise InputError(f"{file} can't be loaded as a Keras model: {told}") from error
    if not getattr(model, "compiled", False):
        raise InputError(f"{file} was saved without its loss, so it can't be evaluated")
    return model


def _check_shapes(model: Any, datasets: Any, data: str) -> None:
    try:
        expected, classes = tuple(model.input_shape[1:]), int(model.output_shape[-1])
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError("the model does not take images and return one row per image") from error
    given = tuple(datasets.input_shape)
    if expected != given:
        raise InputError(f"the model takes images of shape {expected}; {data} has {given}")
    if classes != datasets.num_classes:
        raise InputError(
            f"the model tells {classes} classes apart; {data} has {datasets.num_classes}"
        )


def _report(profile: list[LayerGradient], *, learned: bool) -> None:
    if not profile:
        print("The model has no trainable kernel, so there are no gradients to look at.")
        return
    rows = [
        [
            each.layer,
            "x".join(map(str, each.shape)),
            f"{each.norm:.3e}",
            f"{each.mean_abs:.3e}",
            f"{each.relative:.3e}",
        ]
        for each in profile
    ]
    header = ("layer", "kernel", "gradient norm", "mean |gradient|", "norm / weights' norm")
    print(f"\n{table(header, rows)}\n")
    print(f"First-to-last ratio: {first_to_last(profile):.3g}")
    print(f"Gradients: {judge(profile, learned=learned)}")
    print(THRESHOLDS)
