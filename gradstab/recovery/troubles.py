"""What is wrong with a run right now, so that its last steps are to be taken back.

Two kinds of evidence. The state itself tells at once: it is not finite, or something in it is gone
or has jumped as no step of a healthy run makes it. The loss tells by staying up: one bad batch, a
warm restart or noise lifts it for some steps, and then it comes down by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gradstab.optimizers.model.damage import MOMENT, STATISTIC, WEIGHT
from gradstab.recovery.snapshots import Place

# Losses of a look of which the lower quarter has to be up.
_LATEST: Final = 25
# Less than these are too few to say anything.
_FEWEST: Final = 8
# The last few, of which the middle one must not be up if the state is to be kept.
_LAST: Final = 5
# How much of what was learned may come back, and how far above the highest calm loss one may be.
_LOST: Final = 0.8
_ABOVE: Final = 3.0
# The first loss is that of the first weights, by luck a small one: those after it may be so much
# larger.
_EXPLODED: Final = 1e3
# The least that has to be learned first, of the first loss, and in deviations of the noise.
_LEARNED: Final = 0.3
_DEVIATIONS: Final = 6.0
# Rise of a root mean square from one look to the next that no healthy step makes: of a moving
# variance once it has settled, and of all moments together.
_VARIANCE_RISE: Final = 10.0
_MOMENT_RISE: Final = 1e4
_WEIGHT_RISE: Final = 3.0
# Looks of a run that has learned nothing yet, and the part of the first loss that counts as that.
_EARLY: Final = 4
_LEARNED_NOTHING: Final = 0.95
# Each of these that they grew by cuts the rate by a level more; the first by three.
_LEVELS_BY_RISE: Final = (_WEIGHT_RISE, _WEIGHT_RISE, _WEIGHT_RISE, 50.0, 5000.0)
# Mean squares below this are small enough to become 0 by decay or rounding.
_NOTICEABLE: Final = 1e-8
_VARIANCE: Final = "moving_variance"
# Looks before the first of which moving variances are still on their way from 1.
_SETTLED: Final = 2


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Why the last steps of a run are to be taken back.

    Attributes:
        kind: What kind of trouble it is, for records and tests.
        text: In words.
        may_be_rate: Whether a learning rate that is too high can be the cause.
        is_seen_at_once: Whether the state tells: then a snapshot that was looked through before is
            whole. Of what the loss tells later, the newest may hold the beginning.
        levels: By how many levels the rate is to be cut at once, where nothing else is the cause.
    """

    kind: str
    text: str
    may_be_rate: bool = True
    is_seen_at_once: bool = True
    levels: int = 0


class StateWatch:
    """Compares the state with how it was at the last calm look.

    Args:
        places: The variables whose norms are shown.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self._sizes = np.array([max(1, int(np.prod(place.variable.shape))) for place in places])
        self._calm: np.ndarray[Any, Any] | None = None
        self._begun: np.ndarray[Any, Any] | None = None
        self._constants = np.zeros(len(self._places), bool)
        self._looks = 0

    def see(
        self, norms: np.ndarray[Any, Any], *, loss_is_up: bool, has_learned: bool = True
    ) -> Trouble | None:
        """Return what is wrong with the state, or `None`.

        Args:
            norms: Half the squared norm of each variable.
            loss_is_up: Whether the latest losses are above all that was before.
            has_learned: Whether the loss was ever below the first.
        """
        trouble = self._not_finite(norms)
        if trouble is None and self._calm is not None:
            trouble = (
                self._gone(norms, self._calm)
                or self._statistic_jumped(norms, self._calm)
                or self._moments_jumped(norms, self._calm)
                or (self._weights_jumped(norms, self._calm) if loss_is_up else None)
                or (None if has_learned else self._weights_left(norms))
            )
        return trouble

    def keep(self, norms: np.ndarray[Any, Any]) -> None:
        """Take a look for calm: later ones are compared with it."""
        self.begin_from(norms)
        self._looks += 1

    def begin_from(self, norms: np.ndarray[Any, Any]) -> None:
        """Compare with this state, in which training begins or to which it went back.

        What is infinite then, such as a mask, is a constant of the model's own; but no weight is.
        """
        if self._begun is None:
            self._begun = norms
            is_weight = np.array([place.kind == WEIGHT for place in self._places], bool)
            self._constants = ~np.isfinite(norms) & ~is_weight
        self._calm = norms

    def begin_anew(self, norms: np.ndarray[Any, Any]) -> None:
        """Compare with the state in which training began, to which it went back."""
        self._calm, self._looks = norms, 0

    def is_finite(self, norms: np.ndarray[Any, Any]) -> bool:
        """Whether all is finite that has to be."""
        return self._not_finite(norms) is None

    def _not_finite(self, norms: np.ndarray[Any, Any]) -> Trouble | None:
        bad = np.flatnonzero(~np.isfinite(norms) & ~self._constants)
        order = {WEIGHT: 0, STATISTIC: 1, MOMENT: 2, None: 3}
        if not len(bad):
            return None
        first = min(bad.tolist(), key=lambda place: order[self._places[place].kind])
        others = f", and so do {len(bad) - 1} more variables" if len(bad) > 1 else ""
        place = self._places[first]
        return Trouble(
            "nonfinite_state",
            f"`{place.path}` ({place.kind or 'part of the state'}) holds NaN or infinity{others}.",
            may_be_rate=place.kind != STATISTIC,
        )

    def _gone(self, norms: Any, calm: Any) -> Trouble | None:
        # A bias before a normalization is next to nothing anyway, and a constraint may clear it.
        gone = [
            number
            for number in np.flatnonzero((norms == 0) & (calm > _NOTICEABLE * self._sizes)).tolist()
            if self._counts_if_gone(self._places[number])
        ]
        if not gone:
            return None
        place = self._places[gone[0]]
        return Trouble(
            "zeroed_state",
            f"`{place.path}` ({place.kind}) is exactly zero now, and was not some steps ago.",
            may_be_rate=False,
        )

    def _counts_if_gone(self, place: Place) -> bool:
        is_matrix = place.kind == WEIGHT and len(place.variable.shape) > 1
        return is_matrix or _VARIANCE in place.path

    def _statistic_jumped(self, norms: Any, calm: Any) -> Trouble | None:
        if self._looks < _SETTLED:
            return None
        for place, now, before, size in zip(self._places, norms, calm, self._sizes, strict=True):
            if _VARIANCE not in place.path:
                continue
            rose, was = math.sqrt(2 * now / size), math.sqrt(2 * before / size)
            if rose > _VARIANCE_RISE * max(was, 1e-3):
                return Trouble(
                    "spoiled_statistics",
                    f"`{place.path}` rose from {was:.3g} to {rose:.3g} within some steps, as one "
                    "batch of huge values makes it.",
                    may_be_rate=False,
                )
        return None

    def _moments_jumped(self, norms: Any, calm: Any) -> Trouble | None:
        now, before = self._total(norms, MOMENT), self._total(calm, MOMENT)
        if self._looks < _SETTLED or before == 0 or now <= _MOMENT_RISE * max(before, 1e-12):
            return None
        return Trouble(
            "spoiled_moments",
            f"The optimizer's moments rose from {before:.3g} to {now:.3g} within some steps, as "
            "one huge gradient makes them.",
            may_be_rate=False,
        )

    def _weights_jumped(self, norms: Any, calm: Any) -> Trouble | None:
        now, before = self._total(norms, WEIGHT), self._total(calm, WEIGHT)
        if now <= _WEIGHT_RISE * before:
            return None
        return Trouble(
            "huge_update",
            f"The weights grew from a norm of {before:.3g} to {now:.3g} within some steps, and the "
            "loss is up.",
        )

    def _weights_left(self, norms: Any) -> Trouble | None:
        """Tell weights that went far from where they began, at a loss no better than the first.

        Those that began at zero, such as biases, may go anywhere.
        """
        if self._looks >= _EARLY or self._begun is None:
            return None
        chosen = [
            place.kind == WEIGHT and begun > _NOTICEABLE * size
            for place, begun, size in zip(self._places, self._begun, self._sizes, strict=True)
        ]
        now, before = (math.sqrt(2 * float(np.sum(each[chosen]))) for each in (norms, self._begun))
        if not now > _WEIGHT_RISE * before:
            return None
        return Trouble(
            "rate_too_high",
            f"The weights grew from a norm of {before:.3g} to {now:.3g} within the first steps, "
            "and the loss is no better than at the first: the learning rate is too high.",
            levels=sum(now > rise * before for rise in _LEVELS_BY_RISE),
        )

    def _total(self, norms: Any, kind: str) -> float:
        chosen = [
            norm for place, norm in zip(self._places, norms, strict=True) if place.kind == kind
        ]
        return math.sqrt(2 * float(np.sum(chosen, dtype="float64")))


class LossWatch:
    """Tells a loss that stays where it was before anything was learned, or far above all before."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._start: list[float] = []
        self._best = math.inf
        self._highest = -math.inf
        self._spread = 0.0
        self._latest: list[float] = []
        self._was_up: float | None = None

    def has_learned(self, losses: Sequence[float]) -> bool:
        """Whether any calm loss, or the lower quarter of the latest ones, is below the first."""
        new = [loss for loss in losses if math.isfinite(loss)]
        if self._first is None and losses:
            self._first = losses[0]
        if self._first is None or not math.isfinite(self._first) or len(new) < _FEWEST:
            return True  # Nothing to compare with.
        low = min(float(np.quantile(new[-_LATEST:], 0.25)), self._best)
        return low < self._first - (1 - _LEARNED_NOTHING) * abs(self._first)

    @property
    def is_up(self) -> bool:
        """Whether, be it for a moment, the latest losses are above all that a healthy run shows."""
        return self._was_up is not None

    @property
    def is_calm(self) -> bool:
        """Whether they are as they were, the last few too: no spike has just begun."""
        if len(self._latest) < _FEWEST:
            return not self.is_up
        return not self.is_up and float(np.median(self._latest[-_LAST:])) <= self._limit()

    def see(self, losses: Sequence[float]) -> Trouble | None:
        """Take in the losses of applied steps since the last look; return what they tell."""
        new = [loss for loss in losses if math.isfinite(loss)]
        self._latest = [*self._latest, *new][-_LATEST:]
        if len(self._latest) < _FEWEST or not new:
            return None
        if not self._start:
            self._start = new[:_FEWEST]
            # With a rate too high they explode within these few.
            self._highest = min(max(self._start), _EXPLODED * abs(new[0]) + 1.0)
        low, middle = np.quantile(self._latest, [0.25, 0.5]).tolist()
        limit = self._limit()
        if low <= limit:
            self._was_up = None
            return None
        before, self._was_up = self._was_up, middle
        # It has to stay there, and not to be on its way down again.
        if before is None or middle < 0.8 * before:
            return None
        return Trouble(
            "loss_stays_up",
            f"The loss stays at {middle:.3g}, where it was {self._best:.3g} at its best and "
            f"{np.median(self._start):.3g} when training began.",
            is_seen_at_once=False,
        )

    def keep(self) -> None:
        """Take the latest losses for calm."""
        if len(self._latest) < _FEWEST:
            return
        middle = float(np.median(self._latest))
        self._highest = max(self._highest, float(np.quantile(self._latest, 0.95)))
        if middle < self._best:
            self._best = middle
            self._spread = float(np.median(np.abs(np.array(self._latest) - middle)))

    def told(self) -> str:
        """Return where the loss is, in words."""
        if not self._latest or not math.isfinite(self._best):
            return "by the state"
        now = float(np.median(self._latest))
        return f"at a loss of {now:.3g}, where {self._best:.3g} was its best"

    def forget(self) -> None:
        """Forget the latest losses: their steps were taken back."""
        self._latest, self._was_up = [], None

    def _limit(self) -> float:
        """Return what the lower quarter of the latest losses must not be above."""
        start = float(np.median(self._start))
        learned = start - self._best if math.isfinite(self._best) else 0.0
        far = self._highest + (_ABOVE - 1) * abs(self._highest)
        if learned > _LEARNED * abs(start) and learned > _DEVIATIONS * self._spread:
            return min(far, self._best + _LOST * learned)
        return far
