"""`gradstab diagnose`: why a model does not learn, before training or from a run's record."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, Final

from gradstab.cli.console import (
    InputError,
    quiet_tensorflow,
    refusing_bad_input,
    say,
    seed_number,
    whole_number,
)

SUMMARY: Final = "find out why a model does not learn: cause, layer and remedy"
DESCRIPTION: Final = (
    "Checks a compiled model and its data, trains it for some seconds in several ways, and names "
    "the likeliest cause with the change to make; the file stays as it is. For a run directory it "
    "diagnoses the record instead. Exit code 1 if there is a finding of severity error."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL_OR_RUN_DIR", help="a .keras file or a run directory"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="digits, fashion_mnist, cifar10, a folder of images, or two files as x.npy,y.npy",
    )
    parser.add_argument("--epochs", type=whole_number(1), metavar="N", help="planned epochs")
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=32,
        metavar="N",
        help="rows per step (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, metavar="N", help="seed of the trials (%(default)s)"
    )
    parser.add_argument("--format", choices=("text", "json", "html"), default="text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write")


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, print or write, and return the exit code."""
    if arguments.model.is_dir() and arguments.data is None:
        return _of_record(arguments)
    return _of_model(arguments)


# Keras is imported late, so that `--help` and the diagnosis of a record answer at once.


def _of_record(arguments: argparse.Namespace) -> int:
    from gradstab.diagnosis.rules.records import diagnose_record
    from gradstab.monitoring.record import read_record

    if arguments.format == "html":
        raise InputError("a run's page is `gradstab report`; use --format text or json")
    with refusing_bad_input():
        findings = diagnose_record(read_record(arguments.model))
    if arguments.format == "json":
        text = json.dumps([each.to_dict() for each in findings], indent=1)
    else:
        text = (
            "\n\n".join(
                f"[{each.severity}] {each.code}{f' in {each.layer}' if each.layer else ''}\n"
                f"  {each.cause}\n    {each.remedy}"
                for each in findings
            )
            or "The record shows nothing wrong."
        )
    _give(text, arguments.output)
    return int(any(each.severity == "error" for each in findings))


def _of_model(arguments: argparse.Namespace) -> int:
    file = arguments.model / "model.keras" if arguments.model.is_dir() else arguments.model
    if not file.is_file():
        raise InputError(f"there is no model: {file}")
    if arguments.data is None:
        raise InputError("--data is needed: digits, fashion_mnist, a folder, or x.npy,y.npy")
    with refusing_bad_input():
        quiet_tensorflow()
        from gradstab.cli.evaluate import load_model
        from gradstab.diagnosis.diagnose import diagnose

        with warnings.catch_warnings():
            # A model that was not trained yet has no moments to load.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            warnings.filterwarnings("ignore", message="A total of .* objects could not be loaded")
            model = load_model(file)
        x, y = _load(arguments.data, arguments.batch_size, arguments.seed)
        diagnosis = diagnose(
            model,
            x,
            y,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
    if arguments.format == "html":
        say(diagnosis.write_html(arguments.output or Path("diagnosis.html")))
    else:
        _give(
            diagnosis.to_json() if arguments.format == "json" else str(diagnosis), arguments.output
        )
    return int(any(each.severity == "error" for each in diagnosis.findings))


def _load(data: str, batch_size: int, seed: int) -> tuple[Any, Any]:
    if data.endswith(".npy"):
        import numpy as np

        files = data.split(",")
        if len(files) != 2:
            raise InputError(f"--data takes two files, x.npy,y.npy. Received: {data}")
        x, y = (np.load(name, allow_pickle=False) for name in files)
        return x, y
    from gradstab.cli.data_arguments import load_data

    return load_data(data, batch_size, None, seed).train, None


def load_arrays(data: str, batch_size: int, seed: int) -> tuple[Any, Any]:
    """Return inputs and targets of a data set, a folder of images or two files, as arrays."""
    import numpy as np

    x, y = _load(data, batch_size, seed)
    if y is not None:
        return x, y
    parts = [(np.asarray(batch[0]), np.asarray(batch[1])) for batch in x]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _give(text: str, output: Path | None) -> None:
    if output is None:
        say(text)
        return
    output.write_text(f"{text}\n", encoding="utf-8")
    say(output)
