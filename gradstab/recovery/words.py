"""What recovery says of a rollback, and of the last that helped no more."""

from __future__ import annotations

from gradstab.recovery.troubles import Trouble


def of_rollback(trouble: Trouble, where: str, factor: float, count: int, most: int) -> str:
    """Return what was done, and why.

    Args:
        trouble: What was wrong.
        where: What the state is back at.
        factor: What the rate is multiplied by; 1 where it isn't, or can't be.
        count: How many rollbacks there were since the run was last calm for long.
        most: How many there may be.
    """
    told = (
        f"{trouble.text} Weights, moments, statistics and counters are back at {where}, and "
        "training continues with the next data"
    )
    if factor < 1:
        until = "from now on" if trouble.levels else "until the run has been calm for a long time"
        told += f", at {factor:g} of the learning rate after a warm-up, {until}"
    return f"{told} (rollback {count} of {most})."


def of_giving_up(trouble: Trouble, factor: float, most: int) -> str:
    """Return what there is to look at, once rollbacks did not help."""
    told = f"It came back after {most} rollbacks"
    if trouble.may_be_rate and factor < 1:
        return (
            f"{told}, at {factor:g} of the learning rate too: the rate is not the cause. Look at "
            "the data of these steps, at the loss, and at activations without a bound."
        )
    return f"{told}: look at the data of these steps, and at other code that writes the variables."
