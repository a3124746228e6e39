"""Rules on the scale of inputs and targets, which warn only where scaling heals a trial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.rules.comparison import healing, learns

# Scale from which on raw inputs or targets are told of, even where nothing showed harm.
_LARGE: Final = 30.0
# Shift in training, in deviations of the inputs, from which on an augmentation hides them.
_HIDDEN: Final = 5.0

_SCALING: Final = (
    "+ normalization = keras.layers.Normalization()\n"
    "+ normalization.adapt(x)\n"
    "+ ... keras.Input(shape), normalization, ...  # before the first layer"
)


def unscaled_input(looks: Looks) -> Iterator[Finding]:
    """Find inputs whose scale keeps the model from learning."""
    hidden = [
        each
        for each in looks.signal.layers
        if each.training_shift > _HIDDEN and _stands_before_weights(looks, each.name)
    ]
    if hidden:
        worst = hidden[0]
        yield Finding(
            "unscaled-input",
            "info" if learns(looks.trial) else "warning",
            worst.name,
            f"In training `{worst.name}` changes its inputs by {worst.training_shift:.0f} standard "
            "deviations and destroys most of them: its value range does not match their scale.",
            {"training_shift": worst.training_shift, "input_scale": worst.input_scale},
            f"Give `{worst.name}` the range of the inputs, such as `value_range=(0, 1)`.",
        )
        return
    inputs = [each for each in looks.data.inputs if each.kind == "float"]
    if not inputs:
        return
    widest = max(inputs, key=lambda each: each.largest_scale)
    healed = healing(looks, "inputs")
    layer = looks.first_trained
    numbers = {
        "largest_scale": widest.largest_scale,
        "smallest_scale": widest.smallest_scale,
        "largest_offset": widest.largest_offset,
    }
    if healed is not None:
        plan = looks.trial.plan
        before = plan.merit if plan is not None else 0.0
        yield Finding(
            "unscaled-input",
            "warning",
            layer.name if layer is not None else None,
            f"Features of the input reach a size of {widest.largest_scale:.3g} beside others of "
            f"{widest.smallest_scale:.3g}. With each at mean 0 and deviation 1 the same training "
            f"learns {healed.run.merit:.0%} in {healed.run.steps} steps, unscaled "
            f"{max(before, 0):.0%}.",
            {**numbers, "gain": healed.gain, "scaled": healed.run.merit, "plan": before},
            _SCALING,
        )
    elif widest.largest_scale > _LARGE:
        yield Finding(
            "unscaled-input",
            "info",
            layer.name if layer is not None else None,
            f"Features of the input reach a size of {widest.largest_scale:.3g}; no harm from "
            "that was measured.",
            numbers,
            _SCALING,
        )


def unscaled_target(looks: Looks) -> Iterator[Finding]:
    """Find targets so far from the first outputs that training does not get there."""
    healed = healing(looks, "targets")
    for head, target in looks.heads_with_targets():
        if target.kind != "continuous":
            continue
        size = max(abs(target.minimum), abs(target.maximum))
        numbers = {"mean": target.mean, "deviation": target.deviation}
        remedy = (
            "- model.fit(x, y)\n+ model.fit(x, (y - y.mean(0)) / y.std(0))  # and undo it in use"
        )
        if healed is not None:
            yield Finding(
                "unscaled-target",
                "warning",
                head.layer,
                f"The targets have a mean of {target.mean:.3g} and a deviation of "
                f"{target.deviation:.3g}, far from the first outputs. With mean 0 and deviation "
                f"1 the same training learns {healed.run.merit:.0%}.",
                {**numbers, "gain": healed.gain, "scaled": healed.run.merit},
                remedy,
            )
        elif size > _LARGE * 10 and head.activation in ("linear", None):
            yield Finding(
                "unscaled-target",
                "info",
                head.layer,
                f"The targets have a mean of {target.mean:.3g} and a deviation of "
                f"{target.deviation:.3g}; no harm from that was measured.",
                numbers,
                remedy,
            )


def _stands_before_weights(looks: Looks, name: str) -> bool:
    for each in looks.structure.layers:
        if each.name == name:
            return True
        if each.units is not None:
            return False
    return False
