"""The compiled loop: many steps of a model in one call on the device.

Three forms of it, since no one of them is the fastest for every model:

- `"graph"`: a `tf.while_loop` around the step;
- `"xla_step"`: the same loop with the step compiled by XLA;
- `"xla_loop"`: loop and step compiled by XLA as one, for arrays that lie on the device. It does
  away with all cost between steps, but on CPU XLA runs convolutions inside a loop on one thread.

Under a strategy with several replicas each step gives every replica its share of the batch, which
XLA does not compile on CPU, so only the plain graph serves there.

A Python `for batch in dataset` inside `tf.function` is none of them: it turns into a dataset
reduction, whose body runs several times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from gradstab.diagnosis.origin.bad_steps import keeper_of
from gradstab.training.applied import AppliedMetrics
from gradstab.training.replicas import mean_over_replicas, on_all_replicas

FORMS = ("graph", "xla_step", "xla_loop")

Logs = dict[str, Any]


class StepLoop:
    """Runs `model.train_step` or `model.test_step` many times per call, and returns the logs.

    Logs are the model's metrics after the last step, or, for a step of the user's own that
    returns something else, what its last step returned: the same that `fit` shows.

    Args:
        model: A compiled model whose weights exist.
        step: `"train_step"` or `"test_step"`.
        form: One of `FORMS`.
        around: Gives what is held while steps are traced, or run eagerly.
    """

    def __init__(
        self,
        model: Any,
        step: str,
        form: str,
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.form = form
        self._around = around
        self.optimizer = model.optimizer
        self._model = model
        self._name = step
        self._eager = bool(model.run_eagerly)
        self._returned: Logs | None = None
        self._inspected = False
        self._functions: dict[tuple[int, bool], Any] = {}
        self._iterating: Any = None
        self._variables: dict[int, Any] = {}
        taken, optimizer = getattr(model, step), None
        self._applied: AppliedMetrics | None = None
        if step == "train_step":
            optimizer = model.optimizer
            self._applied = AppliedMetrics(model)
            taken = self._applied.around(taken)
        plain = on_all_replicas(model.distribute_strategy, taken, optimizer)
        self._plain_step = plain
        self._step = _compile(plain, xla=True) if form == "xla_step" else plain
        # Arrays need nothing kept: which rows a step took is known.
        self._keeper = keeper_of(model) if step == "train_step" else None

    def metrics_were_reset(self) -> None:
        """Learn that an epoch begins, whose metrics are empty."""
        if self._applied is not None:
            self._applied.reset()

    def run_arrays(
        self, arrays: Any, order: Any, start: int, count: int, batch_size: int, *, last: bool
    ) -> tuple[int, Logs]:
        """Run `count` steps on rows `order[start * batch_size:]`; return how many, and the logs.

        `last` says that this is the smaller batch at the end of an epoch.
        """
        with self._around():
            return self._run_arrays(arrays, order, start, count, batch_size, last=last)

    def _run_arrays(
        self, arrays: Any, order: Any, start: int, count: int, batch_size: int, *, last: bool
    ) -> tuple[int, Logs]:
        if self._eager:
            logs: Logs = {}
            for i in range(start, start + count):
                rows = order[i * batch_size : (i + 1) * batch_size]
                logs = self._plain_step(_gather(arrays, rows))
            return count, self._chosen(logs)
        bounds = tf.constant(start), tf.constant(count)
        if (batch_size, last) not in self._functions:
            self._inspect(batch_spec(arrays, batch_size))
            run = self._over_arrays(batch_size, last=last)
            self._functions[batch_size, last] = self._traced(run, arrays, order, *bounds)
        end, logs = self._functions[batch_size, last](arrays, order, *bounds)
        return int(end) - start, dict(logs)

    def run_iterator(self, iterator: Any, count: int) -> tuple[int, Logs]:
        """Run up to `count` steps on batches of a `tf.data` iterator; return how many, and logs."""
        with self._around():
            return self._run_iterator(iterator, count)

    def _run_iterator(self, iterator: Any, count: int) -> tuple[int, Logs]:
        if self._eager:
            done, logs = 0, {}
            while done < count and (batch := next(iterator, None)) is not None:
                logs = self._step_on(batch)
                done += 1
            return done, self._chosen(logs) if done else {}
        if self._iterating is None:
            self._inspect(iterator.element_spec)
            run = _compile(self._over_iterator, xla=False)
            self._iterating = self._traced(run, iterator, tf.constant(0))
        done, logs = self._iterating(iterator, tf.constant(count))
        return int(done), dict(logs)

    def num_traces(self) -> int:
        """Return how often the loop has been traced so far."""
        functions = [*self._functions.values(), self._iterating]
        return sum(f.experimental_get_tracing_count() for f in functions if f is not None)

    def variables(self) -> list[Any]:
        """Return every variable that the traced loop reads or writes."""
        return list(self._variables.values())

    def _traced(self, function: Any, *arguments: Any) -> Any:
        concrete = function.get_concrete_function(*arguments)
        self._variables.update((id(variable), variable) for variable in concrete.variables)
        return function

    def _over_arrays(self, batch_size: int, *, last: bool) -> Any:
        # The last, smaller batch is one step of many: not worth a second compilation by XLA.
        step = self._plain_step if last else self._step

        def run(arrays: Any, order: Any, start: Any, count: Any) -> tuple[Any, Logs]:
            def body(i: Any, _: Logs) -> tuple[Any, Logs]:
                rows = tf.slice(order, [i * batch_size], [batch_size])
                return i + 1, self._kept(step(_gather(arrays, rows)))

            end, logs = tf.while_loop(
                lambda i, _: i < start + count, body, (start, self._no_logs())
            )
            return end, self._logs(logs)

        return _compile(run, xla=self.form == "xla_loop" and not last)

    def _over_iterator(self, iterator: Any, count: Any) -> tuple[Any, Logs]:
        def body(i: Any, _: Any, logs: Logs) -> tuple[Any, Any, Logs]:
            batch = iterator.get_next_as_optional()

            def step() -> tuple[Any, Logs]:
                return i + 1, self._kept(self._step_on(batch.get_value()))

            more = batch.has_value()
            i, logs = tf.cond(more, step, lambda: (i, logs))
            return i, more, logs

        done, _, logs = tf.while_loop(
            lambda i, more, _: tf.logical_and(i < count, more),
            body,
            (tf.constant(0), tf.constant(True), self._no_logs()),
        )
        return done, self._logs(logs)

    def _step_on(self, batch: Any) -> Logs:
        """Take a step; if it was not finite, its batch is kept, outside of what XLA compiles."""
        logs: Logs = self._step(batch)
        if self._keeper is not None:
            self._keeper.after_step(batch)
        return logs

    def _inspect(self, batch: Any) -> None:
        """Find out whether the step returns the model's metrics, or logs of its own to carry."""
        if self._inspected:
            return
        self._inspected = True
        if not any(_overridden(self._model, name) for name in (self._name, "compute_metrics")):
            return
        step = self._plain_step
        traced = _compile(lambda data: self._merged(step(data)), xla=False)
        traced = traced.get_concrete_function(batch)
        logs = traced.structured_outputs
        if isinstance(logs, dict) and set(logs) != set(self._model.get_metrics_result()):
            self._returned = logs

    def _no_logs(self) -> Logs:
        if self._returned is None:
            return {}
        return {name: tf.zeros(log.shape, log.dtype) for name, log in self._returned.items()}

    def _kept(self, logs: Logs) -> Logs:
        return {} if self._returned is None else self._merged(logs)

    def _merged(self, logs: Logs) -> Logs:
        return mean_over_replicas(self._model.distribute_strategy, logs)

    def _logs(self, carried: Logs) -> Logs:
        return carried if self._returned is not None else self._model.get_metrics_result()

    def _chosen(self, logs: Logs) -> Logs:
        metrics = self._model.get_metrics_result()
        own = isinstance(logs, dict) and set(logs) != set(metrics)
        return self._merged(logs) if own else metrics


def batch_spec(arrays: Any, batch_size: int) -> Any:
    """Return the structure of one batch of arrays."""
    return keras.tree.map_structure(
        lambda array: tf.TensorSpec([batch_size, *array.shape[1:]], array.dtype), arrays
    )


def _compile(function: Callable[..., Any], *, xla: bool) -> Any:
    return tf.function(function, autograph=False, jit_compile=True if xla else None)


def _gather(arrays: Any, rows: Any) -> Any:
    return keras.tree.map_structure(lambda array: tf.gather(array, rows), arrays)


def _overridden(model: Any, name: str) -> bool:
    return name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name)
