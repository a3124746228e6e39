"""Pages that show README, changelog and contributing notes, which lie above this folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
FILES = {
    "readme": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "faulty_models": "benchmarks/faulty_models/README.md",
}


def _read(app: Any, docname: str, source: list[str]) -> None:
    if docname in FILES:
        file = DOCS.parent / FILES[docname]
        app.env.note_dependency(str(file))
        source[0] = file.read_text("utf-8").replace("](docs/", "](")
        source[0] = source[0].replace("](../../docs/", "](")
        source[0] = re.sub(r"\[([^\]]+)\]\(([\w.]+)\)", _link_of_root, source[0])
    for page, file in FILES.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}.md")
        if docname in FILES and "/" in file:
            source[0] = source[0].replace(f"]({file}", f"]({page}.md")


def _link_of_root(match: re.Match[str]) -> str:
    """Lead to the page of a file, and show the name of a file that has none."""
    text, target = match.groups()
    pages = {file: f"{page}.md" for page, file in FILES.items()}
    if (DOCS / "gallery" / "index.rst").exists():
        pages["examples"] = "gallery/index.rst"
    if target in pages:
        return f"[{text}]({pages[target]})"
    return match[0] if (DOCS / target).exists() else text


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
