"""Repairs: from a diagnosis to the smallest change that heals, tried and shown as a diff."""

from gradstab.repairs.learning_rate import LearningRateSearch, find_learning_rate
from gradstab.repairs.repair import Action, Repair, repair

__all__ = ["Action", "LearningRateSearch", "Repair", "find_learning_rate", "repair"]
