"""A block that is used several times in a row, and what each use adds to its gradient."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import keras
import numpy as np
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_int
from gradstab.functional.norms import norms, widen
from gradstab.layers._replicas import sum_over_replicas
from gradstab.layers._wrapped import as_layer, build_layer, call_layer, output_shape

Array = np.ndarray[Any, Any]


@final
@dataclasses.dataclass(frozen=True)
class UseGradients:
    """Norms of a shared block's gradient in the last backward pass, by use.

    Attributes:
        paths: Paths of the block's trainable variables.
        by_use: Norm of what each use adds to each variable's gradient, float32 of shape
            `(num_uses, len(paths))`; the first row is the use next to the input.
        total: Norm of the sum over the uses, which is each variable's gradient, `(len(paths),)`.
    """

    paths: tuple[str, ...]
    by_use: Array
    total: Array

    @property
    def norms(self) -> Array:
        """Norm over all variables for each use, of shape `(num_uses,)`."""
        squares = np.square(self.by_use.astype("float64"))
        return np.asarray(np.sqrt(squares.sum(axis=1)))

    @property
    def global_norm(self) -> float:
        """Norm over all variables of the sum over the uses: the block's gradient."""
        return float(np.sqrt(np.square(self.total.astype("float64")).sum()))


class _Record:
    """What a backward pass leaves behind, in variables that are not weights and are not saved."""

    def __init__(self) -> None:
        self.paths: tuple[str, ...] = ()
        self.rows: list[Any] = []
        self.total: Any = None
        self.optimizer: Any = None

    def make(self, num_uses: int, variables: list[Any]) -> None:
        self.paths = tuple(variable.path for variable in variables)
        *self.rows, self.total = [
            keras.Variable(
                "zeros",
                shape=(len(variables),),
                dtype="float32",
                trainable=False,
                # Every replica writes the norm of the sum over all, so any one tells it.
                synchronization="on_read",
                aggregation="only_first_replica",
                name=f"use_gradients_{place}",
            )
            for place in range(num_uses + 1)
        ]

    def keep(self, row: Any, gradients: list[Any]) -> None:
        summed = sum_over_replicas([widen(gradient) for gradient in gradients])
        found = norms(summed)
        row.assign(ops.cast(found, "float32") / self._loss_scale())

    def _loss_scale(self) -> Any:
        """Return what the optimizer's `scale_loss` multiplies by, which is not called for it.

        Others listen to that method, and would take what it is given for the loss.
        """
        optimizer = self.optimizer
        scale = 1.0
        if hasattr(optimizer, "initial_scale"):
            scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
        # A wrapper hands on that of the optimizer inside; Keras' own multiplies once.
        factor = getattr(optimizer, "loss_scale_factor", None)
        return ops.cast(scale, "float32") * (1.0 if factor is None else factor)


@final
@register
class SharedBlock(keras.layers.Layer):
    r"""Applies one block several times in a row, and tells what each use adds to its gradient.

    Use it to share weights over depth: a deep net with the weights of a shallow one. Its gradient
    is a sum, and the sum hides which use it comes from. Where the first uses add next to nothing
    the gradient vanishes on its way back through the block; where they add most of it, it explodes;
    where the sum is much smaller than its parts, the uses pull against each other.

    $$x_k = f(x_{k-1}; W), \quad k = 1 \ldots K, \qquad
    \frac{\partial L}{\partial W} = \sum_{k=1}^{K} \frac{\partial L}{\partial W^{(k)}}$$

    where $W^{(k)}$ stands for the weights in the $k$-th use alone. The norms of all $K$ terms and
    of the sum are taken from the backward pass of the training step itself, in `fit` and in loops
    of your own, in float32, in a graph and under XLA. It needs no second pass; each norm reads a
    gradient once more. `use_gradients` returns them, and `gradstab.callbacks.UseGradientMonitor`
    puts them into the logs of `fit`.

    The norms are those of the last backward pass: with gradient accumulation the last micro-batch,
    with `steps_per_execution` the last step. Under a `MirroredStrategy` the terms are summed over
    the replicas first, which is one more reduction for each use. Under a `LossScaleOptimizer` call
    `follow(optimizer)` before the first step (the callback does), so that they are divided by the
    scale.

    Args:
        block: A layer, a model with one input, or a list of layers. Its output must have the shape
            of its input.
        num_uses: How often it is applied, at least 1.
        record_gradients: Whether to keep the norms. Without, this is a plain loop.
        **kwargs: As for every Keras layer: `name`, `dtype`, `trainable`.

    Raises:
        TypeError: If `block` is not a layer, or `num_uses` not an integer.
        ValueError: If `num_uses` is below 1, or the block changes the shape of its input.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.layers import SharedBlock
        >>> shared = SharedBlock(keras.layers.Dense(4, use_bias=False), num_uses=3)
        >>> model = keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((8, 4)), np.ones(8), verbose=0)
        >>> gradients = shared.use_gradients()
        >>> gradients.norms.shape, [path.split("/")[-1] for path in gradients.paths]
        ((3,), ['kernel'])
        >>> bool(gradients.global_norm <= gradients.norms.sum())
        True

    References:
        - Dehghani, Gouws, Vinyals, Uszkoreit and Kaiser, 2018, Universal transformers.
        - Lan et al., 2019, ALBERT: a lite BERT for self-supervised learning of language
          representations.
    """

    def __init__(
        self, block: Any, num_uses: int, record_gradients: bool = True, **kwargs: Any
    ) -> None:
        # The block casts by itself; here weights must be read in the dtype in which they are kept.
        super().__init__(**{"autocast": False, **kwargs})
        self.block = as_layer("block", block)
        self.num_uses = check_int("num_uses", num_uses)
        self.record_gradients = bool(record_gradients)
        self.supports_masking = True
        self._record = _Record()

    def build(self, input_shape: Any) -> None:
        """Build the block, and make the variables for the norms."""
        build_layer(self.block, input_shape)
        shape = output_shape(self.block, input_shape)
        if shape != tuple(input_shape):
            raise ValueError(
                "`block` must put out the shape that it takes in, to be used again. Received: "
                f"{tuple(input_shape)} in, {shape} out"
            )
        if self.record_gradients and self.block.trainable_variables:
            self._record.make(self.num_uses, self.block.trainable_variables)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the block of the block of … the inputs."""
        x = inputs
        # Weights may have been frozen or thawed since.
        weights = list(self.block.trainable_variables)
        same = tuple(weight.path for weight in weights) == self._record.paths
        if not training or not weights or not self.record_gradients or not same:
            for _ in range(self.num_uses):
                x = call_layer(self.block, x, training, mask)
            return x
        tapped = _tap(self._record, self._record.total, [w.value for w in weights])
        for row in self._record.rows:
            values = _tap(self._record, row, tapped)
            others = [v for v in self.block.variables if all(v is not w for w in weights)]
            state = [*zip(weights, values, strict=True), *((v, v.value) for v in others)]
            with keras.StatelessScope(state, collect_losses=True) as scope:
                x = call_layer(self.block, x, training, mask)
            for loss in scope.losses:
                self.add_loss(loss)
            for variable, (_, before) in zip(others, state[len(weights) :], strict=True):
                after = scope.get_current_value(variable)
                if after is not None and after is not before:
                    variable.assign(after)
        return x

    def use_gradients(self) -> UseGradients:
        """Return the norms of the last backward pass, zeros before the first.

        Raises:
            ValueError: If nothing is recorded: the layer is not built, has no trainable weights, or
                was made with `record_gradients=False`.
        """
        record = self._record
        if record.total is None:
            raise ValueError(
                f"{self.name!r} must be built, have trainable weights and record_gradients=True to "
                f"tell its gradients. Received: built={self.built}, "
                f"record_gradients={self.record_gradients}"
            )
        read = keras.ops.convert_to_numpy
        by_use = np.stack([read(row) for row in record.rows])
        return UseGradients(record.paths, by_use, read(record.total))

    def follow(self, optimizer: Any) -> bool:
        """Divide norms by the loss scale of an optimizer that has one, from the next trace on.

        Args:
            optimizer: The one whose `scale_loss` the loss goes through, or `None`.

        Returns:
            Whether that changed anything: steps that were traced before have to be traced again.
        """
        changed = optimizer is not self._record.optimizer
        self._record.optimizer = optimizer
        return changed

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape of the inputs."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer, its block included."""
        return {
            **super().get_config(),
            "block": keras.saving.serialize_keras_object(self.block),
            "num_uses": self.num_uses,
            "record_gradients": self.record_gradients,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SharedBlock:
        """Rebuild the layer and its block."""
        config = dict(config)
        if isinstance(config["block"], dict):
            config["block"] = keras.saving.deserialize_keras_object(config["block"])
        return cls(**config)


def _tap(record: _Record, row: Any, values: list[Any]) -> list[Any]:
    """Return the values as they are, and have the norms of their gradients kept on the way back."""

    def identity_and_keep(*tensors: Any) -> Any:
        def keep(*upstream: Any, **_: Any) -> Any:
            gradients = [ops.convert_to_tensor(each) for each in upstream]
            record.keep(row, gradients)
            return gradients if len(gradients) > 1 else gradients[0]

        results = [ops.add(tensor, ops.zeros((), tensor.dtype)) for tensor in tensors]
        return (results if len(results) > 1 else results[0]), keep

    results = ops.custom_gradient(identity_and_keep)(*values)
    return list(results) if isinstance(results, list | tuple) else [results]
