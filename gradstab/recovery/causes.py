"""Names what is wrong with a run, as far as it is known, in words for a verdict.

Weights come before gradients: a gradient that is lost on the way back is lost for every layer
before, so that the first variable without one is the model's first, wherever that began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

from gradstab._layers import layers_in_order
from gradstab.optimizers.model.damage import Damage
from gradstab.optimizers.telemetry.reading import Divergence, Reading

# The rule of a diagnosis that each kind of trouble falls under.
_RULES: Final = {
    "bad_data": "nonfinite-data",
    "explosion": "exploding-gradients",
    "spoiled_statistics": "loss-spikes",
    "spike_stays": "loss-spikes",
    "rate_too_high": "learning-rate-too-high",
    "held_by_limits": "learning-rate-too-high",
    "never_learned": "collapsed-output",
    "forgotten": "collapsed-output",
    "below_zero": "loss-mismatch",
    "zero_gradient": "dead-units",
}


@dataclasses.dataclass(frozen=True)
class Cause:
    """What is wrong with a run.

    Attributes:
        text: In words.
        goes_back: Whether the state is to be put back: to the best, or to where training began.
        is_applied: Whether steps that were applied are at fault; skipped ones changed nothing.
        kind: What kind of trouble it is.
    """

    text: str
    goes_back: bool = True
    is_applied: bool = True
    kind: str = "diverged"

    def because_of(self, batches: Sequence[Any]) -> Cause:
        """Return the cause with the bad batch that made the steps fail, if one was found."""
        if self.kind not in ("skips", "nothing_applied") or not batches:
            return self
        return dataclasses.replace(self, text=f"{self.text} {batches[0]}.", kind="bad_data")

    @property
    def code(self) -> str:
        """Code of the rule of `gradstab.diagnose` that it falls under; docs/rules/ has its page."""
        return _RULES.get(self.kind, "nonfinite-gradients")

    def verdict(self, restored: str) -> str:
        """Return why a run was stopped, and what was put back, in words."""
        page = f"docs/rules/{self.code}.md"
        return f"Training has diverged. {self} {restored} Rule: {self.code} ({page})."

    def __str__(self) -> str:
        return self.text


def of_divergence(
    model: Any, divergence: Divergence, reading: Reading, damage: Damage | None, origin: str = ""
) -> Cause:
    """Say why telemetry counts a run as diverged.

    Args:
        model: The model.
        divergence: What telemetry tells.
        reading: All that telemetry keeps.
        damage: What of the state is not finite.
        origin: What began it, as sentences, where that is known.
    """
    more = f"{lost_between(model, divergence.bad)}{_of_loss(reading)}"
    told = divergence.told(None if damage is None else str(damage), more, origin)
    return Cause(
        told,
        is_applied=divergence.skipped == 0 or damage is not None,
        kind="skips" if divergence.skipped else "nonfinite_gradient",
    )


def of_nothing_applied(
    steps: int, readings: Collection[Reading], damage: Damage | None, origin: str = ""
) -> Cause:
    """Say that all steps of a run were skipped, and why."""
    causes = {
        name for reading in readings for name, count in reading.skipped_by_cause.items() if count
    }
    all_steps = "The one step of this run was" if steps == 1 else f"All {steps} steps were"
    why = "" if origin else "".join(sorted(set(map(_of_loss, readings)))[:1])
    why = f"{why if damage is None else f' {damage}'}{origin}"
    told = f"{all_steps} skipped ({', '.join(sorted(causes))}): nothing was learned.{why}"
    return Cause(told, is_applied=damage is not None, kind="nothing_applied")


def of_zero_gradient(steps: int, layer: str | None) -> Cause:
    """Say that no gradient was ever other than zero, and which layer stops it, if that is known."""
    told = f"The gradient was exactly zero at all {steps} steps: nothing was learned. "
    if layer is None:
        told += "Which layer stops it is not known: does the loss depend on the weights?"
    else:
        told += (
            f"Layer `{layer}` stops it: all of its units are zero on examples of the training data."
        )
    return Cause(told, goes_back=False, kind="zero_gradient")


def lost_between(model: Any, bad: Collection[str]) -> str:
    """Name the layers through which gradients are lost on the way back, or nothing.

    Args:
        model: The model.
        bad: Paths of the variables whose gradient is not finite.
    """
    layers = [layer for layer in layers_in_order(model) if layer is not model]
    places: dict[str, int] = {}
    for place, layer in enumerate(layers):
        places |= {variable.path: place for variable in layer.trainable_variables}
    without = [place for path, place in places.items() if path in bad]
    fine = [place for path, place in places.items() if path not in bad]
    if not without or not fine or max(without) >= min(fine):
        return ""
    last, first = max(without), min(fine)
    between = [layer.name for layer in layers[last + 1 : first] if not layer.weights]
    suspects = " or ".join(f"`{name}`" for name in [*between, layers[first].name])
    return (
        f" From layer `{layers[first].name}` on gradients are finite; in `{layers[last].name}` and "
        f"before they are not. They are lost on the way back through {suspects}."
    )


def _of_loss(reading: Reading) -> str:
    """Say whether the loss of the latest skipped steps was finite, where it is known."""
    losses = reading.loss[reading.skipped][-max(1, reading.consecutive_skips) :]
    if not len(losses) or not np.isfinite(reading.loss).any():
        return ""
    if np.isfinite(losses).all():
        return " Their loss was finite: the gradient is lost on the way back."
    return " Their loss was not finite either: look at the data, the labels and the loss."
