"""Runs with random faults: final accuracy with and without protection.

    python benchmarks/fault_campaign.py [--quick] [--output FILE] [--resume] [--faults N]
    python benchmarks/fault_campaign.py --table FILE [--page docs/recovery.md]

Each fault is drawn at random: kind, net, optimizer, seed, moment and, for faults that can last,
duration. It is injected into five runs that are otherwise equal: plain Keras; with `TerminateOnNaN`
and `ReduceLROnPlateau`; with `stabilize`; with `stabilize` and `DivergenceGuard("recover")`; and
with the guard and a plain optimizer. The score is the test accuracy, compared with that of the same
run without the fault.

A run is whole if it is at most one point below that, or at most as far below as 99 of 100 clean
runs move if one batch is dropped. In clean runs (`fault_parts/clean.py`) the actions of the guard
are counted.

The seed comes from the first eight hex digits of the commit that the campaign begins with. Each
result is written at once, and the same call resumes the campaign.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from fault_parts import clean, faults, kills, nets, persistent, runs
from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from harness.tables import markdown, write_between_marks

EPOCHS, QUICK_EPOCHS = 16, 3
SEEDS = 2
POINT = 1.0
SECONDS = {
    "fault": 8.0, "clean": 8.0, "pair": 2.0, "reference": 2.0, "persistent": 10.0, "kills": 60.0,
}  # fmt: skip


def drawn(number: int, first: int, steps: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the fault of a number: the same for each run of the campaign."""
    draw = random.Random(f"{first} {number}")
    net = draw.choice(list(nets.NETS))
    kinds = [k for k in only or faults.ALL if net == "CNN" or "statistics" not in k]
    return {
        "net": net,
        "optimizer": draw.choice(list(nets.OPTIMIZERS)),
        "kind": draw.choice(kinds),
        "seed": first % 1000 + draw.randrange(SEEDS),
        "first": draw.randrange(int(0.15 * steps), int(0.9 * steps)),
        "length": draw.choice(faults.LENGTHS),
    }


def measure(
    name: str, first: int, epochs: int, columns: Sequence[str], kinds: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return a result: of a fault, a reference, a clean run, a pair, or a persistent fault."""
    kind, _, rest = name.partition(" ")
    steps = epochs * (len(nets.digits()[0]) // nets.BATCH)
    if kind == "reference":
        net, optimizer, seed = rest.split("/")
        return runs.train(net, optimizer, "plain", int(seed), steps)
    if kind == "clean":
        return clean.run(int(rest), first, epochs)
    if kind == "kills":
        return kills.run(int(rest), first, _undisturbed())
    if kind == "persistent":
        return persistent.run(rest, first, epochs)
    fault = drawn(int(rest), first, steps, kinds)

    def strike(batches: Any, backward: Any) -> list[Any]:
        if kind == "fault":
            return faults.strike(fault["kind"], fault["first"], fault["length"], batches, backward)
        for part in (batches.x, batches.y, batches.weight):
            part[fault["first"] : -1] = part[fault["first"] + 1 :].copy()
        return []

    def run(column: str) -> dict[str, Any]:
        return runs.train(fault["net"], fault["optimizer"], column, fault["seed"], steps, strike)

    if kind == "pair":
        return {**run("plain"), **fault}
    return {**fault, "columns": {column: run(column) for column in columns}}


@functools.cache
def _undisturbed() -> dict[str, Any]:
    return kills.undisturbed()


def _reference(content: dict[str, Any], fault: dict[str, Any]) -> float | None:
    name = f"reference {fault['net']}/{fault['optimizer']}/{fault['seed']}"
    found = content["results"].get(name)
    return None if found is None else found["accuracy"]


def _of(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [v for name, v in content["results"].items() if name.startswith(f"{kind} ")]


def table(content: dict[str, Any]) -> str:
    """Return what came of the runs, in words and tables."""
    moved = [
        abs(each["accuracy"] - reference)
        for each in _of(content, "pair")
        if (reference := _reference(content, each)) is not None
    ]
    allowed = max(POINT, float(np.percentile(moved, 99)) if moved else 0.0)
    columns = [c for c in runs.COLUMNS if any(c in e["columns"] for e in _of(content, "fault"))]
    kinds: dict[str, dict[str, list[float]]] = {}
    total: dict[str, list[float]] = {column: [] for column in columns}
    for each in _of(content, "fault"):
        reference = _reference(content, each)
        if reference is None:
            continue
        row = kinds.setdefault(each["kind"], {column: [] for column in columns})
        for column in set(each["columns"]) & set(columns):
            result = each["columns"][column]
            below = reference - result["accuracy"] if not result["raised"] else 100.0
            row[column].append(below)
            total[column].append(below)
    rows = [[kind, *_shares(row, allowed)] for kind, row in sorted(kinds.items())]
    rows.append(["all", *_shares(total, allowed)])
    rows.append(["mean, points below", *(f"{np.mean(each):.2f}" for each in total.values())])
    rows.append(["most, points below", *(f"{max(each):.2f}" for each in total.values())])
    text = markdown(["fault", *columns], rows)
    acted = [each for each in _of(content, "clean") if each["actions"] or each["code"]]
    text += (
        f"\n\nWhole: at most {allowed:.2f} points below the run that nothing befell "
        f"({len(moved)} pairs). Clean runs: {len(_of(content, 'clean'))}, of which the guard acted "
        f"in {len(acted)}."
    )
    lasting = _of(content, "persistent")
    if lasting:
        lines = [
            [e["name"], str(e["clean"]), str(e["accuracy"]), str(e["code"]), e["outcome"]]
            for e in lasting
        ]
        header = ["fault that lasts", "clean", "with it", "rule", "outcome"]
        text += f"\n\n{markdown(header, lines)}"
    chains = _of(content, "kills")
    if chains:
        count = sum(len(each["killed"]) for each in chains)
        other = sum(bool(each["different"] or each["error"]) for each in chains)
        text += (
            f"\n\n{count} kills at random moments in {len(chains)} runs, each resumed until it "
            f"ended: {len(chains) - other} of {len(chains)} ended as undisturbed, bit for bit."
        )
    return text


def _shares(row: dict[str, list[float]], allowed: float) -> list[str]:
    return [f"{sum(below <= allowed for below in each)} of {len(each)}" for each in row.values()]


def main() -> int:
    arguments = _parse()
    if arguments.table:
        content = json.loads(arguments.table.read_text(encoding="utf-8"))
        text = table(content)
        print(text)
        if arguments.page:
            write_between_marks(arguments.page, text)
        return 0
    quick = arguments.quick
    epochs = QUICK_EPOCHS if quick else EPOCHS
    head = {
        "benchmark": "fault_campaign",
        "quick": quick,
        "rounds": epochs,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    first = int(content["commit"][:8], 16)
    steps = epochs * (len(nets.digits()[0]) // nets.BATCH)
    struck = [f"fault {n}" for n in range(1 if quick else arguments.faults)]
    pairs = [f"pair {n}" for n in range(0 if quick else arguments.clean)]
    needed = [
        drawn(int(name.split()[1]), first, steps, arguments.kinds) for name in (*struck, *pairs)
    ]
    # First those that the others are compared with, so that a part of a campaign says something.
    names = sorted({f"reference {f['net']}/{f['optimizer']}/{f['seed']}" for f in needed})
    names += struck
    names += [f"clean {n}" for n in range(1 if quick else arguments.clean)]
    names += pairs
    if arguments.persistent and not quick:
        names += [f"persistent {name}" for name in persistent.ROWS]
    names += [f"kills {n}" for n in range(0 if quick else arguments.kills)]
    wanted = {name: SECONDS[name.split()[0]] for name in names}
    complete = campaign.run(
        wanted,
        lambda name: measure(name, first, epochs, arguments.columns, arguments.kinds),
        content,
        arguments.output,
        _show,
    )
    print(f"\n{table(content)}")
    return 0 if complete else 1


def _show(result: dict[str, Any]) -> str:
    if "killed" in result:
        return f"  {result['killed']} different: {result['different']} {result['error'] or ''}"
    if "columns" not in result:
        return f"  {result['accuracy']} {result['actions']} {result['code']} {result['raised']}"
    lines = [f"  {result['kind']}, {result['net']}, {result['optimizer']} at {result['first']}"]
    for column, each in result["columns"].items():
        told = f"{each['actions'] or ''} {each['code'] or ''} {each['raised']}"
        lines.append(f"    {column}: {each['accuracy']} {told}")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one fault and one clean run, short")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--faults", type=int, default=1000, help="how many faults befall once")
    parser.add_argument("--clean", type=int, default=100, help="how many clean runs, and pairs")
    parser.add_argument("--columns", nargs="+", choices=runs.COLUMNS, default=runs.COLUMNS)
    parser.add_argument("--persistent", action="store_true", help="faults that last, too")
    parser.add_argument("--kills", type=int, default=0, help="runs that are killed three times")
    parser.add_argument("--kinds", nargs="+", help="of the faults that befall once, these alone")
    parser.add_argument("--table", type=Path, help="print the table of a result file, and no more")
    parser.add_argument("--page", type=Path, help="with --table, write it into a page too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
