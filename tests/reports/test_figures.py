"""Figures: what is drawn is what is in the data, and what is not there is said."""

import math
import sys

import numpy as np
import pytest

from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports.comparison import plot_comparison
from gradstab.reports.figures import (
    plot_gradient_norm,
    plot_heatmap,
    plot_loss,
    save,
)

NAN = math.nan


@pytest.fixture
def record(tmp_path):
    with RecordWriter(tmp_path, config={"max_norm": 1.0}) as writer:
        for step, norm in enumerate([30.0, NAN, 4.0, 0.5], start=1):
            after = min(norm, 1.0) if math.isfinite(norm) else NAN
            writer.step(
                step, {"loss": 3.0 - norm / 20, "grad_norm": norm, "grad_norm_after": after}
            )
        writer.event("skip", step=2, cause="nonfinite")
        writer.event("stop", step=4)
    return read_record(tmp_path)


@pytest.fixture
def empty(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"accuracy": 0.5})
    return read_record(tmp_path)


def words(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_gradient_norm_draws_both_norms_the_bound_and_the_skips(record):
    ax = plot_gradient_norm(record)
    before, after, bound = ax.get_lines()
    np.testing.assert_array_equal(before.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(before.get_ydata(), [30.0, NAN, 4.0, 0.5])
    np.testing.assert_array_equal(after.get_ydata(), [1.0, NAN, 1.0, 0.5])
    assert set(bound.get_ydata()) == {1.0}
    (skips,) = ax.collections
    np.testing.assert_array_equal(skips.get_offsets()[:, 0], [2])
    assert ax.get_yscale() == "log"
    assert legend(ax) == [
        "before the transforms",
        "after the transforms",
        "clip bound 1",
        "skipped steps (1)",
    ]
    highest = ax.transAxes.inverted().transform(ax.transData.transform((1, 30.0)))[1]
    assert highest < skips.get_offsets()[0, 1] - 0.02  # the marks do not hide the line


def test_a_bound_that_changes_is_drawn_as_it_changed(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step, bound in enumerate([math.inf, 2.0, 1.0], start=1):
            writer.step(step, {"grad_norm": 3.0, "max_norm": bound})
    *_, bound = plot_gradient_norm(read_record(tmp_path)).get_lines()
    np.testing.assert_array_equal(bound.get_ydata(), [NAN, 2.0, 1.0])


def test_figures_draw_on_the_given_ax_without_pyplot(record):
    from matplotlib.figure import Figure

    upper, lower, right = Figure().subplots(3)
    assert plot_gradient_norm(record, upper) is upper
    assert plot_loss(record, lower) is lower
    assert plot_heatmap([[1.0]], ["a"], ["b"], right) is right
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_figure_without_its_data_says_so(empty):
    assert words(plot_gradient_norm(empty)) == ["no gradient norms in this record"]
    assert words(plot_loss(empty)) == ["no loss to draw"]
    assert words(plot_heatmap(np.zeros((0, 0)), [], [])) == ["no values"]
    upper, lower = plot_comparison({"exploding": {"plain": {"loss": [1.0]}}}).axes
    assert words(upper) == []
    assert words(lower) == ["no grad norm here"]


def test_loss_takes_a_record_a_history_or_several(record):
    class History:
        def __init__(self, history):
            self.history = history

    history = {"loss": [2.0, NAN], "val_loss": [2.5, 1.5], "accuracy": [0.1, 0.2]}
    (steps,) = plot_loss(record).get_lines()
    np.testing.assert_array_equal(steps.get_xdata(), [1, 2, 3, 4])
    for source in (history, History(history)):
        ax = plot_loss(source)
        loss, validation = ax.get_lines()
        np.testing.assert_array_equal(loss.get_ydata(), [2.0, NAN])
        np.testing.assert_array_equal(validation.get_ydata(), [2.5, 1.5])
        np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 0], [2])
        assert legend(ax) == ["loss", "val_loss", "loss is not finite"]
    both = plot_loss({"plain": History(history), "ours": {"loss": [1.0, 0.5]}})
    assert legend(both)[:3] == ["plain loss", "plain val_loss", "ours loss"]
    with pytest.raises(TypeError, match="must be a run record, a Keras History"):
        plot_loss([1.0, 2.0])


def test_a_run_that_is_all_nan_is_marked_and_not_called_missing():
    ax = plot_loss({"loss": [NAN, NAN]})
    assert words(ax) == []
    np.testing.assert_array_equal(ax.collections[0].get_offsets()[:, 0], [1, 2])


def test_comparison_marks_lost_single_and_dead():
    ways = {
        "lost": {"loss": [2.0, 5.0, math.inf, NAN]},
        "dead": {"loss": [9.0, 2.31, 2.30, 2.31]},
        "recovered": {"loss": [2.0, NAN, 0.5, 0.1]},
        "healthy": {"loss": ([10, 20, 30, 40], [2.0, 1.0, 0.5, 0.1])},
    }
    figure = plot_comparison(
        {"one": ways, "two": {"healthy": ways["healthy"]}},
        chance_loss=math.log(10),
        rows=[("loss", "loss", "step")],
        title="four ways",
    )
    one, two = figure.axes
    marks = {tuple(mark.get_offsets()[:, 0]) for mark in one.collections}
    assert marks == {(3.0,), (2.0,)}
    rings = [line for line in one.get_lines() if len(line.get_xdata()) == 1]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(4, 2.31)]
    assert not two.collections
    healthy = two.get_lines()[0]
    np.testing.assert_array_equal(healthy.get_xdata(), [10, 20, 30, 40])
    assert healthy.get_color() == one.get_lines()[-2].get_color()
    (below,) = figure.legends
    assert [text.get_text() for text in below.get_texts()] == [
        *ways,
        "NaN or infinite from here to the end",
        "a single NaN or infinite value",
        "ends at chance",
        "loss of guessing",
    ]
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]


def test_long_series_keep_their_spikes_under_a_running_median():
    values = np.ones(400)
    values[200] = 1e6
    (ax,) = plot_comparison({"s": {"w": {"loss": values}}}, rows=[("loss", "loss", "step")]).axes
    raw, median = ax.get_lines()
    assert max(raw.get_ydata()) == 1e6
    assert max(median.get_ydata()) == 1.0


def test_comparison_refuses_nothing():
    with pytest.raises(ValueError, match="at least one setting"):
        plot_comparison({})


def test_heatmap_writes_every_value_and_refuses_other_shapes():
    ax = plot_heatmap([[0.125, 1.0], [NAN, 0.5]], ["a", "b"], ["c", "d"], title="t", decimals=3)
    assert words(ax) == ["0.125", "1.000", "nan", "0.500"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["c", "d"]
    with pytest.raises(ValueError, match=r"shape \(2, 2\), 1 and 2 labels"):
        plot_heatmap([[0.1, 0.2], [0.3, 0.4]], ["a"], ["c", "d"])


def test_save_writes_a_png_whole_or_not_at_all(record, tmp_path, monkeypatch):
    path = tmp_path / "plots" / "norm.png"
    ax = plot_gradient_norm(record)
    assert save(ax, path) == path
    good = path.read_bytes()
    assert good.startswith(b"\x89PNG")
    assert save(ax.figure, path).read_bytes().startswith(b"\x89PNG")

    def fail(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ax.figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        save(ax, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["norm.png"]


def test_without_matplotlib_the_extra_is_named(record, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "gradstab\[report\]"'):
        plot_loss(record)


def test_a_gradient_of_zero_is_said_and_not_drawn_on_a_log_scale(tmp_path):
    """Warnings are errors here: matplotlib warned of a scale without a positive value."""
    with RecordWriter(tmp_path) as writer:
        for step in (1, 2):
            writer.step(step, {"grad_norm": 0.0, "grad_norm_after": 0.0, "loss": 1.0})
    ax = plot_gradient_norm(read_record(tmp_path))
    assert "exactly zero at every recorded step" in ax.texts[0].get_text()
