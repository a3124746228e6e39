"""Keras code of layers, optimizers and losses as a person writes it, from their configs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

# Arguments that say where an object stands, and not what it is.
_LEFT_OUT = {"name", "dtype", "trainable", "batch_shape", "batch_input_shape"}


def code_of(thing: Any, changes: Mapping[str, Any] | None = None) -> str:
    """Return the line that makes a Keras object, with the arguments that are not its defaults.

    Args:
        thing: A layer or an optimizer.
        changes: Entries of its config to replace.
    """
    config = {**thing.get_config(), **(changes or {})}
    cls = type(thing)
    parts = []
    for place, (name, value) in enumerate(_told(cls, config)):
        text = literal(value)
        parts.append(text if place == 0 and _has_no_default(cls, name) else f"{name}={text}")
    return f"{_home(cls)}{cls.__name__}({', '.join(parts)})"


def literal(value: Any) -> str:
    """Return a value of a config as code: `"relu"` for a serialized activation of that name."""
    if isinstance(value, Mapping):
        name, inner = value.get("class_name"), value.get("config")
        if name == "function":
            return f'"{inner}"' if isinstance(inner, str) else "..."
        if name is not None and isinstance(inner, Mapping):
            arguments = [f"{k}={literal(v)}" for k, v in inner.items()
                         if k not in _LEFT_OUT and v is not None]  # fmt: skip
            return f"{name}({', '.join(arguments)})"
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        items = ", ".join(literal(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)


def _told(cls: Any, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the arguments that differ from the defaults, as the class serializes them."""
    usual: Mapping[str, Any] = {}
    required = {name: config[name] for name in _required(cls) if name in config}
    try:
        usual = cls(**required).get_config()
    except Exception:  # A class of the person's own may ask for more than that.
        usual = {}
    known = inspect.signature(cls.__init__).parameters
    return [
        (name, value)
        for name, value in config.items()
        if name not in _LEFT_OUT
        and (name in known or not usual)
        and (name in required or name not in usual or usual[name] != value)
    ]


def _required(cls: Any) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name not in ("self", "kwargs", "args") and parameter.default is parameter.empty
    ]


def _has_no_default(cls: Any, name: str) -> bool:
    return name in _required(cls)


def _home(cls: Any) -> str:
    """Return how a script reaches a class of Keras: `keras.layers.`; nothing for others."""
    if not cls.__module__.startswith("keras."):
        return ""
    for room in ("layers", "optimizers"):
        if f".{room}." in f"{cls.__module__}.":
            return f"keras.{room}."
    return ""
