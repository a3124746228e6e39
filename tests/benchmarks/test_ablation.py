"""The ablation goes on where it was, and writes its tables between the marks of its page."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_ablation_goes_on_where_it_was(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run():
        monkeypatch.setattr(sys, "argv", ["ablation", "--quick", "--output", str(tmp_path)])
        spec = importlib.util.spec_from_file_location("ablation", BENCHMARKS / "ablation.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main(), capsys.readouterr().out

    code, output = run()
    assert code == 0
    assert "8 runs, 0 of them done before" in output
    page = tmp_path / "docs" / "ablation.md"
    results = json.loads((tmp_path / "benchmarks" / "results" / "ablation.json").read_text())
    first = page.read_text()

    records = tmp_path / "runs" / "ablation.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed in the middle of a write
    page.write_text("# A page\n\n<!-- results -->\nold\n<!-- end of results -->\n\nMore.\n")
    code, output = run()
    assert code == 0
    assert "8 runs, 8 of them done before" in output
    assert f"{len(lines) - 1} runs, {len(lines) - 2} of them done before" in output

    again = json.loads((tmp_path / "benchmarks" / "results" / "ablation.json").read_text())
    assert again == results
    tables = first.split("<!-- results -->")[1].split("<!-- end of results -->")[0]
    assert page.read_text() == (
        f"# A page\n\n<!-- results -->{tables}<!-- end of results -->\n\nMore.\n"
    )
