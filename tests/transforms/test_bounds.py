"""Bounds that change during a run act in the compiled step, and are saved as they were given."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, transforms


def _optimizer(max_norm=0.1):
    chain = [transforms.ClipByGlobalNorm(max_norm), transforms.LimitUpdateRatio(np.inf)]
    return optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)


@pytest.mark.parametrize("mode", checks.MODES)
def test_a_change_acts_in_the_compiled_step_without_a_retrace(mode):
    optimizer = _optimizer()
    clip, limit = optimizer.transforms
    weight = keras.Variable(np.zeros(2))
    step, traces = checks.stepper(optimizer, [weight], mode)

    def move():
        before = weight.numpy()
        step(tf.constant([3.0, 4.0]))
        return float(np.linalg.norm(weight.numpy() - before))

    assert np.isclose(move(), 0.1, rtol=1e-5)
    first = len(traces)
    clip.max_norm = 2.0
    assert np.isclose(move(), 2.0, rtol=1e-5)
    clip.max_norm = np.inf
    assert np.isclose(move(), 5.0, rtol=1e-5)
    limit.max_ratio = 0.5
    limit.epsilon = 4.0  # below the norm of the weight, 7.1
    assert np.isclose(move(), 0.5 * 7.1, rtol=1e-4)
    limit.epsilon = 100.0
    limit.max_ratio = 0.01
    assert np.isclose(move(), 1.0, rtol=1e-4)
    assert mode == "eager" or len(traces) == first


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-7, 3e38, np.inf, 1])
def test_a_number_comes_back_as_it_was_given(value):
    optimizer = _optimizer(value)
    optimizer.build(checks.make_variables())
    clip = optimizer.transforms[0]
    assert clip.max_norm == value
    clip.max_norm = 2.5
    clip.max_norm = value
    assert clip.max_norm == value
    assert repr(clip) == f"ClipByGlobalNorm(max_norm={float(value)})"
    again = optimizers.StabilizedOptimizer.from_config(optimizer.get_config())
    assert again.transforms[0].max_norm == value


def test_a_refused_change_changes_nothing():
    optimizer = _optimizer()
    optimizer.build(checks.make_variables())
    clip = optimizer.transforms[0]
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`max_norm` must be a positive float"):
            clip.max_norm = bad
    assert clip.max_norm == 0.1
    assert float(clip.bound("max_norm")) == np.float32(0.1)


def test_a_changed_bound_survives_every_way_of_saving(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(_optimizer(), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    saved = model()
    saved.optimizer.transforms[0].max_norm = 0.3
    saved.save(tmp_path / "model.keras")
    saved.save_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=saved).write(str(tmp_path / "checkpoint"))

    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.transforms[0].max_norm == 0.3
    assert loaded.optimizer.transforms[1].max_ratio == np.inf
    for way in ("weights", "checkpoint"):
        other = model()
        if way == "weights":
            other.load_weights(tmp_path / "model.weights.h5")
        else:
            reader = tf.train.Checkpoint(model=other)
            reader.read(str(tmp_path / "checkpoint")).assert_existing_objects_matched()
        # A variable holds float32: this is what a number set elsewhere comes back as.
        assert other.optimizer.transforms[0].max_norm == float(np.float32(0.3))
        assert other.optimizer.transforms[1].max_ratio == np.inf


def test_a_transform_belongs_to_one_optimizer():
    clip = transforms.ClipByNorm(1.0)
    first, second = (
        optimizers.StabilizedOptimizer(keras.optimizers.SGD(0.1), [clip]) for _ in range(2)
    )
    first.build(checks.make_variables())
    with pytest.raises(ValueError, match=r"belongs to another optimizer already.*from_config"):
        second.build(checks.make_variables())


def test_a_transform_of_another_optimizer_is_refused_while_a_step_is_traced():
    """TensorFlow's NotImplementedError came through: no variable can be read there."""
    clip = transforms.ClipByNorm(1.0)
    x = np.ones((4, 2), "float32")

    def fit():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizers.StabilizedOptimizer(keras.optimizers.SGD(0.1), [clip]), "mse")
        model.fit(x, x[:, :1], verbose=0)

    fit()
    with pytest.raises(ValueError, match=r"belongs to another optimizer already.*from_config"):
        fit()
