"""Figures of rates: a schedule before a run, the effective rate after one."""

import keras
import numpy as np
import pytest

from gradstab.monitoring import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports import plot_effective_rate, plot_schedule
from gradstab.schedules import LinearDecay, LinearWarmup, OneCycle


def drawn(ax, place=0):
    return np.asarray(ax.lines[place].get_xdata()), np.asarray(ax.lines[place].get_ydata())


@pytest.mark.parametrize(
    "schedule",
    [
        LinearWarmup(LinearDecay(0.4, 80), 20),
        keras.optimizers.schedules.CosineDecay(0.4, 60, warmup_target=0.5, warmup_steps=20),
        keras.optimizers.schedules.PiecewiseConstantDecay([10, 50], [0.1, 0.2, 0.3]),
        lambda step: 0.4 / (1 + step),
        lambda step: 0.4,
    ],
    ids=["ours", "Keras, with a condition", "Keras, by steps", "function", "constant"],
)
def test_a_schedule_is_drawn_step_by_step(schedule):
    steps, rates = drawn(plot_schedule(schedule, num_steps=100))
    np.testing.assert_array_equal(steps, np.arange(100))
    np.testing.assert_allclose(rates, [float(schedule(step)) for step in range(100)], rtol=1e-6)


def test_a_long_run_is_thinned_from_its_first_step_to_its_last():
    schedule = LinearDecay(0.4, 10**9)
    steps, rates = drawn(plot_schedule(schedule, num_steps=10**9))
    assert len(steps) == 1000
    assert steps[0] == 0
    assert steps[-1] == 10**9 - 1
    np.testing.assert_allclose(rates, 0.4 * (1 - steps / 1e9), rtol=1e-6)


def test_several_schedules_in_one_panel():
    ax = plot_schedule(LinearDecay(0.4, 50), 60, label="line")
    assert plot_schedule(OneCycle(0.4, 60), 60, ax, label="cycle") is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["line", "cycle"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert ax.get_xlabel() == "step"
    assert ax.get_legend_handles_labels()[1] == ["line", "cycle"]


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError, match="`schedule` must be a learning rate schedule or a func"):
        plot_schedule(0.1, 10)
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer"):
        plot_schedule(LinearDecay(0.1, 5), 0)
    with pytest.raises(TypeError, match="`num_steps` must be a positive integer"):
        plot_schedule(LinearDecay(0.1, 5), 10.0)

    def broken(step):
        raise RuntimeError("as it is")

    with pytest.raises(RuntimeError, match="as it is"):
        plot_schedule(broken, 3)


# The effective rate -----------------------------------------------------------------------------


def written(run_dir, layers, steps=4):
    """Medians of 10^-place over the layers, growing tenfold by the last step; quartiles around."""
    with RecordWriter(run_dir, variables=["w"], trained_layers=layers) as writer:
        for step in range(1, steps + 1):
            medians = 10.0 ** -np.arange(len(layers)) * 10 ** ((step - 1) / (steps - 1))
            quantiles = {"q25": medians / 2, "median": medians, "q75": medians * 2}
            writer.step(
                10 * step,
                {"learning_rate": 0.01 * step},
                per_trained_layer={f"effective_rate_{k}": v for k, v in quantiles.items()},
            )
        writer.step(10 * steps + 5, {"loss": 1.0})
    return read_record(run_dir)


def test_few_layers_have_a_line_and_a_band_each(tmp_path):
    record = written(tmp_path, ["m/a", "m/$b", "m/c"])
    ax = plot_effective_rate(record)
    for place in range(3):
        steps, medians = drawn(ax, place)
        np.testing.assert_array_equal(steps, [10, 20, 30, 40])
        expected = 10.0**-place * 10 ** (np.arange(4) / 3)
        np.testing.assert_allclose(medians, expected, rtol=1e-4)
        low, high = ax.collections[place].get_paths()[0].vertices[:, 1][[1, -2]]
        assert sorted([low, high]) == pytest.approx([expected[0] / 2, expected[0] * 2], rel=1e-4)
    steps, rates = drawn(ax, 3)
    np.testing.assert_allclose(rates, 0.001 * steps, rtol=1e-6)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["a", r"\$b", "c", "the rate that was set"]
    assert ax.get_yscale() == "log"


def test_many_layers_are_summed_up(tmp_path):
    ax = plot_effective_rate(written(tmp_path, [f"m/{n}" for n in range(9)]))
    labels = ax.get_legend_handles_labels()[1]
    assert "median of 9 layers" in labels
    middle = next(each for each in ax.lines if each.get_label() == "median of 9 layers")
    np.testing.assert_allclose(middle.get_ydata()[0], 1e-4, rtol=1e-4)


def test_layers_without_rates_are_left_out_and_records_without_any_say_so(tmp_path):
    with RecordWriter(tmp_path / "part", variables=["w"], trained_layers=["m/a", "m/b"]) as writer:
        writer.step(1, {}, per_trained_layer={"effective_rate_median": [np.nan, 0.1]})
    ax = plot_effective_rate(read_record(tmp_path / "part"))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["b"]
    with RecordWriter(tmp_path / "none", variables=["w"]) as writer:
        writer.step(1, {"loss": 1.0})
    ax = plot_effective_rate(read_record(tmp_path / "none"))
    assert ax.texts[0].get_text() == "no effective learning rates in this record"


def test_the_list_of_a_record_has_a_number_for_each_name(tmp_path):
    with RecordWriter(tmp_path, trained_layers=["a", "b"]) as writer:
        with pytest.raises(ValueError, match="one number for each of the 2 trained layers"):
            writer.step(1, {}, per_trained_layer={"effective_rate_median": [0.1]})
        writer.step(1, {}, per_trained_layer={"effective_rate_median": [0.1, 0.2]})
    found = read_record(tmp_path).per_layer("effective_rate_median")
    assert found.names == ("a", "b")
    np.testing.assert_allclose(found.values, [[0.1, 0.2]])
