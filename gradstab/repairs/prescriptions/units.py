"""Hidden activations that pass gradients, and kernels that begin on the scale they need."""

from __future__ import annotations

from typing import Any, ClassVar, final

import keras

from gradstab.repairs.draft import Draft, activation_of
from gradstab.repairs.prescriptions.base import Change, Prescription, changed
from gradstab.repairs.prescriptions.structure import (
    hidden_activation,
    is_followed_by_activation,
    is_hidden,
)

_RECTIFIERS = ("relu", "leaky_relu", "relu6", "elu", "selu", "gelu", "silu", "swish")


@final
class Reinitialize(Prescription):
    """He's start before rectifiers, Glorot's elsewhere, zero biases."""

    name = "start from usual kernels"
    heals = ("constant-initialization", "kernels-too-small", "kernels-too-large", "dead-units")
    helps = (
        "vanishing-signal",
        "exploding-signal",
        "vanishing-gradients",
        "exploding-gradients",
        "saturated-units",
        "collapsed-output",
        "nonfinite-forward",
        "nonfinite-gradients",
    )

    def write(self, draft: Draft) -> list[Change]:
        """Set the initializers of all layers that have a kernel."""
        changes = []
        for layer in draft.layers:
            config = draft.config(layer)
            if "kernel_initializer" not in config or not layer.trainable:
                continue
            rectified = is_hidden(draft, layer) and hidden_activation(draft, layer) in _RECTIFIERS
            entries: dict[str, Any] = {}
            if _name(config["kernel_initializer"]) not in _usual(rectified):
                entries["kernel_initializer"] = "he_normal" if rectified else "glorot_uniform"
            if _name(config.get("bias_initializer")) in ("RandomNormal", "Constant", "Ones"):
                entries["bias_initializer"] = "zeros"
            if entries:
                changes.append(changed(draft, layer, **entries))
        return changes


@final
class SwapActivations(Prescription):
    """`relu` with He's start in hidden layers; `tanh`, Keras' default, in recurrent ones.

    Glorot's start, Keras' default, halves the signal in each rectified layer.
    """

    name = "use relu in hidden layers"
    heals = ("saturated-units", "no-nonlinearity", "vanishing-gradients", "vanishing-signal")
    helps = ("collapsed-output", "exploding-signal", "nonfinite-forward")
    away_from: ClassVar[tuple[str, ...]] = (
        "sigmoid", "hard_sigmoid", "tanh", "softsign", "softplus", "exponential", "softmax",
        "linear", "hard_tanh",
    )  # fmt: skip

    def write(self, draft: Draft) -> list[Change]:
        """Replace activations that saturate, blow up, or are none."""
        changes = []
        for layer in draft.layers:
            now = hidden_activation(draft, layer)
            if isinstance(layer, keras.layers.RNN):
                if now in _RECTIFIERS or now == "linear":
                    changes.append(changed(draft, layer, activation="tanh"))
                continue
            if layer.name in draft.heads or now not in self.away_from:
                continue
            is_own = isinstance(layer, keras.layers.Activation)
            if not is_own and not is_hidden(draft, layer):
                continue
            if now == "linear" and (is_own or is_followed_by_activation(draft, layer)):
                continue
            if "activation" in layer.get_config():
                entries = {"activation": "relu"}
                if _name(draft.config(layer).get("kernel_initializer")).startswith("Glorot"):
                    entries["kernel_initializer"] = "he_normal"
                changes.append(changed(draft, layer, **entries))
        return changes


@final
class TrainFrozenLayers(Prescription):
    """Layers that are frozen learn; they begin with the weights that they have."""

    name = "train frozen layers"
    heals = ("frozen-model",)
    helps = ("collapsed-output",)

    def write(self, draft: Draft) -> list[Change]:
        """Set `trainable` of the layers that have weights."""
        changes = []
        for layer in draft.layers:
            if layer.weights and not draft.config(layer).get("trainable", True):
                draft.change(layer, trainable=True)
                line = f'model.get_layer("{layer.name}").trainable = '
                changes.append(Change(f"{line}False", f"{line}True"))
        return changes


@final
class ReviveUnits(Prescription):
    """`leaky_relu` for `relu`: units that answer nothing still get a gradient."""

    name = "let dead units learn again"
    heals = ("dead-units",)
    helps = ("collapsed-output",)

    def write(self, draft: Draft) -> list[Change]:
        """Replace `relu` in hidden layers."""
        return [
            changed(draft, layer, activation="leaky_relu")
            for layer in draft.layers
            if layer.name not in draft.heads
            and not isinstance(layer, keras.layers.RNN)
            and activation_of(draft.config(layer)) == "relu"
        ]


def _name(initializer: Any) -> str:
    if isinstance(initializer, dict):
        return str(initializer.get("class_name"))
    return str(initializer)


def _usual(rectified: bool) -> tuple[str, ...]:
    he = ("HeNormal", "HeUniform", "he_normal", "he_uniform")
    others = ("Orthogonal", "OrthogonalInitializer", "Identity", "LecunNormal", "LecunUniform")
    return he if rectified else (*he, *others, "GlorotUniform", "GlorotNormal", "glorot_uniform")
