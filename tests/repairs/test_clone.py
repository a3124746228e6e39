"""Copies with changes: what is shared stays shared, what is put in stands where it should."""

import keras
import numpy as np
import pytest

from gradstab.repairs.clone import NotClonableError, cloned, is_editable
from gradstab.repairs.draft import Draft, Plan

LAYERS = keras.layers


def _shared():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    body = LAYERS.Dense(3, "sigmoid", name="body")
    both = LAYERS.Concatenate(name="both")([body(first), body(second)])
    outputs = [LAYERS.Dense(1, name="a")(both), LAYERS.Dense(2, name="b")(both)]
    return keras.Model([first, second], outputs)


def _names(model):
    return [layer.name for layer in model.layers]


def test_a_functional_model_keeps_shared_layers_inputs_and_outputs():
    model = _shared()
    copy = cloned(model, settings={"body": {"activation": "relu", "units": 7}})
    assert _names(copy) == _names(model)
    assert copy.get_layer("body").units == 7
    assert copy.count_params() == 4 * 7 + 7 + 14 * 3 + 3
    assert model.get_layer("body").units == 3
    rows = [np.ones((2, 4), "float32"), np.zeros((2, 4), "float32")]
    assert [output.shape for output in copy(rows)] == [(2, 1), (2, 2)]


def test_each_input_gets_its_own_layer_and_a_shared_layer_one_behind_it():
    scaled = {
        "first": [lambda: LAYERS.Rescaling(2.0, name="twice")],
        "second": [lambda: LAYERS.Rescaling(3.0, name="thrice")],
    }
    behind = {"body": [lambda: LAYERS.Rescaling(0.0, offset=1.0, name="ones")]}
    copy = cloned(_shared(), at_input=scaled, after=behind)
    assert {"twice", "thrice", "ones"} <= set(_names(copy))
    probe = keras.Model(copy.input, copy.get_layer("both").output)
    assert np.all(probe([np.ones((1, 4)), np.ones((1, 4))]).numpy() == 1)
    given = keras.Model(copy.input, copy.get_layer("twice").output)
    assert np.all(given([np.ones((1, 4)), np.ones((1, 4))]).numpy() == 2)


def test_layers_are_put_into_a_sequential_model():
    model = keras.Sequential([keras.Input((2, 3)), LAYERS.Dense(4, name="d"), LAYERS.Dense(1)])
    copy = cloned(
        model,
        before={"d": [LAYERS.Flatten]},
        after={"d": [LAYERS.BatchNormalization]},
        at_output=[lambda: LAYERS.Rescaling(5.0)],
    )
    assert [type(layer).__name__ for layer in copy.layers] == [
        "Flatten", "Dense", "BatchNormalization", "Dense", "Rescaling",
    ]  # fmt: skip
    assert copy.output_shape == (None, 1)


def test_weights_start_anew_but_for_frozen_layers():
    model = keras.Sequential([keras.Input((3,)), LAYERS.Dense(4, name="old"), LAYERS.Dense(2)])
    model.get_layer("old").trainable = False
    copy = cloned(model)
    assert np.array_equal(copy.get_layer("old").kernel, model.get_layer("old").kernel)
    assert not np.array_equal(copy.layers[-1].kernel, model.layers[-1].kernel)


def test_a_lambda_is_taken_as_it_is():
    model = keras.Sequential([keras.Input((3,)), LAYERS.Lambda(lambda x: 2 * x, name="double")])
    assert np.all(cloned(model)(np.ones((1, 3), "float32")).numpy() == 2)


class _Own(keras.Model):
    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = LAYERS.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class _WithoutConfig(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = LAYERS.Dense(units)

    def call(self, x):
        return self.dense(x)


def test_a_subclassed_model_is_copied_whole_or_refused():
    assert not is_editable(_Own())
    assert cloned(_Own(5)).units == 5
    with pytest.raises(NotClonableError, match="get_config"):
        cloned(_WithoutConfig(2))


def test_a_model_within_a_model_is_changed_too():
    inner = keras.Sequential([keras.Input((3,)), LAYERS.Dense(4, "sigmoid", name="deep")])
    model = keras.Sequential([keras.Input((3,)), inner, LAYERS.Dense(1)])
    copy = cloned(model, settings={"deep": {"activation": "relu"}})
    assert copy.layers[0].get_layer("deep").activation is keras.activations.relu


def test_an_unregistered_loss_is_no_obstacle():
    model = _shared()
    model.compile("sgd", [lambda y, p: keras.ops.mean(p), "mse"])
    rows = np.zeros((8, 4), "float32")
    draft = Draft(model, [rows, rows], [np.zeros((8, 1)), np.zeros((8, 2))], Plan(1, 4))
    draft.built().fit(draft.x, draft.y, verbose=0)
