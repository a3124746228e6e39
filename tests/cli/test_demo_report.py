"""What the demo says is what its results are."""

import json
import math

import pytest

from gradstab.cli.demo_report import (
    ALL_PARTS,
    NO_WRAPPER,
    ONE_LINE,
    PLAIN,
    SETTINGS,
    WAYS,
    Result,
    conclusions,
    results_table,
    run_key,
    verdict,
)

ACCURACY = {"trained": 0.98, "in part": 0.6, "at chance": 0.1, "NaN": 0.09}


def _results(plain, one_line, all_parts, no_wrapper, setting="broken"):
    verdicts = (plain, one_line, all_parts, no_wrapper)
    return [
        Result(
            setting=setting,
            way=way.name,
            accuracy=ACCURACY[each],
            loss=math.nan if each == "NaN" else 0.5,
            verdict=each,
            skipped=20 if way.wrapped else None,
            clipped=7 if way.wrapped else None,
            steps=780,
            seconds=1.0,
            series={"epoch": [0, 1], "loss": [2.3, math.nan], "grad_norm": [1.0, math.inf]},
        )
        for way, each in zip(WAYS, verdicts, strict=True)
    ]


@pytest.mark.parametrize(
    ("accuracy", "finite", "word"),
    [
        (0.98, True, "trained"),
        (0.9, True, "trained"),
        (0.89, True, "in part"),
        (0.2, True, "at chance"),
        (0.98, False, "NaN"),
        (0.1, False, "NaN"),
    ],
)
def test_verdict(accuracy, finite, word):
    assert verdict(accuracy, finite) == word


def test_the_ways_are_the_four_combinations_and_the_settings_break_one_thing_each():
    assert {(way.wrapped, way.parts) for way in WAYS} == {
        (False, False), (True, False), (True, True), (False, True)
    }  # fmt: skip
    exploding, vanishing, nan_image, corrupted = SETTINGS
    assert (exploding.stddev, exploding.scaled, exploding.fault) == (0.2, False, None)
    assert (vanishing.stddev, vanishing.scaled, vanishing.fault) == (0.01, True, None)
    assert (nan_image.stddev, nan_image.scaled, nan_image.fault) == (None, True, "nan image")
    assert (corrupted.stddev, corrupted.scaled) == (None, True)
    assert corrupted.fault == "corrupted batch"


def test_only_runs_that_are_one_computation_share_a_key():
    keys = {(s.name, w.name): run_key(s, w) for s in SETTINGS for w in WAYS}
    assert keys["exploding", ALL_PARTS.name] == keys["vanishing", ALL_PARTS.name]
    assert keys["exploding", NO_WRAPPER.name] == keys["vanishing", NO_WRAPPER.name]
    assert len(set(keys.values())) == len(keys) - 2


@pytest.mark.parametrize(
    ("verdicts", "said", "not_said"),
    [
        (
            ("NaN", "trained", "trained", "NaN"),
            ["plain Keras ends in NaN (0.090)", "One line saves it (20 of 780 steps skipped, 7",
             "it is skipping and clipping that save it"],
            ["does not help"],
        ),
        (
            ("at chance", "at chance", "trained", "trained"),
            ["One line does not help: it stays at chance (0.100)", "are enough here"],
            ["saves it"],
        ),
        (
            ("at chance", "in part", "trained", "trained"),
            ["One line does not help: it learns in part (0.600)"],
            ["saves it"],
        ),
        (
            ("NaN", "trained", "in part", "trained"),
            ["All parts together fail: that run learns in part", "here it does harm"],
            [],
        ),
        (
            ("NaN", "NaN", "NaN", "NaN"),
            ["All parts together do not help either"],
            ["saves it", "save it"],
        ),
        (
            ("trained", "trained", "trained", "trained"),
            ["with this seed nothing breaks", "One line does no harm"],
            ["saves it", "plain Keras ends"],
        ),
    ],
)  # fmt: skip
def test_conclusions_follow_the_results(verdicts, said, not_said):
    (text,) = conclusions(_results(*verdicts))
    assert text.startswith("broken: ")
    assert all(each in text for each in said), text
    assert not any(each in text for each in not_said), text


def test_each_setting_gets_a_sentence_and_each_run_a_line():
    results = [
        *_results("NaN", "trained", "trained", "NaN", setting="first"),
        *_results("at chance", "at chance", "trained", "trained", setting="second"),
    ]
    first, second = conclusions(results)
    assert first.startswith("first: ")
    assert second.startswith("second: ")
    lines = results_table(results).splitlines()
    assert len(lines) == 2 + len(results)
    assert lines[2].split() == ["first", "plain", "Keras", "0.090", "NaN", "NaN", "-", "-"]
    assert lines[3].split() == ["first", "one", "line", "0.980", "0.5000", "trained", "20", "7"]


def test_a_result_is_strict_json():
    (result, *_) = _results("NaN", "trained", "trained", "NaN")
    fields = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert fields["loss"] is None
    assert fields["series"]["loss"] == [2.3, None]
    assert fields["series"]["grad_norm"] == [1.0, None]
    assert fields["way"] == PLAIN.name
    assert fields["skipped"] is None
    assert ONE_LINE.wrapped
