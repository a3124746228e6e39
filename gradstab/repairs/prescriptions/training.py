"""How the net is trained: rows, optimizer, rate, clipping, batches, length."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, final

import keras
import numpy as np

from gradstab.repairs.code import code_of
from gradstab.repairs.draft import Draft, clipped, copied, with_rate
from gradstab.repairs.learning_rate import find_learning_rate
from gradstab.repairs.prescriptions.base import Change, Prescription

_ADAM_RATE = 1e-3
_BATCH, _SMALLEST_BATCH, _LARGEST_BATCH = 32, 8, 128
_FEWEST_STEPS = 200
_LONGER = 4
# Steps at each rate, at least and at most: a quarter of the plan between them.
_SEARCH_STEPS = (40, 120)
# Of nets in order, which the other changes see to, the right rate hardly ever lies elsewhere.
_RATES = (1e-4, 1.0)


@final
class SetLearningRate(Prescription):
    """The rate that lowers the loss most within some dozens of steps."""

    name = "set the learning rate"
    heals = ("learning-rate-too-high", "learning-rate-too-low")
    helps = (
        "too-few-epochs",
        "loss-spikes",
        "exploding-gradients",
        "collapsed-output",
        "dead-units",
        "vanishing-gradients",
    )
    reshapes = False
    is_costly = True

    def write(self, draft: Draft) -> list[Change]:
        """Take the rate that is known, or search for one on a copy as it is drafted so far."""
        optimizer = draft.optimizer()
        rate = draft.known_rate or self._searched(draft)
        if rate is None:
            return []
        before = code_of(_innermost(optimizer))
        draft.optimizer = functools.partial(with_rate, optimizer, rate)
        return [Change(before, code_of(_innermost(draft.optimizer())))]

    def _searched(self, draft: Draft) -> float | None:
        x, y = draft.prepared(draft.x, draft.y)
        batch_size = draft.fit_arguments["batch_size"]
        planned = draft.fit_arguments["epochs"] * len(keras.tree.flatten(x)[0]) // batch_size
        steps = int(np.clip(planned // 4, *_SEARCH_STEPS))
        found = find_learning_rate(
            draft.built(), x, y, batch_size=batch_size, num_steps=steps,
            min_rate=_RATES[0], max_rate=_RATES[1],
        )  # fmt: skip
        draft.searched += steps * len(found.rates)
        return found.suggestion


@final
class UseAdam(Prescription):
    """Adam at its default rate, which most nets with inputs of unit scale learn with."""

    name = "use Adam"
    heals = ("optimizer",)
    helps = (
        "learning-rate-too-low",
        "learning-rate-too-high",
        "vanishing-gradients",
        "too-few-epochs",
        "collapsed-output",
        "exploding-gradients",
    )
    reshapes = False

    def write(self, draft: Draft) -> list[Change]:
        """Replace the optimizer, unless it is Adam at that rate already."""
        now = _innermost(draft.optimizer())
        is_adam = type(now) in (keras.optimizers.Adam, keras.optimizers.AdamW)
        if is_adam and np.isclose(now.get_config()["learning_rate"], _ADAM_RATE):
            return []
        new = keras.optimizers.Adam(_ADAM_RATE)
        if hasattr(draft.model.optimizer, "inner_optimizer"):
            draft.optimizer = functools.partial(copied, draft.model.optimizer, new)
        else:
            draft.optimizer = functools.partial(copied, new)
        return [Change(code_of(now), code_of(new))]


@final
class ClipGradients(Prescription):
    """Steps that are not finite are skipped, and gradients longer than 1 are shortened."""

    name = "clip gradients by their global norm"
    heals = ("exploding-gradients", "nonfinite-gradients", "loss-spikes")
    helps = ("learning-rate-too-high",)
    reshapes = False
    max_norm: ClassVar[float] = 1.0

    def write(self, draft: Draft) -> list[Change]:
        """Wrap the optimizer, unless it is wrapped."""
        optimizer = draft.optimizer()
        if hasattr(optimizer, "inner_optimizer"):
            return []
        draft.optimizer = functools.partial(clipped, optimizer, self.max_norm)
        code = code_of(optimizer)
        return [Change(code, f"gradstab.stabilize({code}, clip={self.max_norm})")]


@final
class SetBatchSize(Prescription):
    """Batches of 32, or smaller ones where an epoch would have few steps."""

    name = "set the batch size"
    heals = ("batch-size",)
    helps = ("too-few-epochs", "loss-spikes")
    reshapes = False

    def write(self, draft: Draft) -> list[Change]:
        """Replace a batch size that is far from the usual ones."""
        now = draft.fit_arguments["batch_size"]
        count = len(keras.tree.flatten(draft.x)[0])
        steps = draft.fit_arguments["epochs"] * count / now
        new = now
        if now < _SMALLEST_BATCH or (now > _LARGEST_BATCH and steps < _FEWEST_STEPS):
            new = _BATCH
        if steps * now / new < _FEWEST_STEPS and new > _SMALLEST_BATCH and count < 2000:
            new = _SMALLEST_BATCH
        if new == now:
            return []
        draft.fit_arguments["batch_size"] = new
        return [Change(f"batch_size={now}", f"batch_size={new}")]


@final
class TrainLonger(Prescription):
    """Four times as many epochs."""

    name = "train longer"
    heals = ("too-few-epochs",)
    helps = ("learning-rate-too-low", "too-little-data")
    reshapes = False

    def write(self, draft: Draft) -> list[Change]:
        """Raise the number of epochs."""
        now = draft.fit_arguments["epochs"]
        draft.fit_arguments["epochs"] = now * _LONGER
        return [Change(f"epochs={now}", f"epochs={now * _LONGER}")]


@final
class DropNonFinite(Prescription):
    """Examples left out that hold NaN or an infinity; features filled in where most would go."""

    name = "leave out what is not finite"
    heals = ("nonfinite-data",)
    helps = ("nonfinite-forward", "nonfinite-gradients")
    reshapes = False

    def write(self, draft: Draft) -> list[Change]:
        """Clean inputs and targets before they reach the model."""
        if not hasattr(draft.x, "shape") or not hasattr(draft.y, "shape"):
            return []
        fine = _finite(draft.x) & _finite(draft.y)
        if fine.all():
            return []
        if fine.mean() < 0.5 and _finite(draft.y).all():
            fill = np.nan_to_num(np.nanmean(np.where(np.isfinite(draft.x), draft.x, np.nan), 0))
            draft.cleaning.append(lambda x, y: (np.where(np.isfinite(x), x, fill), y))
            return [Change("x", "np.where(np.isfinite(x), x, np.nanmean(x, axis=0))")]
        draft.cleaning.append(_only_finite)
        return [Change("x, y", "x[finite], y[finite]  # finite = rows without NaN or infinity")]


def _only_finite(x: Any, y: Any) -> tuple[Any, Any]:
    fine = _finite(x) & _finite(y)
    return np.asarray(x)[fine], np.asarray(y)[fine]


def _finite(array: Any) -> Any:
    array = np.asarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        return np.ones(len(array), bool)
    return np.isfinite(array.reshape(len(array), -1)).all(1)


def _innermost(optimizer: Any) -> Any:
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer
