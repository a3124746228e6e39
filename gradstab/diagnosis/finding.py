"""A diagnosed fault. This module imports neither Keras nor TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

# From the gravest. An error keeps the model from learning what it is meant to; a warning costs a
# clear part of the result; an info is worth knowing, or says what could not be checked.
SEVERITIES: Final = ("error", "warning", "info")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One diagnosed fault, with its evidence and its remedy.

    Attributes:
        code: Permanent name of the rule, such as `"single-unit-softmax"`. docs/rules/ has a page
            for each.
        severity: `"error"`, `"warning"` or `"info"`.
        layer: Name of the faulty layer, or `None` if it is not a single layer.
        cause: What is wrong, in one sentence.
        evidence: Measured numbers by name.
        remedy: What to change in the script.
        explained_by: Code of the finding that causes this one, or `None` for a root cause.

    Example:
        >>> finding = Finding("dead-units", "warning", "hidden", "All units are dead.", {}, "Relu.")
        >>> finding.is_root
        True
    """

    code: str
    severity: str
    layer: str | None
    cause: str
    evidence: dict[str, Any]
    remedy: str
    explained_by: str | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(
                f"`severity` must be one of {', '.join(map(repr, SEVERITIES))}. "
                f"Received: severity={self.severity!r}"
            )

    @property
    def is_root(self) -> bool:
        """Whether no other finding explains this one."""
        return self.explained_by is None

    @property
    def rank(self) -> int:
        """Place of the severity, 0 for the gravest."""
        return SEVERITIES.index(self.severity)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return dataclasses.asdict(self)
