"""Searches for a learning rate by trying several from the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import keras
import numpy as np

from gradstab._validation import check_float, check_int
from gradstab.diagnosis.measuring.laboratory import Laboratory
from gradstab.diagnosis.measuring.sample import take_sample, tensors
from gradstab.diagnosis.measuring.state import preserved
from gradstab.repairs.draft import copied, with_rate

# Half decades.
_RATES: Final = tuple(float(f"{10.0 ** (place / 2):.1g}") for place in range(-10, 3))
_STEPS: Final = 40
_SCORED: Final = 512  # examples
# The share of the best fall of the loss that counts as good as the best.
_AS_GOOD: Final = 0.95
_CALMER: Final = 0.75


@dataclasses.dataclass(frozen=True)
class LearningRateSearch:
    """Losses after some steps at each of several rates.

    Attributes:
        rates: Learning rates.
        losses: Loss after the steps at each rate, NaN where it was not finite.
        start: Loss before the steps.
        suggestion: The rate to use, or `None` if no rate lowers the loss.
        reason: The reason for the suggestion.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    start: float
    suggestion: float | None
    reason: str

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss over the rates, and return the axes.

        Args:
            ax: Matplotlib axes; those of a new figure by default. Needs the extra `report`.
        """
        if ax is None:
            try:
                from matplotlib.figure import Figure
            except ImportError as error:
                raise ImportError(
                    "Matplotlib draws the plot. Install it with: pip install 'gradstab[report]'"
                ) from error
            ax = Figure(layout="constrained").subplots()
        ax.semilogx(self.rates, self.losses, marker="o", label="after the steps")
        ax.axhline(self.start, linestyle=":", color="gray", label="before")
        if self.suggestion is not None:
            ax.axvline(self.suggestion, color="tab:green", label=f"suggested: {self.suggestion:g}")
        ax.set(xlabel="learning rate", ylabel="loss")
        ax.set_ylim(top=max(self.start, min(np.nanmax(self.losses), 2 * self.start)) * 1.05)
        ax.legend()
        return ax


def find_learning_rate(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    num_steps: int = _STEPS,
    min_rate: float = _RATES[0],
    max_rate: float = _RATES[-1],
    seed: int = 0,
) -> LearningRateSearch:
    """Find a learning rate: train for some steps at each of several rates.

    Each rate starts from the same weights, sees the same batches, and is scored on the same rows,
    so that the noise of single batches does not decide. The suggestion is the smallest rate that
    lowers the loss by at least 95 % of the best reduction. If the next higher rate fails, it is
    half a decade less, provided that still gives three quarters of the reduction. Afterwards the
    model and the random generators are as before.

    Args:
        model: A compiled model.
        x: Inputs: an array, or a list or dict of arrays.
        y: Targets, likewise.
        batch_size: Examples of a step.
        num_steps: Steps at each rate.
        min_rate: Lowest rate to try.
        max_rate: Highest rate to try. Rates in between are half a decade apart.
        seed: Seed of the choice of examples.

    Returns:
        The rates, the losses, the suggestion with its reason, and a plot.

    Raises:
        ValueError: If the model is not compiled, or no rate lies in the range.

    Example:
    >>> import keras, numpy as np, gradstab
    >>> x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> found = gradstab.find_learning_rate(model, x, x.sum(1, keepdims=True))
    >>> 0.01 < found.suggestion < 1
    True

    Reference:
        Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3, for the
        range test, which raises the rate within one run.
    """
    check_int("batch_size", batch_size, minimum=1)
    check_int("num_steps", num_steps, minimum=1)
    check_float("min_rate", min_rate)
    check_float("max_rate", max_rate)
    if not getattr(model, "compiled", False):
        raise ValueError("`model` must be compiled. Received a model without a loss and optimizer")
    rates = tuple(rate for rate in _RATES if min_rate <= rate <= max_rate)
    if not rates:
        raise ValueError(
            f"No half decade lies between `min_rate` and `max_rate`. Received: "
            f"min_rate={min_rate}, max_rate={max_rate}"
        )
    with preserved(model):
        trained, scored = _rows(x, y, batch_size * num_steps, seed)
        if not model.built:
            model(keras.tree.map_structure(lambda each: each[:2], trained[0]))
        start, losses = _losses(model, rates, trained, scored, batch_size, num_steps, seed)
    suggestion, reason = _suggested(rates, losses, start)
    return LearningRateSearch(rates, tuple(losses), start, suggestion, reason)


def _rows(x: Any, y: Any, count: int, seed: int) -> tuple[Any, Any]:
    """Return rows to train on and rows to score on, as tensors; few data are trained on twice."""
    sample = take_sample(x, y, None, 1, seed)
    order = np.random.default_rng(seed).permutation(sample.rows)
    return tensors(sample.take(order[:count])), tensors(sample.take(order[-_SCORED:]))


def _losses(
    model: Any,
    rates: tuple[float, ...],
    trained: Any,
    scored: Any,
    batch_size: int,
    num_steps: int,
    seed: int,
) -> tuple[float, list[float]]:
    optimizer = with_rate(copied(model.optimizer), 1.0)  # Times the factor of each run.
    laboratory = Laboratory(model, optimizer, trained, scored, batch_size, seed, [])
    runs = [
        laboratory.run("plan" if rate == rates[0] else f"{rate:g}", num_steps, rate=rate)
        for rate in rates
    ]
    constant = laboratory.constant(scored)
    if not constant:  # A loss of which nobody knows what it judges: as it was in training.
        return runs[0].first_loss, [run.last_loss if run.finite else np.nan for run in runs]
    start = constant * (1 - runs[0].points[0].explained)
    return start, [constant * (1 - run.end.explained) if run.finite else np.nan for run in runs]


def _suggested(
    rates: tuple[float, ...], losses: list[float], start: float
) -> tuple[float | None, str]:
    known = np.array(losses)
    if not np.isfinite(known).any():
        return None, "the loss was not finite at any rate, the lowest included"
    worst = float(np.nanmax(known))
    start = start if np.isfinite(start) else worst
    best = float(np.nanmin(known))
    fall = start - best
    if fall <= 1e-3 * abs(start):
        return None, f"no rate lowered the loss: {start:.4g} before, {best:.4g} at best"
    falls = (start - known) / fall
    place = int(np.flatnonzero(np.nan_to_num(falls, nan=-1.0) >= _AS_GOOD)[0])
    above = falls[place + 1] if place + 1 < len(rates) else 1.0
    is_near_the_edge = bool(np.isnan(above) or above < _CALMER)
    step_down = is_near_the_edge and place > 0 and falls[place - 1] >= _CALMER
    place -= int(step_down)
    reason = f"it lowered the loss from {start:.4g} to {known[place]:.4g}"
    if step_down:
        reason += f"; {rates[place + 1]:g} came lower, and is close to where training fails"
    return rates[place], reason
