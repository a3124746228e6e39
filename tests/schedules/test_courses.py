"""Every schedule over its whole range against NumPy: its joints, its end, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from common_checks import mirrored

from gradstab import stabilize
from gradstab.schedules import (
    Adjustable,
    ExponentialWarmup,
    InverseSquareRoot,
    Join,
    LinearDecay,
    LinearWarmup,
    Noam,
    OneCycle,
    Scale,
    UntunedWarmup,
    WarmupStableDecay,
)


def ends(start, end, done, shape):
    weight = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
        "1-sqrt": lambda x: 1 - np.sqrt(x),
    }[shape](np.clip(done, 0, 1))
    return end + (start - end) * weight


def stable(s, peak, warmup, level, decay, first, last, shape):
    rising = first + (peak - first) * (s + 1) / (warmup + 1)
    return np.where(s < warmup, rising, ends(peak, last, (s - warmup - level) / decay, shape))


def cycle(s, peak, total, up, first, last, shape, three):
    rising = ends(first, peak, s / up, shape)
    if not three:
        return np.where(s < up, rising, ends(peak, last, (s - up) / (total - up), shape))
    out = ends(first, last, (s - 2 * up) / (total - 2 * up), shape)
    return np.where(
        s < up, rising, np.where(s < 2 * up, ends(peak, first, (s - up) / up, shape), out)
    )


def untuned(s, beta_2):
    return np.minimum(1, (s + 1) * (1 - beta_2) / 2)


# Schedule, closed form over an array of steps, steps to look at.
COURSES = {
    "line": (LinearDecay(0.3, 900), lambda s: 0.3 * np.maximum(0, 1 - s / 900), 1000),
    "line to an end": (
        LinearDecay(0.3, 900, 0.01),
        lambda s: ends(0.3, 0.01, s / 900, "linear"),
        1000,
    ),
    "root": (
        InverseSquareRoot(0.3, 100),
        lambda s: 0.3 * np.minimum((s + 1) / 100, np.sqrt(100 / (s + 1))),
        3000,
    ),
    "noam": (
        Noam(512, 4000),
        lambda s: 512**-0.5 * np.minimum((s + 1) ** -0.5, (s + 1) * 4000**-1.5),
        20_000,
    ),
    "exponential": (ExponentialWarmup(0.3, 50), lambda s: 0.3 * (1 - np.exp(-(s + 1) / 50)), 500),
    "untuned": (UntunedWarmup(0.3, 0.999), lambda s: 0.3 * untuned(s, 0.999), 2500),
    "untuned 0.95": (UntunedWarmup(0.3, 0.95), lambda s: 0.3 * untuned(s, 0.95), 100),
    "untuned, not whole": (UntunedWarmup(0.3, 0.985), lambda s: 0.3 * untuned(s, 0.985), 300),
    "untuned exponential": (
        UntunedWarmup(0.3, 0.999, "exponential"),
        lambda s: 0.3 * -np.expm1(-0.001 * (s + 1)),
        5000,
    ),
    **{
        f"stable {shape}": (
            WarmupStableDecay(0.3, 100, 200, 300, 0.05, 0.01, shape),
            lambda s, shape=shape: stable(s, 0.3, 100, 200, 300, 0.05, 0.01, shape),
            700,
        )
        for shape in ("linear", "cosine", "1-sqrt")
    },
    **{
        f"stable to zero {shape}": (
            WarmupStableDecay(0.3, 0, 0, 300, decay_shape=shape),
            lambda s, shape=shape: stable(s, 0.3, 0, 0, 300, 0.0, 0.0, shape),
            400,
        )
        for shape in ("linear", "cosine", "1-sqrt")
    },
    **{
        f"cycle {shape} {three}": (
            OneCycle(0.3, 1000, shape=shape, three_phase=three),
            lambda s, shape=shape, three=three: cycle(
                s, 0.3, 1000, 300, 0.3 / 25, 0.3 / 25 / 1e4, shape, three
            ),
            1100,
        )
        for shape in ("cosine", "linear")
        for three in (False, True)
    },
    "scale": (
        Scale(LinearDecay(0.3, 100), 0.5, gradient_accumulation_steps=4),
        lambda s: 0.15 * np.maximum(0, 1 - s // 4 / 100),
        500,
    ),
}


@pytest.mark.parametrize("name", COURSES)
def test_whole_range(name):
    schedule, closed_form, num_steps = COURSES[name]
    steps = np.arange(num_steps)
    rates = np.asarray(schedule(steps), "float64")
    expected = closed_form(steps)
    # Half a cosine by its definition cancels near zero in float64: 1e-17 of the peak.
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-16)
    assert np.all(rates >= 0)


@pytest.mark.parametrize("name", COURSES)
def test_no_jump_and_the_last_rate_stays(name):
    schedule, _, num_steps = COURSES[name]
    steps = np.arange(num_steps)
    rates = np.asarray(schedule(steps), "float64")
    # No change from step to step is much above those beside it.
    change = np.abs(np.diff(rates))
    if name not in ("scale",) and "1-sqrt" not in name:
        around = np.maximum(np.r_[change[1:], 0], np.r_[0, change[:-1]])
        assert np.all(change <= 2.5 * around + 1e-6 * rates.max())
    if "root" not in name and name not in ("noam", "exponential", "untuned exponential"):
        last = float(schedule(num_steps - 1))
        assert float(schedule(10 * num_steps)) == float(schedule(10**12)) == last


def test_the_peak_of_noam():
    rates = np.asarray(Noam(512, 4000)(np.arange(10_000)), "float64")
    assert rates.argmax() == 3999
    assert rates.max() == pytest.approx(6.987712e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (LinearDecay(0.3, 10, 0.1), 0.1),
        (LinearDecay(0.3, 10), 0.0),
        (WarmupStableDecay(0.3, 2, 3, 5, end_learning_rate=0.1), 0.1),
        (OneCycle(0.3, 10), 0.3 / 25 / 1e4),
        (OneCycle(0.3, 10, three_phase=True), 0.3 / 25 / 1e4),
    ],
)
def test_the_documented_rate_beyond_the_end(schedule, last):
    rates = [float(schedule(step)) for step in (10, 11, 1000, 2**40)]
    assert rates == pytest.approx([last] * 4, rel=1e-6)
    assert float(schedule(9)) > last


def cosine():
    return keras.optimizers.schedules.CosineDecay(0.4, 40, alpha=0.1)


def cosine_form(s):
    return 0.4 * (0.9 * (1 + np.cos(np.pi * np.minimum(s, 40) / 40)) / 2 + 0.1)


@pytest.mark.parametrize(
    ("wrap", "closed_form"),
    [
        (
            lambda rate: LinearWarmup(rate, 10),
            lambda s: np.where(s < 10, 0.4 * (s + 1) / 11, cosine_form(np.maximum(s - 10, 0))),
        ),
        (
            lambda rate: ExponentialWarmup(rate, 10),
            lambda s: cosine_form(s) * -np.expm1(-(s + 1) / 10),
        ),
        (
            lambda rate: UntunedWarmup(rate, 0.9),
            lambda s: np.where(s < 19, 0.4 * (s + 1) / 20, cosine_form(np.maximum(s - 19, 0))),
        ),
        (
            lambda rate: UntunedWarmup(rate, 0.9, form="exponential"),
            lambda s: cosine_form(s) * -np.expm1(-(s + 1) / 10),
        ),
    ],
    ids=["linear", "exponential", "untuned", "untuned exponential"],
)
def test_every_warmup_goes_round_any_schedule_of_keras(wrap, closed_form):
    steps = np.arange(80)
    rates = [float(wrap(cosine())(int(step))) for step in steps]
    np.testing.assert_allclose(rates, closed_form(steps), rtol=1e-6)


# Micro-batches and replicas ---------------------------------------------------------------------


def weight_changes(schedule, window, optimizer=keras.optimizers.SGD, wrap=lambda inner: inner):
    """Return what each micro-batch of constant gradient 1 takes from a weight."""
    variable = keras.Variable([0.0], name="weight")
    optimizer = wrap(optimizer(schedule, gradient_accumulation_steps=window))
    optimizer.build([variable])
    step = tf.function(lambda: optimizer.apply([tf.ones(1)], [variable]))
    weights = [0.0]
    for _ in range(4 * window):
        step()
        weights.append(variable.numpy().item())
    return -np.diff(weights)


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, lambda inner: stabilize(inner, clip=None)], ids=["Keras", "ours"]
)
def test_scale_counts_updates_where_keras_counts_micro_batches(wrap):
    updates = LinearDecay(0.4, 4)
    plain = weight_changes(LinearDecay(0.4, 4), 3, wrap=wrap)
    scaled = weight_changes(Scale(updates, gradient_accumulation_steps=3), 3, wrap=wrap)
    # The third micro-batch ends the window and updates: for Keras alone it is step 2 of the decay.
    np.testing.assert_allclose(plain[2::3], [0.2, 0, 0, 0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scaled[2::3], [0.4, 0.3, 0.2, 0.1], rtol=1e-5)
    np.testing.assert_array_equal(np.delete(scaled, np.s_[2::3]), 0)


def test_the_rate_that_is_set_under_accumulation_is_that_of_this_micro_batch():
    """`iterations` counts windows there, and the schedule is asked with micro-batches."""
    variable = keras.Variable([0.0], name="weight")
    inner = keras.optimizers.SGD(Adjustable(LinearDecay(0.8, 8)), gradient_accumulation_steps=2)
    optimizer = stabilize(inner, clip=None)
    for _ in range(4):
        optimizer.apply([tf.ones(1)], [variable])
    optimizer.learning_rate = 0.1
    assert float(optimizer.learning_rate) == pytest.approx(0.1, rel=1e-6)


def test_replicas_step_at_the_same_rate_as_one():
    strategy = mirrored(2)
    schedule = Adjustable(Scale(LinearWarmup(OneCycle(0.4, 8), 3), 0.5))
    with strategy.scope():
        variable = keras.Variable([0.0], name="weight")
        optimizer = stabilize(keras.optimizers.SGD(schedule), clip=None)
        optimizer.build([variable])

    @tf.function
    def step():
        strategy.run(lambda: optimizer.apply([tf.fill([1], 0.5)], [variable]))

    weights = [0.0]
    for _ in range(10):
        step()
        weights.append(float(variable.value.values[1].numpy().item()))
    schedule_alone = LinearWarmup(OneCycle(0.4, 8), 3)
    expected = [0.5 * float(schedule_alone(step)) for step in range(10)]
    np.testing.assert_allclose(-np.diff(weights), expected, rtol=1e-4, atol=1e-6)


# Saving -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_goes_on_at_the_rate_where_it_was(tmp_path, run_python):
    parts = [
        LinearWarmup(InverseSquareRoot(0.3, 3), 2),
        ExponentialWarmup(Noam(4, 3), 5),
        UntunedWarmup(OneCycle(0.3, 20, three_phase=True), 0.5, form="exponential"),
        Scale(WarmupStableDecay(0.3, 2, 3, 5, decay_shape="1-sqrt"), 0.5, 2),
        LinearDecay(0.3, 10, 0.1),
    ]
    schedule = Adjustable(Join(parts, [2, 3, 4, 5]), factor=0.5)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedule), "mse")
    model.fit(np.ones((12, 2)), np.ones((12, 1)), batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    code = """
import sys, keras, gradstab
model = keras.models.load_model(sys.argv[1], safe_mode=True)
print(repr(model.optimizer._learning_rate))
print(float(model.optimizer.learning_rate))
"""
    described, rate = run_python(code, str(tmp_path / "model.keras")).splitlines()
    assert described == repr(schedule)
    assert float(rate) == float(model.optimizer.learning_rate) == pytest.approx(0.5 * 0.28)


# Bad input --------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
PLAIN = {
    LinearDecay: {"initial_learning_rate": 0.1, "decay_steps": 10},
    InverseSquareRoot: {"peak_learning_rate": 0.1, "warmup_steps": 10},
    Noam: {"d_model": 512},
    WarmupStableDecay: {
        "peak_learning_rate": 0.1,
        "warmup_steps": 1,
        "stable_steps": 2,
        "decay_steps": 3,
    },
    OneCycle: {"peak_learning_rate": 0.1, "total_steps": 10},
    ExponentialWarmup: {"schedule": 0.1},
    UntunedWarmup: {"schedule": 0.1},
    Scale: {"schedule": 0.1},
}


@pytest.mark.parametrize("value", [-0.1, 0.0, NAN, INF])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LinearDecay, "initial_learning_rate"),
        (InverseSquareRoot, "peak_learning_rate"),
        (WarmupStableDecay, "peak_learning_rate"),
        (OneCycle, "peak_learning_rate"),
        (ExponentialWarmup, "schedule"),
        (ExponentialWarmup, "warmup_steps"),
        (UntunedWarmup, "schedule"),
        (Scale, "schedule"),
        (Scale, "factor"),
    ],
)
def test_rates_that_are_not_positive_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be a positive float.*{name}={value}"):
        kind(**PLAIN[kind] | {name: value})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LinearDecay, {"decay_steps": 0}, "`decay_steps` must be a positive integer"),
        (LinearDecay, {"end_learning_rate": 0.2}, "must be at most `initial_learning_rate`"),
        (LinearDecay, {"end_learning_rate": -0.2}, "`end_learning_rate` must be a non-negative"),
        (LinearDecay, {"end_learning_rate": NAN}, "`end_learning_rate` must be a non-negative"),
        (InverseSquareRoot, {"warmup_steps": 0}, "`warmup_steps` must be a positive integer"),
        (Noam, {"d_model": 0}, "`d_model` must be a positive integer"),
        (Noam, {"warmup_steps": -1}, "`warmup_steps` must be a positive integer"),
        (
            WarmupStableDecay,
            {"warmup_steps": -1},
            "`warmup_steps` must be an integer of at least 0",
        ),
        (WarmupStableDecay, {"stable_steps": -1}, "`stable_steps` must be an integer of at least"),
        (WarmupStableDecay, {"decay_steps": 0}, "`decay_steps` must be a positive integer"),
        (WarmupStableDecay, {"initial_learning_rate": 0.2}, "at most `peak_learning_rate`"),
        (WarmupStableDecay, {"end_learning_rate": 0.2}, "at most `peak_learning_rate`"),
        (WarmupStableDecay, {"decay_shape": "steps"}, "`decay_shape` must be one of 'linear', 'c"),
        (OneCycle, {"total_steps": 1}, "`total_steps` must be an integer of at least 2"),
        (OneCycle, {"warmup_fraction": 0.0}, "`warmup_fraction` must be a float above 0"),
        (OneCycle, {"warmup_fraction": 1.0}, "`warmup_fraction` must leave a step for each of two"),
        (OneCycle, {"warmup_fraction": 0.01}, "makes 0 steps up"),
        (OneCycle, {"warmup_fraction": 0.5, "three_phase": True}, "for each of three phases"),
        (OneCycle, {"initial_divisor": 0.5}, "`initial_divisor` must be a float at least 1"),
        (OneCycle, {"final_divisor": NAN}, "`final_divisor` must be a float at least 1"),
        (OneCycle, {"shape": "1-sqrt"}, "`shape` must be one of 'cosine', 'linear'"),
        (UntunedWarmup, {"beta_2": 1.0}, "`beta_2` must be a float above 0 and below 1"),
        (UntunedWarmup, {"beta_2": 0.0}, "`beta_2` must be a float above 0"),
        (UntunedWarmup, {"beta_2": NAN}, "`beta_2` must be a float above 0"),
        (UntunedWarmup, {"form": "cosine"}, "`form` must be one of 'linear', 'exponential'"),
        (Scale, {"gradient_accumulation_steps": 0}, "must be a positive integer"),
    ],
)
def test_values_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**PLAIN[kind] | arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LinearDecay, {"decay_steps": 2.5}, "`decay_steps` must be a positive integer"),
        (LinearDecay, {"initial_learning_rate": "0.1"}, "must be a positive float"),
        (InverseSquareRoot, {"peak_learning_rate": LinearDecay(0.1, 3)}, "must be a positive fl"),
        (Noam, {"d_model": 512.0}, "`d_model` must be a positive integer"),
        (OneCycle, {"three_phase": 1}, "`three_phase` must be True or False"),
        (ExponentialWarmup, {"schedule": None}, "`schedule` must be a positive float or an inst"),
        (UntunedWarmup, {"schedule": np.sin}, "Put a function of the step into"),
        (Scale, {"schedule": LinearDecay}, r"Pass an instance, `LinearDecay\("),
        (Scale, {"gradient_accumulation_steps": None}, "must be a positive integer"),
    ],
)
def test_types_refused(kind, arguments, message):
    with pytest.raises(TypeError, match=message):
        kind(**PLAIN[kind] | arguments)
