"""Figures over depth: what is drawn is what the record says, and what is not there is said."""

import math

import numpy as np
import pytest

from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports.layers import plot_activations, plot_layer_norms, plot_update_ratio

NAN = math.nan


def written(run_dir, names, samples, *, of_layers=False):
    """Return a record; `samples` are mappings from a quantity to its values, one per step."""
    kinds = {"layers": names} if of_layers else {"variables": names}
    with RecordWriter(run_dir, **kinds) as writer:
        for place, sample in enumerate(samples):
            lists = {"per_layer": sample} if of_layers else {"per_variable": sample}
            writer.step(10 * (place + 1), {}, **lists)
    return read_record(run_dir)


def cells(ax):
    """Return the numbers of the colour-coded cells, rows of the picture first."""
    return np.ma.filled(ax.collections[0].get_array().astype("float64"), NAN)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_norm_of_a_layer_is_that_of_its_variables_together(tmp_path):
    names = ["net/b/kernel", "net/b/bias", "net/a/kernel", "scale"]
    samples = [{"grad_norm": [3.0, 4.0, 0.5, 7.0]}, {"grad_norm": [5e-30, 12e-30, 1.0, 2.0]}]
    ax = plot_layer_norms(written(tmp_path, names, samples))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["net/b", "net/a", "scale"]
    np.testing.assert_allclose(cells(ax), [[5.0, 13e-30], [0.5, 1.0], [7.0, 2.0]])
    low, high = ax.get_ylim()
    assert low > high, "the first layer belongs on top"
    # Twelve decades down from the largest: below lies one colour, and the scale says so.
    assert ax.collections[0].norm.vmin == pytest.approx(7e-12)
    assert ax.collections[0].colorbar.extend == "min"


def test_zero_and_broken_gradients_have_their_own_colours(tmp_path):
    samples = [{"grad_norm": [0.0, NAN, 1.0]}, {"grad_norm": [2.0, math.inf, 1.0]}]
    ax = plot_layer_norms(written(tmp_path, ["a/k", "b/k", "c/k"], samples))
    np.testing.assert_array_equal(cells(ax), [[NAN, 2.0], [NAN, NAN], [1.0, 1.0]])
    _, zero, broken = (np.ma.getmaskarray(each.get_array()) for each in ax.collections)
    np.testing.assert_array_equal(~zero, [[True, False], [False, False], [False, False]])
    np.testing.assert_array_equal(~broken, [[False, False], [True, True], [False, False]])
    assert legend(ax) == ["exactly zero", "NaN or infinite"]


@pytest.mark.parametrize("value", [0.0, NAN])
def test_a_run_without_one_usable_norm(value, tmp_path):
    ax = plot_layer_norms(written(tmp_path, ["a/k"], [{"grad_norm": [value]}]))
    assert legend(ax) == ["exactly zero" if value == 0 else "NaN or infinite"]
    ax.figure.canvas.draw()


def test_a_spike_among_many_samples_stays(tmp_path):
    samples = [{"grad_norm": [1.0, 1.0]} for _ in range(1700)]
    samples[1234] = {"grad_norm": [50.0, NAN]}
    ax = plot_layer_norms(written(tmp_path, ["a/k", "b/k"], samples))
    assert cells(ax).shape[1] <= 400
    assert np.nanmax(cells(ax)) == 50.0
    assert legend(ax) == ["NaN or infinite"]


def test_few_variables_have_a_line_each_and_many_their_quantiles(tmp_path):
    samples = [{"update_ratio": [1e-3, 2e-3]}, {"update_ratio": [0.0, 3e-3]}]
    ax = plot_update_ratio(written(tmp_path / "few", ["net/a", "net/b"], samples))
    first, second, *_ = ax.get_lines()
    np.testing.assert_array_equal(first.get_ydata(), [1e-3, NAN])
    np.testing.assert_array_equal(second.get_ydata(), [2e-3, 3e-3])
    assert legend(ax) == ["a", "b", "healthy, mostly"]
    ratios = np.arange(1, 12) * 1e-4
    names = [f"layer_{place}" for place in range(11)]
    samples = [{"update_ratio": ratios}, {"update_ratio": [NAN] * 11}, {"update_ratio": ratios * 2}]
    ax = plot_update_ratio(written(tmp_path / "many", names, samples))
    low, high, middle = ax.get_lines()
    np.testing.assert_allclose(low.get_ydata(), [1e-4, 2e-4])
    np.testing.assert_allclose(high.get_ydata(), [11e-4, 22e-4])
    np.testing.assert_allclose(middle.get_ydata(), [6e-4, 12e-4])
    np.testing.assert_array_equal(middle.get_xdata(), [10, 30])
    assert "median of 11 variables" in legend(ax)


def test_the_ratio_of_the_whole_run_is_drawn_where_there_are_no_others(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"update_ratio": 0.01})
        writer.step(2, {"update_ratio": 0.02})
    ax = plot_update_ratio(read_record(tmp_path))
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [0.01, 0.02])
    # The band is that of the thresholds, wherever the lines are.
    low, high = ax.patches[0].get_y(), ax.patches[0].get_y() + ax.patches[0].get_height()
    np.testing.assert_allclose([low, high], [1e-4, 1e-1])


def test_activations_by_layer_of_the_last_sample_and_the_first(tmp_path):
    one = {"activation_mean": [1.0, 2.0], "activation_deviation": [0.5, 0.25]}
    two = {"activation_mean": [3.0, 4.0], "activation_deviation": [0.5, 0.25]}
    two["activation_dead"] = [0.0, 0.75]
    ax = plot_activations(written(tmp_path, ["conv", "head"], [one, two], of_layers=True))
    scale, shares = ax.child_axes
    first, last = scale.get_lines()
    np.testing.assert_array_equal(first.get_ydata(), [1.0, 2.0])
    np.testing.assert_array_equal(last.get_ydata(), [3.0, 4.0])
    band = scale.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (2.5, 4.25)
    (dead,) = shares.get_lines()
    np.testing.assert_array_equal(dead.get_ydata(), [0.0, 0.75])
    assert [tick.get_text() for tick in shares.get_xticklabels()] == ["conv", "head"]


@pytest.mark.parametrize("kept", ["mean", "deviation", "saturated", "dead"])
def test_one_statistic_alone_is_drawn_and_the_other_panel_says_so(kept, tmp_path):
    sample = {f"activation_{kept}": [0.1, 0.2]}
    ax = plot_activations(written(tmp_path, ["a", "b"], [sample], of_layers=True))
    scale, shares = ax.child_axes
    silent = shares if kept in ("mean", "deviation") else scale
    assert [text.get_text()[:3] for text in silent.texts] == ["no "]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("plot", [plot_layer_norms, plot_update_ratio, plot_activations])
def test_what_is_missing_is_said(plot, tmp_path):
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.step(1, {"accuracy": 0.5})
    ax = plot(read_record(tmp_path))
    assert ax.texts[0].get_text().startswith("no ")
    assert ax.get_gid() == "missing"


def test_a_name_with_dollars_is_no_formula(tmp_path):
    names = ["$\\frac{$/k", "a$b$c/k", "$x/k"]
    ax = plot_layer_norms(written(tmp_path, names, [{"grad_norm": [1.0, 2.0, 3.0]}]))
    ax.figure.canvas.draw()  # a bad formula would raise
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "\\$\\frac{\\$", "a\\$b\\$c", "\\$x",
    ]  # fmt: skip
