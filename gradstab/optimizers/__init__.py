"""The optimizer that wraps another, functions that do the wrapping, and stable optimizers.

What users import stands here. The rest is in rooms of which nobody has to know all: `step/`,
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
