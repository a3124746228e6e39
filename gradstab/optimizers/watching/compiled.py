"""What is compiled for a model beside the function that Keras compiles, all in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

# By this name it hangs on the function that Keras keeps.
_ATTRIBUTE: Final = "gradstab_compiled"
# Observers that wait for another run. Each keeps a compiled step.
_MOST_OBSERVERS: Final = 4


class Compiled:
    """What was traced for the steps of one model, for the runs to come.

    It hangs on `model.train_function`, which `compile` drops and `make_train_function` with
    `force=True` replaces. So it is traced anew wherever Keras traces anew, and goes with the model.

    Attributes:
        loops: The loops of `training.train`, by step, form and what watches the step.
        forms: Which form of the loop was found the fastest, by the structure of the data.
        penalized: The penalties of the last call of `training.train`, with the step that has them.
    """

    def __init__(self) -> None:
        self.loops: dict[tuple[Any, ...], Any] = {}
        self.forms: dict[tuple[Any, ...], Any] = {}
        self.penalized: Any = None
        self._observers: list[Any] = []
        self._watched: dict[tuple[Any, ...], Any] = {}

    def add_observer(self, observer: Any) -> None:
        """Keep an observer; of those that wait for another run, the oldest go."""
        if observer not in self._observers:
            free = [each for each in self._observers if not each.is_watching]
            for old in free[: max(0, len(free) + 1 - _MOST_OBSERVERS)]:
                self._forget(old)
            self._observers.append(observer)

    def free_observer(self, is_wanted: Callable[[Any], bool]) -> Any | None:
        """Return the first observer that no run uses and of which a function says yes."""
        free = (each for each in self._observers if not each.is_watching)
        return next(filter(is_wanted, free), None)

    def watched(self, observers: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return the step under these observers, made by a function the first time."""
        if observers not in self._watched:
            self._watched[observers] = make()
        return self._watched[observers]

    def _forget(self, observer: Any) -> None:
        self._observers.remove(observer)
        gone = [self._watched.pop(key) for key in tuple(self._watched) if observer in key]
        for key in [key for key in self.loops if any(each in gone for each in key)]:
            del self.loops[key]


def compiled_of(model: Any) -> Compiled:
    """Return what was compiled for a compiled model."""
    model.make_train_function()
    # What stands on it for a run, and for a batch, gives way to it.
    function = inspect.unwrap(model.train_function)
    compiled: Compiled = vars(function).setdefault(_ATTRIBUTE, Compiled())
    return compiled
