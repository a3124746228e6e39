"""The form of the targets, and the score of predictions."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np

# More whole numbers than these are a count or a year, and not classes.
_MOST_CLASSES = 100


class Kind(enum.Enum):
    """Forms of targets."""

    CLASS_INDEX = "class index"
    ONE_HOT = "one-hot"
    BINARY = "binary"
    MULTI_LABEL = "several labels at once"
    VALUES = "values"


@dataclasses.dataclass(frozen=True)
class Task:
    """The form of one output's targets.

    Attributes:
        kind: Form of the targets.
        num_classes: Number of classes, or 0 for values.
        lowest: Lowest label: 0 for labels that a loss of Keras' can take.
    """

    kind: Kind
    num_classes: int = 0
    lowest: int = 0

    @property
    def is_classification(self) -> bool:
        """Whether the targets are labels."""
        return self.kind is not Kind.VALUES

    def labels(self, y: Any) -> Any:
        """Return targets with labels that begin at 0."""
        if self.kind is Kind.BINARY and self.lowest < 0:
            return (np.asarray(y) > 0).astype("float32")
        return np.asarray(y) - self.lowest if self.lowest else y


def task_of(y: Any, units: int, asks_for_classes: bool) -> Task:
    """Read the form of targets.

    Args:
        y: Targets of one output, with the examples along the first axis.
        units: Size of the output's last axis.
        asks_for_classes: Whether the model's loss or output activation is one for labels. It
            decides where whole numbers could be either labels or values.
    """
    y = np.asarray(y)
    if not np.issubdtype(y.dtype, np.number) and y.dtype != bool:
        return Task(Kind.VALUES)
    known = y[np.isfinite(y)] if np.issubdtype(y.dtype, np.floating) else y.ravel()
    if known.size == 0 or not np.all(known == np.round(known)):
        return Task(Kind.VALUES)
    lowest, highest = int(known.min()), int(known.max())
    is_flag = lowest >= 0 and highest <= 1
    if y.ndim >= 2 and y.shape[-1] > 1 and (y.shape[-1] == units or units == 1):
        if is_flag and np.all(y.sum(-1) == 1):
            return Task(Kind.ONE_HOT, y.shape[-1])
        if is_flag and asks_for_classes:
            return Task(Kind.MULTI_LABEL, y.shape[-1])
        return Task(Kind.VALUES)
    found = np.unique(known)
    if units == 1 and len(found) <= 2 and (is_flag or set(found) == {-1, 1}):
        # A squared error of flags is a classification as well, if an odd one.
        return Task(Kind.BINARY, 2, min(lowest, 0))
    if units > 1 and (y.ndim == 1 or y.shape[-1] == 1):
        span = highest - lowest + 1
        if lowest >= 0 and highest < units:
            return Task(Kind.CLASS_INDEX, units)
        if span <= units or asks_for_classes:
            return Task(Kind.CLASS_INDEX, span, lowest)
        return Task(Kind.VALUES)
    if asks_for_classes and len(found) <= _MOST_CLASSES and len(found) == highest - lowest + 1:
        return Task(Kind.CLASS_INDEX, len(found), lowest)
    return Task(Kind.VALUES)


def score(task: Task, y: Any, prediction: Any) -> float:
    """Return the score of predictions: 1 is perfect, 0 is that of a constant output.

    For values, it is the share of the variance explained. For labels, it is the mean of two shares:
    accuracy above that of the most frequent label, and the label's entropy explained, so that both
    wrong classes and wrong confidence count. The score is never below -1, the score of predictions
    that are not finite.

    Args:
        task: Form of the targets.
        y: Targets.
        prediction: Outputs of the model, probabilities or logits.
    """
    y, prediction = np.asarray(y, "float64"), np.asarray(prediction, "float64")
    if not np.all(np.isfinite(prediction)):
        return -1.0
    if not task.is_classification:
        if prediction.size != y.size:
            return -1.0
        y = y.reshape(prediction.shape)
        spread = max(float(np.var(y)), 1e-30)
        return max(-1.0, 1.0 - float(np.mean(np.square(prediction - y))) / spread)
    if task.kind in (Kind.BINARY, Kind.MULTI_LABEL):
        return _score_of_flags(np.asarray(task.labels(y), "float64"), prediction)
    index = y.argmax(-1) if task.kind is Kind.ONE_HOT else np.asarray(task.labels(y), int)
    probabilities = _probabilities(prediction)
    index = index.reshape(-1)
    probabilities = probabilities.reshape(-1, probabilities.shape[-1])
    if len(index) != len(probabilities) or index.max() >= probabilities.shape[-1]:
        return -1.0
    shares = np.bincount(index, minlength=probabilities.shape[-1]) / len(index)
    right = float(np.mean(probabilities.argmax(-1) == index))
    told = -np.mean(np.log(np.clip(probabilities[np.arange(len(index)), index], 1e-7, 1.0)))
    entropy = -float(np.sum(shares * np.log(np.clip(shares, 1e-12, 1.0))))
    return _mean_of(right, float(shares.max()), float(told), entropy)


def _score_of_flags(y: Any, prediction: Any) -> float:
    if prediction.size != y.size:
        return -1.0
    chances = prediction.reshape(-1)
    y = y.reshape(-1)
    if chances.min() < 0 or chances.max() > 1:
        chances = 1 / (1 + np.exp(-np.clip(chances, -50, 50)))
    share = float(y.mean())
    chances = np.clip(chances, 1e-7, 1 - 1e-7)
    told = -float(np.mean(y * np.log(chances) + (1 - y) * np.log(1 - chances)))
    entropy = -sum(p * np.log(max(p, 1e-12)) for p in (share, 1 - share))
    right = float(np.mean((chances > 0.5) == (y > 0.5)))
    return _mean_of(right, max(share, 1 - share), told, float(entropy))


def _mean_of(right: float, frequent: float, told: float, entropy: float) -> float:
    if frequent >= 1.0:  # One label only: there is nothing to tell apart.
        return 2 * right - 1
    above = (right - frequent) / (1 - frequent)
    explained = 1 - told / max(entropy, 1e-12)
    return (max(-1.0, above) + max(-1.0, explained)) / 2


def _probabilities(prediction: Any) -> Any:
    """Return outputs as probabilities over the last axis: logits get a softmax."""
    if prediction.min() >= 0 and np.allclose(prediction.sum(-1), 1, atol=1e-2):
        return prediction
    if prediction.min() >= 0 and prediction.max() <= 1:  # Keras' losses normalize them, too.
        return prediction / np.maximum(prediction.sum(-1, keepdims=True), 1e-7)
    shifted = np.exp(prediction - prediction.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
