"""State survives every way of saving, is stored once, and the run goes on as if not interrupted."""

import io
import warnings
import zipfile

import common_checks as checks
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import stabilize, transforms
from gradstab.optimizers import StabilizedOptimizer

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(24, 3)).astype("float32"), DRAW.normal(size=(24, 1)).astype("float32")
X[9] = np.nan  # the second of three batches is skipped


def _optimizer():
    chain = [
        transforms.SkipNonFinite(5),
        transforms.ClipByGlobalNorm(0.1),
        transforms.LimitUpdateRatio(0.05),
    ]
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    return StabilizedOptimizer(keras.optimizers.Adam(rate, use_ema=True), chain)


def _model(optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer or _optimizer(), "mse")
    return model


def _fit(model, epochs=2):
    # Without `fit`'s last act, which overwrites the weights with their averages.
    for _ in range(epochs):
        for start in range(0, 24, 8):
            model.train_on_batch(X[start : start + 8], Y[start : start + 8])
    return model


def _state(model):
    return [value.tobytes() for value in checks.values_of(model.variables)] + [
        value.tobytes() for value in checks.values_of(model.optimizer.variables)
    ]


@pytest.fixture(scope="module")
def uninterrupted():
    return _state(_fit(_model(), 4))


def _through_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def _through_weights_file(model, folder):
    model.save_weights(folder / "model.weights.h5")
    other = _model()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(folder / "model.weights.h5")
    return other


def _through_checkpoint(model, folder):
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(folder / "c"))
    other = _model()
    reader = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
    status = reader.read(path)
    other.optimizer.build(other.trainable_variables)
    status.assert_existing_objects_matched()
    return other


@pytest.mark.slow
@pytest.mark.parametrize("way", [_through_keras_file, _through_weights_file, _through_checkpoint])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(way, tmp_path, uninterrupted):
    model = _fit(_model(), 2)
    other = way(model, tmp_path)
    assert _state(other) == _state(model)
    assert other.optimizer.telemetry.peek().total_skipped == 2
    assert _state(_fit(other, 2)) == uninterrupted
    assert other.optimizer.telemetry.peek().total_skipped == 4


def test_fit_resumed_from_a_file_ends_where_the_uninterrupted_one_does(tmp_path):
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}

    def optimizer():
        return stabilize("adam", 0.1, learning_rate=0.05)

    whole, first = _model(optimizer()), _model(optimizer())
    whole.fit(X, Y, epochs=4, **fit)
    first.fit(X, Y, epochs=2, **fit)
    second = _through_keras_file(first, tmp_path)
    second.fit(X, Y, initial_epoch=2, epochs=4, **fit)
    assert _state(second) == _state(whole)


def test_each_variable_is_stored_once(tmp_path):
    model = _fit(_model(), 1)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    stored = {}
    with h5py.File(content) as file:
        file.visititems(
            lambda name, item: stored.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    optimizer = model.optimizer
    ours = {name: v for name, v in stored.items() if name.startswith("optimizer/vars/")}
    inner = {
        name: v for name, v in stored.items() if name.startswith("optimizer/inner_optimizer/vars/")
    }
    everything = [name for name in stored if name.startswith("optimizer/")]
    assert len(inner) == len(optimizer.inner_optimizer.variables) == 1 + 3 * 4
    assert len(ours) == len(optimizer.variables) - len(inner)
    assert len(everything) == len(ours) + len(inner)
    moment = optimizer.inner_optimizer.variables[1].numpy()
    assert sum(np.array_equal(moment, value) for value in stored.values()) == 1


def test_weights_load_where_the_saved_optimizer_does_not_fit(tmp_path):
    """Keras warns there; raising kept people from loading weights for inference."""
    plain = _model(keras.optimizers.SGD(0.1))
    plain.optimizer.build(plain.trainable_variables)
    plain.save_weights(tmp_path / "plain.weights.h5")
    ours = _model()
    ours.optimizer.build(ours.trainable_variables)
    ours.save_weights(tmp_path / "ours.weights.h5")
    for name, source in (("plain", plain), ("ours", ours)):
        model = _model()  # its optimizer is not built
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.load_weights(tmp_path / f"{name}.weights.h5")
        assert any(
            "The saved state of optimizer" in str(w.message)
            and "call `optimizer.build(model.trainable_variables)` first" in str(w.message)
            for w in caught
        )
        for got, value in zip(model.get_weights(), source.get_weights(), strict=True):
            np.testing.assert_array_equal(got, value)


@pytest.mark.slow
def test_a_model_loads_with_nothing_but_import_gradstab(tmp_path, run_python):
    _fit(_model(), 1).save(tmp_path / "model.keras")
    code = """
import gradstab, keras, sys
model = keras.models.load_model(sys.argv[1])
print(type(model.optimizer).__name__, int(model.optimizer.iterations))
"""
    assert run_python(code, tmp_path / "model.keras") == "StabilizedOptimizer 2"
