"""Faulty models rescued by `repair`, plain Keras, `stabilize`, ReduceLROnPlateau, random search.

    python benchmarks/rescue.py --cases FOLDER [--output FILE] [--resume] [--workers N] [--only ...]
    python benchmarks/rescue.py --table FILE
    python benchmarks/rescue.py --quick

A case file has a faulty model and its healthy twin, data, a plan and a score (see
`diagnosis.py`). A faulty model counts as rescued if its score comes within 5 % of the distance from
the faulty to the healthy twin, both trained by plain Keras as planned, with the same seed. The
result of `repair` is trained again, from other initial weights. Healthy twins and unusual healthy
nets are passed to `repair` too, which should not change them.

Seeds come from the first eight hex digits of the commit that the campaign begins with. Exit code 1
if a floor is missed. `--quick` takes one case that comes with the benchmarks, with one seed.
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

from harness import campaign
from harness.origin import has_uncommitted_changes, machine
from harness.tables import markdown

OWN_CASES = Path(__file__).resolve().parent / "diagnosis_parts" / "cases"
SEEDS = 3
SECONDS = 60.0
NEAR = 0.05  # of the distance from faulty to healthy
WAYS = ("plain", "stabilize", "reduce", "random", "repair")
FLOORS = {"repair": 0.75, "above random": 0.15, "not needed": 1.0, "held": 0.9, "cost": 3.0}


def measure(path: str, seed: int) -> dict[str, Any]:
    """Return what each way made of a case, with one seed."""
    from rescue_parts import ways

    case = ways.load(Path(path))
    healthy = ways.Twin(case, False, seed)
    result: dict[str, Any] = {
        "metric": case.METRIC,
        "causes": [*case.CAUSES, *case.ALTERNATIVES],
        "healthy": ways.fitted(healthy),
        "repair of healthy": ways.repaired(healthy),
    }
    if case.CAUSES:
        faulty = ways.Twin(case, True, seed)
        result |= {
            "plain": ways.fitted(faulty),
            "stabilize": ways.fitted(faulty, ways.stabilized),
            "reduce": ways.fitted(faulty, ways.reduced),
            "random": ways.at_random(faulty),
            "repair": ways.repaired(faulty),
        }
    return result


def is_rescued(result: dict[str, Any], way: str) -> bool:
    """Tell whether a way came near the healthy twin."""
    score, healthy = result[way]["score"], result["healthy"]["score"]
    if score is None or healthy is None:
        return False
    sign = 1 if result["metric"] == "accuracy" else -1
    plain = result["plain"]["score"]
    # A faulty model without a score is as far as can be.
    distance = abs(healthy - plain) if plain is not None else abs(healthy)
    return bool(sign * (score - healthy) >= -NEAR * distance)


def table(results: dict[str, dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """Return the tables, and the shares that have floors."""
    faulty = {name: each for name, each in results.items() if "plain" in each}
    rows = [
        [name, *("yes" if is_rescued(each, way) else "-" for way in WAYS),
         f"{each['repair']['seconds'] / max(each['plain']['seconds'], 1e-3):.1f}",
         each["repair"]["verdict"], "; ".join(each["repair"]["actions"])]
        for name, each in sorted(faulty.items())
    ]  # fmt: skip
    shares = {way: _share([is_rescued(each, way) for each in faulty.values()]) for way in WAYS}
    claims = [each for each in faulty.values() if each["repair"]["verdict"] == "repaired"]
    kept = [each["repair of healthy"] for each in results.values()]
    costs = [
        each["repair"]["seconds"] / max(each["plain"]["seconds"], 1e-3)
        for each in faulty.values() if each["plain"]["score"] is not None
    ]  # fmt: skip
    held = {
        "repair": shares["repair"],
        "above random": shares["repair"] - shares["random"],
        "not needed": _share([e["verdict"] == "not needed" and e["untouched"] for e in kept]),
        "held": _share([is_rescued(each, "repair") for each in claims]),
        "cost": statistics.median(costs) if costs else 0.0,
    }
    cause = _share(
        [bool(set(e["repair"]["roots"][:3]) & set(e["causes"])) for e in faulty.values()]
    )
    text = markdown(["case", *WAYS, "plain runs", "verdict", "changes"], rows)
    text += "\n\n" + markdown(
        ["rescued", *WAYS], [["share", *(f"{shares[way]:.0%}" for way in WAYS)]]
    )
    text += "\n\n" + markdown(
        ["", "here", "floor"],
        [[name, f"{value:.2f}", f"{FLOORS[name]:.2f}"] for name, value in held.items()],
    )
    return f"{text}\n\nright cause among the first three roots: {cause:.0%}", held


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 1.0


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return 0
    if arguments.table:
        print(table(json.loads(arguments.table.read_text(encoding="utf-8"))["results"])[0])
        return 0
    quick = arguments.quick
    head = {
        "benchmark": "rescue", "quick": quick, "rounds": 1 if quick else SEEDS, **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }  # fmt: skip
    content = campaign.begin(head, arguments.output, arguments.resume)
    first = int(content["commit"][:8], 16)
    paths = sorted((OWN_CASES if quick else arguments.cases).glob("*_*.py"))
    paths = paths[:1] if quick else paths
    tasks = {
        f"{path.stem} {place}": (str(path), (first + place) % 2**32)
        for place in range(content["rounds"]) for path in paths
        if not arguments.only or any(part in path.stem for part in arguments.only)
    }  # fmt: skip

    def take(name: str) -> dict[str, Any] | None:
        if quick:
            return measure(*tasks[name])
        return campaign.in_fresh_process(__file__, tasks[name], threads=1)

    complete = campaign.run(
        dict.fromkeys(tasks, SECONDS), take, content, arguments.output, _shown,
        workers=1 if quick else arguments.workers,
    )  # fmt: skip
    text, held = table(content["results"])
    print(f"\n{text}")
    missed = [
        name for name, value in held.items()
        if (value > FLOORS[name] if name == "cost" else value < FLOORS[name])
    ]  # fmt: skip
    return 0 if complete and (quick or not missed) else 1


def _shown(result: dict[str, Any]) -> str:
    if "plain" not in result:
        return f"  {result['repair of healthy']['verdict']}"
    scores = " ".join(f"{way} {result[way]['score']}" for way in ("healthy", *WAYS))
    return f"  {scores}: {result['repair']['verdict']}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=Path, default=OWN_CASES, help="a folder of cases")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of cases")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--workers", type=int, default=2, help="results measured at a time")
    parser.add_argument("--table", type=Path, help="print the tables of a result file, and no more")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
