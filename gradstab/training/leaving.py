"""Leaves a run in the middle of an epoch after SIGTERM, and resumes it at that step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

from gradstab.optimizers.step.accumulation import window_size
from gradstab.optimizers.watching.find import bind, stabilized_optimizer
from gradstab.recovery.termination import Termination
from gradstab.training.applied import SkippedSteps
from gradstab.training.checkpoint import RunDirectory
from gradstab.training.leftovers import Progress


@dataclasses.dataclass(frozen=True)
class Amid:
    """Where an epoch stands.

    Attributes:
        step: Steps that were taken.
        logs: Their logs.
        judge: Counts them, and those that were skipped.
    """

    step: int
    logs: Mapping[str, Any]
    judge: SkippedSteps


class Leaving:
    """Leaves a run between two steps, and comes back.

    Args:
        model: The model.
        directory: Where the run is kept, or `None`.
        progress: How far it came.
        termination: Tells whether the process is asked to leave.
        callbacks: The callbacks of the run.
    """

    def __init__(
        self,
        model: Any,
        directory: RunDirectory | None,
        progress: Progress,
        termination: Termination,
        callbacks: Any,
    ) -> None:
        self._model = model
        self._directory = directory
        self._progress = progress
        self._termination = termination
        self._callbacks = callbacks

    def come_back(self, epoch: int) -> Amid:
        """Put back what the steps of an epoch left that were taken before, if there are any.

        What callbacks did when the epoch began they did before the run left: that is overwritten.
        """
        model, directory, progress = self._model, self._directory, self._progress
        if directory is None or not progress.step or epoch != progress.epochs_done:
            return Amid(0, {}, SkippedSteps(model))
        directory.restore(model, progress)
        directory.restore_callbacks(self._callbacks, progress)
        bind(model)
        return Amid(progress.step, progress.logs, SkippedSteps(model, progress.seen))

    def if_asked(self, amid: Amid) -> None:
        """Save and leave if the process is asked to.

        Several replicas keep statistics of their own amid an epoch, and a window of accumulation
        what it began with, which no file holds: they go on from the last complete epoch.

        Raises:
            SystemExit: If so.
        """
        if not self._termination.is_asked:
            return
        model, progress = self._model, self._progress
        epoch = progress.epochs_done + 1
        ours = stabilized_optimizer(model)
        window = 1 if ours is None else window_size(ours.inner_optimizer)
        if self._directory is None:
            self._leave(epoch, amid.step, "Nothing was saved, for want of a `run_dir`")
        if window > 1 or model.distribute_strategy.num_replicas_in_sync > 1:
            self._leave(epoch, amid.step, "With `resume=True` it goes on from the last whole epoch")
        progress.step, progress.seen = amid.step, amid.judge.counts()
        progress.logs = {name: float(log) for name, log in amid.logs.items() if _is_number(log)}
        told = "It is saved, and goes on from there with `resume=True`"
        try:
            self._directory.save_last(model, progress, self._callbacks)
        except OSError as error:  # Such as a full disk: it leaves all the same.
            told = str(error)
        self._leave(epoch, amid.step, told)

    def after_epoch(self, epoch: int) -> None:
        """Leave if the process is asked to; the epoch was saved.

        Raises:
            SystemExit: If so.
        """
        if self._termination.is_asked:
            saved = "for want of a `run_dir` nothing" if self._directory is None else "all"
            self._leave(epoch + 1, None, f"With it {saved} is saved")

    def _leave(self, epoch: int, step: int | None, told: str) -> NoReturn:
        place = f"epoch {epoch}" if step is None else f"step {step} of epoch {epoch}"
        self._termination.leave(f"{place}. {told}")


def _is_number(log: Any) -> bool:
    try:
        float(log)
    except (TypeError, ValueError):
        return False
    return True
