"""The Keras initializers under our name: the same classes, with the variances that we document."""

import keras
import numpy as np
import pytest

from gradstab import initializers


def test_the_names_of_keras_are_its_own_classes():
    shared = [name for name in initializers.__all__ if hasattr(keras.initializers, name)]
    assert len(shared) == 16
    for name in shared:
        assert getattr(initializers, name) is getattr(keras.initializers, name)


# A 3x3 convolution from 64 to 128 channels, so that the fans and their mean all differ.
FAN_IN, FAN_OUT = 3 * 3 * 64, 3 * 3 * 128


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("HeNormal", 2 / FAN_IN),
        ("HeUniform", 2 / FAN_IN),
        ("GlorotNormal", 2 / (FAN_IN + FAN_OUT)),
        ("GlorotUniform", 2 / (FAN_IN + FAN_OUT)),
        ("LecunNormal", 1 / FAN_IN),
        ("LecunUniform", 1 / FAN_IN),
    ],
)
def test_documented_variance(name, variance):
    values = getattr(initializers, name)(seed=1)((3, 3, 64, 128))
    values = keras.ops.convert_to_numpy(values)

    # The standard error of a variance from 73,728 values is at most 0.5 %.
    assert values.var() == pytest.approx(variance, rel=0.025)
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)


def test_orthogonal_keeps_lengths():
    kernel = keras.ops.convert_to_numpy(initializers.Orthogonal(gain=2.0, seed=1)((48, 32)))
    np.testing.assert_allclose(kernel.T @ kernel, 4.0 * np.eye(32), atol=1e-5)


# Every initializer of ours, with a shape that it makes, and whether chance is in it ---------------

OURS = {
    "CriticalNormal": (lambda seed: initializers.CriticalNormal("tanh", seed=seed), True),
    "CriticalUniform": (lambda seed: initializers.CriticalUniform("relu", 0.5, seed=seed), True),
    "DeltaOrthogonal": (lambda seed: initializers.DeltaOrthogonal(1.5, seed=seed), True),
    "ConvolutionIdentity": (lambda seed: initializers.ConvolutionIdentity(2.0), False),
    "ZerO": (lambda seed: initializers.ZerO(), False),
}
SHAPE = (3, 3, 4, 8)


def _array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def test_the_table_holds_all_of_ours():
    ours = {
        name
        for name in initializers.__all__
        if isinstance(getattr(initializers, name), type)
        and issubclass(getattr(initializers, name), keras.initializers.Initializer)
        and not hasattr(keras.initializers, name)
    }
    assert ours == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_round_trip_gives_the_same_values(name):
    make, _ = OURS[name]
    initializer = make(7)
    config = keras.initializers.serialize(initializer)
    assert config["registered_name"] == f"gradstab>{name}"
    again = keras.initializers.deserialize(config)
    assert again.get_config() == initializer.get_config()
    np.testing.assert_array_equal(_array(again(SHAPE)), _array(initializer(SHAPE)))
    for argument in initializer.get_config():
        assert hasattr(initializer, argument)


@pytest.mark.parametrize("name", OURS)
def test_it_can_be_named_by_a_string(name):
    layer = keras.layers.Conv2D(8, 3, kernel_initializer=f"gradstab>{name}")
    layer.build((None, 5, 5, 4))
    assert type(layer.kernel_initializer).__name__ == name
    assert np.isfinite(_array(layer.kernel)).all()
    assert _array(layer.kernel).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", OURS)
def test_every_dtype_holds_the_rounded_float32_values(name, dtype):
    make, _ = OURS[name]
    values = make(3)(SHAPE, dtype)
    assert keras.backend.standardize_dtype(values.dtype) == dtype
    expected = keras.ops.cast(make(3)(SHAPE, "float32"), dtype)
    np.testing.assert_array_equal(_array(values), _array(expected))


@pytest.mark.parametrize("name", [name for name, (_, chance) in OURS.items() if chance])
def test_seeds_and_reuse_follow_keras(name):
    make, _ = OURS[name]
    fixed, other = make(3), make(4)
    np.testing.assert_array_equal(_array(fixed(SHAPE)), _array(fixed(SHAPE)))
    assert not np.array_equal(_array(fixed(SHAPE)), _array(other(SHAPE)))
    moving = make(keras.random.SeedGenerator(3))
    assert not np.array_equal(_array(moving(SHAPE)), _array(moving(SHAPE)))
    unseeded = make(None)
    np.testing.assert_array_equal(_array(unseeded(SHAPE)), _array(unseeded(SHAPE)))


def test_a_saved_model_loads(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 4))]
        + [
            keras.layers.Conv1D(4, 3, padding="same", kernel_initializer=make(1))
            for make, _ in OURS.values()
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for layer, loaded in zip(model.layers, again.layers, strict=True):
        assert type(layer.kernel_initializer) is type(loaded.kernel_initializer)
        np.testing.assert_array_equal(_array(layer.kernel), _array(loaded.kernel))


def test_an_activation_that_keras_can_not_save_is_named():
    with pytest.raises(ValueError, match=r"must be one that Keras can save.*tanh"):
        initializers.CriticalNormal(np.tanh).get_config()
    layer = initializers.CriticalNormal(keras.layers.LeakyReLU(0.5), seed=1)
    again = keras.initializers.deserialize(keras.initializers.serialize(layer))
    assert again.weight_variance == layer.weight_variance == pytest.approx(2 / 1.25)


def test_a_single_weight_has_one_input():
    assert _array(initializers.CriticalNormal("relu", seed=1)(())).shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: initializers.DeltaOrthogonal(gain=0.0), "`gain` must be a positive float"),
        (lambda: initializers.DeltaOrthogonal(gain="1"), "`gain` must be a positive float"),
        (lambda: initializers.DeltaOrthogonal()((3, 3, 8, 4)), "at least as many outputs"),
        (
            lambda: initializers.DeltaOrthogonal(transposed=True)((3, 3, 4, 8)),
            "at least as many outputs",
        ),
        (lambda: initializers.DeltaOrthogonal()((8, 8)), "For a dense kernel use Orthogonal"),
        (lambda: initializers.ConvolutionIdentity(groups=0), "`groups` must be"),
        (lambda: initializers.ConvolutionIdentity(groups=3)((3, 4, 8)), "must divide the outputs"),
        (lambda: initializers.ZerO()((8,)), "makes a dense kernel"),
        (lambda: initializers.CriticalNormal("tanh", fixed_point=0.0), "`fixed_point` must be"),
        (lambda: initializers.CriticalNormal("sigmoid"), "it has one at fixed_point=64"),
        (lambda: initializers.CriticalNormal("softplus"), "use `lsuv`"),
        (lambda: initializers.CriticalNormal("tanh", input_axes=(4,))((3, 3)), "`input_axes`"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
