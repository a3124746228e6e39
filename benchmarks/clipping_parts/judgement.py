"""What the runs come to, paired by seed: against plain Keras, and `auto` against every other."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from harness.intervals import median_interval
from harness.tables import markdown

from clipping_parts.candidates import AUTO, OPTIMIZERS, PLAIN, names
from clipping_parts.runs import BASE_RATE, median_score
from clipping_parts.tasks import CHOSEN_ON, MEMORY, TASKS

NOISE, HIT = 1.0, -1.0  # points
MOST_CLIPPED = 0.01
LEAST_OCTAVES = 3  # by which the highest usable rate of SGD is to rise
EXPLODING = 5.0  # points that an exploding start may lie below the best candidate
SOLVED = {"temporal order": 99.0, "adding": -100 * 0.04}

Results = Mapping[str, Mapping[str, Any]]
# By model and optimizer, then by candidate.
Groups = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]


def grouped(results: Results) -> Groups:
    """Return the results in the order of the tasks, where there is a plain one to compare with."""
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for model, optimizer in itertools.product(TASKS, OPTIMIZERS):
        found = {name: f"{model}, {optimizer}, {name}" for name in names(optimizer)}
        if found[PLAIN] in results:
            groups[model, optimizer] = {
                name: results[key] for name, key in found.items() if key in results
            }
    return groups


def complete(groups: Groups) -> Groups:
    """Return the groups in which all candidates were measured that there are for an optimizer."""
    return {
        (model, optimizer): group
        for (model, optimizer), group in groups.items()
        if set(names(optimizer)) <= set(group)
    }


def only(groups: Groups, *candidates: str) -> Groups:
    """Return these candidates of each group that has them all."""
    return {
        key: {candidate: group[candidate] for candidate in candidates}
        for key, group in groups.items()
        if set(candidates) <= set(group)
    }


def healthy_table(groups: Groups, draw: np.random.Generator) -> str:
    """Return the differences to plain at its best rate, and the share of steps clipped."""
    header = ["model", "optimizer", "rate", "plain", *_candidates(groups)]
    rows = []
    for (model, optimizer), group in groups.items():
        if model in MEMORY:
            continue
        plain = group[PLAIN]
        best = str(plain["exponent"])
        row = [
            _marked(model),
            optimizer,
            f"{BASE_RATE * 2.0 ** plain['exponent']:.3g}",
            f"{median_score(plain['rates'][best], 'test'):.1f}",
        ]
        for candidate in _candidates(groups):
            if candidate not in group:
                row.append("-")
                continue
            runs = group[candidate]["rates"][best]
            low, middle, high = median_interval(differences(runs, plain["rates"][best]), draw)
            row.append(f"{middle:+.1f} ({low:+.1f} .. {high:+.1f}), {touched(runs):.1%}")
        rows.append(row)
    return markdown(header, rows)


def hit_table(groups: Groups) -> str:
    """Return the differences to the plain run without the fault."""
    header = ["model", "optimizer", "fault", "plain", *_candidates(groups)]
    rows = []
    for (model, optimizer), group in groups.items():
        plain = group[PLAIN]
        clean = plain["rates"][str(plain["exponent"])]
        for fault in plain["faults"]:
            row = [_marked(model), optimizer, fault]
            for candidate in (PLAIN, *_candidates(groups)):
                if candidate not in group:
                    row.append("-")
                    continue
                runs = group[candidate]["faults"][fault]
                row.append(points(statistics.median(differences(runs, clean))))
            rows.append(row)
    return markdown(header, rows)


def band_table(groups: Groups) -> str:
    """Return the usable rates of plain, and by how many octaves each candidate shifts its ends."""
    header = ["model", "optimizer", "plain", *_candidates(groups)]
    rows = []
    for (model, optimizer), group in groups.items():
        if model in MEMORY:
            continue
        low, high = band(group[PLAIN])
        row = [
            _marked(model),
            optimizer,
            f"{BASE_RATE * 2.0**low:.3g} .. {BASE_RATE * 2.0**high:.3g}",
        ]
        for candidate in _candidates(groups):
            if candidate not in group:
                row.append("-")
                continue
            ends = band(group[candidate])
            row.append(f"{ends[0] - low:+d}, {ends[1] - high:+d}")
        rows.append(row)
    return markdown(header, rows)


def memory_table(groups: Groups) -> str:
    """Return how many seeds solve each problem, at the best of a candidate's rates."""
    header = ["problem", "optimizer", "plain", *_candidates(groups)]
    rows = []
    for (model, optimizer), group in groups.items():
        if model not in MEMORY:
            continue
        row = [model, optimizer]
        for candidate in (PLAIN, *_candidates(groups)):
            row.append(_solved(group[candidate], model) if candidate in group else "-")
        rows.append(row)
    return markdown(header, rows) if rows else ""


def verdicts(groups: Groups, draw: np.random.Generator) -> list[str]:
    """Return a line for each floor and aim of `auto`."""
    lines = []
    for (model, optimizer), group in groups.items():
        if AUTO not in group or model in MEMORY:
            continue
        plain, auto = group[PLAIN], group[AUTO]
        best = str(plain["exponent"])
        clean = plain["rates"][best]
        name = f"{_marked(model)}, {optimizer}"
        low, middle, high = median_interval(differences(auto["rates"][best], clean), draw)
        share = touched(auto["rates"][best])
        within = low <= 0 <= high or (low >= -NOISE and high <= NOISE)
        fine = within or low > 0
        lines.append(
            f"{name}: healthy {middle:+.2f} ({low:+.2f} .. {high:+.2f}), {share:.1%} of steps "
            f"clipped: {_holds(fine and share <= MOST_CLIPPED)}"
        )
        for fault in plain["faults"]:
            found = {
                candidate: statistics.median(differences(result["faults"][fault], clean))
                for candidate, result in group.items()
            }
            first = max((each for each in found if each != AUTO), key=lambda each: found[each])
            if fault == "exploding start":
                holds = found[AUTO] >= found[first] - EXPLODING
            else:
                holds = found[AUTO] >= HIT or found[first] < HIT
            lines.append(
                f"{name}: {fault} {points(found[AUTO])}, best other {points(found[first])} "
                f"({first}): {_holds(holds)}"
            )
        edges = {candidate: band(result)[1] for candidate, result in group.items()}
        others = max(edge for candidate, edge in edges.items() if candidate != AUTO)
        gained = edges[AUTO] - edges[PLAIN]
        least = LEAST_OCTAVES if optimizer == "SGD" else 0
        lines.append(
            f"{name}: upper edge {gained:+d} octaves to plain, {edges[AUTO] - others:+d} to the "
            f"best other: {_holds(gained >= least)}"
        )
    return lines


def _candidates(groups: Groups) -> list[str]:
    found = dict.fromkeys(name for group in groups.values() for name in group if name != PLAIN)
    return [*[name for name in found if name != AUTO], *[name for name in found if name == AUTO]]


def _marked(model: str) -> str:
    return f"{model}*" if model in CHOSEN_ON else model


def differences(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the scores of runs less those of others, paired by seed."""
    return [_score(run) - _score(other) for run, other in zip(runs, base, strict=True)]


def _score(run: Mapping[str, Any]) -> float:
    return -1e9 if run["test"] is None else float(run["test"])


def touched(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the median share of steps that were clipped, limited or skipped."""
    return statistics.median(run["clipped"] + run["skipped"] for run in runs)


def band(result: Mapping[str, Any]) -> tuple[int, int]:
    """Return the ends of the rates, without a gap from the best one on, that are usable."""
    rates = {int(exponent): runs for exponent, runs in result["rates"].items()}
    ends = []
    for way in (-1, 1):
        end = result["exponent"]
        while end + way in rates and median_score(rates[end + way], "test") >= result["usable"]:
            end += way
        ends.append(end)
    return ends[0], ends[1]


def _solved(result: Mapping[str, Any], model: str) -> str:
    counts = {
        exponent: sum(_score(run) >= SOLVED[model] for run in runs)
        for exponent, runs in result["rates"].items()
    }
    best = max(
        result["rates"], key=lambda exponent: median_score(result["rates"][exponent], "validation")
    )
    return f"{counts[best]} of {len(result['rates'][best])}"


def points(number: float) -> str:
    """Return points as text."""
    return "lost" if number < -1e4 else f"{number:+.1f}"


def _holds(holds: bool) -> str:
    return "holds" if holds else "FAILS"
