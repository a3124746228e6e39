"""The best state that a run had at the end of an epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from gradstab.recovery.causes import Cause
from gradstab.recovery.judge import Judge, value_of_logs
from gradstab.recovery.state import Copy


class BestState:
    """Keeps the state of the epoch with the lowest value of one of the logs.

    Where there is no such log, as in a loop that shows other losses, the last whole state is kept.

    Args:
        judge: Judges the run.
        monitor: Name of the log; `None` for the loss, that of validation where there is one.

    Attributes:
        name: The log that it went by.
        factor: What the learning rate was multiplied by in the best epoch.
    """

    def __init__(self, judge: Judge, monitor: str | None) -> None:
        self._judge = judge
        self._monitor = monitor
        self._value = math.inf
        self._applied = 0
        self._is_checked = False
        self._is_best = True
        self._epoch: int | None = None
        self._copy: Copy | None = None
        self.name = ""
        self.factor = 1.0

    def begin(self) -> None:
        """Keep the state in which training begins."""
        if self._judge.state.damage() is None:
            self._copy = self._judge.state.copy()

    def check(self, logs: Mapping[str, Any]) -> None:
        """Refuse a name that no epoch's logs can have; a validation may come every few epochs only.

        Raises:
            ValueError: Names the logs that there are.
        """
        name = self._monitor
        if self._is_checked or name is None or name in logs:
            return
        self._is_checked = True
        may_come = name.startswith("val_") and name.removeprefix("val_") in logs
        if may_come and not any(each.startswith("val_") for each in logs):
            return
        raise ValueError(
            f"`monitor` must be one of the logs: {', '.join(sorted(logs)) or 'there are none'}. "
            f"Received: monitor={name!r}"
        )

    def see(self, epoch: int, logs: Mapping[str, Any], factor: float = 1.0) -> None:
        """Keep the state if it is the best so far.

        Args:
            epoch: Number of the epoch, from 0.
            logs: Its logs.
            factor: What the learning rate is multiplied by.
        """
        name = self._monitor or "val_loss"
        if name not in logs:
            if name == self.name:
                return  # A validation every few epochs.
            name = "loss"
        if name != self.name:
            # The loss of validation is not to be compared with that of training.
            self.name, self._value = name, math.inf
        value = value_of_logs(logs, name)
        if name == "loss" and math.isnan(value):
            value = self._judge.loss_of_applied_steps()
        applied = self._judge.applied
        if applied is not None and applied == self._applied:
            return  # Nothing has changed since the last epoch, or since training began.
        self._applied = applied or 0
        self._is_best = name in logs
        if value == math.inf or (name.endswith("loss") and not self._judge.can_be(value)):
            return
        # The later of two: a loss that a step of its own does not show is 0 in every epoch.
        if value <= self._value or not self._is_best:
            self._value, self._epoch, self._copy = value, epoch, self._judge.state.copy()
            self.factor = factor

    def warn_of_another_log(self) -> None:
        """Warn if no epoch's logs had the one that was asked for."""
        if self._monitor is not None and self.name not in ("", self._monitor):
            warnings.warn(
                f"`monitor` was in no epoch's logs, and the best state was judged by {self.name!r}."
                f" Received: monitor={self._monitor!r}. Pass `validation_data`",
                stacklevel=3,
            )

    @property
    def has_epoch(self) -> bool:
        """Whether there is a best epoch."""
        return self._copy is not None and self._epoch is not None

    def put_back(self) -> str | None:
        """Put the best epoch's state back, and name it; `None` if there is none."""
        if self._epoch is None or self._copy is None:
            return None
        self._judge.state.put_back(self._copy)
        return f"the end of epoch {self._epoch + 1}, {self._which}"

    @property
    def _which(self) -> str:
        return "the best so far" if self._is_best else "the last that was whole"

    def restore(self, cause: Cause) -> str:
        """Put the best state back, if the cause asks for it, and say so."""
        if not cause.goes_back:
            return "There is nothing to restore."
        state, copy = self._judge.state, self._copy
        is_damaged = state.damage() is not None
        if self._judge.applied == 0 and not is_damaged:
            return "No step was applied: the weights are as they were when training began."
        if self._epoch is not None and copy is not None:
            state.put_back(copy)
            return (
                f"The weights and moments of epoch {self._epoch + 1}, {self._which}, have been "
                "restored."
            )
        if not cause.is_applied and not is_damaged:
            return "No epoch was completed, and the weights are as they were before these steps."
        if copy is None:
            return "There is no earlier state to restore."
        state.put_back(copy)
        return "No healthy epoch was completed: the weights with which training began are back."
