"""A copy of a model with changes: other layers, layers put in, and weights that start anew."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from gradstab._layers import all_layers

Make = Callable[[], Any]


class NotClonableError(ValueError):
    """A model of which no copy can be made."""


def is_editable(model: Any) -> bool:
    """Whether the layers of a model are known as a graph, so that they can be replaced."""
    return isinstance(model, keras.Sequential) or is_functional(model)


def is_functional(model: Any) -> bool:
    """Whether a model is made of inputs and outputs, and has no `call` of its own."""
    kind = _functional_class()
    return isinstance(model, kind) and type(model).call is kind.call


@functools.cache
def _functional_class() -> Any:
    """Return Keras' class of models made of inputs and outputs, which has no public name."""
    tensor = keras.Input((1,))
    return type(keras.Model(tensor, tensor))


def cloned(
    model: Any,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    before: Mapping[str, Sequence[Make]] | None = None,
    after: Mapping[str, Sequence[Make]] | None = None,
    at_input: Mapping[str, Sequence[Make]] | None = None,
    at_output: Sequence[Make] = (),
    around: Mapping[str, Callable[[Any], Any]] | None = None,
    input_shape: Sequence[int | None] | None = None,
) -> Any:
    """Return a copy of a model, not compiled, whose weights start anew.

    Weights of layers that are frozen are kept: they were trained before.

    Args:
        model: A model. Without changes it may be subclassed; it then has to have a config.
        settings: Entries of layers' configs to replace, by the layer's name.
        before: Functions that make layers to put in before a layer, by its name.
        after: The same, after it.
        at_input: The same, after an input, by the input's name.
        at_output: The same, after the output of a model with one.
        around: Functions that take a layer and return the one to use in its place, by its name.
        input_shape: Shape of an example, for a sequential model that was not built.

    Raises:
        NotClonableError: If a layer or the model can't be made from its config.
    """
    edits = _Edits(settings or {}, before or {}, after or {}, at_input or {}, around or {})
    try:
        if isinstance(model, keras.Sequential):
            copy = _sequential(model, edits, at_output, input_shape)
        elif is_functional(model):
            copy = _functional(model, edits, at_output)
        else:
            copy = _subclassed(model)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise NotClonableError(
            f"`model` can't be made anew from its config: {error}. Give each layer, and a "
            "subclassed model, a `get_config` that returns the arguments of its `__init__`"
        ) from error
    _keep_frozen(model, copy)
    return copy


class _Edits:
    """Layers as they are to be, each made once, so that what is shared stays shared."""

    def __init__(
        self,
        settings: Mapping[str, Mapping[str, Any]],
        before: Mapping[str, Sequence[Make]],
        after: Mapping[str, Sequence[Make]],
        at_input: Mapping[str, Sequence[Make]],
        around: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self._settings, self._around = settings, around
        self._places = {"before": before, "after": after, "input": at_input}
        self._made: dict[tuple[str, str], list[Any]] = {}

    def layer(self, layer: Any) -> Any:
        if is_editable(layer):  # A model within the model.
            return cloned(layer, settings=self._settings)
        made = remade(layer, self._settings.get(layer.name, {}))
        return self._around[layer.name](made) if layer.name in self._around else made

    def put_in(self, place: str, name: str) -> list[Any]:
        key = (place, name)
        if key not in self._made:
            self._made[key] = [make() for make in self._places[place].get(name, ())]
        return self._made[key]


def remade(layer: Any, changes: Mapping[str, Any]) -> Any:
    """Return a layer made from the config of another, with entries replaced."""
    config = {**layer.get_config(), **changes}
    if type(layer) is keras.layers.Lambda:
        # Its config holds the function's code, which is not loaded from a config by default.
        shape = config.get("output_shape")
        return keras.layers.Lambda(
            layer.function,
            output_shape=tuple(shape) if isinstance(shape, list) else shape,
            arguments=layer.arguments,
            name=layer.name,
        )
    return type(layer).from_config(config)


def _sequential(
    model: Any, edits: _Edits, at_output: Sequence[Make], input_shape: Sequence[int | None] | None
) -> Any:
    layers: list[Any] = []
    if model.built and model.inputs:
        (tensor,) = model.inputs
        layers.append(keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name))
    elif input_shape is not None:
        layers.append(keras.Input(tuple(input_shape)))
    if layers:
        layers += edits.put_in("input", input_name(model))
    for layer in model.layers:
        layers += edits.put_in("before", layer.name)
        layers.append(edits.layer(layer))
        layers += edits.put_in("after", layer.name)
    return keras.Sequential([*layers, *(make() for make in at_output)], name=model.name)


def input_name(model: Any) -> str:
    """Return the name by which the one input of a model is called here."""
    if model.inputs:
        return str(model.inputs[0].name)
    return "input"


def _functional(model: Any, edits: _Edits, at_output: Sequence[Make]) -> Any:
    # Not compiled, since its loss may be one that can't be made from a config.
    plain = keras.Model(model.input, model.output)
    inner: set[int] = set()

    def call(layer: Any, *arguments: Any, **keywords: Any) -> Any:
        arguments, keywords = keras.tree.map_structure(scaled, (arguments, keywords))
        for each in edits.put_in("before", layer.name):
            arguments = (each(arguments[0]), *arguments[1:])
        result = layer(*arguments, **keywords)
        for each in edits.put_in("after", layer.name):
            result = each(result)
        inner.update(id(tensor) for tensor in keras.tree.flatten(result))
        kept.append(result)
        return result

    def scaled(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor) or id(value) in inner:
            return value
        for each in edits.put_in("input", value.name):
            value = each(value)
        return value

    kept: list[Any] = []  # An id is not used again while its tensor lives.
    copy = keras.models.clone_model(plain, clone_function=edits.layer, call_function=call)
    outputs = copy.output
    for make in at_output:
        outputs = make()(outputs)
    return type(model)(inputs=copy.input, outputs=outputs, name=model.name)


def _subclassed(model: Any) -> Any:
    copy = type(model).from_config(model.get_config())
    if model.built and not copy.built:
        with contextlib.suppress(Exception):
            copy.build_from_config(model.get_build_config())
    return copy


def _keep_frozen(model: Any, copy: Any) -> None:
    """Give layers that are frozen the weights that they have: they were trained before."""
    new = {layer.name: layer for layer in all_layers(copy)}
    for layer in all_layers(model):
        other = new.get(layer.name)
        if layer.trainable or not layer.weights or other is None or not other.built:
            continue
        if [w.shape for w in layer.weights] == [w.shape for w in other.weights]:
            other.set_weights(layer.get_weights())
