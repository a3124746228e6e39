"""`lsuv`: unit variance on data, whatever the layers; all weights or none."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.initializers import lsuv
from gradstab.layers import TiedDense

layers = keras.layers
DRAW = np.random.default_rng(0)
IMAGES = DRAW.normal(2.0, 3.0, size=(48, 8, 8, 3)).astype("float32")


def _network():
    """Return a residual net with a layer of every kind that is scaled, and others between."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    branch = layers.SeparableConv2D(6, 3, padding="same", activation="tanh")(x)
    x = x + layers.BatchNormalization()(branch)
    x = layers.DepthwiseConv2D(3, activation="gelu")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, activation="silu")(x)
    x = layers.Dropout(0.5)(layers.Reshape((-1, 5))(x))
    x = x + layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.EinsumDense("btd,de->bte", (None, 4), bias_axes="e", activation="relu")(x)
    x = layers.Conv1D(4, 3, activation="elu", use_bias=False)(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.SimpleRNN(4, return_sequences=True)(x)
    x = layers.LSTM(4)(x)
    head = keras.Sequential([layers.Dense(5, "sigmoid"), layers.Dense(2)], name="head")
    return keras.Model(inputs, head(x))


SCALED = 16  # of its layers: attention counts four, a bidirectional layer two


def _pre_activations(model, layer, x):
    """Return a layer's pre-activations by a model of its own, up to it and without activation."""
    before, layer.activation = layer.activation, keras.activations.linear
    try:
        part = keras.Model(model.input, layer.output)
        return keras.ops.convert_to_numpy(part(x, training=False)).astype("float64")
    finally:
        layer.activation = before


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("center", [False, True])
def test_every_layer_has_unit_variance_afterwards(center):
    keras.utils.set_random_seed(1)
    model = _network()
    before = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    report = lsuv(model, IMAGES, center=center, seed=3)

    assert len(report) == SCALED
    assert not report.left_out
    assert all(abs(each.variance_after - 1) < 0.1 for each in report)
    for name in ("conv2d", "conv2d_transpose", "einsum_dense"):
        layer = next(each for each in model.layers if each.name.rsplit("_", 1)[0] == name
                     or each.name == name or each.name.startswith(f"{name}_"))  # fmt: skip
        values = _pre_activations(model, layer, IMAGES)
        if center:
            means = values.mean(axis=tuple(range(values.ndim - 1)))
            np.testing.assert_allclose(means, 0, atol=1e-4)
            values = values - means
        assert values.var() == pytest.approx(1.0, abs=0.1)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_the_report_tells_of_each_layer_before_and_after():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((20,)), layers.Dense(30, "tanh"), layers.Dense(4)])
    x = DRAW.normal(size=(64, 20)).astype("float32")
    kernel, bias = model.layers[0].get_weights()
    expected = x @ kernel + bias
    report = lsuv(model, x, seed=0)
    assert [each.layer for each in report] == [layer.path for layer in model.layers]
    assert report[0].variance_before == pytest.approx(expected.var(), rel=1e-4)
    assert report[0].mean_before == pytest.approx(expected.mean(), abs=1e-4)
    after = x @ model.layers[0].get_weights()[0]
    assert report[0].variance_after == pytest.approx(after.var(), rel=1e-4)
    # Only scaled: the kernel is orthonormal up to a factor.
    gram = model.layers[0].get_weights()[0] @ model.layers[0].get_weights()[0].T
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(20), atol=1e-5)
    assert str(report).splitlines()[1].startswith(model.layers[0].path)


def test_without_orthonormal_kernels_those_that_are_there_are_scaled():
    model = keras.Sequential([keras.Input((20,)), layers.Dense(30)])
    x = 10 * DRAW.normal(size=(64, 20)).astype("float32")
    before = model.layers[0].get_weights()[0]
    lsuv(model, x, orthonormal=False)
    ratio = model.layers[0].get_weights()[0] / before
    np.testing.assert_allclose(ratio, 1 / (x @ before).std(), rtol=1e-4)


def test_recurrent_kernels_are_orthogonal_gate_by_gate():
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(6)])
    lsuv(model, DRAW.normal(size=(32, 5, 3)).astype("float32"), seed=1)
    kernel, recurrent, _ = model.layers[0].get_weights()
    assert kernel.shape == (3, 24)
    for gate in np.split(recurrent, 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(6), atol=1e-5)


def test_the_same_seed_gives_the_same_weights():
    weights = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        lsuv(model, DRAW.normal(size=(8, 4)).astype("float32") * 0 + np.eye(8, 4), seed=5)
        weights.append(model.layers[0].get_weights()[0])
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(policy):
    model = keras.Sequential(
        [keras.Input((16,))] + [layers.Dense(32, "relu", dtype=policy) for _ in range(4)]
    )
    report = lsuv(model, DRAW.normal(size=(64, 16)).astype("float32"), center=True, seed=0)
    assert all(abs(each.variance_after - 1) < 0.1 for each in report)


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.again = layers.Dense(8, "relu"), layers.Dense(8, "relu")
        self.steps = layers.TimeDistributed(layers.Dense(2))

    def call(self, inputs):
        x = self.first(inputs)
        for _ in range(3):  # The same layer at three depths.
            x = self.again(x)
        return self.steps(x[:, None, :])


def test_subclassed_models_shared_layers_and_loops():
    model = _Subclassed()
    report = lsuv(model, DRAW.normal(size=(32, 6)).astype("float32"), seed=0)
    paths = [each.layer.rsplit("/", 1)[-1] for each in report]
    assert paths[:2] == [model.first.name, model.again.name]
    assert len(report) + len(report.left_out) == 3


def test_frozen_layers_keep_their_weights():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(4)])
    model.layers[0].trainable = False
    before = model.layers[0].get_weights()
    report = lsuv(model, DRAW.normal(size=(32, 6)).astype("float32"))
    for one, other in zip(before, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert report.left_out == {model.layers[0].path: "since it is frozen"}


class _Matrix(keras.Layer):
    def build(self, input_shape):
        self.matrix = self.add_weight(shape=(input_shape[-1], 4))

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.matrix)


def test_the_report_names_every_layer_that_it_can_not_scale():
    code = layers.Dense(3, "tanh", name="code")
    inputs = keras.Input((6,))
    tied = TiedDense(code, name="tied")(code(inputs))
    normed = layers.LayerNormalization()(_Matrix(name="own")(tied))
    model = keras.Model(inputs, layers.Dense(2)(normed))
    report = lsuv(model, DRAW.normal(size=(32, 6)).astype("float32"))
    assert report.left_out == dict.fromkeys(["tied", "own"], "a layer of another kind")
    words = layers.Embedding(9, 4, name="words")
    model = keras.Sequential([keras.Input((5,), dtype="int32"), words, layers.Dense(2)])
    report = lsuv(model, DRAW.integers(0, 9, (16, 5)))
    assert [path.rsplit("/", 1)[-1] for path in report.left_out] == ["words"]


def test_the_kernel_below_lora_is_frozen():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(4)])
    model.layers[0].enable_lora(2)
    before = model.layers[0].get_weights()
    report = lsuv(model, DRAW.normal(size=(32, 6)).astype("float32"))
    for one, other in zip(before, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert report.left_out == {model.layers[0].path: "since it is frozen"}


class _AlwaysTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.normal, self.dense = layers.BatchNormalization(), layers.Dense(2)
        self.memory = layers.GRU(4, stateful=True)

    def call(self, inputs):
        return self.dense(self.memory(self.normal(inputs, training=True)))


def test_what_a_pass_writes_is_put_back():
    model = _AlwaysTraining()
    x = DRAW.normal(3.0, 2.0, size=(16, 5, 3)).astype("float32")
    model(x)
    kept = [*model.normal.non_trainable_variables, model.memory.states[0]]
    before = [keras.ops.convert_to_numpy(variable) for variable in kept]
    assert all(np.any(value) for value in before)
    report = lsuv(model, x)
    assert len(report) == 2
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_a_data_set_is_no_batch():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    with pytest.raises(TypeError, match=r"`x` must be one batch.*next\(iter\(dataset\)\)"):
        lsuv(model, tf.data.Dataset.from_tensors(np.ones((2, 6), "float32")))


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_nothing_changes_where_a_layer_can_not_be_scaled(bad):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "relu"), layers.Rescaling(bad), layers.Dense(4)]
    )
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"`x` must give.*`{model.layers[2].path}`"):
        lsuv(model, DRAW.normal(size=(32, 6)).astype("float32"))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not {"call", "_activation"} & set(vars(model.layers[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "`tolerance` must be"),
        ({"max_rounds": 0}, "`max_rounds` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    with pytest.raises(ValueError, match=message):
        lsuv(model, np.ones((2, 6), "float32"), **arguments)
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        lsuv("model", np.ones((2, 6), "float32"))
    with pytest.raises(ValueError, match="must have a layer that lsuv can scale"):
        lsuv(keras.Sequential([keras.Input((6,)), layers.ReLU()]), np.ones((2, 6), "float32"))
