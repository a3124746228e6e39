"""Diagnoses a model at the start of `fit`, on the first batches that it will train on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, final

import keras
import tensorflow as tf

from gradstab._validation import check_choice, check_int
from gradstab.diagnosis.diagnose import diagnose
from gradstab.diagnosis.diagnosis import Diagnosis

# Batches that are looked at, and rows after which no further one is taken.
_BATCHES: Final = 64
_ROWS: Final = 4096


@final
class Preflight(keras.callbacks.Callback):
    """Runs `gradstab.diagnose` before the first step of `fit`; then it prints, stops or raises.

    Use it where ten seconds before training do not matter. It diagnoses on the first batches of
    `fit`, which are then trained on as usual, or on `x` and `y`. Afterwards model, optimizer and
    random states are as before.

    Args:
        x: Data to diagnose on instead of the first batches: required in `training.train`.
        y: Targets, if `x` does not hold them.
        on_error: With a finding of severity `error`, `"print"` prints the diagnosis and goes on,
            `"stop"` ends training before its first step, `"raise"` raises.
        batch_size: Rows per step, if `x` is not batched.
        mute: Codes of findings to leave out.
        verbose: Whether to print a diagnosis without findings above `info` too.

    Attributes:
        diagnosis: The `Diagnosis`; `None` until training begins.

    Raises:
        ValueError: If `on_error` is not one of the three.

    Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[gradstab.callbacks.Preflight(on_error="stop")])
    ```
    """

    # `training.train` asks: this callback need not be called after every single step.
    needs_every_batch = False

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        *,
        on_error: Literal["print", "stop", "raise"] = "print",
        batch_size: int = 32,
        mute: Sequence[str] = (),
        verbose: bool = False,
    ) -> None:
        super().__init__()
        self.x, self.y = x, y
        self.on_error = check_choice("on_error", on_error, ("print", "stop", "raise"))
        self.batch_size = check_int("batch_size", batch_size)
        self.mute = tuple(mute)
        self.verbose = verbose
        self.diagnosis: Diagnosis | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Diagnose what was given, or wait for the first batches."""
        self.diagnosis = None
        if self.x is not None:
            self._judge(self.x, self.y)
        function = getattr(self.model, "train_function", None)
        if function is not None:
            self.model.train_function = self._guarded(function)

    def _guarded(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a step that diagnoses once, on batches that later steps then get."""
        held: list[Any] = []

        @functools.wraps(function, assigned=())
        def guarded(iterator: Any) -> Any:
            if self.diagnosis is None:
                held.extend(_first_batches(iterator))
                self._judge(held, None)
            if self._stops:
                self.model.stop_training = True
                return {}
            if held:
                return function(_with_first(held, iterator, self.model.steps_per_execution))
            self.model.train_function = function
            return function(iterator)

        return guarded

    @property
    def _stops(self) -> bool:
        return (
            self.on_error == "stop"
            and self.diagnosis is not None
            and any(each.severity == "error" for each in self.diagnosis.findings)
        )

    def _judge(self, x: Any, y: Any) -> None:
        diagnosis = diagnose(
            self.model,
            x,
            y,
            epochs=(self.params or {}).get("epochs"),
            batch_size=self.batch_size,
            mute=self.mute,
        )
        self.diagnosis = diagnosis
        if self.verbose or not diagnosis.ok:
            print(f"\n{diagnosis}", flush=True)
        if self.on_error == "raise":
            diagnosis.raise_if_errors()
        if self._stops:
            self.model.stop_training = True


def _first_batches(iterator: Any) -> list[Any]:
    """Take the first batches from an iterator of `fit`."""
    taken: list[Any] = []
    rows = 0
    for batch in itertools.islice(iterator, _BATCHES):
        taken.append(batch)
        rows += len(keras.tree.flatten(batch)[0])
        if rows >= _ROWS:
            break
    return taken


def _with_first(held: list[Any], iterator: Any, steps: int) -> Any:
    """Return an iterator of the same kind that gives what is held, then goes on with the other."""

    def batches() -> Iterator[Any]:
        # No more than one call takes: pipelines fetch in advance.
        for _ in range(steps):
            if held:
                yield held.pop(0)
            else:
                yield from itertools.islice(iterator, 1)

    specs = iterator.element_spec
    return iter(tf.data.Dataset.from_generator(batches, output_signature=specs))
