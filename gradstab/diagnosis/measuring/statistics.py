"""Moving statistics of BatchNormalization after a training too short for them."""

from __future__ import annotations

from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.diagnosis.measuring.structure import leaf_layers

# Rows that the statistics are taken of.
_ROWS: Final = 256


def settle_statistics(model: Any, x: Any) -> None:
    """Give every BatchNormalization the statistics of a batch: its averages lag behind.

    An average moves by `1 - momentum` of the way to the batch's value, so one pass in training
    tells what that value is.
    """
    norms = [
        layer
        for layer in leaf_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not norms:
        return
    kept = [(each, tf.identity(each.value)) for each in model.non_trainable_variables]
    model(keras.tree.map_structure(lambda each: each[:_ROWS], x), training=True)
    before = {id(variable): np.asarray(value) for variable, value in kept}
    settled: dict[int, Any] = {}
    for layer in norms:
        for variable in (layer.moving_mean, layer.moving_variance):
            old = before[id(variable)]
            share = max(1 - layer.momentum, 1e-6)
            settled[id(variable)] = old + (np.asarray(variable) - old) / share
    for variable, value in kept:
        variable.assign(settled.get(id(variable), value))
