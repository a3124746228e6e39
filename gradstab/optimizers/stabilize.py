"""Functions that wrap any Keras optimizer, wrapped or clipping ones included."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import keras

from gradstab._validation import check_bool, check_float
from gradstab.optimizers.accepted import KERAS_CLIPPING, check_optimizer
from gradstab.optimizers.stabilized import StabilizedOptimizer
from gradstab.transforms.automatic.outliers import LimitOutliers
from gradstab.transforms.automatic.overshoot import LimitOvershoot
from gradstab.transforms.automatic.rate_jumps import LimitRateJumps
from gradstab.transforms.base import Transform
from gradstab.transforms.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from gradstab.transforms.skipping import SkipNonFinite

_EQUIVALENTS = {
    transform.__name__: transform for transform in (ClipByValue, ClipByNorm, ClipByGlobalNorm)
}


def stabilize(
    inner_optimizer: Any,
    clip: float | str | None = "auto",
    *,
    max_consecutive: int = 50,
    limit_rate_jumps: bool = True,
    limit_outliers: bool = True,
    limit_overshoot: bool = True,
    **arguments: Any,
) -> Any:
    """Wrap an optimizer so that it skips steps with NaN or infinity and limits far too long ones.

    The first thing to try. The chain is `SkipNonFinite(max_consecutive)` and three rules:
    `LimitRateJumps()`, `LimitOutliers()` and `LimitOvershoot()`. Each acts only on evidence of harm
    in this run, leaves healthy runs alone, and can be left out. A number for `clip` replaces the
    three by `ClipByGlobalNorm(clip)`, a fixed bound of your choice: 1.0 saves most runs that
    explode, and slows healthy ones whose gradients are mostly longer. `clip=None` only skips.

    Any optimizer is accepted. If it is wrapped already, the transforms are joined into one list.
    Its own `clipnorm`, `clipvalue` or `global_clipnorm` becomes the transform of the same meaning,
    first in the list, and is switched off in the optimizer that was passed; the tighter bound then
    acts. Of a `LossScaleOptimizer`, the optimizer inside is wrapped.

    Args:
        inner_optimizer: A Keras optimizer, the name of one, or its config.
        clip: `"auto"`; a bound on the global gradient norm, a positive float (may be infinite); or
            `None`.
        max_consecutive: Steps in a row that may be skipped before training counts as diverged.
        limit_rate_jumps: Whether to hold back a rate that jumps, for some steps; with "auto" only.
        limit_outliers: Whether to shorten a step far longer than all before; with "auto" only.
        limit_overshoot: Whether to shorten steps of SGD that keep overshooting; with "auto" only.
        **arguments: Arguments of the optimizer, where a name is given.

    Returns:
        A `StabilizedOptimizer`, inside a `LossScaleOptimizer` if one was passed.

    Raises:
        TypeError: If it is no Keras optimizer, or if an argument belongs elsewhere.
        ValueError: If a bound is zero, negative or NaN, or another word than "auto", or if the
            optimizer can't be wrapped.

    >>> stabilize("sgd", limit_rate_jumps=False)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> LimitOutliers(factor=2.0) -> LimitOvershoot(factor=3.0) -> SGD>
    >>> stabilize("sgd", clip=0.5, max_consecutive=9, learning_rate=0.01, momentum=0.9)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=9) -> ClipByGlobalNorm(max_norm=0.5) -> SGD>
    >>> stabilize(keras.optimizers.Adam(clipnorm=0.5), clip=None)
    <StabilizedOptimizer: ClipByNorm(max_norm=0.5) -> SkipNonFinite(max_consecutive=50) -> Adam>
    """  # noqa: E501  a line of the doctest
    transforms: list[Transform] = [SkipNonFinite(max_consecutive)]
    rules: dict[str, tuple[bool, type[Transform]]] = {
        "limit_rate_jumps": (limit_rate_jumps, LimitRateJumps),
        "limit_outliers": (limit_outliers, LimitOutliers),
        "limit_overshoot": (limit_overshoot, LimitOvershoot),
    }
    chosen = [rule() for name, (wanted, rule) in rules.items() if check_bool(name, wanted)]
    if isinstance(clip, str) and clip == "auto":
        transforms += chosen
    elif len(chosen) < len(rules):
        raise ValueError(
            f"Rules are left out of clip='auto' only, and no other clip has any. Received: "
            f"clip={clip!r} with {', '.join(f'{name}={value[0]}' for name, value in rules.items())}"
        )
    elif clip is not None:
        fix = "'auto' needs no bound; `None` skips bad steps and does not clip"
        transforms.append(ClipByGlobalNorm(check_float("clip", clip, allow_inf=True, fix=fix)))
    return _wrap(_optimizer("stabilize", "clip", inner_optimizer, arguments), transforms)


def clip_by_value(inner_optimizer: Any, clip_value: float, **arguments: Any) -> Any:
    """Wrap an optimizer so that every gradient entry is limited to [-`clip_value`, `clip_value`].

    It clips and no more: bad steps are skipped by `stabilize`. See `transforms.ClipByValue` for the
    rule, and `stabilize` for what is done with optimizers that are wrapped or clip already.

    Args:
        inner_optimizer: A Keras optimizer, the name of one, or its config.
        clip_value: Bound, a positive float; may be infinite.
        **arguments: Arguments of the optimizer, where a name is given.

    Raises:
        TypeError: If it is no Keras optimizer, or if an argument belongs elsewhere.
        ValueError: If the bound is zero, negative or NaN, or the optimizer can't be wrapped.

    >>> clip_by_value("adam", clip_value=0.5)
    <StabilizedOptimizer: ClipByValue(clip_value=0.5) -> Adam>
    """
    transform = ClipByValue(clip_value)
    return _wrap(_optimizer("clip_by_value", "clip_value", inner_optimizer, arguments), [transform])


def clip_by_norm(inner_optimizer: Any, max_norm: float, **arguments: Any) -> Any:
    """Wrap an optimizer so that each variable's gradient has a norm of at most `max_norm`.

    It clips and no more: bad steps are skipped by `stabilize`. See `transforms.ClipByNorm` for the
    rule, and `stabilize` for what is done with optimizers that are wrapped or clip already.

    Args:
        inner_optimizer: A Keras optimizer, the name of one, or its config.
        max_norm: Bound, a positive float; may be infinite.
        **arguments: Arguments of the optimizer, where a name is given.

    Raises:
        TypeError: If it is no Keras optimizer, or if an argument belongs elsewhere.
        ValueError: If the bound is zero, negative or NaN, or the optimizer can't be wrapped.

    >>> clip_by_norm("rmsprop", max_norm=1.0)
    <StabilizedOptimizer: ClipByNorm(max_norm=1.0) -> RMSprop>
    """
    transform = ClipByNorm(max_norm)
    return _wrap(_optimizer("clip_by_norm", "max_norm", inner_optimizer, arguments), [transform])


def clip_by_global_norm(inner_optimizer: Any, max_norm: float, **arguments: Any) -> Any:
    """Wrap an optimizer so that the global norm of all gradients is at most `max_norm`.

    It clips and no more: bad steps are skipped by `stabilize`. See `transforms.ClipByGlobalNorm`
    for the rule, and `stabilize` for what is done with optimizers that are wrapped or clip already.

    Args:
        inner_optimizer: A Keras optimizer, the name of one, or its config.
        max_norm: Bound, a positive float; may be infinite.
        **arguments: Arguments of the optimizer, where a name is given.

    Raises:
        TypeError: If it is no Keras optimizer, or if an argument belongs elsewhere.
        ValueError: If the bound is zero, negative or NaN, or the optimizer can't be wrapped.

    >>> clip_by_global_norm(keras.optimizers.Adam(1e-3), max_norm=1.0)
    <StabilizedOptimizer: ClipByGlobalNorm(max_norm=1.0) -> Adam>
    """
    transform = ClipByGlobalNorm(max_norm)
    optimizer = _optimizer("clip_by_global_norm", "max_norm", inner_optimizer, arguments)
    return _wrap(optimizer, [transform])


def _optimizer(function: str, bound: str, given: Any, arguments: dict[str, Any]) -> Any:
    """Return an optimizer instance, given an instance, a name or a config."""
    for name in KERAS_CLIPPING:
        if name in arguments:
            raise TypeError(
                f"`{function}` has no argument `{name}`. Received: {name}={arguments[name]!r}. Its "
                f"bound is `{bound}`"
                + ("" if bound == "max_norm" else "; the bounds on norms are called `max_norm`")
            )
    if isinstance(given, str):
        try:
            default = keras.optimizers.get(given)
        except ValueError:
            raise ValueError(
                "`inner_optimizer` must be an optimizer that Keras knows by name, such as 'adam'. "
                f"Received: inner_optimizer={given!r}. Nearest names: {_nearest(given)}"
            ) from None
        return type(default)(**arguments) if arguments else default
    if arguments:
        raise TypeError(
            "Arguments of the optimizer are taken with a name only. Received: "
            f"{', '.join(sorted(arguments))} beside inner_optimizer={given!r}. Pass them to the "
            "optimizer itself"
        )
    if isinstance(given, dict):
        try:
            given = keras.optimizers.get(given)
        except Exception as error:  # Keras raises what a wrong entry happens to lead to
            raise ValueError(
                "`inner_optimizer` must be a config as `keras.optimizers.serialize` makes it, or "
                f"the name of an optimizer. Received: inner_optimizer={given!r:.200}"
            ) from error
    check_optimizer(given)
    return given


def _nearest(name: str) -> str:
    """Return the names of Keras' optimizers that resemble a misspelt name."""
    known = [
        each.lower()
        for each, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and not each.endswith("Optimizer")  # The base, and those that wrap others.
    ]
    return ", ".join(map(repr, difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.0)))


def _wrap(optimizer: Any, transforms: Sequence[Transform]) -> Any:
    """Wrap an optimizer in transforms, inside a loss scale or other wrapper if there is one."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        scale = float(optimizer.dynamic_scale) if optimizer.built else optimizer.initial_scale
        return keras.optimizers.LossScaleOptimizer(
            _wrap(optimizer.inner_optimizer, transforms),
            initial_scale=scale,
            dynamic_growth_steps=optimizer.dynamic_growth_steps,
            name=optimizer.name,
        )
    if isinstance(optimizer, StabilizedOptimizer):
        return StabilizedOptimizer(
            optimizer.inner_optimizer,
            _joined(optimizer.transforms, transforms),
            name=optimizer.name,
            taken_over=optimizer.taken_over,
        )
    check_optimizer(optimizer)
    taken_over: dict[str, float] = {}
    if not hasattr(optimizer, "optimizers"):
        for argument in KERAS_CLIPPING:
            bound = getattr(optimizer, argument, None)
            if bound:
                taken_over[argument] = float(bound)
    own = [_EQUIVALENTS[KERAS_CLIPPING[name]](bound) for name, bound in taken_over.items()]
    for argument in taken_over:
        setattr(optimizer, argument, None)
    try:
        return StabilizedOptimizer(optimizer, _joined(own, transforms), taken_over=taken_over)
    except (TypeError, ValueError):
        for argument, bound in taken_over.items():
            setattr(optimizer, argument, bound)
        raise


def _joined(first: Sequence[Transform], second: Sequence[Transform]) -> list[Transform]:
    """Join two lists into one of fresh transforms, without equal ones and with one skip.

    The first list may belong to an optimizer already, and a transform belongs to one only.
    """
    joined = [type(transform).from_config(transform.get_config()) for transform in first]
    for transform in second:
        equal = any(repr(transform) == repr(other) for other in joined)
        skips = isinstance(transform, SkipNonFinite) and any(
            isinstance(other, SkipNonFinite) for other in joined
        )
        if not equal and not skips:
            joined.append(transform)
    return joined
