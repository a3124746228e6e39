"""A resumed run's guard goes on with its rollbacks, cuts and comparisons."""

import json

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(64, 4)).astype("float32")
Y = X.sum(-1, keepdims=True)


class Strike(keras.callbacks.Callback):
    """Makes the weights NaN when some epochs begin."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in (2, 4):
            self.model.layers[-1].kernel.assign(np.full((4, 1), np.nan))


def train(run_dir, epochs, *, ours, scheduled, bad=(), resume=False):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="dense")], name="net")
    rate = 0.05
    if scheduled:
        rate = keras.optimizers.schedules.ExponentialDecay(0.05, 1000, 0.9)
    optimizer = keras.optimizers.SGD(rate)
    model.compile(gradstab.stabilize(optimizer, clip=None) if ours else optimizer, "mse")
    guard = DivergenceGuard("recover", snapshot_every_n_steps=4, verbose=False)
    x = X.copy()
    x[list(bad)] = np.nan
    history = gradstab.training.train(
        model, x, Y, epochs=epochs, batch_size=8, seed=3, run_dir=run_dir, resume=resume,
        callbacks=[guard, Strike()], jit_compile=False, verbose=0,
    )  # fmt: skip
    return model, guard, history.history


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("ours", "scheduled", "bad"),
    [(False, True, ()), (True, False, ()), (True, True, ()), (True, False, (3, 20, 50))],
)
def test_a_cut_goes_on_and_is_undone_as_if_nothing_had_happened(
    tmp_path, monkeypatch, ours, scheduled, bad
):
    monkeypatch.setattr("gradstab.recovery.escalation.CALM_STEPS", 40)
    how = {"ours": ours, "scheduled": scheduled, "bad": bad}
    model, guard, history = train(tmp_path / "whole", 14, **how)
    _, half, _ = train(tmp_path / "cut", 7, **how)
    done = [(a.name, a.step) for a in half.actions if a.step < 56]
    assert "rollback" in {name for name, _ in done}
    assert ("masked" in {name for name, _ in done}) == bool(bad)
    resumed, again, of_both = train(tmp_path / "cut", 14, **how, resume=True)
    told = [(a.name, a.step, a.kind, a.message) for a in guard.actions]
    assert [(a.name, a.step, a.kind, a.message) for a in again.actions] == told
    assert [name for name, step, *_ in told if 56 < step < 112] == ["rate_raised"]
    for one, other in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert of_both == history


def test_what_no_guard_kept_is_refused_in_one_sentence(tmp_path):
    train(tmp_path, 2, ours=True, scheduled=False)
    file = tmp_path / "checkpoints" / "state.json"
    content = json.loads(file.read_text())
    (state,) = [s for s in content["callbacks"] if s["class"] == "DivergenceGuard"]
    kept = json.loads(state["values"]["progress"])
    for wrong in (
        "no json",
        "[]",
        json.dumps({**kept, "escalation": ["many", 0, 0, 0, 0]}),
        json.dumps({**kept, "run": []}),
        json.dumps({**kept, "actions": [["rollback", "soon", "", ""]]}),
    ):
        state["values"]["progress"] = wrong
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="What the run directory holds of `DivergenceGuard`"):
            train(tmp_path, 3, ours=True, scheduled=False, resume=True)
