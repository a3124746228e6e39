"""What is compared: plain Keras, every technique of the catalogue, and `clip="auto"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

import gradstab
from gradstab import transforms

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
}
PLAIN, AUTO = "plain", "auto"


def _behind(*chain: Callable[[], Any]) -> Callable[[Any], Any]:
    """Return what puts transforms before an optimizer, each behind a skip of what is not finite."""

    def wrap(inner: Any) -> Any:
        made = [transforms.SkipNonFinite(), *(each() for each in chain)]
        return gradstab.optimizers.StabilizedOptimizer(inner, made)

    return wrap


# Bounds and constants are the defaults of the class, or what its paper says.
CANDIDATES: dict[str, Callable[[Any], Any]] = {
    PLAIN: lambda inner: inner,
    "skip": _behind(),
    "global norm 1.0": _behind(lambda: transforms.ClipByGlobalNorm(1.0)),
    "norm 1.0": _behind(lambda: transforms.ClipByNorm(1.0)),
    "value 0.5": _behind(lambda: transforms.ClipByValue(0.5)),
    "AGC": _behind(transforms.AdaptiveGradientClipping),
    "AutoClip": _behind(transforms.PercentileClipping),
    "ZClip": _behind(transforms.ZScoreClipping),
    "AdaGC": _behind(transforms.AdaGradientClipping),
    "skip outliers": _behind(transforms.SkipOutliers),
    "update ratio 0.1": _behind(lambda: transforms.LimitUpdateRatio(0.1)),
    AUTO: lambda inner: gradstab.stabilize(inner, clip="auto"),
}
# Optimizers that are stable by construction stand in for Adam.
STABLE: dict[str, Callable[[], Any]] = {
    "StableAdamW": lambda: gradstab.optimizers.StableAdamW(1e-3, weight_decay=0.0),
    "SPAM": lambda: gradstab.optimizers.SPAM(1e-3),
}


def names(optimizer: str) -> list[str]:
    """Return the candidates for an optimizer, the plain one first."""
    return [*CANDIDATES, *(STABLE if optimizer == "Adam" else [])]


def make(optimizer: str, candidate: str) -> Any:
    """Return an optimizer of Keras' behind a candidate."""
    if candidate in STABLE:
        return _behind()(STABLE[candidate]())
    return CANDIDATES[candidate](OPTIMIZERS[optimizer]())
