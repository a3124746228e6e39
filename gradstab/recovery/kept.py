"""What a recovery knows of its run, as a text that a checkpoint holds, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gradstab.recovery.action import Action


class Part(Protocol):
    """Something that knows of the run."""

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""


class Kept:
    """Makes a text of what the parts of a recovery know, and has them go on from it.

    Args:
        parts: The parts by name.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts

    def text(self, run: Sequence[float], actions: Sequence[Action]) -> str:
        """Return all as text.

        Args:
            run: Numbers that belong to none of the parts.
            actions: What was done.
        """
        states = {name: part.state() for name, part in self._parts.items()}
        told = [[a.name, a.step, a.kind, a.message] for a in actions]
        return json.dumps(states | {"run": [*run], "actions": told})

    def resume(self, text: Any, run: Sequence[float]) -> tuple[list[float], list[Action]]:
        """Have the parts go on, and return what `text` was given.

        Args:
            text: What a checkpoint holds.
            run: As many numbers as there have to be.

        Raises:
            ValueError: If the text is none that a guard made.
        """
        like = json.loads(self.text(run, []))
        try:
            states = json.loads(text)
        except (TypeError, ValueError):
            states = None
        if not isinstance(states, dict) or set(states) != set(like):
            raise _broken(text)
        for name, entries in like.items():
            found = states[name]
            is_right = _is_action if name == "actions" else _is_number
            is_list = isinstance(found, list) and len(found) >= len(entries)
            if not is_list or not all(map(is_right, found)):
                raise _broken(text)
        try:
            for name, part in self._parts.items():
                part.resume(states[name])
        except (TypeError, ValueError) as error:  # too many entries, or one of another kind
            raise _broken(text) from error
        return states["run"], [Action(*each) for each in states["actions"]]


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, int | float) for each in value)
    return value is None or isinstance(value, int | float)


def _is_action(value: Any) -> bool:
    kinds = [type(each) for each in value] if isinstance(value, list) else []
    return kinds == [str, int, str, str]


def _broken(text: Any) -> ValueError:
    return ValueError(
        "What the run directory holds of `DivergenceGuard` must be what a guard kept. Received: "
        f"{str(text)[:80]!r}. Begin the run anew in another `run_dir`"
    )
