"""Orthogonal and SpectralNorm, against NumPy's singular values."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import unwrap
from gradstab.models import cnn_classifier
from gradstab.regularizers import Orthogonal, SpectralNorm

SHAPES = [(6, 4), (4, 6), (5, 5), (3, 3, 4, 8), (1, 1, 3, 7), (2, 2, 2, 3, 4)]
MODES = ("soft", "double", "mutual_coherence", "srip")


def kernel_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


def measure(mode, kernel):
    """What NumPy says, in float64."""
    matrix = np.reshape(np.asarray(kernel, "float64"), (-1, kernel.shape[-1]))
    inputs, outputs = matrix.shape
    columns = matrix.T @ matrix - np.eye(outputs)
    rows = matrix @ matrix.T - np.eye(inputs)
    shorter = rows if inputs < outputs else columns
    return {
        "soft": np.sum(shorter**2),
        "double": np.sum(columns**2) + np.sum(rows**2),
        "mutual_coherence": np.max(np.abs(shorter)),
        "srip": np.max(np.abs(np.linalg.eigvalsh(shorter))),
        "spectral_norm": np.linalg.svd(matrix, compute_uv=False)[0] ** 2,
    }[mode]


def regularizer_of(mode, num_iterations=300):
    if mode == "spectral_norm":
        return SpectralNorm(0.5, num_iterations)
    return Orthogonal(mode, 0.5, num_iterations)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", [*MODES, "spectral_norm"])
def test_value_and_gradient(mode, shape):
    kernel = kernel_of(shape)
    regularizer = regularizer_of(mode)
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        value = regularizer(variable)
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(0.5 * measure(mode, kernel), rel=1e-4)
    gradient = tape.gradient(value, variable).numpy()
    direction = np.random.default_rng(1).normal(size=shape)
    step = 1e-6 * direction
    slope = (measure(mode, kernel + step) - measure(mode, kernel - step)) / 2e-6
    assert np.sum(gradient * direction) == pytest.approx(0.5 * slope, rel=2e-3)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 3, 2, 8)], ids=str)
@pytest.mark.parametrize("mode", ["soft", "mutual_coherence", "srip"])
def test_zero_for_an_orthogonal_kernel_of_any_form(mode, shape):
    kernel = tf.constant(keras.initializers.Orthogonal(seed=0)(shape))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = Orthogonal(mode, 1.0)(kernel)
    assert float(value) < 1e-5
    assert np.all(np.isfinite(tape.gradient(value, kernel)))


@pytest.mark.parametrize("mode", MODES)
def test_exactly_orthogonal_has_no_gradient(mode):
    kernel = tf.eye(4)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        value = Orthogonal(mode, 1.0)(kernel)
    assert float(value) == 0.0
    np.testing.assert_array_equal(tape.gradient(value, kernel), np.zeros((4, 4)))


def test_srip_sees_eigenvalues_of_either_sign_that_tie():
    # W'W - I has the eigenvalues 0.5, -0.5, 0: v itself goes to and fro, the length does not.
    kernel = np.diag(np.sqrt([1.5, 0.5, 1.0])).astype("float32")
    assert float(Orthogonal("srip", 1.0)(kernel)) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("mode", [*MODES, "spectral_norm"])
def test_few_iterations_estimate_from_below(mode):
    kernel = kernel_of((30, 20))
    few, many = regularizer_of(mode, 2)(kernel), regularizer_of(mode, 500)(kernel)
    exact = 0.5 * measure(mode, kernel)
    assert float(few) <= exact * (1 + 1e-5)
    assert float(few) > 0.5 * exact
    assert float(many) == pytest.approx(exact, rel=1e-4)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("mode", [*MODES, "spectral_norm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_in_every_mode_of_running(mode, dtype):
    # 300 squared is beyond float16.
    kernel = tf.constant(300.0 * kernel_of((6, 4)), dtype)
    expected = 0.5 * measure(mode, tf.cast(kernel, tf.float64).numpy())
    regularizer = regularizer_of(mode, 100)

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = regularizer(x)
        return value, tape.gradient(value, x)

    gradients = []
    # What is widened first is compiled like the float32 it becomes.
    for running in checks.MODES if dtype in ("float16", "float32") else ("eager", "graph"):
        value, gradient = checks.compiled(both, running)(kernel)
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(expected, rel=1e-4)
        assert gradient.dtype == dtype
        gradients.append(tf.cast(gradient, tf.float32).numpy())
    if dtype in ("float32", "float64"):
        for gradient in gradients[1:]:
            np.testing.assert_allclose(gradient, gradients[0], rtol=1e-4, atol=1e-3)


def test_the_start_is_a_function_of_the_seed():
    kernel = kernel_of((30, 20))
    first, same, other = (float(Orthogonal("srip", 1.0, 1, seed)(kernel)) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def layers_with(regularizer):
    return [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, kernel_regularizer=regularizer),
        keras.layers.Flatten(),
        keras.layers.Dense(6, kernel_regularizer=regularizer),
    ]


@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        pytest.param("soft", "float32", marks=pytest.mark.slow),
        pytest.param("double", "float32", marks=pytest.mark.slow),
        pytest.param("mutual_coherence", "mixed_bfloat16", marks=pytest.mark.slow),
        ("srip", "mixed_float16"),
        pytest.param("spectral_norm", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_fit_makes_kernels_more_orthogonal(mode, policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(layers_with(regularizer_of(mode, 20)))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x, y = np.zeros((8, 8, 8, 3), "float32"), np.zeros((8, 6), "float32")
    kernels = [layer.kernel for layer in model.layers if layer.weights]
    for kernel in kernels:
        kernel.assign(1.5 * kernel.numpy())
    before = [measure(mode, kernel.numpy()) for kernel in kernels]
    model.fit(x, y, epochs=20, verbose=0)
    for kernel, start in zip(kernels, before, strict=True):
        assert measure(mode, kernel.numpy()) < 0.95 * start


def test_two_replicas_take_the_step_of_one():
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    y = np.zeros((8, 6), "float32")
    trained = []
    for strategy in (tf.distribute.get_strategy(), checks.mirrored(2)):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential(layers_with(Orthogonal("srip", 0.1)))
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        trained.append(model.trainable_variables)
    checks.close(trained[1], trained[0])


def test_where_transformed_and_transposed_kernels_can_not_be_told_apart():
    layer = keras.layers.Conv2DTranspose(3, 2, kernel_regularizer=Orthogonal("soft", 1.0))
    layer.build((None, 4, 4, 5))
    assert float(layer.losses[0]) == pytest.approx(measure("soft", layer.kernel.numpy()), rel=1e-5)


@pytest.mark.parametrize("regularizer", [Orthogonal(), SpectralNorm()], ids=repr)
def test_a_bias_is_refused(regularizer):
    with pytest.raises(ValueError, match=r"at least two axes.*\(3,\).*not biases"):
        regularizer(np.ones(3, "float32"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "hard"}, ValueError, "one of 'soft', 'double', 'mutual_coherence', 'srip'"),
        ({"coefficient": -1}, ValueError, "`coefficient` must be a non-negative float"),
        ({"coefficient": "1"}, TypeError, "coefficient='1'"),
        ({"num_iterations": 0}, ValueError, "num_iterations=0"),
        ({"num_iterations": 1.5}, TypeError, "num_iterations=1.5"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_arguments_that_can_not_be_right(arguments, error, message):
    for kind in (Orthogonal, SpectralNorm):
        if "mode" in arguments and kind is SpectralNorm:
            continue
        with pytest.raises(error) as raised:
            kind(**arguments)
        assert message in str(raised.value)


def test_the_classifier_takes_it_and_unwrap_names_it():
    model = cnn_classifier((8, 8, 1), 3, filters=(4,), kernel_regularizer=Orthogonal("srip", 0.5))
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    assert len(model.losses) == len(kernels) == 3
    for loss, kernel in zip(model.losses, kernels, strict=True):
        # 20 iterations, on spectra without a gap.
        assert 0.8 < float(loss) / (0.5 * measure("srip", kernel)) < 1.0001
    with pytest.raises(ValueError, match=r"no equivalent of\. Received: Orthogonal"):
        unwrap(model)
