"""Kernels that begin as the identity, as far as their shape allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import keras
import numpy as np
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_float, check_int
from gradstab.initializers.orthogonal import at_centre, check_convolution


@final
@register
class ConvolutionIdentity(keras.initializers.Initializer):
    r"""Convolution kernels that pass each channel on unchanged (Dirac kernels).

    $$K_{c,i,j} = \mathrm{gain}\cdot\delta_{ij}, \qquad K_{p,:,:} = 0 \ \ (p \neq c)$$

    with c the centre tap under "same" padding. With more outputs than inputs, the other outputs are
    0; with fewer, the other inputs are ignored. Use it for layers that should do nothing at first:
    in plain deep nets, or for a layer added to a trained model.

    Args:
        gain: Factor of the signal, a positive float.
        groups: Groups of the convolution; each passes its own inputs on.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `gain` is not positive and finite or `groups` below 1; and when called, if
            the kernel is not one of a convolution over 1 to 3 dimensions, or its outputs are not
            divisible by `groups`.

    Example:
        >>> import keras
        >>> from gradstab.initializers import ConvolutionIdentity
        >>> layer = keras.layers.Conv1D(
        ...     2, 3, padding="same", kernel_initializer=ConvolutionIdentity())
        >>> x = keras.ops.convert_to_tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> keras.ops.convert_to_numpy(layer(x)).tolist()
        [[[1.0, 2.0], [3.0, 4.0]]]

    Reference: Zagoruyko and Komodakis, 2017, DiracNets: training very deep neural networks without
    skip-connections.
    """

    def __init__(self, gain: float = 1.0, groups: int = 1) -> None:
        self.gain = check_float("gain", gain)
        self.groups = check_int("groups", groups)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return a kernel of a shape."""
        check_convolution(shape, type(self).__name__)
        inputs, outputs = shape[-2:]
        if outputs % self.groups:
            raise ValueError(
                "`groups` must divide the outputs of the kernel. Received: "
                f"groups={self.groups} for a kernel of shape {tuple(shape)}"
            )
        of_group = np.eye(inputs, outputs // self.groups, dtype="float32")
        matrix = self.gain * np.tile(of_group, (1, self.groups))
        return at_centre(ops.convert_to_tensor(matrix), shape, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this initializer."""
        return {"gain": self.gain, "groups": self.groups}

    def __repr__(self) -> str:
        return f"ConvolutionIdentity(gain={self.gain:g}, groups={self.groups})"


@final
@register
class ZerO(keras.initializers.Initializer):
    r"""Kernels of zeros and ones, or Hadamard matrices where a layer widens; nothing is random.

    - as many outputs as inputs: the identity;
    - fewer outputs: the first columns of the identity, which pass on the first inputs;
    - more outputs: $c\,I^* H_m I^*$, with $H_m$ the Hadamard matrix of size $2^m$,
      $m = \lceil\log_2 \mathrm{outputs}\rceil$, $c = 2^{-(m-1)/2}$ and $I^*$ the identity cut to
      the shape. With plain zeros and ones the new units would stay equal for ever.

    Convolutions have this at their centre and zeros elsewhere. In the paper the last layer of each
    residual branch is zero: use `Zeros` there. It suits residual nets; runs with different seeds
    then differ only by the order of their data.

    Raises:
        ValueError: When called, if the kernel is neither a dense one nor one of a convolution over
            1 to 3 dimensions.

    Example:
        >>> import keras
        >>> from gradstab.initializers import ZerO
        >>> (2 * keras.ops.convert_to_numpy(ZerO()((2, 5)))).tolist()
        [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0, 1.0]]

    Reference: Zhao, Schäfer and Anandkumar, 2022, ZerO initialization: initializing neural networks
    with only zeros and ones.
    """

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return a kernel of a shape."""
        check_convolution(shape, type(self).__name__, dense=True)
        inputs, outputs = shape[-2:]
        if outputs <= inputs:
            matrix = np.eye(inputs, outputs, dtype="float32")
        else:
            power = int(outputs - 1).bit_length()
            rows, columns = np.arange(inputs)[:, None], np.arange(outputs)[None]
            # An entry is negative where this has an odd number of bits.
            odd = rows & columns
            for shift in (32, 16, 8, 4, 2, 1):
                odd = odd ^ (odd >> shift)
            odd &= 1
            matrix = (2.0 ** (-(power - 1) / 2) * (1.0 - 2.0 * odd)).astype("float32")
        return at_centre(ops.convert_to_tensor(matrix), shape, dtype)

    def get_config(self) -> dict[str, Any]:
        """Return no arguments: there are none."""
        return {}

    def __repr__(self) -> str:
        return "ZerO()"
