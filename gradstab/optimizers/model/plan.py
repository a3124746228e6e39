"""The optimizer's knowledge of the model that it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gradstab._replicas import replica_index
from gradstab._variables import resource, variable_path
from gradstab.optimizers.compiled.values import usable_here
from gradstab.optimizers.model import binding
from gradstab.optimizers.model.damage import (
    MOMENT,
    STATISTIC,
    WEIGHT,
    Damage,
    Part,
    first_damage,
)
from gradstab.optimizers.model.forward_state import ForwardState
from gradstab.transforms.base import VariableRole


@dataclasses.dataclass
class Plan:
    """A plain object, since Keras tracks what an optimizer holds in lists.

    Attributes:
        variables: The variables to be trained.
        binding: What the model told of them, or `None`.
        forward_state: What else of the model a skipped step puts back.
        losses: The loss that the trainer showed in this step, by replica.
    """

    variables: list[Any] = dataclasses.field(default_factory=list)
    binding: binding.Binding | None = None
    forward_state: ForwardState = dataclasses.field(default_factory=ForwardState)
    losses: dict[int, Any] = dataclasses.field(default_factory=dict)
    _index: dict[int, int] = dataclasses.field(default_factory=dict)

    def take_in(self, variables: Sequence[Any]) -> None:
        """Learn the variables to be trained."""
        self.variables = list(variables)
        for position, variable in enumerate(self.variables):
            self._index[id(variable)] = position
            self._index.setdefault(id(resource(variable)), position)

    def position(self, variable: Any) -> int:
        """Return the place of a variable, given as Keras' or as TensorFlow's.

        Raises:
            ValueError: If the optimizer was not built for it.
        """
        position = self._index.get(id(variable), self._index.get(id(resource(variable))))
        if position is None:
            raise ValueError(
                f"Unknown variable: {variable_path(variable)}. The optimizer was built for "
                f"{len(self.variables)} others. Make a new optimizer for a new set of variables"
            )
        return position

    def bind(self, model: Any) -> bool:
        """Take in what a model tells; return whether steps traced before miss something of it."""
        before, self.binding = self.binding, binding.bind(model)
        variables, loss = self.binding.forward_variables, self.binding.running_loss
        if self.forward_state.holds(variables, loss):
            self.forward_state.synchronize()
        else:
            self.forward_state = ForwardState(variables, loss)
            return True
        return before is None or before.roles != self.binding.roles

    def share(self, other: Plan) -> bool:
        """Take in what another optimizer of the same model was told.

        What a forward pass changes is kept by all of them together: a step that one of them skips
        must not undo what the others have applied since its own last step.

        Returns:
            Whether steps traced before miss something of it.
        """
        is_new = self.forward_state is not other.forward_state
        before, self.binding = self.binding, other.binding
        self.forward_state = other.forward_state
        return is_new or before is None or before.roles != getattr(other.binding, "roles", None)

    def roles(self) -> list[VariableRole]:
        """Return the role of each variable, as bound, or by the rule that stands in."""
        known = self.binding.roles if self.binding is not None else {}
        return [known.get(id(v)) or binding.unbound_role(v) for v in self.variables]

    def note_loss(self, loss: Any) -> None:
        """Keep the loss that this replica's trainer showed."""
        self.losses[replica_index()] = loss

    def take_loss(self) -> Any | None:
        """Return that loss, if it belongs to this step, and forget it."""
        return usable_here(self.losses.pop(replica_index(), None))

    def first_damage(self, moments: Sequence[Any]) -> Damage | None:
        """Return what is not finite among weights, moving statistics and moments, or `None`."""
        kinds = (
            (WEIGHT, self.variables),
            (STATISTIC, self.forward_state.of_layers),
            (MOMENT, moments),
        )
        return first_damage(Part(each, kind) for kind, some in kinds for each in some)
