"""The effective learning rate of each weight under Adagrad, RMSprop and Adam, by layer.

It is read from the optimizer's slots between steps, so that the compiled step stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from gradstab._nesting import parts, unwrapped
from gradstab._variables import value_of, variable_path
from gradstab.functional.effective_rates import bias_corrected, quantiles, root_of_sum
from gradstab.keras_hooks.optimizer_state import counter, learning_rate_source, trained_variables
from gradstab.optimizers.traits import traits_of

# Of all rates of a layer; the names are those in the run record, after "effective_rate_".
LEVELS: Final[dict[str, float]] = {
    "q05": 0.05,
    "q25": 0.25,
    "median": 0.5,
    "q75": 0.75,
    "q95": 0.95,
}
# Entries of a layer that are looked at. A median of so many has an error of rank of 1 %.
MOST_ENTRIES: Final = 4096


class EffectiveRates:
    r"""Quantiles, over each layer's weights, of an adaptive optimizer's effective rate.

    | optimizer | effective rate of a weight |
    |---|---|
    | Adagrad | $\eta/\sqrt{a + \epsilon}$, $a$ the sum of its squared gradients |
    | RMSprop | $\eta/\sqrt{v + \epsilon}$, $v$ their mean (less the squared mean, if centered) |
    | Adam, AdamW | $\eta\sqrt{1 - \beta_2^t}/(\sqrt{v} + \epsilon)$, or the largest $v$ so far with AMSGrad |

    with $\eta$ the learning rate, as of the last update. The effective rate is the factor of the
    gradient in that update; with Adam, the factor of the bias-corrected mean gradient. RMSprop's
    momentum comes on top. Weights whose gradient was always zero are left out, such as embedding
    rows of words that did not occur; with Adagrad they can't be recognized.

    At most about 4096 entries of a layer are read, on a fixed grid over all its variables.

    Args:
        optimizer: The optimizer that changes the weights, or a `MultiOptimizer`, not a wrapper; it
            need not be built yet.

    Attributes:
        layers: Names of the layers, in the order of their first variables; empty before the
            optimizer is built. Those of optimizers that are not adaptive are left out.
    """  # noqa: E501  a table row can't be broken

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._function: Callable[[], tuple[Any, Any]] | None = None
        self._owners: dict[str, list[tuple[Any, Any, int]]] | None = None

    @staticmethod
    def knows(optimizer: Any) -> bool:
        """Whether it, or a part of it, is an optimizer of these kinds."""
        return any(_is_supported(part) for part in parts(optimizer))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of their first variables."""
        return tuple(self._by_layer())

    def quantiles(self) -> Any:
        """Return a float32 tensor of shape (layers, levels); it may be traced and compiled."""
        rates = {id(part): _last_rate(part) for part in parts(self._optimizer) if part.built}
        rows = [
            self._of_layer(members, rates, sum(size for *_, size in members))
            for members in self._by_layer().values()
        ]
        return ops.stack(rows) if rows else ops.zeros((0, len(LEVELS)), "float32")

    def rate(self) -> Any:
        """Return the rate that the last update had before all this, NaN if there are several."""
        own = parts(self._optimizer)
        return _last_rate(own[0]) if len(own) == 1 else ops.convert_to_tensor(math.nan, "float32")

    def read(self) -> tuple[np.ndarray[Any, Any], float]:
        """Return the quantiles and the rate as they are now, compiled at the first call."""
        if self._function is None:
            self._function = _compiled(lambda: (self.quantiles(), self.rate()))
        found, rate = self._function()
        return np.asarray(found, "float32"), float(rate)

    def _of_layer(
        self,
        members: Sequence[tuple[Any, Any, int]],
        rates: Mapping[int, Any],
        size: int,
    ) -> Any:
        values, kept = [], []
        for part, variable, entries in members:
            stride = _stride(entries, math.ceil(size / MOST_ENTRIES))
            moment, is_used = (
                ops.cast(ops.reshape(value_of(each), (-1,))[::stride], "float32")
                for each in second_moments(part, variable)
            )
            values.append(_rate_of(part, rates[id(part)], moment))
            has_updated = value_of(counter(part)) > 0
            kept.append(ops.logical_and(is_used > 0, has_updated))
        return quantiles(ops.concatenate(values), ops.concatenate(kept), list(LEVELS.values()))

    def _by_layer(self) -> dict[str, list[tuple[Any, Any, int]]]:
        """Return (optimizer, variable, entries) of each variable, by layer."""
        if self._owners is not None:
            return self._owners
        owners: dict[str, list[tuple[Any, Any, int]]] = {}
        is_whole = True
        for part in filter(_is_supported, parts(self._optimizer)):
            is_whole = is_whole and part.built
            for variable in trained_variables(part) if part.built else ():
                size = int(np.prod(variable.shape))
                if size and second_moments(part, variable):
                    layer = owner(variable_path(variable))
                    owners.setdefault(layer, []).append((part, variable, size))
        if is_whole:
            self._owners = owners
        return owners


def second_moments(optimizer: Any, variable: Any) -> Sequence[Any]:
    """Return what an optimizer divides by the root of, and what is 0 for an entry never moved."""
    read = traits_of(optimizer).second_moment
    return () if read is None else read(optimizer, variable)


def effective_learning_rates(optimizer: Any) -> dict[str, dict[str, float]]:
    """Return, for each layer, quantiles of the effective learning rate of its weights.

    For loops of your own, and between epochs; `GradientMonitor(effective_rates=True)` records the
    same over a run. docs/schedules.md gives the formula for each optimizer.

    Args:
        optimizer: A built Adagrad, RMSprop, Adam or AdamW, or a wrapper of one: a
            `StabilizedOptimizer`, a `LossScaleOptimizer`, a `MultiOptimizer`.

    Returns:
        By layer, `q05`, `q25`, `median`, `q75` and `q95`, all NaN before the first update.

    Raises:
        TypeError: If it is another optimizer.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.optimizers import effective_learning_rates
        >>> weight = keras.Variable([0.0, 0.0], name="weight")
        >>> adagrad = keras.optimizers.Adagrad(0.3, initial_accumulator_value=0.0, epsilon=1e-12)
        >>> adagrad.apply([np.array([3.0, 1.0], "float32")], [weight])
        >>> round(effective_learning_rates(adagrad)["weight"]["median"], 4)
        0.2
    """
    optimizer = unwrapped(optimizer)
    if not EffectiveRates.knows(optimizer):
        raise TypeError(
            "`optimizer` must be one of Adagrad, RMSprop, Adam, AdamW, or wrap one. "
            f"Received: optimizer={optimizer!r}"
        )
    rates = EffectiveRates(optimizer)
    return {
        layer: dict(zip(LEVELS, map(float, row), strict=True))
        for layer, row in zip(rates.layers, ops.convert_to_numpy(rates.quantiles()), strict=True)
    }


def owner(path: str) -> str:
    """Return the layer that a variable belongs to by its path; the path of one that has none."""
    return path.rpartition("/")[0] or path


def _is_supported(part: Any) -> bool:
    return traits_of(part).second_moment is not None


def _last_rate(part: Any) -> Any:
    """Return the rate that the last update had; of a schedule the next one is another."""
    source = learning_rate_source(part)
    if isinstance(source, keras.optimizers.schedules.LearningRateSchedule):
        return ops.cast(source(ops.maximum(value_of(counter(part)) - 1, 0)), "float32")
    return ops.cast(value_of(part.learning_rate), "float32")


def _rate_of(part: Any, rate: Any, moment: Any) -> Any:
    if traits_of(part).corrects_bias:
        updates = value_of(counter(part)) // (part.gradient_accumulation_steps or 1)
        return bias_corrected(rate, moment, part.epsilon, part.beta_2, updates)
    return root_of_sum(rate, moment, part.epsilon)


def _stride(size: int, at_least: int) -> int:
    """Return a distance that does not keep step with any axis, such as every 64th channel."""
    stride = at_least
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _compiled(function: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    compiled: Callable[[], tuple[Any, Any]] = tf.function(function)
    return compiled
