"""What Keras, its callbacks and custom loops use of an optimizer."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, schedules, stabilize, transforms


def _model(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **arguments)
    return model


def test_variables_are_made_in_the_first_step_and_once():
    weights = checks.make_variables()
    optimizer = stabilize("adam", clip=1.0)
    assert not optimizer.built

    @tf.function
    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    step(*checks.make_gradients())
    assert optimizer.built
    assert optimizer.inner_optimizer.built
    before = [id(variable) for variable in optimizer.variables]
    # Ours: Keras' counter, one bound, three of telemetry. Adam's: iterations, rate, 2 per weight.
    assert len(before) == len(set(before)) == (1 + 1 + 3) + (2 + 2 * 3)
    optimizer.build(weights)
    optimizer.build(weights)
    step(*checks.make_gradients())
    assert [id(variable) for variable in optimizer.variables] == before
    assert int(optimizer.iterations) == 2


def test_apply_without_variables_needs_a_built_optimizer():
    optimizer = stabilize("sgd", clip=1.0, learning_rate=1.0)
    with pytest.raises(ValueError, match=r"needs a built optimizer. Call `optimizer.build"):
        optimizer.apply(checks.make_gradients())
    weights, expected = checks.make_variables(), checks.make_variables()
    optimizer.build(weights)
    optimizer.apply(checks.make_gradients())
    other = stabilize("sgd", clip=1.0, learning_rate=1.0)
    other.apply(checks.make_gradients(), expected)
    for got, value in zip(checks.values_of(weights), checks.values_of(expected), strict=True):
        np.testing.assert_array_equal(got, value)
    with pytest.raises(ValueError, match=r"one gradient per variable.*2 gradients for 3"):
        optimizer.apply(checks.make_gradients()[:2])
    optimizer.apply([])  # as in Keras: nothing to do
    assert int(optimizer.iterations) == 1


def test_apply_gradients_returns_the_iterations():
    weights = checks.make_variables()
    optimizer = stabilize("sgd")
    for count in (1, 2):
        done = optimizer.apply_gradients(zip(checks.make_gradients(), weights, strict=True))
        assert int(done) == int(optimizer.iterations) == count


def test_some_of_the_variables_in_any_order():
    weights, expected = checks.make_variables(), checks.make_variables()
    ours, plain = stabilize("adam", 1e9), keras.optimizers.Adam()
    gradients = checks.make_gradients()
    for optimizer, variables in ((ours, weights), (plain, expected)):
        optimizer.build(variables)
        optimizer.apply([gradients[2], gradients[0]], [variables[2], variables[0]])
        optimizer.apply([gradients[1]], [variables[1]])
    for got, value in zip(checks.values_of(weights), checks.values_of(expected), strict=True):
        np.testing.assert_array_equal(got, value)
    norms = list(ours.telemetry.peek().norms.values())
    np.testing.assert_allclose(norms, [0.0, np.linalg.norm(gradients[1]), 0.0], rtol=1e-6)


def test_none_gradients_are_passed_through_with_keras_warning():
    weights = checks.make_variables()
    optimizer = stabilize("sgd", clip=1.0, learning_rate=1.0)
    before = weights[1].numpy()
    first, _, last = checks.make_gradients()
    with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['kernel'\]"):
        optimizer.apply([first, None, last], weights)
    np.testing.assert_array_equal(weights[1].numpy(), before)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None] * 3, weights)


def test_frozen_layers():
    model = _model(stabilize("sgd", learning_rate=0.1))
    x, y = np.ones((4, 3)), np.ones((4, 1))
    model.fit(x, y, verbose=0)
    model.layers[0].trainable = False
    model.compile(model.optimizer, "mse")
    before = model.get_weights()
    model.fit(x, y, verbose=0)  # the optimizer knows four variables and gets two
    after = model.get_weights()
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[2], after[2])


@pytest.mark.parametrize("make", [keras.Variable, tf.Variable])
def test_unknown_variables_are_refused(make):
    """Bare TensorFlow variables were told apart by the `id` of a temporary object."""
    weights = [make(np.ones(2, "float32")), make(np.ones(1, "float32"))]
    optimizer = stabilize("sgd", clip=1.0, learning_rate=1.0)
    optimizer.apply([tf.ones(2), tf.ones(1)], weights)
    strangers = [make(np.ones(2, "float32")) for _ in range(20)]
    for stranger in strangers:
        with pytest.raises(ValueError, match=r"Unknown variable: .*built for 2 others"):
            optimizer.apply([tf.ones(2)], [stranger])
    assert int(optimizer.iterations) == 1
    assert len(optimizer.telemetry.peek().norms) == 2


def test_keras_variables_and_their_tensorflow_ones_are_the_same():
    weights = checks.make_variables()
    optimizer = stabilize("sgd", clip=1.0, learning_rate=1.0)
    optimizer.build(weights)
    before = weights[0].numpy()
    optimizer.apply([tf.ones((5, 2)) * 0.1], [weights[0].value])
    np.testing.assert_allclose(weights[0].numpy(), before - 0.1, rtol=1e-6)


def test_set_weights_puts_all_back():
    weights = checks.make_variables()
    optimizer = stabilize(keras.optimizers.Adam(0.1), clip=0.5)
    optimizer.apply(checks.make_gradients(), weights)
    kept = checks.values_of(optimizer.variables)
    before = checks.contents(optimizer.variables)
    optimizer.transforms[1].max_norm = 2.0
    optimizer.learning_rate = 0.7
    optimizer.apply(checks.make_gradients(2), weights)
    optimizer.set_weights(kept)
    assert not checks.differences(before, checks.contents(optimizer.variables))
    assert optimizer.transforms[1].max_norm == 0.5
    assert len(optimizer.telemetry.peek().steps) == 1


def test_config_round_trip():
    inner = keras.optimizers.Adam(0.1, weight_decay=0.01, clipnorm=0.3)
    optimizer = stabilize(inner, clip=np.inf, max_consecutive=7)
    config = optimizer.get_config()
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, optimizers.StabilizedOptimizer)
    assert again.get_config() == config == optimizer.get_config()
    assert repr(again) == repr(optimizer)
    assert again.taken_over == {"clipnorm": 0.3}
    first = optimizers.StabilizedOptimizer.from_config(config)
    assert repr(optimizers.StabilizedOptimizer.from_config(config)) == repr(first)  # config kept


def test_repr_lists_the_chain_in_the_order_in_which_it_runs():
    chain = [transforms.LimitUpdateRatio(0.1), transforms.ClipByNorm(1.0)]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(0.1), chain)
    assert repr(optimizer) == (
        "<StabilizedOptimizer: ClipByNorm(max_norm=1.0) -> SGD -> "
        "LimitUpdateRatio(max_ratio=0.1, epsilon=0.001)>"
    )


def test_the_learning_rate_is_the_inner_one():
    optimizer = stabilize(keras.optimizers.Adam(0.25))
    assert float(optimizer.learning_rate) == 0.25
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == float(optimizer.learning_rate) == 0.5
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer.learning_rate = schedule
    assert np.isclose(float(optimizer.learning_rate), 0.1)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_changed_rate_acts_in_the_compiled_step(mode):
    weight = keras.Variable(np.zeros(1))
    optimizer = stabilize("sgd", clip=1.0, learning_rate=1.0)
    step, traces = checks.stepper(optimizer, [weight], mode)
    step(tf.ones(1))
    first = len(traces)
    optimizer.learning_rate = 0.25
    step(tf.ones(1))
    assert float(weight.numpy()[0]) == -1.25
    assert mode == "eager" or len(traces) == first


def test_a_schedule_counts_applied_steps_and_is_not_settable():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.5])
    optimizer = stabilize(keras.optimizers.SGD(schedule), clip=None)
    weight = keras.Variable(np.zeros(1))
    for gradient in (1.0, np.nan, np.nan, 1.0, 1.0):
        optimizer.apply([tf.constant([gradient])], [weight])
    assert float(weight.numpy()[0]) == -2.5
    with pytest.raises(TypeError, match=r"comes from a schedule.*PiecewiseConstantDecay.*Adjustab"):
        optimizer.learning_rate = 0.1


def test_an_adjustable_schedule_is_cut_in_the_compiled_step_and_saved(tmp_path):
    schedule = schedules.Adjustable(keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5))
    model = _model(stabilize(keras.optimizers.SGD(schedule)))
    x, y = np.ones((4, 3)), np.ones((4, 1))
    model.fit(x, y, verbose=0)
    assert np.isclose(float(model.optimizer.learning_rate), 0.2)
    model.optimizer.learning_rate = 0.02
    assert np.isclose(float(model.optimizer.learning_rate), 0.02)
    model.fit(x, y, verbose=0)
    assert np.isclose(float(model.optimizer.learning_rate), 0.01)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.isclose(float(loaded.optimizer.learning_rate), 0.01)
    fresh = schedules.Adjustable(keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5))
    other = _model(stabilize(keras.optimizers.SGD(fresh)))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.isclose(float(other.optimizer.learning_rate), 0.01)
    assert np.isclose(fresh.factor, 0.1)


def test_a_loss_scale_factor_gives_the_right_update_and_telemetry():
    def run(**arguments):
        model = _model(stabilize(keras.optimizers.SGD(0.1, **arguments), clip=0.5))
        model.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=2, verbose=0)
        return model.get_weights(), model.optimizer.telemetry.peek()

    weights, reading = run(loss_scale_factor=1024.0)
    expected, plain = run()
    for got, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(reading.grad_norm, plain.grad_norm, rtol=1e-6)
    np.testing.assert_allclose(reading.loss, plain.loss, rtol=1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("update_stage", [False, True])
def test_averages_are_the_inner_ones_and_end_in_the_weights(update_stage):
    def trained(wrap):
        inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        model = _model(wrap(inner))
        model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=2, verbose=0)
        return model

    chain = [transforms.LimitUpdateRatio(np.inf)] if update_stage else []
    ours = trained(lambda inner: optimizers.StabilizedOptimizer(inner, chain))
    theirs = trained(lambda inner: inner)
    assert ours.optimizer.use_ema
    assert ours.optimizer.ema_momentum == 0.5
    for got, value in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)
    averages = ours.optimizer._model_variables_moving_average
    for got, value in zip(ours.get_weights(), averages, strict=True):
        np.testing.assert_array_equal(got, value.numpy())


def test_attributes_that_are_the_inner_ones():
    optimizer = stabilize(keras.optimizers.AdamW(weight_decay=0.02))
    assert optimizer.weight_decay == 0.02
    optimizer.weight_decay = 0.5
    assert optimizer.inner_optimizer.weight_decay == 0.5
    assert optimizer.ema_overwrite_frequency is None
    assert optimizer.gradient_accumulation_steps is None


def test_exclude_from_weight_decay():
    optimizer = stabilize(keras.optimizers.AdamW(0.1, weight_decay=0.5), clip=None)
    weights = checks.make_variables()
    optimizer.exclude_from_weight_decay(var_list=[weights[0]], var_names=["bias"])
    before = checks.values_of(weights)
    optimizer.apply([tf.zeros(w.shape) for w in weights], weights)
    np.testing.assert_array_equal(weights[0].numpy(), before[0])
    np.testing.assert_allclose(weights[1].numpy(), before[1] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(weights[2].numpy(), before[2])


def test_a_loss_that_is_no_scalar_is_not_recorded():
    optimizer = stabilize("sgd")
    optimizer.scale_loss(tf.ones(3))
    optimizer.apply([tf.ones(1)], [keras.Variable([1.0])])
    assert np.isnan(optimizer.telemetry.peek().loss).tolist() == [True]


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("clipnorm", "ClipByNorm"),
        ("clipvalue", "ClipByValue"),
        ("global_clipnorm", "ClipByGlobalNorm"),
    ],
)
def test_a_clip_attribute_is_refused_and_not_ignored(name, transform):
    optimizer = stabilize("sgd", clip=None)
    assert getattr(optimizer, name) is None
    setattr(optimizer, name, None)
    with pytest.raises(ValueError, match=rf"`{name}` can't be set.*{name}=0.1.*{transform}\(0.1\)"):
        setattr(optimizer, name, 0.1)
