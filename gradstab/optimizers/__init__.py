"""`StabilizedOptimizer`, the functions that wrap an optimizer in it, and stable optimizers.

Names for users are here. The rest is in sub-packages that can be read one at a time: `step/`,
`telemetry/`, `model/`, `watching/`, `stable/` and, below them, `compiled/`.
"""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.optimizers.stabilize import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    stabilize,
)
from gradstab.optimizers.stabilized import StabilizedOptimizer
from gradstab.optimizers.stable.clippy_adagrad import ClippyAdagrad
from gradstab.optimizers.stable.spam import SPAM
from gradstab.optimizers.stable.stable_adamw import StableAdamW
from gradstab.optimizers.telemetry.reading import Divergence, Reading
from gradstab.optimizers.telemetry.samples import Samples
from gradstab.optimizers.traits import register_traits
from gradstab.optimizers.watching.effective_rate import effective_learning_rates
from gradstab.optimizers.watching.find import stabilized_optimizer

__all__ = [  # noqa: RUF022  in plain order, as everywhere
    "ClippyAdagrad",
    "Divergence",
    "Reading",
    "SPAM",
    "Samples",
    "StabilizedOptimizer",
    "StableAdamW",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "effective_learning_rates",
    "register_traits",
    "stabilize",
    "stabilized_optimizer",
]
