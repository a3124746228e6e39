"""A diagnosis as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gradstab.diagnosis.diagnosis import Diagnosis
    from gradstab.diagnosis.finding import Finding

_WIDTH: Final = 96
_MOST_LAYERS: Final = 30
COLUMNS: Final = ("layer", "scale", "variation", "dead", "saturated", "gradient/weights")


def to_text(diagnosis: Diagnosis) -> str:
    """Return verdict, table of the layers and findings, consequences under their roots."""
    parts = [textwrap.fill(diagnosis.verdict, _WIDTH)]
    if diagnosis.layers:
        parts.append(_table(diagnosis))
    for root in diagnosis.roots:
        parts.append(_finding(root))
        parts += [_consequence(each) for each in diagnosis.explained_by(root)]
    return "\n\n".join(parts)


def cells(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    """Return the rows of the table of layers."""
    rows: list[tuple[str, ...]] = []
    for each in diagnosis.layers[:_MOST_LAYERS]:
        ratio = None
        if each.gradient is not None and each.weight_scale:
            ratio = each.gradient / each.weight_scale
        rows.append(
            (
                each.name,
                _number(each.scale) if each.finite == 1 else "not finite",
                _number(each.variation),
                f"{each.dead:.0%}",
                "" if each.saturated is None else f"{each.saturated:.0%}",
                _number(ratio),
            )
        )
    return rows


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2g}"


def _table(diagnosis: Diagnosis) -> str:
    rows = [COLUMNS, *cells(diagnosis)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    left = len(diagnosis.layers) - _MOST_LAYERS
    return "\n".join([*lines, *([f"... and {left} more"] if left > 0 else [])])


def _finding(finding: Finding) -> str:
    place = f" in `{finding.layer}`" if finding.layer else ""
    head = f"[{finding.severity}] {finding.code}{place}"
    cause = textwrap.fill(finding.cause, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"{head}\n{cause}\n{textwrap.indent(finding.remedy, '    ')}"


def _consequence(finding: Finding) -> str:
    place = f" in `{finding.layer}`" if finding.layer else ""
    return textwrap.fill(
        f"{finding.code}{place}, a consequence of {finding.explained_by}: {finding.cause}",
        _WIDTH,
        initial_indent="  - ",
        subsequent_indent="    ",
    )
