"""Attributes that a person gave an object, without those that keep track of them."""

from __future__ import annotations

from typing import Any, Final

# So begin the attributes by which TensorFlow tracks the others.
_PREFIXES: Final = ("_self_", "_obj_")


def own_attributes(holder: Any) -> dict[str, Any]:
    """Return the attributes of a layer or model by name, in the order in which they were set."""
    return {name: each for name, each in vars(holder).items() if not name.startswith(_PREFIXES)}
