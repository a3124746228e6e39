"""Small models and data that every test of training begins with."""

import keras
import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_model():
    """Return a function that makes the same compiled model again and again."""

    def make(optimizer=None, *, noisy=False, seed=1, build=True, **compile_arguments):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(8, activation="tanh")]
        if noisy:
            layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
        inputs = [keras.layers.Input((4,))] if build else []
        model = keras.Sequential([*inputs, *layers, keras.layers.Dense(3)])
        model.compile(
            optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **{"metrics": ["accuracy"], **compile_arguments},
        )
        return model

    return make


@pytest.fixture(scope="session")
def data():
    """70 examples: two batches of 32 and a smaller one, in three classes that can be learnt."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(70, 4)).astype("float32")
    y = np.argmax(x[:, :3], axis=1).astype("int32")
    for array in (x, y):
        array.flags.writeable = False
    return x, y


@pytest.fixture
def same_state():
    """Return a function that compares all variables of two models and optimizers, bit for bit."""

    def same(first, second):
        pairs = [(first.variables, second.variables)]
        pairs += [(first.optimizer.variables, second.optimizer.variables)]
        return all(
            v.numpy().tobytes() == w.numpy().tobytes()
            for a, b in pairs
            for v, w in zip(a, b, strict=True)
        )

    return same
