"""Exceptions that callers are meant to catch."""

from __future__ import annotations


class DivergenceError(RuntimeError):
    """Training can't continue: too many steps in a row were skipped, or the weights are lost.

    The message names the damage, weights before gradients, the step, and a remedy.
    """


class WorkerLostError(RuntimeError):
    """Training on several workers can't continue: another worker crashed, or does not answer.

    The message says where the last complete epoch is. Start all workers again to continue there.
    """


class RunDirectoryError(ValueError):
    """A run directory can't be used: another run holds it, or the run in it can't be resumed."""
