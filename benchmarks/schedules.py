"""Measure the recipes: each against its bare optimizer, at the default and at the best fixed rate.

    python benchmarks/schedules.py [--quick] [--output FILE] [--resume] [--workers N] [--models ...]
    python benchmarks/schedules.py --table FILE

A CNN on Fashion-MNIST, and a small transformer and an LSTM on the documentation that comes with
Python, each with Adagrad, RMSprop and Adam, five seeds, equal epochs, over a grid of rates by
factors of 2. The best fixed rate and the recipe's peak are chosen on validation data and scored on
test data. A seed's runs of one model with one optimizer are a result, measured in a fresh process
and written as it comes; the same call goes on where it was. Seeds come from the first eight hex
digits of the commit that the campaign begins with. It exits with 1 if a floor fails or a result
can't be measured. `--quick` takes one seed, two rates and one epoch on tiny subsets (and digits in
place of Fashion-MNIST), in this process, to see that everything works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from schedule_parts.judgement import judge, table
from schedule_parts.runs import BARE, OPTIMIZERS, RECIPE, measure

SEEDS = 5
# Seconds of a run on two cores, and what a process takes before its first one.
SECONDS = {"CNN": 7.0, "transformer": 11.0, "LSTM": 9.0}
START_SECONDS = 25.0
RUNS = 16  # of a result, about: some seeds go on beyond the grid


def summary(content: dict[str, Any]) -> str:
    """Return the table of all that was measured."""
    draw = np.random.default_rng(int(content["commit"][:8], 16))
    return table(judge(content["results"], draw)) if content["results"] else "No results"


def lines_of(result: dict[str, Any]) -> str:
    """Return the last test scores of a result, by rate."""
    lines = []
    for way in (BARE, RECIPE):
        scores = (
            f"{1e-3 * 2.0 ** int(rate):.3g}: {each['test'][-1]}"
            for rate, each in result["scores"][way].items()
        )
        lines.append(f"  {way:6} {', '.join(scores)}")
    return "\n".join(lines)


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        print(summary(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    head = {
        "benchmark": "schedules",
        "quick": arguments.quick,
        "rounds": 1 if arguments.quick else SEEDS,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    first = int(content["commit"][:8], 16)
    wanted = {
        f"{model}, {optimizer}, seed {place}": (model, optimizer, first + place, arguments.quick)
        # Seed by seed, so that a campaign that is cut short has some of everything.
        for place in range(content["rounds"])
        for model in arguments.models or SECONDS
        for optimizer in (["adam"] if arguments.quick else OPTIMIZERS)
    }
    projected = {
        name: 4.0 if arguments.quick else START_SECONDS + RUNS * SECONDS[task[0]]
        for name, task in wanted.items()
    }

    def take(name: str) -> dict[str, Any] | None:
        if arguments.quick:
            return measure(*wanted[name])
        threads = 1 if arguments.workers > 1 else None
        return campaign.in_fresh_process(__file__, wanted[name], threads=threads)

    complete = campaign.run(
        projected, take, content, arguments.output, lines_of, workers=arguments.workers
    )
    text = summary(content)
    print(f"\n{text}")
    return 0 if complete and (arguments.quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, tiny subsets")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--models", nargs="+", choices=SECONDS, help="default: all")
    parser.add_argument("--workers", type=int, default=1, help="results measured at a time")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    # One result, in this process.
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
