"""Code in README.md and docs/: all of it is Python, and sessions (`>>>`) give what they show."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block.group(2), id=f"{path.relative_to(ROOT)}:{place}")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    for place, block in enumerate(
        re.finditer(r"^```(python|pycon)\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_documents(code):
    if not code.startswith(">>>"):
        compile(code, "document", "exec")
        return
    session = doctest.DocTestParser().get_doctest(code, {}, "document", None, 0)
    report = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, out=report.append)
    assert not results.failed, "".join(report)
