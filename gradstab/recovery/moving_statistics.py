"""Detects moving variances spoiled by one huge batch: finite, but useless in inference.

Training goes on well on the statistics of its batches, and forgets the batch after some hundred
steps. Until then the model is at chance wherever it is used.
"""

from __future__ import annotations

from typing import Any, Final

import keras
import numpy as np
from keras import ops

from gradstab._layers import layers_in_order

# How far a variance, or 1 if that is more, may rise from one epoch to the next. Statistics that lag
# behind the data double after a second step, and no more.
_MOST_RISE: Final = 1e3


class MovingStatistics:
    """Compares BatchNorm's moving variances with those of the last epoch that was in order.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._layers = [
            layer
            for layer in layers_in_order(model)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._before: list[float] | None = None
        self._spoiled: tuple[str, float, float] | None = None

    @property
    def is_spoiled(self) -> bool:
        """Whether they are, by the latest look."""
        return self._spoiled is not None

    def look(self) -> None:
        """Look at the statistics at the end of an epoch."""
        built = [layer for layer in self._layers if layer.built and layer.trainable]
        now = [float(np.max(ops.convert_to_numpy(layer.moving_variance))) for layer in built]
        before = self._before if self._before and len(self._before) == len(now) else now
        self._spoiled = None
        for layer, rose, was in zip(built, now, before, strict=True):
            if rose > _MOST_RISE * max(was, 1.0):
                self._spoiled = (layer.moving_variance.path, was, rose)
                return
        self._before = now

    def told(self) -> str | None:
        """Return what is spoiled, in words, or `None`."""
        if self._spoiled is None:
            return None
        path, was, rose = self._spoiled
        return (
            f"`{path}` rose from {was:.3g} to {rose:.3g}, as one batch of huge values makes it: in "
            "inference the layer puts out next to nothing but a constant. Look at the data, and "
            "bound its values."
        )
