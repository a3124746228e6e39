"""The length of a run from the arguments of a recipe, and a schedule of that length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import keras

from gradstab._validation import check_choice, check_float, check_int
from gradstab.schedules.compose import Adjustable
from gradstab.schedules.decay import LinearDecay
from gradstab.schedules.scale import Scale
from gradstab.schedules.warmup import LinearWarmup

_LENGTHS: Final = (
    "Give `total_steps`; or `epochs` and `steps_per_epoch`; or `epochs`, `num_examples` and "
    "`batch_size`"
)


@dataclasses.dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Attributes:
        total_steps: Updates in all.
        updates_per_epoch: Updates in an epoch, whole or not; `None` where it was not told.
        window: Micro-batches to an update.
    """

    total_steps: int
    updates_per_epoch: float | None
    window: int


def run_of(
    total_steps: int | None,
    epochs: int | None,
    steps_per_epoch: int | None,
    num_examples: int | None,
    batch_size: int | None,
    gradient_accumulation_steps: int | None,
) -> RunLength:
    """Return the run that the arguments of a recipe describe, or raise.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If it is not positive, or if they say too little, or two things at once.
    """
    given = {
        name: check_int(name, value)
        for name, value in (
            ("total_steps", total_steps),
            ("epochs", epochs),
            ("steps_per_epoch", steps_per_epoch),
            ("num_examples", num_examples),
            ("batch_size", batch_size),
        )
        if value is not None
    }
    window = 1
    if gradient_accumulation_steps is not None:
        window = check_int("gradient_accumulation_steps", gradient_accumulation_steps)
    told = ", ".join(f"{name}={value}" for name, value in given.items()) or "none of them"

    def refuse(what: str) -> None:
        raise ValueError(f"{what}. Received: {told}. {_LENGTHS}")

    if "total_steps" in given and "epochs" in given:
        refuse("`total_steps` and `epochs` both say how long the run is")
    if "total_steps" not in given and "epochs" not in given:
        refuse("`total_steps` or `epochs` must say how long the run is")
    if "steps_per_epoch" in given and ("num_examples" in given or "batch_size" in given):
        refuse("`steps_per_epoch` and `num_examples` with `batch_size` both say what an epoch is")
    if ("num_examples" in given) != ("batch_size" in given):
        refuse("`num_examples` and `batch_size` must be given together")
    batches = given.get("steps_per_epoch")
    if "num_examples" in given:
        batches = -(-given["num_examples"] // given["batch_size"])
    if "epochs" not in given:
        return RunLength(
            given["total_steps"], None if batches is None else batches / window, window
        )
    if batches is None:
        refuse("`epochs` alone does not say how many steps the run has")
    total = given["epochs"] * int(batches or 0) // window
    if total < 1:
        refuse(f"`gradient_accumulation_steps` of {window} leaves no update in the run")
    return RunLength(total, int(batches or 0) / window, window)


def rate_of(
    run: RunLength,
    peak_learning_rate: float,
    warmup_steps: int | None,
    default_warmup: Callable[[int], int],
    decay: str,
    stairs: tuple[float, float] | None = None,
) -> Adjustable:
    """Return a rate that warms up and comes down within a run.

    Args:
        run: Its length.
        peak_learning_rate: The highest rate.
        warmup_steps: Updates of warm-up, or `None`.
        default_warmup: Gives their number from that of the run, where there is none.
        decay: `"cosine"`, `"linear"`, or `"exponential"` where there are stairs.
        stairs: Factor of the exponential decay, and the epochs after which it comes.

    Raises:
        TypeError: If a number is of the wrong type.
        ValueError: If it is out of range, the warm-up does not fit, or the decay is another.
    """
    peak_learning_rate = check_float("peak_learning_rate", peak_learning_rate)
    check_choice("decay", decay, ("cosine", "linear", *(["exponential"] if stairs else [])))
    total_steps = run.total_steps
    warmup_steps = (
        default_warmup(total_steps)
        if warmup_steps is None
        else check_int("warmup_steps", warmup_steps, minimum=0)
    )
    if warmup_steps >= total_steps:
        raise ValueError(
            "`total_steps` must be above `warmup_steps`, which it includes. Received: "
            f"total_steps={total_steps}, warmup_steps={warmup_steps}"
        )
    course: Any
    if decay == "cosine":
        course = keras.optimizers.schedules.CosineDecay(
            peak_learning_rate, total_steps - warmup_steps
        )
    elif decay == "linear":
        course = LinearDecay(peak_learning_rate, total_steps - warmup_steps)
    else:
        if run.updates_per_epoch is None or stairs is None:
            raise ValueError(
                '`decay` "exponential" goes by epochs. Received: no `steps_per_epoch`. Give it, or '
                "`num_examples` and `batch_size`"
            )
        factor, epochs = stairs
        course = keras.optimizers.schedules.ExponentialDecay(
            peak_learning_rate,
            max(1, round(epochs * run.updates_per_epoch)),
            factor,
            staircase=True,
        )
    course = LinearWarmup(course, warmup_steps)
    if run.window > 1:
        course = Scale(course, gradient_accumulation_steps=run.window)
    return Adjustable(course)
