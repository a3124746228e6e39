"""Each example runs in its quick form, and its exit code tells whether it did what it shows."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run an example as a program, in this process, and return its exit code and output."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, "--quick", *map(str, arguments)])
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = module.main()
        return code, capsys.readouterr().out

    return run


@pytest.mark.slow
def test_corrected_article_cnn_learns_and_ends_with_its_gradient_norms(run_example, tmp_path):
    code, output = run_example("corrected_article_cnn", "--run-dir", tmp_path)
    assert code == 0
    assert "test accuracy" in output
    assert all(layer in output for layer in ("conv_1", "conv_4", "dense", "logits"))
    assert (tmp_path / "record.jsonl").exists()


@pytest.mark.slow
def test_custom_loop_skips_the_broken_batch_of_each_epoch(run_example):
    code, output = run_example("custom_loop")
    assert code == 0
    assert output.count("NaN first seen in conv_1/kernel") == 3


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--plain",), 1)])
def test_three_lines_decide_whether_the_script_survives(run_example, arguments, code):
    assert run_example("wrap_existing", *arguments)[0] == code


@pytest.mark.slow
def test_callbacks_stop_the_run_and_put_the_best_weights_back(run_example, tmp_path):
    code, output = run_example("callback_only", "--run-dir", tmp_path)
    assert code == 0
    assert "The weights and moments of epoch 1, the best so far, have been restored." in output


@pytest.mark.slow
def test_shared_weights_are_shared_and_each_use_is_shown(run_example):
    code, output = run_example("shared_weights")
    assert code == 0
    assert "loaded as shared: True" in output
    assert output.count("gradient of use 1 to 8") == 4


@pytest.mark.slow
def test_ablation_goes_on_where_it_was(run_example, tmp_path):
    code, output = run_example("ablation", "--output", tmp_path)
    assert code == 0
    assert "8 runs, 0 of them done before" in output
    page = tmp_path / "docs" / "ablation.md"
    results = json.loads((tmp_path / "benchmarks" / "results" / "ablation.json").read_text())
    first = page.read_text()

    records = tmp_path / "runs" / "ablation.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed in the middle of a write
    page.write_text("# A page\n\n<!-- results -->\nold\n<!-- end of results -->\n\nMore.\n")
    code, output = run_example("ablation", "--output", tmp_path)
    assert code == 0
    assert "8 runs, 8 of them done before" in output
    assert f"{len(lines) - 1} runs, {len(lines) - 2} of them done before" in output

    again = json.loads((tmp_path / "benchmarks" / "results" / "ablation.json").read_text())
    assert again == results
    tables = first.split("<!-- results -->")[1].split("<!-- end of results -->")[0]
    assert page.read_text() == (
        f"# A page\n\n<!-- results -->{tables}<!-- end of results -->\n\nMore.\n"
    )
