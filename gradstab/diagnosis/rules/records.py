"""Rules on a run record: what can be told after the fact, without the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from gradstab.diagnosis.causes import explained
from gradstab.diagnosis.finding import Finding
from gradstab.monitoring.record import Record

# Share of its first value to which the loss has to fall for a run to count as learning.
_FALLEN: Final = 0.7
# Growth of the loss over its first value that is no noise.
_RISEN: Final = 1.5
# A spike is this many times the median of the losses before it.
_SPIKE: Final = 5.0
# Steps whose median is compared.
_WINDOW: Final = 20
# Change of a weight in a step beyond which a rate is too high, and ratio of gradient norms below
# which they vanish on the way back.
_HASTY: Final = 0.1
_VANISHED: Final = 1e-3
# Share of dead or saturated units from which on a layer is lost.
_LOST: Final = 0.9


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the rules look at."""

    record: Record
    loss: Any

    @property
    def learned(self) -> bool:
        return bool(
            len(self.loss) >= 4 and self.end < _FALLEN * self.start and math.isfinite(self.end)
        )

    @property
    def start(self) -> float:
        return float(np.median(self.loss[: max(1, min(_WINDOW, len(self.loss) // 5))]))

    @property
    def end(self) -> float:
        return float(np.median(self.loss[-max(1, min(_WINDOW, len(self.loss) // 5)) :]))


def diagnose_record(record: Record) -> list[Finding]:
    """Return what a run record tells, roots first.

    A run that learned has no finding above `info` that rests on gradients or units alone.
    """
    loss = record.columns.get("loss", np.zeros(0))
    run = _Run(record, loss)
    findings = [
        *_nonfinite(run), *_rate(run), *_spikes(run), *_vanishing(run), *_units(run),
    ]  # fmt: skip
    if run.learned:
        findings = [
            dataclasses.replace(each, severity="info")
            if each.code != "nonfinite-gradients"
            else each
            for each in findings
        ]
    return explained(findings)


def _nonfinite(run: _Run) -> Iterator[Finding]:
    skips = [
        event
        for event in run.record.events
        if event.name == "skip" and event.details.get("cause") == "nonfinite"
    ]
    if skips:
        first = skips[0]
        yield Finding(
            "nonfinite-gradients",
            "warning",
            str(first.details.get("variable") or "") or None,
            f"From step {first.step} on, {len(skips)} entries of the record report steps skipped "
            "because a gradient was not finite.",
            {"first_step": first.step, "entries": len(skips)},
            "Look at the data of that step, and run `gradstab.diagnose(model, x, y)`.",
        )
        return
    norms = run.record.columns.get("grad_norm")
    bad = np.zeros(0, "int64")
    if norms is not None and len(norms):
        bad = np.flatnonzero(np.isinf(norms))
    if len(run.loss):
        infinite = np.flatnonzero(np.isinf(run.loss))
        bad = np.concatenate([bad, infinite])
    if len(bad):
        step = int(run.record.steps[int(bad.min())])
        yield Finding(
            "nonfinite-gradients",
            "error",
            None,
            f"Loss or gradient is infinite from step {step} on.",
            {"first_step": step},
            "Wrap the optimizer, `gradstab.stabilize(optimizer)`, which skips such steps, and run "
            "`gradstab.diagnose(model, x, y)` for the cause.",
        )


def _rate(run: _Run) -> Iterator[Finding]:
    loss = run.loss[np.isfinite(run.loss)]
    ratios = run.record.per_variable("update_ratio").values
    hasty = float(np.nanmedian(ratios)) if ratios.size and np.isfinite(ratios).any() else 0.0
    if len(loss) < 4:
        return
    has_risen = run.end > _RISEN * run.start
    if has_risen or (hasty > _HASTY and not run.learned):
        yield Finding(
            "learning-rate-too-high",
            "warning",
            None,
            f"The loss went from {run.start:.3g} to {run.end:.3g}"
            + (f", and a typical step changed weights by {hasty:.0%}." if hasty > _HASTY else "."),
            {"start": run.start, "end": run.end, "update_ratio": hasty},
            "Divide the learning rate by 10, and warm it up: `gradstab.schedules.LinearWarmup`.",
        )


def _spikes(run: _Run) -> Iterator[Finding]:
    loss = np.where(np.isfinite(run.loss), run.loss, np.nan)
    if len(loss) <= _WINDOW:
        return
    windows = np.lib.stride_tricks.sliding_window_view(loss[:-1], _WINDOW)
    known = np.isfinite(windows).any(1)
    medians = np.full(len(windows), np.nan)
    medians[known] = np.nanmedian(windows[known], 1)
    places = np.flatnonzero((medians > 0) & (loss[_WINDOW:] > _SPIKE * medians))
    if len(places):
        place = int(places[0]) + _WINDOW
        before = float(medians[places[0]])
        step = int(run.record.steps[place])
        yield Finding(
            "loss-spikes",
            "warning",
            None,
            f"At step {step} the loss jumped from {before:.3g} to {loss[place]:.3g}.",
            {"step": step, "before": before, "loss": float(loss[place])},
            "Clip or skip outliers: `gradstab.stabilize(optimizer)`; look at the data of that "
            "step.",
        )


def _vanishing(run: _Run) -> Iterator[Finding]:
    norms = run.record.norms
    kernels = [place for place, name in enumerate(norms.names) if "kernel" in name.split("/")[-1]]
    if len(kernels) < 3 or not norms.values.size:
        return
    if not np.isfinite(norms.values[:, kernels]).any(0).all():
        return
    middle = np.nanmedian(norms.values[:, kernels], 0)
    largest = float(np.nanmax(middle[1:]))
    if largest > 0 and middle[0] < _VANISHED * largest:
        yield Finding(
            "vanishing-gradients",
            "warning",
            norms.names[kernels[0]],
            f"The gradient of the first kernel is {middle[0]:.1e}; in later ones it is "
            f"{largest:.1e}.",
            {"first": float(middle[0]), "largest": largest},
            "Use relu with he_normal, normalization or residual connections.",
        )
    elif largest == 0:
        yield Finding(
            "vanishing-gradients",
            "warning",
            None,
            "All gradients are exactly 0.",
            {"largest": 0.0},
            "Run `gradstab.diagnose(model, x, y)`: a layer or the loss stops the gradient.",
        )


def _units(run: _Run) -> Iterator[Finding]:
    for quantity, code, word in (
        ("activation_dead", "dead-units", "dead"),
        ("activation_saturated", "saturated-units", "saturated"),
    ):
        seen = run.record.per_layer(quantity)
        if not seen.values.size:
            continue
        last = seen.values[-1]
        for name, share in zip(seen.names[:-1], last[:-1], strict=True):
            if share > _LOST:
                yield Finding(
                    code,
                    "warning",
                    name,
                    f"{share:.0%} of `{name}` was {word} at step {int(seen.steps[-1])}.",
                    {"share": float(share), "step": int(seen.steps[-1])},
                    "Lower the rate, scale the inputs, or begin with he_normal kernels.",
                )
                break
    deviation = run.record.per_layer("activation_deviation")
    if deviation.values.size and not run.learned and deviation.values[-1][-1] < 1e-4:
        yield Finding(
            "collapsed-output",
            "warning",
            deviation.names[-1],
            "The output is the same for every row at the end.",
            {"deviation": float(deviation.values[-1][-1])},
            "Run `gradstab.diagnose(model, x, y)` on a freshly built model.",
        )
