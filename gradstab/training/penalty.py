"""The base class of penalties on the whole model, and the forward pass that they read."""

from __future__ import annotations

import abc
import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from gradstab._coefficients import Coefficient, HasCoefficients
from gradstab._layers import forward_scope
from gradstab._replicas import num_replicas, sum_over_replicas


class ForwardPass:
    """One batch, which a penalty may pass through the model again.

    Changes made by such a pass (BatchNorm's statistics, random seeds, metrics) are dropped, since
    the step itself has made them already. The pass runs as in training, with its own dropout mask.

    Under a strategy there is one for each replica, with its share of the batch.

    Attributes:
        model: The model.
        x: The inputs: a structure of tensors with examples along the first axis.
        y: The targets.
        sample_weight: The weights of the examples, or `None`.
        batch_size: Number of examples, an integer tensor.
    """

    def __init__(
        self, model: Any, x: Any, y: Any, sample_weight: Any, compute_loss: Callable[..., Any]
    ) -> None:
        self.model = model
        self.x = keras.tree.map_structure(
            lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), x
        )
        self.y = y
        self.sample_weight = sample_weight
        self.batch_size = tf.shape(self.inputs()[0])[0]
        self._compute_loss = compute_loss
        parameters = inspect.signature(model.call).parameters.values()
        takes = any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters)
        self._arguments = {"training": True} if takes else {}

    def inputs(self) -> list[Any]:
        """Return the tensors in `x` as a list."""
        return [leaf for leaf in keras.tree.flatten(self.x) if leaf is not None]

    def float_inputs(self, wanted_by: str) -> list[Any]:
        """Return the tensors in `x` if one can differentiate with respect to them.

        Raises:
            TypeError: If one can't.
        """
        for leaf in self.inputs():
            if not leaf.dtype.is_floating:
                raise TypeError(
                    f"{wanted_by} differentiates with respect to the inputs, which must be of a "
                    f"float dtype. Received: inputs of dtype {leaf.dtype.name}. Convert them, or "
                    "give the model what its embedding returns"
                )
        return self.inputs()

    def outputs(self) -> Any:
        """Return the model's outputs, one (examples, entries) tensor in float32."""
        with keras.StatelessScope():
            outputs = keras.tree.flatten(self.model(self.x, **self._arguments))
        rows = []
        for output in outputs:
            sizes = output.shape[1:]
            size = sizes.num_elements() if sizes.is_fully_defined() else None
            row = tf.reshape(tf.cast(output, tf.float32), (self.batch_size, size or -1))
            rows.append(tf.ensure_shape(row, (None, size)))
        return tf.concat(rows, axis=1)

    def summed_loss(self) -> Any:
        """Return the loss of this share of the batch times its number of examples.

        For a loss that is a mean over examples, as with Keras' default reduction, this is the sum
        of theirs: half precision can hold its gradients, and the shares of replicas add up.
        """
        with forward_scope(self.model):
            outputs = self.model(self.x, **self._arguments)
            loss = self._compute_loss(self.x, self.y, outputs, self.sample_weight)
        # In a strategy's replica Keras has divided it by the number of replicas.
        return tf.cast(loss, tf.float32) * tf.cast(self.batch_size, tf.float32) * num_replicas()

    def place(self) -> tuple[Any, Any]:
        """Return where this share begins in the batch of all replicas, and how long that is."""
        count = num_replicas()
        if count == 1:
            return tf.constant(0), self.batch_size
        (total,) = sum_over_replicas([self.batch_size])
        context = tf.distribute.get_replica_context()
        return total * context.replica_id_in_sync_group // count, total


def lengths(values: Any) -> Any:
    """Return the norms of vectors along the last axis, with a gradient of 0 where one is 0."""
    squares = tf.reduce_sum(tf.square(values), axis=-1)
    return root(squares)


def root(squares: Any) -> Any:
    """Return the square root, with a gradient of 0 where it is 0."""
    positive = squares > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


class Penalty(HasCoefficients, abc.ABC):
    """A penalty on the whole model: `coefficient` times a measure computed in each step.

    Pass a list of them as `gradstab.training.train(..., penalties=[...])`, or call
    `gradstab.training.set_penalties(model, [...])` before `fit`. Each is added to the training loss
    and shown in the logs, times its coefficient, under its class's name (`gradient_penalty`).

    For your own penalty, write a subclass with a method `measure`. Every argument of `__init__` is
    an attribute of the same name.

    Args:
        coefficient: Non-negative and finite, in units of loss. Setting the attribute during a run
            takes effect in the compiled step.
    """

    coefficient = Coefficient()

    def __init__(self, coefficient: float = 0.01) -> None:
        self.coefficient = coefficient

    @abc.abstractmethod
    def measure(self, forward: ForwardPass) -> Any:
        """Return the measure, a float32 scalar that can be differentiated in the weights.

        Under a strategy every replica returns the measure for its share of the batch. Their mean,
        weighted by the sizes of the shares, counts. So return a mean over examples, or a value that
        is the same on all replicas.
        """

    def check(self, model: Any) -> None:
        """Raise `ValueError` if a model does not suit the penalty. By default every model does."""

    @property
    def log_name(self) -> str:
        """The key under which it is logged."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Penalty:
        """Make a penalty from what `get_config` returned."""
        return cls(**config)
