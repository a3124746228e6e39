"""Layers put in, layers made wider, and residuals round them."""

from __future__ import annotations

from typing import Any, final

import keras
import numpy as np

from gradstab.layers.residual import ScaledResidual
from gradstab.repairs.code import code_of
from gradstab.repairs.draft import Draft, activation_of
from gradstab.repairs.prescriptions.base import Change, Prescription, changed

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
_FEWEST_PER_STEP = 8  # Statistics of fewer examples are noise.
_NARROW, _WIDE = 16, 64
_DEEP = 4  # Layers of one shape from which on a shorter way past them is worth having.


@final
class InsertFlatten(Prescription):
    """A `Flatten` before the first dense layer, where targets have fewer axes than outputs."""

    name = "flatten before the dense layers"
    heals = ("missing-layer", "wrong-shape")
    helps = ("loss-mismatch",)

    def write(self, draft: Draft) -> list[Change]:
        """Put the layer in before the dense layers at the end of the model."""
        if not isinstance(draft.model, keras.Sequential) or not draft.model.outputs:
            return []
        rank, asked = len(draft.model.outputs[0].shape), max(2, np.ndim(draft.y))
        tail = _dense_tail(draft.top)
        if rank <= asked or not tail or tail[0].name in draft.before:
            return []
        draft.before[tail[0].name] = [keras.layers.Flatten]
        return [Change("", f"keras.layers.Flatten()  # before the layer {tail[0].name}")]


@final
class InsertNormalization(Prescription):
    """Normalization behind each hidden layer that has a kernel."""

    name = "normalize behind hidden layers"
    heals = ("missing-normalization",)
    helps = (
        "vanishing-signal",
        "exploding-signal",
        "vanishing-gradients",
        "exploding-gradients",
        "saturated-units",
        "dead-units",
        "collapsed-output",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Put `BatchNormalization` in, or `LayerNormalization` where batches are tiny."""
        if any(isinstance(layer, _RECURRENT) for layer in draft.layers):
            return []
        if any("Normalization" in type(layer).__name__ for layer in draft.top[1:]):
            return []
        batch = draft.fit_arguments["batch_size"]
        kind: Any = keras.layers.BatchNormalization
        if batch < _FEWEST_PER_STEP:
            kind = keras.layers.LayerNormalization
        hidden = [layer for layer in draft.top if is_hidden(draft, layer)]
        for layer in hidden:
            draft.after.setdefault(layer.name, []).append(kind)
        return [
            Change("", f"keras.layers.{kind.__name__}()  # behind the layer {layer.name}")
            for layer in hidden
        ]


@final
class AddResiduals(Prescription):
    """A scaled residual (ReZero) round each hidden layer that keeps the shape of its input."""

    name = "add scaled residuals"
    helps = (
        "vanishing-signal",
        "exploding-signal",
        "vanishing-gradients",
        "exploding-gradients",
        "saturated-units",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Put `ScaledResidual` round them, if the net has at least four."""
        if any(isinstance(layer, ScaledResidual) for layer in draft.layers):
            return []
        found = [layer for layer in draft.top if is_hidden(draft, layer) and _keeps_shape(layer)]
        if len(found) < _DEEP:
            return []
        changes = []
        for layer in found:
            draft.around[layer.name] = ScaledResidual
            code = code_of(layer, draft.settings.get(layer.name))
            changes.append(Change(code, f"gradstab.layers.ScaledResidual({code})"))
        return changes


@final
class WidenLayers(Prescription):
    """More units in hidden dense layers that are too narrow to pass on what comes in."""

    name = "widen narrow layers"
    heals = ("bottleneck",)

    def write(self, draft: Draft) -> list[Change]:
        """Give narrow hidden layers `units=64`."""
        return [
            changed(draft, layer, units=_WIDE)
            for layer in draft.top
            if is_hidden(draft, layer) and draft.config(layer).get("units", _WIDE) < _NARROW
        ]


@final
class LightenRegularization(Prescription):
    """Weaker penalties, and less dropout."""

    name = "regularize less"
    heals = ("over-regularized",)
    helps = ("bottleneck", "collapsed-output")

    def write(self, draft: Draft) -> list[Change]:
        """Take penalties off, and lower dropout to 0.1."""
        changes = []
        for layer in draft.layers:
            config = draft.config(layer)
            entries: dict[str, Any] = {
                name: None
                for name in ("kernel_regularizer", "bias_regularizer", "activity_regularizer",
                             "recurrent_regularizer", "embeddings_regularizer")
                if config.get(name)
            }  # fmt: skip
            if "Dropout" in type(layer).__name__ and config.get("rate", 0) > 0.1:
                entries["rate"] = 0.1
            if entries:
                changes.append(changed(draft, layer, **entries))
        return changes


def _keeps_shape(layer: Any) -> bool:
    """Whether a trainable layer has one input and one output, of one shape."""
    try:
        shapes = layer.input.shape, layer.output.shape
    except (AttributeError, ValueError, RuntimeError):  # Not called, or with several tensors.
        return False
    return bool(layer.trainable and shapes[0] == shapes[1])


def is_hidden(draft: Draft, layer: Any) -> bool:
    """Whether a layer has a kernel and does not give an output."""
    has_kernel = "kernel_initializer" in layer.get_config()
    return has_kernel and layer.name not in draft.heads and not isinstance(layer, _RECURRENT)


def is_followed_by_activation(draft: Draft, layer: Any) -> bool:
    """Whether the next layer, but for normalization, is an activation of its own."""
    top = draft.top
    if layer not in top:
        return False
    for after in top[top.index(layer) + 1 :]:
        if "Normalization" in type(after).__name__:
            continue
        name = type(after).__name__
        return name in ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax")
    return False


def _dense_tail(layers: list[Any]) -> list[Any]:
    """Return the dense layers at the end, among dropout and activations."""
    tail: list[Any] = []
    for layer in reversed(layers):
        if isinstance(layer, keras.layers.Dense):
            tail.insert(0, layer)
        elif not isinstance(layer, keras.layers.Dropout | keras.layers.Activation):
            break
    return tail


def hidden_activation(draft: Draft, layer: Any) -> str:
    """Return the name of the activation that follows a layer's kernel, `linear` for none."""
    return activation_of(draft.config(layer)) or "linear"
