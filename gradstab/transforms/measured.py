"""A list of tensors with its norms, which are computed once and only if somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keras import ops

from gradstab.functional.clipping import scale_each
from gradstab.functional.norms import combine_norms, norms_and_global_norm


class Measured:
    """Gradients or updates, one per variable, with what has been measured on them.

    A transform receives one and returns one. `scaled` and `mapped` make the next: scaling knows the
    new norms without another pass over memory, mapping measures again if it is asked.

    Factors of several transforms are multiplied with each other first, and with the values only
    when somebody asks for these: a step that turns out not to be clipped needs no multiplication at
    all (`forms`).

    Args:
        values: One tensor per variable, `None` where a variable has none.
        norms: The norms of what is held, if they are known already.
        clipped: Whether a transform has clipped these values, a boolean scalar tensor.
        factors: Float32 scalar, or vector with one per variable, by which `values` are still to be
            multiplied; `None` for 1.
    """

    def __init__(
        self,
        values: Sequence[Any],
        norms: Any | None = None,
        clipped: Any | None = None,
        factors: Any | None = None,
    ) -> None:
        self._unscaled = list(values)
        self._factors = factors
        self._values: list[Any] | None = self._unscaled if factors is None else None
        self._norms = norms
        self._global_norm: Any | None = None
        self._clipped = clipped

    def __len__(self) -> int:
        return len(self._unscaled)

    @property
    def values(self) -> list[Any]:
        """One tensor per variable, `None` where a variable has none."""
        if self._values is None:
            self._values = scale_each(self._unscaled, self._factors)
        return self._values

    def forms(self) -> tuple[Any | None, list[Callable[[], list[Any]]]]:
        """Return functions that give the values, and a flag that says which of them is right.

        Where every factor is 1, the flag is false, and the first function gives the values without
        touching them. The functions are to be called where the values are used, in the branch of a
        condition say.

        Returns:
            A boolean scalar tensor and two functions; or `None` and one, if there is no choice.
        """
        if self._values is not None:
            values = self._values
            return None, [lambda: values]
        # Not kept: they may be those of a branch.
        scaled = partial(scale_each, self._unscaled, self._factors)
        return ops.any(self._factors != 1.0), [lambda: self._unscaled, scaled]

    @property
    def norms(self) -> Any:
        """Norm of each tensor, a float32 vector with 0 for `None`. Overflow-safe."""
        if self._norms is None:
            self._norms, self._global_norm = norms_and_global_norm(self.values)
        return self._norms

    @property
    def global_norm(self) -> Any:
        """Norm over all tensors, a float32 scalar."""
        norms = self.norms
        if self._global_norm is None:
            self._global_norm = combine_norms(norms)
        return self._global_norm

    @property
    def clipped(self) -> Any:
        """Whether a transform clipped anything on the way here, a boolean scalar tensor."""
        return ops.convert_to_tensor(False) if self._clipped is None else self._clipped

    def with_clipped(self, clipped: Any | None) -> Measured:
        """Return the same, of a step that counts as clipped where this boolean scalar is true.

        Args:
            clipped: Boolean scalar tensor; `None` where nothing was clipped.
        """
        _ = self.norms  # So that both know them, and nobody measures again.
        result = Measured(self._unscaled, self._norms, clipped, self._factors)
        result._values, result._global_norm = self._values, self._global_norm
        return result

    def scaled(self, factors: Any) -> Measured:
        """Multiply by one factor, or by one per tensor, and count any factor below 1 as a clip.

        Args:
            factors: Float32 scalar, or vector of shape `(len(self),)`.
        """
        factors = ops.convert_to_tensor(factors)
        is_one = len(factors.shape) == 0
        clipped = factors < 1.0 if is_one else ops.any(factors < 1.0)
        if self._clipped is not None:
            clipped = ops.logical_or(self._clipped, clipped)
        norms = self.norms * factors
        if self._values is None:
            result = Measured(self._unscaled, norms, clipped, self._factors * factors)
        else:
            result = Measured(self._values, norms, clipped, factors)
        if is_one:
            result._global_norm = self.global_norm * factors
        return result

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

    def part(self, places: Sequence[int]) -> Measured:
        """Return some of the tensors, with the norms that are known of all."""
        values = [self.values[place] for place in places]
        return Measured(values, ops.take(self.norms, list(places)))

    def with_part(self, places: Sequence[int], part: Measured) -> Measured:
        """Put the tensors of a part back at their places, with what has been measured on them."""
        values = list(self.values)
        for place, value in zip(places, part.values, strict=True):
            values[place] = value
        norms = ops.scatter_update(self.norms, [[place] for place in places], part.norms)
        clipped = self._clipped
        if part._clipped is not None:
            clipped = ops.logical_or(self.clipped, part._clipped)
        return Measured(values, norms, clipped)
