"""The four looks together: what every rule gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradstab.diagnosis.looks.data import DataLook, TargetLook
from gradstab.diagnosis.looks.signal import SignalLook
from gradstab.diagnosis.looks.structure import HeadLook, LayerStructure, StructureLook
from gradstab.diagnosis.looks.trial import TrialLook


@dataclasses.dataclass(frozen=True)
class Looks:
    """What was measured of a model, its data and a short trial.

    Attributes:
        data: The data.
        structure: The model.
        signal: One batch forward and backward.
        trial: Short trainings.
    """

    data: DataLook
    structure: StructureLook
    signal: SignalLook = dataclasses.field(default_factory=SignalLook)
    trial: TrialLook = dataclasses.field(default_factory=TrialLook)

    def heads_with_targets(self) -> Iterator[tuple[HeadLook, TargetLook]]:
        """Yield each output with its target."""
        yield from zip(self.structure.heads, self.data.targets, strict=False)

    @property
    def hidden(self) -> tuple[LayerStructure, ...]:
        """The layers with a kernel that give no output of the model, in order of depth."""
        heads = {head.layer for head in self.structure.heads}
        return tuple(
            each
            for each in self.structure.layers
            if each.units is not None and each.name not in heads
        )

    @property
    def first_trained(self) -> LayerStructure | None:
        """The first layer with a kernel."""
        return next((each for each in self.structure.layers if each.units is not None), None)
