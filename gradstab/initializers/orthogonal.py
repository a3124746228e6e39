"""Orthogonal convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_choice, check_float


@final
@register
class DeltaOrthogonal(keras.initializers.Initializer):
    r"""Convolution kernels that keep the norm of their input: orthogonal at their centre, else 0.

    $$K_{c,:,:} = \mathrm{gain}\cdot H, \quad H H^\top = I, \qquad K_{p,:,:} = 0 \ \ (p \neq c)$$

    with c the centre tap under "same" padding, and H of shape (inputs, outputs) drawn uniformly.
    Each position is rotated separately, so the norm is kept exactly, forward and backward: nets of
    thousands of plain convolutions train. Use it in deep plain tanh nets, with `gain` the square
    root of σ_w² of the activation's `critical_point`.

    Args:
        gain: Factor of the norm, a positive float.
        seed: An integer, a `keras.random.SeedGenerator`, or `None`. As with Keras' initializers, an
            instance returns the same values each time, unless its seed is a `SeedGenerator`: create
            one instance per layer.
        transposed: Whether kernels are those of a transposed convolution, (..., outputs, inputs).
            The shape does not show this.

    Raises:
        TypeError: If `gain` is not a number.
        ValueError: If it is not positive and finite; and when called, if the kernel is not one of a
            convolution over 1 to 3 dimensions, or has more inputs than outputs: then no kernel
            keeps every norm. (The kernel of a grouped convolution shows the inputs of one group
            only, and is not orthogonal as a whole.)

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.initializers import DeltaOrthogonal
        >>> kernel = keras.ops.convert_to_numpy(DeltaOrthogonal(seed=0)((3, 3, 8, 16)))
        >>> bool(np.allclose(kernel[1, 1] @ kernel[1, 1].T, np.eye(8), atol=1e-6))
        True
        >>> float(abs(kernel[0]).max())
        0.0

    Reference: Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, 2018, Dynamical isometry and
    a mean field theory of CNNs: how to train 10,000-layer vanilla convolutional neural networks.
    """

    def __init__(self, gain: float = 1.0, seed: Any = None, transposed: bool = False) -> None:
        self.gain = check_float("gain", gain)
        self.transposed = bool(check_choice("transposed", transposed, (True, False)))
        self._draw = keras.initializers.Orthogonal(self.gain, seed)
        self.seed = self._draw.seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return a kernel of a shape, made in float32 and then cast to `dtype`."""
        check_convolution(shape, type(self).__name__)
        inputs, outputs = shape[-2:] if not self.transposed else shape[:-3:-1]
        if inputs > outputs:
            other = "" if self.transposed else (
                ", or DeltaOrthogonal(transposed=True) if it is the kernel of a transposed "
                "convolution"
            )  # fmt: skip
            raise ValueError(
                "DeltaOrthogonal needs at least as many outputs as inputs. Received: a kernel of "
                f"shape {tuple(shape)} with {inputs} inputs and {outputs} outputs. Use Orthogonal "
                f"there{other}"
            )
        return at_centre(self._draw(shape[-2:], "float32"), shape, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this initializer."""
        seed = self._draw.get_config()["seed"]
        return {"gain": self.gain, "seed": seed, "transposed": self.transposed}

    def __repr__(self) -> str:
        return f"DeltaOrthogonal(gain={self.gain:g}, transposed={self.transposed})"


def check_convolution(shape: Sequence[int], name: str, *, dense: bool = False) -> None:
    """Raise unless a shape is that of a convolution's kernel, or of a dense one where that serves.

    Raises:
        ValueError: Says what is expected.
    """
    if not (2 if dense else 3) <= len(shape) <= 5:
        kinds = "a dense kernel, or " if dense else ""
        fix = "" if dense else ". For a dense kernel use Orthogonal"
        raise ValueError(
            f"{name} makes {kinds}kernels of convolutions over 1 to 3 dimensions, of shape (..., "
            f"inputs, outputs). Received: shape={tuple(shape)}{fix}"
        )


def at_centre(matrix: Any, shape: Sequence[int], dtype: Any) -> Any:
    """Return a kernel that has a matrix at its centre and zeros elsewhere.

    Args:
        matrix: Tensor of the shape of the last two axes.
        shape: Shape of the kernel.
        dtype: Of the kernel; by default `keras.config.floatx()`.
    """
    taps = shape[:-2]
    # Where "same" padding pads an even kernel unevenly, it does so at the end.
    centre = 0
    for size in taps:
        centre = centre * size + (size - 1) // 2
    is_centre = ops.cast(ops.arange(math.prod(taps)) == centre, matrix.dtype)
    kernel = ops.reshape(is_centre[:, None, None] * matrix[None], shape)
    return ops.cast(kernel, dtype or keras.config.floatx())
