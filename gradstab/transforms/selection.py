"""Restricts a transform to some of the variables, by patterns on their paths."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import keras

from gradstab._serialization import register
from gradstab._variables import variable_path
from gradstab.transforms.base import Context, SeedSpec, State, StateSpec, Transform
from gradstab.transforms.measured import Measured

Patterns = str | Sequence[str] | None


@final
@register
class Only(Transform):
    """Restricts a transform to some variables, chosen by their paths.

    Use it to clip an embedding apart from the rest, to keep a rule away from biases, or to judge
    one part of a model. The transform inside works as if the other variables did not exist: a
    global norm is that of the chosen ones. `Only` may hold another `Only`. Change a hyperparameter
    through the attribute: `only.transform.max_norm = 0.5`.

    A variable is chosen if its path matches a pattern of `include` and none of `exclude`. Patterns
    are those of the shell: `*` stands for any characters including slashes, `?` for one, `[ab]` for
    one of a set; case matters. A pattern has to match the whole path, or everything after one of
    its slashes: `"kernel"` matches every kernel, `"head/*"` all variables of a layer "head" at any
    depth. Paths are those of Keras, such as `"sequential/dense_1/kernel"`, and `[v.path for v in
    model.trainable_variables]` lists them.

    When the optimizer is built, a warning names each pattern that matches no variable, with the
    nearest paths. If no variable is chosen, the transform does nothing.

    Args:
        transform: The transform to restrict, of the gradient or update stage. It belongs to this
            `Only` alone.
        include: A pattern or a list of patterns; `None` for all variables.
        exclude: The same, for the variables to leave out; `None` for none.

    Raises:
        TypeError: If `transform` is no transform, or a pattern no string.
        ValueError: If the transform acts on the rate, if there is neither `include` nor `exclude`,
            or if one is empty.

    >>> from gradstab.transforms.clipping import ClipByNorm
    >>> Only(ClipByNorm(1.0), include="kernel", exclude=["head/*"])
    Only(transform=ClipByNorm(max_norm=1.0), include='kernel', exclude=['head/*'])
    """

    def __init__(
        self, transform: Transform, include: Patterns = None, exclude: Patterns = None
    ) -> None:
        if not isinstance(transform, Transform):
            raise TypeError(
                "`transform` must be an instance of gradstab.transforms.Transform. Received: "
                f"transform={transform!r}"
            )
        if transform.stage == "rate":
            raise ValueError(
                "`transform` must act on gradients or updates, for all variables have one learning "
                f"rate. Received: transform={transform!r}. List it in the optimizer itself"
            )
        self.transform = transform
        self.include = check_patterns("include", include)
        self.exclude = check_patterns("exclude", exclude)
        if include is None and exclude is None:
            raise ValueError(
                "`include` or `exclude` must be given. Received: include=None, exclude=None. "
                "For all variables list the transform itself"
            )

    @property
    def stage(self) -> Literal["rate", "gradient", "update"]:  # type: ignore[override]
        """Where the transform inside acts."""
        return self.transform.stage

    @property
    def cause(self) -> str | None:  # type: ignore[override]
        """The cause under which skips of the inner transform are counted, if it skips."""
        return self.transform.cause

    @property
    def limits(self) -> str | None:  # type: ignore[override]
        """The name under which steps limited by the inner transform are counted."""
        return self.transform.limits

    def bound_values(self) -> dict[str, float]:
        """Return the bounds of the transform inside."""
        return self.transform.bound_values()

    def attach(self, variables: Mapping[str, Any]) -> None:
        """Hand the variables behind the bounds to the transform inside."""
        self.transform.attach(variables)

    def state_spec(self, variables: Sequence[Any]) -> dict[str, StateSpec | SeedSpec]:
        """Return the state of the inner transform; warn about patterns that match nothing."""
        paths = [variable_path(variable) for variable in variables]
        for name, patterns in (("include", self.include), ("exclude", self.exclude)):
            warn_of_idle_patterns(name, patterns, paths)
        places = self._places(paths)
        return self.transform.state_spec([variables[place] for place in places]) if places else {}

    def apply(self, values: Measured, state: State, context: Context) -> tuple[Measured, State]:
        """Transform the chosen values, and pass the others on unchanged."""
        places = self._places([role.path for role in context.roles])
        if not places:
            return values, {}
        narrow = _narrowed(context, places)
        part = narrow.incoming if values is context.incoming else values.part(places)
        changed, new_state = self.transform.apply(part, state, narrow)
        return (values if changed is part else values.with_part(places, changed)), new_state

    def veto(self, state: State, context: Context) -> Any | None:
        """Return the inner transform's veto, on the chosen variables."""
        places = self._places([role.path for role in context.roles])
        return self.transform.veto(state, _narrowed(context, places)) if places else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Only:
        """Make a transform from the dictionary of `get_config`, or from its saved form."""
        config = dict(config)
        if not isinstance(config["transform"], Transform):
            config["transform"] = keras.saving.deserialize_keras_object(config["transform"])
        return cls(**config)

    def _places(self, paths: Sequence[str]) -> list[int]:
        return [
            place
            for place, path in enumerate(paths)
            if (self.include is None or fits(path, self.include)) and not fits(path, self.exclude)
        ]


def innermost(transform: Transform) -> Transform:
    """Return the transform inside all `Only`, or the one given."""
    while isinstance(transform, Only):
        transform = transform.transform
    return transform


def check_patterns(name: str, patterns: Any) -> Patterns:
    """Return a pattern or a list of patterns, or raise; `None` stays `None`.

    Raises:
        TypeError: If a pattern is not a string.
        ValueError: If there is none in the list, or one is empty.
    """
    if patterns is None:
        return None
    expected = f"`{name}` must be a pattern such as 'dense/kernel', or a list of patterns"
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise TypeError(f"{expected}. Received: {name}={patterns!r}")
    if not given or not all(given):
        raise ValueError(f"{expected}, none of them empty. Received: {name}={patterns!r}")
    return patterns if isinstance(patterns, str) else list(patterns)


def fits(path: str, patterns: Patterns) -> bool:
    """Whether a path, or its end after a slash, matches one of the patterns, if there are any."""
    given = [patterns] if isinstance(patterns, str) else patterns or []
    parts = path.split("/")
    ends = ["/".join(parts[place:]) for place in range(len(parts))]
    return any(fnmatch.fnmatchcase(end, pattern) for end in ends for pattern in given)


def warn_of_idle_patterns(name: str, patterns: Patterns, paths: Sequence[str]) -> None:
    """Warn about each pattern that matches no path, with the nearest paths."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        if not any(fits(path, pattern) for path in paths):
            nearest = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            warnings.warn(
                f"`{name}` holds a pattern that matches no variable. Received: {pattern!r}. "
                f"Nearest paths: {', '.join(map(repr, nearest))}. `*` stands for any characters",
                stacklevel=2,
            )


def _narrowed(context: Context, places: Sequence[int]) -> Context:
    """Return the context with the variables at some places only."""

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [values[place] for place in places]

    incoming = context.incoming.part(places)
    outgoing = context.outgoing
    return dataclasses.replace(
        context,
        variables=chosen(context.variables),
        roles=chosen(context.roles),
        rows=chosen(context.rows),
        incoming=incoming,
        outgoing=None if outgoing is None else outgoing.part(places),
    )
