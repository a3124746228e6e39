"""The base class of transforms, and the context that they read in a step."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from gradstab._variables import value_of
from gradstab.transforms.bounds import Bound
from gradstab.transforms.measured import Measured

State = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class VariableRole:
    """Facts about a variable that a transform may use besides its value.

    Attributes:
        path: The variable's path in the model, or its name.
        layer: Name of the layer that owns it; `None` before `bind`.
        layer_class: Class name of that layer; `None` before `bind`.
        unit_axes: Axes over which the norm of one output unit is taken.
        is_output: Whether the layer makes the model's output.
    """

    path: str
    layer: str | None
    layer_class: str | None
    unit_axes: tuple[int, ...]
    is_output: bool


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """A tensor that a transform keeps from one accepted step to the next.

    Attributes:
        shape: Its shape.
        initial: Initial value, a scalar or an array of that shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...] = ()
    initial: float | np.ndarray[Any, Any] = 0.0
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class SeedSpec:
    """A stream of random numbers: the state entry is a `keras.random.SeedGenerator`."""

    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """The values that a transform may read in a step. Lists have one entry per variable, in order.

    Attributes:
        variables: The trainable variables, as they are before the step.
        roles: Facts about each variable, from the bound model, or else from a rule by name and
            rank.
        rows: Row indices of a sparse gradient, whose tensor holds just these rows, each once;
            `None` for a dense one.
        step: Number of updates applied so far, an integer scalar tensor.
        learning_rate: Rate of this step after the rate stage, a float scalar tensor; `None` where
            the parts of a `MultiOptimizer` have rates of their own.
        loss: Loss of this step, a scalar; `None` where the trainer did not pass it.
        consecutive_skips: Steps skipped in a row just before this one, an integer scalar tensor.
        incoming: Gradients before all transforms, reduced over replicas and unscaled.
        outgoing: Gradients after all transforms; there in `veto` only.
        momentum: Momentum of SGD, a float; `None` with any other optimizer.
    """

    variables: Sequence[Any]
    roles: Sequence[VariableRole]
    rows: Sequence[Any]
    step: Any
    learning_rate: Any | None
    loss: Any | None
    consecutive_skips: Any
    incoming: Measured
    outgoing: Measured | None = None
    momentum: float | None = None


class Transform(abc.ABC):
    """A rule on rates, gradients or updates. Holds hyperparameters only.

    Subclasses are final. They declare where they act (`stage`) and which tensors they keep between
    steps (`state_spec`), and compute with `apply`, a function of values, state and context. The new
    state that `apply` returns is stored if the step is applied and dropped if it is skipped, so
    that no rejected value enters a running statistic. A transform of the gradient stage may also
    veto the step (`veto`).

    There are three stages, one after the other: `"rate"` acts on the learning rate of the step, and
    later stages see the result; `"gradient"` acts on the gradients; `"update"` acts on the weight
    changes that the inner optimizer computed. Rules on the rate do not run where there is no single
    rate.

    Every argument of `__init__` is an attribute of the same name; `get_config` returns them all.
    A number that may change during a run is declared as a `Bound` and read through `bound`.
    """

    stage: ClassVar[Literal["rate", "gradient", "update"]] = "gradient"
    cause: ClassVar[str | None] = None
    """Name of the reason for which this transform skips steps; `None` if it never does."""
    limits: ClassVar[str | None] = None
    """Name under which telemetry counts the steps that this transform limits by itself; `None` if
    they count as clipped, as by a bound that a person chose."""

    @property
    def bound_variables(self) -> dict[str, Any]:
        """The variables behind the bounds, once an optimizer has created them."""
        return self.__dict__.setdefault("_bound_variables", {})

    @classmethod
    def bounds(cls) -> list[str]:
        """Names of the hyperparameters that can change during a compiled run."""
        return [
            name
            for owner in reversed(cls.__mro__)
            for name, value in vars(owner).items()
            if isinstance(value, Bound)
        ]

    def bound_values(self) -> dict[str, float]:
        """Return the bounds by name; an optimizer creates a variable for each."""
        return {name: getattr(self, name) for name in self.bounds()}

    def bound(self, name: str) -> Any:
        """Return the current value of a bound, as a tensor for the compiled step."""
        variable = self.bound_variables.get(name)
        if variable is None:
            return keras.ops.convert_to_tensor(self.__dict__[name], "float32")
        return value_of(variable)

    def attach(self, variables: Mapping[str, Any]) -> None:
        """Store the variables that an optimizer made for the bounds. Refuse a second optimizer.

        Raises:
            ValueError: If the transform belongs to an optimizer already.
        """
        if self.__dict__.get("_attached"):
            raise ValueError(
                f"{self!r} belongs to another optimizer already, which would share its bounds. "
                f"Make a new one: {type(self).__name__}.from_config(transform.get_config())"
            )
        self.__dict__["_attached"] = True
        self.bound_variables.update(variables)

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Return the state to keep between steps, given the variables. Empty unless overridden."""
        return {}

    @abc.abstractmethod
    def apply(self, values: Any, state: State, context: Context) -> tuple[Any, State]:
        """Return the transformed values and the new state.

        Args:
            values: Gradients, a `Measured`; updates in the update stage; in the rate stage the
                learning rate, a float32 scalar tensor.
            state: One entry per `state_spec`.
            context: Variables, step count, learning rate and loss of the step.
        """

    def veto(self, state: State, context: Context) -> Any | None:
        """Return a boolean scalar tensor, true if the step must not be applied.

        Called once all gradient transforms have run. `None` stands for "never vetoes".
        """
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal transform."""
        return {name: getattr(self, name) for name in self._arguments()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Transform:
        """Make a transform from the dictionary that `get_config` returned."""
        return cls(**config)

    @classmethod
    def _arguments(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same class, with equal arguments."""
        if not isinstance(other, Transform) or type(other) is not type(self):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"
