"""Rules on the last activation, against the loss and against the targets."""

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
# Activations whose outputs are neither probabilities nor logits, as the losses read them.
_NO_PROBABILITIES: Final = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "softplus", "softsign",
    "tanh", "hard_tanh", "prelu", "mish",
)  # fmt: skip
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
                "The output is a softmax over one unit, which is 1 for every input, so the "
                "model can't predict anything else.",
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
                "The output passes through two softmaxes, so its probabilities stay close "
                "together and the loss can't come near 0.",
                {"softmaxes": head.softmaxes, "maximum": head.maximum},
                "Remove one of them: the activation, or the `Softmax` layer.",
            )
        elif head.softmaxes == 1 and head.from_logits and head.loss in (*CATEGORICAL, *SPARSE):
            yield Finding(
                "double-softmax",
                "info",
                head.layer,
                "The loss expects logits and the output is a softmax. Keras notices this and does "
                "not apply softmax twice, so it does no harm here.",
                {"softmaxes": 1},
                "Set `from_logits=False`, or remove the activation.",
            )


def logits_without_from_logits(looks: Looks) -> Iterator[Finding]:
    """Find a linear output under a loss that expects probabilities."""
    for head, target in looks.heads_with_targets():
        if (
            not takes_probabilities(head)
            or is_beyond(head, target)
            or (head.units == 1 and (head.loss in (*CATEGORICAL, *SPARSE)))
        ):
            continue
        if head.activation == "linear" or (head.activation is None and _leaves_unit(head)):
            yield Finding(
                "logits-without-from-logits",
                "error",
                head.layer,
                f"The output, from {head.minimum or 0:.3g} to {head.maximum or 0:.3g}, has no "
                f"activation, and {head.loss} reads it as probabilities.",
                {"minimum": head.minimum, "maximum": head.maximum},
                f'- loss="{in_words(head.loss)}"\n'
                f"+ loss=keras.losses.{head.loss}(from_logits=True)",
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
                f"The loss is not finite for the outputs, from {head.minimum or 0:.3g} to "
                f"{head.maximum or 0:.3g}, but finite for probabilities "
                f"({signal.loss_of_probabilities:.3g}): it takes the logarithm of raw outputs.",
                {"minimum": head.minimum, "maximum": head.maximum,
                 "loss_of_probabilities": signal.loss_of_probabilities},
                "Use the Keras loss for logits: "
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
    if not takes_probabilities(head) or is_beyond(head, target):
        return None
    if name in _NO_PROBABILITIES and head.layer is not None:
        right = "sigmoid" if head.loss in BINARY else "softmax"
        return Finding(
            "output-activation",
            "error",
            head.layer,
            f"{head.loss} expects probabilities, and `{name}` does not return any: its outputs are "
            "not between 0 and 1, or do not sum to 1.",
            {"minimum": head.minimum, "maximum": head.maximum, "units": units},
            f'- activation="{name}"\n+ activation="{right}"',
        )
    if name == "sigmoid" and units > 1 and head.loss in (*CATEGORICAL, *SPARSE):
        return Finding(
            "output-activation",
            "info",
            head.layer,
            "Sigmoids with a loss for one class out of several: Keras divides them by their sum, "
            "which trains, but the outputs that you read are not probabilities.",
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
    elif name in ("sigmoid", "hard_sigmoid") and not takes_probabilities(head):
        beyond, bound = target.below_zero + target.above_one, "outside 0 to 1"
    elif name in ("tanh", "hard_tanh", "softsign"):
        beyond, bound = target.below_minus_one + target.above_one, "outside -1 to 1"
    elif name == "softmax" and target.kind in ("multi-hot", "fractions", "continuous"):
        is_same = target.shape == tuple(head.shape)
        beyond, bound = (1 - target.row_sum_share if is_same else 0.0), "in rows not summing to 1"
    if beyond <= _BEYOND or (takes_probabilities(head) and name != "softmax"):
        return None
    if target.kind == "signs" and name in ("sigmoid", "hard_sigmoid"):
        return None  # said by label-range
    right = '"sigmoid"' if target.kind == "multi-hot" else "None"
    return Finding(
        "output-activation",
        "error",
        head.layer,
        f"{beyond:.0%} of the targets lie {bound}, which `{name}` can't reach: the model can't "
        "predict them.",
        {"share": beyond, "minimum": target.minimum, "maximum": target.maximum},
        f'- activation="{name}"\n+ activation={right}',
    )


def takes_probabilities(head: HeadLook) -> bool:
    """Whether the loss reads the output as probabilities."""
    return head.loss in OF_PROBABILITIES and not head.from_logits


def is_beyond(head: HeadLook, target: TargetLook) -> bool:
    """Whether the targets can be neither probabilities nor classes for this output."""
    if head.loss in SPARSE:
        return not target.whole
    is_one_of_many = target.kind == "classes" and head.units == 1 and target.classes > 2
    return target.kind == "continuous" or is_one_of_many


def _leaves_unit(head: HeadLook) -> bool:
    low, high = head.minimum, head.maximum
    return low is not None and high is not None and (low < -1e-6 or high > 1 + 1e-6)


def in_words(name: str) -> str:
    """Return the name of a loss as `compile` takes it."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
