"""Rules on the last activation against the loss, and on both against the labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.data import TargetLook
from gradstab.diagnosis.looks.structure import HeadLook

CATEGORICAL: Final = ("CategoricalCrossentropy", "CategoricalFocalCrossentropy")
SPARSE: Final = ("SparseCategoricalCrossentropy",)
BINARY: Final = ("BinaryCrossentropy", "BinaryFocalCrossentropy")
OF_PROBABILITIES: Final = (*CATEGORICAL, *SPARSE, *BINARY)
OF_NUMBERS: Final = (
    "MeanSquaredError", "MeanAbsoluteError", "MeanSquaredLogarithmicError", "Huber", "LogCosh",
    "MeanAbsolutePercentageError",
)  # fmt: skip
_ACCURACIES: Final = (
    "accuracy", "Accuracy", "BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy",
)  # fmt: skip
# Activations whose outputs are neither probabilities nor logits, as the losses read them.
_NO_PROBABILITIES: Final = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "softplus", "softsign",
    "tanh", "hard_tanh", "prelu", "mish",
)  # fmt: skip
_CLASSES: Final = ("classes", "one-hot", "binary")
# Share of the targets beyond what an output can reach, from which on it is no accident.
_BEYOND: Final = 0.02


def single_unit_softmax(looks: Looks) -> Iterator[Finding]:
    """Find a softmax over one unit, which is always 1."""
    for head, target in looks.heads_with_targets():
        if head.activation == "softmax" and head.units == 1:
            linear = target.kind in ("continuous", "fractions")
            fix = "None" if linear else '"sigmoid"'
            yield Finding(
                "single-unit-softmax",
                "error",
                head.layer,
                "The output is a softmax over one unit, which is 1 for whatever goes in, so the "
                "model can't answer anything else.",
                {"units": 1, "minimum": head.minimum, "maximum": head.maximum},
                f'- Dense(1, activation="softmax")\n+ Dense(1, activation={fix})',
            )


def double_softmax(looks: Looks) -> Iterator[Finding]:
    """Find a softmax of a softmax."""
    for head, _ in looks.heads_with_targets():
        if head.softmaxes >= 2:
            yield Finding(
                "double-softmax",
                "error",
                head.layer,
                "The output goes through two softmaxes, so that its probabilities stay close "
                "together and the loss can't fall near 0.",
                {"softmaxes": head.softmaxes, "maximum": head.maximum},
                "Leave out one of them: `Dense(units)` before `Softmax()`, or the activation alone.",
            )
        elif head.softmaxes == 1 and head.from_logits and head.loss in (*CATEGORICAL, *SPARSE):
            yield Finding(
                "double-softmax",
                "info",
                head.layer,
                "The loss expects logits and the output is a softmax. Keras undoes the one, so it "
                "does no harm here.",
                {"softmaxes": 1},
                "Say `from_logits=False`, or leave out the activation.",
            )


def logits_without_from_logits(looks: Looks) -> Iterator[Finding]:
    """Find a linear output under a loss that expects probabilities."""
    for head, target in looks.heads_with_targets():
        if (
            not _takes_probabilities(head)
            or _is_beyond(head, target)
            or (head.units == 1 and (head.loss in (*CATEGORICAL, *SPARSE)))
        ):
            continue
        if head.activation == "linear" or (head.activation is None and _leaves_unit(head)):
            yield Finding(
                "logits-without-from-logits",
                "error",
                head.layer,
                f"The output is not squashed, from {head.minimum or 0:.3g} to "
                f"{head.maximum or 0:.3g}, and {head.loss} takes it for probabilities.",
                {"minimum": head.minimum, "maximum": head.maximum},
                f'- loss="{_snake(head.loss)}"\n+ loss=keras.losses.{head.loss}(from_logits=True)',
            )
    signal = looks.signal
    custom = [head for head in looks.structure.heads if head.loss == "custom"]
    if custom and signal.outputs_finite and signal.loss is not None:
        head = custom[0]
        is_bad = signal.loss != signal.loss or abs(signal.loss) == float("inf")
        if is_bad and signal.loss_of_probabilities is not None and _leaves_unit(head):
            yield Finding(
                "logits-without-from-logits",
                "error",
                head.layer,
                f"The loss is not finite for outputs from {head.minimum or 0:.3g} to "
                f"{head.maximum or 0:.3g}, and it is for probabilities "
                f"({signal.loss_of_probabilities:.3g}): it takes the logarithm of raw outputs.",
                {"minimum": head.minimum, "maximum": head.maximum,
                 "loss_of_probabilities": signal.loss_of_probabilities},
                "Use Keras' loss in its form for logits: "
                "`keras.losses.BinaryCrossentropy(from_logits=True)` or "
                "`CategoricalCrossentropy(from_logits=True)`.",
            )  # fmt: skip


def output_activation(looks: Looks) -> Iterator[Finding]:
    """Find last activations that can't give what loss or targets ask for."""
    for head, target in looks.heads_with_targets():
        finding = _of_loss(head, target) or _of_range(head, target)
        if finding is not None:
            yield finding


def _of_loss(head: HeadLook, target: TargetLook) -> Finding | None:
    name, units = head.activation, head.units or 0
    if not _takes_probabilities(head) or _is_beyond(head, target):
        return None
    if name in _NO_PROBABILITIES and head.layer is not None:
        right = "sigmoid" if head.loss in BINARY else "softmax"
        return Finding(
            "output-activation",
            "error",
            head.layer,
            f"{head.loss} expects probabilities, and `{name}` gives none: its outputs are not "
            "between 0 and 1, or do not depend on each other.",
            {"minimum": head.minimum, "maximum": head.maximum, "units": units},
            f'- activation="{name}"\n+ activation="{right}"',
        )
    if name == "sigmoid" and units > 1 and head.loss in (*CATEGORICAL, *SPARSE):
        return Finding(
            "output-activation",
            "info",
            head.layer,
            "Sigmoids under a loss for one class out of several: Keras divides them by their sum, "
            "which trains, but they are no probabilities when you read them.",
            {"units": units},
            '- activation="sigmoid"\n+ activation="softmax"',
        )
    return None


def _of_range(head: HeadLook, target: TargetLook) -> Finding | None:
    name = head.activation
    beyond, bound = 0.0, ""
    if head.units == 1 and name == "softmax":
        return None  # said by single-unit-softmax
    if name in ("relu", "softplus", "relu6"):
        beyond, bound = target.below_zero, "below 0"
    elif name in ("sigmoid", "hard_sigmoid") and not _takes_probabilities(head):
        beyond, bound = target.below_zero + target.above_one, "outside 0 to 1"
    elif name in ("tanh", "hard_tanh", "softsign"):
        beyond, bound = target.below_minus_one + target.above_one, "outside -1 to 1"
    elif name == "softmax" and target.kind in ("multi-hot", "fractions", "continuous"):
        is_same = target.shape == tuple(head.shape)
        beyond, bound = (1 - target.row_sum_share if is_same else 0.0), "in rows not summing to 1"
    if beyond <= _BEYOND or (_takes_probabilities(head) and name != "softmax"):
        return None
    if target.kind == "signs" and name in ("sigmoid", "hard_sigmoid"):
        return None  # said by label-range
    right = '"sigmoid"' if target.kind == "multi-hot" else "None"
    return Finding(
        "output-activation",
        "error",
        head.layer,
        f"{beyond:.0%} of the targets lie {bound}, where `{name}` never gets: the model can't "
        "answer them.",
        {"share": beyond, "minimum": target.minimum, "maximum": target.maximum},
        f'- activation="{name}"\n+ activation={right}',
    )


def loss_mismatch(looks: Looks) -> Iterator[Finding]:
    """Find losses that do not go with the kind of target, or with the number of units."""
    for head, target in looks.heads_with_targets():
        if head.units == 1 and head.loss in (*CATEGORICAL, *SPARSE):
            yield Finding(
                "loss-mismatch",
                "error",
                head.layer,
                f"{head.loss} over one unit: after its division by the sum the one probability is "
                "always 1, so the loss is 0 or constant and nothing is learned.",
                {"units": 1},
                f'- loss="{_snake(head.loss)}"\n+ loss="binary_crossentropy"',
            )
        elif head.loss in OF_PROBABILITIES and _is_beyond(head, target):
            is_few = target.kind == "classes"
            yield Finding(
                "loss-mismatch",
                "error",
                head.layer,
                f"{head.loss} is for probabilities, and the targets run from {target.minimum:.3g} "
                f"to {target.maximum:.3g}.",
                {"minimum": target.minimum, "maximum": target.maximum},
                (
                    f'- loss="{_snake(head.loss)}"\n+ loss="sparse_categorical_crossentropy"  '
                    f'# with Dense({int(target.maximum) + 1}, activation="softmax")'
                    if is_few
                    else f'- loss="{_snake(head.loss)}"\n+ loss="mean_squared_error"'
                ),
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
                f"{head.loss} on probabilities: where the model is sure and wrong its gradient is "
                "near 0, so it learns more slowly than with cross-entropy.",
                {},
                f'- loss="{_snake(head.loss)}"\n+ loss="{right}_crossentropy"',
            )
        elif head.loss in BINARY and head.activation == "softmax" and (head.units or 0) > 1:
            if target.kind == "one-hot":
                yield Finding(
                    "loss-mismatch",
                    "info",
                    head.layer,
                    "BinaryCrossentropy looks at every class by itself, while softmax shares one "
                    "probability among them.",
                    {"units": head.units},
                    f'- loss="{_snake(head.loss)}"\n+ loss="categorical_crossentropy"',
                )


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
                f"The labels run from {target.minimum:.0f} to {target.maximum:.0f}, and the output "
                f"has units for 0 to {units - 1}: an error on CPUs, NaN under XLA and on GPUs.",
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
                f"The labels run from {target.minimum:.0f} to {target.maximum:.0f}, and one "
                "sigmoid unit answers between 0 and 1.",
                {"minimum": target.minimum, "maximum": target.maximum},
                'Use 0 and 1: `y = (y > y.min()).astype("float32")`.'
                if few
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
        f"The labels are {given}, and {head.loss} over {head.units} units reads {expected}.",
        {"units": head.units},
        f'- loss="{_snake(head.loss)}"\n+ loss="{loss}"',
    )


def metric_mismatch(looks: Looks) -> Iterator[Finding]:
    """Find accuracy as a measure of numbers."""
    for head, target in looks.heads_with_targets():
        wrong = [name for name in head.metrics if name in _ACCURACIES]
        if wrong and target.kind == "continuous" and head.loss in OF_NUMBERS:
            yield Finding(
                "metric-mismatch",
                "warning",
                head.layer,
                f"`{wrong[0]}` counts exact hits, and the targets are numbers: it stays near 0 "
                "however good the model is.",
                {"metrics": ", ".join(wrong)},
                f'- metrics=["{wrong[0]}"]\n+ metrics=["mean_absolute_error"]',
            )


def _takes_probabilities(head: HeadLook) -> bool:
    return head.loss in OF_PROBABILITIES and not head.from_logits


def _is_beyond(head: HeadLook, target: TargetLook) -> bool:
    """Whether the targets can be neither probabilities nor classes for this output."""
    if head.loss in SPARSE:
        return not target.whole
    is_one_of_many = target.kind == "classes" and head.units == 1 and target.classes > 2
    return target.kind == "continuous" or is_one_of_many


def _leaves_unit(head: HeadLook) -> bool:
    low, high = head.minimum, head.maximum
    return low is not None and high is not None and (low < -1e-6 or high > 1 + 1e-6)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
