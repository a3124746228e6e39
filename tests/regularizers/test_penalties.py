"""L1, L2 and L1L2: Keras' values, and finite ones in half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.regularizers import L1, L1L2, L2

PAIRS = [
    (L1(0.03), keras.regularizers.L1(0.03)),
    (L2(0.02), keras.regularizers.L2(0.02)),
    (L1L2(0.03, 0.02), keras.regularizers.L1L2(0.03, 0.02)),
    (L1L2(l2=0.02), keras.regularizers.L1L2(l2=0.02)),
    (L1L2(), keras.regularizers.L1L2()),
]
identify = repr


@pytest.fixture
def float16_everywhere():
    keras.config.set_floatx("float16")
    yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[repr(ours) for ours, _ in PAIRS])
def test_float32_penalty_and_gradient_equal_keras(ours, theirs):
    weights = tf.Variable(np.random.default_rng(0).normal(size=(3, 3, 8, 16)).astype("float32"))
    values, gradients = [], []
    for penalty in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = penalty(weights)
        values.append(float(value))
        gradients.append(tape.gradient(value, weights, unconnected_gradients="zero").numpy())

    assert values[0] == pytest.approx(values[1], rel=1e-6)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)


def test_defaults_are_those_of_keras():
    for ours, theirs in [(L1(), keras.regularizers.L1()), (L2(), keras.regularizers.L2())]:
        for name, value in theirs.get_config().items():
            assert ours.get_config()[name] == pytest.approx(value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("compiled", [None, False, True], ids=["eager", "graph", "xla"])
def test_sums_beyond_float16_stay_finite(dtype, compiled):
    # 300² is beyond float16 by itself; the sum of 3600 absolutes of 300 is too.
    weights = tf.fill((60, 60), tf.constant(300.0, dtype))

    def penalties(x):
        return L1(0.5)(x), L2(0.25)(x), L1L2(0.5, 0.25)(x)

    if compiled is not None:
        penalties = tf.function(penalties, jit_compile=compiled)
    absolutes, squares = 0.5 * 3600 * 300, 0.25 * 3600 * 300**2
    for value, expected in zip(
        penalties(weights), (absolutes, squares, absolutes + squares), strict=True
    ):
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(expected, rel=1e-6)


def penalized_model(policy, penalty=None):
    # Zero inputs make the kernel's only gradient that of the penalty.
    kernel = keras.initializers.Constant(4.0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(
                64, kernel_initializer=kernel, kernel_regularizer=penalty or L2(1.0), dtype=policy
            ),
        ]
    )
    model.compile(keras.optimizers.SGD(0.125), "mse")
    return model


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "float32"])
def test_a_model_trains_on_a_penalty_beyond_float16(policy):
    model = penalized_model(policy)
    kernel = model.layers[0].kernel
    assert kernel.dtype == ("float16" if policy == "float16" else "float32")

    history = model.fit(np.zeros((8, 64)), np.zeros((8, 64)), epochs=1, verbose=0)

    assert history.history["loss"] == [pytest.approx(64 * 64 * 4.0**2)]
    # One step of SGD: 4 - 0.125 * 2 * 4.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(kernel), 3.0, rtol=1e-3)


@pytest.mark.usefixtures("float16_everywhere")
def test_the_penalty_adds_to_a_float16_loss():
    # Keras stacks the losses of a model, which fails where they differ in dtype.
    model = penalized_model("float16", penalty=L2(2**-7))
    model.fit(np.zeros((8, 64)), np.zeros((8, 64)), epochs=1, verbose=0)

    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    np.testing.assert_allclose(kernel, 4.0 - 0.125 * 2 * 2**-7 * 4.0, rtol=1e-3)


@pytest.mark.parametrize("penalty", [ours for ours, _ in PAIRS], ids=identify)
def test_saved_models_hold_the_penalty(penalty, tmp_path):
    restored = keras.regularizers.deserialize(keras.regularizers.serialize(penalty))
    assert type(restored) is type(penalty)
    assert restored.get_config() == penalty.get_config()
    assert repr(restored) == repr(penalty)

    model = penalized_model("float32", penalty)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded.layers[0].kernel_regularizer) is type(penalty)
    assert float(loaded.losses[0]) == float(model.losses[0])


@pytest.mark.parametrize("kind", [L1, L2, L1L2])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_values_that_are_no_coefficient(kind, value):
    name = kind.__name__[:2].lower()
    with pytest.raises(
        ValueError, match=rf"`{name}` must be a non-negative float.*Received: {name}"
    ):
        kind(value)


@pytest.mark.parametrize("value", [None, "0.1", True, [0.1]])
def test_types_that_are_no_coefficient(value):
    for arguments, kind in [({"l1": value}, L1), ({"l2": value}, L2), ({"l2": value}, L1L2)]:
        with pytest.raises(TypeError, match="must be a non-negative float"):
            kind(**arguments)
