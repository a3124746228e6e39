"""The other end of a shared kernel: whose it is, how it is saved, how it is found again."""

from __future__ import annotations

from typing import Any, final

import keras


@final
class SharedSource:
    """Holds a layer without making it a part of the layer that refers to it.

    Keras would take a layer that is an attribute for a sublayer, and train, freeze and count its
    weights twice.

    Args:
        layer: The layer whose kernel is shared, or one that only looks like it.
        is_stand_in: Whether it only looks like it: same config, other weights.
    """

    def __init__(self, layer: Any, *, is_stand_in: bool = False) -> None:
        self.layer = layer
        self.is_stand_in = is_stand_in
        if not is_stand_in:
            _save_as_shared(layer)

    def is_meant(self, other: Any) -> bool:
        """Whether a layer is the one for which the stand-in stands."""
        return _looks_like(self.layer, other)


def check_source(layer: Any) -> Any:
    """Return `layer` if its kernel can be shared, or raise."""
    if not isinstance(layer, (keras.layers.Dense, keras.layers.Embedding)):
        raise TypeError(
            "`tied_to` must be a keras.layers.Dense or keras.layers.Embedding layer. Received: "
            f"tied_to={layer!r}"
        )
    return layer


def read_kernel(layer: Any, name: str) -> Any:
    """Return the (inputs, outputs) kernel of a layer as a variable or tensor.

    Raises:
        ValueError: If the layer is not built, or quantized.
    """
    if not layer.built:
        raise ValueError(
            f"`tied_to` must be built before the layer that shares its kernel, {name!r}. Received: "
            f"tied_to={layer.name!r}, which has no weights yet. Call it first, or build it with "
            "the shape of its input"
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            f"`tied_to` must not be quantized. Received: tied_to={layer.name!r} in "
            f"{layer.quantization_mode!r}, whose kernel {name!r} shares. Quantize with "
            "`filters=` or layer by layer and leave both out"
        )
    return layer.embeddings if isinstance(layer, keras.layers.Embedding) else layer.kernel


def find_upstream(inputs: Any, stand_in: Any) -> Any:
    """Return the layer, among those that a symbolic tensor comes from, that looks like another.

    Returns:
        The layer, or None if there is none, or more than one.
    """
    sources = keras.utils.get_source_inputs(inputs)
    if not sources or all(source is inputs for source in sources):
        return None
    operations = keras.Function(sources, inputs).operations
    found: dict[int, Any] = {}
    for operation in operations:
        for layer in all_layers(operation):
            if _looks_like(stand_in, layer):
                found[id(layer)] = layer
    return next(iter(found.values())) if len(found) == 1 else None


def all_layers(layer: Any) -> list[Any]:
    """Return a layer and all layers below it, each once."""
    found: dict[int, Any] = {}
    pending = [layer]
    while pending:
        current = pending.pop()
        if isinstance(current, keras.layers.Layer) and id(current) not in found:
            found[id(current)] = current
            for value in list(vars(current).values()):
                items = list(value.values()) if isinstance(value, dict) else value
                pending.extend(items if isinstance(items, list | tuple) else [value])
    return list(found.values())


def _looks_like(layer: Any, other: Any) -> bool:
    if layer is other or type(layer) is not type(other) or layer.name != other.name:
        return False
    return not (layer.built and other.built) or (
        tuple(read_kernel(layer, "").shape) == tuple(read_kernel(other, "").shape)
    )


def _save_as_shared(layer: Any) -> None:
    """Have a layer's config say, wherever it is written, that others may refer to the same layer.

    In a model file Keras marks a config as shared when it meets the object a second time. But the
    configs of nested models are copies by then, and the mark misses them. So each time this layer's
    config is asked for, Keras meets the object once before.
    """
    if getattr(layer, "gradstab_saved_as_shared", False):
        return
    layer.gradstab_saved_as_shared = True
    get_config = layer.get_config
    met = False

    def config_of_what_is_shared() -> Any:
        nonlocal met
        if not met:
            met = True
            try:
                keras.saving.serialize_keras_object(layer)
            finally:
                met = False
        return get_config()

    layer.get_config = config_of_what_is_shared
