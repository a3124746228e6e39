"""A draft of a repair: the model, its training, and the changes made by prescriptions."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from gradstab._layers import layers_in_order
from gradstab.diagnosis.measuring.losses import metrics_of
from gradstab.diagnosis.rules.labels import ACCURACIES
from gradstab.optimizers import stabilize
from gradstab.repairs import clone
from gradstab.repairs.task import Task, task_of

Make = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The planned training.

    Attributes:
        epochs: Passes over the data.
        batch_size: Examples of a step.
    """

    epochs: int
    batch_size: int


@dataclasses.dataclass
class Draft:
    """A model and its training, with changes.

    Attributes:
        model: The model that was given, which is never changed.
        x: Inputs: an array, or a list or dict of arrays.
        y: Targets, likewise.
        plan: Training as it was planned.
        settings: Entries of layers' configs to replace, by the layer's name.
        before: Functions that make layers to put in before a layer, by its name.
        after: The same, after it.
        at_input: The same, after an input.
        at_output: The same, after the output.
        around: Functions that take a layer and return the one to use in its place, by its name.
        loss: What `compile` takes.
        loss_weights: What `compile` takes.
        optimizer: Makes the optimizer.
        cleaning: Takes inputs and targets, and returns them as the repaired model needs them.
        fit_arguments: Arguments of `fit` beside the data.
        searched: Steps of training that writing it took.
        known_rate: A learning rate that this draft is known to learn well at.
    """

    model: Any
    x: Any
    y: Any
    plan: Plan
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    before: dict[str, list[Make]] = dataclasses.field(default_factory=dict)
    after: dict[str, list[Make]] = dataclasses.field(default_factory=dict)
    at_input: dict[str, list[Make]] = dataclasses.field(default_factory=dict)
    at_output: list[Make] = dataclasses.field(default_factory=list)
    around: dict[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    loss: Any = None
    loss_weights: Any = None
    optimizer: Make = lambda: None
    cleaning: list[Callable[[Any, Any], tuple[Any, Any]]] = dataclasses.field(default_factory=list)
    fit_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    searched: int = 0
    known_rate: float | None = None

    def __post_init__(self) -> None:
        self.loss = self.model.loss
        self.loss_weights = compile_arguments(self.model).get("loss_weights")
        self.optimizer = functools.partial(copied, self.model.optimizer)
        self.fit_arguments = dataclasses.asdict(self.plan)

    @property
    def is_editable(self) -> bool:
        """Whether layers can be replaced and put in."""
        return clone.is_editable(self.model)

    @functools.cached_property
    def layers(self) -> list[Any]:
        """Layers with weights or an effect of their own, in order of depth."""
        found = layers_in_order(self.model)
        return [
            layer for layer in found
            if not isinstance(layer, keras.Model | keras.layers.InputLayer)
        ]  # fmt: skip

    @functools.cached_property
    def top(self) -> list[Any]:
        """Layers of the model itself, without those within others, in order of depth."""
        return [each for each in self.model.layers if not isinstance(each, keras.layers.InputLayer)]

    @functools.cached_property
    def heads(self) -> list[str]:
        """Names of the layers that give the outputs."""
        if isinstance(self.model, keras.Sequential):
            return [self.model.layers[-1].name]
        if clone.is_functional(self.model):
            return list(self.model.output_names)
        return ["output"] * len(keras.tree.flatten(self.y))

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """Forms of the targets, one for each output."""
        targets = keras.tree.flatten(self.y)
        shapes = self._output_shapes(len(targets))
        return [
            task_of(y, int(shape[-1] or 1) if len(shape) > 1 else 1, asks)
            for y, shape, asks in zip(targets, shapes, self._asks(len(targets)), strict=True)
        ]

    def config(self, layer: Any) -> dict[str, Any]:
        """Return a layer's config with the changes made so far."""
        return {**layer.get_config(), **self.settings.get(layer.name, {})}

    def change(self, layer: Any, **entries: Any) -> None:
        """Replace entries of a layer's config."""
        self.settings.setdefault(layer.name, {}).update(entries)

    def built(self) -> Any:
        """Return the model as drafted, compiled, with fresh weights."""
        model = clone.cloned(
            self.model,
            settings=self.settings,
            before=self.before,
            after=self.after,
            at_input=self.at_input,
            at_output=self.at_output,
            around=self.around,
            input_shape=_shape_of(self.x),
        )
        model.compile(
            self.optimizer(), self.loss, loss_weights=self.loss_weights, jit_compile=False
        )
        return model

    def prepared(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return data as the drafted model needs it."""
        for clean in self.cleaning:
            x, y = clean(x, y)
        return x, y

    def _asks(self, count: int) -> list[bool]:
        """Tell for each output whether its loss, activation or metrics are those for labels."""
        losses = self.by_output(self.loss, count)
        (metrics, *_) = metrics_of(self.model, [""] * count)
        is_counted = count == 1 and any(name in ACCURACIES for name in metrics)
        asks = []
        for place, loss in enumerate(losses):
            activation = ""
            if self.is_editable and place < len(self.heads):
                activation = activation_of(self.model.get_layer(self.heads[place]).get_config())
            asks.append(is_counted or "crossentropy" in loss_name(loss) or activation == "softmax")
        return asks

    def by_output(self, value: Any, count: int) -> list[Any]:
        """Return a list with an entry for each output of what `compile` takes."""
        if isinstance(value, Mapping):
            return [value.get(name) for name in [*self.heads, *[None] * count][:count]]
        if isinstance(value, Sequence) and not isinstance(value, str):
            return list(value)
        return [value] * count

    def _output_shapes(self, count: int) -> list[Any]:
        if self.is_editable and self.model.built and self.model.outputs:
            return [tuple(tensor.shape) for tensor in self.model.outputs]
        rows = keras.tree.map_structure(lambda array: np.asarray(array)[:2], self.x)
        copy = clone.cloned(self.model, input_shape=_shape_of(self.x))
        outputs = keras.tree.flatten(copy(rows))
        return [tuple(output.shape) for output in outputs][:count]


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return what a model was compiled with, as its config holds it."""
    with warnings.catch_warnings():  # Of a loss that is a lambda, which nobody loads here.
        warnings.simplefilter("ignore", UserWarning)
        return model.get_compile_config() or {}


def copied(optimizer: Any, inner: Any = None) -> Any:
    """Return an optimizer with the same settings and no state.

    Args:
        optimizer: A Keras optimizer, wrapped or not.
        inner: What is to stand inside a wrapped one, in place of its own.
    """
    config = optimizer.get_config()
    if inner is not None:
        config = {**config, "inner_optimizer": keras.optimizers.serialize(inner)}
    return type(optimizer).from_config(config)


def with_rate(optimizer: Any, rate: float) -> Any:
    """Return a copy of an optimizer with a constant learning rate."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return copied(optimizer, with_rate(inner, rate))
    return type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})


def clipped(optimizer: Any, max_norm: float) -> Any:
    """Return a copy of an optimizer that skips what is not finite and clips by the global norm."""
    return stabilize(copied(optimizer), clip=max_norm)


def activation_of(config: Mapping[str, Any]) -> str:
    """Return the name of the activation in a layer's config, or nothing."""
    value = config.get("activation")
    if isinstance(value, Mapping):
        value = value.get("class_name") if value.get("class_name") != "function" \
            else value.get("config")  # fmt: skip
    return str(value).lower() if value else ""


def loss_name(loss: Any) -> str:
    """Return a loss' name in small letters, as Keras spells its functions."""
    if loss is None:
        return ""
    if not isinstance(loss, str):
        loss = getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)
    name = str(loss).lower()
    return {"mse": "mean_squared_error", "mae": "mean_absolute_error"}.get(name, name)


def _shape_of(x: Any) -> tuple[int, ...] | None:
    return tuple(np.shape(x)[1:]) if hasattr(x, "shape") else None
