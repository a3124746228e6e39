"""Adagrad, RMSprop and Adam as stabilized optimizers, from peak rate and run length.

The length is given in steps, in epochs and steps per epoch, or in epochs, examples and batch size.
Each recipe warms the rate up, lowers it to the end of the run, skips bad steps and clips the global
gradient norm. The rate is `schedules.Adjustable`, so that callbacks can cut it.

The place of ε in the formula matters, and libraries differ:

| | Keras, and these recipes | TensorFlow 1 | PyTorch |
|---|---|---|---|
| Adagrad | g/√(a + ε), a from 0.1 | g/√a, a from 0.1 | g/(√a + ε), a from 0 |
| RMSprop | g/√(v + ε), v from 0 | g/√(v + ε), v from 1 | g/(√v + ε), v from 0 |
| Adam | m̂·√(1 − β₂ᵗ)/(√v + ε) | the same | m̂/(√v̂ + ε) |

So an ε of 1e-3 published for TensorFlow's RMSprop corresponds to 0.032 in PyTorch; here it is used
as published.
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.recipes.adaptive import adagrad, adam, rmsprop

__all__ = ["adagrad", "adam", "rmsprop"]
