"""The judge of benchmarks/correctness_table.py: its references, and that it can find fault."""

import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "correctness_table.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("correctness_table", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PATH.parent)  # As where it runs as a script.
        patch.setitem(sys.modules, spec.name, module)  # Dataclasses look their module up.
        spec.loader.exec_module(module)
        yield module


def _case(benchmark, weights=None, scale=None, wanted_scale=None, raised=None):
    reference = [np.array([3.0, 4.0])]
    outcome = benchmark.Outcome(reference if weights is None else weights, scale, raised)
    return benchmark.Case(
        "group", "name", reference, outcome, outcome, scale=wanted_scale
    ).as_json()["gradstab"]


def test_what_is_within_is_right(benchmark):
    measured = _case(benchmark, [np.array([3.0, 4.0 + 4e-6])], scale=2.0, wanted_scale=2.0)
    assert measured["right"]
    assert measured["error"] == pytest.approx(8e-7)


@pytest.mark.parametrize(
    "outcome",
    [
        {"weights": [np.array([3.0, 4.0 + 6e-6])]},
        {"weights": [np.array([3.0, np.nan])]},
        {"weights": [np.zeros(2)]},
        {"scale": 1.0, "wanted_scale": 2.0},
        {"raised": RuntimeError("no")},
    ],
    ids=["off", "nan", "unmoved", "scale", "raised"],
)
def test_what_is_wrong_is_found(benchmark, outcome):
    assert not _case(benchmark, **outcome)["right"]


def test_angle_between_updates(benchmark):
    right_angle = benchmark.angle([np.array([1e30, 0.0])], [np.array([0.0, 1e-30])])
    assert right_angle == pytest.approx(90)
    assert benchmark.angle([np.ones(3)], [2 * np.ones(3)]) == pytest.approx(0, abs=1e-6)


def test_gradient_of_the_linear_model_is_the_tapes(benchmark):
    ((x, y),) = benchmark.draw_batches(1)
    draw = np.random.default_rng(3)
    weights = [tf.Variable(draw.normal(size=shape)) for shape in ((5, 3), (3,))]
    with tf.GradientTape() as tape:
        outputs = tf.constant(x) @ weights[0] + weights[1]
        loss = tf.reduce_mean(tf.reduce_sum((outputs - y) ** 2, axis=1))
    expected = benchmark.gradients_of(x, y, [weight.numpy() for weight in weights])
    for gradient, value in zip(tape.gradient(loss, weights), expected, strict=True):
        np.testing.assert_allclose(gradient, value, rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adagrad", "rmsprop", "sgd"])
def test_reference_optimizers_take_keras_dense_steps(benchmark, name):
    make = {
        "adam": benchmark.make_adam,
        "adagrad": lambda: keras.optimizers.Adagrad(benchmark.RATE),
        "rmsprop": lambda: keras.optimizers.RMSprop(benchmark.RATE),
        "sgd": lambda: keras.optimizers.SGD(benchmark.RATE),
    }[name]
    draw = np.random.default_rng(4)
    gradients = [draw.normal(size=(4,)).astype("float32") for _ in range(5)]
    steps = [[tf.constant(gradient)] for gradient in gradients]
    got = benchmark.apply(make(), steps, [(4,)]).weights[0]
    wide = iter([gradient.astype("float64") for gradient in gradients])
    expected = getattr(benchmark, name)(np.zeros(4), wide, benchmark.RATE)
    # Of the update as a whole: single entries come near zero by cancellation.
    assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)


def test_clips_of_the_reference(benchmark):
    gradients = [np.array([3.0, -0.2]), np.array([4.0])]
    by_value = benchmark.clipped_by_value(gradients)
    np.testing.assert_array_equal(np.concatenate(by_value), [0.5, -0.2, 0.5])
    by_norm = benchmark.clipped_by_norm(gradients)
    assert [np.linalg.norm(each) for each in by_norm] == pytest.approx([1, 1])
    by_global_norm = np.concatenate(benchmark.clipped_by_global_norm(gradients))
    expected, _ = tf.clip_by_global_norm([tf.constant(each) for each in gradients], 1.0)
    np.testing.assert_allclose(by_global_norm, np.concatenate(expected), rtol=1e-12)
