"""Training loops that run on the device, run directories, and penalties on whole models."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.training.gradient_penalties import GradientPenalty, JacobianPenalty
from gradstab.training.loop import train
from gradstab.training.penalized import set_penalties
from gradstab.training.penalty import Penalty
from gradstab.training.recurrent_penalty import RecurrentGradientNorm

__all__ = [
    "GradientPenalty",
    "JacobianPenalty",
    "Penalty",
    "RecurrentGradientNorm",
    "set_penalties",
    "train",
]
