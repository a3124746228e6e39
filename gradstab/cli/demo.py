"""`gradstab demo`: what breaks the training of a CNN on real images, and what saves it."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, Final

from gradstab import __version__
from gradstab.cli.console import (
    InputError,
    quiet_tensorflow,
    refusing_bad_input,
    seed_number,
    whole_number,
    writable_folder,
    write_whole,
)
from gradstab.cli.demo_report import (
    CLASSES,
    PARTS,
    SETTINGS,
    WAYS,
    Result,
    conclusions,
    results_table,
    run_key,
)

SUMMARY: Final = "train a CNN in four broken settings, with and without gradstab"
DESCRIPTION: Final = (
    "Trains a CNN on scikit-learn's digits in four settings that break plain Keras, each with four "
    "methods and the same seed, and reports which part saves which setting. Takes one to three "
    "minutes on two CPU cores, and downloads nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="seed of initial weights, split, order of the data and faults (%(default)s)",
    )
    parser.add_argument(
        "--epochs", type=whole_number(1), default=20, help="epochs of each run (%(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("gradstab-demo"),
        metavar="DIR",
        help="folder for the plot and the results (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and return the exit code."""
    started = time.perf_counter()
    output = writable_folder(arguments.output)
    _need_matplotlib()
    with refusing_bad_input():
        quiet_tensorflow()
        from gradstab.cli import demo_runs

        digits = demo_runs.load_digits(arguments.seed)
    _introduce(len(digits.train[0]), len(digits.test[0]), arguments)
    results: list[Result] = []
    done: dict[Any, Result] = {}
    for setting, way in itertools.product(SETTINGS, WAYS):
        label = f"{setting.name}, {way.name}"
        number = f"{len(results) + 1:2d}/{len(SETTINGS) * len(WAYS)}"
        print(f"[{number}] {label:34s}", end=" ", flush=True)
        before = done.get(run_key(setting, way))
        if before is None:
            result = demo_runs.run(setting, way, digits, arguments.seed, arguments.epochs)
            took = f"{result.seconds:.0f} s"
        else:
            result = dataclasses.replace(before, setting=setting.name, seconds=0.0)
            took = f"the same run as in {before.setting}: the parts replace what differs"
        results.append(result)
        done.setdefault(run_key(setting, way), result)
        print(f"{result.accuracy:.3f}  {result.verdict} ({took})", flush=True)
    print(f"\n{results_table(results)}\n")
    print("\n".join(conclusions(results)))
    _write(output, arguments, results)
    print(f"\nPlot: {output / 'demo.png'}   results: {output / 'demo.json'}")
    print(f"Took {time.perf_counter() - started:.0f} s.")
    return 0


def _need_matplotlib() -> None:
    """Find it missing now, and not after all the runs."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            'the demo draws with matplotlib, which is not installed: pip install "gradstab[demo]"'
        ) from error


def _introduce(train: int, test: int, arguments: argparse.Namespace) -> None:
    print(
        f"A CNN on {train} digits of 8x8 pixels, {arguments.epochs} epochs, seed {arguments.seed}; "
        f"accuracy on {test} test digits.\n\nSettings"
    )
    for setting in SETTINGS:
        print(f"  {setting.name:16s} {setting.about}")
    print("Ways")
    for way in WAYS:
        print(f"  {way.name:16s} {way.about}")
    print(flush=True)


def _write(output: Path, arguments: argparse.Namespace, results: list[Result]) -> None:
    import keras
    import tensorflow as tf

    from gradstab.cli import demo_runs
    from gradstab.reports.comparison import plot_comparison
    from gradstab.reports.figures import save

    series: dict[str, dict[str, Any]] = {}
    for result in results:
        x = result.series["epoch"]
        series.setdefault(result.setting, {})[result.way] = {
            name: (x, values) for name, values in result.series.items() if name != "epoch"
        }
    figure = plot_comparison(
        series,
        chance_loss=math.log(CLASSES),
        rows=(
            ("loss", "loss on clean training images", "epoch"),
            ("grad_norm", "global gradient norm", "epoch"),
        ),
        title=f"gradstab demo, seed {arguments.seed}",
    )
    save(figure, output / "demo.png")
    report = {
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "batch_size": demo_runs.BATCH_SIZE,
        "versions": {
            "gradstab": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "settings": [dataclasses.asdict(setting) for setting in SETTINGS],
        "ways": [dataclasses.asdict(way) for way in WAYS],
        "all_parts": dataclasses.asdict(PARTS),
        "results": [result.as_json() for result in results],
        "conclusions": conclusions(results),
    }
    write_whole(output / "demo.json", json.dumps(report, indent=1, allow_nan=False))
