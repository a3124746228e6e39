"""What the benchmarks share: turns, ratios, and campaigns that go on where they were."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HEAD = {"benchmark": "b", "quick": False, "commit": "c", "rounds": 3}


@pytest.fixture(scope="module")
def harness():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import harness
        import harness.campaign
        import harness.turns

        yield harness


@pytest.fixture(scope="module")
def overhead(harness):
    sys.modules.pop("monitor_overhead", None)
    import monitor_overhead

    yield monitor_overhead
    del sys.modules["monitor_overhead"]


def test_ratio_is_the_median_of_pairs_with_an_interval_around_it(harness):
    draw = np.random.default_rng(0)
    below = draw.uniform(1, 100, size=101)
    above = below * draw.uniform(1.9, 2.1, size=101)
    median, low, high = harness.turns.ratio(list(above), list(below), draw)
    assert median == np.median(above / below)
    assert 1.9 < low < median < high < 2.1


def test_contenders_take_turns_one_epoch_each_a_round(harness):
    passed = []

    class Note(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def on_epoch_end(self, epoch, logs=None):
            passed.append(self.name)

    def fit(name):
        def run(turnstile):
            model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse", run_eagerly=True)
            callbacks = [turnstile, Note(name)]
            x = np.ones((2, 1))
            model.fit(x, x, epochs=100, verbose=0, callbacks=callbacks)

        return run

    runs = {name: fit(name) for name in "ab"}
    draw = np.random.default_rng(0)
    seconds = harness.turns.take_turns(runs, 8, draw, warm_up_epochs=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 8, "b": 8}
    assert all(min(times) > 0 for times in seconds.values())
    rounds = ["".join(passed[place : place + 2]) for place in range(0, len(passed), 2)]
    assert set(rounds) == {"ab", "ba"}
    assert len(rounds) == 11  # Two before those that count, and one in which they end.

    runs = {name: fit(name) for name in "abc"}
    seconds = harness.turns.take_turns(runs, 2, draw, 1, closer="ac", closer_seconds=0.05)
    assert len(seconds["b"]) == 2 < len(seconds["a"]) == len(seconds["c"])
    # Of two in which the one has more rounds, the common ones count.
    longer = [2.0, 2.0, 100.0, 100.0, 100.0]
    assert harness.turns.ratio(longer, [1.0, 1.0], draw) == [2.0, 2.0, 2.0]


def test_contender_that_ends_by_itself_is_an_error(harness):
    with pytest.raises(RuntimeError, match="a contender failed"):
        harness.turns.take_turns({"a": lambda turnstile: None}, 1, np.random.default_rng(0), 1)


def test_campaign_goes_on_where_it_was(harness, tmp_path, capsys):
    output = tmp_path / "results.json"

    def campaign(head, resume, fails=()):
        measured = []

        def measure(name):
            measured.append(name)
            return None if name in fails else {"name": name}

        content = harness.campaign.begin(head, output, resume)
        complete = harness.campaign.run({"a": 60, "b": 60}, measure, content, output, str)
        return complete, measured

    assert campaign(HEAD, resume=False, fails="b") == (False, ["a", "b"])
    assert list(json.loads(output.read_text())["results"]) == ["a"]
    assert "about 1 minutes left" in capsys.readouterr().out
    other = {**HEAD, "commit": "d"}
    with pytest.raises(SystemExit, match="commit changed"):
        harness.campaign.begin(other, output, resume=False)
    assert campaign(other, resume=True) == (True, ["b"])
    assert json.loads(output.read_text())["commit"] == "c"


def _result(overhead, model, of_clipnorm, of_plain):
    def times(number):
        return {name: [number] * 3 for name in overhead.CONTENDERS}

    return {
        "model": model,
        "optimizer": "SGD",
        "xla": False,
        "floor_rounds": 90,
        "ms_per_step": dict.fromkeys(overhead.CONTENDERS, 2.0),
        "times_plain": times(of_plain),
        "times_clipnorm": times(of_clipnorm),
    }


@pytest.mark.parametrize(
    ("model", "of_clipnorm", "of_plain", "verdicts"),
    [
        ("CNN", 1.06, 1.03, ["FAILS", "missed", "missed"]),
        ("CNN", 1.05, 1.02, ["holds", "missed", "reached"]),
        ("MLP", 1.00, 1.20, ["holds", "reached", "-"]),
    ],
)
def test_table_of_overheads_tells_floors_and_aims(overhead, model, of_clipnorm, of_plain, verdicts):
    result = _result(overhead, model, of_clipnorm, of_plain)
    content = {
        "rounds": 3,
        "telemetry_bytes": 999_999,
        "results": {f"{model}, SGD, no XLA": result},
    }
    table = overhead.summary(content)
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")]
    assert cells[1:5] == [model, "SGD", "off", "2.00"]
    floor, *aims = verdicts  # The monitor's, and of clip and default, which take as long here.
    assert [cell.split(" ")[-1] for cell in cells[-6:-1]] == [floor, floor, floor, *aims]
    assert table.endswith("holds")


def test_models_of_the_overheads_are_what_they_are_called(overhead):
    builders = {name: build for name, (build, _) in overhead.MODELS.items()}
    assert len(builders["MLP"]().trainable_variables) == 102
    transformer = builders["transformer"]()
    assert transformer.output_shape == (None, 64, 1000)
    # Embedding, positions, 16 of each block, the last norm and the logits.
    assert len(transformer.trainable_variables) == 2 + 4 * 16 + 4


def test_persistent_telemetry_is_small(overhead):
    assert 0 < overhead.telemetry_bytes() < overhead.MEMORY_FLOOR
