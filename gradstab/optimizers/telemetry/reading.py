"""Readings of telemetry as plain data, and how they are made from the recorded variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gradstab.optimizers.telemetry.counters import COUNTS
from gradstab.optimizers.telemetry.reading_words import in_five_lines
from gradstab.optimizers.telemetry.samples import Samples

# Rows of the ring: the steps that a reader can be late without losing one.
CAPACITY: Final = 2048
# What a row of it holds of its step.
ROW: Final = (
    "grad_norm", "grad_norm_after", "loss", "clipped", "limited", "cause", "bad_variable",
)  # fmt: skip
# Cause of the skips that a dynamic loss scale makes; it comes before the causes of transforms.
OVERFLOW: Final = "overflow"
# Overflows in a row at the floor of the scale, where no transform of the chain has a budget.
_OVERFLOW_BUDGET: Final = 50


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The reason why training counts as diverged.

    Attributes:
        variable: Path of the first variable whose gradient was not finite; `None` if all gradients
            were finite and the step was skipped for another reason.
        step: Number of the first bad step, from 1, skipped steps counted.
        skipped: Steps skipped in a row; 0 if the bad gradient was applied.
        bad: Paths of all variables whose gradient was not finite in the latest step.
        known: Number of all variables.
        is_first: Whether `variable` is the model's first, as it is whenever all are bad.
    """

    variable: str | None
    step: int
    skipped: int
    bad: tuple[str, ...] = ()
    known: int = 0
    is_first: bool = True

    def __str__(self) -> str:
        return self.told()

    def told(self, damage: str | None = None, more: str = "", origin: str = "") -> str:
        """Return it as text.

        Args:
            damage: What of the weights and the rest of the state is not finite, as a sentence.
            more: What else is known of the gradient, as sentences.
            origin: What began it, as sentences, where that is known.
        """
        if not self.skipped:
            return (
                f"At step {self.step} {self.what}, and the update was applied, since no "
                f"`SkipNonFinite` is in the chain. {damage or 'The weights hold NaN now.'} "
                "Restore them from a checkpoint, and wrap the optimizer with "
                f"`gradstab.stabilize`, which skips such steps.{origin}"
            )
        began = f"{self.skipped} steps in a row were skipped, beginning with step {self.step}"
        if damage:
            return (
                f"{began}. {damage} Skipped steps change no variable: the damage is older, or "
                f"other code wrote them. Restore them from a checkpoint.{origin}"
            )
        if origin:
            return f"{began}, where {self.what}. The weights did not change.{origin}"
        return (
            f"{began}, where {self.what}.{more} The weights did not change. Look at the data "
            "and the loss of these steps; lower the learning rate or check the initialization if "
            "it began early in training."
        )

    @property
    def what(self) -> str:
        """What was wrong with the gradient. A variable is named where the others had a finite one.

        A gradient that is lost on the way back is lost for every layer before: the first variable
        that has none is the model's first, wherever that began.
        """
        if self.variable is None:
            return "a transform refused the gradient"
        if not self.is_first:
            return f"the gradient of `{self.variable}` was not finite (the first such variable)"
        if len(self.bad) > 1 and len(self.bad) == self.known:
            return (
                "no gradient was finite, so they do not show whether it began in the data or in a "
                "layer"
            )
        if len(self.bad) > 1:
            return (
                f"the gradients of {len(self.bad)} of {self.known} variables were not finite, "
                f"from `{self.bad[0]}` to `{self.bad[-1]}`"
            )
        return f"the gradient of `{self.variable}` was not finite"


@dataclasses.dataclass(frozen=True)
class Reading:
    """The steps since a cursor. Arrays have one entry per step, oldest first.

    Attributes:
        cursor: The number of steps so far, skipped ones counted. Pass it as `since` next time.
        missed: Number of steps since the cursor that are no longer stored.
        steps: Numbers of the steps, from 1.
        grad_norm: Global gradient norm before the transforms.
        grad_norm_after: The same after them.
        loss: Loss of the step; NaN where the trainer did not pass it.
        clipped: Whether a transform clipped the gradient to a bound that you chose.
        limited: Whether a rule of `clip="auto"` limited the step.
        limited_by: The same for each rule, by its name.
        skipped: Whether the step was skipped.
        cause: Cause of the skip; `None` for steps that were applied.
        bad_variable: Path of the first variable whose gradient was not finite, or `None`.
        norms: Gradient norm of each variable before the transforms, by path, in the last step.
        total_skipped: Steps skipped since the optimizer was made.
        total_clipped: Steps clipped since the optimizer was made.
        total_limited: Steps limited since the optimizer was made.
        total_limited_by: The same by rule. Several rules may limit one step.
        skipped_by_cause: `total_skipped` by cause.
        consecutive_skips: Steps skipped in a row, up to the latest one.
        divergence: The reason why training counts as diverged, or `None`.
        samples: Detailed samples of some steps, if requested, else `None`.
    """

    cursor: int
    missed: int
    steps: np.ndarray[Any, Any]
    grad_norm: np.ndarray[Any, Any]
    grad_norm_after: np.ndarray[Any, Any]
    loss: np.ndarray[Any, Any]
    clipped: np.ndarray[Any, Any]
    limited: np.ndarray[Any, Any]
    limited_by: dict[str, np.ndarray[Any, Any]]
    skipped: np.ndarray[Any, Any]
    cause: list[str | None]
    bad_variable: list[str | None]
    norms: dict[str, float]
    total_skipped: int
    total_clipped: int
    total_limited: int
    total_limited_by: dict[str, int]
    skipped_by_cause: dict[str, int]
    consecutive_skips: int
    divergence: Divergence | None
    samples: Samples | None = None

    def __str__(self) -> str:
        return in_five_lines(self)

    @property
    def shows_gradient(self) -> bool:
        """Whether a gradient was not zero, may not have been, or had to be zero at a loss of 0."""
        return bool(self.missed or (self.grad_norm != 0).any() or (self.loss == 0).any())


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the variables of telemetry hold.

    Attributes:
        paths: Paths of the variables that are trained.
        causes: Why steps may be skipped, the overflow first, then one for each veto.
        limits: Names of the rules that may limit steps.
        steps: How many steps there were, skipped ones counted.
        counts: The numbers of `COUNTS`, then how many steps were skipped for each cause, then how
            many each rule limited. Two causes, or rules, may have the same name.
        recent: The ring: row n - 1, modulo its length, holds `ROW` of step n.
        norms: Gradient norm of each variable in the last step.
    """

    paths: Sequence[str]
    causes: Sequence[str]
    limits: Sequence[str]
    steps: int
    counts: Sequence[int]
    recent: np.ndarray[Any, Any]
    norms: np.ndarray[Any, Any]

    @staticmethod
    def nothing(paths: Sequence[str], causes: Sequence[str], limits: Sequence[str]) -> Recorded:
        """Return what is recorded before the first step."""
        return Recorded(
            paths, causes, limits, 0, [0] * (len(COUNTS) + len(causes) + len(limits)),
            np.zeros((CAPACITY, len(ROW)), "float32"), np.zeros(len(paths), "float32"),
        )  # fmt: skip

    def reading(self, since: int | None, budget: int | None, samples: Samples | None) -> Reading:
        """Return what happened since a cursor.

        Args:
            since: The cursor, or `None` for all that is kept.
            budget: Skips in a row beyond which training has diverged, or `None` for no such number.
            samples: Closer looks since then, or `None`.

        Raises:
            ValueError: If `since` is not between 0 and the number of steps so far.
        """
        if since is not None and not 0 <= since <= self.steps:
            raise ValueError(
                f"`since` must be a cursor between 0 and {self.steps}, the steps so far. Received: "
                f"since={since!r}. If an earlier state was loaded, begin again with since=None"
            )
        first = max(since or 0, self.steps - CAPACITY)
        numbers = np.arange(first, self.steps)
        rows = dict(zip(ROW, self.recent[numbers % CAPACITY].T, strict=True))
        return Reading(
            cursor=self.steps,
            missed=first - (since or 0),
            steps=numbers + 1,
            grad_norm=rows["grad_norm"],
            grad_norm_after=rows["grad_norm_after"],
            loss=rows["loss"],
            clipped=rows["clipped"] > 0,
            limited=rows["limited"] > 0,
            limited_by=self._limited_by(rows["limited"]),
            skipped=rows["cause"] > 0,
            cause=[None if code == 0 else self.causes[int(code) - 1] for code in rows["cause"]],
            bad_variable=[self._path(index) for index in rows["bad_variable"]],
            norms=dict(zip(self.paths, map(float, self.norms), strict=True)),
            total_skipped=self._count("skipped"),
            total_clipped=self._count("clipped"),
            total_limited=self._count("limited"),
            total_limited_by=self._total_limited_by(),
            skipped_by_cause=self._skipped_by_cause(),
            consecutive_skips=self._count("consecutive_skips"),
            divergence=self._divergence(budget),
            samples=samples,
        )

    def _count(self, name: str) -> int:
        return self.counts[COUNTS.index(name)]

    def _limited_by(self, codes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Return which steps each rule limited, of which a code holds a bit for each rule."""
        bits = codes.astype("int64")
        result = {name: np.zeros(len(bits), bool) for name in self.limits}
        for place, name in enumerate(self.limits):
            result[name] |= (bits >> place) & 1 > 0
        return result

    def _total_limited_by(self) -> dict[str, int]:
        result: dict[str, int] = dict.fromkeys(self.limits, 0)
        counts = self.counts[len(COUNTS) + len(self.causes) :]
        for name, count in zip(self.limits, counts, strict=True):
            result[name] += count
        return result

    def _skipped_by_cause(self) -> dict[str, int]:
        result: dict[str, int] = {}
        counts = self.counts[len(COUNTS) :][: len(self.causes)]
        for cause, count in zip(self.causes, counts, strict=True):
            # A loss scale counts where there is one.
            if cause != OVERFLOW or self._overflows:
                result[cause] = result.get(cause, 0) + count
        return result

    @property
    def _overflows(self) -> int:
        return self.counts[len(COUNTS)]

    def _divergence(self, budget: int | None) -> Divergence | None:
        if budget is None and self._overflows:
            budget = _OVERFLOW_BUDGET
        if budget is not None and self._count("longest_skips") > budget:
            return Divergence(
                variable=self._path(self._count("longest_variable")),
                step=self._count("longest_step"),
                skipped=self._count("longest_skips"),
                bad=self._bad_now(),
                known=len(self.paths),
                is_first=self._count("longest_variable") <= 0,
            )
        if self._count("applied_nonfinite"):
            return Divergence(
                variable=self._path(self._count("applied_variable")),
                step=self._count("applied_step"),
                skipped=0,
                bad=self._bad_now(),
                known=len(self.paths),
                is_first=self._count("applied_variable") <= 0,
            )
        return None

    def _bad_now(self) -> tuple[str, ...]:
        fine = np.isfinite(self.norms)
        return tuple(path for path, each in zip(self.paths, fine, strict=True) if not each)

    def _path(self, index: float) -> str | None:
        return self.paths[int(index)] if index >= 0 else None
