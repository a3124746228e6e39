"""What a run record tells after the fact."""

import numpy as np
import pytest

from gradstab.diagnosis.rules.records import diagnose_record
from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter

NAMES = ("model/a/kernel", "model/b/kernel", "model/c/kernel")


def found(folder, losses, *, norms=(1.0, 1.0, 1.0), dead=0.0, ratio=1e-3, skips=()):
    with RecordWriter(
        folder, variables=NAMES, layers=("a", "b", "c"), trained_layers=(), config={}
    ) as writer:
        for step, loss in enumerate(losses, start=1):
            if step in skips:
                writer.event("skip", step=step, cause="nonfinite", variable=NAMES[1])
            writer.step(
                step,
                {"loss": float(loss), "grad_norm": float(max(norms))},
                {"grad_norm": np.array(norms), "update_ratio": np.full(3, ratio)},
                {"activation_dead": np.array([dead, 0.0, 0.0])},
            )
    findings = diagnose_record(read_record(folder))
    return {each.code: each for each in findings}


FALLING = 2.0 * np.exp(-np.arange(100) / 30)
FLAT = np.full(100, 2.3)


def test_a_run_that_learned_is_left_alone(tmp_path):
    assert found(tmp_path, FALLING) == {}
    sick = found(tmp_path / "dead", FALLING, dead=0.95, norms=(1e-9, 1.0, 1.0))
    assert {each.severity for each in sick.values()} == {"info"}


@pytest.mark.parametrize(
    ("options", "code", "layer"),
    [
        ({"losses": np.linspace(2.0, 50.0, 100)}, "learning-rate-too-high", None),
        ({"losses": FLAT, "ratio": 0.5}, "learning-rate-too-high", None),
        ({"losses": FLAT, "norms": (1e-6, 1.0, 1.0)}, "vanishing-gradients", NAMES[0]),
        ({"losses": FLAT, "dead": 0.95}, "dead-units", "a"),
        ({"losses": np.where(np.arange(100) == 60, 90.0, FLAT)}, "loss-spikes", None),
        ({"losses": FLAT, "skips": (40, 41)}, "nonfinite-gradients", NAMES[1]),
    ],
)
def test_faults_are_named(tmp_path, options, code, layer):
    findings = found(tmp_path, **options)
    assert findings[code].layer == layer


def test_the_first_bad_step_is_told(tmp_path):
    finding = found(tmp_path, FLAT, skips=(40, 41))["nonfinite-gradients"]
    assert finding.evidence["first_step"] == 40


@pytest.mark.parametrize("norms", [(np.nan, 1.0, 1.0), (np.nan, np.nan, np.nan)])
@pytest.mark.parametrize("losses", [np.full(100, np.nan), np.full(3, 2.0), FLAT])
def test_a_record_without_numbers_raises_no_warning(tmp_path, losses, norms):
    """A resumed run of which one kernel was never sampled ended with NumPy's warning."""
    assert "vanishing-gradients" not in found(tmp_path, losses, norms=norms, ratio=np.nan)
