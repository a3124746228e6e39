"""Penalties on first derivatives: of the loss, and of the outputs with respect to the inputs."""

from __future__ import annotations

from typing import Any, final

import tensorflow as tf

from gradstab._replicas import sum_over_replicas
from gradstab._serialization import register
from gradstab._validation import check_choice, check_int
from gradstab.training.penalty import ForwardPass, Penalty, root

_32_BITS = 0xFFFFFFFF


@final
@register
class GradientPenalty(Penalty):
    r"""Penalizes the norm of the loss's gradient with respect to the inputs or the weights.

    With `"inputs"` (double backpropagation), small changes of an example change its loss little,
    which helps against noise and adversarial inputs. With `"weights"`, small steps change the loss
    little, which prefers flat minima and avoids cliffs, where gradients explode. With $\ell_i$ the
    loss of example $i$ of $n$ and $L = \frac1n \sum_i \ell_i$, the penalty is `coefficient` times

    $$\frac1n \sum_{i=1}^n \lVert \partial \ell_i / \partial x_i \rVert^2 \quad (\text{inputs})
    \qquad \text{or} \qquad \lVert \partial L / \partial w \rVert^2 \quad (\text{weights}),$$

    or, with `squared=False`, the same without the squares. Norms go over all inputs, or all
    trainable weights, together.

    The loss is the model's `compute_loss`, including `sample_weight`, regularizers and `add_loss`.
    It is assumed to be a mean over examples, Keras' default reduction. If examples of a batch
    affect each other, as in BatchNorm, $\partial \ell_i / \partial x_i$ includes the effect of
    $x_i$ on the others. A step costs one more forward pass and two backward passes. An RNN in the
    model can be differentiated twice without XLA, and with XLA if it has `unroll=True`.

    Args:
        coefficient: Non-negative and finite, in units of loss per squared norm.
        with_respect_to: `"inputs"`, which must be of a float dtype, or `"weights"`.
        squared: Whether the norm is squared; if not, small gradients have the same slope.

    Raises:
        TypeError: If an argument has the wrong type; in the first step, if inputs are integers.
        ValueError: If an argument is out of its range.

    Example:
    ```python
    penalty = gradstab.training.GradientPenalty(0.1, with_respect_to="inputs")
    gradstab.training.train(model, (x, y), epochs=10, penalties=[penalty])
    ```

    References:
        Drucker and LeCun, 1992, Improving generalization performance using double backpropagation
        (inputs).
        Barrett and Dherin, 2021, Implicit gradient regularization (weights, squared).
        Zhao, Zhang and Hu, 2022, Penalizing gradient norm for efficiently improving generalization
        in deep learning (weights, not squared).
    """

    def __init__(
        self, coefficient: float = 0.01, with_respect_to: str = "inputs", squared: bool = True
    ) -> None:
        super().__init__(coefficient)
        self.with_respect_to = check_choice(
            "with_respect_to", with_respect_to, ("inputs", "weights")
        )
        self.squared = bool(check_choice("squared", squared, (True, False)))

    def measure(self, forward: ForwardPass) -> Any:
        """Return the mean norm, or the norm, squared or not."""
        if self.with_respect_to == "inputs":
            squares = _squares_per_example(_of_loss(forward, self._inputs(forward)))
            return tf.reduce_mean(squares if self.squared else root(squares))
        gradients = _of_loss(forward, forward.model.trainable_variables)
        count = tf.cast(forward.batch_size, tf.float32)
        # The norm of the mean over replicas is not the mean of norms, so they have to meet here.
        *sums, total = sum_over_replicas([*gradients, count])
        square = tf.add_n([tf.reduce_sum(tf.square(gradient / total)) for gradient in sums])
        return square if self.squared else root(square)

    def _inputs(self, forward: ForwardPass) -> list[Any]:
        return forward.float_inputs("GradientPenalty(with_respect_to='inputs')")


@final
@register
class JacobianPenalty(Penalty):
    r"""Penalizes the Frobenius norm of the Jacobian of the outputs with respect to the inputs.

    Use it if outputs should change little with the inputs, independently of the loss. It widens the
    margins of a classifier (let the model return logits, not probabilities), and keeps deep nets
    from amplifying signals. With $J_i$ of shape (outputs, inputs) the Jacobian at example $i$ of
    $n$, the penalty is `coefficient` times

    $$\frac1n \sum_i \lVert J_i \rVert_F^2 \approx
    \frac1n \sum_i \frac{C}{P} \sum_{p=1}^P \lVert v_{ip}^\top J_i \rVert^2$$

    with $C$ outputs and $P$ random unit vectors $v_{ip}$ per example, drawn anew each step. The
    estimate is unbiased, and one projection is enough for training, since its error shrinks with
    the batch too. The directions are a function of `seed`, the optimizer's count of steps, and the
    example's place in the batch, so that a resumed run and one on several replicas use the same.

    A step costs one more forward pass, and one backward pass per projection, all of which are
    differentiated again. All inputs and all outputs of the model count.

    Args:
        coefficient: Non-negative and finite; half of the reference's λ.
        num_projections: P; `None`, or a number not below that of the outputs, gives the exact norm
            with C backward passes.
        seed: Seed of the directions.

    Raises:
        TypeError: If an argument has the wrong type; in the first step, if inputs are integers.
        ValueError: If an argument is out of its range.

    Example:
    ```python
    model.compile("adam", loss)
    gradstab.training.set_penalties(model, [gradstab.training.JacobianPenalty(0.01)])
    model.fit(x, y, epochs=10)
    ```

    Reference: Hoffman, Roberts and Yaida, 2019, Robust learning with Jacobian regularization.
    """

    def __init__(
        self, coefficient: float = 0.01, num_projections: int | None = 1, seed: int = 0
    ) -> None:
        super().__init__(coefficient)
        if num_projections is not None:
            check_int("num_projections", num_projections, fix="None takes all outputs")
        self.num_projections = num_projections
        self.seed = check_int("seed", seed, minimum=0)

    def measure(self, forward: ForwardPass) -> Any:
        """Return the mean over examples of the squared norm, or its estimate."""
        inputs = forward.float_inputs("JacobianPenalty")
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            outputs = forward.outputs()
        num_outputs = outputs.shape[1]
        if num_outputs is None:
            raise ValueError(
                "JacobianPenalty needs outputs of a shape that is known but for the examples. "
                f"Received: {outputs.shape}"
            )
        if self.num_projections is None or self.num_projections >= num_outputs:
            places = [tf.fill([forward.batch_size], place) for place in range(num_outputs)]
            directions = [tf.one_hot(place, num_outputs) for place in places]
            weight = 1.0
        else:
            directions = self._directions(forward, num_outputs)
            weight = num_outputs / self.num_projections
        total = tf.zeros((), tf.float32)
        for direction in directions:
            products = tape.gradient(
                outputs, inputs, output_gradients=direction, unconnected_gradients="zero"
            )
            total += weight * tf.reduce_mean(_squares_per_example(products))
        return total

    def _directions(self, forward: ForwardPass, num_outputs: int) -> list[Any]:
        """Return P tensors of unit vectors, each (examples, outputs)."""
        optimizer = getattr(forward.model, "optimizer", None)
        step = 0 if optimizer is None else tf.cast(optimizer.iterations.value, tf.int32)
        start, total = forward.place()
        count = int(self.num_projections or 0)
        drawn = _normal(tf.range(total * count * num_outputs), self.seed, step)
        drawn = tf.reshape(drawn, (total, count, num_outputs))[start : start + forward.batch_size]
        return tf.unstack(tf.math.l2_normalize(drawn, axis=-1), num=count, axis=1)


def _normal(places: Any, seed: int, step: Any) -> Any:
    """Return normal random numbers, a function of place, seed and step alone.

    XLA draws other numbers than TensorFlow's kernels do, from the same seed by the same generator:
    hashing gives the same in both, and eagerly.
    """
    key = _hash(tf.constant(seed & _32_BITS, tf.int64))
    key = _hash(tf.bitwise.bitwise_xor(key, tf.cast(step, tf.int64)))
    bits = _hash(tf.bitwise.bitwise_xor(tf.cast(places, tf.int64), key))
    # The 24 bits that float32 holds, at the middle of their interval: never 0 or 1.
    uniform = (tf.cast(tf.bitwise.right_shift(bits, _int64(8)), tf.float32) + 0.5) * 2.0**-24
    return tf.math.ndtri(tf.minimum(uniform, 1.0 - 2.0**-24))


def _hash(bits: Any) -> Any:
    """Mix 32 bits, held in an int64, so that each changes half of the others (C. Wellons, 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, _int64(shift)))
        bits = tf.bitwise.bitwise_and(bits * _int64(factor), _int64(_32_BITS))
    return bits


def _int64(number: int) -> Any:
    return tf.constant(number, tf.int64)


def _of_loss(forward: ForwardPass, sources: list[Any]) -> list[Any]:
    """Return the gradients of the summed loss, in float32."""
    with tf.GradientTape() as tape:
        # Weights are watched anyway.
        tape.watch([source for source in sources if isinstance(source, tf.Tensor)])
        loss = forward.summed_loss()
    # TensorFlow can't put zeros where a variable of Keras' has none.
    return [
        tf.cast(tf.zeros_like(source) if gradient is None else gradient, tf.float32)
        for source, gradient in zip(sources, tape.gradient(loss, sources), strict=True)
    ]


def _squares_per_example(gradients: list[Any]) -> Any:
    """Return the squared norms of what lies along the first axis, over all tensors together."""
    parts = []
    for gradient in gradients:
        wide = tf.cast(gradient, tf.float32)
        parts.append(tf.reduce_sum(tf.square(wide), axis=list(range(1, wide.shape.rank))))
    return tf.add_n(parts)
