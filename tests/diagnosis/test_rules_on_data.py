"""Rules on data and on heads: each on a sick case and on a healthy one, without Keras."""

import dataclasses

import numpy as np
import pytest
from diagnosis.hand_made import (
    LABELS,
    codes,
    healthy,
    run,
    with_data,
    with_head,
    with_input,
    with_runs,
)  # fmt: skip

from gradstab.diagnosis.looks.data import look_at_input, look_at_target
from gradstab.diagnosis.looks.relations import agreement_of_neighbours, contradictions
from gradstab.diagnosis.rules.catalogue import CODES, RULES, apply
from gradstab.diagnosis.rules.labels import loss_mismatch

ROWS = np.random.default_rng(0).normal(size=(300, 4))
ONE_HOT = np.eye(10)[LABELS]
MULTI_HOT = (np.random.default_rng(1).random((300, 10)) < 0.3).astype(float)
BINARY = LABELS % 2


def found(looks):
    return codes(apply(RULES, looks))


def severities(looks, code):
    return {each.severity for each in apply(RULES, looks) if each.code == code}


def test_nothing_is_found_in_a_healthy_model():
    assert found(healthy()) == []


@pytest.mark.parametrize(
    ("targets", "head", "code"),
    [
        (BINARY, {"activation": "softmax", "shape": (1,), "loss": "BinaryCrossentropy"},
         "single-unit-softmax"),
        (LABELS, {"softmaxes": 2}, "double-softmax"),
        (LABELS, {"activation": "linear", "minimum": -3.0, "maximum": 2.0},
         "logits-without-from-logits"),
        (BINARY, {"activation": "linear", "shape": (1,), "loss": "BinaryCrossentropy"},
         "logits-without-from-logits"),
        (ONE_HOT, {"activation": "softsign", "loss": "CategoricalCrossentropy"},
         "output-activation"),
        (-np.arange(300.0) / 7, {"activation": "relu", "shape": (1,), "loss": "MeanSquaredError"},
         "output-activation"),
        (np.arange(300.0) / 7, {"activation": "sigmoid", "shape": (1,), "loss": "Huber"},
         "output-activation"),
        (MULTI_HOT, {"loss": "MeanSquaredError"}, "output-activation"),
        (BINARY, {"activation": "sigmoid", "shape": (1,), "loss": "CategoricalCrossentropy"},
         "loss-mismatch"),
        (ROWS[:, :1] * 40, {"activation": "linear", "shape": (1,), "loss": "BinaryCrossentropy"},
         "loss-mismatch"),
        (LABELS + 1, {}, "label-range"),
        (BINARY * 2 - 1, {"activation": "sigmoid", "shape": (1,), "loss": "BinaryCrossentropy"},
         "label-range"),
        (ONE_HOT, {}, "label-encoding"),
        (LABELS, {"loss": "CategoricalCrossentropy"}, "label-encoding"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_are_errors(targets, head, code):
    looks = with_head(targets, **head)
    assert "error" in severities(looks, code)
    # The gravest comes with nothing else that is unfair: what else is found is about the head too.
    assert set(found(looks)) <= {code, "label-range", "output-activation", "label-encoding"}


@pytest.mark.parametrize(
    ("targets", "head"),
    [
        (BINARY, {"activation": "sigmoid", "shape": (1,), "loss": "BinaryCrossentropy"}),
        (BINARY, {"activation": "linear", "shape": (1,), "loss": "BinaryCrossentropy",
                  "from_logits": True}),
        (LABELS, {"activation": "linear", "from_logits": True, "softmaxes": 0}),
        (ONE_HOT, {"loss": "CategoricalCrossentropy"}),
        (MULTI_HOT, {"activation": "sigmoid", "loss": "BinaryCrossentropy"}),
        (np.abs(ROWS), {"activation": "relu", "shape": (4,), "loss": "MeanSquaredError"}),
        (ROWS, {"activation": "linear", "shape": (4,), "loss": "MeanAbsoluteError"}),
        (np.tanh(ROWS), {"activation": "tanh", "shape": (4,), "loss": "MeanSquaredError"}),
        (BINARY, {"activation": None, "shape": (1,), "loss": "custom"}),
    ],
)  # fmt: skip
def test_heads_that_fit_are_left_alone(targets, head):
    assert found(with_head(targets, **head)) == []


@pytest.mark.parametrize(
    ("targets", "head", "code"),
    [
        (ONE_HOT, {"activation": "sigmoid", "loss": "CategoricalCrossentropy"},
         "output-activation"),
        (ONE_HOT, {"loss": "MeanSquaredError"}, "loss-mismatch"),
        (LABELS, {"from_logits": True}, "double-softmax"),
    ],
)  # fmt: skip
def test_what_does_no_harm_is_info(targets, head, code):
    assert severities(with_head(targets, **head), code) == {"info"}


def test_accuracy_of_numbers_is_told_of():
    looks = with_head(
        ROWS[:, :1], activation="linear", shape=(1,), loss="MeanSquaredError", metrics=("accuracy",)
    )
    assert found(looks) == ["metric-mismatch"]


@pytest.mark.parametrize(
    ("targets", "metrics", "want"),
    [
        (LABELS, ("accuracy",), ["loss-mismatch"]),
        (LABELS, (), []),
        (LABELS * 3, ("accuracy",), []),  # with gaps between them
        (LABELS - 4, ("accuracy",), []),
    ],
)
def test_class_numbers_judged_by_accuracy_are_no_quantities(targets, metrics, want):
    looks = with_head(
        targets, activation="linear", shape=(1,), loss="MeanSquaredError", metrics=metrics
    )
    assert [each.code for each in loss_mismatch(looks)] == want


def test_whole_numbers_with_gaps_are_quantities_under_a_loss_of_probabilities():
    """The progression of diabetes, 31 to 346, was told to be 347 classes."""
    numbers = [number for number in range(31, 331) if number % 3]
    targets = np.repeat(numbers, 2)[:, None]
    looks = with_head(targets, activation="sigmoid", shape=(1,), loss="BinaryCrossentropy")
    remedies = {each.code: each.remedy for each in apply(RULES, looks)}
    for code in ("loss-mismatch", "label-range"):
        assert "mean_squared_error" in remedies[code]
        assert "softmax" not in remedies[code]


def test_a_loss_of_raw_outputs_that_is_not_finite_wants_its_form_for_logits():
    looks = with_head(ONE_HOT, activation="linear", loss="custom", minimum=-2.0, maximum=3.0)
    signal = dataclasses.replace(looks.signal, loss=float("nan"), loss_of_probabilities=0.7)
    assert "logits-without-from-logits" in found(dataclasses.replace(looks, signal=signal))


def test_entries_that_are_not_finite_are_placed():
    values = ROWS.copy()
    values[5, 2] = np.nan
    look = look_at_input("x", values)
    assert (look.nonfinite, look.first_nonfinite) == (1, (5, 2))
    finding = apply(RULES, with_data(inputs=(look,)))[0]
    assert (finding.code, finding.evidence["row"], finding.evidence["feature"]) == (
        "nonfinite-data", 5, 2,
    )  # fmt: skip


def test_data_that_never_changes_is_an_error():
    constant = look_at_input("x", np.ones((50, 3)))
    assert found(with_data(inputs=(constant,))) == ["constant-data"]
    same = look_at_target("y", np.zeros(50))
    assert "constant-data" in found(with_data(targets=(same,)))


def test_classes_that_never_occur_are_told_of():
    rows = np.sort(LABELS % 8)
    looks = with_head(rows)
    assert severities(looks, "class-imbalance") == {"warning"}
    assert "sorted" in apply(RULES, looks)[0].cause


def test_a_rare_class_that_is_learned_is_info():
    looks = with_head(
        (np.arange(300) % 25 == 0).astype(int), activation="sigmoid", shape=(1,),
        loss="BinaryCrossentropy",
    )  # fmt: skip
    assert severities(looks, "class-imbalance") == {"info"}
    stuck = with_runs(run("plan", 0.0, 0.0), of=looks)
    assert severities(stuck, "class-imbalance") == {"warning"}


def test_few_rows_for_many_weights_are_info():
    looks = with_data(rows=10)
    assert severities(looks, "too-little-data") == {"info"}


def test_labels_without_relation_to_inputs_are_told_of_only_where_nothing_learns():
    looks = healthy()
    target = dataclasses.replace(looks.data.targets[0], neighbours_agree=0.01)
    looks = dataclasses.replace(looks, data=dataclasses.replace(looks.data, targets=(target,)))
    assert "label-encoding" not in found(looks)
    stuck = with_runs(run("plan", 0.0, 0.0), run("rate*10", 0.0, 0.01), of=looks)
    assert severities(stuck, "label-encoding") == {"warning"}


def test_neighbours_agree_where_labels_go_with_inputs():
    labels = (ROWS[:, 0] > 0).astype(int)
    shuffled = np.random.default_rng(3).permutation(labels)
    assert agreement_of_neighbours(ROWS, labels, 0) > 0.4
    assert abs(agreement_of_neighbours(ROWS, shuffled, 0)) < 0.2


def test_contradictions_are_counted_among_repeated_rows():
    rows = np.array([[1.0], [1.0], [2.0], [2.0], [3.0]])
    assert contradictions(rows, np.array([0, 1, 1, 1, 0])) == 0.5


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (BINARY, "binary"), (LABELS, "classes"), (ONE_HOT, "one-hot"), (MULTI_HOT, "multi-hot"),
        (BINARY * 2 - 1, "signs"), (ROWS, "continuous"), (LABELS * 1000, "continuous"),
        (np.abs(np.tanh(ROWS)), "fractions"), (LABELS[:, None], "classes"),
        (np.full((9, 4), 0.25), "probabilities"),
    ],
)  # fmt: skip
def test_kinds_of_targets(values, kind):
    assert look_at_target("y", np.asarray(values)).kind == kind


def test_large_inputs_are_a_warning_only_where_scaling_heals():
    looks = with_input(largest_scale=2000.0)
    assert severities(looks, "unscaled-input") == {"info"}
    sick = with_runs(run("plan", 0.0, 0.0), run("inputs", 0.1, 0.8), of=looks)
    assert severities(sick, "unscaled-input") == {"warning"}


def test_large_targets_are_a_warning_only_where_scaling_heals():
    looks = with_head(ROWS[:, :1] * 1e5, activation="linear", shape=(1,), loss="MeanSquaredError")
    assert severities(looks, "unscaled-target") == {"info"}
    sick = with_runs(run("plan", -0.3, -0.3), run("targets", 0.1, 0.8), of=looks)
    assert severities(sick, "unscaled-target") == {"warning"}


def test_every_finding_has_a_code_of_the_catalogue():
    sick = with_head(np.eye(10)[LABELS], activation="tanh", softmaxes=2, loss="MeanSquaredError")
    assert set(found(sick)) <= CODES
