"""The optimizer that wraps another, functions that do the wrapping, and stable optimizers."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab._lazy import names_of
from gradstab.optimizers.clippy_adagrad import ClippyAdagrad
from gradstab.optimizers.spam import SPAM
from gradstab.optimizers.stabilize import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    stabilize,
)
from gradstab.optimizers.stabilized import StabilizedOptimizer
from gradstab.optimizers.stable_adamw import StableAdamW

TYPE_CHECKING = False  # Type checkers take it for true; Keras has to be the first import.
if TYPE_CHECKING:
    from gradstab.optimizers.effective_rate import effective_learning_rates
    from gradstab.optimizers.find import stabilized_optimizer

__all__ = [  # noqa: RUF022  in plain order, as everywhere
    "ClippyAdagrad",
    "SPAM",
    "StabilizedOptimizer",
    "StableAdamW",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "effective_learning_rates",
    "stabilize",
    "stabilized_optimizer",
]

__getattr__ = names_of(
    __name__,
    {
        "effective_learning_rates": "gradstab.optimizers.effective_rate",
        "stabilized_optimizer": "gradstab.optimizers.find",
    },
)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
