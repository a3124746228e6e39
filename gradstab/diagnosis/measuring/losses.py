"""Which loss and which metrics belong to each output, and what the best constant output costs."""

from __future__ import annotations

import inspect
from typing import Any, Final

import keras
import numpy as np
from keras import ops

_LARGE: Final = 1e6


def losses_of(model: Any, names: list[str]) -> list[tuple[str, bool]]:
    """Return for each output the class of its loss and whether it takes logits."""
    losses = _by_output(getattr(model, "loss", None), names)
    return [_loss(each) for each in losses]


def metrics_of(model: Any, names: list[str]) -> list[tuple[str, ...]]:
    """Return for each output the names of its metrics, as classes where they are Keras'."""
    config = getattr(model, "get_compile_config", lambda: None)() or {}
    given = config.get("metrics") if isinstance(config, dict) else None
    if given is None:
        return [()] * len(names)
    if len(names) == 1:
        return [tuple(map(_metric, _flat(given)))]
    each = _by_output(given, names)
    return [tuple(map(_metric, _flat(one))) for one in each]


def _flat(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [each for part in value for each in _flat(part)]
    if isinstance(value, dict) and "class_name" not in value:
        return [each for part in value.values() for each in _flat(part)]
    return [value]


def _metric(metric: Any) -> str:
    if isinstance(metric, dict):
        config = metric.get("config")
        if metric.get("class_name") == "function":
            metric = config
        else:
            return str(metric.get("class_name"))
    if not isinstance(metric, str):
        return getattr(metric, "__name__", type(metric).__name__)
    if metric.lower() in ("accuracy", "acc"):
        return "accuracy"
    try:
        found = keras.metrics.get(metric)
    except Exception:  # unknown names are a person's own functions
        return metric
    return type(found).__name__ if isinstance(found, keras.metrics.Metric) else _class_of(found)


def _by_output(given: Any, names: list[str]) -> list[Any]:
    count = len(names)
    if isinstance(given, dict) and "class_name" not in given:
        return [given.get(name) for name in names]
    if isinstance(given, list | tuple):
        flat = list(given)
        return (flat if len(flat) == count else flat[:1] * count) or [None] * count
    return [given] * count


def _loss(loss: Any) -> tuple[str, bool]:
    if loss is None:
        return "", False
    try:
        found = keras.losses.get(loss) if isinstance(loss, str | dict) else loss
    except ValueError:
        return "custom", False
    if isinstance(found, keras.losses.Loss):
        name = type(found).__name__
        own = type(found).__module__.split(".")[0] == "keras"
        if name == "LossFunctionWrapper":
            name, own = _class_of(getattr(found, "fn", None)), True
        try:
            logits = bool(found.get_config().get("from_logits", False))
        except Exception:  # a person's own class need not have a config
            logits = False
        logits = logits or bool(getattr(found, "_fn_kwargs", {}).get("from_logits", False))
        return (name if own else "custom"), logits
    return _class_of(found), False


def _class_of(function: Any) -> str:
    """Return Keras' class of the same loss as a function of Keras', else `"custom"`."""
    name = getattr(function, "__name__", "")
    words = "".join(part.capitalize() for part in name.split("_"))
    candidates = {words, words.replace("Kl", "KL"), words.replace("LogCosh", "LogCosh")}
    for candidate in candidates:
        if getattr(keras.losses, name, None) is function and hasattr(keras.losses, candidate):
            return candidate
        if getattr(keras.metrics, name, None) is function and hasattr(keras.metrics, candidate):
            return candidate
    return "custom"


def data_loss(model: Any, x: Any, y: Any, outputs: Any, weights: Any, training: bool) -> Any:
    """Return the loss without penalties, and the sum of the penalties."""
    parameters = inspect.signature(model.compute_loss).parameters
    extra = {"training": training} if "training" in parameters else {}
    total = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weights, **extra)
    penalties = model.losses
    penalty = (
        ops.sum(ops.stack([ops.sum(ops.cast(p, total.dtype)) for p in penalties]))
        if (penalties)
        else ops.zeros((), total.dtype)
    )
    total, penalty = ops.cast(total, "float32"), ops.cast(penalty, "float32")
    # What is left of a difference of so large numbers in float32 is no loss.
    return ops.where(penalty > _LARGE, total, total - penalty), penalty


def constant_outputs(y: Any, outputs: Any) -> list[list[Any]]:
    """Return for each output the constants that could be its best: means, medians, and logits."""
    flat_y, flat_outputs = keras.tree.flatten(y), keras.tree.flatten(outputs)
    found = []
    for target, output in zip(flat_y, flat_outputs, strict=False):
        found.append([each.astype("float32") for each in _constants(np.asarray(target), output)])
    return found


def _constants(target: Any, output: Any) -> list[Any]:
    shape = tuple(output.shape)
    numbers = target.astype("float64")
    width = shape[-1] if len(shape) > 1 else 1
    if numbers.shape != shape and numbers.size * width == int(np.prod(shape)) and width > 1:
        labels = numbers.reshape(-1).astype("int64")
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= width:
            return []
        share = (np.bincount(labels, minlength=width) + 1e-3) / (len(labels) + 1e-3 * width)
        return [np.broadcast_to(each, shape) for each in (share, np.log(share))]
    if numbers.size != int(np.prod(shape)):
        return []
    rows = numbers.reshape(shape)
    mean = np.broadcast_to(rows.mean(0, keepdims=True), shape)
    found = [mean, np.broadcast_to(np.median(rows, 0, keepdims=True), shape)]
    if rows.min() >= 0 and rows.max() <= 1:
        kept = np.clip(mean, 1e-4, 1 - 1e-4)
        found += [np.log(kept / (1 - kept)), np.log(kept)]
    return found


def constant_loss(model: Any, x: Any, y: Any, outputs: Any, weights: Any) -> float | None:
    """Return the loss of the best constant output, `None` where it can't be told."""
    candidates = constant_outputs(y, outputs)
    if not candidates or not all(candidates):
        return None
    best = [each[0] for each in candidates]
    flat_outputs = keras.tree.flatten(outputs)

    def cost(constants: list[Any]) -> float:
        flat = [ops.cast(c, o.dtype) for c, o in zip(constants, flat_outputs, strict=True)]
        packed = keras.tree.pack_sequence_as(outputs, flat)
        return float(data_loss(model, x, y, packed, weights, False)[0])

    least = cost(best)
    for place, options in enumerate(candidates):
        for option in options[1:]:
            tried = [*best[:place], option, *best[place + 1 :]]
            value = cost(tried)
            if value < least or not np.isfinite(least):
                best, least = tried, value
    return least if np.isfinite(least) and abs(least) > 1e-12 else None
