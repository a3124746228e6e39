"""Join against NumPy; Adjustable in compiled steps, under Keras' callbacks, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.schedules import Adjustable, Join, LinearWarmup


def falling(start=0.4, steps=4):
    """Start, then down by start/steps each step to 0."""
    return keras.optimizers.schedules.PolynomialDecay(start, steps, end_learning_rate=0.0)


# Join


def test_each_phase_starts_from_its_own_step_0():
    schedule = Join([falling(), 0.7, falling(0.8, 2)], boundaries=[3, 5])
    rates = [float(schedule(step)) for step in range(9)]
    expected = [0.4, 0.3, 0.2, 0.7, 0.7, 0.8, 0.4, 0.0, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-7)


def test_joins_nest():
    inner = Join([0.1, 0.2], [2])
    schedule = Join([0.5, inner], [1])
    rates = [float(schedule(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [0.5, 0.1, 0.1, 0.2, 0.2], rtol=1e-6)


def test_the_first_boundary_may_be_absent():
    assert float(Join([0.3], [])(7)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("schedules", "boundaries", "message"),
    [
        ([], [], "`schedules` must hold at least one"),
        ([0.1, 0.2], [], "one fewer than `schedules`.*2 schedules"),
        ([0.1, 0.2], [3, 5], "one fewer than `schedules`"),
        ([0.1, 0.2, 0.3], [5, 5], "strictly increasing"),
        ([0.1, 0.2, 0.3], [5, 3], "strictly increasing"),
        ([0.1, 0.2], [0], r"`boundaries\[0\]` must be a positive integer"),
        ([0.1, 0.2, 0.3], [2, -4], r"`boundaries\[1\]` must be a positive integer"),
        ([0.1, -0.2], [3], r"`schedules\[1\]` must be a non-negative float"),
        ([0.1, float("nan")], [3], r"`schedules\[1\]` must be a non-negative float"),
    ],
)
def test_join_refuses_values(schedules, boundaries, message):
    with pytest.raises(ValueError, match=message):
        Join(schedules, boundaries)


@pytest.mark.parametrize(
    ("schedules", "boundaries", "message"),
    [
        ([0.1, 0.2], [2.0], r"`boundaries\[0\]` must be a positive integer"),
        ([0.1, None], [2], r"`schedules\[1\]` must be a non-negative float or"),
        ([0.1, np.sin], [2], "Put a function of the step into"),
        (0.1, [], "`schedules` must be a list"),
        ([0.1, 0.2], 3, "`boundaries` must be a list"),
    ],
)
def test_join_refuses_types(schedules, boundaries, message):
    with pytest.raises(TypeError, match=message):
        Join(schedules, boundaries)


# Adjustable


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_the_factor_acts_in_a_compiled_step_without_a_retrace(jit_compile):
    schedule = Adjustable(falling())
    traces = []

    @tf.function(jit_compile=jit_compile)
    def rate(step):
        traces.append(step)
        return schedule(step)

    assert float(rate(tf.constant(1, tf.int64))) == pytest.approx(0.3)
    schedule.factor = 0.1
    assert float(rate(tf.constant(1, tf.int64))) == pytest.approx(0.03)
    schedule.set_rate(0.5, step=2)
    assert float(rate(tf.constant(2, tf.int64))) == pytest.approx(0.5)
    assert len(traces) == 1


def test_factor_reads_as_given_and_as_the_variable_holds_it():
    schedule = Adjustable(0.5, factor=0.1)
    assert schedule.factor == 0.1
    schedule.factor_variable.assign(0.25)  # as a checkpoint does
    assert schedule.factor == 0.25
    assert schedule.get_config() == {"schedule": 0.5, "factor": 0.25}
    assert schedule.factor_variable.dtype == "float32"
    assert not schedule.factor_variable.trainable


@pytest.mark.parametrize("rate", [0.2, np.float32(0.2), np.array(0.2), tf.constant(0.2)])
@pytest.mark.parametrize("step", [1, np.int64(1), tf.constant(1, tf.int64)])
def test_set_rate_takes_numbers_and_tensors(rate, step):
    schedule = Adjustable(falling(), factor=3.0)
    schedule.set_rate(rate, step)
    assert [float(schedule(s)) for s in range(4)] == pytest.approx([4 / 15, 0.2, 2 / 15, 1 / 15])


def test_a_schedule_at_0_can_have_no_other_rate():
    schedule = Adjustable(falling(), factor=0.5)
    with pytest.raises(ValueError, match=r"can't be 0.1 at step 4, where the schedule has 0"):
        schedule.set_rate(0.1, step=4)
    assert schedule.factor == 0.5
    schedule.set_rate(0.0, step=4)  # there already
    assert schedule.factor == 0.5
    schedule.set_rate(0.0, step=3)
    assert schedule.factor == 0.0
    schedule.set_rate(0.1, step=3)  # and back
    assert schedule.factor == pytest.approx(1.0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_adjustable_refuses_values(value):
    schedule = Adjustable(0.1)
    with pytest.raises(ValueError, match="`factor` must be a non-negative float"):
        Adjustable(0.1, factor=value)
    with pytest.raises(ValueError, match="`factor` must be a non-negative float"):
        schedule.factor = value
    with pytest.raises(ValueError, match="`rate` must be a non-negative float"):
        schedule.set_rate(value, 0)
    assert schedule.factor == float(schedule.factor_variable.numpy()) == 1.0


def test_adjustable_refuses_what_is_adjustable_or_no_schedule():
    with pytest.raises(ValueError, match="must not be adjustable already"):
        Adjustable(Adjustable(0.1))
    with pytest.raises(TypeError, match="Put a function of the step into"):
        Adjustable(lambda step: 0.1)
    with pytest.raises(TypeError, match="`factor` must be"):
        Adjustable(0.1, factor="half")


def test_an_adjustable_inside_another_schedule():
    phases = [Adjustable(0.5), Adjustable(0.25)]
    warmup = LinearWarmup(Join(phases, [2]), 1)
    phases[0].factor, phases[1].factor = 2.0, 4.0
    rates = [float(warmup(step)) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])


class SettableSGD(keras.optimizers.SGD):
    """What an optimizer has to do with an adjustable schedule, in three lines."""

    @property
    def learning_rate(self):
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, rate):
        self._learning_rate.set_rate(rate, self.iterations)


def small_fit(optimizer, callbacks=(), epochs=1, **kwargs):
    """Fit a line in four steps an epoch, from zero weights."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(32, 3)), generator.normal(size=(32, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer, "mse", **kwargs)
    history = model.fit(x, y, 8, epochs, callbacks=list(callbacks), shuffle=False, verbose=0)
    return model, history.history


def test_keras_itself_refuses_a_scheduled_rate():
    """The reason for `Adjustable`; where this fails, Keras has changed and it may go."""
    optimizer = keras.optimizers.SGD(falling())
    with pytest.raises(TypeError, match="learning rate"):
        optimizer.learning_rate = 0.1


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_reduce_on_plateau_cuts_the_scheduled_rate(jit_compile):
    schedule = Adjustable(falling(0.1, 100))
    # No improvement is ever large enough, so every epoch but the first is a plateau.
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    optimizer = SettableSGD(schedule)
    _, history = small_fit(optimizer, [plateau], epochs=3, jit_compile=jit_compile)

    assert schedule.factor == pytest.approx(0.25)
    # Logged before it is cut: steps 4, 8, 12 of the decay, with factors 1, 1, 1/2.
    assert history["learning_rate"] == pytest.approx([0.096, 0.092, 0.044], rel=1e-5)
    assert float(optimizer.learning_rate) == pytest.approx(0.25 * 0.088)


def test_learning_rate_scheduler_sets_the_rate_of_the_step():
    seen = []

    def halve(epoch, rate):
        seen.append(rate)
        return rate / 2

    schedule = Adjustable(LinearWarmup(falling(0.1, 100), 3))
    scheduler = keras.callbacks.LearningRateScheduler(halve)
    small_fit(SettableSGD(schedule), [scheduler], epochs=3)

    # Epochs begin at steps 0, 4 and 8: a quarter of the peak, then 1 and 5 steps of decay.
    assert seen == pytest.approx([0.025, 0.099 / 2, 0.095 / 4], rel=1e-5)
    assert schedule.factor == pytest.approx(1 / 8)


def test_the_factor_set_by_hand_acts_in_a_fit_with_a_plain_optimizer():
    schedule = Adjustable(0.1)
    stop = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(schedule, "factor", float(epoch == 0)),
    )
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(keep.model.get_weights()[0])
    )
    small_fit(keras.optimizers.SGD(schedule), [stop, keep], epochs=2)

    np.testing.assert_array_equal(weights[0], weights[1])  # factor 0 from the second epoch on
    assert np.any(weights[0] != 0.0)


def test_a_saved_model_keeps_the_factor(tmp_path):
    schedule = Adjustable(LinearWarmup(falling(0.1, 100), 2))
    model, _ = small_fit(keras.optimizers.Adam(schedule))
    schedule.factor = 0.3
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.3 * 0.098)
    # The loaded model has a factor of its own.
    schedule.factor = 1.0
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.3 * 0.098)
