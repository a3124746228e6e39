"""Repairs: finds the smallest change that makes a model learn, and shows it as a diff."""

import keras  # noqa: F401  first, so that gradstab's classes register in one order

from gradstab.repairs.learning_rate import LearningRateSearch, find_learning_rate
from gradstab.repairs.repair import repair
from gradstab.repairs.result import Action, Repair

__all__ = ["Action", "LearningRateSearch", "Repair", "find_learning_rate", "repair"]
