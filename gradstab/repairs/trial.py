"""Short trainings of drafts on the same data, scored on data held out."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import keras
import numpy as np

from gradstab.repairs.draft import Draft, Plan
from gradstab.repairs.prescriptions.base import Change, Prescription
from gradstab.repairs.prescriptions.catalogue import in_writing_order
from gradstab.repairs.task import score

_HELD_OUT: Final = 0.2
# With fewer examples none are held out, and those trained on are scored.
_FEWEST: Final = 50
_SCORED: Final = 2000
_ROWS_AT_ONCE: Final = 20_000
_ROWS_PREDICTED: Final = 500
_FAILED: Final = -1.0
# Steps of training that take as long as it takes to build and trace a small net.
TRACE: Final = 500.0


@dataclasses.dataclass
class Trial:
    """A draft in training.

    Attributes:
        actions: Prescriptions that changed something, with their lines.
        draft: The draft.
        model: The model in training, `None` if it could not be built.
        scores: Score by the share of the plan that was trained.
        steps: Work so far, in steps of training; a trace counts as `TRACE`.
        error: What went wrong, if training raised.
    """

    actions: dict[Prescription, list[Change]]
    draft: Draft
    model: Any = None
    scores: dict[float, float] = dataclasses.field(default_factory=dict)
    steps: float = 0.0
    error: str | None = None

    @property
    def score(self) -> float:
        """The last score."""
        return self.scores[max(self.scores)] if self.scores else _FAILED

    @property
    def trained(self) -> float:
        """The share of the plan that was trained."""
        return max(self.scores, default=0.0)


class Bench:
    """Where drafts of one model are tried.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Targets.
        validation_data: Inputs and targets to score on; by default a fifth is held out.
        plan: Training as planned.
        seed: Draws first weights, the examples held out, and the order of examples.

    Attributes:
        known_rate: A learning rate at which the model is known to learn well as it was given.
        num_scored: Examples that are scored.
        planned_steps: Steps of the plan.
    """

    def __init__(
        self, model: Any, x: Any, y: Any, validation_data: Any, plan: Plan, seed: int
    ) -> None:
        self.model, self.plan, self._seed = model, plan, seed
        self.known_rate: float | None = None
        if validation_data is None:
            (self.x, self.y), (self._x, self._y) = _split(x, y, seed)
        else:
            self.x, self.y = x, y
            self._x, self._y = validation_data[:2]
        rows = np.random.default_rng(seed).permutation(_count(self._x))[:_SCORED]
        self._x, self._y = _taken((self._x, self._y), rows)
        self.num_scored = len(rows)
        self.planned_steps = plan.epochs * _count(self.x) / plan.batch_size

    def applicable(self, prescriptions: Sequence[Prescription]) -> list[Prescription]:
        """Return those that change something of the model as it was given."""
        return [
            each
            for each in prescriptions
            if each.is_costly or self._changes(each, Draft(self.model, self.x, self.y, self.plan))
        ]

    def _changes(self, each: Prescription, draft: Draft) -> bool:
        if each.reshapes and not draft.is_editable:
            return False
        with contextlib.suppress(Exception):  # It is told where it is tried.
            return bool(each.write(draft))
        return True

    def trial(self, prescriptions: Sequence[Prescription]) -> Trial:
        """Draft a recipe. What does not apply is left out of its actions."""
        draft = Draft(self.model, self.x, self.y, self.plan)
        draft.known_rate = self.known_rate if len(prescriptions) == 1 else None
        actions: dict[Prescription, list[Change]] = {}
        trial = Trial(actions, draft)
        with seeded(self._seed):
            try:
                for each in in_writing_order(list(prescriptions)):
                    if each.reshapes and not draft.is_editable:
                        continue
                    if changes := each.write(draft):
                        actions[each] = changes
                trial.model = draft.built()
            except Exception as error:  # Whatever a layer or loss of a person's own may raise.
                trial.error = f"{type(error).__name__}: {error}"
        trial.steps = TRACE + draft.searched
        return trial

    def again(self, trial: Trial, seed: int) -> Trial:
        """Return a trial of the same draft that begins at other first weights."""
        other = Trial(trial.actions, trial.draft, error=trial.error, steps=TRACE)
        if trial.model is not None:
            with seeded(seed):
                other.model = trial.draft.built()
        return other

    def train(self, trial: Trial, share: float) -> None:
        """Train a draft up to a share of its plan, and score it."""
        if trial.trained >= share:
            return
        if trial.model is None or trial.error is not None:
            trial.scores[share] = _FAILED
            return
        with seeded(self._seed + 1):
            try:
                is_finite = self._fit(trial, trial.trained, share)
                trial.scores[share] = self._score(trial) if is_finite else _FAILED
                if not is_finite:
                    trial.error = "the loss was not finite"
            except Exception as error:  # As above.
                trial.error = f"{type(error).__name__}: {error}"
                trial.scores[share] = _FAILED

    def _fit(self, trial: Trial, begin: float, end: float) -> bool:
        arguments = dict(trial.draft.fit_arguments)
        epochs = arguments.pop("epochs")
        x, y = trial.draft.prepared(self.x, self.y)
        total = _count(x)
        order = _order(
            total, round(begin * epochs * total), round(end * epochs * total), self._seed
        )
        for first in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[first : first + _ROWS_AT_ONCE]
            part_x, part_y = _taken((x, y), rows)
            trial.steps += len(rows) / arguments["batch_size"]
            history = trial.model.fit(part_x, part_y, shuffle=False, verbose=0, **arguments)
            if not np.isfinite(history.history["loss"][-1]):
                return False
        return True

    def _score(self, trial: Trial) -> float:
        outputs = _predicted(trial.model, self._x)
        targets = keras.tree.flatten(self._y)
        return float(
            np.mean([
                score(task, y, output)
                for task, y, output in zip(trial.draft.tasks, targets, outputs, strict=True)
            ])
        )  # fmt: skip


def _predicted(model: Any, x: Any) -> list[Any]:
    """Return the outputs for some examples, without a trace that a model is worth once alone."""
    total = _count(x)
    parts = []
    for first in range(0, total, _ROWS_PREDICTED):
        batch = _taken(x, slice(first, first + _ROWS_PREDICTED))
        outputs = model.predict_step((keras.tree.map_structure(_as_tensor, batch),))
        parts.append([np.asarray(each) for each in keras.tree.flatten(outputs)])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _as_tensor(array: Any) -> Any:
    is_float = np.issubdtype(array.dtype, np.floating)
    return keras.ops.convert_to_tensor(array, keras.config.floatx() if is_float else None)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what Keras draws first weights and dropout from, and put the generators back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _split(x: Any, y: Any, seed: int) -> tuple[Any, Any]:
    total = _count(x)
    if total < _FEWEST:
        return (x, y), (x, y)
    order = np.random.default_rng(seed).permutation(total)
    held = int(_HELD_OUT * total)
    return _taken((x, y), order[held:]), _taken((x, y), order[:held])


def _count(x: Any) -> int:
    return len(keras.tree.flatten(x)[0])


def _taken(data: Any, rows: Any) -> Any:
    return keras.tree.map_structure(lambda each: np.asarray(each)[rows], data)


def _order(total: int, begin: int, end: int, seed: int) -> Any:
    """Return the rows of a stretch of training, in which each epoch has an order of its own."""
    epochs = range(begin // total, -(-end // total))
    rows = [np.random.default_rng([seed, epoch]).permutation(total) for epoch in epochs]
    first = epochs.start * total
    return np.concatenate(rows)[begin - first : end - first]
