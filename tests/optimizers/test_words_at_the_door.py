"""What people meet first: a reading printed, a model passed for an optimizer, float16."""

import keras
import numpy as np
import pytest

import gradstab

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :1] * 2


def _model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])


def test_a_reading_prints_as_five_lines():
    bad = X.copy()
    bad[40] = np.nan
    optimizer = gradstab.stabilize("sgd", clip=0.5, learning_rate=0.01)
    told = str(optimizer.telemetry.read()).splitlines()
    assert told[0] == "no new step; 0 steps so far"
    assert len(told) == 5
    model = _model()
    model.compile(optimizer, "mse")
    model.fit(bad, Y, batch_size=16, shuffle=False, verbose=0)
    lines = str(optimizer.telemetry.read()).splitlines()
    assert len(lines) == 5
    assert lines[0] == "steps 1 to 4"
    assert lines[1].startswith("gradient norm: last ")
    assert lines[1].endswith("; after the transforms 0.5")
    assert " largest " in lines[1]
    assert lines[2].startswith("loss: last ")
    assert lines[3] == "clipped 3 of 4, limited 0 of 4, skipped 1 of 4 (nonfinite 1)"
    assert lines[4] == "not diverged"


def test_a_model_in_place_of_an_optimizer_is_told_what_to_pass():
    with pytest.raises(TypeError, match=r"not a model.*model\.compile\(gradstab\.stabilize"):
        gradstab.stabilize(_model())


def test_the_telemetry_is_found_under_a_loss_scale():
    model = _model()
    scaled = keras.optimizers.LossScaleOptimizer(gradstab.stabilize("sgd"))
    model.compile(scaled, "mse")
    model.fit(X, Y, verbose=0)
    ours = gradstab.optimizers.stabilized_optimizer(model)
    assert ours is scaled.inner_optimizer
    assert ours.telemetry.read().cursor == 2
    assert gradstab.optimizers.stabilized_optimizer(keras.optimizers.SGD()) is None
