"""Code in README.md and docs/: all of it is Python, and sessions (`>>>`) give what they show.

Pages in docs/symptoms and docs/guides are run from top to bottom, each in a process of its own.
"""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from gradstab.cli.main import main
from gradstab.diagnosis.rules.catalogue import CODES

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block.group(2), id=f"{path.relative_to(ROOT)}:{place}")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    for place, block in enumerate(
        re.finditer(r"^```(python|pycon)\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    )
]

EXECUTED = sorted([*ROOT.glob("docs/symptoms/*.md"), *ROOT.glob("docs/guides/*.md")])


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_documents(code):
    if not code.startswith(">>>"):
        compile(code, "document", "exec")
        return
    session = doctest.DocTestParser().get_doctest(code, {}, "document", None, 0)
    report = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, out=report.append)
    assert not results.failed, "".join(report)


@pytest.mark.slow
def test_the_readme_runs_as_printed(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    promised = re.search(r"^gradstab: .*$", text, re.M)[0]
    assert promised in capsys.readouterr().out.splitlines()
    for block in blocks[1:]:
        exec(compile(block, "README.md", "exec"), names)
    told = capsys.readouterr().out
    assert "clipped 0 of 40, limited 0 of 40, skipped 0 of 40" in told  # the composed example
    for line in re.findall(r"^gradstab (?!demo)(.*)$", text, re.M):
        if " --watch" not in line:  # That one lasts until somebody ends it.
            assert main(shlex.split(line, comments=True)) == 0, line
    for run in ("second", "third"):
        assert main(["report", f"runs/{run}"]) == 0
        assert (tmp_path / "runs" / run / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_pages_run_as_printed(path, run_python):
    run_python("import executed_pages, sys; executed_pages.main(sys.argv[1])", path)


def test_the_table_of_rules_has_a_row_for_every_code():
    table = (ROOT / "docs" / "rules" / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| \[([\w-]+)\]\(\1\.md\) \|", table, re.M)) == sorted(CODES)


def test_the_first_screen_of_the_readme_is_what_a_newcomer_needs():
    first = (ROOT / "README.md").read_text("utf-8").splitlines()[:40]
    screen = "\n".join(first)
    for part in ("pip install", "```diff", "gradstab: 200 steps", "Protected: 5 of 200"):
        assert part in screen
