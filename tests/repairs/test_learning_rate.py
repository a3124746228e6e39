"""The rate found is one that trains; the model is not touched."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.repairs.learning_rate import _suggested

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(400, 6)).astype("float32")
Y = (X @ DRAW.normal(size=(6, 1))).astype("float32")


def _model(optimizer="sgd", loss="mse"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss)
    return model


def test_it_lies_below_the_limit_of_stability_and_not_far():
    # The mean squared error's curvature in the kernel: twice the covariance of the inputs.
    limit = 2 / (2 * np.linalg.eigvalsh(X.T @ X / len(X)).max())
    found = gradstab.find_learning_rate(_model(), X, Y)
    assert limit / 100 < found.suggestion < limit
    assert len(found.rates) == len(found.losses)
    assert str(round(found.start, 3))[:3] in found.reason


def test_the_model_and_the_generators_stay_as_they_are():
    model = _model(gradstab.stabilize(keras.optimizers.SGD(0.5, momentum=0.9)))
    before = [w.numpy().copy() for w in model.weights]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    gradstab.find_learning_rate(model, X, Y)
    assert all(np.array_equal(b, w) for b, w in zip(before, model.weights, strict=True))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert float(model.optimizer.learning_rate) == 0.5
    assert not model.optimizer.built


def test_a_schedule_is_replaced_on_the_copy_alone():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = _model(keras.optimizers.Adam(schedule))
    assert gradstab.find_learning_rate(model, X, Y).suggestion is not None
    assert model.optimizer.get_config()["learning_rate"]["class_name"] == "ExponentialDecay"


def test_where_nothing_helps_it_says_so():
    model = _model(loss=lambda y, p: keras.ops.mean(0.0 * p) + 1.0)
    found = gradstab.find_learning_rate(model, X, Y)
    assert found.suggestion is None
    assert "no rate lowered the loss" in found.reason


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 0.9, 0.1, 0.1, np.nan], 1e-3),
        ([1.0, 0.9, 0.2, 0.0, np.nan], 1e-3),
        ([1.0, 1.0, 0.9, 0.0, 5.0], 1e-2),
        ([np.nan] * 5, None),
    ],
)
def test_a_suggestion_keeps_away_from_the_edge(losses, expected):
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert _suggested(rates, losses, 1.0)[0] == expected


def test_its_plot_shows_the_losses():
    pytest.importorskip("matplotlib").use("agg")
    found = gradstab.find_learning_rate(_model(), X, Y, num_steps=5)
    axes = found.plot()
    assert axes.lines[0].get_ydata()[0] == found.losses[0]
    assert axes.get_xlabel() == "learning rate"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"min_rate": -1.0}, "min_rate"),
        ({"min_rate": 2e-3, "max_rate": 2.5e-3}, "half decade"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gradstab.find_learning_rate(_model(), X, Y, **arguments)


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="compiled"):
        gradstab.find_learning_rate(keras.Sequential([keras.layers.Dense(1)]), X, Y)
