"""Healthy trainings of all kinds: `stabilize` against plain Keras; it should not change them.

    python benchmarks/healthy_runs.py [--quick] [--output FILE] [--resume] [--rows ...]
    python benchmarks/healthy_runs.py --cases FOLDER [--output FILE] [--resume] [--rows ...]
    python benchmarks/healthy_runs.py --table FILE [--page docs/healthy_runs.md]

Small nets with usual rates that plain Keras trains well: with `fit` (`healthy_parts/nets.py`), and
in custom loops with several optimizers, losses of any sign, and games (`healthy_parts/loops.py`).
Each is trained with the plain optimizer and with `stabilize(optimizer)`, from the same initial
weights and on the same batches, with five seeds, which come from the first eight hex digits of the
commit that the campaign begins with.

A point is one percentage point of accuracy, or 1 % of an error. The floor: the 95 % interval of the
paired difference contains 0 or is at most a point below it; in every row at most 1 % of the steps
are limited or clipped, and none is skipped. It exits with 1 if a row misses it.

`--cases` takes the rows from case files instead (`healthy_parts/cases.py`): the healthy twin of
each faulty model, and unusual healthy nets.

`--quick` trains each row for a moment with one seed, to see that everything works; its numbers mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
from harness import campaign
from harness.intervals import median_interval
from harness.origin import has_uncommitted_changes, machine
from harness.tables import markdown, write_between_marks
from healthy_parts import cases, loops, nets
from healthy_parts.rows import Row

import gradstab

SEEDS = 5
NOISE = 1.0  # points
MOST_TOUCHED = 0.01
SECONDS = 60.0  # of a row, on one core
QUICK_ROWS = ("MLP, SGD", "GAN, two optimizers, Adam", "a quadratic alone, SGD")


def rows_of(folder: str | None) -> dict[str, Row]:
    """Return the rows by name: those of this benchmark, or those of a folder of cases."""
    if folder is None:
        rows = [*nets.ROWS, *loops.ROWS]
        return {f"{row.name}, {type(row.optimizer()).__name__}": row for row in rows}
    return {row.name: row for row in cases.rows(Path(folder))}


def measure(folder: str | None, name: str, seeds: list[int], quick: bool) -> dict[str, Any]:
    """Return the scores of a row, plain and stabilized, and what telemetry counted, by seed."""
    row = rows_of(folder)[name]
    runs = []
    for seed in seeds:
        scores, wrapped = [], []

        def stabilized(made: list[Any] = wrapped) -> Any:
            made.append(gradstab.stabilize(row.optimizer()))
            return made[-1]

        for make in (row.optimizer, stabilized):
            keras.utils.set_random_seed(seed)
            scores.append(round(row.train(make, seed, quick), 4))
        readings = [optimizer.telemetry.peek() for optimizer in wrapped]
        limited: dict[str, int] = {}
        for reading in readings:
            for rule, count in reading.total_limited_by.items():
                limited[rule] = limited.get(rule, 0) + count
        runs.append(
            {
                "plain": scores[0],
                "stabilized": scores[1],
                "steps": sum(reading.cursor for reading in readings),
                "limited": sum(reading.total_limited for reading in readings),
                "limited_by": limited,
                "skipped": sum(reading.total_skipped for reading in readings),
            }
        )
    return {"runs": runs}


def table(content: dict[str, Any]) -> str:
    """Return the results of all rows that were measured."""
    draw = np.random.default_rng(int(content["commit"][:8], 16))
    lines = []
    for name, result in sorted(content["results"].items()):
        runs = result["runs"]
        low, middle, high = median_interval(
            [run["stabilized"] - run["plain"] for run in runs], draw
        )
        touched = [run["limited"] / run["steps"] for run in runs]
        skipped = sum(run["skipped"] for run in runs)
        fine = low >= -NOISE or low <= 0 <= high
        holds = fine and max(touched) <= MOST_TOUCHED and not skipped
        lines.append(
            [
                name,
                f"{np.median([run['plain'] for run in runs]):.1f}",
                f"{middle:+.2f} ({low:+.2f} .. {high:+.2f})",
                f"{max(touched):.2%}",
                str(skipped),
                "holds" if holds else "FAILS",
            ]
        )
    header = ["training", "plain", "stabilized, points to plain", "limited at most", "skipped", ""]
    return markdown(header, lines)


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        content = json.loads(arguments.table.read_text(encoding="utf-8"))
        text = table(content)
        print(text)
        if arguments.page:
            write_between_marks(arguments.page, text)
        return 0
    quick, folder = arguments.quick, arguments.cases
    head = {
        "benchmark": "healthy_cases" if folder else "healthy_runs",
        "quick": quick,
        "rounds": 1 if quick else SEEDS,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    first = int(content["commit"][:8], 16)
    seeds = [(first + place) % 2**32 for place in range(content["rounds"])]
    known = rows_of(folder)
    names = arguments.rows or (QUICK_ROWS if quick and not folder else known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"--rows: there is no row {unknown[0]!r}. There are: {'; '.join(known)}")

    def take(name: str) -> dict[str, Any] | None:
        if quick:
            return measure(folder, name, seeds, quick)
        return campaign.in_fresh_process(__file__, (folder, name, seeds, quick), threads=1)

    def show(result: dict[str, Any]) -> str:
        return "  " + " ".join(f"{run['plain']}/{run['stabilized']}" for run in result["runs"])

    expected = dict.fromkeys(names, 3.0 if quick else SECONDS)
    complete = campaign.run(
        expected, take, content, arguments.output, show, workers=1 if quick else arguments.workers
    )
    text = table(content)
    print(f"\n{text}")
    return 0 if complete and (quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rows, for a moment")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--workers", type=int, default=2, help="results measured at a time")
    parser.add_argument("--rows", nargs="+", help="default: all")
    parser.add_argument("--cases", metavar="FOLDER", help="take the rows from the cases there")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    parser.add_argument(
        "--page", type=Path, help="with --table, write it between the marks of a page too"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # One row, in this process.
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
