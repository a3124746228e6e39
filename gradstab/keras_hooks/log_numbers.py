"""Numbers for the logs of a step, in the form of which Keras finds out fastest what they are."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Without TensorFlow's base class of what it takes for tensors, logs are but slower.
_TensorType: Any = getattr(getattr(tf.__internal__, "types", None), "Tensor", object)


class LogNumber(float, _TensorType):
    """A float that counts as a tensor.

    Keras asks of every log of every step whether it is one, and TensorFlow needs 0.1 microseconds
    to say yes and 7 to say no, in Python, while the next step waits for the interpreter.
    """
