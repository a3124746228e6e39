"""Registration of public classes, so that a saved model finds them again."""

from __future__ import annotations

from typing import TypeVar

import keras

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Register a public class with Keras as `gradstab>Name`, as a class decorator."""
    registered: _Class = keras.saving.register_keras_serializable(package="gradstab")(cls)
    return registered
