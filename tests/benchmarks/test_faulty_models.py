"""The public benchmark: the form of its cases, and how tools are scored."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CODES = {path.stem for path in (BENCHMARKS.parent / "docs" / "rules").glob("*.md")}
CASES = sorted((BENCHMARKS / "faulty_models" / "cases").glob("*.py"))


@pytest.fixture
def score(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    path = BENCHMARKS / "faulty_models" / "score.py"
    spec = importlib.util.spec_from_file_location("score", path)
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up.
    monkeypatch.setitem(sys.modules, "score", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_cases_have_the_form_that_the_readme_tells(path, score):
    case = score.load(path)
    assert re.fullmatch(f"(case|healthy)_{case.ID}", path.stem)
    assert case.METRIC in ("accuracy", "mae", "mse", "loss")
    assert set(case.BUDGET) == {"epochs", "batch_size"}
    if path.stem.startswith("case_"):
        assert case.FAULT
        assert set(case.CAUSES + case.ALTERNATIVES) <= CODES
        names = [layer.name for layer in case.build(True).layers]
        assert case.LAYER is None or case.LAYER in names


def test_a_tool_that_knows_and_one_that_cries_wolf(score, capsys, monkeypatch):
    def knows(case):
        units = case.model.layers[-1].units
        softmax = case.model.layers[-1].activation.__name__ == "softmax"
        return ["single-unit-softmax"] if units == 1 and softmax else []

    monkeypatch.setattr(score, "TOOLS", {"knows": knows, "wolf": lambda case: ["frozen-model"]})
    code = score.main(["--tools", "knows", "wolf", "--only", "softmax_over_one_unit"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[-2:]]
    cells = [[cell.strip() for cell in row][1:7] for row in rows]
    assert code == 0
    # Found faulty, cause first, among three, fair codes, healthy twins flagged.
    assert cells == [
        ["knows", "1 of 1", "1 of 1", "1 of 1", "1 of 1", "0 of 1"],
        ["wolf", "1 of 1", "0 of 1", "0 of 1", "0 of 1", "1 of 1"],
    ]


def test_tools_see_nothing_of_the_answer(score):
    fields = set(score.Case.__dataclass_fields__)
    assert fields == {"model", "x", "y", "epochs", "batch_size", "seed"}
