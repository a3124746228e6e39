"""What makes one change or another worth a trial, or not."""

from __future__ import annotations

import math
from typing import Final

from gradstab.diagnosis.looks.signal import SignalLook
from gradstab.diagnosis.looks.structure import StructureLook
from gradstab.diagnosis.looks.trial import Run
from gradstab.diagnosis.measuring.variants import SQUASHING

# Share of the variation from row to row that is left behind a layer which hides it.
_HIDDEN: Final = 0.25
# Ratio of kernels to Glorot's draw beyond which other first weights are tried.
_OFF: Final = 3.0
# Times its first value that a loss which is under control does not reach.
_WILD: Final = 5.0


def hides_rows(structure: StructureLook, signal: SignalLook) -> bool:
    """Whether what tells rows apart shrinks to a part in a hidden layer that squashes."""
    before = None
    heads = {head.layer for head in structure.heads}
    for each in signal.layers:
        layer = structure.layer(each.name)
        if layer is None or layer.units is None:
            continue
        squashes = layer.activation in SQUASHING and layer.name not in heads
        if squashes and before is not None and each.variation < _HIDDEN * before:
            return True
        before = each.variation
    return False


def begins_off(structure: StructureLook, times: float = _OFF) -> bool:
    """Whether a kernel is of another size than Glorot's and He's draws, or has units alike.

    Args:
        structure: The look at the structure.
        times: Ratio of the sizes from which on they are others.
    """
    for each in structure.layers:
        if not each.kernel_scale or not each.fan_in or not each.trainable:
            if each.kernel_alike and each.trainable:
                return True
            continue
        glorot = math.sqrt(2 / (each.fan_in + (each.fan_out or each.fan_in)))
        ratio = each.kernel_scale / glorot
        if not 1 / times < ratio < times or each.kernel_alike:
            return True
    return False


def is_wild(run: Run) -> bool:
    """Whether the loss jumped up or stopped being finite, so that a larger rate can't be better."""
    return not run.finite or max(run.losses, default=0.0) > _WILD * abs(run.first_loss)
