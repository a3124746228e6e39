"""Steps of one weight vector with gradients of given norms, and what was applied of them."""

import keras
import numpy as np
import tensorflow as tf

from gradstab import optimizers, transforms

DIRECTION = np.array([0.8, 0.6], "float32")


def take(transform, norms, mode="graph", *, rates=None, losses=None, inner=None):
    """Take a step for each norm; return the norms that SGD applied, and the optimizer.

    Args:
        transform: Stands behind a skip of what is not finite.
        norms: Of the gradients, all in one direction.
        mode: "eager", "graph" or "xla".
        rates: Learning rate of each step; 0.5 if not given.
        losses: Loss of each step, told to the optimizer if given.
        inner: An optimizer that moves by rate times gradient; SGD if not given.
    """
    weight = keras.Variable(np.zeros(2, "float32"))
    inner = inner or keras.optimizers.SGD(0.5)
    optimizer = optimizers.StabilizedOptimizer(inner, [transforms.SkipNonFinite(), transform])
    optimizer.build([weight])

    def step(gradient, rate, loss):
        inner.learning_rate.assign(rate)
        if losses is not None:
            optimizer.scale_loss(loss)
        optimizer.apply([gradient], [weight])

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    applied = []
    for place, norm in enumerate(norms):
        weight.assign(np.zeros(2, "float32"))
        rate = 0.5 if rates is None else rates[place]
        loss = 1.0 if losses is None else losses[place]
        step(*map(tf.constant, (np.float32(norm) * DIRECTION, np.float32(rate), np.float32(loss))))
        moved = -weight.numpy()
        np.testing.assert_allclose(moved, np.linalg.norm(moved) * DIRECTION, rtol=1e-5, atol=1e-30)
        applied.append(float(np.linalg.norm(moved)) / rate if rate else 0.0)
    return np.array(applied), optimizer
