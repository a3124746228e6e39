"""GradientPenalty and JacobianPenalty: their values and gradients, against closed forms."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.training import GradientPenalty, JacobianPenalty, Penalty, set_penalties
from gradstab.training.penalty import ForwardPass

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(6, 3)).astype("float32")
Y = DRAW.normal(size=(6, 2)).astype("float32")
KERNEL = DRAW.normal(size=(3, 2)).astype("float32")


def linear_model(loss="mse", **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    model.layers[0].kernel.assign(KERNEL)
    model.compile(keras.optimizers.SGD(1.0), loss, **arguments)
    return model


def forward_of(model, x=X, y=Y, sample_weight=None):
    return ForwardPass(model, x, y, sample_weight, model.compute_loss)


def measured(penalty, model, *batch, mode="eager"):
    """Return what a penalty measures, and its gradient with respect to the weights."""

    def both():
        with tf.GradientTape() as tape:
            value = penalty.measure(forward_of(model, *batch))
        gradients = tape.gradient(value, model.trainable_variables)
        # Biases that come after all else have none.
        return value, [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for v, g in zip(model.trainable_variables, gradients, strict=True)
        ]

    value, gradients = checks.compiled(both, mode)()
    return float(value), [gradient.numpy() for gradient in gradients]


# With e = x W - y and the loss Σ e²/2 of an example: ∂ℓ/∂x = e Wᵀ, ∂L/∂W = xᵀ e / n.
def linear_case(x=X, y=Y):
    error = x @ KERNEL - y
    by_input = error @ KERNEL.T
    by_weight = x.T @ error / len(x)
    return error, by_input, by_weight


@pytest.mark.parametrize("mode", checks.MODES)
def test_gradient_in_the_inputs_of_a_linear_model(mode):
    error, by_input, _ = linear_case()
    value, (gradient,) = measured(GradientPenalty(), linear_model(), mode=mode)
    assert value == pytest.approx(np.mean(np.sum(by_input**2, axis=1)), rel=1e-5)
    # d/dW of |e Wᵀ|², with e = x W - y: 2 xᵀ (e WᵀW) + 2 (e Wᵀ)ᵀ e, a mean over examples.
    expected = 2 * (X.T @ (by_input @ KERNEL) + by_input.T @ error) / len(X)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", checks.MODES)
def test_gradient_in_the_weights_of_a_linear_model(mode):
    _, _, by_weight = linear_case()
    penalty = GradientPenalty(with_respect_to="weights")
    value, (gradient,) = measured(penalty, linear_model(), mode=mode)
    assert value == pytest.approx(np.sum(by_weight**2), rel=1e-5)
    expected = 2 * X.T @ (X @ by_weight) / len(X)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_norms_without_squares():
    _, by_input, by_weight = linear_case()
    inputs, _ = measured(GradientPenalty(squared=False), linear_model())
    assert inputs == pytest.approx(np.mean(np.sqrt(np.sum(by_input**2, axis=1))), rel=1e-5)
    weights, (gradient,) = measured(
        GradientPenalty(with_respect_to="weights", squared=False), linear_model()
    )
    assert weights == pytest.approx(np.sqrt(np.sum(by_weight**2)), rel=1e-5)
    expected = X.T @ (X @ by_weight) / len(X) / weights
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("with_respect_to", ["inputs", "weights"])
def test_a_loss_at_its_minimum_gives_zero_and_no_nan(with_respect_to, squared):
    penalty = GradientPenalty(1.0, with_respect_to, squared)
    model = linear_model()
    value, (gradient,) = measured(penalty, model, X, model(X))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((3, 2)))


def test_examples_count_as_the_loss_weighs_them():
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0], "float32")
    _, by_input, _ = linear_case()
    value, _ = measured(GradientPenalty(), linear_model(), X, Y, weights)
    expected = np.mean(np.sum((weights[:, None] * by_input) ** 2, axis=1))
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("num_projections", [None, 2, 5])
def test_the_exact_jacobian_of_a_linear_model_is_its_kernel(num_projections, mode):
    penalty = JacobianPenalty(num_projections=num_projections)
    value, (gradient,) = measured(penalty, linear_model(), mode=mode)
    assert value == pytest.approx(np.sum(KERNEL**2), rel=1e-5)
    np.testing.assert_allclose(gradient, 2 * KERNEL, rtol=1e-5)


def tanh_model(outputs=5, seed=0, policy="float32"):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh", dtype=policy),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs, dtype=policy),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def images(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 4, 4, 2)).astype("float32")


def jacobians_by_differences(model, x):
    """Central differences, in float64 as far as the model's float32 outputs allow."""
    flat = x.reshape(len(x), -1)
    columns = []
    for place in range(flat.shape[1]):
        step = np.zeros_like(flat)
        step[:, place] = 1e-2
        up, down = (model((flat + s).reshape(x.shape)).numpy() for s in (step, -step))
        columns.append((up.astype("float64") - down) / 2e-2)
    return np.stack(columns, axis=-1)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_exact_jacobian_of_a_convolutional_model(policy):
    x = images(3)
    expected = np.sum(jacobians_by_differences(tanh_model(), x) ** 2) / len(x)
    penalty = JacobianPenalty(num_projections=None)
    value, _ = measured(penalty, tanh_model(policy=policy), x, np.zeros((3, 5)))
    tolerance = {"float32": 1e-3, "mixed_float16": 1e-2, "mixed_bfloat16": 5e-2}[policy]
    assert value == pytest.approx(expected, rel=tolerance)


def test_random_projections_have_the_mean_of_the_exact_one():
    x = images(4000)
    targets = np.zeros((4000, 5), "float32")
    exact, _ = measured(JacobianPenalty(num_projections=None), tanh_model(), x, targets)
    for num_projections in (1, 3):
        for seed in (0, 1):
            penalty = JacobianPenalty(num_projections=num_projections, seed=seed)
            value, _ = measured(penalty, tanh_model(), x, targets)
            # 4000 examples: a standard error of about 1 %.
            assert value == pytest.approx(exact, rel=0.04)
            assert value != exact


def test_directions_change_with_seed_and_step_alone():
    model = tanh_model()
    batch = images(4), np.zeros((4, 5), "float32")

    def value(seed=0):
        return measured(JacobianPenalty(seed=seed), model, *batch)[0]

    first = value()
    assert value() == first
    assert value(seed=1) != first
    model.optimizer.iterations.assign_add(1)
    assert value() != first


def test_a_weight_that_the_loss_does_not_touch_counts_as_zero():
    class Idle(keras.layers.Layer):
        def build(self, shape):
            self.unused = self.add_weight(shape=(3,))

        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((3,)), *linear_model().layers, Idle()])
    model.compile("sgd", "mse")
    assert len(model.trainable_variables) == 2
    value, _ = measured(GradientPenalty(1.0, "weights"), model)
    assert value == pytest.approx(np.sum(linear_case()[2] ** 2), rel=1e-5)


def test_all_inputs_and_outputs_of_a_model_count():
    one, two = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    first, second = keras.layers.Dense(2), keras.layers.Dense(4)
    model = keras.Model({"a": one, "b": two}, [first(one), second(two)])
    batch = {"a": np.ones((5, 2), "float32"), "b": np.ones((5, 3), "float32")}
    model.compile("sgd", "mse")
    value, _ = measured(
        JacobianPenalty(num_projections=None), model, batch, [np.ones((5, 2)), np.ones((5, 4))]
    )
    kernels = first.kernel.numpy(), second.kernel.numpy()
    assert value == pytest.approx(sum(np.sum(kernel**2) for kernel in kernels), rel=1e-5)


def test_another_pass_leaves_nothing_behind():
    """Neither BatchNorm's statistics, nor seeds, nor metrics, nor the losses of layers."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2, activity_regularizer="l2"),
        ]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    model.train_on_batch(X, Y)
    before = checks.contents([*model.variables, *model.metrics_variables])
    for penalty in (GradientPenalty(), GradientPenalty(1.0, "weights"), JacobianPenalty()):
        penalty.measure(forward_of(model))
    assert not checks.differences(
        before, checks.contents([*model.variables, *model.metrics_variables])
    )


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("with_respect_to", ["inputs", "weights"])
def test_recurrent_models_are_differentiated_twice(with_respect_to, jit_compile):
    def model(unroll):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((4, 3)), keras.layers.SimpleRNN(5, unroll=unroll), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        return set_penalties(model, [GradientPenalty(0.5, with_respect_to)])

    x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    trained = []
    for unroll in (True,) if jit_compile else (True, False):
        trained.append(model(unroll))
        trained[-1].fit(x, x[:, 0, :1], batch_size=4, shuffle=False, verbose=0)
    checks.close(trained[0].trainable_variables, trained[-1].trainable_variables)


def test_integer_inputs_are_refused():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(5, 3), keras.layers.Flatten()]
    )
    model.compile("sgd", "mse")
    x = np.ones((2, 4), "int32")
    for penalty in (GradientPenalty(), JacobianPenalty()):
        with pytest.raises(TypeError, match=r"float dtype\. Received: inputs of dtype int32"):
            penalty.measure(forward_of(model, x, np.ones((2, 12))))
    value, _ = measured(GradientPenalty(1.0, "weights"), model, x, np.ones((2, 12)))
    assert value > 0


@pytest.mark.parametrize(
    "penalty",
    [
        GradientPenalty(0.5, "weights", squared=False),
        JacobianPenalty(0.25, None, seed=3),
    ],
    ids=repr,
)
def test_config_round_trip(penalty):
    config = penalty.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(penalty))
    assert type(again) is type(penalty)
    assert again.get_config() == config
    assert repr(again) == repr(penalty)
    again.coefficient = 7.0
    assert again.get_config()["coefficient"] == 7.0
    assert penalty.get_config() == config


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GradientPenalty(-1), ValueError, "`coefficient` must be a non-negative float"),
        (lambda: GradientPenalty(None), TypeError, "coefficient=None"),
        (lambda: GradientPenalty(1, "x"), ValueError, "one of 'inputs', 'weights'"),
        (lambda: GradientPenalty(squared="yes"), ValueError, "squared='yes'"),
        (lambda: JacobianPenalty(num_projections=0), ValueError, "None takes all outputs"),
        (lambda: JacobianPenalty(num_projections=1.5), TypeError, "num_projections=1.5"),
        (lambda: JacobianPenalty(seed=-1), ValueError, "seed=-1"),
        (Penalty, TypeError, "abstract"),
    ],
)
def test_arguments_that_can_not_be_right(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)
