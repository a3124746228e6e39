"""Dead units, constant outputs and forgetting are told; a healthy run sees no difference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.optimizers.watching.find import bind
from gradstab.recovery.liveness import Liveness, Look, _is_lost, stopping_layer
from gradstab.recovery.moving_statistics import MovingStatistics

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1]


def _look(loss, dead=0.0, is_constant=False):
    return Look(loss, is_constant, {"a": dead, "b": 0.0})


def _model(activation="relu", optimizer="sgd", **arguments):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation, name="a"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, name="b"),
        ]
    )
    model.compile(optimizer, "mse", **arguments)
    return model


@pytest.mark.parametrize(
    ("now", "best", "is_lost"),
    [
        (_look(2.4), _look(0.1), True),  # back where it began
        (_look(1.3), _look(0.1), False),  # a bad epoch
        (_look(1.3, dead=0.9), _look(0.1, dead=0.2), True),  # and most units have died
        (_look(0.3, dead=0.9), _look(0.1, dead=0.2), False),  # they have, and it learns well
        (_look(2.4), _look(1.9), False),  # little was learned: noise
        (_look(np.inf), _look(0.1), True),
    ],
)
def test_what_counts_as_lost(now, best, is_lost):
    assert _is_lost(now, best, first=_look(2.3)) == is_lost


def test_the_layer_that_stops_gradients_is_the_last_dead_one():
    assert stopping_layer(Look(1.0, True, {"a": 1.0, "b": 1.0, "c": 0.9})) == "b"
    assert stopping_layer(Look(1.0, False, {"a": 0.5, "b": 0.0})) is None
    assert stopping_layer(None) is None


def test_dead_units_are_those_that_are_zero_on_all_examples():
    model = _model()
    model.get_layer("a").bias.assign([-100.0] * 6 + [0.0] * 2)
    liveness = Liveness(model)
    liveness.see_batch((X, Y))
    dead = liveness.look().dead
    assert dead[model.get_layer("a").path] == 0.75
    np.testing.assert_allclose(
        liveness.look().loss, np.mean((model(X[:32]) - Y[:32]) ** 2), rtol=1e-5
    )


def test_a_look_leaves_everything_as_it_was():
    model = _model(metrics=["mae"])
    model.fit(X, Y, verbose=0)
    liveness = Liveness(model)
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    before = [v.numpy().tobytes() for v in variables]
    liveness.see_batch((X, Y))
    liveness.look()
    assert [v.numpy().tobytes() for v in variables] == before
    assert not any("call" in vars(layer) for layer in model.layers)


CASES = {
    "plain": {},
    "eager": {"run_eagerly": True},
    "many in a call": {"steps_per_execution": 3},
    "XLA": {"jit_compile": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_a_run_whose_first_batch_was_shown_is_the_same_bit_by_bit(arguments):
    def run(callbacks):
        model = _model("tanh", gradstab.stabilize("adam"), **arguments)
        history = model.fit(X, Y, batch_size=10, epochs=3, verbose=0, callbacks=callbacks)
        traces = getattr(model.train_function, "experimental_get_tracing_count", lambda: 0)()
        return [w.tobytes() for w in model.get_weights()], history.history, traces

    class Watching(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            bind(self.model)
            self.liveness = Liveness(self.model)

        def on_epoch_begin(self, epoch, logs=None):
            self.liveness.await_batch()

        def on_epoch_end(self, epoch, logs=None):
            assert self.liveness.look() is not None

    class Binding(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            bind(self.model)

    assert run([Watching()]) == run([Binding()])


def test_pipelines_of_every_kind_go_on_as_they_would():
    drawn = []

    def generate():
        for place in range(12):
            drawn.append(place)
            yield X[place], Y[place]

    spec = (tf.TensorSpec((6,), tf.float32), tf.TensorSpec((1,), tf.float32))
    data = tf.data.Dataset.from_generator(generate, output_signature=spec).batch(4)
    data = data.apply(tf.data.experimental.assert_cardinality(3))
    model = _model()
    liveness = Liveness(model)
    awaiting = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: liveness.await_batch()
    )
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=[awaiting])
    assert drawn == [*range(12)] * 2
    assert liveness.look() is not None


def test_one_huge_batch_spoils_moving_variances():
    model = _model()
    model.fit(X, Y, verbose=0)
    statistics = MovingStatistics(model)
    statistics.look()
    model(X * 1e4, training=True)
    statistics.look()
    path = model.get_layer("bn").moving_variance.path
    assert statistics.is_spoiled
    assert path in statistics.told()
    model.get_layer("bn").moving_variance.assign([1.0] * 8)
    statistics.look()
    assert statistics.told() is None


def test_moving_variances_that_lag_behind_large_data_are_in_order():
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
    statistics = MovingStatistics(model)
    for _ in range(20):  # epochs of one step
        model(X * 1e4, training=True)
        statistics.look()
        assert not statistics.is_spoiled


def test_a_model_that_cannot_be_looked_at_is_told_once_by_the_layer():
    """It was silent: who waited for dead units to be told waited in vain."""

    class OnlyTrains(keras.layers.Layer):
        def call(self, x, training=None):
            if training is False:
                raise RuntimeError("no inference here\nand more")
            return x

    layers = [keras.layers.Dense(4, name="a"), OnlyTrains(name="odd"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile("sgd", "mse")
    liveness = Liveness(model)
    with pytest.warns(UserWarning, match="odd` raised RuntimeError: no inference") as told:
        liveness.see_batch((X, Y))
    assert liveness.look() is None  # And without a second warning.
    assert len([w for w in told if "not looked for" in str(w.message)]) == 1
    assert "and more" not in str(told[0].message)
