"""A figure as SVG that stands inside a page: its own ids, the page's colours, no links."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gradstab.reports._drawing import COLORS, GREY, GRID, MISSING, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK: Final = {"#000000": "currentColor", GREY: "var(--quiet)", GRID: "var(--line)",
               "#cccccc": "var(--line)"}  # fmt: skip
_PAGE_COLORS: Final = _INK | {
    color.lower(): f"var(--series-{place})"
    for place, color in enumerate(COLORS)
    if color != "#000000"
}
_COLOR: Final = re.compile("#[0-9a-fA-F]{6}")
_REFERENCE: Final = re.compile(r"url\(#([^)]*)\)")


def drawn(draw: Callable[[], Axes], name: str, description: str) -> str | None:
    """Return what a function draws as an `<svg>` element, or `None` if its data is missing.

    Text stays text, so that a page's fonts and colours apply; matplotlib escapes it. Whoever set
    matplotlib up for other figures does not change these.

    Args:
        draw: Makes a figure and returns an `ax` of it.
        name: Goes before every id, so that figures on one page do not take each other's parts.
        description: For those who hear the page.
    """
    require_matplotlib()
    from matplotlib import rc_context, style

    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        ax = draw()
        figure: Any = ax.figure
        if ax.get_gid() == MISSING:
            return None
        stream = io.StringIO()
        with warnings.catch_warnings():
            # A sign that matplotlib's font lacks is there in those of the reader.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(stream, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    return _inline(stream.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """Return an SVG document as an element of an HTML page."""
    root = ET.fromstring(document)
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(key): _adapted(_local(key), value, name) for key, value in element.attrib.items()
        }
    # The page gives the size; the view box keeps the shape.
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("fill", "currentColor")  # what is black has no colour of its own
    root.set("role", "img")
    root.set("aria-label", description)
    return ET.tostring(root, encoding="unicode")


def _adapted(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key == "style":
        return _COLOR.sub(lambda found: _PAGE_COLORS.get(found[0].lower(), found[0]), value)
    return value


def _local(name: str) -> str:
    """Return a tag or attribute without its namespace, which a page knows by itself."""
    return name.rpartition("}")[2]
