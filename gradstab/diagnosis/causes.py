"""Causes and consequences among findings, and the order of the root causes."""

from __future__ import annotations

import dataclasses
from typing import Final

from gradstab.diagnosis.finding import Finding

# What each cause brings about. Where cause and consequence are both found, the one explains the
# other.
_DISTURBED: Final = (
    "saturated-units", "dead-units", "vanishing-signal", "exploding-signal", "vanishing-gradients",
    "exploding-gradients", "nonfinite-gradients", "loss-spikes", "collapsed-output",
)  # fmt: skip
_UNTRAINED: Final = (
    *_DISTURBED, "learning-rate-too-high", "learning-rate-too-low", "too-few-epochs", "optimizer",
    "batch-size",
)  # fmt: skip
EXPLAINS: Final[dict[str, tuple[str, ...]]] = {
    "nonfinite-data": ("nonfinite-forward", *_UNTRAINED),
    "constant-data": (*_UNTRAINED, "class-imbalance"),
    "missing-layer": ("wrong-shape", *_UNTRAINED),
    "wrong-shape": _UNTRAINED,
    "single-unit-softmax": ("nonfinite-forward", "output-activation", "loss-mismatch", *_UNTRAINED),
    "double-softmax": _UNTRAINED,
    "logits-without-from-logits": ("nonfinite-forward", *_UNTRAINED),
    "output-activation": ("nonfinite-forward", *_UNTRAINED),
    "loss-mismatch": ("nonfinite-forward", *_UNTRAINED),
    "label-range": ("nonfinite-forward", *_UNTRAINED),
    "label-encoding": ("wrong-shape", *_UNTRAINED),
    "constant-initialization": ("kernels-too-small", "kernels-too-large", *_UNTRAINED),
    "frozen-model": ("disconnected-variables", *_UNTRAINED),
    "disconnected-variables": _UNTRAINED,
    "nonfinite-forward": _UNTRAINED,
    "class-imbalance": ("collapsed-output",),
    "unscaled-input": _DISTURBED,
    "unscaled-target": _DISTURBED,
    "kernels-too-large": _DISTURBED,
    "kernels-too-small": _DISTURBED,
    "learning-rate-too-high": _DISTURBED,
    "learning-rate-too-low": ("collapsed-output",),
    "too-few-epochs": ("collapsed-output",),
    "optimizer": ("collapsed-output",),
    "over-regularized": ("collapsed-output", "dead-units"),
    "missing-normalization": ("exploding-gradients",),
    "saturated-units": (
        "missing-normalization",
        "vanishing-signal",
        "vanishing-gradients",
        "collapsed-output",
    ),
    "dead-units": ("vanishing-signal", "vanishing-gradients", "collapsed-output"),
    "vanishing-signal": ("vanishing-gradients", "collapsed-output"),
    "vanishing-gradients": ("collapsed-output",),
    "exploding-signal": ("exploding-gradients", "loss-spikes", "nonfinite-gradients"),
    "bottleneck": ("collapsed-output",),
    "no-nonlinearity": ("collapsed-output",),
}


def explained(findings: list[Finding]) -> list[Finding]:
    """Return the findings, each with its cause, ranked: roots first, the likeliest at the top.

    An error outranks a warning. Within a severity, findings that do not depend on a trial come
    first; the others follow in the order of their gain in the trial.
    """
    folded = []
    for finding in findings:
        cause = next(
            (
                other.code
                for other in sorted(findings, key=_order)
                if other.rank <= finding.rank
                and other.code != finding.code
                and finding.code in EXPLAINS.get(other.code, ())
                and not (other.severity == "info" and finding.severity != "info")
            ),
            None,
        )
        # The remedy of a consequence is that of its cause.
        severity = finding.severity if cause is None else "info"
        folded.append(dataclasses.replace(finding, explained_by=cause, severity=severity))
    return sorted(folded, key=lambda each: (not each.is_root, *_order(each)))


def roots(findings: list[Finding]) -> list[Finding]:
    """Return the findings that no other explains, the likeliest first."""
    return [finding for finding in findings if finding.is_root]


def _order(finding: Finding) -> tuple[float, ...]:
    gain = finding.evidence.get("gain")
    is_symptom = finding.code in _DISTURBED and not gain
    return (finding.rank, float(is_symptom), 0.0 if gain is None else 1.0, -(gain or 0.0))
