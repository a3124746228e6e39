"""One line on the console when a run ends, shared by all gradstab callbacks of the run."""

from __future__ import annotations

from typing import Any, Final

from gradstab.callbacks.run_totals import RunTotals, calls_of
from gradstab.monitoring.entries import Totals
from gradstab.optimizers.watching.find import stabilized_optimizers
from gradstab.reports.verdict import closing_line

_ATTRIBUTE: Final = "gradstab_closing"


class Closing:
    """The closing line of one run, shared by its callbacks; the last one to end prints it.

    Args:
        model: The model that is trained.

    Attributes:
        diverged: Why the run was stopped, or `None`.
        interrupted: Name of the exception that ended it, or `None`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._present = 0
        self._told: dict[str, Totals] = {}
        self.diverged: str | None = None
        self.interrupted: str | None = None
        self._iterations = _iterations(model)
        optimizers = stabilized_optimizers(model)
        self._begun = {
            name: (ours.telemetry, RunTotals(ours.telemetry.peek(), ours))
            for name, ours in optimizers.items()
        }

    @staticmethod
    def join(model: Any) -> Closing:
        """Return the closing of the run that begins, which its callbacks share."""
        history = getattr(model, "history", None)
        closing = getattr(history, _ATTRIBUTE, None)
        if closing is None:
            closing = Closing(model)
            if history is not None:
                setattr(history, _ATTRIBUTE, closing)
        closing._present += 1
        return closing

    def tell(self, name: str, totals: Totals, divergence: Any = None) -> None:
        """Store the totals of an optimizer that was watched at every step, and its divergence."""
        self._told[name] = totals
        if divergence is not None and self.diverged is None:
            self.diverged = str(divergence)

    def leave(self, params: dict[str, Any] | None) -> None:
        """Print, if this is the last callback and the run is not a silent one."""
        self._present -= 1
        if self._present:
            return
        history = getattr(self._model, "history", None)
        if history is not None:
            vars(history).pop(_ATTRIBUTE, None)
        if (params or {}).get("verbose") == 0:
            return
        for name, (telemetry, totals) in self._begun.items():
            if name not in self._told:
                reading = telemetry.peek(since=min(totals.begun_at, telemetry.peek().cursor))
                totals.see(reading)
                totals.see_rate()
                self.tell(name, totals.totals, reading.divergence)
        told = {name: each for name, each in self._told.items() if each.steps}
        if not told:  # Nothing of gradstab's counts the steps of a plain optimizer.
            told = {"optimizer": Totals(steps=_iterations(self._model) - self._iterations)}
        losses = list(getattr(history, "history", {}).get("loss", ()))
        for name, each in told.items():
            prefix = f"gradstab, {name}: " if len(told) > 1 else "gradstab: "
            line = closing_line(each, losses, self.diverged, self.interrupted)
            print(prefix + line, flush=True)


def _iterations(model: Any) -> int:
    optimizer: Any = getattr(model, "optimizer", None)
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return 0 if optimizer is None else calls_of(optimizer)
