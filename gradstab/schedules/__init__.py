"""Learning rate schedules: warm-ups for any Keras schedule or constant rate, and decays.

| what | classes |
|---|---|
| a warm-up before anything | `LinearWarmup`, `ExponentialWarmup`, `UntunedWarmup` (for Adam) |
| a run of known length | `LinearDecay`, `OneCycle`, `WarmupStableDecay` |
| a run without an end | `InverseSquareRoot`, `Noam` |
| schedules of schedules | `Join`: one after the other; `Scale`: times a factor, or counted in updates instead of micro-batches; `Adjustable`: outermost, so that callbacks can cut a scheduled rate |

All count steps from 0, as Keras does, are continuous where their phases meet, and keep their last
rate after their end. Steps are integers, so a phase that begins at step 1,000,000,001 begins
exactly there.

Example:
    >>> import keras
    >>> from gradstab.schedules import Adjustable, LinearWarmup
    >>> cosine = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=900)
    >>> Adjustable(LinearWarmup(cosine, warmup_steps=100))
    Adjustable(LinearWarmup(CosineDecay(...), warmup_steps=100, initial_learning_rate=0.0), factor=1.0)
"""  # noqa: E501  tables and a `repr` can't be broken

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.schedules.compose import Adjustable, Join
from gradstab.schedules.decay import InverseSquareRoot, LinearDecay, Noam
from gradstab.schedules.phases import OneCycle, WarmupStableDecay
from gradstab.schedules.scale import Scale
from gradstab.schedules.warmup import ExponentialWarmup, LinearWarmup, UntunedWarmup

__all__ = [
    "Adjustable",
    "ExponentialWarmup",
    "InverseSquareRoot",
    "Join",
    "LinearDecay",
    "LinearWarmup",
    "Noam",
    "OneCycle",
    "Scale",
    "UntunedWarmup",
    "WarmupStableDecay",
]
