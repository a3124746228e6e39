"""Figures over the steps: loss with incidents, clip rate, linearity."""

import math

import numpy as np
import pytest

from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports.steps import plot_clip_rate, plot_incidents, plot_linearity

NAN = math.nan


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def marked(ax):
    """Return the steps of each row of marks by its words."""
    return {each.get_label(): each.get_offsets()[:, 0].tolist() for each in ax.collections}


def test_incidents_are_marked_by_kind_and_cause(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step, loss in enumerate([2.0, 1.5, NAN, 1.0], start=1):
            writer.step(step, {"loss": loss})
        writer.event("skip", step=3, cause="nonfinite")
        writer.event("skip", step=2, cause="spike")
        writer.event("skip", step=3, cause="nonfinite")  # told again by a resumed run
        writer.event("clip", step=4)
        writer.event("end")  # belongs to no step
    ax = plot_incidents(read_record(tmp_path))
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [2.0, 1.5, NAN, 1.0])
    assert marked(ax) == {
        "skipped: nonfinite (1)": [3.0],
        "skipped: spike (1)": [2.0],
        "bound changed (1)": [4.0],
        "loss not finite (1)": [3.0],
    }


def test_incidents_without_a_loss_and_a_loss_that_nobody_told(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": NAN})
        writer.event("skip", step=1, cause="nonfinite")
    ax = plot_incidents(read_record(tmp_path))
    assert marked(ax) == {"skipped: nonfinite (1)": [1.0]}
    assert ax.get_ylabel() == "no finite loss"


def test_rare_kinds_of_incidents_share_a_row(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for place in range(9):
            for step in range(20 - place):
                writer.event(f"kind {place}", step=step + 1)
    rows = marked(plot_incidents(read_record(tmp_path)))
    assert list(rows) == [*(f"kind {place} ({20 - place})" for place in range(5)), "others (15)"]


def test_thousands_of_marks_are_thinned_and_counted(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step in range(1, 5001):
            writer.event("skip", step=step, cause="spike")
    ((words, steps),) = marked(plot_incidents(read_record(tmp_path))).items()
    assert words == "skipped: spike (5000)"
    assert len(steps) <= 401
    assert steps[0] == 1
    assert steps[-1] == 5000


def test_clip_rate_is_the_share_around_each_step(tmp_path):
    flags = [0.0] * 100 + [1.0] * 100
    with RecordWriter(tmp_path) as writer:
        for step, clipped in enumerate(flags, start=1):
            writer.step(step, {"clipped": clipped})
        writer.step(201, {"loss": 1.0})  # nobody told whether this one was
    (line,) = plot_clip_rate(read_record(tmp_path)).get_lines()
    half = 4  # 200 steps in 25 parts of 8
    expected = [np.mean(flags[max(0, at - half) : at + half + 1]) for at in range(200)]
    np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_array_equal(line.get_xdata(), range(1, 201))


def test_skips_are_drawn_where_there_were_any(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"clipped": 1, "skipped": 0})
        writer.step(2, {"clipped": 0, "skipped": 1})
    assert legend(plot_clip_rate(read_record(tmp_path))) == ["clipped", "skipped"]


def test_linearity_draws_both_where_somebody_looked(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"linearity_predicted": -0.1, "linearity_actual": -0.08})
        writer.step(2, {"loss": 1.0})
        writer.step(3, {"linearity_predicted": -0.2})
    predicted, actual, _ = plot_linearity(read_record(tmp_path)).get_lines()
    np.testing.assert_array_equal(predicted.get_xdata(), [1, 3])
    np.testing.assert_array_equal(predicted.get_ydata(), [-0.1, -0.2])
    np.testing.assert_array_equal(actual.get_xdata(), [1])


def test_linearity_over_many_decades_has_a_scale_for_both_signs(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step, change in enumerate([-1e-3, -2e-3, 1e-3, 500.0], start=1):
            writer.step(step, {"linearity_actual": change})
    assert plot_linearity(read_record(tmp_path)).get_yscale() == "symlog"


@pytest.mark.parametrize("plot", [plot_incidents, plot_clip_rate, plot_linearity])
def test_what_is_missing_is_said(plot, tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"accuracy": 0.5})
    ax = plot(read_record(tmp_path))
    assert ax.texts[0].get_text().startswith(("no ", "neither "))
    assert ax.get_gid() == "missing"
