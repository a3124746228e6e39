"""What binding tells of a variable, and the rule that stands in where nobody bound a model."""

import keras
import numpy as np
import pytest

from gradstab import stabilize
from gradstab.optimizers.model.binding import bind, unbound_role

layers = keras.layers


def _model():
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2DTranspose(6, 3, name="transposed")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.GlobalAveragePooling2D()(x)
    words = keras.Input((7,), dtype="int32", name="words")
    y = layers.Embedding(11, 6, name="embedding")(words)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="einsum")(y)
    y = layers.Reshape((7, 6))(y)
    y = layers.LSTM(5, name="lstm")(y)
    z = layers.Concatenate()([x, y])
    z = layers.Dense(3, name="hidden")(z)
    z = layers.Dense(2, name="head")(z)
    return keras.Model([image, words], layers.Softmax(name="softmax")(z))


# Path: (shape, axes of one output unit, layer's class)
ROLES = {
    "conv/kernel": ((3, 3, 4, 4), (0, 1, 2), "Conv2D"),
    "conv/bias": ((4,), (0,), "Conv2D"),
    "norm/gamma": ((4,), (0,), "BatchNormalization"),
    "norm/beta": ((4,), (0,), "BatchNormalization"),
    "transposed/kernel": ((3, 3, 6, 4), (0, 1, 3), "Conv2DTranspose"),
    "transposed/bias": ((6,), (0,), "Conv2DTranspose"),
    "depthwise/kernel": ((3, 3, 6, 2), (0, 1), "DepthwiseConv2D"),
    "depthwise/bias": ((12,), (0,), "DepthwiseConv2D"),
    "separable/depthwise_kernel": ((3, 3, 12, 1), (0, 1), "SeparableConv2D"),
    "separable/pointwise_kernel": ((1, 1, 12, 5), (0, 1, 2), "SeparableConv2D"),
    "separable/bias": ((5,), (0,), "SeparableConv2D"),
    "embedding/embeddings": ((11, 6), (1,), "Embedding"),
    "attention/query/kernel": ((6, 2, 3), (0,), "EinsumDense"),
    "attention/query/bias": ((2, 3), (0, 1), "EinsumDense"),
    "attention/key/kernel": ((6, 2, 3), (0,), "EinsumDense"),
    "attention/key/bias": ((2, 3), (0, 1), "EinsumDense"),
    "attention/value/kernel": ((6, 2, 3), (0,), "EinsumDense"),
    "attention/value/bias": ((2, 3), (0, 1), "EinsumDense"),
    "attention/attention_output/kernel": ((2, 3, 6), (0, 1), "EinsumDense"),
    "attention/attention_output/bias": ((6,), (0,), "EinsumDense"),
    "einsum/kernel": ((6, 2, 3), (0,), "EinsumDense"),
    "einsum/bias": ((2, 3), (0, 1), "EinsumDense"),
    "lstm/lstm_cell/kernel": ((6, 20), (0,), "LSTMCell"),
    "lstm/lstm_cell/recurrent_kernel": ((5, 20), (0,), "LSTMCell"),
    "lstm/lstm_cell/bias": ((20,), (0,), "LSTMCell"),
    "hidden/kernel": ((10, 3), (0,), "Dense"),
    "hidden/bias": ((3,), (0,), "Dense"),
    "head/kernel": ((3, 2), (0,), "Dense"),
    "head/bias": ((2,), (0,), "Dense"),
}


def test_roles_of_all_kinds_of_layers():
    model = _model()
    bound = bind(model)
    assert {id(v) for v in model.trainable_variables} == set(bound.roles)
    found = {}
    for variable in model.trainable_variables:
        role = bound.roles[id(variable)]
        assert role.path == variable.path
        assert role.layer in variable.path
        assert role.is_output == variable.path.startswith("head/")
        found[role.path] = (tuple(variable.shape), role.unit_axes, role.layer_class)
    assert found == ROLES
    changed = {v.path for v in bound.forward_variables}
    assert changed == {"norm/moving_mean", "norm/moving_variance"}


def test_the_rule_for_unbound_variables():
    """Right where name and rank tell; the documented exceptions are those that they can't."""
    wrong = set()
    for variable in _model().trainable_variables:
        role = unbound_role(variable)
        assert (role.layer, role.layer_class, role.is_output) == (None, None, False)
        assert role.path == variable.path
        if role.unit_axes != ROLES[variable.path][1]:
            wrong.add(variable.path)
    assert wrong == {
        "transposed/kernel",
        "depthwise/kernel",
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
        "einsum/kernel",
    }


def _output_paths(model):
    roles = bind(model).roles.values()
    return {role.path for role in roles if role.is_output}


def test_output_layers_inside_others():
    features = keras.Input((4,))
    head = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")], name="head"
    )
    nested = keras.Model(features, layers.Softmax()(head(layers.Dense(3, name="body")(features))))
    assert _output_paths(nested) == {"head/b/kernel", "head/b/bias"}
    sequence = keras.Input((5, 4))
    cell = "lstm/lstm_cell"
    recurrent = keras.Model(sequence, layers.LSTM(2, name="lstm")(sequence))
    assert _output_paths(recurrent) == {
        f"{cell}/kernel",
        f"{cell}/recurrent_kernel",
        f"{cell}/bias",
    }
    stacked = keras.Sequential([keras.Input((4,)), layers.Dense(3), head, layers.ReLU()])
    assert _output_paths(stacked) == {"head/b/kernel", "head/b/bias"}


def test_several_outputs():
    features = keras.Input((4,))
    x = layers.Dense(3, name="body")(features)
    outputs = [layers.Dense(1, name="left")(x), layers.ReLU()(layers.Dense(1, name="right")(x))]
    assert _output_paths(keras.Model(features, outputs)) == {
        "left/kernel",
        "left/bias",
        "right/kernel",
        "right/bias",
    }


def test_a_subclassed_model_is_read_as_far_as_it_shows():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [layers.Dense(3, name="one"), layers.Dense(2, name="two")]
            self.named = {"last": layers.Dense(1, name="three")}

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.named["last"](x)

    model = Subclassed()
    model(np.ones((1, 4)))
    roles = bind(model).roles.values()
    assert {role.layer for role in roles} == {"one", "two", "three"}
    assert not any(role.is_output for role in roles)


def test_bind_refuses_what_it_cant_read():
    with pytest.raises(TypeError, match=r"must be a keras.Model. Received: model=None"):
        stabilize("sgd").bind(None)
    with pytest.raises(ValueError, match="`model` must be built before it is bound"):
        stabilize("sgd").bind(keras.Sequential([layers.Dense(1)]))


def test_binding_reaches_the_optimizer():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="only")])
    optimizer = stabilize("sgd")
    optimizer.build(model.trainable_variables)
    assert {role.layer for role in optimizer._plan.roles()} == {None}
    optimizer.bind(model)
    assert [(role.layer, role.is_output) for role in optimizer._plan.roles()] == [
        ("only", True)
    ] * 2
