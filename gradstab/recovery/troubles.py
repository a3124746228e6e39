"""What is wrong with the state of a run, so that its last steps are to be taken back.

The state tells at once: it is not finite, or something in it is gone or has jumped as no step of a
healthy run makes it. What the loss tells is in `loss_watch`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gradstab.optimizers.model.damage import MOMENT, STATISTIC, WEIGHT
from gradstab.recovery.snapshots import Place

# Rise of a root mean square from one look to the next that no healthy step makes: of a moving
# variance once it has settled, and of all moments together.
_VARIANCE_RISE: Final = 10.0
_MOMENT_RISE: Final = 1e4
_WEIGHT_RISE: Final = 3.0
# Looks of a run that has learned nothing yet.
_EARLY: Final = 4
# Each of these that they grew by cuts the rate by a level more; the first by three.
_LEVELS_BY_RISE: Final = (_WEIGHT_RISE, _WEIGHT_RISE, _WEIGHT_RISE, 50.0)
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


LOST_AT_THE_END: Final = Trouble(
    "forgotten",
    "What was learned is gone, and no step is left to learn it again.",
    is_seen_at_once=False,
)


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
        self,
        norms: np.ndarray[Any, Any],
        *,
        loss_is_up: bool,
        loss_is_high: bool = False,
        has_learned: bool = True,
    ) -> Trouble | None:
        """Return what is wrong with the state, or `None`.

        Args:
            norms: Half the squared norm of each variable.
            loss_is_up: Whether the latest losses are above all that was before.
            loss_is_high: Whether the last few are far above those of the last calm looks.
            has_learned: Whether the loss fell from the first, and did not rise far before.
        """
        trouble = self._not_finite(norms)
        if trouble is None and self._calm is not None:
            trouble = (
                self._gone(norms, self._calm)
                or self._statistic_jumped(norms, self._calm)
                or self._moments_jumped(norms, self._calm)
                or (self._weights_jumped(norms, self._calm) if loss_is_up else None)
                or (self._weights_shrank(norms, self._calm) if loss_is_high else None)
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

    def _weights_shrank(self, norms: Any, calm: Any) -> Trouble | None:
        """Tell weights that were cleared, though momentum or the next steps moved them again."""
        now, before = self._total(norms, WEIGHT), self._total(calm, WEIGHT)
        if now >= before / _WEIGHT_RISE:
            return None
        return Trouble(
            "zeroed_state",
            f"The weights shrank from a norm of {before:.3g} to {now:.3g} within some steps, and "
            "the loss is up.",
            may_be_rate=False,
        )

    def _weights_left(self, norms: Any) -> Trouble | None:
        """Tell weights that went far from where they began, without a loss that simply fell.

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
            "and the loss stayed where it was, or first rose far: the learning rate is too high.",
            levels=sum(now > rise * before for rise in _LEVELS_BY_RISE),
        )

    def _total(self, norms: Any, kind: str) -> float:
        chosen = [
            norm for place, norm in zip(self._places, norms, strict=True) if place.kind == kind
        ]
        return math.sqrt(2 * float(np.sum(chosen, dtype="float64")))
