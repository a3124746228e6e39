"""What a diagnosis found. Imports neither Keras nor TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.signal import LayerSignal
from gradstab.diagnosis.page import to_html
from gradstab.diagnosis.text import to_text


class DiagnosisError(ValueError):
    """A model can't learn its task: its diagnosis has findings of severity error."""


@final
@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Findings about a model, root causes first, and the measurements behind them.

    Attributes:
        findings: All findings: root causes in order of likelihood, then their consequences.
        looks: The measurements: data, structure, signal and trial.

    Example: see `gradstab.diagnose`.
    """

    findings: tuple[Finding, ...]
    looks: Looks = dataclasses.field(repr=False)

    @property
    def roots(self) -> tuple[Finding, ...]:
        """The findings that no other explains, the likeliest cause first."""
        return tuple(each for each in self.findings if each.is_root)

    @property
    def ok(self) -> bool:
        """Whether nothing above `info` was found."""
        return all(each.severity == "info" for each in self.findings)

    @property
    def layers(self) -> tuple[LayerSignal, ...]:
        """Measurements of the signal in each layer, in order of depth."""
        return self.looks.signal.layers

    @property
    def verdict(self) -> str:
        """The diagnosis in one line."""
        if not self.ok:
            first = self.roots[0]
            place = f" in `{first.layer}`" if first.layer else ""
            return f"{first.code}{place}: {first.cause}"
        plan = self.looks.trial.plan
        if plan is not None and math.isfinite(plan.merit) and plan.merit > 0:
            return f"Nothing is wrong: {plan.steps} steps learned {plan.merit:.0%}."
        return "Nothing was found to be wrong."

    def explained_by(self, root: Finding) -> tuple[Finding, ...]:
        """Return all consequences of a root, direct and indirect."""
        found: list[Finding] = []
        codes = {root.code}
        for _ in self.findings:
            for each in self.findings:
                if each.explained_by in codes and each not in found:
                    found.append(each)
                    codes.add(each.code)
        return tuple(found)

    def raise_if_errors(self) -> None:
        """Raise if there is a finding of severity `error`.

        Raises:
            DiagnosisError: With the first of them and its remedy.
        """
        errors = [each for each in self.findings if each.severity == "error"]
        if errors:
            raise DiagnosisError(f"{errors[0].code}: {errors[0].cause} {errors[0].remedy}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values; NaN and infinity become strings."""
        return _plain(
            {
                "ok": self.ok,
                "verdict": self.verdict,
                "findings": [each.to_dict() for each in self.findings],
                "looks": dataclasses.asdict(self.looks),
            }
        )

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def write_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the diagnosis as a page that needs no network.

        Args:
            path: The file to write.
        """
        file = Path(path)
        file.write_text(to_html(self), encoding="utf-8")
        return file

    def __str__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self, whole=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return float(value) if hasattr(value, "__float__") else str(value)
