"""Tells an optimizer which layer each variable belongs to.

Keras shows an optimizer its variables, never the model. Binding adds each variable's layer, the
axes of one output unit, and whether the layer makes the model's output. Where nobody bound a model,
a rule by name and rank stands in (`unit_axes_by_rank`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import keras

from gradstab._layers import all_layers, children
from gradstab._variables import variable_path
from gradstab.optimizers.model.forward_state import changed_by_forward_pass
from gradstab.transforms.base import VariableRole

# On a model's `train_step` that is Keras' own behind what leaves bad examples out of a batch.
MASKED: Final = "gradstab_masked_step"


@dataclasses.dataclass(frozen=True)
class Binding:
    """Facts about the variables of one model.

    Attributes:
        roles: Role of each trainable variable, by the variable's `id`.
        forward_variables: What a forward pass may change, such as BatchNorm's statistics.
        running_loss: Sum and count behind the loss in the logs, where Keras' own step keeps them.
    """

    roles: dict[int, VariableRole]
    forward_variables: tuple[Any, ...]
    running_loss: tuple[Any, ...] = ()


def bind(model: Any) -> Binding:
    """Read the roles of all trainable variables of a built model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not is_built(model):
        raise ValueError(
            f"`model` must be built before it is bound. Received: model={model.name!r}, which has "
            "no weights yet. Call it on a batch, or give its first layer an input shape"
        )
    outputs = _output_layers(model)
    layers = list(all_layers(model))
    roles: dict[int, VariableRole] = {}
    for layer in layers:
        inner = {id(v) for child in children(layer) for v in child.trainable_variables}
        for variable in layer.trainable_variables:
            if id(variable) not in inner:
                roles[id(variable)] = VariableRole(
                    path=variable.path,
                    layer=layer.name,
                    layer_class=type(layer).__name__,
                    unit_axes=_unit_axes(variable, layer),
                    is_output=layer in outputs,
                )
    return Binding(
        roles=roles,
        forward_variables=tuple(changed_by_forward_pass(layers)),
        running_loss=running_loss(model),
    )


def running_loss(model: Any) -> tuple[Any, ...]:
    """Return sum and count of the mean that Keras shows as `loss`; nothing under other steps.

    Keras' own `train_step` adds a batch to them before the optimizer is asked.
    """
    if not trains_by_keras_step(model) or not model.compiled:
        return ()
    means = [each for each in model.metrics if each.name == "loss"]
    if len(means) != 1 or type(means[0]) is not keras.metrics.Mean:
        return ()
    return (means[0].total, means[0].count)


def is_built(model: Any) -> bool:
    """Whether a model has its weights.

    A GAN and the like are never called as a whole, so that Keras does not count them as built; what
    they train are models of their own.
    """
    if model.built:
        return True
    below = [layer for layer in all_layers(model) if layer is not model]
    return bool(model.weights) and all(layer.built for layer in below)


def trains_by_keras_step(model: Any) -> bool:
    """Whether nobody has overridden how a model takes a step, but for what masks its batches."""
    own = vars(model).get("train_step")
    is_keras = own is None or hasattr(own, MASKED)
    return type(model).train_step is keras.Model.train_step and is_keras


def unbound_role(variable: Any) -> VariableRole:
    """Return what name and rank alone tell of a variable."""
    return VariableRole(
        path=variable_path(variable),
        layer=None,
        layer_class=None,
        unit_axes=unit_axes_by_rank(variable),
        is_output=False,
    )


def unit_axes_by_rank(variable: Any) -> tuple[int, ...]:
    """Return the axes of one output unit, guessed from a variable's name and rank.

    The whole of a scalar, a vector or anything called like a bias or a gain; a row of an embedding;
    the spatial axes of a depthwise kernel; else all axes but the last, which is right for Dense,
    convolution and recurrent kernels and wrong for transposed convolutions and EinsumDense.
    """
    rank = len(variable.shape)
    name = str(variable.name)
    if _is_one_unit(name, rank):
        return tuple(range(rank))
    if "embeddings" in name:
        return tuple(range(1, rank))
    if "depthwise" in name:
        return tuple(range(rank - 2))
    return tuple(range(rank - 1))


def _is_one_unit(name: str, rank: int) -> bool:
    """Whether a variable is one unit as a whole, as biases and the gains of normalization are."""
    return rank < 2 or "bias" in name or name in {"beta", "gamma", "scale"}


def _unit_axes(variable: Any, layer: Any) -> tuple[int, ...]:
    rank = len(variable.shape)
    name = str(variable.name)
    if _is_one_unit(name, rank):
        return tuple(range(rank))
    if isinstance(layer, keras.layers.EinsumDense):
        # "abc,cde->abde": the kernel's axes that the output lacks are summed over in one unit.
        kernel, _, output = layer.equation.partition(",")[2].partition("->")
        return tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    transposed = (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    )
    if isinstance(layer, transposed):
        return (*range(rank - 2), rank - 1)
    if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
        return tuple(range(rank - 2))
    if isinstance(layer, keras.layers.Embedding):
        return tuple(range(1, rank))
    return unit_axes_by_rank(variable)


def _output_layers(model: Any) -> list[Any]:
    """Return the layers whose weights make the model's output, those inside others too."""
    found: list[Any] = []
    for layer in _last_layers(model):
        found.extend(_output_layers(layer) if isinstance(layer, keras.Model) else all_layers(layer))
    return found


def _last_layers(model: Any) -> list[Any]:
    """Return the model's own layers that make its output, past layers without weights."""
    if isinstance(model, keras.Sequential):
        return next(([layer] for layer in reversed(model.layers) if layer.weights), [])
    try:
        wanted = list(model.outputs)
    except AttributeError:
        return []  # A subclassed model has no graph to read.
    found: list[Any] = []
    while wanted:
        tensor = wanted.pop()
        for layer in model.layers:
            if any(tensor is made for made in _tensors(layer, "output")):
                if layer.weights:
                    found.append(layer)
                else:
                    wanted.extend(_tensors(layer, "input"))
                break
    return found


def _tensors(layer: Any, which: str) -> list[Any]:
    """Return the symbolic tensors of a layer that was called once; none if it was shared."""
    try:
        return list(keras.tree.flatten(getattr(layer, which)))
    except (AttributeError, ValueError):
        return []
