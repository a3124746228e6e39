"""What the runs come to: each recipe against its bare optimizer, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from harness.intervals import median_interval
from harness.tables import markdown

from schedule_parts.runs import BARE, DEFAULT_RATE, RECIPE, USABLE

# (floor, aim): the difference in points at least, the share of the epochs at
# most, octaves at least.
POINTS, EPOCHS, OCTAVES = (-0.3, 0.3), (1.0, 0.75), (1.0, 2.0)


def judge(results: Mapping[str, Mapping[str, Any]], draw: np.random.Generator) -> list[Any]:
    """Return a verdict for each model and optimizer.

    Rates are chosen by the median over the seeds of the last validation score, one for all seeds.
    All that is reported is of test data.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results.values():
        groups.setdefault((result["model"], result["optimizer"]), []).append(result)
    return [_judge(*names, group, draw) for names, group in groups.items()]


def _judge(
    model: str, optimizer: str, seeds: Sequence[Mapping[str, Any]], draw: np.random.Generator
) -> dict[str, Any]:
    fixed, peak = (_chosen(seeds, way) for way in (BARE, RECIPE))
    points, epochs, octaves = [], [], []
    for seed in seeds:
        bare, recipe = (seed["scores"][way] for way in (BARE, RECIPE))
        goal = _last(bare[fixed]["test"])
        points.append(_last(recipe[peak]["test"]) - goal)
        needed = _first(recipe[peak]["test"], goal)
        # Of the fixed rate the first epoch counts too: its last one may not be its best.
        epochs.append(needed / _first(bare[fixed]["test"], goal))
        octaves.append(_highest(recipe, goal) - _highest(bare, goal))
    default = [_last(seed["scores"][BARE]["0"]["test"]) for seed in seeds]
    return {
        "model": model,
        "optimizer": optimizer,
        "seeds": len(seeds),
        "epochs": seeds[0]["epochs"],
        "at_default_rate": statistics.median(default),
        "fixed_rate": DEFAULT_RATE * 2.0 ** int(fixed),
        "at_fixed_rate": _median_last(seeds, BARE, fixed),
        "peak_rate": DEFAULT_RATE * 2.0 ** int(peak),
        "by_recipe": _median_last(seeds, RECIPE, peak),
        "points": _interval(points, draw),
        "share_of_epochs": _interval(epochs, draw),
        "octaves": _interval(octaves, draw),
    }


def table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts in Markdown."""
    header = [
        "model", "optimizer", "rate 0.001", "best fixed", "recipe", "points", "epochs, share",
        "octaves", f"floors {POINTS[0]}, {EPOCHS[0]}, {OCTAVES[0]}",
        f"aims {POINTS[1]}, {EPOCHS[1]}, {OCTAVES[1]}",
    ]  # fmt: skip
    rows = [
        [
            each["model"],
            each["optimizer"],
            f"{each['at_default_rate']:.2f}",
            f"{each['at_fixed_rate']:.2f} at {each['fixed_rate']:.3g}",
            f"{each['by_recipe']:.2f} at {each['peak_rate']:.3g}",
            *(_shown(each[name]) for name in ("points", "share_of_epochs", "octaves")),
            ", ".join("holds" if holds else "FAILS" for holds in _compare(each, 0)),
            ", ".join("reached" if reached else "missed" for reached in _compare(each, 1)),
        ]
        for each in verdicts
    ]
    return (
        f"{markdown(header, rows)}\n\nTest scores, medians over the seeds: accuracy in per cent "
        "(CNN), and -100 times the loss per character in nats, of which a point is 1 % of the "
        "perplexity.\nDifferences are paired by seed: median, and its 95 % interval. Epochs: those "
        "that the recipe needs to the last score of the best fixed rate, over those that this rate "
        "needs itself\n(a run that does not get there counts one epoch more than it has). Octaves: "
        f"between the highest rates that end within {USABLE:g} points of the best fixed rate."
    )


def _compare(verdict: Mapping[str, Any], place: int) -> tuple[bool, bool, bool]:
    return (
        verdict["points"][0] >= POINTS[place],
        verdict["share_of_epochs"][0] <= EPOCHS[place],
        verdict["octaves"][0] >= OCTAVES[place],
    )


def _shown(numbers: Sequence[float]) -> str:
    median, low, high = numbers
    return f"{median:.2f} ({low:.2f} .. {high:.2f})"


def _last(scores: Sequence[float | None]) -> float:
    """Return the score at the end; a run that ended in NaN is worse than any other."""
    return -1e9 if scores[-1] is None else scores[-1]


def _median_last(
    seeds: Sequence[Mapping[str, Any]], way: str, rate: str, of: str = "test"
) -> float:
    return statistics.median(_last(seed["scores"][way][rate][of]) for seed in seeds)


def _chosen(seeds: Sequence[Mapping[str, Any]], way: str) -> str:
    """Return the rate that is best on validation data, of those that all seeds ran."""
    rates = set.intersection(*(set(seed["scores"][way]) for seed in seeds))
    return max(
        sorted(rates, key=int), key=lambda rate: _median_last(seeds, way, rate, "validation")
    )


def _first(scores: Sequence[float | None], goal: float) -> int:
    """Return the first epoch that ends with a score, or one more than there are."""
    reached = [place for place, score in enumerate(scores) if score is not None and score >= goal]
    return reached[0] + 1 if reached else len(scores) + 1


def _highest(rates: Mapping[str, Mapping[str, Any]], goal: float) -> float:
    """Return the highest usable rate in octaves; one below the lowest where none is."""
    usable = [int(rate) for rate, each in rates.items() if _last(each["test"]) >= goal - USABLE]
    return float(max(usable)) if usable else float(min(map(int, rates)) - 1)


def _interval(values: Sequence[float], draw: np.random.Generator) -> list[float]:
    """Return the median and its 95 % interval, by bootstrap over the seeds."""
    low, middle, high = median_interval(values, draw)
    found = [middle, low, high]
    return [number if math.isfinite(number) else -1e9 for number in found]
