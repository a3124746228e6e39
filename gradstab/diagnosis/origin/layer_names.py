"""Which layer an operation of a traced step, or a variable, belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import keras
import tensorflow as tf

from gradstab._layers import all_layers

_MARK: Final = "gradstab_layer_"
_MARKED: Final = re.compile(_MARK + r"(\d+)")

Named = tuple[str | None, str | None]


class LayerNames:
    """Marks what layers do by name scopes, which the operations of their gradients keep.

    Args:
        model: A built model.

    Attributes:
        layers: All of its layers, itself among them.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.layers = list(all_layers(model))
        self._owners = _owners(model)

    def marked(self, place: int) -> Callable[..., Any]:
        """Return the `call` of a layer that marks what it does."""
        return in_scope(f"{_MARK}{place}", self.layers[place].call)

    def is_marked(self, name: str) -> bool:
        """Whether an operation of this name is done by a layer."""
        return _MARKED.search(name) is not None

    def of_operation(self, name: str) -> Named:
        """Return the layer that an operation belongs to, as the model lists it, and one inside."""
        chosen = [self.layers[int(mark)] for mark in _MARKED.findall(name)]
        if not chosen or chosen[-1] is self._model:
            # What Keras does round `call`, such as a cast of the inputs.
            by_name = {layer.name: layer for layer in self.layers if layer is not self._model}
            words = [re.sub(r"_\d+$", "", word) for word in name.split("/")]
            chosen = [by_name[word] for word in name.split("/") if word in by_name]
            chosen = chosen or [by_name[word] for word in words if word in by_name]
        return self._named(list(reversed(chosen)))

    def of_variable(self, variable: Any) -> Named:
        """Return the layer that has a variable, as the model lists it, and one inside."""
        return self._named(
            [
                layer
                for layer in reversed(self.layers)
                if any(variable is each for each in layer.weights)
            ]
        )

    def _named(self, layers: list[Any]) -> Named:
        for layer in layers:
            owner = self._owners.get(id(layer))
            if owner is not None:
                return owner.name, None if owner is layer else layer.name
        return None, None


def in_scope(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose operations have a name scope."""

    def scoped(*arguments: Any, **named: Any) -> Any:
        with tf.name_scope(name):
            return call(*arguments, **named)

    return scoped


def _owners(model: Any) -> dict[int, Any]:
    """Return for each layer the one under which a model lists it: itself, or one that holds it."""
    owners: dict[int, Any] = {}
    holders = [each for each in all_layers(model) if isinstance(each, keras.Model)]
    listed = [layer for holder in holders for layer in holder.layers]
    for layer in listed:
        if not isinstance(layer, keras.Model):
            owners[id(layer)] = layer
    for layer in listed:
        if not isinstance(layer, keras.Model):
            for below in all_layers(layer):
                owners.setdefault(id(below), layer)
    return owners
