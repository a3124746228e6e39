"""The arguments of `train`, checked, and what a resumed run must share with its beginning."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from typing import Any

import keras
import tensorflow as tf

import gradstab
from gradstab._validation import check_choice, check_int
from gradstab.training.penalized import penalties_of

_FORMS = {False: "graph", True: "xla_step", "step": "xla_step", "loop": "xla_loop"}
_LARGER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "iou", "dice", "r2")
_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "entropy", "divergence")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `train` that are plain values; refuses what can't be right."""

    epochs: int
    batch_size: int
    steps_per_epoch: int | None
    seed: int | None
    jit_compile: bool | str
    steps_per_call: int | str
    monitor: str
    monitor_mode: str
    early_stopping_patience: int | None
    verbose: int | str

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs)
        check_int("batch_size", self.batch_size)
        if self.steps_per_epoch is not None:
            check_int("steps_per_epoch", self.steps_per_epoch)
        if self.seed is not None:
            check_int("seed", self.seed, minimum=0)
        check_choice("jit_compile", self.jit_compile, ("auto", *_FORMS))
        if self.steps_per_call != "auto":
            check_int("steps_per_call", self.steps_per_call, fix="Or leave it at 'auto'")
        if self.early_stopping_patience is not None:
            check_int("early_stopping_patience", self.early_stopping_patience)
        check_choice("verbose", self.verbose, ("auto", 0, 1, 2))
        check_choice("monitor_mode", self.monitor_mode, ("auto", "min", "max"))
        if self.monitor_mode == "auto":
            object.__setattr__(self, "monitor_mode", _direction_of(self.monitor))

    @property
    def form(self) -> str | None:
        """The form of the loop that was asked for, or None where it is to be chosen."""
        return None if self.jit_compile == "auto" else _FORMS[self.jit_compile]

    def improves(self, value: float, best: float | None) -> bool:
        """Return whether `value` of the monitored log is better than the best so far.

        NaN and infinity are no better than anything.
        """
        if not math.isfinite(value):
            return False
        return best is None or (value < best if self.monitor_mode == "min" else value > best)


def describe_run(model: Any, settings: Settings, *, steps: int | None) -> dict[str, Any]:
    """Return `config.json` as far as it is known before the first step."""
    return {
        "gradstab": gradstab.__version__,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "device": device(),
        "arguments": dataclasses.asdict(settings),
        "steps": steps,
        "model": {
            "class": type(model).__name__,
            "weights": [f"{list(weight.shape)} {weight.dtype}" for weight in model.weights],
            "optimizer": _optimizer_config(model.optimizer),
            "penalties": [repr(penalty) for penalty in penalties_of(model)],
        },
    }


def check_same_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise if a run can't go on with other data, another model or another optimizer.

    Raises:
        ValueError: Names everything that differs.
    """
    may_change = ("epochs", "verbose", "early_stopping_patience", "steps_per_call", "jit_compile")
    pairs = [
        (name, old["arguments"].get(name), value)
        for name, value in new["arguments"].items()
        if name not in may_change
    ]
    pairs.append(("batches per epoch", old["steps"], new["steps"]))
    pairs += [
        (f"model's {name}", old["model"].get(name), new["model"][name]) for name in old["model"]
    ]
    different = [
        f"{name} was {_short(before)}, is {_short(now)}"
        for name, before, now in pairs
        if before != now
    ]
    if different:
        raise ValueError(
            f"`resume=True` needs the arguments that the run in `run_dir` began with. Received: "
            f"{'; '.join(different)}. Give these as they were, or pass another `run_dir`"
        )


def device() -> str:
    """Return the one device that the loop runs on, in words."""
    gpus = tf.config.list_logical_devices("GPU")
    return str(gpus[0].name) if gpus else "CPU (TensorFlow sees no GPU)"


def _direction_of(monitor: str) -> str:
    name = monitor.lower()
    if any(part in name for part in _SMALLER_IS_BETTER):
        return "min"
    if any(part in name for part in _LARGER_IS_BETTER):
        return "max"
    raise ValueError(
        "`monitor_mode` must be 'min' or 'max' where the name of the log does not say which is "
        f"better. Received: monitor_mode='auto' with monitor={monitor!r}"
    )


def _optimizer_config(optimizer: Any) -> Any:
    config = keras.saving.serialize_keras_object(optimizer)
    return json.loads(json.dumps(_without_state(config), default=str))


def _without_state(config: Any) -> Any:
    # The learning rate is state: callbacks change it, and it comes back with the variables.
    if isinstance(config, dict):
        return {
            key: _without_state(value)
            for key, value in config.items()
            if key not in ("learning_rate", "build_config", "name")
        }
    if isinstance(config, (list, tuple)):
        return [_without_state(value) for value in config]
    return config


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
