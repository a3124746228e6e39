"""One training step as a graph whose every tensor can be looked at, and that changes nothing.

The step is traced as it stands, `train_step` with whatever a person overrode, but for the
optimizer, which takes the gradients and does nothing. Only what is asked for is run: no variable is
assigned. Every tensor is looked at by itself, so that no kernel that fuses several operations, and
turns NaN into 0 on the way, hides what is between them; and without XLA, whose operations can't be
told apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab._layers import all_layers
from gradstab._nesting import wrappers_and_inner
from gradstab._variables import resource
from gradstab.diagnosis.origin.layer_names import LayerNames, in_scope
from gradstab.diagnosis.origin.operations import (
    BACKWARD,
    FINITE,
    FORWARD,
    HIDDEN,
    INFINITE,
    LOSS,
    NAN,
    Operation,
)  # fmt: skip
from gradstab.keras_hooks.substitute import replaced_method
from gradstab.optimizers.watching.find import optimizers_of

_FLOATS: Final = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
# Sums of what is minus infinite, infinite and NaN, at the end of what this mode gives.
_COUNTS_OF_KINDS: Final = 3
_LOSS: Final = "gradstab_loss"
_BACKWARD: Final = "gradient_tape/"
_LABELS: Final = "SparseSoftmaxCrossEntropyWithLogits"
PARTS: Final = ("inputs", "targets", "sample_weights")


class TracedStep:
    """The step of a model on batches of one structure.

    Args:
        model: A built, compiled model.
        batch: `(x, y, sample_weight)`, or less, of tensors.

    Attributes:
        operations: What it does.
        names: What belongs to which layer.
        losses: Numbers of the tensors that the loss is, where it is known.
        gradients: Numbers of the tensors that the optimizers were given.
    """

    def __init__(self, model: Any, batch: Any) -> None:
        self._model = model
        self._structure = batch
        self.names = LayerNames(model)
        leaves = tensors_of(batch)
        self._specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves]
        taken: list[Any] = []
        losses: list[Any] = []

        def step(*arguments: Any) -> Any:
            given = iter(arguments)
            data = keras.tree.map_structure(lambda x: None if x is None else next(given), batch)
            with self._attached(taken, losses):
                model.distribute_strategy.run(model.train_step, args=(data,))
            return tf.zeros(())

        self._function = tf.compat.v1.wrap_function(step, self._specs)
        self._graph = self._function.graph
        self._feeds = self._graph.inputs[: len(leaves)]
        self._tensors: list[Any] = []
        numbers: dict[int, int] = {}
        made = self._graph.get_operations()
        for operation in made:
            for tensor in operation.outputs:
                numbers[id(tensor)] = len(self._tensors)
                self._tensors.append(tensor)
        self._captured = {id(inside): outside for outside, inside in self._graph.captures}
        self._variables = _by_handle(model)
        self.operations = self._described(made, numbers)
        self.losses = [numbers[id(each)] for each in losses if id(each) in numbers]
        self.gradients = [numbers[id(each)] for each in taken if id(each) in numbers]
        self._looked = [
            number
            for number, tensor in enumerate(self._tensors)
            if self.is_float(number) and id(tensor) not in self._captured
        ]
        with self._graph.as_default():
            counts = [
                tf.raw_ops.DebugNumericSummaryV2(
                    input=self._tensors[number], output_dtype=tf.float32, tensor_debug_mode=3
                )[-_COUNTS_OF_KINDS:]
                for number in self._looked
            ]
            self._look = self._function.prune(self._feeds, tf.stack(counts))

    def fits(self, batch: Any) -> bool:
        """Whether this was traced for batches of this structure and these shapes."""
        leaves = tensors_of(batch)
        return len(leaves) == len(self._specs) and all(
            spec.dtype == leaf.dtype and spec.shape == leaf.shape
            for spec, leaf in zip(self._specs, leaves, strict=True)
        )

    def states(self, batch: Any) -> list[int]:
        """Run the step on a batch and return what each tensor holds."""
        counts = self._look(*tensors_of(batch)).numpy()
        states = [HIDDEN if _hides(tensor) else FINITE for tensor in self._tensors]
        for number, (below, above, nan) in zip(self._looked, counts, strict=True):
            states[number] = NAN if nan else INFINITE if below or above else FINITE
        for number, tensor in enumerate(self._tensors):
            if id(tensor) in self._captured:
                states[number] = _state_of(self._captured[id(tensor)], self._variables)
        return states

    def values(self, batch: Any, numbers: Sequence[int]) -> list[Any]:
        """Run the step on a batch and return some of its tensors as arrays."""
        run = self._function.prune(self._feeds, [self._tensors[number] for number in numbers])
        return [each.numpy() for each in run(*tensors_of(batch))]

    def labels(self, batch: Any) -> list[tuple[Any, int]]:
        """Return the class labels that losses are given, each with the number of classes.

        Without the losses themselves: on CPUs they raise where a label is none of the classes.
        """
        found = []
        for each in (each for each in self.operations if each.kind == _LABELS):
            logits, labels = each.inputs[:2]
            classes = self._tensors[logits].shape[-1]
            if classes is not None:
                found.append((self.values(batch, [labels])[0], int(classes)))
        return found

    def is_float(self, number: int) -> bool:
        """Whether a tensor holds floats."""
        return self._tensors[number].dtype in _FLOATS

    def variable(self, operation: Operation) -> Any:
        """Return the variable that an operation stands for."""
        return self._variables[operation.place][0]

    @contextlib.contextmanager
    def _attached(self, taken: list[Any], losses: list[Any]) -> Iterator[None]:
        """Have layers and loss mark what they do, and the optimizers take gradients only."""

        def noting(scale_loss: Callable[[Any], Any], is_dynamic: bool) -> Callable[[Any], Any]:
            def note_and_scale(loss: Any) -> Any:
                losses.append(loss)
                # A dynamic scale is lowered until it fits: it is no fault.
                return loss if is_dynamic else scale_loss(loss)

            return note_and_scale

        def keep(gradients: Any) -> None:
            for each in gradients:
                if each is not None:
                    taken.append(each.values if isinstance(each, tf.IndexedSlices) else each)

        def apply(gradients: Any, *_: Any, **__: Any) -> None:
            keep(gradients)

        def apply_gradients(pairs: Any, *_: Any, **__: Any) -> None:
            keep(gradient for gradient, _ in pairs)

        with contextlib.ExitStack() as stack:
            for optimizer in optimizers_of(self._model).values():
                is_dynamic = hasattr(optimizer, "dynamic_scale")
                scale_loss = noting(optimizer.scale_loss, is_dynamic)
                stack.enter_context(replaced_method(optimizer, "scale_loss", scale_loss))
                for each in wrappers_and_inner(optimizer):
                    stack.enter_context(replaced_method(each, "apply", apply))
                    stack.enter_context(replaced_method(each, "apply_gradients", apply_gradients))
            for place, layer in enumerate(self.names.layers):
                stack.enter_context(replaced_method(layer, "call", self.names.marked(place)))
            loss = in_scope(_LOSS, self._model.compute_loss)
            stack.enter_context(replaced_method(self._model, "compute_loss", loss))
            yield

    def _described(self, made: Sequence[Any], numbers: dict[int, int]) -> list[Operation]:
        feeds = {id(tensor): place for place, tensor in enumerate(self._feeds)}
        parts = _parts(self._structure)
        found: list[Operation] = []
        layers_of: dict[int, tuple[str | None, str | None]] = {}
        last_forward = max(
            (
                p
                for p, each in enumerate(made)
                if self.names.is_marked(each.name) and not _back(each)
            ),
            default=-1,
        )
        is_backward = False
        for place, operation in enumerate(made):
            is_backward = is_backward or _back(operation)
            phase = BACKWARD if is_backward else FORWARD
            inputs = tuple(numbers[id(tensor)] for tensor in operation.inputs)
            outputs = tuple(numbers[id(tensor)] for tensor in operation.outputs)
            layer, inside = self.names.of_operation(operation.name)
            if phase == FORWARD and (
                _LOSS in operation.name or (layer is None and place > last_forward)
            ):
                phase = LOSS
            if layer is None and phase == BACKWARD and _LOSS not in operation.name:
                # A sum of gradients has no name of its own.
                layer, inside = next((layers_of[t] for t in inputs if t in layers_of), (None, None))
            layers_of |= dict.fromkeys(outputs, (layer, inside))
            source, number = None, 0
            for tensor in operation.outputs:
                if id(tensor) in feeds:
                    number = feeds[id(tensor)]
                    source = parts[number]
                elif id(tensor) in self._captured:
                    number = _number_of(self._captured[id(tensor)], self._variables)
                    source = "variable" if number >= 0 else None
            found.append(
                Operation(
                    operation.type,
                    inputs,
                    outputs,
                    phase,
                    layer,
                    inside,
                    operation.outputs[0].dtype.name if operation.outputs else "",
                    source,
                    number,
                )
            )
        return _with_casts(found)


def _with_casts(operations: list[Operation]) -> list[Operation]:
    """Give what is done before a layer is called, such as a cast of its inputs, to that layer."""
    takers: dict[int, Operation] = {}
    found: list[Operation] = []
    for each in reversed(operations):
        if each.phase == FORWARD and each.layer is None and each.inputs:
            taker = next((takers[t] for t in each.outputs if t in takers), None)
            if taker is not None:
                each = dataclasses.replace(each, layer=taker.layer, inside=taker.inside)
        if each.phase == FORWARD and each.layer is not None:
            takers |= dict.fromkeys(each.inputs, each)
        found.append(each)
    return found[::-1]


def _back(operation: Any) -> bool:
    return _BACKWARD in operation.name


def tensors_of(batch: Any) -> list[Any]:
    """Return the tensors of a batch."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def _parts(batch: Any) -> list[str]:
    """Return what each tensor of a batch is."""
    triple = batch if isinstance(batch, tuple) else (batch,)
    return [name for name, part in zip(PARTS, triple, strict=False) for _ in tensors_of(part)]


def _by_handle(model: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the variables of a model, each with its handles, one for each replica."""
    found = {id(each): each for each in (*model.variables, *model.metrics_variables)}
    for layer in all_layers(model):
        found.update((id(each), each) for each in layer.variables)
    strategy = model.distribute_strategy
    return [
        (v, tuple(each.handle for each in strategy.experimental_local_results(resource(v))))
        for v in found.values()
    ]


def _number_of(captured: Any, variables: Sequence[tuple[Any, tuple[Any, ...]]]) -> int:
    for number, (_, handles) in enumerate(variables):
        if any(captured is handle for handle in handles):
            return number
    return -1


def _state_of(captured: Any, variables: Sequence[tuple[Any, tuple[Any, ...]]]) -> int:
    """Return what a tensor from outside the graph holds, or the variable behind it."""
    number = _number_of(captured, variables)
    value = captured if number < 0 else tf.convert_to_tensor(resource(variables[number][0]))
    if value.dtype not in _FLOATS:
        return FINITE
    numbers = np.asarray(tf.cast(value, tf.float32))
    return NAN if np.isnan(numbers).any() else INFINITE if np.isinf(numbers).any() else FINITE


def _hides(tensor: Any) -> bool:
    return tensor.dtype in (tf.variant, tf.resource)
