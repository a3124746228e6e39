"""All prescriptions, the gentlest first."""

from __future__ import annotations

from typing import Final

from gradstab.repairs.prescriptions.base import Prescription
from gradstab.repairs.prescriptions.head import FitHead
from gradstab.repairs.prescriptions.inputs import MatchValueRange, ScaleInputs
from gradstab.repairs.prescriptions.structure import (
    AddResiduals,
    InsertFlatten,
    InsertNormalization,
    LightenRegularization,
    WidenLayers,
)
from gradstab.repairs.prescriptions.targets import ScaleTargets
from gradstab.repairs.prescriptions.training import (
    ClipGradients,
    DropNonFinite,
    SetBatchSize,
    SetLearningRate,
    TrainLonger,
    UseAdam,
)
from gradstab.repairs.prescriptions.units import (
    Reinitialize,
    ReviveUnits,
    SwapActivations,
    TrainFrozenLayers,
)

# The order in which they are tried. Data first, then what the script says of the head, the start,
# the training, and last what makes another net or a longer run of it.
CATALOGUE: Final[tuple[Prescription, ...]] = (
    DropNonFinite(), MatchValueRange(), ScaleInputs(), ScaleTargets(), FitHead(), InsertFlatten(),
    TrainFrozenLayers(), Reinitialize(), SetLearningRate(), ClipGradients(), UseAdam(),
    SwapActivations(), ReviveUnits(), LightenRegularization(), InsertNormalization(),
    AddResiduals(), WidenLayers(), SetBatchSize(), TrainLonger(),
)  # fmt: skip

# The order in which they are written into one draft: a rate is searched on the net as it will be.
WRITING: Final[tuple[type[Prescription], ...]] = (
    DropNonFinite, MatchValueRange, ScaleInputs, InsertFlatten, FitHead, ScaleTargets,
    TrainFrozenLayers, SwapActivations, ReviveUnits, Reinitialize, LightenRegularization,
    WidenLayers, SetBatchSize, InsertNormalization, AddResiduals, UseAdam, ClipGradients,
    SetLearningRate, TrainLonger,
)  # fmt: skip


def named(name: str) -> Prescription:
    """Return the prescription of a class name.

    Raises:
        ValueError: If there is none.
    """
    for each in CATALOGUE:
        if type(each).__name__ == name:
            return each
    known = ", ".join(type(each).__name__ for each in CATALOGUE)
    raise ValueError(f"`allow` must name prescriptions. Received: {name!r}. There are: {known}")


def in_writing_order(chosen: list[Prescription]) -> list[Prescription]:
    """Return prescriptions in the order in which they are written into a draft."""
    return sorted(chosen, key=lambda each: WRITING.index(type(each)))
