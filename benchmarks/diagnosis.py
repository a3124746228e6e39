"""Diagnoses of faulty models and their healthy twins: causes named, and false alarms.

usage: python benchmarks/diagnosis.py [--cases FOLDER] [--seeds N] [--output FILE] [--quick]

A case is a file that builds a faulty model and its healthy twin (the same model with the smallest
fix), and lists the causes that a right diagnosis names. Each twin is diagnosed with N seeds for
data and initial weights. Prints a row for each case, and the shares with their floors. Writes the
same as JSON after each case, and resumes from it. Exit code 1 if a floor is missed. `--quick` takes
the three cases that come with the script, in about a minute.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from diagnosis_parts.scoring import FLOORS, PUBLISHED, diagnosed, shares, twins
from harness.campaign import begin, run
from harness.origin import git, origin
from harness.tables import markdown

OWN_CASES = Path(__file__).resolve().parent / "diagnosis_parts" / "cases"
# Seconds that one diagnosis is expected to take.
_EXPECTED = 8.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, default=OWN_CASES, help="a folder of cases")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of cases")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on after a change of the code")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    tasks = {
        f"{path.stem} {'faulty' if faulty else 'healthy'} {seed}": (path, faulty, seed)
        for seed in range(seeds)
        for path, faulty in twins(OWN_CASES if arguments.quick else arguments.cases)
        if not arguments.only or any(part in path.stem for part in arguments.only)
    }
    head = {
        "benchmark": "diagnosis", "quick": arguments.quick, "rounds": seeds,
        **origin(git("rev-parse", "HEAD")),
    }  # fmt: skip
    content = begin(head, arguments.output, arguments.resume)
    run(
        dict.fromkeys(tasks, _EXPECTED),
        lambda name: diagnosed(*tasks[name]),
        content,
        arguments.output,
        _shown,
    )
    results = [content["results"][name] for name in tasks]
    held = shares(results)
    print(_table(results))
    rows = [[name, f"{value:.1%}", f"{FLOORS[name]:.0%}"] for name, value in held.items()]
    print(f"\n{markdown(('share', 'here', 'floor'), rows)}\n")
    print(markdown(("others, on other models", "as published"), PUBLISHED))
    return int(any(value < FLOORS[name] for name, value in held.items()))


def _shown(result: dict[str, Any]) -> str:
    roots = ", ".join(f"{code} ({severity[0]})" for code, severity, _ in result["roots"][:3])
    return f"  {result['case']}: {roots or 'nothing'}; {result['seconds']:.1f} s"


def _table(results: list[dict[str, Any]]) -> str:
    rows = []
    for name in dict.fromkeys(each["case"] for each in results):
        faulty = [each for each in results if each["case"] == name and each["faulty"]]
        healthy = [each for each in results if each["case"] == name and not each["faulty"]]
        loud = sum(any(s != "info" for _, s, _ in each["findings"]) for each in healthy)
        rows.append(
            (
                name,
                faulty[0]["main"] if faulty else "",
                f"{sum(e['first'] for e in faulty)}/{len(faulty)}" if faulty else "",
                f"{sum(e['among_three'] for e in faulty)}/{len(faulty)}" if faulty else "",
                f"{loud}/{len(healthy)}",
                f"{max(each['seconds'] for each in (*faulty, *healthy)):.1f}",
            )
        )
    return markdown(("case", "main cause", "first", "of three", "healthy flagged", "seconds"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
