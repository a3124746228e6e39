"""Detects dead units, constant outputs, and models that have forgotten what they learned.

Judged on some examples of the training data in inference, as the model will be used: overfitting
makes no difference there, and statistics that BatchNorm was given by one huge batch do. A unit that
is zero on these examples may be alive on others, and a constant is the best answer to some
questions. So nothing of this counts unless most of what was learned is lost as well.
"""

from __future__ import annotations

import dataclasses
import math
import re
import traceback
import warnings
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from gradstab._layers import forward_scope
from gradstab.diagnosis.measuring.losses import constant_loss, data_loss
from gradstab.optimizers.model.binding import trains_by_keras_step
from gradstab.optimizers.telemetry.activations import KINDS, Activations
from gradstab.recovery.first_batch import FirstBatch

# Outputs that differ by less, of their magnitude, are taken for constant.
_CONSTANT: Final = 1e-6
# The part of the loss that was learned away which may come back.
_LOST: Final = 0.5
# The part of a layer's units that died, from which on it is told.
_DIED: Final = 0.5


@dataclasses.dataclass(frozen=True)
class Look:
    """A model's outputs on the examples, summed up.

    Attributes:
        loss: Its loss; NaN where the model has none of its own.
        is_constant: Whether the output is the same for all of them.
        dead: Share of units that are zero on all of them, by layer, in the order of depth.
        excess: How far the loss, without penalties, is above that of the best constant output; NaN
            if that is unknown.
        penalty: Sum of the penalties on weights.
    """

    loss: float
    is_constant: bool
    dead: dict[str, float]
    excess: float = math.nan
    penalty: float = 0.0


class Liveness:
    """Looks at the model of one run between its epochs.

    Args:
        model: The model that `fit` trains.
        at_start: Whether to look before the first step too, for what is compared later.
    """

    def __init__(self, model: Any, *, at_start: bool = True) -> None:
        self._model = model
        self._at_start = at_start
        self._batch: tuple[Any, Any, Any] | None = None
        self._activations: Activations | None = None
        self._first: Look | None = None
        self._best: Look | None = None
        self._told_before = False
        self._wrong: str | None = None
        self._asks_for_constant = False
        self._constant: float | None = None
        self._has_told_error = False
        self.latest: Look | None = None
        self._first_batch = FirstBatch(self._begin)

    def await_batch(self) -> None:
        """Have `fit` show its first batch."""
        if self._wants_batch():
            self._first_batch.await_from(self._model)

    def see_batch(self, batch: Any) -> None:
        """Take the examples from a batch, if there are none yet."""
        if self._wants_batch():
            self._first_batch.take(batch)

    def _wants_batch(self) -> bool:
        """Whether there is none yet, and Keras' own step trains the model, on one replica."""
        model = self._model
        return (
            self._batch is None
            and model.built
            and model.distribute_strategy.num_replicas_in_sync == 1
            and trains_by_keras_step(model)
        )

    def look(self) -> Look | None:
        """Return what the model makes of the examples now, or `None` where there are none."""
        self.latest = now = None if self._batch is None else self._look(self._batch)
        if now is not None and (self._best is None or now.loss < self._best.loss):
            self._best = now
        self._wrong = self._compare()
        return now

    @property
    def is_lost(self) -> bool:
        """Whether, by the latest look, the model is dead or has forgotten, be it for a moment."""
        return self._wrong is not None

    def told(self, *, is_last: bool) -> str | None:
        """Return what the latest look tells, in words, or `None`.

        Once may be a bad moment: it has to be so after the next epoch as well, or when training
        ends.
        """
        has_told_before, self._told_before = self._told_before, self.is_lost
        return self._wrong if is_last or has_told_before else None

    def forget(self) -> None:
        """Forget the latest looks: what they saw was taken back."""
        self._told_before, self._wrong = False, None

    def _compare(self) -> str | None:
        now, first, best = self.latest, self._first, self._best
        if now is None or first is None or best is None:
            return None
        if _is_lost(now, best, first):
            return (
                "What was learned is gone: the loss on examples of the training data, in "
                f"inference, is {now.loss:.3g}. It was {best.loss:.3g} at its best and "
                f"{first.loss:.3g} before training.{_why(now, best)}"
            )
        if self._died(now, first):
            return (
                f"The output is the same for every input now.{_why(now, first)} No gradient comes "
                "through."
            )
        return None

    def never_learned(self) -> str | None:
        """Return that the model is dead, and has been since training began, in words, or `None`."""
        now, first = self.latest, self._first
        if now is None or first is None or not now.is_constant or self._asks_for_constant:
            return None
        if now.loss < first.loss * (1 - 1e-3) or not math.isfinite(now.loss):
            return None
        layer = stopping_layer(now)
        return (
            "The output is the same for every input, and nothing was learned: the loss on examples "
            f"of the training data is {now.loss:.3g}, and was {first.loss:.3g} before training."
        ) + (
            ""
            if layer is None
            else f" All units of layer `{layer}` are zero on all of them: it stops every gradient."
        )

    def no_better_than_constant(self, training_loss: float) -> str | None:
        """Return that the model is no better than a constant output, in words, or `None`.

        Args:
            training_loss: Mean loss over the last epoch, with penalties.
        """
        now, constant = self.latest, self._constant
        if now is None or constant is None or self._asks_for_constant or not now.excess >= 0:
            return None
        if training_loss - now.penalty < constant:
            return None  # BatchNorm's moving statistics may have to catch up.
        return (
            f"The model is no better than a constant output: its loss is {training_loss:.3g}, and "
            f"{now.loss:.3g} in inference on examples of the training data; the best constant "
            f"has {constant:.3g}."
        )

    def _died(self, now: Look, first: Look) -> bool:
        """Whether a layer before the last is dead as a whole, and the output constant for that."""
        hidden = list(now.dead)[:-1]
        died = any(now.dead[name] == 1.0 and first.dead[name] < 1.0 for name in hidden)
        return died and now.is_constant and not first.is_constant and not self._asks_for_constant

    def _begin(self, batch: tuple[Any, Any, Any]) -> None:
        self._batch = batch
        targets = [np.asarray(each) for each in keras.tree.flatten(batch[1]) if each is not None]
        self._asks_for_constant = all(len(y) and (y == y[:1]).all() for y in targets if y.ndim)
        self._activations = Activations(self._model)
        if not self._at_start:
            return
        self._first = self.look()
        if self._first is None:
            self._batch = None

    def _look(self, batch: tuple[Any, Any, Any]) -> Look | None:
        x, y, weight = batch
        activations, model = self._activations, self._model
        if activations is None:
            return None
        # Whatever a model of another's making can't do here, the run goes on without a look, and
        # says so.
        try:
            # Metrics, losses and random seeds keep what they have.
            with forward_scope(model), activations.attached():
                activations.begin()
                output = model(x, training=False)
                loss, penalty = data_loss(model, x, y, output, weight, False)
                if self._constant is None:
                    found = constant_loss(model, x, y, output, weight)
                    self._constant = math.nan if found is None else found
                table = np.asarray(ops.convert_to_numpy(activations.statistics()))
            outputs = [np.asarray(ops.convert_to_numpy(o)) for o in keras.tree.flatten(output)]
            loss, penalty = float(loss), float(penalty)
        except Exception as error:
            self._tell_once(error)
            return None
        dead = table.reshape(-1, len(KINDS))[:, KINDS.index("dead")]
        return Look(
            loss=loss + penalty if math.isfinite(loss + penalty) else math.inf,
            is_constant=all(map(_is_constant, outputs)),
            excess=loss - self._constant,
            penalty=penalty,
            dead=dict(zip(activations.layers, dead.tolist(), strict=True)),
        )

    def _tell_once(self, error: Exception) -> None:
        if self._has_told_error:
            return
        self._has_told_error = True
        # Keras puts a line of its own before the text, and makes that bold.
        lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
        said = [line for line in lines if line and not line.startswith("Exception encountered")]
        what = ": ".join([type(error).__name__, *said[:1]])[:300]
        warnings.warn(
            "Dead units, constant outputs and forgetting are not looked for in this run: in "
            f"inference, on some examples of its first batch, {_place(self._model, error)} raised "
            f"{what}",
            stacklevel=2,
        )


def _place(model: Any, error: Exception) -> str:
    """Name the innermost layer whose code an error came through, or else the model."""
    layers = [
        frame.f_locals["self"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), keras.layers.Layer)
    ]
    inner = [layer for layer in layers if layer is not model]
    return f"layer `{inner[-1].path or inner[-1].name}`" if inner else f"model `{model.name}`"


def _is_lost(now: Look, best: Look, first: Look) -> bool:
    if not math.isfinite(first.loss):
        return False
    learned = first.loss - best.loss
    if now.loss >= first.loss:
        return learned > _LOST * abs(first.loss)
    is_worse = now.loss > best.loss + _LOST * learned
    return is_worse and learned > 0.1 * abs(first.loss) and bool(_why(now, best))


def stopping_layer(look: Look | None) -> str | None:
    """Return the last layer in depth whose units are all dead: it stops every gradient."""
    dead = [] if look is None else [name for name, share in look.dead.items() if share == 1.0]
    return dead[-1] if dead else None


def _why(now: Look, before: Look) -> str:
    """Name the layer whose units died since, or else say that the outputs became constant."""
    for name, share in now.dead.items():
        alive = before.dead.get(name, 0.0)
        if share - alive >= _DIED or (share == 1.0 and alive < 1.0):
            return (
                f" {share:.0%} of the units of layer `{name}` are zero on all of them, where "
                f"{alive:.0%} were."
            )
    if now.is_constant and not before.is_constant:
        return " The output is the same for all of them."
    return ""


def _is_constant(output: Any) -> bool:
    if output.ndim == 0 or len(output) < 2 or not np.issubdtype(output.dtype, np.floating):
        return False
    values = output.astype("float64")
    spread = np.max(np.ptp(values, axis=0), initial=0.0)
    return bool(spread <= _CONSTANT * np.max(np.abs(values), initial=0.0))
