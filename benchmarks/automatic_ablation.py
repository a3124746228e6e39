"""Ablation of the rules and constants of `clip="auto"`, on the runs of the clipping study.

    python benchmarks/automatic_ablation.py [--output FILE] [--resume] [--models MLP CNN ...]
    python benchmarks/automatic_ablation.py --table FILE
    python benchmarks/automatic_ablation.py --quick

A rule is needed if a column falls without it: the healthy run, a run with a fault, or the highest
usable rate (`clipping_study.py` defines these, and provides the rate of plain Keras). A constant is
needed if a weaker or a stronger value makes one of them worse. If a variant is within a point of
the full rule set in every column, the value hardly matters. Three seeds, the first of the study,
whose results are used for plain Keras. `--quick` takes one model and two variants.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from clipping_parts import candidates, judgement, variants
from clipping_parts.runs import measure
from clipping_parts.tasks import TASKS
from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from harness.tables import markdown

STUDY = Path(__file__).resolve().parent / "results" / "clipping_study.json"
SEEDS = 3
MODELS = ("MLP", "CNN")
SECONDS = {"MLP": 10.0, "CNN": 70.0, "LSTM": 90.0, "transformer": 90.0, "embedding": 15.0}
SAME = 1.0  # points


def plain_results() -> tuple[int, dict[str, Any]]:
    """Return the first seed of the study, and its results of plain Keras."""
    content = json.loads(STUDY.read_text(encoding="utf-8"))
    return int(content["commit"][:8], 16), content["results"]


def one(model: str, optimizer: str, variant: str, quick: bool) -> dict[str, Any]:
    """Measure one variant, in this process."""
    first, results = plain_results()
    plain = results[f"{model}, {optimizer}, {candidates.PLAIN}"]
    given = {
        "seeds": [(first + place) % 2**32 for place in range(1 if quick else SEEDS)],
        "exponent": plain["exponent"],
        "usable": plain["usable"],
    }

    def make(optimizer: str, variant: str) -> Any:
        return variants.variants(optimizer)[variant](candidates.OPTIMIZERS[optimizer]())

    return measure(model, optimizer, variant, given, quick, make)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return scores against plain Keras without a fault, by model and optimizer."""
    _, study = plain_results()
    parts = []
    groups = dict.fromkeys((each["model"], each["optimizer"]) for each in results.values())
    for model, optimizer in groups:
        found = [
            each
            for each in results.values()
            if (each["model"], each["optimizer"]) == (model, optimizer)
        ]
        plain = study[f"{model}, {optimizer}, {candidates.PLAIN}"]
        whole = next((each for each in found if each["candidate"] == variants.WHOLE), None)
        columns = ["healthy", *found[0]["faults"], "octaves"]
        rows = []
        for each in found:
            numbers = _numbers(each, plain)
            same = whole is not None and _is_same(numbers, _numbers(whole, plain))
            cells = [judgement.points(numbers[name]) for name in columns[:-1]]
            touched = judgement.touched(each["rates"][str(each["exponent"])])
            rows.append(
                [each["candidate"], *cells, f"{numbers['octaves']:+.0f}", f"{touched:.1%}",
                 "same" if same else ""]
            )  # fmt: skip
        header = ["variant", *columns, "touched", "to the whole"]
        parts.append(f"{model}, {optimizer}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def _numbers(result: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    best = str(plain["exponent"])
    count = len(result["rates"][best])
    clean = plain["rates"][best][:count]

    def points(runs: Any) -> float:
        return float(statistics.median(judgement.differences(runs, clean)))

    return {
        "healthy": points(result["rates"][best]),
        **{fault: points(runs) for fault, runs in result["faults"].items()},
        "octaves": float(judgement.band(result)[1] - judgement.band(plain)[1]),
    }


def _is_same(numbers: dict[str, float], whole: dict[str, float]) -> bool:
    return numbers["octaves"] == whole["octaves"] and all(
        abs(numbers[name] - whole[name]) <= SAME for name in whole
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, two variants, short runs")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--workers", type=int, default=2, help="results measured at a time")
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(MODELS))
    parser.add_argument("--optimizers", nargs="+", choices=candidates.OPTIMIZERS)
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--table", type=Path, help="print the tables of a result file, and no more")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one result, in this process
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        print(table(json.loads(arguments.table.read_text(encoding="utf-8"))["results"]))
        return 0
    quick = arguments.quick
    head = {
        "benchmark": "automatic_ablation",
        "quick": quick,
        "rounds": 1 if quick else SEEDS,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    wanted = {
        f"{model}, {optimizer}, {variant}": (model, optimizer, variant)
        for model in (["MLP"] if quick else arguments.models)
        for optimizer in (["SGD"] if quick else arguments.optimizers or candidates.OPTIMIZERS)
        for variant in list(variants.variants(optimizer))[: 2 if quick else None]
        if variant in (arguments.variants or [variant])
    }

    def take(name: str) -> dict[str, Any] | None:
        if quick:
            return one(*wanted[name], quick)
        return campaign.in_fresh_process(__file__, (*wanted[name], quick), threads=1)

    seconds = {name: 3.0 if quick else SECONDS[task[0]] for name, task in wanted.items()}
    complete = campaign.run(
        seconds, take, content, arguments.output, lambda result: f"  {result['seconds']} s",
        workers=1 if quick else arguments.workers,
    )  # fmt: skip
    print(f"\n{table(content['results'])}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
