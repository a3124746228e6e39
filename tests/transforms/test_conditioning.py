"""Centralized gradients and gradient noise."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.functional.noise import counter_normal


def _moved(transform, gradients, variables, mode="eager", steps=1):
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [transform])
    step, _ = checks.stepper(optimizer, variables, mode)
    moved = []
    for _ in range(steps):
        before = checks.values_of(variables)
        step(*gradients)
        moved.append([b - a for b, a in zip(before, checks.values_of(variables), strict=True)])
    return moved


def test_centralizing_by_kind_of_variable():
    draw = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 4, 5), "embeddings": (6, 3), "bias": (2, 3), "gamma": (4,)}
    variables = [keras.Variable(np.zeros(shape), name=name) for name, shape in shapes.items()]
    gradients = [draw.normal(1.0, size=shape).astype("float32") for shape in shapes.values()]
    (moved,) = _moved(
        transforms.CentralizeGradients(), [tf.constant(g) for g in gradients], variables
    )
    conv, rows, bias, gain = gradients
    np.testing.assert_allclose(moved[0], conv - conv.mean((0, 1, 2), keepdims=True), atol=1e-6)
    np.testing.assert_allclose(moved[1], rows - rows.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(moved[2], bias)
    np.testing.assert_array_equal(moved[3], gain)


def test_centralizing_leaves_sparse_rows_of_a_kernel_sparse():
    kernel = keras.Variable(np.zeros((4, 2)), name="kernel")
    gradient = checks.sparse([1, 1], [[1.0, 2.0], [3.0, 4.0]], (4, 2))
    ((moved,),) = _moved(transforms.CentralizeGradients(), [gradient], [kernel])
    np.testing.assert_array_equal(moved, [[0, 0], [4, 6], [0, 0], [0, 0]])


def test_the_noise_is_normal_and_independent():
    z = counter_normal([3, 0, 0], np.arange(200_000)).numpy()
    # Standard errors: mean .0022, deviation .0016, skewness .0055, kurtosis .011.
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.007
    assert abs((z**3).mean()) < 0.025
    assert abs((z**4).mean() - 3) < 0.06
    assert abs(np.mean(np.abs(z) < 1) - 0.6827) < 0.005
    assert abs(np.mean(np.abs(z) > 3) - 0.0027) < 0.0005
    others = [[4, 0, 0], [3, 1, 0], [3, 0, 1]]
    for keys in others:
        other = counter_normal(keys, np.arange(200_000)).numpy()
        assert abs(np.corrcoef(z, other)[0, 1]) < 0.01
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 0.01


def test_the_noise_fades_as_it_should():
    variable = keras.Variable(np.zeros(20_000))
    steps = 5
    noise = transforms.AddGradientNoise(0.3, decay=0.55, seed=1)
    moved = _moved(noise, [tf.fill((20_000,), 5.0)], [variable], "graph", steps)
    for t, (change,) in enumerate(moved):
        np.testing.assert_allclose((change - 5.0).std(), np.sqrt(0.3 / (1 + t) ** 0.55), rtol=0.03)
        assert abs((change - 5.0).mean()) < 0.02
    first, second = moved[0][0], moved[1][0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_rows_and_variables_that_take_no_part_get_no_noise():
    def run(gradient):
        variables = checks.make_variables()
        return _moved(
            transforms.AddGradientNoise(1.0, seed=5),
            [gradient, tf.zeros((3, 2)), checks.make_gradients()[2]],
            variables,
        )[0]

    dense = np.zeros((5, 2), "float32")
    dense[[1, 3]] = 1.0
    rows = run(checks.sparse([3, 1, 3], [[0.5, 0.5], [1.0, 1.0], [0.5, 0.5]], (5, 2)))
    whole = run(tf.constant(dense))
    np.testing.assert_allclose(rows[0], whole[0], atol=1e-6)
    np.testing.assert_array_equal(rows[0][[0, 2, 4]], np.zeros((3, 2)))
    assert np.abs(rows[0][[1, 3]] - 1.0).min() > 1e-4
    np.testing.assert_array_equal(rows[1], np.zeros((3, 2)))


def _fitted(model, x, y):
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    weights = model.trainable_variables
    return {str(place): weight.numpy().tobytes() for place, weight in enumerate(weights)}


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_skipped_step_is_followed_by_the_noise_it_had(mode):
    def run(*scales):
        variables = checks.make_variables()
        chain = [transforms.SkipNonFinite(), transforms.AddGradientNoise(0.1, seed=2)]
        optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)
        step, _ = checks.stepper(optimizer, variables, mode)
        for scale in scales:
            step(*checks.make_gradients(scale=scale))
        return variables

    assert not checks.differences(
        checks.contents(run(1.0, np.nan, np.inf, 1.0)), checks.contents(run(1.0, 1.0))
    )


def test_the_seed_is_saved_and_a_resumed_run_goes_on(tmp_path):
    def model(seed):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        keras.utils.set_random_seed(seed)  # the transform's own seed is drawn from it
        chain = [transforms.AddGradientNoise(0.1)]
        inner = keras.optimizers.SGD(0.1)
        model.compile(optimizers.StabilizedOptimizer(inner, chain), "mse")
        return model

    x, y = np.ones((8, 3)), np.ones((8, 2))
    saved = model(1)
    saved.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    saved.save(tmp_path / "model.keras")
    tf.train.Checkpoint(model=saved).write(str(tmp_path / "checkpoint"))
    loaded, restored = keras.models.load_model(tmp_path / "model.keras"), model(2)
    restored.optimizer.build(restored.trainable_variables)
    tf.train.Checkpoint(model=restored).read(str(tmp_path / "checkpoint"))
    for each in (saved, loaded, restored):
        each.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for other in (loaded, restored):
        checks.close(other.trainable_variables, saved.trainable_variables, 1e-7)
    first, second = (_fitted(model(seed), x, y) for seed in (3, 4))
    assert checks.differences(first, second)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`variance` must be a non-negative float"):
        transforms.AddGradientNoise(-0.1)
    with pytest.raises(ValueError, match="`decay` must be a non-negative float"):
        transforms.AddGradientNoise(0.1, decay=-1)
    with pytest.raises(TypeError, match="`seed` must be an integer of at least 0"):
        transforms.AddGradientNoise(0.1, seed=1.5)
