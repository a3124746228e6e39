"""Says why a model does not learn: the cause, the layer and the remedy.

The names are loaded at their first use, since findings and rules need neither Keras nor TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstab._lazy import names_of

if TYPE_CHECKING:
    from gradstab.diagnosis.diagnosis import Diagnosis, DiagnosisError
    from gradstab.diagnosis.finding import Finding

__all__ = ["Diagnosis", "DiagnosisError", "Finding"]

__getattr__ = names_of(
    __name__,
    {
        "Diagnosis": "gradstab.diagnosis.diagnosis",
        "DiagnosisError": "gradstab.diagnosis.diagnosis",
        "Finding": "gradstab.diagnosis.finding",
    },
)
