"""Study every clip and skip: on healthy runs, on runs with faults, and over learning rates.

    python benchmarks/clipping_study.py [--quick] [--output FILE] [--resume] [--workers N]
        [--models ...] [--optimizers ...] [--candidates ...]
    python benchmarks/clipping_study.py --table FILE [--page docs/clipping_study.md]

Small nets on real data (`clipping_parts/tasks.py`), SGD with momentum and Adam, 400 steps of 32
examples, the rate along a cosine to zero; every technique and none, five seeds.

- Rates in octaves, downwards and upwards until two in a row are not usable. A rate is usable if it
  keeps nine tenths of the gain over chance that plain Keras has at its best rate. That rate is
  chosen on validation data among all that were tried; all scores are of test data.
- Healthy runs are those at the best rate of plain Keras. Steps are counted as clipped, or skipped,
  after the first 100.
- Runs with faults, at that rate: one batch in 200 with inputs times 1000 and wrong labels (text:
  wrong targets that count 1000 times), a rate 100 times as high for a step, one batch in 200 with
  an example that is NaN, and a start with all kernels 4 times as large (MLP, CNN, LSTM). They are
  compared with plain Keras without the fault.
- Recurrent nets on two problems of memory, ten seeds, 3000 steps.

XLA compiles the steps of the transformer and of the recurrent nets, for every candidate: they
consist of many small operations, which XLA runs three times as fast.

Plain Keras gets the gradients of embeddings with duplicate rows summed, as gradstab sums them. By
itself it does not sum them, which makes its Adam move embeddings faster.

The constants of `clip="auto"` were chosen on the CNN, the MLP and the LSTM (marked * in the
tables), on other seeds; its floors are scored on all. A result is a candidate on one model with one
optimizer, measured in a fresh process and written at once. Plain Keras comes first, since it
determines the rates. The same call resumes a campaign. Seeds come from the first eight hex digits
of the commit that the campaign begins with. It exits with 1 if a floor fails or a result can't be
measured. `--quick` takes two models, three candidates, one seed and short runs, to check that
everything works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The same convolutions on every processor, and several times as fast on many.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from clipping_parts import candidates, judgement
from clipping_parts.runs import measure
from clipping_parts.tasks import MEMORY, TASKS
from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from harness.tables import write_between_marks

SEEDS, MEMORY_SEEDS = 5, 10
QUICK_MODELS, QUICK_CANDIDATES = ("MLP", "embedding"), (candidates.PLAIN, "ZClip", candidates.AUTO)
# Seconds of a result on one core.
SECONDS = {
    "MLP": 15.0,
    "CNN": 110.0,
    "LSTM": 150.0,
    "transformer": 150.0,
    "embedding": 25.0,
    "temporal order": 120.0,
    "adding": 100.0,
}


def summary(content: dict[str, Any]) -> str:
    """Return the tables of all that was measured, and the floors."""
    groups = judgement.grouped(content["results"])
    if not groups:
        return "No results"
    draw = _draw(content)
    return "\n\n".join([_tables(groups, draw), *judgement.verdicts(groups, draw)])


def page(content: dict[str, Any]) -> str:
    """Return the results as a page shows them: of every candidate, where all were measured."""
    groups, draw = judgement.grouped(content["results"]), _draw(content)
    auto = judgement.only(groups, candidates.PLAIN, candidates.AUTO)
    whole = judgement.complete(groups)
    floors = "\n".join(f"- {line}" for line in judgement.verdicts(whole, draw))
    return "\n\n".join(
        [
            '### `clip="auto"` and plain Keras',
            _tables(auto, draw),
            "### Every candidate",
            _tables(whole, draw),
            "### Floors and aims",
            floors,
        ]
    )


def _draw(content: dict[str, Any]) -> np.random.Generator:
    return np.random.default_rng(int(content["commit"][:8], 16))


def _tables(groups: judgement.Groups, draw: np.random.Generator) -> str:
    found = {
        "Healthy: points to plain (95 % interval), share of steps clipped or skipped": (
            judgement.healthy_table(groups, draw)
        ),
        "Hit: points to plain without the fault": judgement.hit_table(groups),
        "Usable rates: octaves by which the lowest and the highest are shifted": (
            judgement.band_table(groups)
        ),
        "Long memory: seeds that solve the problem": judgement.memory_table(groups),
    }
    return "\n\n".join(f"{title}\n\n{table}" for title, table in found.items() if table)


def lines_of(result: dict[str, Any]) -> str:
    """Return the first seed's test scores of a result."""
    rates = " ".join(f"{rate}:{runs[0]['test']}" for rate, runs in result["rates"].items())
    faults = " ".join(f"{fault}:{runs[0]['test']}" for fault, runs in result["faults"].items())
    return f"  {rates}\n  {faults}"


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        content = json.loads(arguments.table.read_text(encoding="utf-8"))
        print(summary(content))
        if arguments.page:
            write_between_marks(arguments.page, page(content))
        return 0
    quick = arguments.quick
    head = {
        "benchmark": "clipping_study",
        "quick": quick,
        "rounds": 1 if quick else SEEDS,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    first = int(content["commit"][:8], 16)
    wanted = {
        f"{model}, {optimizer}, {candidate}": (model, optimizer, candidate)
        for model in arguments.models or (QUICK_MODELS if quick else TASKS)
        for optimizer in arguments.optimizers or candidates.OPTIMIZERS
        for candidate in candidates.names(optimizer)
        if candidate in (arguments.candidates or (QUICK_CANDIDATES if quick else [candidate]))
    }

    def take(name: str) -> dict[str, Any] | None:
        model, optimizer, candidate = wanted[name]
        count = 1 if quick else MEMORY_SEEDS if model in MEMORY else SEEDS
        given: dict[str, Any] = {"seeds": [(first + place) % 2**32 for place in range(count)]}
        if candidate != candidates.PLAIN:
            plain = content["results"].get(f"{model}, {optimizer}, {candidates.PLAIN}")
            if plain is None:
                return None
            given |= {"exponent": plain["exponent"], "usable": plain["usable"]}
        task = model, optimizer, candidate, given, quick
        if quick:
            return measure(*task)
        return campaign.in_fresh_process(__file__, task, threads=1)

    complete = True
    for is_plain in (True, False):
        projected = {
            name: 3.0 if quick else SECONDS[task[0]]
            for name, task in wanted.items()
            if (task[2] == candidates.PLAIN) == is_plain
        }
        workers = 1 if quick else arguments.workers
        complete &= campaign.run(
            projected, take, content, arguments.output, lines_of, workers=workers
        )
    text = summary(content)
    print(f"\n{text}")
    return 0 if complete and (quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few short runs")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--workers", type=int, default=2, help="results measured at a time")
    parser.add_argument("--models", nargs="+", choices=TASKS, help="default: all")
    parser.add_argument("--optimizers", nargs="+", choices=candidates.OPTIMIZERS)
    parser.add_argument("--candidates", nargs="+", help="default: all; the plain one is needed")
    parser.add_argument("--table", type=Path, help="print the tables of a result file, and no more")
    parser.add_argument(
        "--page", type=Path, help="with --table, write them between the marks of a page too"
    )
    # One result, in this process.
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
