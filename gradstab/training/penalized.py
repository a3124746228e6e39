"""Adds penalties to a model's training loss, in `fit` and in every loop that calls its step.

Keras' public `compute_loss` is where a training step gets its loss, in models of every kind. It is
replaced on the one model by a function that adds the penalties; `get_metrics_result` and
`reset_metrics` are too, so that the logs show them. Nothing of this is in what is saved: neither a
`.keras` file nor a weights file knows of penalties, and both load where gradstab is not.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gradstab._replicas import num_replicas
from gradstab.optimizers.watching.compiled import compiled_of
from gradstab.training.penalty import ForwardPass, Penalty

_ATTRIBUTE = "_gradstab_penalties"


def set_penalties(model: Any, penalties: Iterable[Penalty]) -> Any:
    """Add penalties to the training loss of a model, replacing those that it had.

    Call it before `fit`, before or after `compile`; an empty list removes all. From then on a
    training step of the model (`fit`, `train_on_batch`, your own `train_step` that calls
    `compute_loss`) minimizes its loss plus the penalties. `loss` in the logs includes them, and
    each has an entry of its own, such as `jacobian_penalty`, times its coefficient. Evaluation, and
    so `val_loss`, leaves them out.

    Penalties are not saved: set them again on a model that was loaded, cloned or copied. Under a
    strategy each counts once: terms of the data are means over the batch of all replicas, terms of
    the weights are not multiplied. Coefficients may be changed while `fit` runs.
    `training.train(..., penalties=[...])` sets them for one run; a resumed run continues with
    changed coefficients.

    Args:
        model: A `keras.Model`, functional, sequential or subclassed.
        penalties: A list of `GradientPenalty`, `JacobianPenalty`, `RecurrentGradientNorm`, or your
            own subclasses of `Penalty`; each once.

    Returns:
        The model.

    Raises:
        TypeError: If `model` is not a Keras model, or `penalties` not a list of penalties.
        ValueError: If a penalty is listed twice, can't serve the model, or the model's
            `compute_loss` has no argument `training`; in the first step, if the model's own
            `train_step` does not call `compute_loss`.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.training import JacobianPenalty, set_penalties
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> model = set_penalties(model, [JacobianPenalty(0.1)])
        >>> history = model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
        >>> sorted(history.history)
        ['jacobian_penalty', 'loss']
    """
    penalties = check_penalties(penalties, model)
    before = vars(model).get(_ATTRIBUTE)
    if before is not None:
        before.detach()
    if penalties:
        _Attached(model, penalties)
    return model


def penalties_of(model: Any) -> list[Penalty]:
    """Return the penalties in a model's training loss."""
    attached = vars(model).get(_ATTRIBUTE)
    return [] if attached is None else list(attached.penalties)


def metrics_of_penalties(model: Any) -> list[Any]:
    """Return the variables in which the logs of a model's penalties are summed up."""
    attached = vars(model).get(_ATTRIBUTE)
    metrics = [] if attached is None else attached.metrics
    return [variable for metric in metrics for variable in metric.variables]


@contextlib.contextmanager
def penalized(model: Any, penalties: Sequence[Penalty]) -> Iterator[None]:
    """Have penalties in the training loss while the block runs; with none, leave all as it is."""
    if not penalties:
        yield
        return
    compiled = compiled_of(model)
    plain, attached = model.train_function, compiled.penalized
    if attached is None or not attached.has(penalties):
        attached = compiled.penalized = _Attached(model, penalties)
    else:
        attached.attach()
    try:
        yield
    finally:
        is_as_compiled = attached.detach()
        model.train_function = plain if is_as_compiled else None


def check_penalties(penalties: Iterable[Penalty], model: Any) -> list[Penalty]:
    """Return the penalties as a list, or raise if the model can't be trained with them.

    Raises:
        TypeError: If they are no list of penalties, or the model is no Keras model.
        ValueError: If one is listed twice, or can't serve the model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    if isinstance(penalties, str | dict) or not isinstance(penalties, Iterable):
        raise TypeError(
            "`penalties` must be a list of penalties, such as [gradstab.training.JacobianPenalty()]"
            f". Received: penalties={penalties!r}"
        )
    penalties = list(penalties)
    for penalty in penalties:
        if isinstance(penalty, Penalty):
            continue
        fix = "Make one of it: write its name with ()"
        if isinstance(penalty, keras.regularizers.Regularizer):
            fix = "A regularizer goes to a layer, as its `kernel_regularizer`"
        elif not isinstance(penalty, type):
            fix = "Derive a class from gradstab.training.Penalty"
        raise TypeError(
            "`penalties` must hold gradstab.training.GradientPenalty, JacobianPenalty, "
            f"RecurrentGradientNorm or classes derived from Penalty. Received: {penalty!r}. {fix}"
        )
    if len({id(penalty) for penalty in penalties}) < len(penalties):
        raise ValueError(
            f"`penalties` must hold each penalty once. Received: penalties={penalties!r}. Raise "
            "its coefficient instead"
        )
    for penalty in penalties:
        penalty.check(model)
    if penalties and "training" not in inspect.signature(type(model).compute_loss).parameters:
        raise ValueError(
            "`model.compute_loss` must have the argument `training`, so that penalties are left "
            f"out of evaluation. Received: {type(model).__name__}.compute_loss without it. Add "
            "`training=True` to its arguments"
        )
    return penalties


class _Attached:
    """The penalties of one model, and what stands on it in the place of its own methods."""

    def __init__(self, model: Any, penalties: Sequence[Penalty]) -> None:
        self.penalties = tuple(penalties)
        self._model = model
        self._methods: dict[str, Any] = {}
        self._function: Any = None
        self._traced_for = _as_traced(penalties)
        self._traces_training = False
        self._called = False
        with model.distribute_strategy.scope():
            self.metrics = [keras.metrics.Mean(name) for name in _log_names(penalties)]
        self.attach()

    def has(self, penalties: Sequence[Penalty]) -> bool:
        """Whether these are the penalties, and as they were when their step was traced."""
        return self._traced_for == _as_traced(penalties)

    def attach(self) -> None:
        """Stand on the model, with what was compiled when it did so before."""
        model = self._model
        names = ["compute_loss", "get_metrics_result", "reset_metrics"]
        if type(model).train_step is not keras.Model.train_step:
            names.append("train_step")
        self._methods = {name: getattr(model, name) for name in names}
        replaced = {name: getattr(self, name) for name in names}
        # Past what tracks the model's attributes, which would save the metrics.
        vars(model).update(replaced, **{_ATTRIBUTE: self})
        model.train_function = self._function

    def detach(self) -> bool:
        """Give the model its own methods back; return whether it was compiled as it is now."""
        for name in (*self._methods, _ATTRIBUTE):
            vars(self._model).pop(name, None)
        self._function, self._model.train_function = self._model.train_function, None
        return self._function is not None

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the model's own loss and, in training, the penalties."""
        compute_loss = self._methods["compute_loss"]
        loss = compute_loss(x, y, y_pred, sample_weight, training=training)
        self._traces_training, self._called = bool(training), True
        if not training:
            return loss
        forward = ForwardPass(self._model, x, y, sample_weight, compute_loss)
        for penalty, metric in zip(self.penalties, self.metrics, strict=True):
            term = penalty.coefficient_tensor("coefficient") * penalty.measure(forward)
            metric.update_state(term, sample_weight=forward.batch_size)
            # The gradients of the replicas will be summed.
            loss += tf.cast(term / num_replicas(), loss.dtype)
        return _before_its_gradient(loss)

    def train_step(self, data: Any) -> Any:
        """Run the model's own step; raise if it goes past the penalties."""
        self._called = False
        logs = self._methods["train_step"](data)
        if not self._called:
            raise ValueError(
                "`train_step` of a model with penalties must get its loss from "
                f"`self.compute_loss(x, y, y_pred, sample_weight)`. Received: "
                f"{type(self._model).__name__}.train_step, which does not call it"
            )
        return logs

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the model's own metrics and, in training, the penalties."""
        results = dict(self._methods["get_metrics_result"]())
        if self._is_training():
            results.update({metric.name: metric.result() for metric in self.metrics})
        return results

    def reset_metrics(self) -> None:
        """Reset the model's own metrics, and those of the penalties."""
        self._methods["reset_metrics"]()
        for metric in self.metrics:
            metric.reset_state()

    def _is_training(self) -> bool:
        """Whether the metrics that are asked for are those of training.

        A trace follows the loss of its step. On the host nothing says so, but evaluation begins
        with a reset and never counts penalties.
        """
        if not tf.executing_eagerly():
            return self._traces_training
        return float(tf.convert_to_tensor(self.metrics[0].count)) > 0


def _as_traced(penalties: Sequence[Penalty]) -> list[tuple[int, str]]:
    """Return what is traced of each: itself, and its settings but for its coefficients."""
    return [
        (
            id(penalty),
            repr(
                {
                    name: value
                    for name, value in penalty.get_config().items()
                    if name not in penalty.coefficients()
                }
            ),
        )
        for penalty in penalties
    ]


@tf.custom_gradient
def _before_its_gradient(loss: Any) -> Any:
    """Return a loss whose gradient, and so every update of a weight, waits for all of it.

    A penalty reads weights in passes of its own, on which not every weight's gradient depends: Ω
    has one in the recurrent kernels alone. That such a read comes before the update is held by a
    control edge, which TensorFlow's graph optimizer takes out where the graph has loops
    (`dependency_optimization`, in 2.21): now and then the penalty saw half-updated weights.
    Dependence on data stays, and so the gradient of a loss that is NaN is NaN.
    """

    def gradient(upstream: Any) -> Any:
        return tf.where(tf.math.is_nan(loss), loss, upstream)

    return tf.identity(loss), gradient


def _log_names(penalties: Sequence[Penalty]) -> list[str]:
    """Return a name for each, numbered from the second of a name on."""
    names: list[str] = []
    for penalty in penalties:
        name, number = penalty.log_name, 1
        while name in names:
            name, number = f"{penalty.log_name}_{number}", number + 1
        names.append(name)
    return names
