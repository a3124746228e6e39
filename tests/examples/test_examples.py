"""Each example runs in its quick form, and raises where it did not do what it shows."""

import os
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning"),
    # Figures that `plt.show` would show and close.
    pytest.mark.filterwarnings("ignore:More than 20 figures:RuntimeWarning"),
]


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run an example as a program, in this process, and return its output."""
    import matplotlib.pyplot

    matplotlib.use("agg")

    def run(name, *arguments):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--quick", *map(str, arguments)])
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            matplotlib.pyplot.close("all")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_begin_with_a_title(path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert lines[0] == '"""'
    assert lines[2] == "=" * len(lines[1])


@pytest.mark.slow
def test_three_lines_decide_whether_the_script_survives(run_example):
    output = run_example("wrap_existing")
    assert output.count("skipped, NaN first seen in") == 3


@pytest.mark.slow
def test_custom_loop_skips_the_broken_batch_of_each_epoch(run_example):
    output = run_example("custom_loop")
    assert output.count("NaN first seen in conv_1/kernel") == 3


@pytest.mark.slow
def test_callbacks_stop_the_run_and_put_the_best_weights_back(run_example):
    output = run_example("callback_only")
    assert "The weights and moments of epoch 1, the best so far, have been restored." in output


@pytest.mark.slow
def test_corrected_article_cnn_learns_and_ends_with_its_gradient_norms(run_example, tmp_path):
    output = run_example("corrected_article_cnn", "--run-dir", tmp_path)
    assert "test accuracy" in output
    assert all(layer in output for layer in ("conv_1", "conv_4", "dense", "logits"))
    assert (tmp_path / "record.jsonl").exists()


@pytest.mark.slow
def test_shared_weights_are_shared_and_each_use_is_shown(run_example):
    output = run_example("shared_weights")
    assert "loaded as shared: True" in output


@pytest.mark.slow
def test_a_killed_run_ends_where_the_undisturbed_one_does(run_example):
    output = run_example("train_and_resume")
    assert "weights of the two runs: 0.0" in output


@pytest.mark.slow
def test_two_workers_agree_and_skip_the_same_steps(run_example):
    assert "TF_CONFIG" not in os.environ
    output = run_example("several_workers")
    assert output.count("2 steps skipped") == 2
