"""Pascanu's Ω: keeps errors in a recurrent net from vanishing or exploding back in time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, final

import keras
import tensorflow as tf

from gradstab._layers import layers_in_order
from gradstab._serialization import register
from gradstab.keras_hooks.substitute import replaced_method, replaced_untracked
from gradstab.training.penalty import ForwardPass, Penalty, lengths

# Below e⁻⁶⁰ of what comes in later, an error of earlier steps is nothing.
_SMALLEST_LOG_SCALE = -60.0


@final
@register
class RecurrentGradientNorm(Penalty):
    r"""Keeps the norm of the error from step to step in a simple recurrent net (Pascanu's Ω).

    Use it, with clipping, if a `SimpleRNN` has to remember over many steps and its loss does not
    fall: without it the error vanishes on its way to the early steps. With the pre-activations $a_k
    = \phi(a_{k-1}) W + x_k U + b$ of shape (units,) and the errors $\delta_k = \partial E /
    \partial a_k$ of an example, the penalty is `coefficient` times

    $$\Omega = \sum_{k=1}^{T-1} \left( \frac{\lVert \delta_{k+1} \,
    \partial a_{k+1} / \partial a_k \rVert}{\lVert \delta_{k+1} \rVert} - 1 \right)^2,
    \qquad \delta_{k+1} \frac{\partial a_{k+1}}{\partial a_k} =
    (\delta_{k+1} W^\top) \odot \phi'(a_k),$$

    summed over the steps and layers, and its mean over examples. Only the recurrent kernel $W$ gets
    a gradient from it, and only the immediate part: $a_k$ and $\delta_{k+1}$ count as constants, as
    in the reference. So nothing is differentiated twice, and XLA compiles it. A step costs one more
    forward and backward pass, and one pass backwards in time.

    Steps without an error, masked steps and the steps after them do not count. LSTM and GRU have
    gates, which Ω does not cover; they are refused unless `layers` names others.

    Args:
        coefficient: Non-negative and finite. The reference uses 2 to 4; 0.5 trained faster in
            benchmarks/signal_parts/temporal_order.py.
        layers: Names of the `SimpleRNN` layers it acts on (also inside a `Bidirectional`), or
            `None` for all.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of its range; when it is given to a model, or in the first
            step, if such a layer is missing or can't be served.

    Example:
    ```python
    optimizer = gradstab.optimizers.clip_by_global_norm(keras.optimizers.SGD(0.01), max_norm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    omega = gradstab.training.RecurrentGradientNorm(2.0)
    gradstab.training.train(model, (x, y), epochs=10, penalties=[omega])
    ```

    Reference: Pascanu, Mikolov and Bengio, 2013, On the difficulty of training recurrent networks.
    """

    def __init__(self, coefficient: float = 1.0, layers: Sequence[str] | None = None) -> None:
        super().__init__(coefficient)
        if isinstance(layers, str) or not (layers is None or isinstance(layers, Sequence)):
            raise TypeError(
                f"`layers` must be a list of layer names or None. Received: layers={layers!r}"
            )
        self.layers = None if layers is None else list(layers)

    def check(self, model: Any) -> None:
        """Raise if the model has no layer for it, or one that it can't serve."""
        if model.built:
            self._layers_of(model)

    def measure(self, forward: ForwardPass) -> Any:
        """Return Ω, a mean over examples."""
        runs: list[_Run] = []
        with tf.GradientTape() as tape, contextlib.ExitStack() as stack:
            for layer in self._layers_of(forward.model):
                stack.enter_context(_recorded(layer, runs, tape))
            loss = forward.summed_loss()
        states = [run.states for run in runs]
        gradients = tape.gradient(loss, states, unconnected_gradients="zero")
        total = tf.zeros((), tf.float32)
        for run, gradient in zip(runs, gradients, strict=True):
            total += tf.reduce_mean(_omega(run, tf.cast(gradient, tf.float32)))
        return total

    def _layers_of(self, model: Any) -> list[Any]:
        recurrent = [
            layer for layer in layers_in_order(model) if isinstance(layer, keras.layers.RNN)
        ]
        names = [layer.name for layer in recurrent]
        missing = [name for name in self.layers or () if name not in names]
        if missing:
            raise ValueError(
                f"`layers` must name recurrent layers of the model, {', '.join(names) or 'none'}. "
                f"Received: layers={self.layers!r}"
            )
        wanted = [layer for layer in recurrent if self.layers is None or layer.name in self.layers]
        if not wanted:
            raise ValueError(
                "RecurrentGradientNorm needs a model with a SimpleRNN layer. Received: "
                f"model={model.name!r}, which has no recurrent layer"
            )
        for layer in wanted:
            _check(layer)
        return wanted


def _check(layer: Any) -> None:
    """Raise if Ω would not be right for a layer."""
    cell = layer.cell
    problem = fix = ""
    if not isinstance(cell, keras.layers.SimpleRNNCell):
        problem = f"a {type(cell).__name__}"
        fix = "Name the SimpleRNN layers of the model in `layers`, or leave the penalty out"
    elif cell.dropout or cell.recurrent_dropout:
        problem = f"dropout={cell.dropout}, recurrent_dropout={cell.recurrent_dropout}"
        fix = "Put a Dropout layer before it instead"
    elif layer.stateful:
        problem, fix = "stateful=True", "A second pass would begin where the first one ended"
    elif cell.activation in (keras.activations.softmax, keras.activations.log_softmax):
        problem = f"activation={cell.activation.__name__!r}, which mixes units"
        fix = "Use one that acts on each unit, such as 'tanh'"
    if problem:
        raise ValueError(
            "RecurrentGradientNorm needs SimpleRNN layers without dropout and state, with an "
            f"activation of each unit. Received: layer {layer.name!r} with {problem}. {fix}"
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    """What one call of a recurrent layer saw and made, in the order in which it went."""

    layer: Any
    sequences: Any
    initial: Any
    mask: Any
    states: Any


@contextlib.contextmanager
def _recorded(layer: Any, runs: list[_Run], tape: Any) -> Iterator[None]:
    """Have a layer's calls add what they see and make to a list while the block runs."""
    call = layer.call

    def recorded(
        sequences: Any, initial_state: Any = None, mask: Any = None, **arguments: Any
    ) -> Any:
        flat_mask = keras.tree.flatten(mask)[0] if mask is not None else None
        if flat_mask is not None and getattr(layer, "zero_output_for_mask", False):
            raise ValueError(
                "RecurrentGradientNorm needs the outputs of masked steps. Received: layer "
                f"{layer.name!r} with zero_output_for_mask=True. Leave that away"
            )
        # Nothing that uses the states may get them by another way than through these.
        with (
            replaced_untracked(layer, "return_sequences", True),
            replaced_untracked(layer, "return_state", False),
        ):
            states = call(sequences, initial_state=initial_state, mask=mask, **arguments)
        tape.watch(states)
        initial = keras.tree.flatten(initial_state)[0] if initial_state is not None else None
        if layer.go_backwards:
            sequences = tf.reverse(sequences, [1])
            flat_mask = None if flat_mask is None else tf.reverse(flat_mask, [1])
        runs.append(_Run(layer, sequences, initial, flat_mask, states))
        last = states[:, -1]
        output = states if layer.return_sequences else last
        return (output, last) if layer.return_state else output

    with replaced_method(layer, "call", recorded):
        yield


def _omega(run: _Run, gradient: Any) -> Any:
    """Return Ω of every example, from the direct gradients of the loss in the states."""
    kernel = tf.cast(tf.convert_to_tensor(run.layer.cell.recurrent_kernel), tf.float32)
    slopes = tf.stop_gradient(_slopes(run))
    valid = tf.ones(tf.shape(slopes)[:2]) if run.mask is None else tf.cast(run.mask, tf.float32)
    errors = tf.stop_gradient(_errors(gradient, slopes, tf.stop_gradient(kernel), valid))
    later = errors[:, 1:]
    ratios = lengths(tf.matmul(later, kernel, transpose_b=True) * slopes[:, :-1])
    arrives = tf.cast(tf.reduce_any(later != 0, axis=-1), tf.float32)
    counted = arrives * valid[:, 1:] * valid[:, :-1]
    return tf.reduce_sum(counted * tf.square(ratios - 1.0), axis=1)


def _slopes(run: _Run) -> Any:
    """Return φ'(a) of every step, in float32."""
    cell = run.layer.cell
    states = tf.cast(run.states, tf.float32)
    initial = tf.zeros_like(states[:, 0])
    if run.initial is not None:
        initial = tf.cast(tf.broadcast_to(run.initial, tf.shape(initial)), tf.float32)
    before = tf.concat([initial[:, None], states[:, :-1]], axis=1)

    def wide(variable: Any) -> Any:
        return tf.cast(tf.convert_to_tensor(variable), tf.float32)

    inner = tf.matmul(tf.cast(run.sequences, tf.float32), wide(cell.kernel))
    inner += tf.matmul(before, wide(cell.recurrent_kernel))
    if cell.bias is not None:
        inner += wide(cell.bias)
    inner = tf.stop_gradient(inner)
    with tf.GradientTape() as tape:
        tape.watch(inner)
        outer = cell.activation(inner)
    return tape.gradient(outer, inner)


def _errors(gradient: Any, slopes: Any, kernel: Any, valid: Any) -> Any:
    """Return δ/‖δ‖ of every step, 0 where no error arrives.

    From the last step to the first: e ← direct gradient + δWᵀ, δ = e ⊙ φ'(a). Only directions are
    wanted, and lengths run out of any range over many steps, so what is handed on has length 1
    beside the logarithm of its scale. A masked step hands on e as it came.
    """

    def step(carried: Any, here: Any) -> Any:
        error, log_scale, _ = carried
        direct, slope, is_valid = here
        error = error + direct * tf.exp(-log_scale)
        delta = error * slope
        handed = tf.where(is_valid > 0, tf.matmul(delta, kernel, transpose_b=True), error)
        error, length = _normalized(handed)
        log_scale = tf.maximum(log_scale + tf.math.log(length), _SMALLEST_LOG_SCALE)
        return error, log_scale, _normalized(delta)[0]

    by_time = [tf.transpose(part, (1, 0, 2)) for part in (gradient, slopes, valid[..., None])]
    nothing = tf.zeros_like(by_time[0][0])
    _, _, errors = tf.scan(step, tuple(by_time), (nothing, nothing[:, :1], nothing), reverse=True)
    return tf.transpose(errors, (1, 0, 2))


def _normalized(vectors: Any) -> tuple[Any, Any]:
    """Return vectors of length 1 and their lengths; zeros stay, with length 1."""
    length = tf.norm(vectors, axis=-1, keepdims=True)
    length = tf.where(length > 0, length, 1.0)
    return vectors / length, length
