"""The verdict on a run, and how text and page tell it."""

import math

import pytest

from gradstab.monitoring.record import Totals, read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports import summarize, to_html, to_text
from gradstab.reports._words import printable
from gradstab.reports.verdict import closing_line, verdict


@pytest.mark.parametrize(
    ("totals", "losses", "told"),
    [
        (Totals(), [], "Empty: no step is recorded."),
        (Totals(steps=9), [2.0, 1.0], "Healthy: nothing clipped, nothing skipped."),
        (Totals(steps=9), [], "Healthy: nothing clipped, nothing skipped."),
        (
            Totals(steps=1000, skipped=3, skipped_by={"nonfinite": 3}),
            [2.0, 1.0],
            "Healthy: 3 of 1,000 steps skipped (nonfinite 3).",
        ),
        (
            Totals(steps=100, clipped=20, skipped=3, skipped_by={"nonfinite": 3}),
            [2.0, 1.0],
            "Protected: 20 of 100 steps clipped, 3 skipped (nonfinite 3).",
        ),
        (
            Totals(steps=10, limited=9, limited_by={"outlier": 9}),
            [2.0, 1.0],
            "Held back: 9 of 10 steps limited (outlier 9). A limit that acts on most steps is a "
            "smaller learning rate.",
        ),
        (
            Totals(steps=4, skipped=4, skipped_by={"nonfinite": 4}),
            [math.nan],
            "Nothing applied: all 4 steps were skipped (nonfinite 4).",
        ),
        (
            Totals(steps=4, largest_norm=0.0),
            [1.0],
            "Nothing learned: the gradient was exactly zero at every step.",
        ),
        (
            Totals(steps=4, best_loss=1.0, last_loss=math.inf),
            [1.0],
            "Lost: the loss of the last step is not finite.",
        ),
        (Totals(steps=4), [1.0, math.nan], "Lost: the loss of the last epoch is not finite."),
        (
            Totals(steps=4),
            [2.302, 2.301],
            "No progress: the loss stayed at 2.3 over 2 epochs; nothing clipped, nothing skipped.",
        ),
        (
            Totals(steps=4),
            [1.0, 3.0],
            "No progress: the loss rose from 1 to 3 (200 %); nothing clipped, nothing skipped.",
        ),
        (
            Totals(steps=4),
            [2.35, 2.33, 2.31],  # A net at chance.
            "Little progress: the loss fell from 2.35 to 2.31 (-1.7 %); nothing clipped, nothing "
            "skipped.",
        ),
        (
            Totals(steps=4),
            [2.3, 0.4, 60.0],
            "Lost again: the loss fell from 2.3 to 0.4 and rose to 60; nothing clipped, nothing "
            "skipped.",
        ),
    ],
)
def test_the_verdict(totals, losses, told):
    assert verdict(totals, losses) == told


def test_what_ended_a_run_comes_first():
    totals = Totals(steps=9, clipped=9)
    assert verdict(totals, [], "At step 3 it was NaN. Restore it.") == (
        "Diverged: At step 3 it was NaN."
    )
    assert verdict(Totals(steps=9), [], None, "KeyboardInterrupt") == (
        "Interrupted by KeyboardInterrupt. Up to then: healthy: nothing clipped, nothing skipped."
    )


def test_the_closing_line():
    totals = Totals(steps=1200, clipped=1200, learning_rate=0.01, effective_rate=0.0025)
    assert closing_line(totals, [2.0, 1.0]).startswith(
        "1,200 steps, 1,200 clipped, 0 limited, 0 skipped, effective rate 0.0025 of 0.01. Held back"
    )
    assert "rate" not in closing_line(Totals(steps=3), []).partition(". ")[0]


def test_what_is_summed_up_is_over_every_step_and_not_over_samples(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(50, {"loss": 2.0, "grad_norm": 1.0, "clipped": 0})
        totals = Totals(
            steps=100, clipped=7, largest_norm=40.0, largest_norm_step=33, best_loss=0.5,
            best_loss_step=71, last_loss=0.6,
        )  # fmt: skip
        writer.totals(totals, step=100)
        writer.event("end", step=100)
    summary = summarize(read_record(tmp_path))
    assert (summary.largest_norm, summary.largest_norm_step) == (40.0, 33)
    assert (summary.best_loss, summary.best_loss_step, summary.last_loss) == (0.5, 71, 0.6)
    assert summary.clipped_share == 0.07
    text = to_text(read_record(tmp_path))
    assert "clipped                7 of 100 steps" in text
    assert "40 at step 33" in text


def test_a_run_without_an_end_is_said_to_go_on(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": 2.0, "grad_norm": 1.0})
    told = summarize(read_record(tmp_path)).verdict
    assert told == (
        "Going on, or killed: no end is recorded. So far: healthy: nothing clipped, nothing "
        "skipped."
    )


def test_the_page_opens_with_the_verdict_and_tells_runs_apart(tmp_path):
    for run in range(8):
        with RecordWriter(tmp_path, variables=["a"]) as writer:
            writer.step(1, {"loss": 2.0, "grad_norm": 1.0}, {"grad_norm": [1.0]})
            writer.epoch(1, step=10, logs={"loss": 2.0, "val_accuracy": 0.5, "grad_norm": 1.0})
            writer.totals(Totals(steps=10, clipped=run), step=10)
            writer.event("end", step=10)
    page = to_html(read_record(tmp_path))
    _, _, rest = page.partition("</h1>")
    assert rest.lstrip().startswith('<p class="verdict">Held back: 7 of 10 steps clipped.')
    assert "Run 8 of 8 in this record" in page
    for run in range(1, 8):
        assert f"<summary>Run {run}: " in page
    assert page.count('id="run-7-norm"') == 1
    assert 'id="run-1-norm"' not in page  # only the latest ones have figures
    assert "<summary>Epochs (1)</summary>" in page
    assert "val_accuracy" in page
    assert "<summary>Incidents (0)</summary>" in page  # the end is none
    assert "scroll it sideways" in page
    assert "GradientMonitor(run_dir, activations=True)" in page


def test_a_long_chain_is_shown_whole_and_no_word_is_cut(tmp_path):
    chain = "<StabilizedOptimizer: " + " -> ".join(f"Rule{n}(factor=2.0)" for n in range(14)) + ">"
    with RecordWriter(tmp_path, config={"optimizer": chain}) as writer:
        writer.step(1, {"loss": 1.0})
    shown = to_html(read_record(tmp_path)).replace("&gt;", ">").replace("&lt;", "<")
    assert shown.count(chain) == 2
    cut = printable(chain, 100)
    assert len(cut) <= 101
    assert set(cut.replace("…", " ").split()) <= set(chain.split())
