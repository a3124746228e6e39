"""Scores of trials: of what Keras predicts, without a trace for each model."""

import keras
import numpy as np
import pytest

from gradstab.repairs.draft import Plan
from gradstab.repairs.prescriptions.catalogue import named
from gradstab.repairs.trial import TRACE, Bench, _predicted

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(1100, 6))


def _dense():
    layers = [keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((6,)), *layers]), X


def _recurrent():
    steps = X.reshape(len(X), 3, 2)
    return keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(4)]), steps


def _two_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model({"a": a, "b": b}, [keras.layers.Dense(2)(a), keras.layers.Add()([a, b])])
    return model, {"a": X, "b": X[::-1]}


def _own_predict_step():
    class Doubled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def predict_step(self, data):
            return 2 * super().predict_step(data)

    return Doubled(), X


@pytest.mark.parametrize("build", [_dense, _recurrent, _two_inputs_and_outputs, _own_predict_step])
def test_outputs_are_those_of_predict(build):
    model, x = build()
    want = keras.tree.flatten(model.predict(x, verbose=0))
    for given, wanted in zip(_predicted(model, x), want, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_a_score_traces_nothing():
    model, _ = _dense()
    model.compile("sgd", "mse")
    bench = Bench(model, X, X.sum(1), None, Plan(epochs=1, batch_size=64), seed=0)
    trial = bench.trial([])
    bench.train(trial, 1.0)
    assert -1 <= trial.score <= 1
    assert trial.model.predict_function is None


def test_a_known_rate_is_searched_for_only_where_something_else_is_changed_too():
    model, _ = _dense()
    model.compile(keras.optimizers.SGD(1e-5), "mse")
    bench = Bench(model, X, X.sum(1), None, Plan(epochs=1, batch_size=64), seed=0)
    bench.known_rate = 0.02
    alone = bench.trial([named("SetLearningRate")])
    assert float(alone.model.optimizer.learning_rate) == pytest.approx(0.02)
    assert alone.steps == TRACE
    beside = bench.trial([named("SetLearningRate"), named("ReviveUnits")])
    assert beside.steps > TRACE


def test_another_start_is_of_the_same_draft():
    model, _ = _dense()
    model.compile(keras.optimizers.SGD(1e-5), "mse")
    bench = Bench(model, X, X.sum(1), None, Plan(epochs=1, batch_size=64), seed=0)
    first = bench.trial([named("ReviveUnits")])
    trials = [bench.again(first, seed) for seed in (1, 1, 2)]
    assert all(each.draft is first.draft for each in trials)
    kernels = [each.model.layers[0].kernel.numpy() for each in trials]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])
