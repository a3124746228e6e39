"""Shows what each use of a shared block adds to its gradient, during `fit`."""

from __future__ import annotations

from typing import Any, final

import keras
import numpy as np

from gradstab._layers import layers_in_order
from gradstab._validation import check_int
from gradstab.layers.shared import SharedBlock, UseGradients


@final
class UseGradientMonitor(keras.callbacks.Callback):
    """Reads the gradients of each `SharedBlock` in a model, use by use, every n-th step.

    A shared weight's gradient is the sum over its uses. This shows the parts: they go into the logs
    of each epoch, so that `History`, `CSVLogger` and TensorBoard, and whichever callback comes
    after this one, have them, and every sample is kept in `history`. The norms are taken in the
    compiled step anyway; a sample costs their way to the host. It needs no gradstab optimizer, sees
    any number of steps per execution as one, and divides by the loss scale where there is one.

    Logs have for each block, under its name, the mean over the epoch's samples: `<name>_use_1` …
    `<name>_use_K` for the norm that each use adds, and `<name>_grad_norm` for the norm of their
    sum.

    Args:
        every_n_steps: How many training steps lie between two samples; the first step is sampled.

    Attributes:
        history: For each block's path, a list of `(step, UseGradients)`, steps counted from 1 over
            all epochs that this callback has seen.

    Raises:
        TypeError: If `every_n_steps` is not an integer.
        ValueError: If it is below 1, or if training begins with a model that has no `SharedBlock`
            that records its gradients.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.callbacks import UseGradientMonitor
        >>> from gradstab.layers import SharedBlock
        >>> block = SharedBlock(keras.layers.Dense(4, "tanh"), num_uses=3, name="depth")
        >>> model = keras.Sequential([keras.Input((4,)), block, keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> monitor = UseGradientMonitor(every_n_steps=2)
        >>> _ = model.fit(np.ones((32, 4)), np.ones(32), batch_size=8, verbose=0,
        ...               callbacks=[monitor])
        >>> sorted(key for key in model.history.history if key.startswith("depth"))
        ['depth_grad_norm', 'depth_use_1', 'depth_use_2', 'depth_use_3']
        >>> [step for step, _ in monitor.history[block.path]]
        [1, 2, 4]
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        self.every_n_steps = check_int("every_n_steps", every_n_steps)
        self.history: dict[str, list[tuple[int, UseGradients]]] = {}
        self._blocks: list[SharedBlock] = []
        self._step = self._before_epoch = 0
        self._sampled = -1
        self._epoch_from: dict[str, int] = {}

    def set_model(self, model: Any) -> None:
        """Find the shared blocks, and tell them of the loss scale before a step is traced."""
        super().set_model(model)
        self._blocks = [
            layer
            for layer in layers_in_order(model)
            if isinstance(layer, SharedBlock) and layer.record_gradients
        ]
        followed = [block.follow(getattr(model, "optimizer", None)) for block in self._blocks]
        if any(followed) and getattr(model, "train_function", None) is not None:
            model.train_function = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse a model in which there is nothing to see."""
        if not self._blocks:
            raise ValueError(
                "The model must have a `gradstab.layers.SharedBlock` with record_gradients=True. "
                f"Received: model {self.model.name!r} without one"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin the epoch's means."""
        self._before_epoch = self._step
        self._epoch_from = {path: len(samples) for path, samples in self.history.items()}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Take a sample where one is due."""
        self._step = self._before_epoch + batch + 1
        due = self._step // self.every_n_steps
        if self._sampled < 0 or due > self._sampled:
            self._sampled = due
            for block in self._blocks:
                samples = self.history.setdefault(block.path or block.name, [])
                samples.append((self._step, block.use_gradients()))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the epoch's means to its logs."""
        if logs is None:
            return
        for block in self._blocks:
            path = block.path or block.name
            samples = self.history.get(path, [])[self._epoch_from.get(path, 0) :]
            if samples:
                means = np.mean([sample.norms for _, sample in samples], axis=0)
                for place, mean in enumerate(means, start=1):
                    logs[f"{block.name}_use_{place}"] = float(mean)
                total = np.mean([sample.global_norm for _, sample in samples])
                logs[f"{block.name}_grad_norm"] = float(total)
