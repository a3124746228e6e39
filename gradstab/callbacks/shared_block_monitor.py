"""Reads the gradient norm of each use of a shared block during `fit`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, final

import keras

from gradstab._layers import layers_in_order
from gradstab._validation import check_int
from gradstab.callbacks.closing import Closing
from gradstab.layers.shared import SharedBlock


@final
class SharedBlockMonitor(keras.callbacks.Callback):
    """Keeps the gradient norm of each use of the `SharedBlock` layers in a model.

    The layers store the norms inside the compiled step, divided by the loss scale if there is one.
    The callback reads them at the first step and at every n-th; with `steps_per_execution` above 1,
    at the end of the execution. The epoch's logs get the latest, as `NAME/use_1` to `NAME/use_T`,
    the norm over all of the block's variables.

    Args:
        every_n_steps: Steps between two readings.

    Attributes:
        history: For each reading, a pair of the step, counted from 1 over the run, and a dictionary
            from the layer's name to a `gradstab.layers.shared.UseGradients`.

    Raises:
        TypeError: If `every_n_steps` is not an integer.
        ValueError: If it is below 1; when training begins, if the model has no `SharedBlock` that
            watches.

    Example:
    ```python
    monitor = gradstab.callbacks.SharedBlockMonitor(every_n_steps=50)
    model.fit(x, y, callbacks=[monitor])
    step, layers = monitor.history[-1]
    layers["shared_block"].use_norm  # one number for each use
    ```
    """

    # `training.train` asks: this callback need not be called after every single step.
    needs_every_batch = False

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        self.every_n_steps = check_int("every_n_steps", every_n_steps)
        self.history: list[tuple[int, dict[str, Any]]] = []
        self._layers: list[Any] = []
        self._steps = 0
        self._due = 1
        self._last_batch = -1
        self._closing: Closing | None = None

    def set_model(self, model: Any) -> None:
        """Find the layers, and tell them whose loss scale it is, before a step is traced."""
        super().set_model(model)
        self._layers = [
            layer
            for layer in layers_in_order(model)
            if isinstance(layer, SharedBlock) and layer.watch
        ]
        optimizer = getattr(model, "optimizer", None)
        changed = [layer.follow(optimizer) for layer in self._layers]  # all of them, each time
        if any(changed):
            # Steps that were traced before divide by another optimizer's scale.
            model.train_function = None

    def on_train_begin(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Begin anew, and refuse a model in which there is nothing to see."""
        self.history, self._steps, self._due = [], 0, 1
        if not self._layers:
            raise ValueError(
                "`model` must hold a `gradstab.layers.SharedBlock` with `watch=True`. Received: "
                f"model={self.model.name!r}"
            )
        self._closing = Closing.join(self.model)

    def on_epoch_begin(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Count batches anew."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Look, if it is time."""
        self._steps += max(1, batch - self._last_batch)
        self._last_batch = batch
        if self._steps >= self._due:
            self._due = self._steps - self._steps % self.every_n_steps + self.every_n_steps
            found = {layer.name: layer.use_gradients() for layer in self._layers}
            self.history.append((self._steps, found))

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        """Put the latest norms into the logs."""
        if logs is not None and self.history:
            for name, gradients in self.history[-1][1].items():
                for use, value in enumerate(gradients.use_norm, start=1):
                    logs[f"{name}/use_{use}"] = float(value)

    def on_train_end(self, logs: MutableMapping[str, Any] | None = None) -> None:
        """Say in a line what the run came to."""
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.leave(self.params)
