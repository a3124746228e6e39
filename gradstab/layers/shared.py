"""One block used several times in a row, with the gradient norm of each use."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, final

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from gradstab._replicas import sum_over_replicas
from gradstab._serialization import register
from gradstab._validation import check_int
from gradstab.functional.norms import norms, widen
from gradstab.layers._backward import RawValues
from gradstab.layers._inside import build_inside


@dataclasses.dataclass(frozen=True)
class UseGradients:
    """Gradient norms of a shared block's weights, use by use, in one backward pass.

    Attributes:
        paths: Paths of the block's trainable variables.
        norms: ‖g_t‖ of each use t and variable, shape (uses, variables), float32.
        total: ‖Σ_t g_t‖ of each variable, shape (variables,): the gradient that the optimizer gets.
    """

    paths: tuple[str, ...]
    norms: npt.NDArray[np.float32]
    total: npt.NDArray[np.float32]

    @property
    def use_norm(self) -> npt.NDArray[np.float32]:
        """Norm of each use's gradient over all variables, shape (uses,)."""
        combined: npt.NDArray[np.float32] = np.linalg.norm(self.norms, axis=1)
        return combined

    @property
    def agreement(self) -> float:
        """‖Σ g_t‖ / Σ ‖g_t‖: 1 where all uses pull one way, near 0 where they cancel out."""
        return float(np.linalg.norm(self.total) / self.use_norm.sum())


@final
@register
class SharedBlock(keras.layers.Layer):
    r"""Calls one block several times in a row, and stores the gradient norm of each use.

    Weight sharing over depth (universal transformers, recurrent residual nets): a net `num_uses`
    blocks deep with the weights of one, $h_t = F(h_{t-1}; W)$. The gradient of a shared weight is
    the sum $\sum_t g_t$ over its uses, which hides exploding or vanishing ones. So the block stores
    $\|g_t\|$ of each use and variable, and the norm of the sum, in the backward pass of every
    training step, in float32. `use_gradients()` reads them; `gradstab.callbacks.SharedBlockMonitor`
    does so during `fit`.

    The norms are those of the last backward pass; under gradient accumulation, of the last
    micro-batch. Under a strategy each term is first summed over the replicas, one more reduction
    per use. Under a loss scale the norms are those of the scaled loss, unless `follow(optimizer)`
    was called before the step is traced; the monitor calls it. The gradient of an `Embedding`
    inside the block becomes dense.

    Args:
        block: The layer or model to call, or a list of layers to call in turn (which becomes a
            `keras.Sequential`); its output has the shape of its input.
        num_uses: T, the number of calls.
        watch: Whether to store gradient norms; if false, it is the plain loop.
        **kwargs: `name`, `dtype`, `trainable`, as for any layer.

    Raises:
        TypeError: If `block` is not a layer or list of layers, or `num_uses` not an integer.
        ValueError: If `num_uses` is below 1, or if the block changes the shape of its input.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.layers import ScaledResidual, SharedBlock
        >>> block = ScaledResidual([keras.layers.Dense(4, "tanh"), keras.layers.Dense(4)])
        >>> shared = SharedBlock(block, num_uses=6)
        >>> model = keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
        >>> shared.use_gradients().norms.shape  # six uses, five variables
        (6, 5)

    References:
        - Dehghani, Gouws, Vinyals, Uszkoreit and Kaiser, 2019, Universal transformers.
        - Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent networks.
    """

    def __init__(self, block: Any, num_uses: int, watch: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers = block if isinstance(block, list | tuple) else [block]
        if not layers or not all(isinstance(layer, keras.Layer) for layer in layers):
            raise TypeError(
                f"`block` must be a keras.Layer or a list of them. Received: block={block!r}"
            )
        self.block = block if isinstance(block, keras.Layer) else keras.Sequential(list(block))
        self.num_uses = check_int("num_uses", num_uses)
        self.watch = bool(watch)
        self.supports_masking = True
        self._notes = _Notes()

    def build(self, input_shape: Any) -> None:
        """Build the block, and make room for the norms, outside of the model's weights."""
        output_shape = build_inside(self.block, input_shape)
        if output_shape != tuple(input_shape):
            raise ValueError(
                "`block` must give the shape of its input, which it is called on again. Received: "
                f"{output_shape} for an input of shape {tuple(input_shape)}"
            )
        if self.watch:
            self._notes.make_room(self.num_uses, self.block.trainable_variables)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return F(… F(inputs))."""
        takes_mask = mask is not None and _takes(self.block, "mask")
        arguments = {"mask": mask} if takes_mask else {}
        if training is not None and _takes(self.block, "training"):
            arguments["training"] = training
        variables = self.block.trainable_variables
        if not (training and self._notes.fit(self.num_uses, variables)):
            for _ in range(self.num_uses):
                inputs = self.block(inputs, **arguments)
            return inputs
        # The sum of the uses arrives where all weights pass first, each addend where one use's do.
        weights = self._notes.passing(self._notes.raw.of(variables, inputs), -1)
        for use in range(self.num_uses):
            inputs = self._use(inputs, self._notes.passing(weights, use), arguments)
        return inputs

    def use_gradients(self) -> UseGradients:
        """Read the norms of the last backward pass: one transfer from the device.

        Raises:
            RuntimeError: If the block does not watch or has not been trained.
        """
        if not self._notes.rows:
            raise RuntimeError(
                f"{self.name!r} notes no gradients: it needs `watch=True`, and to be built"
            )
        values = np.stack([ops.convert_to_numpy(row) for row in self._notes.rows])
        if np.isnan(values).all():
            raise RuntimeError(f"{self.name!r} has seen no backward pass with `training=True` yet")
        return UseGradients(self._notes.paths, values[:-1], values[-1])

    def follow(self, optimizer: Any) -> bool:
        """Divide norms by the loss scale of an optimizer, in steps that are traced from now on.

        Args:
            optimizer: The one whose `scale_loss` the loss goes through, or None.

        Returns:
            Whether it was another one before.
        """
        changed = optimizer is not self._notes.optimizer
        self._notes.optimizer = optimizer
        return changed

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer, the block included."""
        return {
            **super().get_config(),
            "block": keras.saving.serialize_keras_object(self.block),
            "num_uses": self.num_uses,
            "watch": self.watch,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SharedBlock:
        """Rebuild the layer and its block."""
        block = keras.saving.deserialize_keras_object(config["block"])
        return super().from_config({**config, "block": block})

    def _use(self, x: Any, weights: list[Any], arguments: dict[str, Any]) -> Any:
        """Call the block with other tensors in place of its trainable variables."""
        mapping = list(zip(self.block.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = self.block(x, **arguments)
        for loss in scope.losses:
            self.add_loss(loss)
        # What a forward pass changes, BatchNorm's statistics and random seeds, went to the scope.
        for variable in self.block.variables:
            if not variable.trainable or not self.block.trainable:
                value = scope.get_current_value(variable)
                if value is not None:
                    variable.assign(value)
        return outputs


@final
class _Notes:
    """Room for norms that belongs to no layer, so that it is neither saved nor counted."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.paths: tuple[str, ...] = ()
        self.raw = RawValues()
        self.optimizer: Any = None

    def make_room(self, num_uses: int, variables: list[Any]) -> None:
        self.paths = tuple(variable.path for variable in variables)
        self.rows = [
            keras.Variable(
                np.full(len(variables), np.nan),
                dtype="float32",
                trainable=False,
                # Each replica writes down the norm of the sum over all: any one of them tells it.
                synchronization="on_read",
                aggregation="only_first_replica",
                name=f"use_{use + 1}" if use < num_uses else "sum_of_uses",
            )
            for use in range(num_uses + 1 if variables else 0)
        ]

    def fit(self, num_uses: int, variables: list[Any]) -> bool:
        """Whether there is a row for each use, and a column for each variable still trained."""
        paths = tuple(variable.path for variable in variables)
        return len(self.rows) == num_uses + 1 and paths == self.paths

    def passing(self, weights: list[Any], row: int) -> list[Any]:
        """Return the weights as they are; their gradients' norms go to a row on the way back."""
        target = self.rows[row]

        @ops.custom_gradient
        def pass_on(*values: Any) -> tuple[Any, Any]:
            def note(*arriving: Any, upstream: Any = None) -> Any:
                gradients = arriving if upstream is None else upstream
                gradients = [ops.convert_to_tensor(gradient) for gradient in gradients]
                found = norms(sum_over_replicas([widen(gradient) for gradient in gradients]))
                target.assign(ops.cast(found, "float32") / self._loss_scale())
                return tuple(gradients)

            return tuple(ops.copy(value) for value in values), note

        return list(pass_on(*weights))

    def _loss_scale(self) -> Any:
        """Return the factor of `optimizer.scale_loss`, which others listen to and so is not called.

        It is that of this very step: the optimizer changes it after the backward pass.
        """
        if not hasattr(self.optimizer, "initial_scale"):
            factor = getattr(self.optimizer, "loss_scale_factor", None)
            return 1.0 if factor is None else float(factor)
        # As long as it is not built, Keras multiplies by the first scale.
        built = self.optimizer.built
        scale = self.optimizer.dynamic_scale if built else self.optimizer.initial_scale
        return ops.cast(scale, "float32")


def _takes(layer: Any, argument: str) -> bool:
    return argument in inspect.signature(layer.call).parameters
