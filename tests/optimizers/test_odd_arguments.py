"""Arguments of `stabilize` and words that nobody would guess, and models in float64."""

import keras
import numpy as np
import pytest

from gradstab import stabilize
from gradstab._validation import check_choice, check_float

X = np.random.default_rng(0).normal(size=(64, 4))


@pytest.mark.parametrize("config", [{}, {"class_name": 5, "config": []}, {1: 2}])
def test_a_dict_that_is_no_config(config):
    with pytest.raises((TypeError, ValueError), match="`inner_optimizer` must be a"):
        stabilize(config)


@pytest.mark.parametrize("clip", [np.ones(3), np.array(["auto"]), [], {}, "1.0"], ids=repr)
def test_a_bound_that_is_none(clip):
    with pytest.raises(TypeError, match="`clip` must be a positive float"):
        stabilize("adam", clip=clip)


@pytest.mark.parametrize("word", [np.array(["a"]), np.array(["a", "b"]), ["a"], {"a": 1}, object()])
def test_an_array_is_no_word(word):
    with pytest.raises(ValueError, match="`mode` must be one of 'a', 'b'"):
        check_choice("mode", word, ("a", "b"))


def test_long_arguments_are_cut_and_integers_have_no_end():
    with pytest.raises(ValueError, match="must be one of") as raised:
        check_choice("mode", np.zeros((50, 50)), ("a",))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    with pytest.raises(ValueError, match="and finite"):
        check_float("rate", 10**400)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("floatx", ["float64", "float16"])
@pytest.mark.parametrize("run_eagerly", [True, False])
def test_the_default_trains_in_every_floatx(floatx, run_eagerly):
    keras.config.set_floatx(floatx)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(stabilize("adam"), "mse", run_eagerly=run_eagerly, jit_compile=False)
    history = model.fit(X, X[:, :1], epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.optimizer.iterations) == 4
