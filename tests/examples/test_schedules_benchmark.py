"""What the benchmark of the recipes makes of scores: choices on validation, reports on test."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def judgement():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import schedule_parts.judgement

        yield schedule_parts.judgement
        for name in [name for name in sys.modules if name.startswith("schedule_parts")]:
            del sys.modules[name]


def scores(test, validation=None):
    return {"test": test, "validation": test if validation is None else validation}


def result(shift=0.0, peak_at_64=None):
    """Bare: best on validation at 0.002, usable up to 0.004. The recipe: at 0.004, up to 0.016."""
    bare = {
        "0": scores([40.0, 50.0, 60.0, 60.0 + shift]),
        "1": scores([50.0, 70.0, 81.0, 80.0 + shift]),
        # Better on test data, and not chosen for it.
        "2": scores([50.0, 60.0, 70.0, 82.0 + shift], [0.0, 0.0, 0.0, 70.0]),
        "3": scores([10.0, None, None, None]),
    }
    recipe = {
        "1": scores([50.0, 60.0, 70.0, 80.0 + shift]),
        "2": scores([50.0, 81.0 + shift, 83.0, 84.0 + shift]),
        "3": scores([10.0, 20.0, 70.0, 79.0 + shift]),
        "4": scores([10.0, 20.0, 70.0, 78.0 + shift]),
        "5": scores([10.0, 10.0, 10.0, 10.0]),
    }
    return {
        "model": "CNN", "optimizer": "adam", "epochs": 4, "scores": {"bare": bare, "recipe": recipe}
    }  # fmt: skip


def test_choices_are_made_on_validation_and_paired_by_seed(judgement):
    results = {str(shift): result(shift) for shift in (-0.5, 0.0, 0.5)}
    (verdict,) = judgement.judge(results, np.random.default_rng(0))
    assert verdict["seeds"] == 3
    assert verdict["fixed_rate"] == pytest.approx(0.002)
    assert verdict["peak_rate"] == pytest.approx(0.004)
    assert verdict["at_default_rate"] == 60.0
    assert (verdict["at_fixed_rate"], verdict["by_recipe"]) == (80.0, 84.0)
    assert verdict["points"] == [4.0, 4.0, 4.0]
    # The fixed rate is at its last score after three epochs already, the recipe after two.
    assert verdict["share_of_epochs"] == pytest.approx([2 / 3] * 3)
    assert verdict["octaves"] == [2.0, 2.0, 2.0]
    line = judgement.table([verdict]).splitlines()[2]
    assert "holds, holds, holds" in line
    assert "reached, reached, reached" in line


def test_a_recipe_that_loses_fails_its_floors(judgement):
    bad = result()
    bad["scores"]["recipe"] = {
        "1": scores([10.0, 20.0, 30.0, 40.0]),
        "2": scores([None, None, None, None]),
    }
    (verdict,) = judgement.judge({"one": bad}, np.random.default_rng(0))
    assert verdict["points"][0] == -40.0
    assert verdict["share_of_epochs"][0] == pytest.approx(5 / 3)  # never: one more than there are
    assert verdict["octaves"][0] == -2.0  # none is usable: one below the lowest
    assert "FAILS, FAILS, FAILS" in judgement.table([verdict])
