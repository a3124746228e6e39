"""Kernels of Keras' layers as variables."""

from __future__ import annotations

from typing import Any, Final

import keras

# Where LoRA or quantization acts, the public `kernel` is a tensor, and `_kernel` the variable.
_NAMES: Final = ("kernel", "_kernel", "depthwise_kernel", "pointwise_kernel")


def kernel_variables(layer: Any) -> dict[str, Any]:
    """Return the kernels that a layer holds, by attribute; the one next to its output is last."""
    found = {name: vars(layer).get(name) for name in _NAMES}
    return {name: each for name, each in found.items() if isinstance(each, keras.Variable)}
