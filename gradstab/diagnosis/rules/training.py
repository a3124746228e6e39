"""Rules on how the trial trained: rate, epochs, batches, optimizer, penalties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.rules.comparison import CLEAR, Healing, healing, healings, learns

# Rates that people use as they are.
_USUAL: Final = {
    "SGD": (3e-3, 0.3), "Adam": (3e-4, 3e-3), "AdamW": (3e-4, 3e-3), "Nadam": (3e-4, 3e-3),
    "Adamax": (3e-4, 1e-2), "RMSprop": (3e-4, 3e-3), "Adagrad": (1e-3, 0.1), "Adadelta": (0.3, 2.0),
    "Lion": (3e-5, 3e-4), "Ftrl": (1e-3, 0.1),
}  # fmt: skip
# Steps below which hardly any net has learned, whatever the rate.
_FEW_STEPS: Final = 150
# What a longer training is taken to gain where there was no time to try it.
_RISING: Final = 0.1
# Steps of an epoch below which larger batches are paid with steps.
_FEW_PER_EPOCH: Final = 12
_LARGE_BATCH: Final = 128
# Epochs from which on it is the batches, not the epochs, that leave too few steps.
_MANY_EPOCHS: Final = 10
# Outputs that change from row to row by less, in units of the targets, are constant.
_CONSTANT: Final = 0.02


def learning_rate_too_high(looks: Looks) -> Iterator[Finding]:
    """Find a rate that a smaller one beats clearly, or that ends in NaN where one does not."""
    healed = healing(looks, "rate")
    plan, rate = looks.trial.plan, looks.structure.learning_rate
    if healed is None or plan is None or healed.factor >= 1:
        return
    numbers = {
        "rate": rate, "factor": healed.factor, "gain": healed.gain, "plan": plan.merit,
        "lower": healed.run.merit, "worst_loss": plan.worst_loss, "first_loss": plan.first_loss,
    }  # fmt: skip
    how = (
        "the loss stops being finite"
        if not plan.finite
        else f"the loss rises from {plan.first_loss:.3g} to {plan.worst_loss:.3g}"
        if plan.worst_loss > 2 * plan.first_loss
        else f"the loss stays at {plan.last_loss:.3g}"
    )
    yield Finding(
        "learning-rate-too-high",
        "warning" if plan.finite else "error",
        None,
        f"At a rate of {_shown(rate)} {how} within {plan.steps} steps; at {_shown(rate, healed)} "
        f"the same training learns {healed.run.merit:.0%}{_with(healed)}.",
        numbers,
        f"- learning_rate={_shown(rate)}\n+ learning_rate={_shown(rate, healed)}",
    )


def learning_rate_too_low(looks: Looks) -> Iterator[Finding]:
    """Find a rate that a larger one beats clearly over the whole plan."""
    healed = healing(looks, "rate")
    plan, rate = looks.trial.plan, looks.structure.learning_rate
    if healed is None or plan is None or healed.factor <= 1:
        return
    yield Finding(
        "learning-rate-too-low",
        "warning",
        None,
        f"At a rate of {_shown(rate)} {plan.steps} steps learn {max(plan.merit, 0):.0%}; at "
        f"{_shown(rate, healed)} the same training learns {healed.run.merit:.0%}{_with(healed)}.",
        {"rate": rate, "factor": healed.factor, "gain": healed.gain, "plan": plan.merit,
         "higher": healed.run.merit},
        f"- learning_rate={_shown(rate)}\n+ learning_rate={_shown(rate, healed)}",
    )  # fmt: skip


def too_few_epochs(looks: Looks) -> Iterator[Finding]:
    """Find a plan that ends while the loss still falls."""
    trial, steps, plan = looks.trial, looks.data.total_steps, looks.trial.plan
    if plan is None or steps is None or plan.steps < steps or learns(trial) or not plan.finite:
        return
    others = [each for each in healings(looks) if each.cause in ("inputs", "start", "relu")]
    longer, rate = trial.run("longer"), healing(looks, "rate")
    more = longer.merit - plan.merit if longer is not None and longer.finite else 0.0
    is_short = steps < _FEW_STEPS and _is_usual(looks) and not others
    wants_rate = rate is not None and rate.factor > 1
    is_rising = plan.merit > 0.02 and plan.merit - plan.merit_at(0.6 * plan.steps) > 0.01
    if longer is not None and more > CLEAR and longer.merit > CLEAR:
        # A usual rate over few steps is short of steps, not of rate.
        gain = max(more, rate.gain + 0.02 if is_short and rate is not None else 0.0)
        shown = f"; three times as many learn {longer.merit:.0%}"
    elif is_short and (wants_rate or (is_rising and not healings(looks))):
        gain, shown = (rate.gain - 0.02 if rate is not None else _RISING), ""
    else:
        return
    yield Finding(
        "too-few-epochs",
        "warning",
        None,
        f"{looks.data.epochs} epochs are only {steps} steps; after them the model has learned "
        f"{max(plan.merit, 0):.0%} and still improves{shown}.",
        {"steps": steps, "epochs": looks.data.epochs, "gain": gain, "plan": plan.merit},
        f"- model.fit(x, y, epochs={looks.data.epochs})\n"
        f"+ model.fit(x, y, epochs={(looks.data.epochs or 1) * 10}, "
        "callbacks=[keras.callbacks.EarlyStopping(patience=5)])",
    )


def batch_size(looks: Looks) -> Iterator[Finding]:
    """Find batches so large that an epoch has hardly any steps."""
    per_epoch = looks.data.steps_per_epoch
    short = next(too_few_epochs(looks), None)
    if short is None or per_epoch is None:
        return
    is_long = (looks.data.epochs or 0) >= _MANY_EPOCHS
    if per_epoch < _FEW_PER_EPOCH and looks.data.batch_size >= _LARGE_BATCH:
        yield Finding(
            "batch-size",
            "warning",
            None,
            f"With batches of {looks.data.batch_size} an epoch has only {per_epoch} steps.",
            {"batch_size": looks.data.batch_size, "steps_per_epoch": per_epoch,
             "gain": short.evidence["gain"] + (0.01 if is_long else -0.05)},
            f"- model.fit(x, y, batch_size={looks.data.batch_size})\n"
            "+ model.fit(x, y, batch_size=32)",
        )  # fmt: skip


def optimizer(looks: Looks) -> Iterator[Finding]:
    """Find an optimizer that gets nowhere at any rate tried, where Adam does."""
    healed = healing(looks, "adam")
    if healed is not None and healing(looks, "rate") is None:
        yield Finding(
            "optimizer",
            "warning",
            None,
            f"{looks.structure.optimizer} did not learn at any of the rates tried; Adam at 0.001 "
            f"learns {healed.run.merit:.0%} in as many steps.",
            {"gain": healed.gain, "adam": healed.run.merit},
            "- optimizer=...\n+ optimizer=keras.optimizers.Adam(1e-3)",
        )


def over_regularized(looks: Looks) -> Iterator[Finding]:
    """Find dropout or penalties without which the same training learns."""
    dropped, penalized = healing(looks, "dropout"), healing(looks, "penalty")
    rates = [each for each in looks.structure.layers if each.rate > 0]
    if dropped is not None and rates:
        worst = max(rates, key=lambda each: each.rate)
        yield Finding(
            "over-regularized",
            "warning",
            worst.name,
            f"Without dropout the same training learns {dropped.run.merit:.0%}; `{worst.name}` "
            f"drops {worst.rate:.0%}.",
            {"rate": worst.rate, "gain": dropped.gain},
            f"- Dropout({worst.rate:g})\n+ Dropout({min(0.1, worst.rate / 4):g})",
        )
    if penalized is not None:
        layer = next((each.name for each in looks.structure.layers if each.penalty), None)
        yield Finding(
            "over-regularized",
            "warning",
            layer,
            f"The penalties are {looks.trial.penalty_share:.1f} times the loss of a constant "
            f"output; without them the same training learns {penalized.run.merit:.0%}.",
            {"penalty_share": looks.trial.penalty_share, "gain": penalized.gain},
            "Divide the coefficients of the regularizers by 100, or remove them.",
        )


def collapsed_output(looks: Looks) -> Iterator[Finding]:
    """Find a model that answers the same for every row at the end of the trial."""
    plan = looks.trial.plan
    if plan is None or learns(looks.trial) or not plan.finite:
        return
    if plan.output_variation < _CONSTANT and plan.merit < 0.05:
        head = looks.structure.heads[0].layer if looks.structure.heads else None
        yield Finding(
            "collapsed-output",
            "warning",
            head,
            f"After {plan.steps} steps the model gives nearly the same output for every row "
            f"(deviation {plan.output_variation:.2g}) and is no better than a constant.",
            {"output_variation": plan.output_variation, "plan": plan.merit},
            "Check what can block the signal: dead or saturated layers, initial weights, the "
            "scale of the inputs.",
        )


def loss_spikes(looks: Looks) -> Iterator[Finding]:
    """Find a loss that jumps far above where it was while the trial goes on."""
    plan = looks.trial.plan
    if plan is None or len(plan.losses) < 10 or not math.isfinite(plan.worst_loss):
        return
    middle = sorted(plan.losses)[len(plan.losses) // 2]
    if plan.worst_loss > 20 * max(middle, plan.first_loss, 1e-12):
        yield Finding(
            "loss-spikes",
            "info",
            None,
            f"The loss, {plan.first_loss:.3g} at the start, jumps to {plan.worst_loss:.3g}.",
            {"worst_loss": plan.worst_loss, "first_loss": plan.first_loss},
            "Lower the rate, warm it up, or clip: `gradstab.stabilize(optimizer)`.",
        )


def float16(looks: Looks) -> Iterator[Finding]:
    """Find float16 gradients that vanish for want of a loss scale."""
    if "float16" not in looks.structure.precision or "bfloat16" in looks.structure.precision:
        return
    first = next((each for each in looks.signal.layers if each.gradient == 0.0), None)
    over = next((each for each in looks.signal.layers if each.finite < 1), None)
    if over is not None and over.input_finite:
        yield Finding(
            "float16-overflow",
            "error",
            over.name,
            f"Outputs of `{over.name}` exceed 65,504, the largest number of float16.",
            {"input_maximum": over.input_maximum},
            'Scale its inputs, or give the layer `dtype="float32"`.',
        )
    elif first is not None and not looks.structure.is_loss_scaled and not learns(looks.trial):
        yield Finding(
            "float16-underflow",
            "warning",
            first.name,
            f"The gradient of `{first.name}` is exactly 0 in float16.",
            {"gradient": 0.0},
            "+ optimizer = keras.optimizers.LossScaleOptimizer(optimizer)",
        )


def _is_usual(looks: Looks) -> bool:
    rate = looks.structure.learning_rate
    low, high = _USUAL.get(looks.structure.optimizer, (0.0, 0.0))
    return rate is not None and low <= rate <= high


def _shown(rate: float | None, healed: Healing | None = None) -> str:
    if rate is None:
        return "its present value" if healed is None else f"{healed.factor:g} times that"
    return f"{rate * (healed.factor if healed else 1):.3g}"


def _with(healed: Healing) -> str:
    partner = {"inputs": "scaled inputs", "start": "other first weights"}.get(healed.partner or "")
    return f", with {partner}" if partner else ""
