"""Finds the residual branches of a model, by its layers and by its graph."""

from __future__ import annotations

from typing import Any, Final

import keras

from gradstab._layers import layers_in_order, origin

_KERNELS: Final = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def find_branches(model: Any, given: Any) -> list[tuple[str, Any, list[Any]]]:
    """Return name, what ends it, and layers with a kernel, of each branch."""
    if not isinstance(model, keras.layers.Layer) or not model.built:
        raise TypeError(
            f"`model` must be a built Keras model. Received: model={model!r}. Call it on data, or "
            "give it an Input"
        )
    if given is not None:
        return [_given(place, layers) for place, layers in enumerate(given)]
    found = []
    for layer in _layers_and_sums(model):
        if _is_scaled_residual(layer) and layer.branch is not None:
            found.append((path_of(layer), layer, _with_kernel(layers_in_order(layer.branch))))
        elif type(layer).__name__ == "Add" or _is_scaled_residual(layer):
            found += _added(layer)
    found = [branch for branch in found if branch[2]]
    if not found:
        raise ValueError(
            "`model` must have residual branches: `ScaledResidual` layers, or `keras.layers.Add` "
            "of two ways from one tensor in a functional model. Received: none in model "
            f"{model.name!r}. Give lists of their layers as `branches`"
        )
    return found


def _layers_and_sums(model: Any) -> list[Any]:
    """Return all layers, and where `+` stands in the graph of a functional model, that operation."""
    found = []
    for layer in layers_in_order(model):
        found.append(layer)
        operations = getattr(layer, "operations", None) or []
        found += [each for each in operations if not isinstance(each, keras.layers.Layer)]
    return found


def _given(place: int, layers: Any) -> tuple[str, Any, list[Any]]:
    is_list = isinstance(layers, list | tuple) and bool(layers)
    if not is_list or not all(isinstance(each, keras.layers.Layer) for each in layers):
        raise TypeError(
            f"`branches[{place}]` must be a list of layers. Received: branches[{place}]={layers!r}"
        )
    flat = [inner for layer in layers for inner in layers_in_order(layer)]
    kernels = _with_kernel(flat)
    if not kernels:
        raise ValueError(
            f"`branches[{place}]` must have a layer with a kernel. Received: {layers!r}"
        )
    return f"branches[{place}]", _end(flat), kernels


def _is_scaled_residual(layer: Any) -> bool:
    return hasattr(layer, "alpha_initializer") and hasattr(layer, "branch")


def _added(layer: Any) -> list[tuple[str, Any, list[Any]]]:
    """Return the branches that a layer adds to their shortcuts in functional graphs."""
    found = []
    for tensor in keras.tree.flatten(_outputs(layer)):
        made = origin(tensor)
        if made is None or len(made[1]) != 2:
            continue
        ways = [_before(tensor) for tensor in made[1]]
        if not set(ways[0]) & set(ways[1]):
            continue
        kernels, ends = [], []
        for own, other in (ways, ways[::-1]):
            apart = [operation for key, operation in own.items() if key not in other]
            flat = [
                inner
                for operation in reversed(apart)
                if isinstance(operation, keras.layers.Layer)
                for inner in layers_in_order(operation)
            ]
            kernels.append(_with_kernel(flat))
            ends.append(_end(flat))
        one, two = map(len, kernels)
        if _is_scaled_residual(layer):
            found.append((path_of(layer), layer, kernels[1]))
        elif one == two > 0:
            raise ValueError(
                f"It can't be told which of the two ways that {layer.name!r} adds is the residual "
                f"branch, since both have {one} layers with a kernel. Give lists of their layers "
                "as `branches`"
            )
        else:
            found.append((path_of(layer), ends[int(two > one)], kernels[int(two > one)]))
    return found


def _outputs(layer: Any) -> Any:
    try:
        return layer.output
    except (AttributeError, ValueError):
        return []  # It was never called in a functional graph.


def _before(tensor: Any) -> dict[int, Any]:
    """Return what made a tensor and all before it, by tensor, the last first."""
    found: dict[int, Any] = {}
    pending = [tensor]
    while pending:
        current = pending.pop(0)
        if id(current) not in found:
            made = origin(current)
            found[id(current)] = made[0] if made else None
            pending.extend(made[1] if made else [])
    return found


def _with_kernel(layers: list[Any]) -> list[Any]:
    kernels = []
    for layer in layers:
        if isinstance(layer, _KERNELS):
            kernels.append(layer)
        elif any(len(weight.shape) > 1 for weight in _own_weights(layer)):
            raise ValueError(
                f"Layer {path_of(layer)!r} of class {type(layer).__name__} lies in a residual branch "
                "and has kernels of another kind than Dense and convolutions. Give the layers that "
                "are meant as `branches`"
            )
    return kernels


def _own_weights(layer: Any) -> list[Any]:
    return [value for value in vars(layer).values() if isinstance(value, keras.Variable)]


def _end(layers: list[Any]) -> Any:
    """Return the last layer that a branch's size depends on."""
    norms = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
    ends = [
        layer
        for layer in layers
        if isinstance(layer, _KERNELS)
        or (isinstance(layer, norms) and getattr(layer, "gamma", None) is not None)
    ]
    return ends[-1] if ends else None


def output_layers(model: Any) -> list[Any]:
    """Return the layers with a kernel nearest to each output, where nothing else stands between."""
    found = {}
    pending = keras.tree.flatten(getattr(model, "outputs", None) or [])
    while pending:
        made = origin(pending.pop())
        if made is None or len(made[1]) != 1:
            continue
        operation, inputs = made
        if isinstance(operation, keras.Model):
            pending.extend(operation.outputs)
        elif isinstance(operation, _KERNELS):
            found[id(operation)] = operation
        elif not getattr(operation, "weights", None):
            pending.extend(inputs)
    return list(found.values())


def path_of(layer: Any) -> str:
    """Return a layer's path; operations that are no layers have a name only."""
    return str(getattr(layer, "path", None) or layer.name)
