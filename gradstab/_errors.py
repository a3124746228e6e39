"""Exceptions that callers are meant to catch."""

from __future__ import annotations


class DivergenceError(RuntimeError):
    """Training can't go on: too many steps in a row had to be skipped, or all is lost.

    The message names what is damaged, weights before gradients, the step, and what to try.
    """


class WorkerLostError(RuntimeError):
    """Training on several workers can't go on: another worker crashed, or does not answer.

    The message says where the last complete epoch is. Start all workers again to go on from there.
    """


class RunDirectoryError(ValueError):
    """A run directory can't be used: another run holds it, or what lies in it can't go on."""
