"""The kernels that a step moves, how large they usually are, and what a step changes of a net."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from gradstab.transforms.base import Context, VariableRole

_Numbers = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Variables of many units, one entry of each vector per kernel.

    Biases and gains, of any rank, are one unit as a whole, and no kernels.

    Attributes:
        places: Their places among all variables.
        sizes: Numbers of entries.
        inputs: Numbers of inputs of a unit.
    """

    places: _Numbers
    sizes: _Numbers
    inputs: _Numbers

    @classmethod
    def of(cls, context: Context) -> Kernels:
        """Find those that a step may move."""
        triples = zip(context.variables, context.roles, context.incoming.values, strict=True)
        rows = [
            (place, math.prod(variable.shape), _inputs(variable, role))
            for place, (variable, role, gradient) in enumerate(triples)
            if gradient is not None
            and len(role.unit_axes) < len(variable.shape)
            and math.prod(variable.shape)
        ]
        return cls(*np.array(rows, "int64").reshape(-1, 3).T)

    def __len__(self) -> int:
        return len(self.places)

    def but(self, places: Any) -> Kernels:
        """Return the others."""
        others = ~np.isin(self.places, places)
        return Kernels(self.places[others], self.sizes[others], self.inputs[others])

    @property
    def usual_norms(self) -> _Numbers:
        """The norms that kernels of so many entries usually begin with.

        The smaller of what LeCun et al., 1998, and Glorot and Bengio, 2010, give entries as
        variance: layers with far more units than inputs, such as those that tell words apart, begin
        with the latter.
        """
        variances = np.minimum(1 / self.inputs, 2 / (self.inputs + self.sizes / self.inputs))
        return np.sqrt(self.sizes * variances).astype("float32")

    @property
    def usual_norm(self) -> float:
        """The norm that they usually begin with, all together."""
        return float(np.linalg.norm(self.usual_norms))

    @property
    def largest_usual_norm(self) -> float:
        """The norm that they have all together from the initializer that gives the most.

        That is the one of He et al., 2015, by inputs.
        """
        return math.sqrt(float(np.sum(self.sizes * 2 / self.inputs)))

    def norms(self, context: Context) -> Any:
        """Return their norms, a float32 vector."""
        return ops.take(context.weight_norms, self.places)

    def response(self, context: Context) -> Any:
        """Return what a step of the rate η for every weight changes, at most, in units of η.

        Σ √(n·f)/‖w‖ over kernels of n weights w with f inputs per unit: if all weights of one move
        in one direction, what it gives changes by η·√(n·f)/‖w‖ of what it gives, and these changes
        add up from layer to layer. A kernel that begins smaller than is usual counts as usual.

        Args:
            context: Of the step.

        Returns:
            A float32 scalar tensor, 0 where no kernel moves.
        """
        if not len(self):
            return ops.convert_to_tensor(0.0, "float32")
        norms = ops.maximum(self.norms(context), self.usual_norms)
        return ops.sum(np.sqrt(self.sizes * self.inputs).astype("float32") / norms)


def _inputs(variable: Any, role: VariableRole) -> int:
    """Return the number of inputs of a unit."""
    return max(1, math.prod(variable.shape[axis] for axis in role.unit_axes))
