"""The description of a run in `config.json`, and the checks against it when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import warnings
from typing import Any

import keras
import tensorflow as tf

import gradstab
from gradstab._errors import RunDirectoryError
from gradstab._layers import layers_in_order
from gradstab.training.penalized import penalties_of
from gradstab.training.settings import Settings

# What may differ when a run is resumed.
_MAY_CHANGE = (
    "epochs", "initial_epoch", "verbose", "early_stopping_patience", "steps_per_call",
    "jit_compile",
)  # fmt: skip
# What of a config tells nothing: numbers in names, weights that are loaded, the cut of a rate.
_NUMBERED = ("name", "dtype", "build_config", "compile_config", "layers", "function", "factor")


class ScheduleChangedWarning(UserWarning):
    """A run is resumed with more epochs and, with them, another schedule."""


def describe_run(
    model: Any, settings: Settings, *, steps: int | None, data: dict[str, Any], coefficients: Any
) -> dict[str, Any]:
    """Return `config.json` as far as it is known before the first step.

    Args:
        model: The compiled model, built.
        settings: The arguments.
        steps: Batches per epoch, where that is known.
        data: What tells the data from other data, by argument.
        coefficients: Those of regularizers and penalties, as they are now.
    """
    optimizer = _serialized(model.optimizer)
    return {
        "gradstab": gradstab.__version__,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "device": device(),
        "arguments": _plain(dataclasses.asdict(settings)),
        "steps": steps,
        "data": data,
        "model": {
            "class": type(model).__name__,
            "weights": [f"{list(weight.shape)} {weight.dtype}" for weight in model.weights],
            "optimizer": _without_state(optimizer),
            "penalties": [repr(penalty) for penalty in penalties_of(model)],
            "loss": _described(getattr(model, "loss", None)),
            "schedules": [rate for rate in _rates(optimizer) if isinstance(rate, dict)],
            "layers": [_layer(layer) for layer in layers_in_order(model)[1:]],
        },
        # A run changes these, so that they tell of its beginning alone.
        "begins_with": {
            # As it was given, 0.1 and not 0.10000000149.
            "learning rate": [
                float(f"{rate:.7g}") for rate in _rates(optimizer) if isinstance(rate, float)
            ],
            "coefficients": list(coefficients),
        },
    }


def check_same_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise if a run can't go on with other data, another model or another optimizer.

    Of what a run changes by itself, such as its rate, it goes on with what it had come to: another
    beginning is not refused, but said.

    Raises:
        RunDirectoryError: Names everything that differs.
    """
    schedules = old["model"].get("schedules"), new["model"]["schedules"]
    # One that is laid over all epochs has other numbers where there are more of them.
    is_longer = (
        new["arguments"]["epochs"] > old["arguments"]["epochs"]
        and schedules[0] != schedules[1]
        and _without_numbers(schedules[0]) == _without_numbers(schedules[1])
    )
    pairs = [
        (name, old["arguments"].get(name), value)
        for name, value in new["arguments"].items()
        if name not in _MAY_CHANGE
    ]
    pairs.append(("batches per epoch", old["steps"], new["steps"]))
    pairs += [
        (f"model's {name}", old["model"][name], new["model"].get(name))
        for name in old["model"]
        if name != "layers" and not (name == "schedules" and is_longer)
    ]
    pairs += _of_layers(old["model"].get("layers"), new["model"]["layers"])
    data = old.get("data")
    data = data if isinstance(data, dict) else {}
    for name, value in new["data"].items():
        # What is not known of one of them can't differ.
        if None not in (data.get(name), value):
            pairs.append((f"`{name}`", data[name], value))
    different = [
        f"{name} was {_short(before)}, is {_short(now)}"
        for name, before, now in pairs
        if before != now
    ]
    if different:
        raise RunDirectoryError(
            f"`resume=True` needs the arguments that the run in `run_dir` began with. Received: "
            f"{'; '.join(different)}. Give these as they were, or pass another `run_dir`"
        )
    if is_longer:
        warnings.warn(
            f"The schedule of the learning rate changes with the epochs: it was "
            f"{_short(schedules[0])}, is {_short(schedules[1])}. The resumed run takes the new one "
            "at the step that it has come to",
            ScheduleChangedWarning,
            stacklevel=4,
        )
    begun = old.get("begins_with")
    begun = begun if isinstance(begun, dict) else {}
    for name, now in new["begins_with"].items():
        if name in begun and begun[name] != now:
            warnings.warn(
                f"The run in `run_dir` began with another {name}: it was {_short(begun[name])}, is "
                f"{_short(now)}. The resumed run goes on with what it had come to by itself; set "
                "another in a callback",
                stacklevel=4,
            )


def device() -> str:
    """Return the one device that the loop runs on, in words."""
    gpus = tf.config.list_logical_devices("GPU")
    return str(gpus[0].name) if gpus else "CPU (TensorFlow sees no GPU)"


def _of_layers(old: Any, new: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """Return what differs between the layers of two models, one by one."""
    if not isinstance(old, list):  # of an earlier version
        return []
    if len(old) != len(new):
        return [("number of layers", len(old), len(new))]
    return [
        (f"{key} of layer {place}, {now['class']},", before.get(key), now.get(key))
        for place, (before, now) in enumerate(zip(old, new, strict=True))
        if isinstance(before, dict)
        for key in dict.fromkeys((*before, *now))
    ]


def _layer(layer: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if not isinstance(layer, keras.Model):
        try:
            config = _plain(_unnumbered(layer.get_config()))
        except Exception:  # a layer without a whole config, which Keras leaves to its writer
            config = {}
    return {"class": type(layer).__name__, **config}


def _unnumbered(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: _kind(value) if key.endswith("_regularizer") else _unnumbered(value)
            for key, value in config.items()
            if key not in _NUMBERED and not key.endswith("_initializer")
        }
    if isinstance(config, (list, tuple)):
        return [_unnumbered(value) for value in config]
    return config


def _serialized(optimizer: Any) -> Any:
    return _plain(keras.saving.serialize_keras_object(optimizer))


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


def _rates(config: Any) -> list[Any]:
    """Return the rates of an optimizer and of those in it: numbers, and configs of schedules."""
    if isinstance(config, dict):
        found = [_unnumbered(config["learning_rate"])] if "learning_rate" in config else []
        others = (value for key, value in config.items() if key != "learning_rate")
        return found + [rate for value in others for rate in _rates(value)]
    if isinstance(config, list):
        return [rate for value in config for rate in _rates(value)]
    return []


def _without_numbers(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_numbers(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_without_numbers(value) for value in config]
    return None if isinstance(config, int | float) else config


def _kind(regularizer: Any) -> Any:
    """Return the config of a regularizer, without coefficients that a run may change."""
    if isinstance(regularizer, dict):
        name = str(regularizer.get("registered_name"))
        return name if name.startswith("gradstab>") else _unnumbered(regularizer)
    return regularizer


def _described(value: Any) -> Any:
    """Return what tells a loss from another, the same in every process."""
    if isinstance(value, dict):
        return {str(key): _described(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _text(value)


def _text(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return str(name)
    return f"{type(value).__name__}: {re.sub(' at 0x[0-9a-f]+', '', repr(value))}"


def _plain(config: Any) -> Any:
    return json.loads(json.dumps(config, default=_text))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
