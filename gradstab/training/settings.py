"""The arguments of `train` that are plain values, checked."""

from __future__ import annotations

import dataclasses
import math

from gradstab._validation import check_choice, check_int

_FORMS = {False: "graph", True: "xla_step", "step": "xla_step", "loop": "xla_loop"}
_LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "iou", "dice", "r2")
_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "entropy", "divergence")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `train` that are plain values; refuses what can't be right."""

    epochs: int
    batch_size: int
    steps_per_epoch: int | None
    seed: int | None
    jit_compile: bool | str
    steps_per_call: int | str
    initial_epoch: int
    class_weight: dict[int, float] | None
    validation_split: float
    monitor: str
    monitor_mode: str
    early_stopping_patience: int | None
    verbose: int | str

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs)
        check_int("batch_size", self.batch_size)
        check_int("initial_epoch", self.initial_epoch, minimum=0)
        if self.steps_per_epoch is not None:
            check_int("steps_per_epoch", self.steps_per_epoch)
        if self.seed is not None:
            check_int("seed", self.seed, minimum=0)
        check_choice("jit_compile", self.jit_compile, ("auto", *_FORMS))
        if self.steps_per_call != "auto":
            check_int("steps_per_call", self.steps_per_call, fix="Or leave it at 'auto'")
        if self.early_stopping_patience is not None:
            check_int("early_stopping_patience", self.early_stopping_patience)
        check_choice("verbose", self.verbose, ("auto", 0, 1, 2))
        check_choice("monitor_mode", self.monitor_mode, ("auto", "min", "max"))
        if self.monitor_mode == "auto":
            object.__setattr__(self, "monitor_mode", _direction_of(self.monitor))

    @property
    def form(self) -> str | None:
        """The form of the loop that was asked for, or None where it is to be chosen."""
        return None if self.jit_compile == "auto" else _FORMS[self.jit_compile]

    def improves(self, value: float, best: float | None) -> bool:
        """Return whether `value` of the monitored log is better than the best so far.

        NaN and infinity are no better than anything.
        """
        if not math.isfinite(value):
            return False
        return best is None or (value < best if self.monitor_mode == "min" else value > best)


def _direction_of(monitor: str) -> str:
    name = monitor.lower()
    if any(part in name for part in _SMALLER_IS_BETTER):
        return "min"
    if any(part in name for part in _LARGER_IS_BETTER):
        return "max"
    raise ValueError(
        "`monitor_mode` must be 'min' or 'max' where the name of the log does not say which is "
        f"better. Received: monitor_mode='auto' with monitor={monitor!r}"
    )
