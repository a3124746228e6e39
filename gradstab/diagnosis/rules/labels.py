"""Rules on labels: against the loss, the units, the metrics, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.data import TargetLook
from gradstab.diagnosis.looks.structure import HeadLook
from gradstab.diagnosis.rules.heads import (
    BINARY,
    CATEGORICAL,
    OF_NUMBERS,
    OF_PROBABILITIES,
    SPARSE,
    in_words,
    is_beyond,
)

ACCURACIES: Final = (
    "accuracy", "Accuracy", "BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy",
)  # fmt: skip
# Different whole numbers from which on, with gaps between them, targets are quantities.
_MANY: Final = 20


def loss_mismatch(looks: Looks) -> Iterator[Finding]:
    """Find losses that do not go with the kind of target, or with the number of units."""
    for head, target in looks.heads_with_targets():
        if head.units == 1 and head.loss in (*CATEGORICAL, *SPARSE):
            yield Finding(
                "loss-mismatch",
                "error",
                head.layer,
                f"{head.loss} over one unit: it divides outputs by their sum, so the one "
                "probability is always 1, the loss is constant, and nothing is learned.",
                {"units": 1},
                f'- loss="{in_words(head.loss)}"\n+ loss="binary_crossentropy"',
            )
        elif head.loss in OF_PROBABILITIES and is_beyond(head, target):
            is_few = target.kind == "classes" and not _has_gaps(target)
            yield Finding(
                "loss-mismatch",
                "error",
                head.layer,
                f"{head.loss} compares probabilities, but the targets run from "
                f"{target.minimum:.3g} to {target.maximum:.3g}.",
                {"minimum": target.minimum, "maximum": target.maximum},
                (
                    f'- loss="{in_words(head.loss)}"\n+ loss="sparse_categorical_crossentropy"  '
                    f'# with Dense({int(target.maximum) + 1}, activation="softmax")'
                    if is_few
                    else f'- loss="{in_words(head.loss)}"\n+ loss="mean_squared_error"'
                ),
            )
        elif head.loss in OF_NUMBERS and head.units == 1 and are_meant_as_classes(head, target):
            units = int(target.maximum) + 1
            yield Finding(
                "loss-mismatch",
                "warning",
                head.layer,
                f"Accuracy is measured on {target.classes} classes, but {head.loss} on one unit "
                "treats their numbers as quantities: an output between two classes has no meaning.",
                {"classes": target.classes, "units": 1},
                f'- Dense(1), loss="{in_words(head.loss)}"\n'
                f'+ Dense({units}, activation="softmax"), loss="sparse_categorical_crossentropy"',
            )
        elif (
            head.loss in OF_NUMBERS
            and target.kind in ("one-hot", "binary")
            and (
                (head.activation in ("softmax", "sigmoid") and head.units != 1)
                or (head.units == 1 and head.activation == "sigmoid")
            )
        ):
            right = "categorical" if head.activation == "softmax" else "binary"
            yield Finding(
                "loss-mismatch",
                "info",
                head.layer,
                f"{head.loss} on probabilities: where the model is confident and wrong, its "
                "gradient is near 0, so it learns more slowly than with cross-entropy.",
                {},
                f'- loss="{in_words(head.loss)}"\n+ loss="{right}_crossentropy"',
            )
        elif (
            head.loss in BINARY
            and head.activation == "softmax"
            and (head.units or 0) > 1
            and target.kind == "one-hot"
        ):
            yield Finding(
                "loss-mismatch",
                "info",
                head.layer,
                "BinaryCrossentropy treats every class separately, while softmax distributes one "
                "probability among them.",
                {"units": head.units},
                f'- loss="{in_words(head.loss)}"\n+ loss="categorical_crossentropy"',
            )


def are_meant_as_classes(head: HeadLook, target: TargetLook) -> bool:
    """Whether whole numbers, one after the other from 0 or 1, are judged by accuracy."""
    is_row = target.minimum in (0, 1) and target.classes == target.maximum - target.minimum + 1
    is_asked = any(name in ACCURACIES for name in head.metrics)
    return target.kind == "classes" and target.classes > 2 and is_row and is_asked


def _has_gaps(target: TargetLook) -> bool:
    """Whether whole numbers are too many, and too far apart, to be classes."""
    span = target.maximum - target.minimum + 1
    return target.kind == "classes" and _MANY < target.classes < span


def label_range(looks: Looks) -> Iterator[Finding]:
    """Find labels beyond what the output can name."""
    for head, target in looks.heads_with_targets():
        units = head.units or 0
        if head.loss in SPARSE and units > 1 and (target.maximum >= units or target.minimum < 0):
            if not target.whole:
                continue  # said by loss-mismatch
            yield Finding(
                "label-range",
                "error",
                head.layer,
                f"The labels run from {target.minimum:.0f} to {target.maximum:.0f}, but the units "
                f"stand for 0 to {units - 1}: an error on CPUs, NaN under XLA and on GPUs.",
                {"minimum": target.minimum, "maximum": target.maximum, "units": units},
                f"Give the output {int(target.maximum) + 1} units, or count labels from 0: "
                "`y = y - y.min()`.",
            )
        is_sigmoid = head.activation in ("sigmoid", "hard_sigmoid") or head.loss in BINARY
        if is_sigmoid and units == 1 and target.kind in ("signs", "classes"):
            few = target.kind == "signs" or len([c for c in target.counts if c]) == 2
            yield Finding(
                "label-range",
                "error",
                head.layer,
                f"The labels run from {target.minimum:.0f} to {target.maximum:.0f}, but a "
                "sigmoid unit returns numbers between 0 and 1.",
                {"minimum": target.minimum, "maximum": target.maximum},
                'Use 0 and 1: `y = (y > y.min()).astype("float32")`.'
                if few
                else "Use an output without activation, and mean_squared_error."
                if _has_gaps(target)
                else f'Use Dense({int(target.maximum) + 1}, activation="softmax") with '
                "sparse_categorical_crossentropy.",
            )
        if head.loss in ("Poisson", "MeanSquaredLogarithmicError") and target.below_zero > 0:
            yield Finding(
                "label-range",
                "error",
                head.layer,
                f"{head.loss} takes the logarithm of targets, and some are below 0.",
                {"minimum": target.minimum},
                "Use mean_squared_error, or shift the targets.",
            )


def label_encoding(looks: Looks) -> Iterator[Finding]:
    """Find labels written in another way than the loss reads them."""
    for head, target in looks.heads_with_targets():
        units = head.units or 0
        has_same_shape = target.shape == tuple(head.shape)
        if head.loss in SPARSE and units > 1 and target.kind == "one-hot" and has_same_shape:
            yield _encoding(head, "one-hot rows", "class numbers", "categorical_crossentropy")
        elif units > 1 and head.loss in (*CATEGORICAL, *BINARY, *OF_NUMBERS):
            is_numbers = target.kind in ("classes", "binary") and (
                target.shape in ((), (1,)) or target.shape[-1] == 1
            )
            if is_numbers and not has_same_shape:
                yield _encoding(
                    head, "class numbers", "one-hot rows", "sparse_categorical_crossentropy"
                )


def _encoding(head: HeadLook, given: str, expected: str, loss: str) -> Finding:
    return Finding(
        "label-encoding",
        "error",
        head.layer,
        f"The labels are {given}, but {head.loss} over {head.units} units expects {expected}.",
        {"units": head.units},
        f'- loss="{in_words(head.loss)}"\n+ loss="{loss}"',
    )


def metric_mismatch(looks: Looks) -> Iterator[Finding]:
    """Find accuracy as a measure of numbers."""
    for head, target in looks.heads_with_targets():
        wrong = [name for name in head.metrics if name in ACCURACIES]
        if wrong and target.kind == "continuous" and head.loss in OF_NUMBERS:
            yield Finding(
                "metric-mismatch",
                "warning",
                head.layer,
                f"`{wrong[0]}` counts exact matches, and the targets are numbers: it stays near 0 "
                "however good the model is.",
                {"metrics": ", ".join(wrong)},
                f'- metrics=["{wrong[0]}"]\n+ metrics=["mean_absolute_error"]',
            )
