"""SharedBlock: the sum of its uses, and each of them, against gradients of unshared copies."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.callbacks import SharedBlockMonitor
from gradstab.layers import ScaledResidual, SharedBlock

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = X[:, :1] * 2


def net(block=None, num_uses=3, **kwargs):
    keras.utils.set_random_seed(1)
    block = block or keras.layers.Dense(4, "tanh", name="block")
    shared = SharedBlock(block, num_uses, name="shared", **kwargs)
    return keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(1)])


def unshared(values, num_uses):
    """Gradients of the same net with a kernel and a bias of its own for each use."""
    kernel, bias, last, last_bias = values
    copies = [(tf.Variable(kernel), tf.Variable(bias)) for _ in range(num_uses)]
    with tf.GradientTape() as tape:
        hidden = X
        for own_kernel, own_bias in copies:
            hidden = tf.tanh(hidden @ own_kernel + own_bias)
        loss = tf.reduce_mean((hidden @ last + last_bias - Y) ** 2)
    return [[g.numpy() for g in pair] for pair in tape.gradient(loss, copies)]


def expected(values, num_uses):
    parts = unshared(values, num_uses)
    norms = [[np.linalg.norm(g) for g in pair] for pair in parts]
    total = [np.linalg.norm(sum(pair[column] for pair in parts)) for column in range(2)]
    return np.array(norms, "float32"), np.array(total, "float32")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "arguments",
    [
        {"run_eagerly": True},
        {"jit_compile": False},
        {"jit_compile": True},
        {"jit_compile": False, "steps_per_execution": 2},
    ],
    ids=["eager", "graph", "xla", "two steps a call"],
)
def test_each_use_in_fit(arguments):
    model = net()
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    monitor = SharedBlockMonitor(every_n_steps=1)
    every = arguments.get("steps_per_execution", 1)
    seen = []

    def note(batch, logs):
        seen.append([v.numpy() for v in model.trainable_variables])

    if every == 1:
        before = keras.callbacks.LambdaCallback(on_train_batch_begin=note)
        model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[monitor, before])
    else:
        data = tf.data.Dataset.from_tensors((X, Y)).repeat(2)
        model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])
        replay = net()
        replay.compile(keras.optimizers.SGD(0.1), "mse")
        replay.train_on_batch(X, Y)
        seen = [[v.numpy() for v in replay.trainable_variables]]
    assert [step for step, _ in monitor.history] == ([1, 2, 3] if every == 1 else [2])
    for (_, found), values in zip(monitor.history, seen, strict=True):
        norms, total = expected(values, 3)
        np.testing.assert_allclose(found["shared"].norms, norms, rtol=1e-4)
        np.testing.assert_allclose(found["shared"].total, total, rtol=1e-4)
    assert found["shared"].paths == tuple(v.path for v in model.trainable_variables[:2])
    use_norm = np.linalg.norm(norms, axis=1)
    np.testing.assert_allclose(found["shared"].use_norm, use_norm, rtol=1e-4)
    agreement = np.linalg.norm(total) / use_norm.sum()
    assert found["shared"].agreement == pytest.approx(agreement, rel=1e-4)
    assert 0 < agreement < 1
    assert model.history.history["shared/use_2"][-1] == pytest.approx(use_norm[1], rel=1e-4)


@pytest.mark.parametrize("mode", checks.MODES)
def test_each_use_in_a_loop_of_ones_own(mode):
    model = net(num_uses=2)
    values = [v.numpy() for v in model.trainable_variables]

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X, training=True) - Y) ** 2)
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    got = checks.compiled(gradients, mode)()
    norms, total = expected(values, 2)
    found = model.layers[0].use_gradients()
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4)
    np.testing.assert_allclose(found.total, total, rtol=1e-4)
    np.testing.assert_allclose([np.linalg.norm(g) for g in got[:2]], total, rtol=1e-4)


def test_watching_changes_nothing_that_is_trained():
    """With BatchNorm and dropout inside: their state and seeds advance use by use."""
    results = []
    for watch in (True, False):
        keras.utils.set_random_seed(1)
        inner = [keras.layers.Dense(4), keras.layers.BatchNormalization()]
        inner.append(keras.layers.Dropout(0.3, seed=4))
        block = ScaledResidual(inner, alpha_initializer="ones")
        model = net(block, watch=watch)
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
        model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        results.append(model.variables)
    checks.close(*results, 1e-5)
    assert {v.name for v in results[0]} >= {"moving_mean", "seed_generator_state"}


def test_losses_of_the_block_count_for_each_use():
    losses = []
    for watch in (True, False):
        keras.utils.set_random_seed(1)
        block = keras.layers.Dense(4, activity_regularizer="l2", kernel_regularizer="l2")
        model = net(block, watch=watch)
        model(X, training=True)
        losses.append(sorted(map(float, model.losses)))
    assert len(losses[0]) == 3 + 1
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_norms_are_those_of_the_unscaled_loss_under_mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    model = net()
    values = [v.numpy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    monitor = SharedBlockMonitor()
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor])
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    norms, total = expected(values, 3)
    np.testing.assert_allclose(monitor.history[0][1]["shared"].norms, norms, rtol=0.02)
    np.testing.assert_allclose(monitor.history[0][1]["shared"].total, total, rtol=0.02)


def test_an_embedding_inside_the_block():
    keras.utils.set_random_seed(1)
    table = keras.layers.Embedding(5, 5)
    inputs = keras.Input((3,), dtype="int32")

    @keras.saving.register_keras_serializable("test_shared")
    class Walk(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.table = table

        def call(self, x):
            return x + 0.1 * self.table(keras.ops.cast(keras.ops.argmax(x, axis=-1), "int32"))

    hidden = SharedBlock(Walk(), 2, name="shared")(table(inputs))
    model = keras.Model(inputs, hidden)
    model.compile(gradstab.stabilize("sgd"), "mse", jit_compile=False)
    model.fit(np.array([[0, 1, 1]]), np.ones((1, 3, 5)), verbose=0)
    found = next(ly for ly in model.layers if ly.name == "shared").use_gradients()
    assert found.norms.shape == (2, 1)
    assert (found.norms > 0).all()


def test_under_a_strategy_it_is_the_sum_over_replicas():
    with checks.mirrored(2).scope():
        model = net()
        model.compile(keras.optimizers.SGD(0.1), "mse")
    values = [v.numpy() for v in model.trainable_variables]
    monitor = SharedBlockMonitor()
    half = np.concatenate(
        [X, X]
    )  # both replicas see X; each one's loss counts half, and both halves add up
    target = np.concatenate([Y, Y])
    model.fit(half, target, batch_size=16, verbose=0, shuffle=False, callbacks=[monitor])
    norms, _ = expected(values, 3)
    np.testing.assert_allclose(monitor.history[0][1]["shared"].norms, norms, rtol=1e-4)
    alone = net()
    alone.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    alone.fit(X, Y, batch_size=8, verbose=0)
    checks.close(model.trainable_variables, alone.trainable_variables, 1e-5)


def test_saved_and_loaded(tmp_path):
    model = net()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(X, Y, verbose=0)
    assert [v.name for v in model.weights] == ["kernel", "bias", "kernel", "bias"]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    block = loaded.layers[0]
    assert (block.num_uses, block.watch, type(block.block)) == (3, True, keras.layers.Dense)
    loaded.fit(X, Y, verbose=0)
    assert np.isfinite(block.use_gradients().norms).all()


def test_a_model_that_is_built_in_its_first_step():
    model = keras.Sequential([SharedBlock(keras.layers.Dense(4), 2), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    monitor = SharedBlockMonitor()
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor])
    assert len(monitor.history[0][1]) == 1


def test_a_frozen_weight_is_left_out_and_a_call_outside_of_training_leaves_no_trace():
    model = net()
    model(X, training=False)
    with pytest.raises(RuntimeError, match="has seen no backward pass"):
        model.layers[0].use_gradients()
    model.layers[0].block.trainable = False
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)
    with pytest.raises(RuntimeError, match="has seen no backward pass"):
        model.layers[0].use_gradients()
    with pytest.raises(RuntimeError, match="notes no gradients"):
        net(watch=False).layers[0].use_gradients()


def test_bad_arguments():
    with pytest.raises(TypeError, match="`block` must be a keras"):
        SharedBlock(np.tanh, 2)
    with pytest.raises(ValueError, match="`num_uses` must be a positive integer"):
        SharedBlock(keras.layers.Dense(4), 0)
    with pytest.raises(ValueError, match="must give the shape of its input"):
        SharedBlock(keras.layers.Dense(5), 2)(X)
    with pytest.raises(ValueError, match="`every_n_steps` must be"):
        SharedBlockMonitor(0)
    model = net(watch=False)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must hold a `gradstab"):
        model.fit(X, Y, verbose=0, callbacks=[SharedBlockMonitor()])


def test_under_accumulation_it_is_the_last_micro_batch():
    model = net()
    values = [v.numpy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    monitor = SharedBlockMonitor(every_n_steps=2)
    first = np.flip(X, axis=1)  # another batch, whose gradients are not those of the second
    model.fit(
        np.concatenate([first, X]),
        np.concatenate([Y, Y]),
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[monitor],
    )
    assert [step for step, _ in monitor.history] == [1, 2]
    norms, _ = expected(values, 3)
    np.testing.assert_allclose(monitor.history[1][1]["shared"].norms, norms, rtol=1e-4)
    assert np.abs(monitor.history[0][1]["shared"].norms / norms - 1).max() > 0.1


def test_a_watched_step_is_traced_once():
    model = net()
    model.compile(gradstab.stabilize("adam"), "mse", jit_compile=False)
    block = model.layers[0].block
    traces = []
    call = block.call
    block.call = lambda x, training=None: (traces.append(1), call(x, training))[1]
    monitors = [SharedBlockMonitor(1), gradstab.callbacks.GradientMonitor(every_n_steps=2)]
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=monitors)
    count = len(traces)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[monitors[0]])
    first, second = count, len(traces) - count
    # Three uses in each trace; the monitor of all gradients has a function with its sampler beside.
    assert first <= 2 * 3
    assert second <= 3
    assert len(monitors[0].history) == 4


def test_in_gradstab_train():
    model = net()
    model.compile(gradstab.stabilize("sgd", learning_rate=0.1), "mse")
    values = [v.numpy() for v in model.trainable_variables]
    monitor = SharedBlockMonitor(every_n_steps=1)
    gradstab.training.train(
        model, (X, Y), epochs=1, seed=0, callbacks=[monitor], jit_compile=False, verbose=0
    )
    norms, _ = expected(values, 3)
    np.testing.assert_allclose(monitor.history[0][1]["shared"].norms, norms, rtol=1e-4)
