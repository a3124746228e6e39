"""Calls with wrong arguments: each is refused by the argument's name, or works."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradstab import functional, initializers, optimizers, regularizers, schedules, transforms
from gradstab.callbacks import DivergenceGuard, GradientMonitor
from gradstab.optimizers.stabilize import stabilize
from gradstab.training import GradientPenalty, JacobianPenalty, RecurrentGradientNorm

# A message of ours names what it is about in backquotes, or a class; Python's own names no value.
_NAMED = re.compile(
    r"`\w|[A-Z][a-z]+[A-Z]\w+|missing \d+ required|unexpected keyword|Could not interpret"
)

# Bases of classes of one's own, and what the step makes for itself.
_NOT_CALLED = (
    "Transform",
    "Schedule",
    "Measured",
    "Context",
    "StateSpec",
    "SeedSpec",
    "LsuvReport",
)


def _values() -> list[Any]:
    return [
        None, 0, 1, -1, 2.5, True, "x", "auto", "", b"x", [], {}, (), float("nan"), float("inf"),
        -float("inf"), 10**400, 1j, np.ones(3, "float32"), np.array("a"), np.array(["a", "b"]),
        np.array([]), [np.ones(2)], [None], ["a"], {"a": 1}, {1.0}, range(3), object(), len,
        tf.ones(2), [tf.ones(2)], tf.sparse.from_dense([1.0, 0.0]), keras.KerasTensor((2,)),
        np.float32(1), np.datetime64("2020"), int, "adam", keras.optimizers.SGD,
    ]  # fmt: skip


def _targets() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {
        "stabilize": stabilize,
        "DivergenceGuard": DivergenceGuard,
        "GradientMonitor": GradientMonitor,
        "GradientPenalty": GradientPenalty,
        "JacobianPenalty": JacobianPenalty,
        "RecurrentGradientNorm": RecurrentGradientNorm,
    }
    for room in (functional, transforms, schedules, regularizers, optimizers, initializers):
        for name in room.__all__:
            target = getattr(room, name)
            of_keras = getattr(target, "__module__", "").startswith("keras")
            abstract = inspect.isabstract(target) or name in _NOT_CALLED
            if callable(target) and not of_keras and not abstract:
                found[f"{room.__name__.rpartition('.')[2]}.{name}"] = target
    return found


def attacks(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield each call, in words, and what came of it: `"fine"`, `"refused"`, or a raw error."""
    draw, values, targets = random.Random(seed), _values(), _targets()
    for _ in range(count):
        name = draw.choice(sorted(targets))
        target = targets[name]
        # What is Keras' own argument is Keras' to check.
        of_keras = inspect.signature(keras.optimizers.SGD).parameters
        parameters = [
            each.name
            for each in inspect.signature(target).parameters.values()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            and each.name not in of_keras
        ]
        given = {each: draw.choice(values) for each in parameters if draw.random() < 0.7}
        shown = ", ".join(f"{each}={' '.join(repr(v).split())[:40]}" for each, v in given.items())
        yield f"{name}({shown})", _outcome(target, given)


def _outcome(target: Callable[..., Any], given: dict[str, Any]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target(**given)
    except (TypeError, ValueError, ImportError) as error:
        told = str(error)
        return "refused" if _NAMED.search(told) else f"raw {type(error).__name__}: {told[:100]}"
    except Exception as error:
        return f"raw {type(error).__name__}: {str(error)[:100]}"
    return "fine"
