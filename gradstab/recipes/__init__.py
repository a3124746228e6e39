"""Adagrad, RMSprop and Adam as stabilized optimizers, from the few things that a person knows.

These are the highest rate, and the length of the run: in steps, in epochs of so many steps, or in
epochs over so many examples in batches of a size. Each recipe warms the rate up, takes it down to
the end of the run, skips bad steps and clips the global gradient norm. The rate is
`schedules.Adjustable`, so that callbacks can cut it.

Where ε stands decides what it does, and libraries differ:

| | Keras, and these recipes | TensorFlow 1 | PyTorch |
|---|---|---|---|
| Adagrad | g/√(a + ε), a from 0.1 | g/√a, a from 0.1 | g/(√a + ε), a from 0 |
| RMSprop | g/√(v + ε), v from 0 | g/√(v + ε), v from 1 | g/(√v + ε), v from 0 |
| Adam | m̂·√(1 − β₂ᵗ)/(√v + ε) | the same | m̂/(√v̂ + ε) |

So an ε of 1e-3 that was published for TensorFlow's RMSprop is 0.032 in PyTorch, and is meant here
as it was published.
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.recipes.adaptive import adagrad, adam, rmsprop

__all__ = ["adagrad", "adam", "rmsprop"]
