"""What an object of Keras' does differently while a block runs, and then no more.

For steps that Keras has no argument for. Keras reads attributes while it traces, so that a change
around the call is enough; what one replica's thread must not see goes outside the replicas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def replaced_untracked(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value without telling what tracks the owner's attributes."""
    before = vars(owner)[name]
    vars(owner)[name] = value
    try:
        yield
    finally:
        vars(owner)[name] = before


@contextlib.contextmanager
def replaced_method(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Have a method of this one object do something else; one that it was given comes back.

    Raises:
        AttributeError: If it has no such method.
    """
    getattr(owner, name)
    has_own, own = name in vars(owner), vars(owner).get(name)
    vars(owner)[name] = function
    try:
        yield
    finally:
        vars(owner).pop(name, None)
        if has_own:
            vars(owner)[name] = own
