"""Gradients that are sums, over entries, uses and replicas: none is taken in half precision."""

import warnings

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.callbacks import SharedBlockMonitor
from gradstab.layers import ScaledResidual, SharedBlock

HALVES = [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")]


@pytest.mark.parametrize(("policy", "half"), HALVES)
@pytest.mark.parametrize("method", ["rezero", "fixup"])
def test_gradients_of_scalars_are_sums_in_float32(policy, half, method):
    """In float16 they were infinite from 65504 on, so that a loss scale fell to nothing."""
    x = np.random.default_rng(0).normal(1.0, size=(128, 1024)).astype("float32")
    branch = [keras.layers.Activation("linear", dtype=policy)]
    arguments = {} if method == "rezero" else {"alpha_initializer": "ones"}
    layer = ScaledResidual(
        branch if method == "rezero" else None, method, dtype=policy, **arguments
    )
    inputs = x if method == "rezero" else [x, x]
    layer(inputs)
    scalars = [layer.alpha, *([] if layer.biases is None else [layer.biases])]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(inputs, training=True), "float32"))
    alpha, *biases = tape.gradient(loss, [scalar.value for scalar in scalars])

    rounded = tf.cast(tf.cast(x, half), "float64").numpy()
    assert rounded.sum() > 65504
    assert float(alpha) == pytest.approx(rounded.sum(), rel=1e-5)
    for bias in biases:
        assert float(bias[-1]) == pytest.approx(x.size, rel=1e-5)


@pytest.mark.parametrize("policy", [policy for policy, _ in HALVES])
@pytest.mark.parametrize("mode", checks.MODES)
def test_watching_adds_up_uses_in_the_dtype_of_the_weights(policy, mode):
    """The weights were read in half precision once for all uses, and the sum was rounded to it."""
    x = np.random.default_rng(0).normal(size=(16, 32)).astype("float32")
    block = keras.layers.Dense(32, "tanh", dtype=policy)
    watched, plain = (SharedBlock(block, 12, watch, dtype=policy) for watch in (True, False))
    found = []
    for layer in (watched, plain):
        layer(x)

        def gradients(layer=layer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.cast(layer(x, training=True), "float32") ** 2)
            return tape.gradient(loss, [v.value for v in block.trainable_variables])

        found.append([g.numpy() for g in checks.compiled(gradients, mode)()])
    for with_notes, without in zip(*found, strict=True):
        assert with_notes.dtype == np.float32
        # float16 and bfloat16 round to 5e-4 and 4e-3.
        np.testing.assert_allclose(
            with_notes, without, rtol=1e-5, atol=1e-5 * np.abs(without).max()
        )


def test_replicas_that_see_different_examples_give_the_norms_of_the_whole_batch():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(16, 4)).astype("float32"), draw.normal(size=(16, 1)).astype("float32")

    def norms():
        keras.utils.set_random_seed(0)
        shared = SharedBlock(keras.layers.Dense(4, "tanh"), 3)
        model = keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        found = shared.use_gradients()
        return np.concatenate([found.norms.ravel(), found.total])

    with checks.mirrored(2).scope():
        on_two = norms()
    alone = norms()
    np.testing.assert_allclose(on_two, alone, rtol=1e-5)
    assert (alone > 0).all()


def test_norms_are_divided_by_the_scale_of_the_very_step():
    """Between two looks the scale doubles and the step that is seen was taken with the old one."""
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    keras.utils.set_random_seed(0)
    block = keras.layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((4,)), SharedBlock(block, 2), keras.layers.Dense(1)])
    inner = keras.optimizers.SGD(0.0)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)
    model.compile(scaled, "mse", steps_per_execution=2)
    monitor = SharedBlockMonitor(every_n_steps=1)
    data = tf.data.Dataset.from_tensors((x, x[:, :1])).repeat(12)
    model.fit(data, shuffle=False, verbose=0, callbacks=[monitor])
    assert float(scaled.dynamic_scale.numpy()) > 8
    seen = [next(iter(found.values())).norms for _, found in monitor.history]
    assert len(seen) == 6
    for norms in seen[1:]:
        np.testing.assert_allclose(norms, seen[0], rtol=1e-5)
    assert seen[0].max() < 8  # of the loss itself, not of eight times it


@keras.saving.register_keras_serializable("gradstab_tests")
class Composite(keras.layers.Layer):
    """Made of another layer, without `build` and `compute_output_shape`, as people do."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units, "tanh")

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaledResidual(Composite(4), alpha_initializer="ones"),
        lambda: ScaledResidual([Composite(8), Composite(4)], alpha_initializer="ones"),
        lambda: ScaledResidual(Composite(6), projection="auto", alpha_initializer="ones"),
        lambda: ScaledResidual(Composite(6), projection=Composite(6), alpha_initializer="ones"),
        lambda: SharedBlock(Composite(4), 3),
        lambda: SharedBlock([Composite(8), Composite(4)], 3),
    ],
    ids=["branch", "list", "auto", "projection", "shared", "shared list"],
)
def test_layers_without_a_build_of_their_own_are_built_trained_and_saved(make, tmp_path):
    layer = make()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])
    inside = [v for v in layer.trainable_variables if v.path.endswith("kernel")]
    assert inside  # made with the model, not in its first step
    before = checks.values_of(inside)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(x, x[:, :1], verbose=0)
    for old, new in zip(before, checks.values_of(inside), strict=True):
        assert np.abs(new - old).max() > 0
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        # Keras says this of every such layer that it loads, in a plain Sequential too.
        warnings.filterwarnings("ignore", r"`build\(\)` was called on layer")
        loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
