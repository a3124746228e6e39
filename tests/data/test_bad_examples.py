"""Bad examples are left out of the loss, named and counted; the others count as if alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.data import BadExample, BadExamples

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(12, 3)).astype("float32")
Y = DRAW.normal(size=(12, 1)).astype("float32")


def batches(*arrays, size=4):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def spoiled():
    x, y = X.copy(), Y.copy()
    x[1, 2], y[6] = np.nan, -np.inf
    return x, y


def make_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("how", ["fit", "train"])
def test_the_others_are_trained_on_as_if_they_were_alone(how):
    bad, model, alone = BadExamples(), make_model(), make_model()
    dataset = bad.masked(batches(*spoiled()))
    if how == "fit":
        model.fit(dataset, epochs=2, verbose=0, shuffle=False)
    else:
        gradstab.training.train(model, dataset, epochs=2, verbose=0, jit_compile=False)
    for _ in range(2):
        for first in (0, 4, 8):
            rows = [row for row in range(first, first + 4) if row not in (1, 6)]
            alone.train_on_batch(X[rows], Y[rows])
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert bad.examples == [BadExample(0, 1, "inputs"), BadExample(1, 2, "targets")]
    assert bad.count >= 4
    assert "batch 0, row 1 (inputs); batch 1, row 2 (targets)" in str(bad)


def test_good_batches_stay_as_they_are():
    bad = BadExamples()
    weights = np.linspace(0.5, 2.0, 12).astype("float32")
    found = list(bad.masked(batches(X, Y, weights)))
    for (x, y, weight), first in zip(found, (0, 4, 8), strict=True):
        np.testing.assert_array_equal(x, X[first : first + 4])
        np.testing.assert_array_equal(y, Y[first : first + 4])
        np.testing.assert_array_equal(weight, weights[first : first + 4])
    assert (bad.count, bad.examples) == (0, [])
    assert "No example" in str(bad)


def test_a_bad_example_gets_the_values_of_a_good_one():
    x, y = spoiled()
    found, _, weight = next(iter(BadExamples().masked(batches(x, y))))
    assert any(np.array_equal(found[1], row) for row in X[[0, 2, 3]])
    np.testing.assert_allclose(weight, [4 / 3, 0.0, 4 / 3, 4 / 3], rtol=1e-6)


def test_a_batch_without_a_good_one_has_no_weight_and_is_finite():
    x, y, weight = next(iter(BadExamples().masked(batches(X * np.nan, Y))))
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(weight, np.zeros(4))


def test_several_inputs_and_whole_numbers():
    first = X.copy()
    first[3] = np.inf
    data = tf.data.Dataset.from_tensor_slices(
        ({"a": np.arange(12), "b": first}, np.arange(12))
    ).batch(12)
    bad = BadExamples()
    x, y, _ = next(iter(bad.masked(data)))
    assert bad.examples == [BadExample(0, 3, "inputs 1")]
    assert x["a"].dtype == y.dtype == tf.int64
    assert np.isfinite(x["b"]).all()
    assert int(y[3]) == int(x["a"][3])


@pytest.mark.parametrize("how", ["fit", "train"])
def test_of_arrays_the_bad_rows_are_left_out_and_named(how):
    bad, model, alone = BadExamples(), make_model(), make_model()
    x, y = bad.masked(spoiled())
    good = [row for row in range(12) if row not in (1, 6)]
    for net, data in ((model, (x, y)), (alone, (X[good], Y[good]))):
        arguments = {"batch_size": 5, "epochs": 2, "verbose": 0}
        if how == "fit":
            net.fit(*data, shuffle=False, **arguments)
        else:
            gradstab.training.train(net, data, seed=0, jit_compile=False, **arguments)
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert bad.examples == [BadExample(None, 1, "inputs"), BadExample(None, 6, "targets")]
    assert bad.count == 2
    assert str(bad) == "Left out of the loss 2 times: row 1 (inputs); row 6 (targets)."


def test_arrays_without_a_bad_example_are_the_same_objects():
    arrays = ({"a": X, "b": np.arange(12)}, Y, np.ones(12, "float32"))
    assert BadExamples().masked(arrays) is arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((X, Y[:3]), "same number of examples"),
        ((X * np.nan, Y), "none among 12"),
        ((X, 3.0), "of arrays with examples along the first axis"),
        ((X,), "1 entries"),
    ],
)
def test_arrays_that_cannot_be_are_refused(arrays, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BadExamples().masked(arrays)


def test_what_is_no_dataset_of_batches_is_refused():
    with pytest.raises(TypeError, match=r"`dataset` must be a tf.data.Dataset of batches"):
        BadExamples().masked([X, Y])
    with pytest.raises(TypeError, match="weights of one number per example"):
        BadExamples().masked(batches(X, Y, Y))
