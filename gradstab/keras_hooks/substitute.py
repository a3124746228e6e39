"""What an object of Keras' does differently while a block runs, and then no more.

For steps that Keras has no argument for. Keras reads attributes while it traces, so that a change
around the call is enough; what one replica's thread must not see goes outside the replicas. Blocks
nest, and each leaves the object as it found it: an attribute of its own comes back, and one that it
has from its class is its class's again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value, as an assignment does.

    Raises:
        AttributeError: If the object has no such attribute.
    """
    before = getattr(owner, name)
    is_assigned = name in vars(owner) or hasattr(getattr(type(owner), name, None), "__set__")
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_assigned:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def replaced_untracked(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value without telling what tracks the owner's attributes.

    Raises:
        AttributeError: If the object has no such attribute.
    """
    getattr(owner, name)
    attributes = vars(owner)
    has_own, own = name in attributes, attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if has_own:
            attributes[name] = own
        else:
            attributes.pop(name, None)


def replaced_method(
    owner: Any, name: str, function: Callable[..., Any]
) -> contextlib.AbstractContextManager[None]:
    """Have a method of this one object do something else.

    Raises:
        AttributeError: If the object has no such method.
    """
    return replaced_untracked(owner, name, function)
