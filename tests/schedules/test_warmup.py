"""LinearWarmup against its closed form."""

import keras
import numpy as np
import pytest

from gradstab.schedules import LinearWarmup


def decay(step):
    """PolynomialDecay(0.5, 8, end_learning_rate=0.1), in NumPy."""
    return 0.5 - 0.4 * np.minimum(step, 8) / 8


def keras_decay():
    return keras.optimizers.schedules.PolynomialDecay(0.5, 8, end_learning_rate=0.1)


@pytest.mark.parametrize("warmup_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("initial", [0.0, 0.05, 0.9])
def test_closed_form(warmup_steps, initial):
    schedule = LinearWarmup(keras_decay(), warmup_steps, initial_learning_rate=initial)
    steps = np.arange(warmup_steps + 12)

    rates = [float(schedule(int(step))) for step in steps]

    line = initial + (0.5 - initial) * (steps + 1) / (warmup_steps + 1)
    expected = np.where(steps < warmup_steps, line, decay(np.maximum(steps - warmup_steps, 0)))
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_line_meets_the_schedule_at_its_step_0_and_no_step_is_wasted():
    schedule = LinearWarmup(0.5, 4)
    rates = np.array([float(schedule(step)) for step in range(6)])

    np.testing.assert_allclose(np.diff(rates), [0.1, 0.1, 0.1, 0.1, 0.0], atol=1e-7)
    np.testing.assert_allclose(rates[[0, 4]], [0.1, 0.5], rtol=1e-6)


def test_no_warmup_is_the_schedule_itself():
    schedule, plain = LinearWarmup(keras_decay(), 0, initial_learning_rate=0.3), keras_decay()
    for step in (0, 1, 5, 20):
        assert float(schedule(step)) == float(plain(step))


def test_two_warmups_in_a_row():
    inner = LinearWarmup(0.6, 1, initial_learning_rate=0.2)  # 0.4, 0.6, 0.6, ...
    schedule = LinearWarmup(inner, 3)
    rates = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.6, 0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1}, "`warmup_steps` must be an integer of at least 0"),
        ({"schedule": -1e-3}, "`schedule` must be a positive float"),
        ({"schedule": 0.0}, "`schedule` must be a positive float"),
        ({"schedule": float("nan")}, "`schedule` must be a positive float"),
        ({"schedule": float("inf")}, "`schedule` must be a positive float and finite"),
        ({"initial_learning_rate": -0.1}, "`initial_learning_rate` must be a non-negative float"),
        ({"initial_learning_rate": float("inf")}, "`initial_learning_rate` must be .* and finite"),
    ],
)
def test_values_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearWarmup(**{"schedule": 0.1, "warmup_steps": 10} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": 2.5}, "`warmup_steps` must be an integer"),
        ({"schedule": None}, "`schedule` must be a positive float or an instance"),
        ({"schedule": "cosine"}, "`schedule` must be a positive float or an instance"),
        ({"schedule": lambda step: 0.1}, "Put a function of the step into the `__call__`"),
        ({"schedule": keras.optimizers.schedules.CosineDecay}, r"Pass an instance, `CosineDecay\("),
        ({"initial_learning_rate": None}, "`initial_learning_rate` must be"),
    ],
)
def test_types_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        LinearWarmup(**{"schedule": 0.1, "warmup_steps": 10} | arguments)
