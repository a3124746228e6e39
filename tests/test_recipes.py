"""Recipes: the settings that the literature gives, in a stabilized optimizer."""

import math

import keras
import numpy as np
import pytest

from gradstab import recipes

RECIPES = {
    "adagrad": (keras.optimizers.Adagrad, {"initial_accumulator_value": 0.1}),
    "rmsprop": (keras.optimizers.RMSprop, {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7}),
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


@pytest.mark.quick_cases(1)
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


# The length of a run ----------------------------------------------------------------------------


def _rates(optimizer, count):
    schedule = optimizer.inner_optimizer.get_config()["learning_rate"]
    schedule = keras.optimizers.schedules.deserialize(schedule)
    return np.asarray(schedule(np.arange(count))).tolist()


@recipe
@pytest.mark.parametrize(
    "length",
    [
        {"epochs": 4, "steps_per_epoch": 25},
        {"epochs": 4, "num_examples": 50, "batch_size": 2},
        {"epochs": 4, "num_examples": 97, "batch_size": 4},  # the last batch is a small one
        {"total_steps": 100, "steps_per_epoch": 25},
    ],
)
def test_what_a_person_knows_of_a_run(name, length):
    make = getattr(recipes, name)
    assert _rates(make(0.3, **length), 100) == _rates(make(0.3, 100), 100)


def test_linear_decay():
    got = _rates(recipes.adam(0.3, 100, warmup_steps=20, decay="linear"), 101)
    steps = np.arange(101)
    expected = np.where(steps < 20, 0.3 * (steps + 1) / 21, 0.3 * (1 - (steps - 20) / 80))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_warmup_by_beta_2():
    for beta_2, warmup in ((0.999, 2000), (0.98, 100), (0.9, 20)):
        optimizer = recipes.adam(0.3, 50_000, beta_2=beta_2)
        assert optimizer.inner_optimizer.beta_2 == beta_2
        rates = _rates(optimizer, warmup + 2)
        assert np.argmax(rates) == warmup
        assert rates[warmup] == pytest.approx(0.3)


def test_weight_decay_makes_adamw():
    inner = recipes.adam(1e-3, 100, weight_decay=0.02).inner_optimizer
    assert type(inner) is keras.optimizers.AdamW
    assert inner.weight_decay == 0.02


@pytest.mark.parametrize(
    ("setting", "momentum", "epsilon", "factor", "epochs", "clip"),
    [
        ("efficientnet", 0.9, 1e-3, 0.97, 2.4, 1.0),
        ("mobilenet_v2", 0.9, 1e-7, 0.98, 1.0, 1.0),
        ("inception_v3", 0.0, 1.0, 0.94, 2.0, 2.0),
    ],
)
def test_published_settings_of_rmsprop(setting, momentum, epsilon, factor, epochs, clip):
    optimizer = recipes.rmsprop(
        0.1, epochs=12, steps_per_epoch=10, setting=setting, decay="exponential", warmup_steps=0
    )
    inner = optimizer.inner_optimizer
    assert (inner.rho, inner.momentum, inner.epsilon) == (0.9, momentum, epsilon)
    assert f"ClipByGlobalNorm(max_norm={clip})" in repr(optimizer)
    stairs = [0.1 * factor ** (step // round(10 * epochs)) for step in range(120)]
    np.testing.assert_allclose(_rates(optimizer, 120), stairs, rtol=1e-5)
    other = recipes.rmsprop(0.1, 100, setting=setting, clip=0.5)
    assert "ClipByGlobalNorm(max_norm=0.5)" in repr(other)


def test_rmsprop_is_by_default_as_it_was_proposed():
    inner = recipes.rmsprop(0.1, 100).inner_optimizer
    assert (inner.rho, inner.momentum, inner.epsilon, inner.centered) == (0.9, 0.0, 1e-7, False)
    with pytest.raises(ValueError, match="`decay` must be one of 'cosine', 'linear'"):
        recipes.rmsprop(0.1, epochs=1, steps_per_epoch=10, decay="exponential")


def test_epsilon_stands_where_the_table_says():
    """One step of one weight, by the formulas of the three docstrings."""
    g, rate = 0.02, 0.1
    expected = {
        "adagrad": rate * g / math.sqrt(0.1 + g**2 + 1e-7),
        "rmsprop": rate * g / math.sqrt(0.1 * g**2 + 1e-7),
        "adam": rate * g * math.sqrt(0.001) / (math.sqrt(0.001) * g + 1e-7),
    }
    for name, change in expected.items():
        weight = keras.Variable([0.0])
        optimizer = getattr(recipes, name)(rate, 10, warmup_steps=0, clip=None)
        optimizer.apply([np.array([g], "float32")], [weight])
        assert -float(weight.numpy()[0]) == pytest.approx(change, rel=1e-4)


@recipe
def test_steps_are_updates_under_accumulation(name):
    make = getattr(recipes, name)
    optimizer = make(0.3, epochs=8, steps_per_epoch=25, gradient_accumulation_steps=4)
    assert optimizer.inner_optimizer.gradient_accumulation_steps == 4
    updates = _rates(make(0.3, total_steps=50), 50)
    np.testing.assert_array_equal(_rates(optimizer, 200), np.repeat(updates, 4))
    assert make(0.3, 10, gradient_accumulation_steps=1).inner_optimizer.get_config()[
        "gradient_accumulation_steps"
    ] in (None, 1)


def test_a_saved_model_loads_and_goes_on(tmp_path):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(16, 2)), draw.normal(size=(16, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(recipes.adam(0.1, 20, decay="linear", gradient_accumulation_steps=2), "mse")
    model.fit(x, y, batch_size=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    for each in (model, again):
        each.fit(x, y, batch_size=2, verbose=0, shuffle=False)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@recipe
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`total_steps` or `epochs` must say how long the run is. Received: none of them"),
        ({"total_steps": 10, "epochs": 2}, "both say how long the run is"),
        ({"epochs": 2}, "`epochs` alone does not say how many steps"),
        ({"epochs": 2, "num_examples": 10}, "must be given together"),
        ({"epochs": 2, "batch_size": 10}, "must be given together"),
        (
            {"epochs": 2, "steps_per_epoch": 5, "num_examples": 10, "batch_size": 2},
            "both say what an epoch is",
        ),
        ({"epochs": 2, "steps_per_epoch": 5, "warmup_steps": 10}, "must be above `warmup_steps`"),
        ({"epochs": 0, "steps_per_epoch": 5}, "`epochs` must be a positive integer"),
        (
            {"epochs": 1, "steps_per_epoch": 5, "gradient_accumulation_steps": 8},
            "of 8 leaves no update",
        ),
        ({"total_steps": 10, "gradient_accumulation_steps": 0}, "must be a positive integer"),
        ({"total_steps": 10, "decay": "steps"}, "`decay` must be one of 'cosine', 'linear'"),
    ],
)
def test_contradictory_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(recipes, name)(0.1, **arguments)


def test_more_that_is_refused():
    with pytest.raises(ValueError, match=r"`decay` \"exponential\" goes by epochs"):
        recipes.rmsprop(0.1, 10, setting="efficientnet", decay="exponential")
    with pytest.raises(ValueError, match="`setting` must be one of 'tieleman_hinton'"):
        recipes.rmsprop(0.1, 10, setting="resnet")
    with pytest.raises(ValueError, match="`beta_2` must be a float above 0 and below 1"):
        recipes.adam(0.1, 10, beta_2=1.0)
    with pytest.raises(ValueError, match="`weight_decay` must be a positive float"):
        recipes.adam(0.1, 10, weight_decay=-1.0)
    with pytest.raises(ValueError, match="`peak_learning_rate` must be a positive float"):
        recipes.adam(float("nan"), 10)
