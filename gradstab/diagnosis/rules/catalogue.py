"""Every rule, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.rules import (
    heads,
    labels,
    passing,
    scales,
    shapes,
    training,
    values,
    weights,
)

Rule = Callable[[Looks], Iterator[Finding]]

# What can be told before anything is trained, and makes a trial pointless where it is an error.
STATIC: Final[tuple[Rule, ...]] = (
    values.nonfinite_data,
    values.constant_data,
    shapes.missing_layer,
    shapes.wrong_shape,
    heads.single_unit_softmax,
    heads.double_softmax,
    heads.logits_without_from_logits,
    heads.output_activation,
    labels.loss_mismatch,
    labels.label_range,
    labels.label_encoding,
    labels.metric_mismatch,
    weights.constant_initialization,
    weights.frozen_model,
    weights.disconnected_variables,
    weights.nonfinite_forward,
    weights.nonfinite_gradients,
)
# What rests on a trial, or on signals where a trial did not learn.
LEARNED: Final[tuple[Rule, ...]] = (
    values.class_imbalance,
    values.too_little_data,
    values.unrelated_labels,
    scales.unscaled_input,
    scales.unscaled_target,
    weights.kernels_off_scale,
    training.learning_rate_too_high,
    training.learning_rate_too_low,
    training.too_few_epochs,
    training.batch_size,
    training.optimizer,
    training.over_regularized,
    passing.saturated_units,
    passing.dead_units,
    passing.no_nonlinearity,
    passing.bottleneck,
    passing.vanishing_signal,
    passing.exploding_signal,
    passing.missing_normalization,
    passing.vanishing_gradients,
    passing.exploding_gradients,
    training.loss_spikes,
    training.float16,
    training.collapsed_output,
)
RULES: Final = STATIC + LEARNED


def apply(rules: Collection[Rule], looks: Looks) -> list[Finding]:
    """Return what some rules find."""
    return [finding for rule in rules for finding in rule(looks)]


# Every code that a finding may have, for `mute` and the pages in docs/rules/.
CODES: Final = frozenset(
    {
        "nonfinite-data", "constant-data", "unscaled-input", "unscaled-target", "label-range",
        "label-encoding", "class-imbalance", "too-little-data",
        "single-unit-softmax", "double-softmax", "logits-without-from-logits", "output-activation",
        "loss-mismatch", "metric-mismatch",
        "constant-initialization", "kernels-too-small", "kernels-too-large",
        "vanishing-signal", "exploding-signal", "saturated-units", "dead-units",
        "nonfinite-forward", "no-nonlinearity", "disconnected-variables", "frozen-model",
        "vanishing-gradients", "exploding-gradients", "nonfinite-gradients",
        "learning-rate-too-high", "learning-rate-too-low", "too-few-epochs", "batch-size",
        "float16-underflow", "float16-overflow", "loss-spikes", "collapsed-output",
        "over-regularized", "optimizer",
        "bottleneck", "missing-layer", "missing-normalization", "wrong-shape",
        "unchecked",
    }
)  # fmt: skip
