"""How good outputs are, whatever loss they were trained with."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


def skill_of(y: Any, outputs: Any, kinds: list[str]) -> float:
    """Return the mean over the outputs of what is right beyond guessing; NaN where unknown.

    Of classes that is the accuracy between that of the most frequent class, 0, and 1; of numbers it
    is R², where the loss asks for the numbers themselves.
    """
    pairs = zip(keras.tree.flatten(y), keras.tree.flatten(outputs), kinds, strict=False)
    skills = [_skill(np.asarray(t), np.asarray(o, "float64"), kind) for t, o, kind in pairs]
    known = [each for each in skills if math.isfinite(each)]
    return sum(known) / len(known) if known else math.nan


def output_variation(y: Any, outputs: Any, kinds: list[str]) -> float:
    """Return the deviation of the outputs from row to row in units of the targets'."""
    ratios = []
    for target, output, kind in zip(
        keras.tree.flatten(y), keras.tree.flatten(outputs), kinds, strict=False
    ):
        values = np.asarray(output, "float64").reshape(len(output), -1)
        numbers = np.asarray(target, "float64").reshape(len(target), -1)
        spread = float(values.std(0).mean())
        if kind == "continuous":
            spread /= max(float(numbers.std(0).mean()), 1e-30)
        ratios.append(spread)
    return sum(ratios) / len(ratios) if ratios else math.nan


def _skill(target: Any, output: Any, kind: str) -> float:
    if not np.isfinite(output).all() or not len(output):
        return -1.0
    width = output.shape[-1] if output.ndim > 1 else 1
    if kind in ("classes", "binary") and width > 1 and target.size * width == output.size:
        return _accuracy(output.reshape(-1, width).argmax(-1), target.reshape(-1).astype(int))
    if kind == "one-hot" and target.shape == output.shape:
        return _accuracy(output.reshape(-1, width).argmax(-1), target.reshape(-1, width).argmax(-1))
    if target.size != output.size or kind == "other":
        return math.nan  # a loss that does not ask for these very numbers
    numbers, values = target.reshape(len(target), -1), output.reshape(len(output), -1)
    if kind in ("binary", "multi-hot", "signs"):
        # Probabilities, or logits, or signs.
        middle = 0.5 if values.min() >= 0 and values.max() <= 1 else 0.0
        middle = 0.0 if kind == "signs" else middle
        right = ((values > middle) == (numbers > middle)).mean()
        majority = np.maximum((numbers > middle).mean(0), 1 - (numbers > middle).mean(0)).mean()
        return float((right - majority) / max(1 - majority, 1e-3))
    if kind == "classes" and width == 1:
        return _accuracy(np.round(values).reshape(-1), numbers.reshape(-1))
    spread = ((numbers - numbers.mean(0)) ** 2).sum()
    with np.errstate(over="ignore"):
        value = 1 - ((values - numbers) ** 2).sum() / max(spread, 1e-30)
    return float(max(value, -1e6)) if math.isfinite(value) else -1e6


def _accuracy(guess: Any, truth: Any) -> float:
    counts = np.unique(truth, return_counts=True)[1]
    majority = counts.max() / len(truth)
    return float(((guess == truth).mean() - majority) / max(1 - majority, 1e-3))
