"""Block RMS and AGC: published values, NumPy, and the units of every kind of layer."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.functional.units import clip_units, unit_norms
from gradstab.optimizers.model.binding import bind, unbound_role

layers = keras.layers
SMALL = [[500.0, 5.0], [300.0, 3.0]]


def _updates(transform, gradients, weights, model=None, mode="eager"):
    """What SGD at rate 1 takes off each weight, once the transform has seen its gradient."""
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [transform])
    optimizer.build(weights)
    if model is not None:
        optimizer.bind(model)
    before = checks.values_of(weights)
    step, _ = checks.stepper(optimizer, weights, mode)
    step(*gradients)
    after = checks.values_of(weights)
    return [old - new for old, new in zip(before, after, strict=True)], optimizer


def _pairs(gradients, weights):
    return [tf.constant(g, "float32") for g in gradients], [keras.Variable(w) for w in weights]


def test_block_rms():
    gradients, weights = _pairs(SMALL, [np.zeros(2)] * 2)
    changes, optimizer = _updates(transforms.ClipByBlockRMS(1.0), gradients, weights)
    for change, gradient, rms in zip(changes, SMALL, (353.57107, 212.14264), strict=True):
        np.testing.assert_allclose(change, np.array(gradient) / rms, rtol=1e-6)
    assert optimizer.telemetry.peek().clipped.tolist() == [True]
    gradients = checks.make_gradients()
    weights = [keras.Variable(np.zeros(g.shape)) for g in gradients]
    changes, _ = _updates(transforms.ClipByBlockRMS(0.9), gradients, weights)
    expected = references.clip_by_block_rms(gradients, 0.9)
    for change, value in zip(changes, expected, strict=True):
        np.testing.assert_allclose(change, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("ratio", "share"), [(1.0, 1.0), (0.01, 0.01)])
def test_agc_of_vectors(ratio, share):
    gradients, weights = _pairs(SMALL, [[1.0, 2.0], [3.0, 4.0]])
    clip = transforms.AdaptiveGradientClipping(ratio)
    changes, _ = _updates(clip, gradients, weights)
    np.testing.assert_allclose(changes[0], share * np.array([2.23595618, 0.02235956]), 1e-6, 2e-7)
    np.testing.assert_allclose(changes[1], share * np.array([4.99975, 0.0499975]), 1e-6, 5e-7)


def test_agc_of_a_kernel_and_of_zero_weights():
    gradients, weights = _pairs([[[1.0, 2.0], [3.0, 4.0]]], [np.ones((2, 2))])
    (change,), _ = _updates(transforms.AdaptiveGradientClipping(1.0), gradients, weights)
    expected = [[0.4472136, 0.63245553], [1.34164079, 1.26491106]]
    np.testing.assert_allclose(change, expected, rtol=1e-6)
    gradients, weights = _pairs([np.ones(4)], [np.zeros(4)])
    (change,), _ = _updates(transforms.AdaptiveGradientClipping(0.01), gradients, weights)
    np.testing.assert_allclose(change, np.full(4, 5e-6), rtol=1e-5)


def test_units_of_a_conv3d_kernel_over_three_axes():
    kernel, gradient = np.ones((2, 2, 2, 3, 4), "float32"), np.full((2, 2, 2, 3, 4), 2.0, "float32")
    clipped, did = clip_units(gradient, 0.5 * unit_norms(kernel, (0, 1, 2)), (0, 1, 2))
    np.testing.assert_allclose(clipped, np.full(gradient.shape, 0.5), rtol=1e-6)
    assert bool(did)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unit_norms_do_not_overflow(dtype):
    large = 6e4 if dtype == "float16" else 1e30
    norms = unit_norms(np.array([[large, 0.0], [large, 3.0]], dtype), (0,)).numpy()
    np.testing.assert_allclose(norms, [[large * 2**0.5, 3.0]], rtol=1e-3)
    clipped, _ = clip_units(np.array([[np.nan, 5.0], [1.0, 0.0]], "float32"), 1.0, (0,))
    np.testing.assert_array_equal(clipped, np.array([[np.nan, 1.0], [1.0, 0.0]], "float32"))


def _model():
    image, words = keras.Input((6, 6, 3)), keras.Input((4,), dtype="int32")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2DTranspose(3, 2, name="transposed")(x)
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(4, 2, name="separable")(x)
    x = layers.Reshape((-1, 4))(x)
    x = layers.Conv1DTranspose(4, 2, name="transposed1d")(layers.Conv1D(3, 2, name="conv1d")(x))
    y = layers.Embedding(5, 4, name="embedding")(words)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = layers.LayerNormalization(axis=(1, 2), name="gains")(y)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 2), bias_axes="de", name="einsum")(y)
    y = layers.GRU(3, name="gru")(layers.LSTM(3, return_sequences=True, name="lstm")(
        layers.Reshape((4, 4))(y)))  # fmt: skip
    z = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), y])
    z = layers.Reshape((1, 1, 1, 7))(z)
    z = layers.Conv3DTranspose(4, 1, name="transposed3d")(layers.Conv3D(3, 1, name="conv3d")(z))
    z = layers.Flatten()(z)
    return keras.Model([image, words], layers.Dense(2, name="head")(z))


# Axes of one unit, by the end of a path; written from the layers' own documentation of kernels.
AXES = {
    "conv/kernel": (0, 1, 2),
    "transposed/kernel": (0, 1, 3),
    "depthwise/kernel": (0, 1),
    "separable/depthwise_kernel": (0, 1),
    "separable/pointwise_kernel": (0, 1, 2),
    "conv1d/kernel": (0, 1),
    "transposed1d/kernel": (0, 2),
    "conv3d/kernel": (0, 1, 2, 3),
    "transposed3d/kernel": (0, 1, 2, 4),
    "embedding/embeddings": (1,),
    "query/kernel": (0,),
    "key/kernel": (0,),
    "value/kernel": (0,),
    "attention_output/kernel": (0, 1),
    "gains/gamma": (0, 1),
    "gains/beta": (0, 1),
    "einsum/kernel": (0,),
    "lstm_cell/kernel": (0,),
    "lstm_cell/recurrent_kernel": (0,),
    "gru_cell/kernel": (0,),
    "gru_cell/recurrent_kernel": (0,),
    "head/kernel": (0,),
}


def test_agc_of_every_kind_of_layer_and_not_of_the_output():
    model = _model()
    weights = model.trainable_variables
    draw = np.random.default_rng(4)
    gradients = [tf.constant(draw.normal(size=w.shape), "float32") for w in weights]
    before = checks.values_of(weights)
    clip = transforms.AdaptiveGradientClipping(0.1)
    changes, _ = _updates(clip, gradients, weights, model, mode="graph")
    for weight, start, gradient, change in zip(weights, before, gradients, changes, strict=True):
        end = "/".join(weight.path.split("/")[-2:])
        axes = AXES.get(end, tuple(range(len(weight.shape))))
        assert end in AXES or len(weight.shape) == 1 or "bias" in end, end
        expected = references.adaptive_clip(start, gradient, 0.1, 1e-3, axes)
        if end.startswith("head/"):
            expected = gradient.numpy()
        np.testing.assert_allclose(change, expected, rtol=2e-4, atol=1e-6, err_msg=weight.path)


def test_the_roles_of_gains_of_rank_two():
    model = _model()
    roles = bind(model).roles
    for variable in model.trainable_variables:
        if variable.path.startswith("gains/"):
            assert roles[id(variable)].unit_axes == (0, 1)
            assert unbound_role(variable).unit_axes == (0, 1)


@pytest.mark.parametrize(
    ("exclude", "clipped"),
    [
        ("output", ["body/kernel", "body/bias"]),
        (None, ["body/kernel", "body/bias", "head/kernel", "head/bias"]),
        ((), ["body/kernel", "body/bias", "head/kernel", "head/bias"]),
        ("*/bias", ["body/kernel", "head/kernel"]),
        (["output", "*/bias"], ["body/kernel"]),
    ],
)
def test_what_is_exempt(exclude, clipped):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name="body"), layers.Dense(2, name="head")],
        name="sequential",
    )
    weights = model.trainable_variables
    clip = transforms.AdaptiveGradientClipping(0.01, exclude=exclude)
    gradients = [tf.ones(w.shape) for w in weights]
    changes, _ = _updates(clip, gradients, weights, model)
    found = [
        w.path.removeprefix("sequential/")
        for w, change in zip(weights, changes, strict=True)
        if change.max() < 0.9
    ]
    assert found == clipped


def test_without_binding_the_output_is_not_known():
    gradients, weights = _pairs([np.ones((3, 2))], [np.ones((3, 2))])
    (change,), _ = _updates(transforms.AdaptiveGradientClipping(0.01), gradients, weights)
    np.testing.assert_allclose(change, np.full((3, 2), 0.01), rtol=1e-4)


def test_bad_arguments_of_agc():
    with pytest.raises(ValueError, match=r"`clip_factor` must be a positive float\. Received: "):
        transforms.AdaptiveGradientClipping(-1)
    with pytest.raises(ValueError, match=r"`epsilon` must be a positive float\. Received: "):
        transforms.AdaptiveGradientClipping(epsilon=0)
    with pytest.raises(TypeError, match=r"`exclude` must be a pattern .* Received: exclude=3"):
        transforms.AdaptiveGradientClipping(exclude=3)
    with pytest.raises(ValueError, match="`max_rms` must be a positive float"):
        transforms.ClipByBlockRMS(0.0)
    clip = transforms.AdaptiveGradientClipping(exclude="hed/*")
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [clip])
    with pytest.warns(UserWarning, match=r"`exclude` holds a pattern .*'hed/\*'.*kernel"):
        optimizer.build(checks.make_variables())
