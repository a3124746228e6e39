"""Deliberate faults against three promises: no run lost, no silent failure, no raw error.

usage: python benchmarks/robustness.py [--only PART ...] [--output FILE] [--quick]

Parts: `directories` (60 corrupted run directories: each is resumed correctly or refused in one
sentence), `records` (hostile records through `gradstab report`, in 3 GiB), `calls` (2,000 calls
with wrong arguments), `kills` (20 runs killed at random moments, which after resuming end where
undisturbed ones do), `faults` (15 kinds of fault x three nets x two optimizers x `fit` and
`train`). Seeds come from the first eight hex digits of the commit. Exit code 1 if a floor is
missed: 0 raw errors, 0 lost, 0 silently dead.
`--quick` makes a few of each part except the faults; its numbers mean little.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from harness.origin import git, versions

PARTS = ("directories", "records", "calls", "kills", "faults")
# What may come of an attack; anything else misses the floor.
FINE = ("refused", "went on", "read", "fine", "mended", "mended, told", "told")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "robustness.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--document", action="store_true", help="put the table into docs")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    commit = git("rev-parse", "HEAD")
    wanted = arguments.only or [part for part in PARTS if part != "faults" or not arguments.quick]
    content: dict[str, Any] = {
        "benchmark": "robustness", "quick": arguments.quick, "commit": commit,
        "date": datetime.date.today().isoformat(), "versions": versions(), "results": {},
    }  # fmt: skip
    missed = 0
    for part in wanted:
        started = time.perf_counter()
        outcomes = {}
        for attack, outcome in _attacks(part, arguments.quick, int(commit[:8], 16)):
            outcomes[attack] = outcome
            if outcome not in FINE:
                missed += 1
                print(f"{part}: {attack}: {outcome}", flush=True)
        content["results"][part] = outcomes
        print(f"{_row(part, outcomes)} {time.perf_counter() - started:.0f} s", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if arguments.document:
        _write_document(content)
    print(f"{missed} below the floor")
    return 1 if missed else 0


def _attacks(part: str, quick: bool, seed: int) -> Iterator[tuple[str, str]]:
    from robustness_parts import calls, faults, reading, runs

    parts: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "directories": lambda: runs.corrupted(6 if quick else 60, seed),
        "records": lambda: reading.attacks(quick=quick),
        "calls": lambda: calls.attacks(200 if quick else 2000, seed),
        "kills": lambda: runs.killed(1 if quick else 20, seed),
        "faults": lambda: faults.table(quick=quick),
    }
    # Numbered, for two attacks may be alike.
    return ((f"{n}: {a}", o) for n, (a, o) in enumerate(parts[part](), start=1))


def _row(part: str, outcomes: dict[str, str]) -> str:
    counts = Counter(outcome if outcome in FINE else "missed" for outcome in outcomes.values())
    told = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common())
    return f"| {part} | {len(outcomes)} | {told} |"


def _write_document(content: dict[str, Any]) -> None:
    begin, end = "<!-- table: begin -->", "<!-- table: end -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    rows = [_row(part, outcomes) for part, outcomes in content["results"].items()]
    table = "\n".join(["| attacks | how many | what came |", "|---|---|---|", *rows])
    at = f"At {content['commit'][:8]}, {content['date']}."
    DOCUMENT.write_text(
        f"{before}{begin}\n{table}\n\n{at}\n{end}{rest.partition(end)[2]}", encoding="utf-8"
    )


if __name__ == "__main__":
    raise SystemExit(main())
