"""What is measured now and then, inside the compiled step: a closer look at every n-th step.

What a step needs anyway is recorded at every step (`telemetry`). All else reads weights, gradients
or updates once more, which would cost a small net a fifth of its step; on every fiftieth step it
costs next to nothing, since the branch of the graph that does it is not entered on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from gradstab._variables import resource, value_of
from gradstab.functional.norms import combine_norms
from gradstab.functional.statistics import histogram, statistics_of_step
from gradstab.optimizers.compiled.branches import values_if
from gradstab.optimizers.compiled.values import write_row
from gradstab.optimizers.telemetry.activations import Activations
from gradstab.optimizers.telemetry.samples import Layout, Samples
from gradstab.transforms.measured import Measured

# Memory for the samples that wait to be read. They are not saved with the optimizer.
_BYTES: Final = 900_000
_MOST_SAMPLES: Final = 64


class Sampler:
    """Takes samples of steps and keeps them until they are read.

    It samples the first step after `begin`, and each whose number is a multiple of `every_n_steps`,
    skipped steps too. Its variables belong to no optimizer and are not saved.

    Args:
        every_n_steps: Steps between two samples.
        bins: Bins of the histogram of each gradient; 0 for none.
        probe: Computes the loss on a probe batch in the state of the model as it is.
        activations: What was noted of the layers' outputs in this step, or `None`.
    """

    def __init__(
        self,
        every_n_steps: int,
        *,
        bins: int = 0,
        probe: Callable[[], Any] | None = None,
        activations: Activations | None = None,
    ) -> None:
        self.every_n_steps = every_n_steps
        self._bins = bins
        self._probe = probe
        self._activations = activations
        self._first = 1
        self._layout = Layout(0, 0, 0)
        self._variables: dict[str, Any] = {}

    @property
    def variables(self) -> list[Any]:
        """The variables that samples wait in; none before they are made."""
        return list(self._variables.values())

    @property
    def capacity(self) -> int:
        """Samples that can wait to be read; 0 before it is known."""
        return int(self._variables["steps"].shape[0]) if self._variables else 0

    @property
    def built(self) -> bool:
        """Whether the variables are there."""
        return bool(self._variables)

    def build(self, num_variables: int, strategy: Any) -> None:
        """Make the variables. Calling it again changes nothing.

        Args:
            num_variables: How many variables are trained.
            strategy: The strategy of the model.
        """
        if self._variables:
            return
        num_layers = 0 if self._activations is None else len(self._activations.layers)
        self._layout = Layout(num_variables, self._bins, num_layers)
        width = self._layout.width
        capacity = int(min(max(_BYTES // (4 * width), 2), _MOST_SAMPLES))
        specs: dict[str, tuple[tuple[int, ...], str]] = {
            "steps": ((capacity,), "int"),
            "rows": ((capacity, width), "float32"),
            "count": ((), "int"),
            "first": ((), "int"),
            "ratio": ((), "float32"),
        }
        with tf.init_scope(), strategy.scope():
            self._variables = {
                name: keras.Variable(
                    "zeros",
                    shape=shape,
                    dtype=dtype,
                    trainable=False,
                    aggregation="none",
                    name=f"sample_{name}",
                )
                for name, (shape, dtype) in specs.items()
            }
            self._variables["ratio"].assign(np.nan)
            self._variables["first"].assign(self._first)

    def begin(self, steps: int) -> None:
        """Have the next step sampled, whatever its number.

        Args:
            steps: How many steps there were until now.
        """
        self._first = steps + 1
        if self._variables:
            self._variables["first"].assign(self._first)

    def reset(self) -> None:
        """Forget all samples."""
        if self._variables:
            self._variables["count"].assign(0)
            self._variables["ratio"].assign(np.nan)

    # In the compiled step -------------------------------------------------------------------------

    def is_due(self, step: Any) -> Any:
        """Return whether a step is one to be sampled, a boolean scalar tensor.

        Args:
            step: Its number, from 1, an integer scalar tensor.
        """
        first = value_of(self._variables["first"])
        return ops.logical_or(step % self.every_n_steps == 0, step == first)

    def ratio(self) -> Any:
        """Return the update ratio of the latest sample, a float32 scalar tensor; NaN before it."""
        return value_of(self._variables["ratio"])

    def probe_before(self, due: Any, variables: Sequence[Any]) -> list[Any]:
        """Return the loss on the probe batch before a step, and its gradients, if it is due.

        Args:
            due: Whether it is, a boolean scalar tensor.
            variables: All variables that are trained.

        Returns:
            A float32 scalar tensor and one like each variable; nothing without a probe.
        """
        probe = self._probe
        if probe is None:
            return []
        own = [resource(variable) for variable in variables]

        def measure() -> list[Any]:
            with tf.GradientTape() as tape:
                loss = ops.cast(probe(), "float32")
            gradients = tape.gradient(loss, own, unconnected_gradients="zero")
            return [loss, *(tf.convert_to_tensor(gradient) for gradient in gradients)]

        return values_if(due, measure, [tf.zeros(()), *own])

    def take(
        self,
        step: Any,
        variables: Sequence[Any],
        found: Mapping[str, Any],
        incoming: Measured,
        outgoing: Measured,
        before: Sequence[Any],
        probe: Sequence[Any],
    ) -> None:
        """Keep what is to be told of a step that has been taken.

        Args:
            step: Its number, an integer scalar tensor.
            variables: All variables that are trained.
            found: What `statistics_of_step` tells of it.
            incoming: Gradients before the transforms.
            outgoing: Gradients after them.
            before: The variables before it.
            probe: What `probe_before` returned.
        """
        sizes = np.array([max(1, int(np.prod(variable.shape))) for variable in variables])
        columns = [
            incoming.norms,
            outgoing.norms,
            found["largest"],
            1.0 - found["nonzero"] / sizes.astype("float32"),
            found["nonfinite"],
            found["weight_norm"],
            found["update_norm"],
            found["predicted"],
        ]
        ratio = _ratio(combine_norms(found["update_norm"]), combine_norms(found["weight_norm"]))
        scalars = [ratio, ops.sum(found["predicted"]), *self._probe_after(probe, before, variables)]
        parts = [ops.concatenate(columns), ops.stack(scalars)]
        if self._bins:
            parts += [self._histogram(value) for value in incoming.values]
        if self._activations is not None:
            parts.append(self._activations.statistics())
        count = value_of(self._variables["count"])
        place = count % self._variables["rows"].shape[0]
        write_row(self._variables["rows"], place, ops.concatenate(parts))
        write_row(self._variables["steps"], place, ops.cast(step, count.dtype))
        self._variables["count"].assign(count + 1)
        self._variables["ratio"].assign(ratio)

    def _histogram(self, value: Any) -> Any:
        if value is None or 0 in value.shape:
            return ops.zeros((2 + self._bins,), "float32")
        return histogram(value, self._bins)

    def _probe_after(
        self, probe: Sequence[Any], before: Sequence[Any], variables: Sequence[Any]
    ) -> tuple[Any, Any]:
        """Return the change of the loss on the probe batch, as predicted and as it came."""
        if self._probe is None:
            return np.nan, np.nan
        loss, *gradients = probe
        predicted = statistics_of_step(gradients, before, variables)["predicted"]
        return ops.sum(predicted), ops.cast(self._probe(), "float32") - loss

    # On the host ----------------------------------------------------------------------------------

    def falls_on(self, steps: Any) -> Any:
        """Return whether a step is one to be sampled, given its number or an array of them."""
        return (steps % self.every_n_steps == 0) | (steps == self._first)

    def waiting(self) -> list[Any]:
        """Return the variables that are to be brought to the host for `unpack`."""
        return [self._variables[name] for name in ("count", "steps", "rows")]

    def unpack(self, values: Sequence[np.ndarray[Any, Any]], since: int) -> Samples:
        """Return the samples after a step, given the values of what is `waiting`."""
        count, steps, rows = int(values[0]), values[1].astype("int64"), values[2]
        capacity = len(steps)
        places = np.arange(max(0, count - capacity), count) % capacity
        # Another sampler of the same optimizer may have had more steps looked at.
        is_new = self.falls_on(steps[places]) & (steps[places] > since)
        return self._layout.unpack(steps[places][is_new], rows[places][is_new])


def _ratio(update: Any, weights: Any) -> Any:
    """Return the one over the other, 0 where nothing moved."""
    return ops.where(update == 0, 0.0, update / weights)
