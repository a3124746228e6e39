"""Fills the look at the signal: a batch forward and backward, each layer's tensors noted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from gradstab.diagnosis.looks.signal import LayerSignal, SignalLook
from gradstab.diagnosis.measuring.losses import constant_loss, data_loss
from gradstab.diagnosis.measuring.structure import activation_of, kernel_of, leaf_layers
from gradstab.keras_hooks.substitute import replaced_method

# Bounds between which an activation lies.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}
# Share of the way between the bounds within which an output counts as saturated.
_CLOSE: Final = 0.01
# Change of a row's output, in units of the outputs' deviation, from which rows are mixed. Batches
# of other rows are computed in another order, which costs some last digits.
_MIXED: Final = 1e-2


class Notes:
    """What went into and out of each layer in one pass."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.inputs: dict[int, Any] = {}
        self.outputs: dict[int, Any] = {}
        self.order: list[int] = []

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Note the pass that runs in this block."""
        self.inputs, self.outputs, self.order = {}, {}, []
        with contextlib.ExitStack() as stack:
            for place, layer in enumerate(self.layers):
                stack.enter_context(replaced_method(layer, "call", self._noting(place, layer.call)))
            yield

    def _noting(self, place: int, call: Any) -> Any:
        def call_and_note(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if place not in self.outputs:  # the first use of a shared layer
                outputs = [each for each in keras.tree.flatten(result) if tf.is_tensor(each)]
                inputs = [e for e in keras.tree.flatten((args, kwargs)) if tf.is_tensor(e)]
                if outputs and outputs[0].shape.rank:
                    self.order.append(place)
                    self.outputs[place] = outputs[0]
                    self.inputs[place] = inputs[0] if inputs else None
            return result

        return call_and_note


def look_at_signal(
    model: Any, batch: tuple[Any, Any, Any], other: tuple[Any, Any, Any]
) -> tuple[SignalLook, list[Any]]:
    """Run a batch forward and backward.

    Args:
        model: A built, compiled model. Its variables may change.
        batch: Inputs, targets and weights as tensors.
        other: The same of other rows, as many.

    Returns:
        The look, and the outputs as arrays.
    """
    x, y, weights = batch
    layers = leaf_layers(model)
    first, trained, mixed = Notes(layers), Notes(layers), Notes(layers)
    calm = first
    try:
        with first.taken():
            outputs = model(x, training=False)
    except Exception as error:  # whatever a layer raises about its inputs is the finding
        return SignalLook(error=_first_line(error)), []
    flat = [np.asarray(each, "float32") for each in keras.tree.flatten(outputs)]
    finite = all(np.isfinite(each).all() for each in flat)
    rows = len(keras.tree.flatten(x)[0])
    rows_agree = all(len(each) == rows for each in flat if each.ndim)
    look: dict[str, Any] = {"outputs_finite": finite, "rows_agree": rows_agree}
    with trained.taken():
        model(x, training=True)
    joined = keras.tree.map_structure(lambda a, b: ops.concatenate([a[:1], b[1:]]), x, other[0])
    with contextlib.suppress(Exception), mixed.taken():
        model(joined, training=False)
    losses: dict[str, Any] = {}
    gradients: list[Any] = []
    variables = model.trainable_variables
    places = calm.order
    again = Notes(layers)
    try:
        with tf.GradientTape() as tape:
            with again.taken():
                outputs = model(x, training=False)
            loss, penalty = data_loss(model, x, y, outputs, weights, False)
            total = loss + penalty
        losses = {"loss": float(loss), "penalty": float(penalty)}
        calm, places = again, again.order
        watched = [variable.value for variable in variables]
        sources = watched + [calm.outputs[place] for place in places]
        gradients = tape.gradient(total, sources)
        look["disconnected"] = tuple(
            variable.path
            for variable, gradient in zip(variables, gradients, strict=False)
            if gradient is None
        )
        losses["baseline"] = constant_loss(model, x, y, outputs, weights)
        if not math.isfinite(losses["loss"]) and finite:
            losses["loss_of_probabilities"] = _loss_of_probabilities(model, batch, outputs)
    except Exception as error:
        look["error"] = _first_line(error)
    by_variable = {
        id(variable): gradient
        for variable, gradient in zip(variables, gradients[: len(variables)], strict=False)
    }
    by_place = dict(zip(places, gradients[len(variables) :], strict=False))
    signals = [
        _signal(layers[place], place, calm, first, trained, mixed, by_variable, by_place)
        for place in calm.order
    ]
    return SignalLook(layers=tuple(signals), **losses, **look), flat


def _signal(
    layer: Any,
    place: int,
    calm: Notes,
    first: Notes,
    trained: Notes,
    mixed: Notes,
    by_variable: dict[int, Any],
    by_place: dict[int, Any],
) -> LayerSignal:
    given, output = _numbers(calm.inputs.get(place)), _numbers(calm.outputs[place])
    values = np.where(np.isfinite(output), output, 0.0)
    with np.errstate(all="ignore"):
        scale = float(np.sqrt((values.astype("float64") ** 2).mean()))
        variation = float(values.std(0).mean()) / max(scale, 1e-30) if len(values) > 1 else 1.0
    by_unit = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(-1, 1)
    bounds = _BOUNDS.get(activation_of(layer) or "")
    saturated = None
    if bounds is not None:
        margin = _CLOSE * (bounds[1] - bounds[0])
        saturated = float(((values < bounds[0] + margin) | (values > bounds[1] - margin)).mean())
    gradient, weight_scale, alike, gradient_finite = _gradients(layer, by_variable)
    seen = given if given is not None else np.zeros(1, "float32")
    finite_in = np.isfinite(seen)
    real = np.where(finite_in, seen, 0.0)
    return LayerSignal(
        name=layer.name,
        input_scale=float(np.sqrt((real.astype("float64") ** 2).mean())) if real.size else 0.0,
        mean=float(values.mean()),
        scale=scale,
        variation=variation,
        finite=float(np.isfinite(output).mean()),
        input_finite=bool(finite_in.all()),
        input_minimum=float(real.min(initial=np.inf)),
        input_maximum=float(real.max(initial=-np.inf)),
        saturated=saturated,
        dead=float((by_unit == 0).all(0).mean()),
        training_shift=_shift(layer, place, calm, trained),
        gradient=gradient,
        weight_scale=weight_scale,
        output_gradient=_rms(by_place.get(place)),
        gradient_alike=alike,
        gradient_finite=gradient_finite,
        mixes_rows=_is_mixed(place, calm, mixed) and not _is_random(place, calm, first),
    )


def _numbers(tensor: Any) -> Any:
    return None if tensor is None else np.asarray(ops.cast(tensor, "float32"))


def _gradients(
    layer: Any, by_variable: dict[int, Any]
) -> tuple[float | None, float | None, bool, bool]:
    """Return size of gradient and weights, whether all units get the same, and whether finite."""
    kernel = kernel_of(layer)
    squares = count = weights = 0.0
    finite, known = True, False
    alike = False
    for variable in layer.trainable_variables:
        gradient = by_variable.get(id(variable))
        if gradient is None:
            continue
        known = True
        values = np.asarray(
            ops.convert_to_numpy(ops.cast(tf.convert_to_tensor(gradient), "float32"))
        )
        finite = finite and bool(np.isfinite(values).all())
        squares += float((values.astype("float64") ** 2).sum())
        weights += float((np.asarray(variable, "float64") ** 2).sum())
        count += values.size
        if variable is kernel and values.shape[-1] > 1:
            flat = values.reshape(-1, values.shape[-1])
            spread = abs(flat - flat.mean(1, keepdims=True)).max()
            alike = bool(spread <= 1e-4 * max(abs(flat).max(), 1e-30)) or not flat.any()
    if not known:
        return None, None, False, True
    return math.sqrt(squares / count), math.sqrt(weights / count), alike, finite


def _rms(value: Any) -> float | None:
    if value is None:
        return None
    numbers = np.asarray(ops.cast(tf.convert_to_tensor(value), "float32"), "float64")
    return float(np.sqrt((numbers**2).mean())) if numbers.size else None


def _shift(layer: Any, place: int, calm: Notes, trained: Notes) -> float:
    """Return how far a layer without weights moves its output in training."""
    ours, theirs = calm.outputs.get(place), trained.outputs.get(place)
    before, after = calm.inputs.get(place), trained.inputs.get(place)
    if layer.trainable_variables or ours is None or theirs is None or ours.shape != theirs.shape:
        return 0.0
    if before is None or after is None or not np.array_equal(_numbers(before), _numbers(after)):
        return 0.0
    still, moved = _numbers(ours), _numbers(theirs)
    deviation = max(float(still.std()), 1e-30)
    return float(np.sqrt(((moved - still) ** 2).mean())) / deviation


def _is_mixed(place: int, calm: Notes, mixed: Notes) -> bool:
    ours, theirs = calm.outputs.get(place), mixed.outputs.get(place)
    if ours is None or theirs is None or ours.shape != theirs.shape or ours.shape[0] < 2:
        return False
    here, there = _numbers(ours), _numbers(theirs)
    difference = np.sqrt(((here[0] - there[0]) ** 2).mean())
    deviation = np.sqrt(((here - here.mean(0)) ** 2).mean())
    return bool(difference > _MIXED * max(deviation, 1e-6 * abs(here).max(), 1e-30))


def _is_random(place: int, calm: Notes, first: Notes) -> bool:
    """Whether a layer gives another output for the same rows."""
    ours, theirs = calm.outputs.get(place), first.outputs.get(place)
    if ours is None or theirs is None or ours is theirs:
        return False
    return not np.allclose(_numbers(ours), _numbers(theirs), rtol=1e-3, atol=1e-5, equal_nan=True)


def _loss_of_probabilities(model: Any, batch: tuple[Any, Any, Any], outputs: Any) -> float | None:
    x, y, weights = batch

    def squeezed(output: Any) -> Any:
        values = ops.sigmoid(output) if output.shape[-1] == 1 else ops.softmax(output)
        return ops.clip(values, 1e-4, 1 - 1e-4)

    tried = keras.tree.map_structure(squeezed, outputs)
    value = float(data_loss(model, x, y, tried, weights, False)[0])
    return value if math.isfinite(value) else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}"
