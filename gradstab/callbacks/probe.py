"""The loss on a held-out batch, before and after a single step."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from gradstab._layers import forward_scope
from gradstab.optimizers.telemetry.activations import Activations


def check_probe(probe: Any) -> tuple[Any, Any, Any] | None:
    """Return a probe batch as inputs, targets and weights, or `None` for none.

    Raises:
        ValueError: If it is no tuple of two or three.
    """
    if probe is None:
        return None
    if not isinstance(probe, tuple) or len(probe) not in (2, 3):
        raise ValueError(
            "`probe` must be a batch `(x, y)` or `(x, y, sample_weight)`. Received: "
            f"probe of type {type(probe).__name__}"
            + (f" and length {len(probe)}" if hasattr(probe, "__len__") else "")
        )
    x, y, weight = keras.utils.unpack_x_y_sample_weight(probe)
    return x, y, weight


class ProbeLoss:
    """Computes a model's loss on one batch as it is now, and leaves everything as it was.

    The forward pass is that of inference: nothing is dropped, and BatchNorm takes its moving
    statistics. Penalties on the weights count.

    Args:
        model: A compiled model.
        batch: Inputs, targets, and weights or `None`; structures of arrays.
        activations: What must not take this pass for the step's, or `None`.
    """

    def __init__(
        self, model: Any, batch: tuple[Any, Any, Any], activations: Activations | None
    ) -> None:
        self._model = model
        self._batch = keras.tree.map_structure(
            lambda value: None if value is None else tf.convert_to_tensor(value), batch
        )
        self._activations = activations

    def __call__(self) -> Any:
        """Return the loss, a scalar tensor."""
        x, y, weight = self._batch
        quiet = (
            contextlib.nullcontext() if self._activations is None else self._activations.paused()
        )
        # Metrics and losses keep running means, which this must not enter.
        with quiet, forward_scope(self._model):
            prediction = self._model(x, training=False)
            return self._model.compute_loss(x=x, y=y, y_pred=prediction, sample_weight=weight)
