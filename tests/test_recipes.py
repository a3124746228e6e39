"""Recipes: the settings that the literature gives, in a stabilized optimizer."""

import math

import keras
import numpy as np
import pytest

from gradstab import recipes

RECIPES = {
    "adagrad": (keras.optimizers.Adagrad, {"initial_accumulator_value": 0.1}),
    "rmsprop": (keras.optimizers.RMSprop, {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-3}),
    "adam": (keras.optimizers.Adam, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
}
recipe = pytest.mark.parametrize("name", RECIPES)


def _rate(step, peak, total, warmup):
    """A straight line to the peak at the step `warmup`, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))


@recipe
def test_settings(name):
    kind, settings = RECIPES[name]
    optimizer = getattr(recipes, name)(0.1, total_steps=100)
    assert repr(optimizer) == (
        "<StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> "
        f"ClipByGlobalNorm(max_norm=1.0) -> {kind.__name__}>"
    )
    config = optimizer.inner_optimizer.get_config()
    assert {key: config[key] for key in settings} == settings
    assert "ClipBy" not in repr(getattr(recipes, name)(0.1, 100, clip=None))


@pytest.mark.parametrize(
    ("name", "total", "warmup", "given"),
    [
        ("adagrad", 100, 5, None),
        ("rmsprop", 100, 5, None),
        ("adam", 100, 10, None),
        ("adam", 50_000, 2000, None),
        ("adam", 100, 30, 30),
        ("rmsprop", 100, 0, 0),
    ],
)
def test_the_rate_over_a_run(name, total, warmup, given):
    optimizer = getattr(recipes, name)(0.3, total, warmup_steps=given)
    schedule = optimizer.inner_optimizer.get_config()["learning_rate"]
    schedule = keras.optimizers.schedules.deserialize(schedule)
    steps = sorted({0, 1, warmup // 2, warmup, warmup + 1, total // 2, total - 1, total, 2 * total})
    expected = [_rate(step, 0.3, total, warmup) for step in steps]
    got = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


@recipe
def test_callbacks_can_cut_the_rate(name):
    optimizer = getattr(recipes, name)(0.1, 100, warmup_steps=0)
    optimizer.learning_rate = 0.01
    assert math.isclose(float(optimizer.learning_rate), 0.01, rel_tol=1e-5)


@recipe
def test_it_trains(name):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 4)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]], "float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    peak = {"adagrad": 0.5, "rmsprop": 0.02, "adam": 0.1}[name]
    model.compile(getattr(recipes, name)(peak, total_steps=160), "mse")
    history = model.fit(x, y, batch_size=8, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.05 * history[0]


@recipe
def test_what_cant_be_right_is_refused(name):
    make = getattr(recipes, name)
    with pytest.raises(ValueError, match="`total_steps` must be above `warmup_steps`"):
        make(0.1, 10, warmup_steps=10)
    with pytest.raises(TypeError, match="`total_steps` must be a positive integer"):
        make(0.1, "100")
    with pytest.raises(ValueError, match="`total_steps` must be a positive integer"):
        make(0.1, 0)
    with pytest.raises(ValueError, match="`peak_learning_rate` must be a positive float"):
        make(0.0, 100)
    with pytest.raises(ValueError, match="`warmup_steps` must be an integer of at least 0"):
        make(0.1, 100, warmup_steps=-1)
    with pytest.raises(ValueError, match="`clip` must be a positive float"):
        make(0.1, 100, clip=-1.0)
