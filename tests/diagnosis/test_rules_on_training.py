"""Rules on structure, signals and trials: each on a sick case and on a healthy one."""

import dataclasses

import numpy as np
import pytest
from diagnosis.hand_made import (
    codes,
    healthy,
    layer,
    run,
    signal,
    with_data,
    with_head,
    with_layers,
    with_runs,
    with_signals,
)  # fmt: skip

from gradstab.diagnosis.rules.catalogue import RULES, apply
from gradstab.diagnosis.rules.comparison import healing, healings


def found(looks):
    return codes(apply(RULES, looks))


def severities(looks, code):
    return {each.severity for each in apply(RULES, looks) if each.code == code}


STUCK = run("plan", 0.0, 0.0, 0.01)


def test_units_that_begin_and_stay_alike_are_an_error():
    alike = layer("first", kernel_alike=True, kernel_offset=0.1)
    looks = with_layers(alike, layer("out", "softmax", units=10))
    same = with_signals(signal("first", gradient_alike=True), signal("out"), of=looks)
    assert severities(same, "constant-initialization") == {"error"}
    # Zeros before an output that tells units apart are how residual branches begin.
    other = with_signals(signal("first", gradient_alike=False), signal("out"), of=looks)
    assert "constant-initialization" not in found(other)


def test_output_layers_may_begin_at_zero():
    zeros = layer("out", "softmax", units=10, kernel_alike=True)
    looks = with_layers(layer("first"), zeros, signals=[signal("first"), signal("out")])
    assert found(looks) == []


def test_a_model_without_trained_weights_is_an_error():
    looks = healthy()
    structure = dataclasses.replace(looks.structure, trainable_weights=0)
    looks = dataclasses.replace(looks, structure=structure)
    assert severities(looks, "frozen-model") == {"error"}


def test_frozen_layers_are_a_warning_where_the_rest_learns_nothing():
    frozen = [layer(name, trainable=False, frozen=2) for name in ("first", "second")]
    looks = with_layers(*frozen, layer("out", "softmax", units=10))
    assert severities(looks, "frozen-model") == {"info"}
    assert severities(with_runs(STUCK, of=looks), "frozen-model") == {"warning"}
    healed = with_runs(STUCK, run("rate*10", 0.2, 0.9), of=looks)
    assert severities(healed, "frozen-model") == {"info"}


def test_variables_that_the_loss_does_not_reach_are_told_of():
    looks = with_signals(*healthy().signal.layers, disconnected=("model/lost/kernel",))
    (finding,) = apply(RULES, looks)
    assert (finding.code, finding.layer) == ("disconnected-variables", "lost")


def test_the_first_layer_that_is_not_finite_is_named():
    looks = with_signals(
        signal("first"),
        signal("second", finite=0.4, input_minimum=-1.0),
        signal("out", finite=0.0, input_finite=False),
        outputs_finite=False,
    )
    (finding,) = [each for each in apply(RULES, looks) if each.code == "nonfinite-forward"]
    assert (finding.severity, finding.layer) == ("error", "second")
    assert "logarithm" in finding.cause


def test_a_gradient_that_is_lost_on_the_way_back_is_placed():
    looks = with_signals(
        signal("first", gradient_finite=False), signal("second", gradient_finite=False),
        signal("out"),
    )  # fmt: skip
    (finding,) = apply(RULES, looks)
    assert (finding.code, finding.layer) == ("nonfinite-gradients", "second")


def test_an_output_with_positions_lacks_a_layer():
    looks = with_head(shape=(28, 10))
    layers = (
        layer("conv", kind="Conv1D", output_rank=3),
        layer("hidden", output_rank=3),
        layer("out", "softmax", units=10, output_rank=3),
    )
    structure = dataclasses.replace(looks.structure, layers=layers)
    looks = dataclasses.replace(looks, structure=structure)
    (finding,) = [each for each in apply(RULES, looks) if each.severity == "error"]
    assert (finding.code, finding.layer) == ("missing-layer", "hidden")


def test_rows_that_are_mixed_are_an_error():
    looks = with_signals(signal("first"), signal("fold", mixes_rows=True), signal("out"))
    (finding,) = apply(RULES, looks)
    assert (finding.code, finding.layer, finding.severity) == ("wrong-shape", "fold", "error")


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([run("rate/10", 0.1, 0.6), run("rate/100", 0.1, 0.8)], "learning-rate-too-high"),
        ([run("rate*10", 0.1, 0.3), run("rate*100", 0.4, 0.9)], "learning-rate-too-low"),
        ([run("penalty", 0.1, 0.9)], "over-regularized"),
    ],
)
def test_the_change_that_heals_names_the_cause(runs, code):
    looks = with_runs(STUCK, *runs, planned=300)
    assert severities(looks, code) == {"warning"}
    assert code not in found(healthy())


def test_a_rate_that_ends_in_nan_is_an_error():
    looks = with_runs(run("plan", 0.0, finite=False), run("rate/10", 0.1, 0.8))
    assert severities(looks, "learning-rate-too-high") == {"error"}


def test_few_steps_at_a_usual_rate_are_too_few_epochs():
    looks = with_runs(
        STUCK, run("rate*10", 0.1, 0.7), run("longer", 0.0, 0.5, steps=300), planned=90
    )
    looks = dataclasses.replace(looks, data=dataclasses.replace(looks.data, epochs=9))
    short = [each for each in apply(RULES, looks) if each.code == "too-few-epochs"]
    rate = [each for each in apply(RULES, looks) if each.code == "learning-rate-too-low"]
    assert short[0].evidence["gain"] > rate[0].evidence["gain"]


def test_large_batches_that_leave_no_steps_are_told_of():
    looks = with_runs(STUCK, run("rate*10", 0.1, 0.7), run("longer", 0.0, 0.5), planned=40)
    data = dataclasses.replace(looks.data, epochs=4, steps_per_epoch=10, batch_size=512)
    assert "batch-size" in found(dataclasses.replace(looks, data=data))
    data = dataclasses.replace(data, batch_size=16)
    assert "batch-size" not in found(dataclasses.replace(looks, data=data))


def test_a_plan_cut_short_is_judged_by_where_it_would_be():
    """Ten times the rate is after a tenth of the steps where the plan is at its end."""
    looks = with_runs(STUCK, run("rate*10", 0.0, 0.7, 0.9), planned=500)
    assert healings(looks) == []
    assert healing(with_runs(STUCK, run("rate*10", 0.0, 0.7, 0.9), planned=100), "rate")


def test_two_changes_that_heal_only_together_are_both_named():
    looks = with_runs(STUCK, run("inputs", 0.0, 0.02), run("inputs, rate*100", 0.2, 0.9))
    assert [each.cause for each in healings(looks)] == ["inputs", "rate"]


def test_scaling_that_only_calms_the_loss_heals():
    """A loss many times that of a constant answer is a fault, whatever a trial gets to."""
    wild = run("plan", -0.9, -0.8)
    looks = with_runs(wild, run("inputs", 0.0, 0.02), run("rate/10", -0.8, 0.01))
    assert [each.cause for each in healings(looks)] == ["inputs"]


def test_a_plan_that_learns_is_left_alone():
    better = [run("rate*10", 0.5, 0.95), run("inputs", 0.5, 0.99), run("longer", 0.4, 0.99)]
    assert healings(with_runs(run("plan", 0.0, 0.5), *better)) == []


def test_copies_name_activation_width_and_dropout():
    squashed = (layer("first", "sigmoid", units=8), layer("drop", None, kind="Dropout", units=None,
                rate=0.8, trainable=False), layer("out", "softmax", units=10))  # fmt: skip
    looks = with_layers(*squashed)
    for change, code, place in (
        ("relu", "saturated-units", "first"), ("wider", "bottleneck", "first"),
        ("dropout", "over-regularized", "drop"),
    ):  # fmt: skip
        findings = apply(RULES, with_runs(STUCK, run(change, 0.1, 0.7), of=looks))
        assert [each.layer for each in findings if each.code == code] == [place]


def test_linear_layers_in_a_row_are_a_warning_only_where_relu_heals():
    linear = (layer("first", "linear"), layer("second", "linear"), layer("out", "softmax"))
    looks = with_layers(*linear)
    assert severities(looks, "no-nonlinearity") == {"info"}
    sick = with_runs(STUCK, run("relu", 0.2, 0.9), of=looks)
    assert severities(sick, "no-nonlinearity") == {"warning"}


@pytest.mark.parametrize(("other", "want"), [(0.9, {"warning"}), (0.6, set())])
def test_kernels_far_off_are_told_of_although_the_plan_learns_half(other, want):
    looks = with_layers(layer("first", kernel_scale=3.0), layer("out", "softmax", units=10))
    looks = with_runs(run("plan", 0.0, 0.5), run("start", 0.2, other), of=looks)
    assert severities(looks, "kernels-too-large") == want
    assert found(with_runs(run("plan", 0.0, 0.5), run("inputs", 0.2, 0.9))) == []


@pytest.mark.parametrize(
    ("scale", "code"), [(3.0, "kernels-too-large"), (1e-4, "kernels-too-small")]
)
def test_kernels_off_scale_are_told_of_where_another_start_heals(scale, code):
    looks = with_layers(layer("first", kernel_scale=scale), layer("out", "softmax"))
    assert code not in found(looks)
    sick = with_runs(STUCK, run("start", 0.2, 0.8), of=looks)
    assert severities(sick, code) == {"warning"}


def test_signals_alone_are_let_go_where_the_trial_learns():
    signals = [
        signal("first", saturated=0.95, dead=0.9, variation=0.9, gradient=1e-9),
        signal("second", saturated=0.95, dead=0.95, variation=0.001, scale=1e3),
        signal("out", variation=0.001, scale=1e6),
    ]
    layers = (layer("first", "tanh"), layer("second", "relu"), layer("out", "softmax"))
    looks = with_layers(*layers, signals=signals)
    assert codes(apply(RULES, looks), "warning") == []
    stuck = codes(apply(RULES, with_runs(STUCK, of=looks)), "warning")
    assert {"saturated-units", "dead-units", "vanishing-signal"} <= set(stuck)


def test_an_output_that_collapsed_is_told_of():
    flat = run("plan", 0.0, 0.0, output_variation=0.001)
    assert "collapsed-output" in found(with_runs(flat))


def test_spikes_are_info():
    wild = run("plan", 0.0, 0.9, worst_loss=900.0, losses=tuple([1.0] * 20))
    assert severities(with_runs(wild), "loss-spikes") == {"info"}


def test_an_augmentation_beyond_the_inputs_is_an_unscaled_input():
    looks = with_layers(
        layer("augment", None, kind="RandomBrightness", units=None, trainable=False),
        layer("first"), layer("out", "softmax"),
        signals=[signal("augment", training_shift=80.0), signal("first"), signal("out")],
    )  # fmt: skip
    sick = with_runs(STUCK, of=looks)
    (finding,) = [each for each in apply(RULES, sick) if each.code == "unscaled-input"]
    assert (finding.layer, finding.severity) == ("augment", "warning")
    assert severities(looks, "unscaled-input") == {"info"}


def test_float16_is_told_of_only_in_float16():
    looks = with_signals(signal("first", gradient=0.0), signal("second"), signal("out"))
    looks = with_runs(STUCK, of=looks)
    half = dataclasses.replace(looks.structure, precision="mixed_float16")
    assert "float16-underflow" in found(dataclasses.replace(looks, structure=half))
    assert "float16-underflow" not in found(looks)


def test_an_optimizer_that_learns_at_no_rate_is_told_of():
    looks = with_runs(STUCK, run("rate*10", 0.0, 0.0), run("adam", 0.2, 0.8))
    assert "optimizer" in found(looks)
    assert "optimizer" not in found(with_runs(STUCK, run("rate*10", 0.0, 0.8), planned=90))


def test_deep_nets_without_normalization_are_told_of_where_they_do_not_learn():
    names = [f"layer{place}" for place in range(7)]
    looks = with_layers(*map(layer, names), signals=[signal(name) for name in names])
    assert "missing-normalization" not in found(looks)
    assert severities(with_runs(STUCK, of=looks), "missing-normalization") == {"info"}


def test_rows_learned_by_heart_are_told_of():
    looks = with_runs(run("plan", 0.0, 0.02, fitted=0.9))
    assert severities(looks, "too-little-data") == {"warning"}
    assert "too-little-data" not in found(with_runs(run("plan", 0.0, 0.02, fitted=0.1)))


def test_a_longer_training_that_is_only_less_bad_is_no_remedy():
    looks = with_runs(run("plan", -0.9, -0.9), run("longer", -0.9, 0.0, steps=300), planned=100)
    looks = dataclasses.replace(looks, data=dataclasses.replace(looks.data, epochs=10))
    assert "too-few-epochs" not in found(looks)


def test_wrong_widths_are_an_error():
    looks = with_head(np.eye(5)[np.arange(300) % 5], loss="CategoricalCrossentropy")
    assert severities(looks, "wrong-shape") == {"error"}
    assert "wrong-shape" not in found(with_data())
