"""A list of tensors with its norms, which are computed once and only if somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from gradstab.functional.clipping import scale
from gradstab.functional.norms import combine_norms, norms


class Measured:
    """Gradients or updates, one per variable, with what has been measured on them.

    A transform receives one and returns one. `scaled` and `mapped` make the next: scaling knows the
    new norms without another pass over memory, mapping measures again if it is asked.

    Args:
        values: One tensor per variable, `None` where a variable has none.
        norms: The norms of `values`, if they are known already.
        clipped: Whether a transform has clipped these values, a boolean scalar tensor.
    """

    def __init__(
        self, values: Sequence[Any], norms: Any | None = None, clipped: Any | None = None
    ) -> None:
        self.values: list[Any] = list(values)
        self._norms = norms
        self._global_norm: Any | None = None
        self._clipped = clipped

    def __len__(self) -> int:
        return len(self.values)

    @property
    def norms(self) -> Any:
        """Norm of each tensor, a float32 vector with 0 for `None`. Overflow-safe."""
        if self._norms is None:
            self._norms = norms(self.values)
        return self._norms

    @property
    def global_norm(self) -> Any:
        """Norm over all tensors, a float32 scalar."""
        if self._global_norm is None:
            self._global_norm = combine_norms(self.norms)
        return self._global_norm

    @property
    def clipped(self) -> Any:
        """Whether a transform clipped anything on the way here, a boolean scalar tensor."""
        return ops.convert_to_tensor(False) if self._clipped is None else self._clipped

    def scaled(self, factors: Any) -> Measured:
        """Multiply by one factor, or by one per tensor, and count any factor below 1 as a clip.

        Args:
            factors: Float32 scalar, or vector of shape `(len(self),)`.
        """
        factors = ops.convert_to_tensor(factors)
        each = [factors] * len(self) if len(factors.shape) == 0 else list(ops.unstack(factors))
        values = [scale(value, factor) for value, factor in zip(self.values, each, strict=True)]
        clipped = ops.logical_or(self.clipped, ops.any(factors < 1.0))
        return Measured(values, self.norms * factors, clipped)

    def mapped(self, function: Callable[[int, Any], Any], *, clips: bool = False) -> Measured:
        """Replace each tensor g at index i by `function(i, g)`; `None` stays `None`.

        Args:
            function: Gives a tensor of the same shape and dtype.
            clips: Whether to count a norm that shrinks as a clip.
        """
        values = [
            None if value is None else function(index, value)
            for index, value in enumerate(self.values)
        ]
        result = Measured(values, clipped=self._clipped)
        if clips:
            shrank = ops.any(result.norms < self.norms)
            result._clipped = ops.logical_or(self.clipped, shrank)
        return result
