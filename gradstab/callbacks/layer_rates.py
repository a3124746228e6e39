"""The effective rates of a model's layers, for those who write them down."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradstab._nesting import unwrapped
from gradstab.optimizers.watching.effective_rate import LEVELS, EffectiveRates, owner


class LayerRates:
    """Reads effective rates and puts them in the order of the layers of a run.

    Warns where the optimizer has none.

    Args:
        optimizer: The optimizer of the model, whatever wraps it.
    """

    def __init__(self, optimizer: Any) -> None:
        optimizer = unwrapped(optimizer)
        if not EffectiveRates.knows(optimizer):
            warnings.warn(
                "`effective_rates` needs Adagrad, RMSprop, Adam or AdamW, which have a rate for "
                f"each weight. Received: a model with {type(optimizer).__name__}",
                stacklevel=4,
            )
        self._rates = EffectiveRates(optimizer)
        self._layers: tuple[str, ...] = ()

    def begin(self, paths: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the layers, given the paths of all trained variables."""
        self._layers = tuple(dict.fromkeys(map(owner, paths)))
        return self._layers

    def read(self) -> tuple[float, np.ndarray[Any, Any]]:
        """Return the rate of the last update, and quantiles of the effective one.

        The quantiles have shape (layers, levels); NaN stands for a layer without such rates.
        """
        found, rate = self._rates.read()
        values = np.full((len(self._layers), len(LEVELS)), math.nan)
        places = {layer: place for place, layer in enumerate(self._layers)}
        for layer, row in zip(self._rates.layers, found, strict=True):
            if layer in places:
                values[places[layer]] = row
        return rate, values
