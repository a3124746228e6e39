"""Closer looks at some steps, against numbers computed by hand from the same batches."""

import functools

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab import callbacks, monitoring, transforms
from gradstab.optimizers import StabilizedOptimizer

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(48, 3)).astype("float32")
Y = DRAW.normal(size=(48, 1)).astype("float32")
BATCH = 8
FORMS = [
    {"jit_compile": False},
    {"jit_compile": True},
    {"run_eagerly": True},
    {"steps_per_execution": 3, "jit_compile": False},
]


def _model(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "relu", name="hidden"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile(optimizer, "mse", **arguments)
    return model


@functools.cache
def _by_hand(rate, max_norm=np.inf):
    """Gradient descent with clipping: gradients, factor, weights after and updates of each step."""
    model = _model("sgd")
    weights = model.trainable_variables
    steps = []
    for start in range(0, len(X), BATCH):
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = [g.numpy().astype("float64") for g in tape.gradient(loss, weights)]
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        factor = min(1.0, max_norm / norm)
        before = [w.numpy() for w in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign(weight - rate * factor * gradient)
        after = [w.numpy() for w in weights]
        updates = [a.astype("float64") - b for a, b in zip(after, before, strict=True)]
        steps.append((gradients, factor, after, updates))
    return steps


def _norms(values):
    return [np.sqrt((np.asarray(v, "float64") ** 2).sum()) for v in values]


OPTIMIZERS = {
    "gradstab's": lambda: gradstab.stabilize(keras.optimizers.SGD(0.1), clip=1.0),
    "with an update transform": lambda: StabilizedOptimizer(
        keras.optimizers.SGD(0.1),
        [transforms.ClipByGlobalNorm(1.0), transforms.LimitUpdateRatio(1e6)],
    ),
    "Keras'": lambda: keras.optimizers.SGD(0.1),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_quantity_of_every_sampled_step(name, form, tmp_path):
    model = _model(OPTIMIZERS[name](), **form)
    monitor = callbacks.GradientMonitor(tmp_path, every_n_steps=2)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])
    record = monitoring.read_record(tmp_path)
    steps = record.norms.steps
    assert steps.tolist() == [1, 2, 4, 6]
    by_hand = _by_hand(0.1, np.inf if name == "Keras'" else 1.0)
    for row, number in enumerate(steps):
        gradients, factor, after, updates = by_hand[number - 1]
        expected = {
            "grad_norm": _norms(gradients),
            "grad_norm_after": [factor * norm for norm in _norms(gradients)],
            "grad_max": [abs(g).max() for g in gradients],
            "grad_zeros": [np.mean(g == 0) for g in gradients],
            "grad_nonfinite": [0] * 4,
            "weight_norm": _norms(after),
            "update_norm": _norms(updates),
            "update_ratio": np.divide(_norms(updates), _norms(after)),
            "predicted_change": [(g * u).sum() for g, u in zip(gradients, updates, strict=True)],
        }
        for quantity, values in expected.items():
            found = record.per_variable(quantity).values[row]
            np.testing.assert_allclose(found, values, rtol=2e-3, atol=1e-7, err_msg=quantity)
        whole = np.sqrt(np.sum(np.square(_norms(updates)))) / np.sqrt(
            np.sum(np.square(_norms(after)))
        )
        assert record.column("update_ratio")[row] == pytest.approx(whole, rel=1e-3)
        assert record.column("linearity_predicted")[row] == pytest.approx(
            sum(expected["predicted_change"]), rel=1e-3
        )


def test_on_replicas_the_samples_are_those_of_one():
    def samples(scope):
        with scope:
            model = _model(gradstab.stabilize(keras.optimizers.SGD(0.1), clip=1.0))
        monitor = callbacks.GradientMonitor(every_n_steps=3)
        model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])
        observer = monitor._observer
        return observer.telemetry.peek(sampler=observer.sampler).samples

    alone = samples(tf.device("/cpu:0"))
    together = samples(checks.mirrored(2).scope())
    assert together.steps.tolist() == alone.steps.tolist() == [1, 3, 6]
    for name, values in alone.variables.items():
        np.testing.assert_allclose(together.variables[name], values, rtol=1e-4, atol=1e-7)


def test_a_skipped_step_is_sampled_with_what_was_wrong():
    x = X.copy()
    x[3 * BATCH + 1] = np.nan  # the fourth step
    model = _model(gradstab.stabilize(keras.optimizers.SGD(0.1)))
    monitor = callbacks.GradientMonitor(every_n_steps=4)
    model.fit(x, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])
    samples = monitor._observer.telemetry.peek(sampler=monitor._observer.sampler).samples
    assert samples.steps.tolist() == [1, 4]
    # On this CPU the activation lets no NaN through, so that the head's gradient may be finite.
    assert samples.variables["grad_nonfinite"][1][0] == 12
    assert samples.variables["grad_nonfinite"][0].tolist() == [0] * 4
    assert samples.variables["update_norm"][1].tolist() == [0] * 4
    assert samples.variables["update_ratio"][1].tolist() == [0] * 4
    assert (samples.variables["weight_norm"][1][[0, 2]] > 0).all()


def test_an_embedding_is_measured_by_its_rows(tmp_path):
    ids = np.array([[1, 1, 3]] * 4, "int32")
    y = np.ones((4, 3, 1), "float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(10, 1)])
    model.compile(gradstab.stabilize(keras.optimizers.SGD(0.5), clip=None), "mse")
    table = model.weights[0].numpy()[:, 0].astype("float64")
    gradient = np.zeros(10)
    gradient[1], gradient[3] = 2 * 8 * (table[1] - 1) / 12, 2 * 4 * (table[3] - 1) / 12
    monitor = callbacks.GradientMonitor(tmp_path)
    model.fit(ids, y, batch_size=4, verbose=0, callbacks=[monitor])
    record = monitoring.read_record(tmp_path)
    norm = np.sqrt((gradient**2).sum())
    for name, value in {
        "grad_norm": norm, "grad_max": abs(gradient).max(), "grad_zeros": 0.8,
        "update_norm": 0.5 * norm, "predicted_change": -0.5 * norm**2,
    }.items():  # fmt: skip
        assert record.per_variable(name).values[0, 0] == pytest.approx(value, rel=1e-4), name


def test_many_steps_per_call_lose_no_sample():
    x, y = (np.concatenate([part] * 9)[:400] for part in (X, Y))
    model = _model(gradstab.stabilize("sgd"), steps_per_execution=50)
    monitor = callbacks.GradientMonitor(every_n_steps=1)
    logs = model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor]).history
    samples = [r.samples for r in monitor._watches[0].readings]
    assert np.concatenate([s.steps for s in samples]).tolist() == list(range(1, 51))
    ratios = np.concatenate([s.update_ratio for s in samples])
    assert logs["update_ratio"] == pytest.approx([ratios.mean()])


def test_two_samplers_see_their_own_steps():
    model = _model(gradstab.stabilize("sgd"))
    often, seldom = (callbacks.GradientMonitor(every_n_steps=n) for n in (2, 3))
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[often, seldom])
    for monitor, steps in ((often, [1, 2, 4, 6]), (seldom, [1, 3, 6])):
        observer = monitor._observer
        samples = observer.telemetry.peek(sampler=observer.sampler).samples
        assert samples.steps.tolist() == steps
    assert set(model.fit(X, Y, verbose=0).history) == {"loss"}


def test_in_a_loop_of_ones_own():
    model = _model(gradstab.stabilize(keras.optimizers.SGD(0.1), clip=None))
    optimizer = model.optimizer
    optimizer.telemetry.sample(every_n_steps=3, bins=5)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for start in range(0, len(X), BATCH):
        step(X[start : start + BATCH], Y[start : start + BATCH])
    reading = optimizer.telemetry.read()
    assert reading.samples.steps.tolist() == [1, 3, 6]
    assert optimizer.telemetry.read(since=3).samples.steps.tolist() == [6]
    by_hand = _by_hand(0.1)
    for row, number in enumerate(reading.samples.steps):
        for place, gradient in enumerate(by_hand[number - 1][0]):
            low, high, *counts = reading.samples.histograms[row, place]
            ends = [gradient.min(), gradient.max()]
            np.testing.assert_allclose([low, high], ends, rtol=1e-4, atol=1e-6)
            assert sum(counts) == gradient.size
            if ends[0] == ends[1]:
                continue
            expected, _ = np.histogram(gradient, bins=5, range=ends)
            assert np.abs(np.subtract(counts, expected)).sum() <= 2  # an entry on an edge


def test_samples_are_small_and_not_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(250))])
    model.compile(gradstab.stabilize("sgd"), "mse")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    own = optimizer.variables[: len(optimizer.variables) - len(optimizer.inner_optimizer.variables)]
    persistent = sum(np.asarray(v).nbytes for v in own)
    optimizer.telemetry.sample()
    waiting = sum(np.asarray(v).nbytes for v in optimizer.telemetry.samplers[0].variables)
    assert len(model.trainable_variables) == 500
    assert persistent + waiting < 1_000_000
    assert len(optimizer.variables) == len(own) + len(optimizer.inner_optimizer.variables)


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", 0), ("bins", -1)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        gradstab.stabilize("sgd").telemetry.sample(**{name: value})
