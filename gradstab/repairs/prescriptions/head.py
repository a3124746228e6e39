"""Output activation, loss and labels that fit each other."""

from __future__ import annotations

from typing import Any, final

import keras
import numpy as np

from gradstab.repairs.draft import Draft, activation_of, loss_name
from gradstab.repairs.prescriptions.base import Change, Prescription, changed
from gradstab.repairs.task import Kind, Task

# Form of the targets: activation of the output, and loss.
_FITS = {
    Kind.BINARY: ("sigmoid", "binary_crossentropy"),
    Kind.MULTI_LABEL: ("sigmoid", "binary_crossentropy"),
    Kind.ONE_HOT: ("softmax", "categorical_crossentropy"),
    Kind.CLASS_INDEX: ("softmax", "sparse_categorical_crossentropy"),
    Kind.VALUES: ("linear", "mean_squared_error"),
}
# What an activation can reach, where that is not all numbers.
_REACHES = {
    "sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0), "hard_tanh": (-1.0, 1.0), "relu": (0.0, np.inf), "relu6": (0.0, 6.0),
    "softplus": (0.0, np.inf), "exponential": (0.0, np.inf),
}  # fmt: skip
_LABEL_LOSSES = ("crossentropy", "hinge", "nll", "focal")


@final
class FitHead(Prescription):
    """The usual output activation and loss for the targets that there are, and labels from 0 on."""

    name = "make output, loss and labels fit"
    heals = (
        "single-unit-softmax",
        "double-softmax",
        "logits-without-from-logits",
        "output-activation",
        "loss-mismatch",
        "label-range",
        "label-encoding",
    )
    helps = (
        "wrong-shape",
        "collapsed-output",
        "nonfinite-gradients",
        "nonfinite-forward",
        "learning-rate-too-low",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Change what does not fit, one output after the other."""
        if not draft.is_editable:
            return []
        changes: list[Change] = []
        losses = draft.by_output(draft.loss, len(draft.tasks))
        for place, (name, task) in enumerate(zip(draft.heads, draft.tasks, strict=True)):
            head = draft.model.get_layer(name)
            y = keras.tree.flatten(draft.y)[place]
            changes += self._activation(draft, head, task, y)
            wanted = _loss(losses[place], task, activation_of(draft.config(head)))
            if wanted != losses[place]:
                changes.append(Change(f'loss="{loss_name(losses[place])}"', f'loss="{wanted}"'))
                losses[place] = wanted
        if any(change.before.startswith("loss=") for change in changes):
            draft.loss = losses[0] if len(losses) == 1 else losses
        return changes + _labels(draft)

    def _activation(self, draft: Draft, head: Any, task: Task, y: Any) -> list[Change]:
        config = draft.config(head)
        changes: list[Change] = []
        before = _layer_before(draft, head)
        if isinstance(head, keras.layers.Softmax):
            if config["axis"] == 0:  # That of the batch.
                changes.append(changed(draft, head, axis=-1))
            if task.kind in (Kind.ONE_HOT, Kind.CLASS_INDEX):
                if before is not None and activation_of(draft.config(before)) == "softmax":
                    changes.append(changed(draft, before, activation="linear"))
                return changes
            return []  # A `Softmax` layer can't be given another activation.
        if "activation" not in config:
            return []
        if (
            isinstance(head, keras.layers.Activation)
            and before is not None
            and activation_of(draft.config(before)) == "softmax"
        ):
            changes.append(changed(draft, before, activation="linear"))
        wanted = _activation_for(task, activation_of(config) or "linear", y)
        entries: dict[str, Any] = {}
        if wanted != (activation_of(config) or "linear"):
            entries["activation"] = wanted
        if (
            task.kind is Kind.CLASS_INDEX
            and config.get("units", task.num_classes) < task.num_classes
        ):
            entries["units"] = task.num_classes
        if entries:
            changes.append(changed(draft, head, **entries))
        return changes


def _activation_for(task: Task, now: str, y: Any) -> str:
    if task.is_classification:
        return _FITS[task.kind][0]
    lowest, highest = float(np.nanmin(y)), float(np.nanmax(y))
    reach = _REACHES.get(now, (-np.inf, np.inf))
    if now == "softmax" or lowest < reach[0] or highest > reach[1]:
        return "linear"
    return now


def _loss(loss: Any, task: Task, activation: str) -> Any:
    """Return the loss as it is where it fits the targets, else the usual one."""
    name = loss_name(loss)
    if not task.is_classification:
        is_for_labels = any(each in name for each in _LABEL_LOSSES)
        unit = activation in ("sigmoid", "hard_sigmoid") and name == "binary_crossentropy"
        return _FITS[task.kind][1] if is_for_labels and not unit else loss
    wanted = _FITS[task.kind][1]
    from_logits = bool(getattr(loss, "from_logits", False))
    if name == wanted and not from_logits:
        return loss
    return wanted


def _labels(draft: Draft) -> list[Change]:
    """Let labels begin at 0."""
    lowest = [task.lowest for task in draft.tasks]
    if not any(lowest):
        return []
    tasks = list(draft.tasks)

    def shifted(x: Any, y: Any) -> tuple[Any, Any]:
        flat = keras.tree.flatten(y)
        new = [task.labels(each) for task, each in zip(tasks, flat, strict=True)]
        return x, keras.tree.pack_sequence_as(y, new)

    draft.cleaning.append(shifted)
    least = min(lowest, key=lambda each: -abs(each))
    is_sign = any(task.kind is Kind.BINARY for task in tasks)
    return [Change("y", '(y > 0).astype("float32")' if is_sign else f"y - {least}")]


def _layer_before(draft: Draft, head: Any) -> Any:
    """Return the layer before the last one of a model without branches."""
    top = draft.top
    return top[-2] if len(top) >= 2 and top[-1] is head else None
