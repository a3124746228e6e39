import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.training import train
from gradstab.training.epochs import loop_of


def ordered(data, seed, epoch):
    order = np.random.default_rng([seed, epoch]).permutation(len(data[0]))
    return tf.data.Dataset.from_tensor_slices(tuple(part[order] for part in data)).batch(32)


def with_weights(data):
    return (*data, np.linspace(0.0, 2.0, len(data[0]), dtype="float32"))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("form", "weighted"),
    [("arrays", True), ("for_epoch", False), ("pipeline", True)],
)
def test_is_fit_on_the_same_batches(make_model, data, form, weighted):
    data = with_weights(data) if weighted else data
    if form == "arrays":
        given = data
    else:
        given = ordered(data, 5, 0)
        if form == "for_epoch":
            given.for_epoch = lambda epoch: ordered(data, 5, epoch)
    ours, theirs = make_model(), make_model()
    history = train(ours, given, data, epochs=3, seed=5, verbose=0)
    expected = {}
    for epoch in range(3):
        batches = ordered(data, 5, 0 if form == "pipeline" else epoch)
        logs = theirs.fit(batches, validation_data=data, epochs=1, verbose=0, shuffle=False)
        for name, values in logs.history.items():
            expected.setdefault(name, []).extend(values)
    assert list(history.history) == list(expected)
    assert history.epoch == [0, 1, 2]
    assert ours.history is history
    for name, values in expected.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-5, atol=1e-6)
    for weight, reference in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(weight, reference, rtol=1e-4, atol=1e-6)
    assert int(ours.optimizer.iterations) == 9


class Recorder(keras.callbacks.Callback):
    def __init__(self, batch_hooks):
        super().__init__()
        self.calls = []
        hooks = ["on_train_begin", "on_train_end", "on_test_begin", "on_test_end"]
        hooks += ["on_epoch_begin", "on_epoch_end"]
        if batch_hooks:
            hooks += [f"on_{w}_batch_{e}" for w in ("train", "test") for e in ("begin", "end")]
        for hook in hooks:
            setattr(self, hook, self._recording(hook))

    def _recording(self, hook):
        def record(*arguments, logs=None):
            arguments = list(arguments)
            if arguments and (arguments[-1] is None or isinstance(arguments[-1], dict)):
                logs = arguments.pop()
            self.calls.append((hook, *arguments, sorted(logs or {})))

        return record


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("batch_hooks", [False, True])
def test_calls_callbacks_as_fit_does(make_model, data, batch_hooks):
    ours, theirs = Recorder(batch_hooks), Recorder(batch_hooks)
    train(make_model(), data, data, epochs=2, callbacks=[ours], verbose=0)
    make_model().fit(*data, validation_data=data, epochs=2, callbacks=[theirs], verbose=0)
    assert ours.calls == theirs.calls


def test_progress_bar_and_report(make_model, data, capsys):
    train(make_model(), data, data, epochs=2, verbose=2)
    printed = capsys.readouterr().out
    assert "form of the loop: graph" in printed
    assert "ms per step" in printed
    assert "Epoch 2/2" in printed
    assert "val_loss" in printed
    train(make_model(), data, epochs=1, verbose=0)
    assert capsys.readouterr().out == ""


def test_stops_in_the_middle_of_an_epoch(make_model, data):
    model = make_model()

    def stop(batch, logs):
        model.stop_training = batch == 1

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    history = train(model, data, epochs=5, callbacks=[callback], verbose=0)
    assert int(model.optimizer.iterations) == 2
    assert history.epoch == [0]


def test_forms_agree(make_model, data):
    graph, whole, eager = make_model(), make_model(), make_model(run_eagerly=True)
    train(graph, data, data, epochs=2, seed=0, jit_compile=False, verbose=0)
    train(whole, data, data, epochs=2, seed=0, jit_compile="loop", verbose=0)
    train(eager, data, data, epochs=2, seed=0, verbose=0)
    for model in (whole, eager):
        for weight, expected in zip(model.weights, graph.weights, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, "step"])
def test_nothing_retraces_on_a_smaller_last_batch(make_model, data, jit_compile):
    model = make_model()
    batches = tf.data.Dataset.from_tensor_slices(data).batch(32)
    form = "xla_step" if jit_compile else "graph"
    traces = []

    def count(epoch, logs):
        steps = ("train_step", "test_step")
        traces.append([loop_of(model, step, form).num_traces() for step in steps])

    callback = keras.callbacks.LambdaCallback(on_epoch_end=count)
    train(
        model, batches, batches, epochs=3, callbacks=[callback], jit_compile=jit_compile, verbose=0
    )
    assert traces == [[1, 1]] * 3


def test_arrays_trace_once_for_each_of_their_two_batch_sizes(make_model, data):
    model = make_model()
    for _ in range(2):
        train(model, data, epochs=2, jit_compile=False, steps_per_call=2, verbose=0)
        assert loop_of(model, "train_step", "graph").num_traces() == 2


def test_steps_per_call_does_not_change_the_result(make_model, data, same_state):
    models = [make_model(noisy=True) for _ in range(3)]
    for model, steps in zip(models, (1, 2, "auto"), strict=True):
        train(model, data, epochs=2, seed=0, steps_per_call=steps, jit_compile=False, verbose=0)
    assert same_state(models[0], models[1])
    assert same_state(models[0], models[2])


class OwnStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables))
        return {"last_square": loss}


@pytest.mark.parametrize("form", ["arrays", "pipeline", "eager"])
def test_own_train_step_and_its_logs(form):
    x, y = np.ones((6, 1), "float32"), np.array([[1.0], [1], [1], [1], [5], [5]], "float32")
    data = (x, y) if form == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    model = OwnStep()
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=form == "eager")
    history = train(model, data, epochs=1, batch_size=6, monitor="last_square",
                    monitor_mode="min", verbose=0)  # fmt: skip
    weight = float(model.dense.kernel[0, 0])
    # A step's own logs are those of the last step: the batch of fives, or the one of all.
    squares = [(weight - 1) ** 2, (weight - 1) ** 2, (weight - 5) ** 2]
    expected = np.mean(squares) if form == "arrays" else squares[-1]
    np.testing.assert_allclose(history.history["last_square"], [expected], rtol=1e-5)


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred) * 0.0 + 3.5


def test_own_loss():
    model = OwnLoss([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd")
    history = train(model, (np.ones((4, 2)), np.ones((4, 1))), epochs=1, verbose=0)
    assert history.history["loss"] == [3.5]


def test_unbuilt_model(make_model, data):
    model = make_model(build=False)
    history = train(model, data, epochs=3, verbose=0, jit_compile=False)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_endless_pipeline_in_epochs_of_some_steps(make_model, data):
    endless = tf.data.Dataset.from_tensor_slices(data).repeat().batch(10)
    seen = []
    noted = endless.map(lambda x, y: (tf.numpy_function(note(seen), [x], tf.float32), y))
    shaped = noted.map(lambda x, y: (tf.ensure_shape(x, [None, 4]), y))
    train(make_model(), shaped, epochs=3, steps_per_epoch=4, verbose=0)
    rows = np.concatenate(seen)[:120]
    np.testing.assert_array_equal(rows, np.resize(data[0], (120, 4)))


def note(seen):
    def look(x):
        seen.append(x)
        return x

    return look


def test_moving_average_is_written_at_the_end_as_by_fit(make_model, data):
    ours, theirs = (make_model(keras.optimizers.SGD(0.1, use_ema=True)) for _ in range(2))
    train(ours, ordered(data, 0, 0), epochs=1, verbose=0, jit_compile=False)
    theirs.fit(ordered(data, 0, 0), epochs=1, verbose=0, shuffle=False)
    for weight, reference in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(weight, reference, rtol=1e-5, atol=1e-6)


def test_early_stopping_counts_epochs_without_a_better_value(make_model, data):
    # A learning rate of 0 gives the same loss for ever: the first epoch is the best.
    model = make_model(keras.optimizers.SGD(0.0))
    history = train(
        model, data, data, epochs=20, early_stopping_patience=3, verbose=0, jit_compile=False
    )
    assert len(history.epoch) == 4


def test_divergence_is_raised_and_nothing_has_moved(make_model, data):
    x, y = data
    optimizer = gradstab.optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(0.1), [gradstab.transforms.SkipNonFinite(max_consecutive=2)]
    )
    model = make_model(optimizer)
    before = [weight.numpy().copy() for weight in model.weights]
    with pytest.raises(gradstab.DivergenceError, match="no gradient was finite"):
        train(model, (np.full_like(x, np.nan), y), epochs=5, verbose=0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
