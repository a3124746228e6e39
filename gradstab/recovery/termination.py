"""SIGTERM, which schedulers send before they kill: noted, and answered once a step has ended."""

from __future__ import annotations

import inspect
import signal
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final, NoReturn

import keras

# What shells and schedulers show of a process that SIGTERM ended.
EXIT_CODE: Final = 128 + signal.SIGTERM


class Termination:
    """Notes SIGTERM while a run lasts, so that the run can leave between two steps.

    It takes the place of the default handler alone, which would end the process at once: who has a
    handler of their own has decided what SIGTERM means. Outside the main thread, where Python
    allows no handler, nothing changes.

    Attributes:
        is_asked: Whether the process was asked to leave.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._is_holding = False
        self._runs: CodeType | None = None
        self._model: Callable[[], Any] = lambda: None
        self._history: Callable[[], Any] = lambda: None

    def hold(self, runs: CodeType | None = None, model: Any = None) -> None:
        """Note the signal from now on.

        Args:
            runs: The code that runs as long as somebody asks `is_asked`. If it ends without
                `release`, as `fit` does by an exception, the signal ends the process as ever.
            model: The model whose method that code is.
        """
        self.is_asked = False
        if threading.current_thread() is not threading.main_thread():
            return
        other = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(other, Termination) and not other._is_running(inspect.currentframe()):
            other.release()  # That of a run which an exception ended.
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        self._runs = runs
        if model is not None:
            self._model, self._history = weakref.ref(model), weakref.ref(model.history)
        signal.signal(signal.SIGTERM, self._note)
        self._is_holding = True

    def release(self) -> None:
        """Give the signal back its default, and have it act if it came after the last look."""
        if self._is_holding:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._is_holding = False
            if self.is_asked:
                self.is_asked = False
                signal.raise_signal(signal.SIGTERM)

    def leave(self, told: str) -> NoReturn:
        """Leave, with the place that the run has come to, and the code that SIGTERM has.

        Raises:
            SystemExit: In any case.
        """
        self.is_asked = False
        self.release()
        print(f"\nAsked to end (SIGTERM), the run left after {told}.", flush=True)
        raise SystemExit(EXIT_CODE)

    def __enter__(self) -> Termination:
        """Note the signal from now on."""
        self.hold()
        return self

    def __exit__(self, *_: Any) -> None:
        """Give the signal back its default."""
        self.release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_running(frame):
            self.is_asked = True
            return
        self.release()
        signal.raise_signal(number)

    def _is_running(self, frame: FrameType | None) -> bool:
        if self._runs is None:
            return True
        model = self._model()
        if model is None or model.history is not self._history():
            return False
        while frame is not None:
            if frame.f_code is self._runs and frame.f_locals.get("self") is model:
                return True
            frame = frame.f_back
        return False


def code_that_runs_callbacks() -> CodeType | None:
    """Return the code that called a callback, such as that of `fit`, from inside the callback."""
    here = inspect.currentframe()
    frame = None if here is None else here.f_back
    kinds = (keras.callbacks.Callback, keras.callbacks.CallbackList)
    while frame is not None and isinstance(frame.f_locals.get("self"), kinds):
        frame = frame.f_back
    return None if frame is None else frame.f_code
