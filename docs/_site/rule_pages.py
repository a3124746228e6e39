"""Pages of the rules: how often each was right on the cases, from `benchmarks/results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks" / "results" / "diagnosis.json"
# Not in README.md itself, where GitHub would show it as code.
TREE = "\n```{toctree}\n:hidden:\n:glob:\n\n[a-z]*\n```\n"


def counted(code: str, results: list[dict[str, Any]]) -> str:
    """Return in how many faulty and healthy models a rule was raised, in words."""
    faulty = [each for each in results if each["faulty"]]
    healthy = [each for each in results if not each["faulty"]]
    named = [each for each in faulty if _raised(code, each)]
    wrong = [each for each in named if each["fair"] < each["above"] and code != each["main"]]
    alarms = [each for each in healthy if _raised(code, each)]
    notes = [each for each in healthy if code in {c for c, *_ in each["findings"]}]
    told = (
        f"Named as a cause in {len(named)} of {len(faulty)} faulty models, "
        f"in {len(wrong)} of them wrongly"
        if named
        else f"Named as a cause in none of {len(faulty)} faulty models, so how often it is right "
        "is not measured"
    )
    return (
        f"{told}. False alarms on {len(healthy)} healthy models: {len(alarms)}"
        f" (reported as `info` on {len(notes) - len(alarms)}). The rules were developed with these"
        " models: [how it is measured](../diagnosis.md#how-it-is-measured)."
    )


def _raised(code: str, result: dict[str, Any]) -> bool:
    return any(c == code and severity != "info" for c, severity, *_ in result["findings"])


def _add(app: Any, docname: str, source: list[str]) -> None:
    if docname == "rules/README":
        source[0] += TREE
    elif docname.startswith("rules/"):
        results = [*json.loads(RESULTS.read_text("utf-8"))["results"].values()]
        code = docname.removeprefix("rules/")
        source[0] += f"\n## On the cases\n\n{counted(code, results)}\n"


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _add)
    return {"parallel_read_safe": True}
