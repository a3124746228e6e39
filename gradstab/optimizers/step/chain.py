"""The transforms of one optimizer with the variables behind their state and bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from gradstab._variables import value_of
from gradstab.optimizers.step.gating import assign_if
from gradstab.transforms.base import Context, SeedSpec, Transform

NewStates = list[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ran:
    """Results of the transforms of one stage.

    Attributes:
        values: The rate, the gradients or the updates.
        new_states: What each transform of the chain wants to keep; empty for those of other stages.
        limited: Whether each that counts limited steps limited this one, boolean scalar tensors.
    """

    values: Any
    new_states: NewStates
    limited: list[Any]

    def joined(self, later: Ran) -> NewStates:
        """Return the new states of this stage and a later one."""
        return [{**one, **two} for one, two in zip(self.new_states, later.new_states, strict=True)]


class Chain:
    """Runs transforms in the order of their list, and stores their state when a step is applied.

    Args:
        transforms: The transforms of both stages.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        self._states: list[dict[str, Any]] = []

    @property
    def causes(self) -> list[str]:
        """Names of the reasons for which steps may be skipped, in the order of the vetoes."""
        return [t.cause for t in self.transforms if t.cause is not None]

    @property
    def limits(self) -> list[str]:
        """Names under which limited steps are counted, in the order in which flags are given."""
        ordered = sorted(self.transforms, key=lambda transform: transform.stage != "rate")
        return [t.limits for t in ordered if t.limits is not None]

    @property
    def variables(self) -> list[Any]:
        """The variables behind state; seeds are not among them."""
        entries = [entry for state in self._states for entry in state.values()]
        return [e for e in entries if not isinstance(e, keras.random.SeedGenerator)]

    def described(self, inner: str) -> list[str]:
        """Return the transforms as they are printed, round the name of the inner optimizer."""
        by_stage: dict[str, list[str]] = {"rate": [], "gradient": [], "update": []}
        for transform in self.transforms:
            by_stage[transform.stage].append(repr(transform))
        return [*by_stage["rate"], *by_stage["gradient"], inner, *by_stage["update"]]

    def acts_on(self, stage: str) -> bool:
        """Whether a transform acts in a stage."""
        return any(transform.stage == stage for transform in self.transforms)

    def build(
        self,
        add_variable: Callable[..., Any],
        track: Callable[[Any], None],
        variables: Sequence[Any],
    ) -> None:
        """Make the variables behind bounds and state.

        Args:
            add_variable: `add_variable` of the optimizer that will own them.
            track: Has that optimizer own a variable that Keras made.
            variables: The variables to be trained.
        """
        for transform in self.transforms:
            prefix = type(transform).__name__

            # Aggregation "none": every replica writes its own copy, and all write the same.
            def add(name: str, prefix: str = prefix, **arguments: Any) -> Any:
                return add_variable(aggregation="none", name=f"{prefix}_{name}", **arguments)

            bounds = {
                name: add(
                    name,
                    shape=(),
                    dtype="float32",
                    initializer=keras.initializers.Constant(value),
                )
                for name, value in transform.bound_values().items()
            }
            transform.attach(bounds)
            state: dict[str, Any] = {}
            for name, spec in transform.state_spec(variables).items():
                if isinstance(spec, SeedSpec):
                    state[name] = keras.random.SeedGenerator(spec.seed)
                    track(state[name].state)
                else:
                    state[name] = add(
                        name, shape=spec.shape, dtype=spec.dtype, initializer=_filled(spec.initial)
                    )
            self._states.append(state)

    def limit_rate(self, context: Context) -> Ran:
        """Run the transforms on the rate; its value is `None` where they leave that alone.

        So it is where there are none, and where the parts of a `MultiOptimizer` have rates of their
        own.
        """
        if context.learning_rate is not None and self.acts_on("rate"):
            rate = ops.cast(value_of(context.learning_rate), "float32")
            return self.run("rate", rate, context)
        idle = [t for t in self.transforms if t.stage == "rate" and t.limits is not None]
        return Ran(None, [{} for _ in self.transforms], [ops.convert_to_tensor(False)] * len(idle))

    def run(self, stage: str, values: Any, context: Context) -> Ran:
        """Run the transforms of one stage on the rate, the gradients or the updates."""
        new_states: NewStates = []
        limited: list[Any] = []
        for transform, state in zip(self.transforms, self._states, strict=True):
            new: Mapping[str, Any] = {}
            if transform.stage == stage:
                given = values
                if transform.limits is not None and stage != "rate":
                    given = values.with_clipped(None)
                made, new = transform.apply(given, _read(state), context)
                if transform.limits is None:
                    values = made
                elif stage == "rate":
                    limited.append(made < values)
                    values = made
                else:
                    limited.append(made.clipped)
                    values = made.with_clipped(values.clipped)
            new_states.append(new)
        return Ran(values, new_states, limited)

    def vetoes(self, context: Context) -> list[Any]:
        """Ask every transform that may skip a step: boolean scalar tensors, one per cause."""
        return [
            ops.convert_to_tensor(False if veto is None else veto)
            for transform, state in zip(self.transforms, self._states, strict=True)
            if transform.cause is not None
            for veto in [transform.veto(_read(state), context)]
        ]

    def store(self, new_states: NewStates, accept: Any | None = None) -> None:
        """Write what `run` returned as the new states.

        Args:
            new_states: What `run` returned.
            accept: Whether the step is accepted, a boolean scalar tensor; `None` where it is.
        """
        variables = [
            state[name] for state, new in zip(self._states, new_states, strict=True) for name in new
        ]
        values = [value for new in new_states for value in new.values()]
        if accept is not None:
            assign_if(accept, variables, values)
            return
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _filled(initial: Any) -> Callable[..., Any]:
    def initializer(shape: Sequence[int], dtype: str | None = None) -> Any:
        return ops.broadcast_to(ops.cast(initial, dtype or "float32"), shape)

    return initializer


def _read(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: entry if isinstance(entry, keras.random.SeedGenerator) else value_of(entry)
        for name, entry in state.items()
    }
