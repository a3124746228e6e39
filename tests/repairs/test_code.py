"""Code of Keras objects is what a person writes: what is not the default, and no more."""

import keras
import pytest

import gradstab
from gradstab.repairs.code import code_of


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (lambda: keras.layers.Dense(3, activation="relu", name="x"),
         'keras.layers.Dense(3, activation="relu")'),
        (lambda: keras.layers.Conv2D(4, 3, padding="same"),
         'keras.layers.Conv2D(4, kernel_size=(3, 3), padding="same")'),
        (lambda: keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(0.1)),
         "keras.layers.Dense(3, kernel_initializer=Constant(value=0.1))"),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9),
         "keras.optimizers.SGD(learning_rate=0.1, momentum=0.9)"),
        (lambda: keras.optimizers.Adam(1e-3), "keras.optimizers.Adam()"),
    ],
)  # fmt: skip
def test_code(thing, expected):
    assert code_of(thing()) == expected


def test_what_it_says_makes_the_same_again():
    layer = keras.layers.Dense(3, activation="tanh", kernel_initializer="he_normal", use_bias=False)
    again = eval(
        code_of(layer).replace("kernel_initializer=HeNormal()", "kernel_initializer='he_normal'")
    )
    for name in ("units", "activation", "use_bias"):
        assert again.get_config()[name] == layer.get_config()[name]


def test_changes_show():
    assert 'activation="sigmoid"' in code_of(keras.layers.Dense(1), {"activation": "sigmoid"})


def test_gradstab_s_own_layers_have_their_name():
    assert code_of(gradstab.layers.ScaledResidual([keras.layers.Dense(2)])).startswith(
        "ScaledResidual("
    )
