"""Fills the look at the structure."""

from __future__ import annotations

import math
from typing import Any, Final

import keras
import numpy as np

from gradstab._layers import layers_in_order
from gradstab.diagnosis.looks.structure import HeadLook, LayerStructure, StructureLook
from gradstab.diagnosis.measuring.losses import losses_of, metrics_of
from gradstab.keras_hooks.graph_history import origin_of
from gradstab.keras_hooks.layer_kernels import kernel_variables
from gradstab.keras_hooks.optimizer_state import learning_rate_source

_ACTIVATION_LAYERS: Final = {
    "ReLU": "relu", "LeakyReLU": "leaky_relu", "PReLU": "prelu", "ELU": "elu", "Softmax": "softmax",
}  # fmt: skip
# Initializers that draw entries which are not independent, or none at all, on purpose.
_NOT_DRAWN: Final = ("Orthogonal", "Identity", "ZerO", "Zeros", "Constant", "Ones", "STFT")
# Layers that change nothing of what an activation gave.
_PASSING: Final = ("Dropout", "Reshape", "Flatten", "Permute", "ActivityRegularization", "Lambda")


def activation_of(layer: Any) -> str | None:
    """Return the name of a layer's activation, `None` where it has no such thing."""
    kind = type(layer).__name__
    if kind in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[kind]
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear" if hasattr(layer, "activation") and hasattr(layer, "kernel") else None
    if isinstance(function, keras.Layer):
        return activation_of(function)
    return getattr(function, "__name__", type(function).__name__)


def kernel_of(layer: Any) -> Any:
    """Return the kernel of a layer, `None` where it has none of its own."""
    for holder in (layer, getattr(layer, "cell", None)):
        kernels = {} if holder is None else kernel_variables(holder)
        for kernel in kernels.values():
            if len(kernel.shape) >= 2:
                return kernel
    return None


def leaf_layers(model: Any) -> list[Any]:
    """Return the layers that compute something themselves, in order of depth."""
    layers = []
    for layer in layers_in_order(model):
        if layer is model or isinstance(layer, keras.layers.InputLayer):
            continue
        if isinstance(layer, keras.Model) and hasattr(layer, "layers") and layer.layers:
            continue
        layers.append(layer)
    inside = {
        id(below)
        for layer in layers
        if isinstance(layer, keras.layers.RNN | keras.layers.Wrapper)
        for below in layers_in_order(layer)
        if below is not layer
    }
    return [layer for layer in layers if id(layer) not in inside]


def look_at_structure(model: Any, shapes: list[tuple[Any, ...]], names: list[str]) -> StructureLook:
    """Look at layers, heads and the optimizer.

    Args:
        model: A built, compiled model.
        shapes: Shape of a row of each output, from a pass or from the model.
        names: Name of each output, as losses are given for them.
    """
    layers = leaf_layers(model)
    ends = _ends(model, layers, len(shapes))
    heads = _heads(model, ends, shapes, names)
    ends_in = {head.layer for head in heads}
    optimizer, is_scheduled = _plain_optimizer(model.optimizer), False
    rate = None if optimizer is None else learning_rate_source(optimizer)
    is_scheduled = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return StructureLook(
        layers=tuple(_layer(each, each.name in ends_in) for each in layers),
        heads=heads,
        optimizer=type(optimizer).__name__,
        learning_rate=_rate(optimizer),
        is_scheduled=is_scheduled,
        clipping=_clipping(optimizer, model.optimizer),
        iterations=int(model.optimizer.iterations) if model.optimizer is not None else 0,
        trainable_weights=sum(math.prod(each.shape) for each in model.trainable_variables),
        is_loss_scaled=_is_loss_scaled(model.optimizer),
        precision=str(getattr(model.dtype_policy, "name", "float32")),
        problems=() if layers else ("The layers of the model can't be seen from outside.",),
    )


def _layer(layer: Any, is_head: bool) -> LayerStructure:
    kernel = kernel_of(layer)
    own = [each for each in layer.weights if "seed_generator" not in each.path]
    trained = layer.trainable_variables
    values = np.asarray(kernel, "float32") if kernel is not None else None
    fan_in = fan_out = units = None
    alike = False
    if values is not None and values.size:
        flat = _by_unit(layer, values)
        fan_in, units = flat.shape
        fan_out = units * math.prod(values.shape[:-2]) if values.ndim > 2 else units
        alike = units > 1 and bool((flat == flat[:, :1]).all())
    initializer = type(getattr(layer, "kernel_initializer", None)).__name__
    regularizers = [
        getattr(layer, f"{part}_regularizer", None)
        for part in ("kernel", "bias", "activity", "recurrent", "embeddings")
    ]
    return LayerStructure(
        name=layer.name,
        kind=type(layer).__name__,
        activation=activation_of(layer),
        units=units,
        fan_in=fan_in,
        fan_out=fan_out,
        trainable=bool(trained),
        weights=len(own),
        frozen=len([e for e in own if not e.trainable]) if not layer.trainable else 0,
        kernel_scale=float(np.sqrt((values**2).mean())) if fan_in and values is not None else None,
        kernel_offset=float(values.mean()) if fan_in and values is not None else None,
        kernel_alike=alike,
        kernel_orthogonal=any(each in initializer for each in _NOT_DRAWN),
        rate=float(getattr(layer, "rate", 0) or 0) if "ropout" in type(layer).__name__ else 0.0,
        penalty=any(each is not None for each in regularizers),
        output_rank=_rank(layer),
        is_head=is_head,
    )


def _by_unit(layer: Any, values: Any) -> Any:
    """Return a kernel as (inputs of a unit, units)."""
    if "Transpose" in type(layer).__name__:
        values = np.swapaxes(values, -1, -2)
    if "Depthwise" in type(layer).__name__:
        return values.reshape(math.prod(values.shape[:-2]), -1)
    return values.reshape(-1, values.shape[-1])


def _rank(layer: Any) -> int | None:
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError, RuntimeError):
        return None
    return len(shape)


def _ends(model: Any, layers: list[Any], count: int) -> list[list[Any]]:
    """Return the layers on the way to each output, the last first, as far as it is one way."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        sequential = getattr(model, "layers", [])
        # Of a subclassed model with one output the layer that is listed last gives it, as a rule.
        return [list(reversed(layers)) if count == 1 and sequential else []] * count
    return [_way_to(output) for output in outputs]


def _way_to(tensor: Any) -> list[Any]:
    way: list[Any] = []
    while len(way) < 8 and (origin := origin_of(tensor)) is not None:
        operation, place, inputs = origin
        if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
            way += [each for each in _way_to(operation.outputs[place]) if each not in way]
            break
        way.append(operation)
        if len(inputs) != 1:
            break
        tensor = inputs[0]
    return [each for each in way if not isinstance(each, keras.layers.InputLayer)]


def _heads(
    model: Any, ends: list[list[Any]], shapes: list[tuple[Any, ...]], names: list[str]
) -> tuple[HeadLook, ...]:
    names = [*names, *(f"output_{place}" for place in range(len(shapes)))][: len(shapes)]
    losses, metrics = losses_of(model, names), metrics_of(model, names)
    heads = []
    for place, shape in enumerate(shapes):
        way = ends[place] if place < len(ends) else []
        layer, activation, softmaxes = _end_of(way)
        heads.append(
            HeadLook(
                output=names[place],
                layer=layer,
                activation=activation,
                softmaxes=softmaxes,
                shape=tuple(shape),
                loss=losses[place][0],
                from_logits=losses[place][1],
                metrics=metrics[place],
            )
        )
    return tuple(heads)


def _end_of(way: list[Any]) -> tuple[str | None, str | None, int]:
    """Return the layer that gives an output, its activation, and how many softmaxes end it."""
    if not way:
        return None, None, 0
    softmaxes, activation, layer = 0, None, way[0].name
    is_scaled = False
    for each in way:
        if not isinstance(each, keras.Layer):
            # An operation such as `keras.ops.softmax` or a sum.
            name = type(each).__name__.lower()
            if name in ("softmax", "sigmoid", "relu", "tanh"):
                activation = activation or name
                softmaxes += name == "softmax"
                continue
            break
        own = activation_of(each)
        if own == "softmax":
            softmaxes += 1
        elif any(part in type(each).__name__ for part in _PASSING):
            continue
        if isinstance(each, keras.layers.Rescaling | keras.layers.Normalization):
            is_scaled = True  # then no bound of an activation is one of the output
            continue
        if own is not None and (activation is None or activation == "linear"):
            activation = own
        if kernel_of(each) is not None:
            layer = each.name
            break
        if own is None:
            break
    return layer, None if is_scaled else activation, softmaxes


def _is_loss_scaled(optimizer: Any) -> bool:
    while optimizer is not None:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return True
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return False


def _plain_optimizer(optimizer: Any) -> Any:
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer


def _rate(optimizer: Any) -> float | None:
    try:
        return float(optimizer.learning_rate)
    except (AttributeError, TypeError, ValueError):
        return None


def _clipping(*optimizers: Any) -> dict[str, float]:
    found = {}
    for optimizer in optimizers:
        for name in ("clipnorm", "global_clipnorm", "clipvalue"):
            value = getattr(optimizer, name, None)
            if value is not None:
                found[name] = float(value)
        for transform in getattr(optimizer, "transforms", ()) or ():
            for name in ("max_norm", "clip_value"):
                value = getattr(transform, name, None)
                if value is not None:
                    found[name] = float(value)
    return found
