"""Finds what began a step that was not finite, from its batch and the weights of now."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradstab._replicas import count_workers
from gradstab.diagnosis.origin.entries import Entries, marked, not_finite
from gradstab.diagnosis.origin.operations import (
    BACKWARD,
    LOSS,
    Operation,
    drawn_from,
    roots,
)
from gradstab.diagnosis.origin.origin import Origin
from gradstab.diagnosis.origin.traced import PARTS, TracedStep, tensors_of
from gradstab.diagnosis.origin.words import SIZES, named
from gradstab.keras_hooks.optimizer_state import trained_variables
from gradstab.optimizers.model.damage import MOMENT, Part, first_damage
from gradstab.optimizers.watching.find import optimizers_of, stabilized_optimizer

_OF: dict[str, str] = {
    "outputs": "the outputs", "targets": "the targets", "sample_weights": "the sample weights",
    "inputs": "the inputs", "variable": "the weights",
}  # fmt: skip


class OriginFinder:
    """Finds what began steps of one model that were not finite.

    Args:
        model: A built, compiled model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._traced: TracedStep | None = None

    def find(self, batch: Any, *, was_applied: bool = False) -> Origin:
        """Return what began the step on a batch.

        Args:
            batch: `(x, y, sample_weight)`, or less, of tensors, as the step was given it.
            was_applied: Whether the step changed the weights, so that those of before are gone.
        """
        try:
            return self._found(batch, was_applied)
        except Exception as error:  # Whatever a step, or a batch, of another's making can't do.
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            told = f"The step can't be run again: {type(error).__name__}: {line}"
            return Origin("unknown", what=told)

    def find_in_data(self, batch: Any) -> Origin | None:
        """Return which entry of a batch is not finite, or `None`, without running the step."""
        try:
            return _bad_part(batch)
        except Exception:  # Of a batch that can't be read as arrays; `find` says so.
            return None

    def _found(self, batch: Any, was_applied: bool) -> Origin:
        bad_part = _bad_part(batch)
        if was_applied:
            return bad_part or Origin(
                "unknown",
                what="The step was applied, so that the weights which it began with are gone. Its "
                "batch held nothing that was not finite. Wrap the optimizer with "
                "`gradstab.stabilize`, which skips such steps and keeps the weights.",
            )
        if count_workers(self._model.distribute_strategy) > 1:
            return bad_part or Origin(
                "unknown",
                what="Of several workers none can run a step again by itself. This one's share of "
                "the batch held nothing that was not finite.",
            )
        try:
            return self._run_again(batch)
        except Exception:
            if bad_part is None:
                raise
            return bad_part

    def _run_again(self, batch: Any) -> Origin:
        if self._traced is None or not self._traced.fits(batch):
            self._traced = TracedStep(self._model, batch)
        step = self._traced
        wrong = _wrong_label(step, batch)
        if wrong is not None:
            return wrong
        states = step.states(batch)
        # A loss that is not finite may have a gradient that began elsewhere, and later.
        found = roots(step.operations, states, step.losses)
        found = found or roots(step.operations, states, step.gradients)
        if not found:
            return Origin(
                "unknown",
                what="Run again on the same batch, with the weights of now, the step is finite: "
                "they have moved since, other numbers were drawn, or XLA computed it in another "
                "order.",
            )
        first = min(found, key=lambda place: (_rank(step.operations[place]), place))
        operation = step.operations[first]
        if operation.source in PARTS:
            return _bad_part(batch, operation.place) or Origin(str(operation.source))
        if operation.source == "variable":
            return self._variable(step, operation)
        return self._arithmetic(step, first, batch)

    def _variable(self, step: TracedStep, operation: Operation) -> Origin:
        variable = step.variable(operation)
        layer, inside = step.names.of_variable(variable)
        known: dict[str, Any] = {"layer": layer, "inside": inside}
        trained = any(variable is each for each in self._model.trainable_variables)
        if not trained:
            return Origin("statistics", part=variable.path, **known)
        moment = self._bad_moment()
        if moment is not None:
            return Origin("moments", part=moment, **known)
        return Origin("weights", part=variable.path, **known)

    def _bad_moment(self) -> str | None:
        """Return the first moment that is not finite.

        A step of gradstab's never hands an optimizer a gradient that is not finite: where a moment
        is not, it was so before the weight.
        """
        for optimizer in optimizers_of(self._model).values():
            ours = stabilized_optimizer(optimizer)
            if ours is not None:
                inner = ours.inner_optimizer
                skipped = {id(each) for each in trained_variables(inner)}
                moments = [each for each in inner.variables if id(each) not in skipped]
                damage = first_damage(Part(each, MOMENT) for each in moments)
                if damage is not None:
                    return damage.path
        return None

    def _arithmetic(self, step: TracedStep, place: int, batch: Any) -> Origin:
        operation = step.operations[place]
        is_back = operation.phase == BACKWARD
        name, what = named(operation.kind, operation.dtype, on_the_way_back=is_back)
        kind = "gradient" if is_back else "loss" if operation.phase == LOSS else "layer"
        if operation.dtype == "float16" and name in SIZES:
            kind = "float16"
        if operation.layer is None:
            of = [_OF[each] for each in _OF if each in drawn_from(step.operations, place)]
            what += f", of {' and '.join(of)}" if of else ""
        floats = [t for t in operation.outputs if step.is_float(t)]
        entries = None
        if floats:
            value = step.values(batch, floats[:1])[0]
            entries = not_finite(value)
            if entries is not None and entries.of_rows != _rows(batch):
                entries = None
        return Origin(
            kind,
            layer=operation.layer,
            inside=operation.inside,
            operation=name,
            what=what,
            phase=operation.phase,
            **({} if entries is None else {**_placed(entries), "column": ()}),
        )


def _rank(operation: Operation) -> int:
    if operation.source in PARTS:
        return 0
    return 1 if operation.source == "variable" else 2


def _wrong_label(step: TracedStep, batch: Any) -> Origin | None:
    """Return that a label is none of the classes, on CPUs an error and under XLA a NaN."""
    for labels, classes in step.labels(batch):
        is_bad = (labels < 0) | (labels >= classes)
        rows = _rows(batch)
        if rows > 0 and labels.size % rows == 0:  # Losses flatten the labels of sequences.
            labels, is_bad = (each.reshape(rows, -1) for each in (labels, is_bad))
            if labels.shape[1] == 1:
                labels, is_bad = labels[:, 0], is_bad[:, 0]
        found = marked(labels, is_bad)
        if found is not None:
            return Origin(
                "labels",
                what=f"the targets hold the label {found.value}, and there are {classes} classes, "
                f"0 to {classes - 1}",
                operation="cross-entropy",
                **_placed(found),
            )
    return None


def _bad_part(batch: Any, place: int | None = None) -> Origin | None:
    """Return which part of a batch is not finite, the first of all or the one at a place."""
    triple = batch if isinstance(batch, tuple) else (batch,)
    leaves = [
        (kind, ".".join(map(str, path)) or None, leaf)
        for kind, part in zip(PARTS, triple, strict=False)
        for path, leaf in keras.tree.flatten_with_path(part)
        if leaf is not None
    ]
    for number, (kind, name, leaf) in enumerate(leaves):
        if place not in (None, number):
            continue
        entries = not_finite(np.asarray(tf.convert_to_tensor(leaf)))
        if entries is not None:
            return Origin(kind, part=name, **_placed(entries))
    return None


def _placed(entries: Entries) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(entries).items() if name != "value"}


def _rows(batch: Any) -> int:
    leaves = [leaf for leaf in tensors_of(batch) if len(leaf.shape)]
    return int(leaves[0].shape[0]) if leaves else -1
