"""A diagnosis as an HTML page without scripts and links; the frame serves a repair too."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final

from gradstab.diagnosis.text import COLUMNS, cells

if TYPE_CHECKING:
    from gradstab.diagnosis.diagnosis import Diagnosis
    from gradstab.diagnosis.finding import Finding

_STYLE: Final = """
.gradstab { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 60rem; }
.gradstab table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.gradstab th, .gradstab td { padding: .2rem .8rem; text-align: right; }
.gradstab th:first-child, .gradstab td:first-child { text-align: left; }
.gradstab tbody tr { border-top: 1px solid #8884; }
.gradstab section { border-left: .3rem solid #888; padding: .1rem 1rem; margin: 1rem 0; }
.gradstab .error { border-color: #b3261e; } .gradstab .warning { border-color: #b87a00; }
.gradstab pre { overflow-x: auto; background: #8882; padding: .5rem .8rem; }
.gradstab .scroll { overflow-x: auto; }
"""
# Of whole pages: in notebooks the surroundings decide.
_FRAME: Final = """
:root { color-scheme: light dark; }
body { margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem; font-family: system-ui, sans-serif; }
h1 { font-size: 1.6rem; }
"""


def to_html(diagnosis: Diagnosis, *, whole: bool = True) -> str:
    """Return a page, or the part of one that notebooks show."""
    header = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in cells(diagnosis)
    )
    sections = "".join(_section(root, diagnosis.explained_by(root)) for root in diagnosis.roots)
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    body = block(
        f"<p><strong>{with_code(diagnosis.verdict)}</strong></p>{sections}"
        f"<div class='scroll'>{table}</div>"
    )
    return page("Diagnosis", f"<h1>Diagnosis</h1>{body}") if whole else body


def block(content: str) -> str:
    """Return HTML with the style of diagnoses, as notebooks show it."""
    return f"<style>{_STYLE}</style><div class='gradstab'>{content}</div>"


def page(title: str, body: str) -> str:
    """Return a whole page, for light and dark screens, that loads and runs nothing."""
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; "
        "style-src 'unsafe-inline'\"><meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_FRAME}</style></head><body>{body}</body></html>\n"
    )


def with_code(text: str) -> str:
    """Return text as HTML, with the parts between backticks as code."""
    parts = html.escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)
    )


def _section(root: Finding, consequences: tuple[Finding, ...]) -> str:
    place = f" in {root.layer}" if root.layer else ""
    follows = "".join(
        f"<li>{html.escape(each.code)}: {with_code(each.cause)}</li>" for each in consequences
    )
    folded = f"<details><summary>Consequences</summary><ul>{follows}</ul></details>"
    return (
        f"<section class='{root.severity}'><h3>{html.escape(root.code + place)}</h3>"
        f"<p>{with_code(root.cause)}</p><pre>{html.escape(root.remedy)}</pre>"
        f"{folded if follows else ''}</section>"
    )
