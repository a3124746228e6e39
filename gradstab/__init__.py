"""gradstab keeps Keras training stable.

It prevents (initializers, regularizers, clipping, schedules), watches (every layer's gradients, in
the compiled step), recovers (skips a bad step whole) and explains (which variable, since when).

>>> import keras, gradstab
>>> optimizer = gradstab.stabilize(keras.optimizers.Adam(1e-3), clip=1.0)
>>> optimizer
<StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> ClipByGlobalNorm(max_norm=1.0) -> Adam>

`import gradstab` itself imports neither Keras nor TensorFlow: names are loaded when they are first
used. Its classes are registered with Keras as soon as Keras is there, so that
`keras.models.load_model` finds them after nothing but `import gradstab`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradstab import _lazy

if TYPE_CHECKING:
    from gradstab import (
        callbacks,
        data,
        diagnosis,
        functional,
        initializers,
        layers,
        models,
        monitoring,
        optimizers,
        recipes,
        regularizers,
        repairs,
        reports,
        schedules,
        training,
        transforms,
    )
    from gradstab._errors import DivergenceError, WorkerLostError
    from gradstab.diagnosis.diagnose import diagnose
    from gradstab.optimizers import stabilize
    from gradstab.repairs.learning_rate import find_learning_rate
    from gradstab.repairs.repair import repair
    from gradstab.repairs.result import Repair
    from gradstab.unwrap import unwrap

__version__ = "0.2.0"

_SUBPACKAGES = (
    "callbacks",
    "data",
    "diagnosis",
    "functional",
    "initializers",
    "layers",
    "models",
    "monitoring",
    "optimizers",
    "recipes",
    "regularizers",
    "repairs",
    "reports",
    "schedules",
    "training",
    "transforms",
)
_NAMES = {
    "DivergenceError": "gradstab._errors",
    "WorkerLostError": "gradstab._errors",
    "diagnose": "gradstab.diagnosis.diagnose",
    "Repair": "gradstab.repairs.result",
    "find_learning_rate": "gradstab.repairs.learning_rate",
    "repair": "gradstab.repairs.repair",
    "stabilize": "gradstab.optimizers",
    "unwrap": "gradstab.unwrap",
}

__all__ = [
    "DivergenceError",
    "Repair",
    "WorkerLostError",
    "__version__",
    "callbacks",
    "data",
    "diagnose",
    "diagnosis",
    "find_learning_rate",
    "functional",
    "initializers",
    "layers",
    "models",
    "monitoring",
    "optimizers",
    "recipes",
    "regularizers",
    "repair",
    "repairs",
    "reports",
    "schedules",
    "stabilize",
    "training",
    "transforms",
    "unwrap",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"gradstab.{name}")
    else:
        raise AttributeError(f"module 'gradstab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


_lazy.register_when_keras_is_imported()
