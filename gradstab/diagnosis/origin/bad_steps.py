"""The steps of one run that were not finite, and what began them; shared by all who watch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from gradstab.diagnosis.origin.find import OriginFinder
from gradstab.diagnosis.origin.kept_batch import Kept, KeptBatch
from gradstab.diagnosis.origin.origin import Origin
from gradstab.keras_hooks.batches import show_batches, shows_batches, stop_showing
from gradstab.optimizers.telemetry.reading import OVERFLOW, Reading
from gradstab.optimizers.telemetry.telemetry import Telemetry
from gradstab.optimizers.watching.find import stabilized_optimizers

# Bad steps that are looked into in one run: the first takes about what tracing a step does, each
# further one a step.
_MOST: Final = 20
# Overflows in a row from which on the loss scale, by then a sixteenth, is not the cause.
_SEARCHED: Final = 4
_RUN, _KEEPER = "gradstab_bad_steps", "gradstab_kept_batch"


class BadSteps:
    """Finds what began the steps of a run that were not finite.

    Callbacks and `training.train` join one for the run. Nothing is computed until a reading of the
    telemetry shows a bad step; what the compiled step does for it is one condition.

    Args:
        model: The model that is trained.

    Attributes:
        found: What began them, each once.
        latest: What began the latest one that was looked into, or `None`.
        batch_of: Gives the batch of a step by its number, and the numbers of its rows in the
            training arrays; `None` where it is not known. `training.train` sets it for arrays.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._finder = OriginFinder(model)
        self._keeper: KeptBatch = vars(model).setdefault(
            _KEEPER, KeptBatch(model.distribute_strategy)
        )
        self._present = self._looked = self._seen = 0
        self.found: list[Origin] = []
        self.latest: Origin | None = None
        self.batch_of: Callable[[int], tuple[Any, Any] | None] | None = None
        telemetries = [ours.telemetry for ours in stabilized_optimizers(model).values()]
        self._keeper.telemetries = telemetries
        self._keeper.take()  # A batch of the last run's.

    @staticmethod
    def join(model: Any) -> BadSteps:
        """Return the one of the run that begins, for which callbacks and `train` share it."""
        history = getattr(model, "history", None)
        bad = getattr(history, _RUN, None)
        if bad is None:
            bad = BadSteps(model)
            bad._show()
            if history is not None:
                setattr(history, _RUN, bad)
        bad._present += 1
        return bad

    def leave(self) -> None:
        """Leave; the last one lets go of the model."""
        self._present -= 1
        if not self._present:
            stop_showing(self._model)
            history = getattr(self._model, "history", None)
            if history is not None:
                vars(history).pop(_RUN, None)

    def watch(self, telemetry: Telemetry) -> None:
        """Keep batches of the steps of an optimizer that is not gradstab's, too."""
        if all(each is not telemetry for each in self._keeper.telemetries):
            self._keeper.telemetries.append(telemetry)

    def see(self, reading: Reading) -> Origin | None:
        """Look into the first bad step of a reading, and return what began it, if that is new.

        Args:
            reading: Of an optimizer of the model.
        """
        if reading.cursor < self._seen:
            self._seen = 0  # The run went back, and its counters with it.
        bad = self._new(reading)
        if not bad:
            return None
        self._seen = reading.cursor
        if self._looked >= _MOST:
            self.latest = None  # What is not looked into is not told by what was.
            return None
        kept = self._keeper.take() or self._looked_up(list(bad))
        if kept is None:
            certain = [step for step, searches in bad.items() if not searches]
            return self._unknown(certain[0]) if certain and not self.found else None
        searches = bad.get(kept.step, False)
        applied = (reading.steps == kept.step) & ~reading.skipped
        if searches and _in_a_row(reading) < _SEARCHED:
            origin = self._finder.find_in_data(kept.batch)
        else:
            self._looked += 1
            origin = self._finder.find(kept.batch, was_applied=bool(applied.any()))
        overflowed = reading.cause[int(np.argmax(reading.steps == kept.step))] == OVERFLOW
        if origin is None or (overflowed and not origin.is_known):
            return None
        example = None
        if kept.rows is not None and origin.row is not None and origin.row < len(kept.rows):
            example = int(kept.rows[origin.row])
        origin = dataclasses.replace(origin, step=kept.step, example=example)
        before = self.latest
        # Of skips in a row the first that shows the fault tells most.
        streak_begun = reading.cursor - reading.consecutive_skips
        goes_on = before is not None and (before.step or 0) > streak_begun
        if before is None or not (goes_on and origin.same_as(before)):
            self.latest = origin
        if any(origin.same_as(each) for each in self.found):
            return None
        self.found.append(origin)
        return origin

    def told(self) -> str:
        """Return what began the latest bad step, with a space before it; nothing if not known."""
        latest = self.latest
        return "" if latest is None or not latest.is_known else f" {latest}"

    def _new(self, reading: Reading) -> dict[int, bool]:
        """Return the numbers of the bad steps that were not looked into yet.

        Each with whether it looks like a loss scale that is too large: with a finite loss, and
        while the scale can be lowered, that is expected, and no fault.
        """
        bad = ~np.isfinite(reading.grad_norm) & (reading.steps > self._seen)
        return {
            int(reading.steps[row]): reading.cause[row] == OVERFLOW
            and bool(np.isfinite(reading.loss[row]))
            and not reading.consecutive_skips
            for row in np.flatnonzero(bad).tolist()
        }

    def _looked_up(self, bad: list[int]) -> Kept | None:
        """Return the batch of the first bad step by its number, where batches can be had so."""
        if self.batch_of is None:
            return None
        for step in bad:
            found = self.batch_of(step)
            if found is not None:
                return Kept(step, *found)
        return None

    def _unknown(self, step: int) -> Origin:
        self.latest = Origin("unknown", step=step, what="The batch of the step was not kept.")
        self.found.append(self.latest)
        return self.latest

    def _show(self) -> None:
        """Have the model's train function keep batches, from its next trace on."""
        model = self._model
        is_shown = show_batches(model, self._keeper.after_step)
        function = getattr(model, "train_function", None)
        if is_shown and function is not None and not shows_batches(function):
            model.make_train_function(force=True)


def _in_a_row(reading: Reading) -> int:
    """Return how many steps were skipped in a row at most."""
    longest = count = 0
    for skipped in reading.skipped.tolist():
        count = count + 1 if skipped else 0
        longest = max(longest, count)
    return longest


def keeper_of(model: Any) -> KeptBatch | None:
    """Return what keeps batches of a model's steps, or `None`."""
    keeper: KeptBatch | None = vars(model).get(_KEEPER)
    return keeper
