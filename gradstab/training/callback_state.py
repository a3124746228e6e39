"""State of callbacks, saved with the weights, so that a resumed run decides the same way."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import keras
import numpy as np

# What changes while they run. A class of a user's own names its attributes in `kept_attributes`.
_OF_KERAS: Final[dict[type, tuple[str, ...]]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
}

State = dict[str, Any]


def state_of(callbacks: Iterable[Any]) -> tuple[list[State], dict[str, Any]]:
    """Return what callbacks keep: plain values, and arrays apart, each by its place and attribute.

    Raises:
        TypeError: If an attribute that a callback wants kept is neither a number, a text, a flag,
            `None`, an array, nor a list of such.
    """
    states: list[State] = []
    arrays: dict[str, Any] = {}
    for callback, names in _keeping(callbacks):
        values: State = {}
        for name in names:
            value = getattr(callback, name, None)
            if isinstance(value, list | tuple) and any(isinstance(v, np.ndarray) for v in value):
                prefix = f"{len(states)}.{name}"
                arrays |= {f"{prefix}.{place}": _storable(v) for place, v in enumerate(value)}
                values[name] = {"arrays": len(value)}
            else:
                values[name] = _plain(callback, name, value)
        states.append({"class": type(callback).__name__, "values": values})
    return states, arrays


def put_back(callbacks: Iterable[Any], states: list[State], arrays: Mapping[str, Any]) -> None:
    """Have callbacks go on from states, each from that of its class, in order."""
    kept: dict[str, list[tuple[int, State]]] = collections.defaultdict(list)
    for place, state in enumerate(states):
        kept[state["class"]].append((place, state["values"]))
    for callback, names in _keeping(callbacks):
        waiting = kept[type(callback).__name__]
        if not waiting:
            continue  # It was added since, and begins anew.
        place, values = waiting.pop(0)
        for name in names:
            value = values.get(name)
            if isinstance(value, dict):
                value = [arrays[f"{place}.{name}.{each}"] for each in range(value["arrays"])]
            if name in values:
                setattr(callback, name, value)
    lost = [name for name, waiting in kept.items() for _ in waiting]
    if lost:
        warnings.warn(
            f"The resumed run lacks callbacks that it had: {', '.join(lost)}. What they knew is "
            "lost from the next checkpoint on",
            stacklevel=4,
        )


def are_states(states: Any) -> bool:
    """Whether something that was read has the form of states."""
    return isinstance(states, list) and all(
        isinstance(state, dict)
        and isinstance(state.get("class"), str)
        and isinstance(state.get("values"), dict)
        and all(_is_value(value) for value in state["values"].values())
        for state in states
    )


def names_of_arrays(states: list[State]) -> set[str]:
    """Return the names of the arrays that belong to states."""
    return {
        f"{place}.{name}.{each}"
        for place, state in enumerate(states)
        for name, value in state["values"].items()
        if isinstance(value, dict)
        for each in range(value["arrays"])
    }


def _keeping(callbacks: Iterable[Any]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    for callback in callbacks:
        names = list(getattr(callback, "kept_attributes", ()))
        for kind, known in _OF_KERAS.items():
            names += known if isinstance(callback, kind) else ()
        if names:
            yield callback, tuple(names)


def _storable(array: Any) -> Any:
    """Return an array that NumPy's files can hold: bfloat16 as float32, which holds it exactly."""
    return array.astype("float32") if getattr(array, "dtype", None) == "bfloat16" else array


def _plain(callback: Any, name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) or keras.ops.is_tensor(value):
        value = keras.ops.convert_to_numpy(value).tolist()
    if isinstance(value, list | tuple):
        return [_plain(callback, name, each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"`kept_attributes` of {type(callback).__name__} must name numbers, texts, arrays and "
        f"lists of them. Received: {name}, a {type(value).__name__}"
    )


def _is_value(value: Any) -> bool:
    if isinstance(value, dict):
        count = value.get("arrays")
        return set(value) == {"arrays"} and isinstance(count, int) and 0 <= count < 1_000_000
    return True
