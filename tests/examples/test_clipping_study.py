"""The study of the clips: its data is there, faults are as it says, bands have no gaps."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gradstab.data import named

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
has_fashion = all((named._FASHION_SYSTEM_FOLDER / name).is_file() for name in named._FASHION_FILES)


@pytest.fixture(scope="module")
def parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import clipping_parts.candidates
        import clipping_parts.judgement
        import clipping_parts.runs
        import clipping_parts.tasks

        yield clipping_parts
        for name in [name for name in sys.modules if name.startswith("clipping_parts")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def study(parts):
    import clipping_study

    yield clipping_study
    del sys.modules["clipping_study"]


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    "name",
    [
        "MLP",
        pytest.param("CNN", marks=pytest.mark.skipif(not has_fashion, reason="no Fashion-MNIST")),
        "LSTM",
        "transformer",
        "embedding",
        "temporal order",
        "adding",
    ],
)
def test_there_is_enough_data_for_the_whole_study(parts, name):
    work = parts.tasks.task(name, False)
    for inputs, targets in (work.train, work.validation, work.test):
        assert len(inputs) == len(targets) > 150


@pytest.mark.parametrize("fault", [None, "spikes", "rate spike", "NaN", "exploding start"])
def test_a_run_is_hit_as_often_as_it_says(parts, fault):
    made = parts.runs.plan(0.5, fault, 400, np.random.default_rng(3))
    clean = parts.runs.plan(0.5, None, 400, np.random.default_rng(3))
    assert clean.rates[0] == 0.5
    assert clean.rates[-1] < 1e-4
    ratios = made.rates / clean.rates
    hit = {
        "spikes": (np.sum(made.inputs == 1e3), np.sum(made.shift == 1)),
        "rate spike": (np.sum(ratios > 99), np.sum(ratios > 1.01)),
        "NaN": (np.sum(made.nan),) * 2,
        "exploding start": (made.start, made.start),
    }
    usual = {"spikes": 0, "rate spike": 0, "NaN": 0, "exploding start": 1.0}
    there = {"spikes": 2, "rate spike": 1, "NaN": 2, "exploding start": 4.0}
    for name, numbers in hit.items():
        assert set(numbers) == {there[name] if name == fault else usual[name]}


def test_a_band_ends_at_the_first_rate_that_is_not_usable(parts):
    def runs(score):
        return [{"test": each} for each in (score, score, None)]

    rates = {"0": runs(70.0), "1": runs(60.0), "2": runs(81.0), "3": runs(90.0), "4": runs(80.0)}
    rates["5"] = [{"test": 85.0}, {"test": None}, {"test": None}]  # Lost by the median.
    rates["6"] = runs(99.0)
    result = {"rates": rates, "exponent": 3, "usable": 80.0}
    assert parts.judgement.band(result) == (2, 4)


@pytest.mark.parametrize("peak", [-1, 5, 12])
def test_the_best_rate_may_lie_beyond_the_first_grid(parts, monkeypatch, peak):
    class Scores:
        optimizer = "of no use here"

        def __init__(self, *arguments):
            pass

        def run(self, of, seed):
            octaves = np.log2(of.rates[0] / parts.runs.BASE_RATE)
            return dict.fromkeys(("validation", "test"), 90.0 - 4 * abs(octaves - peak))

    monkeypatch.setattr(parts.runs, "Runner", Scores)
    plain = parts.runs.measure("MLP", "SGD", "plain", {"seeds": [1]}, False)
    assert plain["exponent"] == peak
    assert plain["usable"] == 10 + 0.9 * (90 - 10)
    # Two octaves are usable on each side, and two more are tried.
    assert sorted(map(int, plain["rates"])) == list(range(min(peak - 4, 2), max(peak + 4, 9) + 1))


def _group(parts, model, optimizer, score):
    """Results of all candidates on one model, each with two rates and one fault."""
    runs = [{"validation": 1.0, "test": score, "clipped": 0.0, "skipped": 0.25}] * 2
    return {
        f"{model}, {optimizer}, {name}": {
            "model": model,
            "optimizer": optimizer,
            "candidate": name,
            "exponent": 3,
            "usable": 80.0,
            "rates": {"3": runs, "4": runs},
            "faults": {"NaN": [run | {"test": score - (name == "plain")} for run in runs]},
        }
        for name in parts.candidates.names(optimizer)
    }


def test_the_page_tells_of_all_candidates_where_all_were_measured(parts, study):
    results = _group(parts, "CNN", "SGD", 81.0) | _group(parts, "MLP", "Adam", 90.0)
    del results["CNN, SGD, AGC"]
    page = study.page({"commit": "0123456789", "results": results})
    auto, every, floors = page.split("### ")[1:]
    assert auto.startswith('`clip="auto"` and plain Keras')
    # In the order of the tasks, whatever came first.
    assert auto.index("| MLP*  | Adam      | 0.008 | 90.0  | +0.0") < auto.index("| CNN*  | SGD")
    assert "| MLP*  | Adam      | NaN   | -1.0  | +0.0 |" in auto
    assert "AGC" in every
    assert "CNN" not in every + floors
    assert "MLP*, Adam: NaN +0.0, best other +0.0" in floors
    assert "25.0% of steps clipped: FAILS" in floors


def test_results_stand_between_the_marks_of_a_page(study, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- results -->\nold\n<!-- end of results -->\n\nMore.\n")
    study.write_between_marks(page, "new")
    expected = "# Page\n\n<!-- results -->\n\nnew\n\n<!-- end of results -->\n\nMore.\n"
    assert page.read_text() == expected
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold <!-- results -->"):
        study.write_between_marks(page, "new")
    assert page.read_text() == "no marks"
