"""A learning rate for a net, found by trying some on copies of it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import keras
import numpy as np

from gradstab._validation import check_float, check_int
from gradstab.repairs import clone
from gradstab.repairs.draft import compile_arguments, copied, with_rate

# Half decades.
_RATES: Final = tuple(float(f"{10.0 ** (place / 2):.1g}") for place in range(-10, 3))
_STEPS: Final = 40
_SCORED: Final = 512  # examples
# The share of the best fall of the loss that counts as good as the best.
_AS_GOOD: Final = 0.9
_CALMER: Final = 0.75


@dataclasses.dataclass(frozen=True)
class LearningRateSearch:
    """Losses after some steps at each of a range of rates.

    Attributes:
        rates: Learning rates.
        losses: Loss after the steps, NaN where it was not finite.
        start: Loss before them.
        suggestion: The rate to use, or `None` where no rate lowers the loss.
        reason: Why this one.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    start: float
    suggestion: float | None
    reason: str

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss over the rates, and return the axes.

        Args:
            ax: Matplotlib axes; new ones by default. Needs the extra `plot`.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
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
    """Find a learning rate: train a copy for some steps at each of a range of rates.

    Each rate begins at the same weights and sees the same batches, and its loss is taken over the
    same examples, so that the noise of single batches does not decide. The suggestion is the
    smallest rate that lowers the loss nine tenths as far as the best one does; if the next rate
    above it fails, half a decade less, where that still comes three quarters of the way. The model
    is not changed.

    Args:
        model: A compiled model whose layers can be made from their configs.
        x: Inputs: an array, or a list or dict of arrays.
        y: Targets, likewise.
        batch_size: Examples of a step.
        num_steps: Steps at each rate.
        min_rate: Lowest rate to try.
        max_rate: Highest rate to try. Between them lie half decades.
        seed: Draws the examples.

    Returns:
        The rates, the losses, the suggestion with its reason, and a plot.

    Raises:
        ValueError: If the model is not compiled or can't be copied, or no rate lies in the range.

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
    copy = clone.cloned(model, input_shape=np.shape(x)[1:] if hasattr(x, "shape") else None)
    if copy.built and model.built:
        copy.set_weights(model.get_weights())
    copy.compile(with_rate(copied(model.optimizer), rates[0]), model.loss,
                 loss_weights=compile_arguments(model).get("loss_weights"),
                 jit_compile=False)  # fmt: skip
    trained, scored = _rows(x, y, batch_size * num_steps, seed)
    start, losses = _losses(copy, rates, trained, scored, batch_size)
    suggestion, reason = _suggested(rates, losses, start)
    return LearningRateSearch(rates, tuple(losses), start, suggestion, reason)


def _rows(x: Any, y: Any, count: int, seed: int) -> tuple[Any, Any]:
    """Return examples to train on, and those to score on."""
    total = len(keras.tree.flatten(x)[0])
    draw = np.random.default_rng(seed)
    order = np.concatenate([draw.permutation(total) for _ in range(-(-count // total))])[:count]

    def taken(rows: Any) -> Any:
        return keras.tree.map_structure(lambda each: np.asarray(each)[rows], (x, y))

    return taken(order), taken(draw.permutation(total)[:_SCORED])


def _losses(
    model: Any, rates: tuple[float, ...], trained: Any, scored: Any, batch_size: int
) -> tuple[float, list[float]]:
    def loss() -> float:
        return float(
            model.evaluate(*scored, batch_size=_SCORED, verbose=0, return_dict=True)["loss"]
        )

    start = loss()
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    losses = []
    for rate in rates:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        model.optimizer.learning_rate = rate
        model.fit(*trained, batch_size=batch_size, shuffle=False, verbose=0)
        after = loss()
        losses.append(after if np.isfinite(after) else float("nan"))
    return start, losses


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
    reason = f"it lowered the loss from {start:.4g} to {known[place]:.4g}"
    above = falls[place + 1] if place + 1 < len(rates) else 1.0
    if (np.isnan(above) or above < _CALMER) and place > 0 and falls[place - 1] >= _CALMER:
        place -= 1
        reason = (
            f"it lowered the loss from {start:.4g} to {known[place]:.4g}; one half decade above "
            f"came lower, close to where training fails ({rates[place + 2]:g})"
            if place + 2 < len(rates)
            else reason
        )
    return rates[place], reason
