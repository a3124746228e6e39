"""`Preflight`: a diagnosis on the first batches of `fit`, which goes on as it would have gone."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.diagnosis import DiagnosisError

X = np.random.default_rng(0).normal(size=(128, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("float32")


def net(activation):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, activation)]
    )
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    return model


def test_training_goes_on_as_it_would_have_gone(capsys):
    plain = net("sigmoid").fit(X, Y, batch_size=16, epochs=2, verbose=0).history["loss"]
    preflight = gradstab.callbacks.Preflight()
    ours = net("sigmoid").fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[preflight])
    assert ours.history["loss"] == plain
    assert preflight.diagnosis.looks.data.batch_size == 16
    assert preflight.diagnosis.looks.data.epochs == 2
    assert capsys.readouterr().out == ""


def test_it_prints_what_is_wrong_and_goes_on(capsys):
    preflight = gradstab.callbacks.Preflight()
    model = net(None)
    model.fit(X, Y, verbose=0, callbacks=[preflight])
    assert "logits-without-from-logits" in capsys.readouterr().out
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("given", [(), (X, Y)], ids=["first batches", "given data"])
def test_it_stops_before_the_first_step(given):
    model = net(None)
    before = [each.numpy() for each in model.variables]
    preflight = gradstab.callbacks.Preflight(*given, on_error="stop")
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[preflight])
    assert int(model.optimizer.iterations) == 0
    for ours, theirs in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_raises():
    with pytest.raises(DiagnosisError, match="logits-without-from-logits"):
        net(None).fit(X, Y, verbose=0, callbacks=[gradstab.callbacks.Preflight(on_error="raise")])


def test_an_action_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="`on_error` must be one of"):
        gradstab.callbacks.Preflight(on_error="ignore")
