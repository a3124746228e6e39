"""What the layers of a model put out in a step, noted while the forward pass is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import keras
import tensorflow as tf
from keras import ops

from gradstab._layers import layers_in_order
from gradstab._replicas import replica_index
from gradstab.functional.norms import widen
from gradstab.keras_hooks.substitute import replaced_method

KINDS: Final = ("mean", "deviation", "saturated", "dead")
# Between which values an activation lies; `None` where it has no bound on that side.
_BOUNDS: Final[dict[str, tuple[float | None, float | None]]] = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "sparse_sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "soft_sign": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu6": (None, 6.0),
}
# Share of the way between the bounds within which an output counts as saturated.
_CLOSE: Final = 0.01


class Activations:
    """Statistics of the outputs of a model's layers in one forward pass of the training step.

    For each layer with weights or an activation: mean and deviation of its output; the share of
    entries within 1 % of a bound of its activation (saturated; NaN where it has no bounds); and the
    share of units that are exactly zero on the whole batch (dead). A layer used several times
    counts the mean over its uses. Under a strategy the first replica's share of the batch counts. A
    layer inside a loop or function of its own can't be seen from the step, and gives NaN; of the
    cell of a recurrent layer its first time step is seen, which Keras runs outside of the loop.

    Args:
        model: A built model.

    Attributes:
        layers: Names (paths) of the layers, in the order of depth.
    """

    def __init__(self, model: Any) -> None:
        self._layers = [layer for layer in layers_in_order(model) if _is_telling(layer)]
        self.layers = tuple(layer.path or layer.name for layer in self._layers)
        self._graphs: dict[int, Any] = {}
        self._outputs: dict[tuple[int, int], list[Any]] = {}
        self._paused = False

    def begin(self) -> None:
        """Forget what was noted: a new step begins, here and in this replica."""
        replica = replica_index()
        self._graphs[replica] = _graph()
        for place in range(len(self._layers)):
            self._outputs[replica, place] = []

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing in this block: its forward pass is not the step's."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Note what layers put out in this block, where steps are traced or run eagerly."""
        with contextlib.ExitStack() as stack:
            for place, layer in enumerate(self._layers):
                stack.enter_context(replaced_method(layer, "call", self._noting(place, layer.call)))
            yield

    def _noting(self, place: int, call: Any) -> Any:
        def call_and_note(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            replica = replica_index()
            # In another graph it is another pass, or one inside a loop.
            if not self._paused and self._graphs.get(replica, 0) is _graph():
                outputs = [each for each in keras.tree.flatten(result) if _is_float(each)]
                self._outputs[replica, place] += outputs[:1]
            return result

        return call_and_note

    def statistics(self) -> Any:
        """Return four numbers for each layer, in the order of `KINDS`, in one float32 vector."""
        replica = replica_index()
        rows = []
        for place, layer in enumerate(self._layers):
            outputs = self._outputs.get((replica, place), [])
            seen = [_statistics(layer, output) for output in outputs if 0 not in output.shape]
            rows.append(sum(seen) / len(seen) if seen else ops.full((len(KINDS),), float("nan")))
        return ops.concatenate(rows) if rows else ops.zeros((0,), "float32")


def _statistics(layer: Any, output: Any) -> Any:
    values = ops.cast(widen(output), "float32")
    axis = -1
    if getattr(layer, "data_format", None) == "channels_first" and len(values.shape) > 2:
        axis = 1
    others = tuple(place for place in range(len(values.shape)) if place != axis % len(values.shape))
    is_dead = ops.all(values == 0, axis=others)
    saturated: Any = float("nan")
    low, high = _bounds(layer)
    if low is not None or high is not None:
        margin = _CLOSE * ((high or 0.0) - (low or 0.0))
        close = ops.zeros_like(values, dtype="bool")
        if low is not None:
            close = ops.logical_or(close, values < low + margin)
        if high is not None:
            close = ops.logical_or(close, values > high - margin)
        saturated = ops.mean(ops.cast(close, "float32"))
    dead = ops.mean(ops.cast(is_dead, "float32"))
    return ops.stack([ops.mean(values), ops.std(values), saturated, dead])


def _bounds(layer: Any) -> tuple[float | None, float | None]:
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return _BOUNDS.get(name, (None, None))


def _is_telling(layer: Any) -> bool:
    """Whether what a layer puts out is made by weights or an activation of its own."""
    if isinstance(layer, keras.Model):
        return False
    activations = (
        keras.layers.ReLU,
        keras.layers.LeakyReLU,
        keras.layers.PReLU,
        keras.layers.ELU,
        keras.layers.Softmax,
    )
    has_activation = callable(getattr(layer, "activation", None)) or isinstance(layer, activations)
    return bool(layer.weights) or has_activation


def _is_float(value: Any) -> bool:
    return tf.is_tensor(value) and value.dtype.is_floating and value.shape.rank not in (None, 0)


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
