"""Learning rate schedules that go round any schedule of Keras, or a plain rate.

`LinearWarmup` leads up to a schedule, `Join` lets schedules follow each other, and `Adjustable`,
outermost, lets callbacks cut a scheduled rate. All of them count steps from 0.

Example:
    >>> import keras
    >>> from gradstab.schedules import Adjustable, LinearWarmup
    >>> cosine = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=900)
    >>> Adjustable(LinearWarmup(cosine, warmup_steps=100))
    Adjustable(LinearWarmup(CosineDecay(...), warmup_steps=100, initial_learning_rate=0.0), factor=1.0)
"""  # noqa: E501  a `repr` can't be broken

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.schedules.compose import Adjustable, Join
from gradstab.schedules.warmup import LinearWarmup

__all__ = ["Adjustable", "Join", "LinearWarmup"]
