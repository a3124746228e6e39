"""Score tools that name the faults of models: faulty models and their healthy twins.

usage: python benchmarks/faulty_models/score.py [--tools NAME ...] [--cases FOLDER]
       [--only PART ...] [--seeds N] [--output FILE] [--train] [--quick]

A tool is a callable `(case) -> list of ranked codes`; `MODULE:FUNCTION` names one of yours. Prints
a row for each case and the shares of each tool; writes the same as JSON. `--train` asks no tool: it
trains both twins of each case and prints their scores, which shows that the fault is one.
README.md beside this file has the rules. `--quick` takes three cases and one seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diagnosis_parts.scoring import built, judged, load, twins
from harness.origin import git, origin
from harness.tables import markdown

CASES = Path(__file__).resolve().parent / "cases"
QUICK = ("softmax_over_one_unit", "rate_too_low", "linear_on_purpose")


@dataclasses.dataclass(frozen=True)
class Case:
    """What a tool is given: all that its user would have, and nothing of the answer.

    Attributes:
        model: A compiled Keras model, not trained. The tool may train it.
        x: Inputs.
        y: Targets.
        epochs: Epochs as planned.
        batch_size: Batch size as planned.
        seed: For whatever the tool draws.
    """

    model: Any
    x: Any
    y: Any
    epochs: int
    batch_size: int
    seed: int


Tool = Callable[[Case], Sequence[str]]


def gradstab_diagnose(case: Case) -> list[str]:
    """Return the roots of `gradstab.diagnose` above `info`, in its order."""
    import gradstab

    diagnosis = gradstab.diagnose(
        case.model,
        case.x,
        case.y,
        epochs=case.epochs,
        batch_size=case.batch_size,
        seed=case.seed,
    )
    return [each.code for each in diagnosis.roots if each.severity != "info"]


def usual_suspects(case: Case) -> list[str]:
    """Return the same three codes for every model: what a tool has to be better than."""
    return ["unscaled-input", "learning-rate-too-high", "output-activation"]


TOOLS: dict[str, Tool] = {"gradstab": gradstab_diagnose, "usual suspects": usual_suspects}


def find_tool(name: str) -> Tool:
    """Return a tool by its name here, or by `MODULE:FUNCTION`."""
    if name in TOOLS:
        return TOOLS[name]
    module, _, function = name.partition(":")
    if not function:
        raise SystemExit(f"a tool is one of {', '.join(TOOLS)}, or MODULE:FUNCTION; not {name!r}")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), function)


def ask(tool: Tool, path: Path, faulty: bool, seed: int) -> dict[str, Any]:
    """Show one twin to a tool, and judge what it answers."""
    case, model, (x, y, *_), budget = built(path, faulty, seed)
    began = time.perf_counter()
    codes = list(tool(Case(model, x, y, budget["epochs"], budget["batch_size"], seed)))
    seconds = time.perf_counter() - began
    answer = {"case": case.ID, "faulty": faulty, "seed": seed, "codes": codes, "seconds": seconds}
    if faulty:
        fair = {*case.CAUSES, *case.ALTERNATIVES}
        answer |= {**judged(case, codes), "fair": sum(code in fair for code in codes)}
    return answer


def shares(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the row of a tool: what it finds, and what it flags without need."""
    faulty = [each for each in answers if each["faulty"]]
    healthy = [each for each in answers if not each["faulty"]]
    named = sum(len(each["codes"]) for each in faulty)
    return [
        f"{sum(bool(each['codes']) for each in faulty)} of {len(faulty)}",
        f"{sum(each['first'] for each in faulty)} of {len(faulty)}",
        f"{sum(each['among_three'] for each in faulty)} of {len(faulty)}",
        f"{sum(each['fair'] for each in faulty)} of {named}",
        f"{sum(bool(each['codes']) for each in healthy)} of {len(healthy)}",
        f"{statistics.median(each['seconds'] for each in answers):.1f}",
    ]


def case_rows(answers: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each case: its cause, and what one tool named."""
    rows = []
    for name in dict.fromkeys(each["case"] for each in answers):
        faulty = [each for each in answers if each["case"] == name and each["faulty"]]
        healthy = [each for each in answers if each["case"] == name and not each["faulty"]]
        rows.append(
            [
                name,
                faulty[0]["main"] if faulty else "",
                f"{sum(each['first'] for each in faulty)}/{len(faulty)}" if faulty else "",
                ", ".join(faulty[0]["codes"][:3]) or "nothing" if faulty else "",
                ", ".join(dict.fromkeys(code for each in healthy for code in each["codes"])),
            ]
        )
    return rows


def train(path: Path, faulty: bool, seed: int) -> float | str:
    """Train one twin as planned, under plain Keras, and return its score."""
    case, model, (x, y, x_val, y_val), budget = built(path, faulty, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y, verbose=0, **budget)
            return float(case.score(model, x_val, y_val))
    except Exception as error:  # what `fit` raises is the score of a case that raises
        return type(error).__name__


def train_all(chosen: Sequence[tuple[Path, bool]], seeds: int) -> str:
    """Train all twins, and return the table of their scores."""
    rows = []
    for path in dict.fromkeys(path for path, _ in chosen):
        cells = []
        for faulty in [faulty for each, faulty in chosen if each == path]:
            found = [train(path, faulty, seed) for seed in range(seeds)]
            words = [each if isinstance(each, str) else f"{each:.3g}" for each in found]
            cells.append(", ".join(dict.fromkeys(words) if isinstance(found[0], str) else words))
        case = load(path)
        rows.append([case.ID, case.METRIC, *(cells if len(cells) == 2 else ["", *cells])])
        print(f"  {case.ID}: {cells}", file=sys.stderr, flush=True)
    return markdown(("case", "metric", "faulty", "healthy"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS))
    parser.add_argument("--cases", type=Path, default=CASES, help="a folder of cases")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of cases")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file of all answers")
    parser.add_argument("--train", action="store_true", help="train the twins, ask no tool")
    parser.add_argument("--quick", action="store_true", help="three cases, one seed")
    given = parser.parse_args(arguments)
    only = QUICK if given.quick else given.only
    seeds = 1 if given.quick else given.seeds
    chosen = [
        twin
        for twin in twins(given.cases)
        if not only or any(part in twin[0].stem for part in only)
    ]
    if not chosen:
        raise SystemExit(f"no case of that name in {given.cases}")
    if given.train:
        print(train_all(chosen, seeds))
        return 0
    results: dict[str, list[dict[str, Any]]] = {}
    for name in given.tools:
        tool, results[name] = find_tool(name), []
        for path, faulty in chosen:
            for seed in range(seeds):
                answer = ask(tool, path, faulty, seed)
                results[name].append(answer)
                words = ", ".join(answer["codes"]) or "nothing"
                which = "faulty" if faulty else "healthy"
                print(f"  {name}, {path.stem} {which}: {words}", file=sys.stderr, flush=True)
        print(f"\n{name}\n")
        print(
            markdown(("case", "cause", "first", "named", "healthy twin"), case_rows(results[name]))
        )
    head = ("tool", "found faulty", "cause first", "of three", "fair codes", "healthy flagged",
            "seconds")  # fmt: skip
    print(f"\n{markdown(head, [[name, *shares(answers)] for name, answers in results.items()])}")
    if given.output:
        content = {"benchmark": "faulty_models", **origin(git("rev-parse", "HEAD"))}
        text = json.dumps({**content, "results": results}, indent=1)
        given.output.write_text(f"{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
