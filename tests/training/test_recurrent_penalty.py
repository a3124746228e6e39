"""Pascanu's Ω against a recurrence written out in NumPy, with gradients by hand."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.training import RecurrentGradientNorm, set_penalties, train
from gradstab.training.penalty import ForwardPass

STEPS, UNITS, FEATURES = 6, 4, 3
SLOPES = {
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda a: np.exp(-a) / (1 + np.exp(-a)) ** 2),
    "linear": (lambda a: a, np.ones_like),
    "relu": (lambda a: np.maximum(a, 0), lambda a: (a > 0).astype("float64")),
}


def recurrent_model(activation="tanh", sequences=False, seed=0, policy=None, **arguments):
    keras.utils.set_random_seed(seed)
    rnn = keras.layers.SimpleRNN(
        UNITS,
        activation=activation,
        return_sequences=sequences,
        bias_initializer="random_normal",
        recurrent_initializer=keras.initializers.RandomNormal(stddev=0.6),
        dtype=policy,
        name="rnn",
        **arguments,
    )
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), rnn, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def batch(count=5, sequences=False):
    draw = np.random.default_rng(1)
    shape = (count, STEPS, 2) if sequences else (count, 2)
    return (
        draw.normal(size=(count, STEPS, FEATURES)).astype("float32"),
        draw.normal(size=shape).astype("float32"),
    )


def by_hand(model, x, y, activation="tanh", sequences=False, mask=None):
    """Ω of a batch and its immediate gradient in the recurrent kernel, in float64, step by step."""
    phi, slope = SLOPES[activation]
    u, w, b, v, c = (np.asarray(p, "float64") for p in model.get_weights())
    omega, gradient = 0.0, np.zeros_like(w)
    for n in range(len(x)):
        valid = np.ones(STEPS, bool) if mask is None else mask[n]
        a, h, last = [], [], np.zeros(UNITS)
        for k in range(STEPS):
            a.append(x[n, k] @ u + last @ w + b)
            last = phi(a[-1]) if valid[k] else last
            h.append(last)
        if sequences:  # mean over the steps and the two outputs
            direct = [2 * (h[k] @ v + c - y[n, k]) / (2 * STEPS) @ v.T for k in range(STEPS)]
        else:
            direct = [np.zeros(UNITS)] * (STEPS - 1) + [2 * (h[-1] @ v + c - y[n]) / 2 @ v.T]
        delta = [None] * STEPS
        error = np.zeros(UNITS)
        for k in reversed(range(STEPS)):
            error = error + direct[k]
            delta[k] = error * slope(a[k])
            error = delta[k] @ w.T if valid[k] else error
        for k in range(STEPS - 1):
            if not (valid[k] and valid[k + 1]) or not np.any(delta[k + 1]):
                continue
            back = (delta[k + 1] @ w.T) * slope(a[k])
            ratio = np.linalg.norm(back) / np.linalg.norm(delta[k + 1])
            omega += (ratio - 1) ** 2 / len(x)
            if ratio == 0:  # every unit is dead, and no direction leads out
                continue
            # d|back| = back/|back| · (delta dWᵀ ⊙ φ'), all but W constant.
            outer = np.outer(back * slope(a[k]), delta[k + 1])
            scale = np.linalg.norm(back) * np.linalg.norm(delta[k + 1]) * len(x)
            gradient += 2 * (ratio - 1) * outer / scale
    return omega, gradient


def measured(model, x, y, penalty=None, mode="eager"):
    def both():
        with tf.GradientTape() as tape:
            forward = ForwardPass(model, x, y, None, model.compute_loss)
            value = (penalty or RecurrentGradientNorm()).measure(forward)
        return value, tape.gradient(value, model.trainable_variables)

    value, gradients = checks.compiled(both, mode)()
    names = [variable.path.split("/")[-1] for variable in model.trainable_variables]
    others = [g for name, g in zip(names, gradients, strict=True) if name != "recurrent_kernel"]
    assert others == [None] * len(others), "Ω acts on the recurrent kernel alone"
    return float(value), gradients[names.index("recurrent_kernel")].numpy()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("activation", ["tanh", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_value_and_immediate_gradient(activation, sequences, mode):
    model = recurrent_model(activation, sequences)
    x, y = batch(sequences=sequences)
    value, gradient = measured(model, x, y, mode=mode)
    omega, expected = by_hand(model, x, y, activation, sequences)
    assert value == pytest.approx(omega, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_relu_and_dead_units():
    model = recurrent_model("relu")
    x, y = batch(12)
    value, gradient = measured(model, x, y)
    omega, expected = by_hand(model, x, y, "relu")
    assert value == pytest.approx(omega, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_immediate_gradient_is_not_the_whole_one():
    """What keeps errors and states constant: with all of W's effects it would be another."""
    model = recurrent_model()
    x, y = batch()
    _, gradient = measured(model, x, y)
    whole = np.zeros_like(gradient)
    weights = model.get_weights()
    for place in np.ndindex(*gradient.shape):
        for sign in (1, -1):
            changed = [weight.copy() for weight in weights]
            changed[1][place] += sign * 1e-3
            model.set_weights(changed)
            whole[place] += sign * by_hand(model, x, y)[0] / 2e-3
    model.set_weights(weights)
    assert np.max(np.abs(whole - gradient)) > 0.1 * np.max(np.abs(gradient))


def test_an_orthogonal_linear_net_has_no_omega():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((STEPS, FEATURES)), keras.layers.SimpleRNN(UNITS, activation=None)]
    )
    model.compile("sgd", "mse")
    x, _ = batch()
    value, gradient = measured(model, x, np.zeros((5, UNITS)))
    assert value < 1e-10
    assert np.max(np.abs(gradient)) < 1e-5


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_errors_that_vanish_or_explode_beyond_float32_still_count(factor):
    """Over 60 steps a linear net scales an error by 1e-180 or 1e88; every ratio is the factor."""
    model = keras.Sequential(
        [
            keras.Input((60, 2)),
            keras.layers.SimpleRNN(
                2,
                activation=None,
                recurrent_initializer=lambda shape, dtype: factor * tf.eye(2, dtype=dtype),
            ),
        ]
    )
    model.compile("sgd", "mae")
    # No input: the states stay zero and the loss finite.
    value, _ = measured(model, np.zeros((3, 60, 2), "float32"), np.ones((3, 2)))
    assert value == pytest.approx(59 * (factor - 1) ** 2, rel=1e-5)


def test_masked_steps_are_left_out():
    mask = np.array([[1, 1, 1, 0, 0, 0], [1] * 6, [0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]], bool)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((STEPS, FEATURES)),
            keras.layers.Masking(),
            keras.layers.SimpleRNN(UNITS, bias_initializer="random_normal"),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    x, y = batch(4)
    x[~mask] = 0.0
    value, gradient = measured(model, x, y)
    omega, expected = by_hand(model, x, y, mask=mask)
    assert value == pytest.approx(omega, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_backwards_is_forwards_over_reversed_data():
    x, y = batch()
    backwards = recurrent_model(go_backwards=True)
    omega, expected = by_hand(recurrent_model(), x[:, ::-1], y)
    value, gradient = measured(backwards, x, y)
    assert value == pytest.approx(omega, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_an_error_through_the_returned_state_counts():
    plain = recurrent_model()
    inputs = keras.Input((STEPS, FEATURES))
    _, state = keras.layers.SimpleRNN(UNITS, return_state=True, name="rnn")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(state))
    model.set_weights(plain.get_weights())
    model.compile("sgd", "mse")
    x, y = batch()
    assert measured(model, x, y)[0] == pytest.approx(by_hand(plain, x, y)[0], rel=1e-5)
    layer = model.layers[1]
    assert layer.return_state
    assert not layer.return_sequences
    assert "call" not in vars(layer)


def test_layers_and_directions_add_up():
    inputs = keras.Input((STEPS, FEATURES))
    both = keras.layers.Bidirectional(keras.layers.SimpleRNN(UNITS, name="inner"))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(both))
    model.compile("sgd", "mse")
    x, y = batch()

    def value(layers=None):
        forward = ForwardPass(model, x, y, None, model.compute_loss)
        return float(RecurrentGradientNorm(layers=layers).measure(forward))

    parts = value(["forward_inner"]), value(["backward_inner"])
    assert min(parts) > 0
    assert value() == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 0.05)]
)
def test_half_precision_gives_the_same_rounded(policy, tolerance):
    x, y = batch()
    value, _ = measured(recurrent_model(policy=policy), x, y)
    assert value == pytest.approx(by_hand(recurrent_model(), x, y)[0], rel=tolerance)


def test_it_keeps_an_error_alive_in_training():
    """Trained on Ω alone: the ratios go to 1, under XLA, and other weights stay."""
    x, y = (np.tile(part, (200, *[1] * (part.ndim - 1))) for part in batch(32))
    model = recurrent_model("linear")
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    for variable in model.trainable_variables:
        variable.trainable = variable.path.endswith("recurrent_kernel")
    before = by_hand(model, x[:32], y[:32], "linear")[0]
    others = checks.contents(model.non_trainable_variables)
    history = train(
        model,
        (x, y),
        epochs=3,
        batch_size=32,
        penalties=[RecurrentGradientNorm(1.0)],
        jit_compile="loop",
        seed=0,
        verbose=0,
    )
    values = history.history["recurrent_gradient_norm"]
    after = by_hand(model, x[:32], y[:32], "linear")[0]
    assert values[-1] < before
    assert after < 0.2 * before
    assert not checks.differences(others, checks.contents(model.non_trainable_variables))


def lstm_model():
    inputs = keras.Input((STEPS, FEATURES))
    x = keras.layers.SimpleRNN(UNITS, return_sequences=True, name="simple")(inputs)
    return keras.Model(inputs, keras.layers.GRU(2, name="gru")(x))


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (lstm_model, None, "'gru' with a GRUCell"),
        (lstm_model, ["gru"], "Name the SimpleRNN layers"),
        (lstm_model, ["other"], "must name recurrent layers of the model, simple, gru"),
        (lambda: recurrent_model(dropout=0.5), None, "dropout=0.5"),
        (lambda: recurrent_model(recurrent_dropout=0.5), None, "recurrent_dropout=0.5"),
        (lambda: recurrent_model("softmax"), None, "mixes units"),
        (
            lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
            None,
            "no recurrent layer",
        ),
    ],
)
def test_models_that_it_can_not_serve(make, layers, message):
    with pytest.raises(ValueError, match=r"RecurrentGradientNorm|`layers`") as raised:
        set_penalties(make(), [RecurrentGradientNorm(layers=layers)])
    assert message in str(raised.value)


def test_a_named_simple_layer_beside_others_is_served():
    set_penalties(lstm_model(), [RecurrentGradientNorm(layers=["simple"])])


def test_arguments():
    penalty = RecurrentGradientNorm(2.0, ["rnn"])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(penalty))
    assert again.get_config() == penalty.get_config() == {"coefficient": 2.0, "layers": ["rnn"]}
    with pytest.raises(TypeError, match="`layers` must be a list"):
        RecurrentGradientNorm(layers="rnn")
    with pytest.raises(ValueError, match="coefficient=-1"):
        RecurrentGradientNorm(-1)
