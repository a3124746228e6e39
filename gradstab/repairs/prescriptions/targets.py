"""Targets on the scale on which a fresh net answers."""

from __future__ import annotations

from typing import final

import keras
import numpy as np

from gradstab.repairs.draft import Draft, activation_of, loss_name
from gradstab.repairs.prescriptions.base import Change, Prescription

_LARGEST, _SMALLEST = 5.0, 0.2


@final
class ScaleTargets(Prescription):
    """A fixed `Rescaling` behind a linear output, so that the net itself answers on unit scale.

    Predictions and targets keep their units. The loss is divided by what the scale multiplies it
    with, for the optimizers that feel it.
    """

    name = "scale the targets by a layer behind the output"
    heals = ("unscaled-target",)
    helps = (
        "exploding-gradients",
        "learning-rate-too-low",
        "learning-rate-too-high",
        "too-few-epochs",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Put the layer in; its numbers come from the targets."""
        if len(draft.heads) != 1 or draft.tasks[0].is_classification or draft.at_output:
            return []
        head = draft.model.get_layer(draft.heads[0])
        if activation_of(draft.config(head)) not in ("", "linear"):
            return []
        if isinstance(head, keras.layers.Rescaling):
            return []
        y = np.asarray(draft.y, "float64").reshape(len(draft.y), -1)
        mean, deviation = np.nanmean(y, 0), np.nanstd(y, 0)
        if _SMALLEST <= deviation.max() <= _LARGEST and np.abs(mean).max() <= _LARGEST:
            return []
        deviation = np.where(deviation > 0, deviation, 1.0)
        if y.shape[1] == 1 or np.ndim(draft.y) > 2:
            scale, offset = float(np.nanstd(y)) or 1.0, float(np.nanmean(y))
        else:
            scale, offset = deviation.tolist(), mean.tolist()
        draft.at_output = [lambda: keras.layers.Rescaling(scale, offset=offset)]
        power = _POWERS.get(loss_name(draft.loss))
        changes = [Change("", f"keras.layers.Rescaling({_text(scale)}, offset={_text(offset)})"
                              "  # last layer: deviation and mean of the targets")]  # fmt: skip
        if power and draft.loss_weights is None:
            draft.loss_weights = float(np.mean(scale) ** -power)
            changes.append(
                Change("model.compile(...)",
                       f"model.compile(..., loss_weights={draft.loss_weights:.3g})")
            )  # fmt: skip
        return changes


# How the loss grows with the scale of the targets.
_POWERS = {"mean_squared_error": 2, "mean_absolute_error": 1}


def _text(value: float | list[float]) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "[" + ", ".join(f"{each:.6g}" for each in value) + "]"
