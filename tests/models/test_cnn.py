"""The convolutional classifier: its shape, its first weights, what it does only in training."""

from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import initializers
from gradstab.data import load
from gradstab.models import cnn_classifier


def pixels(shape, number=8, largest=16.0):
    rng = np.random.default_rng(0)
    return rng.uniform(0, largest, (number, *shape)).astype(np.float32)


def kernels(model):
    return {
        variable.path.split("/")[-2]: variable.numpy()
        for variable in model.trainable_variables
        if variable.name == "kernel"
    }


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 2), (28, 28, 1), (48, 40, 3)])
@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_any_image_from_8_by_8_gives_logits(shape, pooling):
    model = cnn_classifier(shape, 5, filters=(4, 8, 8, 16), dense_units=6, pooling=pooling)
    logits = model(pixels(shape)).numpy()
    assert logits.shape == (8, 5)
    assert logits.min() < 0  # not probabilities
    places = 1 if pooling == "average" else int(np.prod(np.ceil(np.array(shape[:2]) / 16)))
    channels = [shape[2], 4, 8, 8, 16]
    weights = sum(9 * before * after + after for before, after in pairwise(channels))
    assert model.count_params() == weights + (16 * places * 6 + 6) + (6 * 5 + 5)


def test_the_network_is_what_it_says():
    model = cnn_classifier((8, 8, 1), 3, filters=(2,), dense_units=4, rescale=(0.5, -1.0), seed=0)
    x = pixels((8, 8, 1), number=2)
    weights = {variable.path: variable.numpy() for variable in model.weights}
    scaled = np.pad(x * 0.5 - 1.0, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(scaled[..., 0], (3, 3), axis=(1, 2))
    convolved = np.einsum("nhwij,ijo->nhwo", windows, weights["conv_1/kernel"][:, :, 0])
    convolved = np.maximum(convolved + weights["conv_1/bias"], 0)
    pooled = convolved.reshape(2, 4, 2, 4, 2, 2).max(axis=(2, 4)).reshape(2, -1)
    hidden = np.maximum(pooled @ weights["dense/kernel"] + weights["dense/bias"], 0)
    expected = hidden @ weights["logits/kernel"] + weights["logits/bias"]
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_he_normal_is_the_default_for_every_kernel():
    model = cnn_classifier((16, 16, 3), 50, seed=1)
    for name, kernel in kernels(model).items():
        fan_in = np.prod(kernel.shape[:-1])
        assert kernel.std() * np.sqrt(fan_in) == pytest.approx(np.sqrt(2), rel=0.1), name


# Regression: one initializer instance gives every layer the same values.
@pytest.mark.parametrize(
    "initializer",
    [
        keras.initializers.RandomNormal(stddev=0.2),
        keras.initializers.RandomNormal(stddev=0.2, seed=3),
        keras.initializers.RandomNormal(stddev=0.2, seed=keras.random.SeedGenerator(3)),
        keras.initializers.serialize(keras.initializers.RandomNormal(stddev=0.2, seed=3)),
    ],
    ids=["no seed", "seed", "generator", "config"],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_one_initializer_gives_independent_layers(initializer, seed):
    def build():
        keras.utils.set_random_seed(5)
        return kernels(
            cnn_classifier(
                (8, 8, 1),
                10,
                filters=(64, 64, 64, 64),
                dense_units=64,
                kernel_initializer=initializer,
                seed=seed,
            )
        )

    first, again = build(), build()
    assert len(first) == 6
    flat = {name: kernel.ravel()[:500] for name, kernel in first.items()}
    for name, kernel in first.items():
        assert np.array_equal(again[name], kernel)
        assert kernel.std() == pytest.approx(0.2, rel=0.1)
        for other in flat:
            if other != name:
                assert abs(np.corrcoef(flat[name], flat[other])[0, 1]) < 0.2


def test_the_seed_decides_the_weights():
    first, again, other = (cnn_classifier((8, 8, 1), 4, seed=seed) for seed in (1, 1, 2))
    for name, kernel in kernels(first).items():
        assert np.array_equal(kernel, kernels(again)[name])
        assert not np.array_equal(kernel, kernels(other)[name])


def test_other_initializers_and_the_regularizer_reach_every_kernel():
    model = cnn_classifier(
        (8, 8, 1), 4, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.5)
    )
    assert all(np.all(kernel == 1) for kernel in kernels(model).values())
    expected = 0.5 * sum(np.sum(kernel**2) for kernel in kernels(model).values())
    assert len(model.losses) == 6
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-6)
    constant = cnn_classifier(
        (8, 8, 1), 4, kernel_initializer=lambda shape, dtype=None: keras.ops.full(shape, 0.25)
    )
    assert all(np.all(kernel == 0.25) for kernel in kernels(constant).values())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "name", ["CriticalNormal", "CriticalUniform", "DeltaOrthogonal", "ConvolutionIdentity", "ZerO"]
)
@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_every_initializer_of_gradstab_makes_its_kernels(name, pooling, tmp_path):
    activation = {"activation": "relu"} if name.startswith("Critical") else {}
    for initializer in (f"gradstab>{name}", getattr(initializers, name)(**activation)):
        model = cnn_classifier(
            (8, 8, 3), 4, filters=(6, 8), dense_units=5, kernel_initializer=initializer,
            pooling=pooling, seed=0,
        )  # fmt: skip
        assert all(np.any(kernel) for kernel in kernels(model).values())
    x = pixels((8, 8, 3))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(model.train_on_batch(x / 16, np.zeros(8, "int32")))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_dense_kernels_beside_initializers_of_convolutions():
    size = {"filters": (6, 8), "dense_units": 5, "pooling": "average", "seed": 0}
    delta = initializers.DeltaOrthogonal(gain=1.5)
    orthogonal = kernels(cnn_classifier((8, 8, 3), 4, kernel_initializer=delta, **size))
    for name, kernel in orthogonal.items():
        matrix = kernel[1, 1].T if name.startswith("conv") else kernel
        np.testing.assert_allclose(
            matrix.T @ matrix, 1.5**2 * np.eye(matrix.shape[1]), atol=1e-5, err_msg=name
        )
    same = initializers.ConvolutionIdentity(gain=2.0)
    identity = kernels(cnn_classifier((8, 8, 3), 4, kernel_initializer=same, **size))
    np.testing.assert_array_equal(identity["conv_2"][1, 1], 2 * np.eye(6, 8))
    np.testing.assert_array_equal(identity["dense"], 2 * np.eye(8, 5))


def test_augmentation_acts_in_training_only():
    shape = (12, 12, 2)
    plain = cnn_classifier(shape, 3, rescale=1 / 16, seed=0)
    model, again = (cnn_classifier(shape, 3, rescale=1 / 16, augment=True, seed=0) for _ in "ab")
    x = pixels(shape, number=32)
    expected = plain(x).numpy()
    # Regression: Keras' random layers act in a plain call unless told otherwise.
    np.testing.assert_array_equal(model(x), expected)
    np.testing.assert_array_equal(model(x, training=False), expected)
    np.testing.assert_array_equal(model.predict(x, verbose=0), plain.predict(x, verbose=0))

    train, train_again = (tf.function(lambda x, m=m: m(x, training=True)) for m in (model, again))
    first, second = train(x).numpy(), train(x).numpy()
    assert not np.allclose(first, expected, atol=1e-3)
    assert not np.allclose(first, second, atol=1e-3)
    np.testing.assert_array_equal(train_again(x), first)


@pytest.mark.parametrize(
    ("augment", "layers"),
    [
        (False, []),
        ({}, []),
        (True, ["flip", "zoom", "shear"]),
        ({"shear": 0.2, "flip": "vertical"}, ["flip", "shear"]),
        ({"zoom": 0.3}, ["zoom"]),
    ],
)
def test_augmentation_does_what_was_chosen(augment, layers):
    model = cnn_classifier((8, 8, 1), 3, augment=augment)
    before_convolution = [layer.name for layer in model.layers if layer.name != "image"]
    assert before_convolution[: before_convolution.index("conv_1")] == layers
    x = pixels((8, 8, 1), number=256)
    for name in layers:
        changed = model.get_layer(name)(x, training=True).numpy()
        assert changed.shape == x.shape
        assert changed.min() >= x.min() - 1e-3
        assert changed.max() <= x.max() + 1e-3
        fraction = np.mean(np.any(changed != x, axis=(1, 2, 3)))
        assert fraction == pytest.approx(0.5, abs=0.15) if name == "flip" else fraction > 0.95


def test_only_flips_run_under_xla():
    x = pixels((8, 8, 1))
    flipping = cnn_classifier((8, 8, 1), 3, augment={"flip": "horizontal"}, seed=0)
    compiled = tf.function(lambda x: flipping(x, training=True), jit_compile=True)
    assert compiled(x).shape == (8, 3)
    # Zoom and shear have no XLA kernel; this is how Keras (and a loop of one's own) learns of it.
    for augment in ({"zoom": 0.1}, {"shear": 0.1}):
        model = cnn_classifier((8, 8, 1), 3, augment=augment)
        assert not all(layer.supports_jit for layer in model.layers)
    assert all(layer.supports_jit for layer in flipping.layers)


@pytest.mark.parametrize("augment", [False, True])
def test_a_saved_model_loads_in_safe_mode(tmp_path, augment):
    model = cnn_classifier(
        (8, 8, 1),
        3,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.2),
        kernel_regularizer="l2",
        rescale=1 / 16,
        augment=augment,
        dropout=0.2,
        seed=4,
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded).__module__.startswith("keras.")
    x = pixels((8, 8, 1))
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_array_equal(loaded.losses, model.losses)
    assert not np.array_equal(loaded(x, training=True), loaded(x))


def test_mixed_precision_keeps_logits_and_pixels_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = cnn_classifier((8, 8, 1), 3, rescale=1 / 16, augment=True)
    assert model.output.dtype == "float32"
    computed = {layer.name: layer.compute_dtype for layer in model.layers}
    assert computed["conv_1"] == computed["dense"] == "float16"
    assert {computed[name] for name in ("rescale", "flip", "zoom", "shear")} == {"float32"}


def test_images_are_channels_last_whatever_keras_is_set_to():
    keras.config.set_image_data_format("channels_first")
    try:
        model = cnn_classifier((8, 12, 1), 3, augment=True, pooling="average")
        assert model.get_layer("pool_1").output.shape == (None, 4, 6, 32)
        assert model(pixels((8, 12, 1)), training=True).shape == (8, 3)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (8, 8)}, ValueError, "`input_shape` must be"),
        ({"input_shape": (None, 8, 1)}, TypeError, r"`input_shape\[0\]`"),
        ({"input_shape": (8, 7, 1)}, ValueError, r"at least \(8, 8, 1\)"),
        ({"input_shape": (8, 8, 0)}, ValueError, r"`input_shape\[2\]`"),
        ({"input_shape": 8}, TypeError, "`input_shape`"),
        ({"num_classes": 1}, ValueError, "`num_classes`"),
        ({"filters": ()}, ValueError, "`filters`"),
        ({"filters": (8, 0)}, ValueError, r"`filters\[1\]`"),
        ({"filters": 8}, TypeError, "`filters`"),
        ({"dense_units": 0}, ValueError, "`dense_units`"),
        ({"rescale": 0}, ValueError, "`rescale`.*1 / 255"),
        ({"rescale": float("nan")}, ValueError, "`rescale`"),
        ({"rescale": True}, TypeError, "`rescale`"),
        ({"rescale": (1.0, 2.0, 3.0)}, ValueError, "`rescale`"),
        ({"rescale": (0.1, float("inf"))}, ValueError, r"`rescale\[1\]`"),
        ({"augment": "flip"}, TypeError, "`augment`"),
        ({"augment": {"rotate": 1}}, ValueError, "'flip', 'zoom', 'shear'"),
        ({"augment": {"zoom": 0}}, ValueError, "zoom"),
        ({"augment": {"flip": "sideways"}}, ValueError, "flip"),
        ({"pooling": "max"}, ValueError, "`pooling`"),
        ({"dropout": 1.0}, ValueError, "`dropout`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"kernel_initializer": None}, TypeError, "`kernel_initializer`"),
        ({"kernel_initializer": "hee"}, ValueError, "hee"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cnn_classifier(**{"input_shape": (8, 8, 1), "num_classes": 3, **arguments})


def test_digits_are_learned_from_the_first_step():
    digits = load("digits")
    model = cnn_classifier(digits.input_shape, 10, rescale=1 / digits.pixel_max, seed=0)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=20,
    )
    model.fit(digits.train, epochs=4, shuffle=False, verbose=0)
    # After 10 epochs it is .94 to .97; four are enough to tell that it learns.
    assert model.evaluate(digits.test, verbose=0)[1] > 0.85
