"""A few examples that a run trains on, kept aside on their way into its first step."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import keras
import tensorflow as tf

# Examples that are kept.
EXAMPLES: Final = 32


class FirstBatch:
    """Takes some examples of the first batch of `fit`, and leaves the run as it is.

    Callbacks see no data. So, once, the function that takes a step is handed an iterator that gives
    the batch just looked at and goes on with the true one: of the same kind, so that nothing is
    traced anew, and the order of the data is what it was.

    Args:
        then: Called with `(x, y, sample_weight)` before the first step runs.
        most: How many examples it gets; `None` for all.
    """

    def __init__(
        self, then: Callable[[tuple[Any, Any, Any]], None], most: int | None = EXAMPLES
    ) -> None:
        self._then = then
        self._most = most

    def await_from(self, model: Any) -> None:
        """Have the next step of `fit` show its batch."""
        function = model.train_function
        if function is None:
            return

        @functools.wraps(function, assigned=())
        def shown(iterator: Any) -> Any:
            if model.train_function is shown:
                model.train_function = function
            return function(self._shown(iterator, model.steps_per_execution))

        model.train_function = shown

    def take(self, batch: Any) -> None:
        """Keep some examples of a batch `(x, y)`, `(x, y, sample_weight)`, or `x`."""

        def cut(value: Any) -> Any:
            return value[: self._most] if len(getattr(value, "shape", ())) else value

        # Whatever a batch of another's making can't do here, the run goes on without.
        with contextlib.suppress(Exception):
            few = keras.tree.map_structure(cut, batch)
            self._then(keras.utils.unpack_x_y_sample_weight(few))

    def _shown(self, iterator: Any, steps: int) -> Any:
        held: list[Any] = []

        def batches() -> Iterator[Any]:
            # No more than the one call takes: pipelines fetch in advance.
            yield from held
            yield from itertools.islice(iterator, steps - 1)

        try:
            specs = iterator.element_spec
            of_same_kind = iter(tf.data.Dataset.from_generator(batches, output_signature=specs))
            is_same = of_same_kind.element_spec == specs
        except Exception:  # Not every kind of element can be handed over; then nothing is kept.
            return iterator
        if not is_same or not isinstance(iterator, tf.data.Iterator):
            return iterator
        held.append(next(iterator))
        self.take(held[0])
        return of_same_kind
