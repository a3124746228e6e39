"""ScaledResidual: what each method begins as, what it takes, how it is saved and trained."""

import common_checks as checks
import keras
import numpy as np
import pytest

from gradstab.layers import ScaledResidual

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


def dense(units=6, **kwargs):
    return keras.layers.Dense(units, **kwargs)


def branch(**kwargs):
    return [dense(10, activation="relu", **kwargs), dense(6, **kwargs)]


def net(method, kind=list, depth=3, num_branches=3):
    def make():
        layers = branch()
        return layers if kind is list else keras.Sequential(layers)

    blocks = [ScaledResidual(make(), method, num_branches) for _ in range(depth)]
    return keras.Sequential([keras.Input((6,)), *blocks, dense(1, name="head")])


def trained(model, **arguments):
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **arguments)
    model.fit(X, X[:, :1], batch_size=4, shuffle=False, verbose=0, epochs=2)
    return model


def flattened(model):
    return [layer for layer in model.layers if isinstance(layer, ScaledResidual)]


# What it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rezero", "skipinit", "fixup"])
@pytest.mark.parametrize("kind", [list, keras.Sequential])
def test_every_block_begins_as_the_identity(method, kind):
    for block in flattened(net(method, kind)):
        np.testing.assert_array_equal(block(X), X)
        assert float(block.alpha) == (method == "fixup")


@pytest.mark.parametrize("kind", [list, keras.Sequential, "model"])
def test_the_output_is_the_shortcut_and_alpha_times_the_branch(kind):
    layers = branch()
    inner = layers
    if kind == "model":
        inputs = keras.Input((6,))
        inner = keras.Model(inputs, layers[1](layers[0](inputs)))
    elif kind is keras.Sequential:
        inner = keras.Sequential(layers)
    block = ScaledResidual(inner, alpha_initializer=keras.initializers.Constant(0.7))
    got = block(X)
    first, second = (layer.kernel.numpy() for layer in layers)
    expected = X + 0.7 * (np.maximum(X @ first, 0) @ second)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_fixup_adds_a_scalar_before_each_kernel_and_activation_and_at_the_end():
    first, second = dense(10, use_bias=False), dense(6, use_bias=False)
    block = ScaledResidual([first, keras.layers.ReLU(), second], "fixup", num_branches=4)
    block.build((None, 6))
    assert block.biases.shape == (4,)
    one, two, three, four = biases = np.array([0.3, -0.2, 0.5, 0.7], "float32")
    block.biases.assign(biases)
    block.alpha.assign(1.5)
    second.kernel.assign(np.random.default_rng(1).normal(size=(10, 6)))
    hidden = np.maximum((X + one) @ first.kernel.numpy() + two, 0)
    expected = X + 1.5 * ((hidden + three) @ second.kernel.numpy()) + four
    np.testing.assert_allclose(block(X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(("number", "length", "factor"), [(50, 2, 0.02**0.5), (16, 3, 0.5)])
def test_fixup_draws_kernels_by_depth(number, length, factor, built):
    layers = [dense(300, use_bias=False) for _ in range(length)]
    if built:
        for layer in layers:
            layer.build((None, 300))
    block = ScaledResidual(layers, "fixup", num_branches=number)
    block.build((None, 300))
    for layer in layers[:-1]:
        deviation = layer.kernel.numpy().std()
        np.testing.assert_allclose(deviation, (2 / 300) ** 0.5 * factor, rtol=0.02)
    assert not layers[-1].kernel.numpy().any()
    if length == 3:
        assert not np.array_equal(layers[0].kernel.numpy(), layers[1].kernel.numpy())


def test_called_on_two_tensors_it_adds_like_keras_add():
    block = ScaledResidual(alpha_initializer="ones")
    np.testing.assert_allclose(block([X, 2 * X]), 3 * X, rtol=1e-6)
    assert [v.name for v in block.trainable_variables] == ["alpha"]
    inputs = keras.Input((6,))
    outputs = ScaledResidual(method="fixup")([inputs, dense()(inputs)])
    assert outputs.shape == (None, 6)
    assert keras.Model(inputs, outputs)(X).shape == (8, 6)


# Shapes, masks, training --------------------------------------------------------------------------


def test_auto_projection_changes_channels_and_strides():
    conv = keras.layers.Conv2D(5, 3, strides=2, padding="same")
    block = ScaledResidual([conv], projection="auto")
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype("float32")
    got = block(x)
    kernel = next(v for v in block.trainable_variables if tuple(v.shape) == (3, 5)).numpy()
    np.testing.assert_allclose(got, x[:, ::2, ::2] @ kernel, rtol=1e-5, atol=1e-6)
    assert block.compute_output_shape(x.shape) == got.shape == (2, 4, 4, 5)
    same = ScaledResidual([dense()], projection="auto")
    np.testing.assert_array_equal(same(X), X)
    assert len(same.trainable_variables) == 3


def test_a_projection_of_ones_own():
    projection = dense(4, name="mine")
    block = ScaledResidual([dense(4)], projection=projection)
    np.testing.assert_allclose(block(X), projection(X), rtol=1e-6)


def test_shapes_that_differ_are_refused_with_the_fix():
    with pytest.raises(ValueError, match='Give `projection="auto"`'):
        ScaledResidual([dense(4)])(X)
    with pytest.raises(ValueError, match='Give `projection="auto"`'):
        ScaledResidual([dense(4)], projection=dense(5))(X)
    with pytest.raises(ValueError, match='Give `projection="auto"`'):
        ScaledResidual()([X, X[:, :2]])


def test_training_reaches_the_branch():
    block = ScaledResidual([keras.layers.Dropout(0.5, seed=0)], alpha_initializer="ones")
    np.testing.assert_array_equal(block(X, training=False), 2 * X)
    assert (np.asarray(block(X, training=True)) == X).any()


@pytest.mark.parametrize("method", ["rezero", "fixup"])
def test_masks_reach_the_branch_and_go_on(method):
    """A recurrent branch keeps its state where the mask is off."""
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 1]])
    embedding = keras.layers.Embedding(4, 3, mask_zero=True)
    recurrent = keras.layers.SimpleRNN(3, return_sequences=True)
    last = dense(3, kernel_initializer="identity")
    block = ScaledResidual([recurrent, last], method, 1, alpha_initializer="ones")
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, [block(embedding(inputs)), embedding(inputs)])
    recurrent.cell.kernel.assign(np.ones((3, 3)))
    last.kernel.assign(np.eye(3))
    outputs, shortcut = model(tokens)
    change = np.asarray(outputs - shortcut)[0]
    np.testing.assert_allclose(change[2], change[1], rtol=1e-5)
    assert np.abs(change[1] - change[0]).max() > 1e-4
    mask = np.array([[True, False]])
    np.testing.assert_array_equal(block.compute_mask(None, mask), mask)
    assert block.compute_mask(None, [mask, None]) is mask


# Saved and trained --------------------------------------------------------------------------------


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("method", "kind"), [("fixup", list), ("rezero", keras.Sequential), ("fixup", keras.Sequential)]
)
def test_model_files_weights_files_and_clones(method, kind, tmp_path):
    model = trained(net(method, kind, depth=2), run_eagerly=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for one in (loaded, model):
        one.train_on_batch(X, X[:, :1])
    checks.close(loaded.trainable_variables, model.trainable_variables)
    model.save_weights(tmp_path / "own.weights.h5")
    clone = keras.models.clone_model(model)
    for block in flattened(clone):
        np.testing.assert_array_equal(block(X), X)
    clone.load_weights(tmp_path / "own.weights.h5")
    np.testing.assert_array_equal(clone.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_built_projection_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((6,)), ScaledResidual([dense(4)], projection="auto")])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    assert np.abs(np.asarray(model(X))).max() > 0


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"branch": branch(), "method": "fixup", "num_branches": 7},
        {"branch": keras.Sequential([dense()]), "projection": "auto"},
        {"branch": dense(), "projection": dense(), "alpha_initializer": "ones"},
    ],
)
def test_config_round_trip(arguments):
    block = ScaledResidual(**arguments)
    again = ScaledResidual.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    assert again.get_config()["method"] == arguments.get("method", "rezero")
    assert keras.saving.get_registered_name(ScaledResidual) == "gradstab>ScaledResidual"


def test_eager_graph_and_xla_train_alike():
    runs = []
    for arguments in ({"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}):
        keras.utils.set_random_seed(2)
        runs.append(trained(net("fixup", depth=1), **arguments).trainable_variables)
    checks.close(runs[1], runs[0], 1e-5)
    checks.close(runs[2], runs[0], 1e-5)
    assert all(np.abs(v.numpy()).max() > 0 for v in runs[0] if v.name == "alpha")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    half = policy.removeprefix("mixed_")
    model = net("fixup", depth=1)
    block = model.layers[0]
    assert block.alpha.dtype == (half if policy == half else "float32")
    assert keras.backend.standardize_dtype(model(X).dtype) == half
    np.testing.assert_array_equal(np.float32(block(X)), np.float32(keras.ops.cast(X, half)))
    trained(model)
    assert float(block.alpha) != 1
    assert np.isfinite(float(block.alpha))


def test_two_replicas_train_as_one():
    keras.utils.set_random_seed(2)
    alone = trained(net("fixup", depth=1))
    with checks.mirrored(2).scope():
        keras.utils.set_random_seed(2)
        model = net("fixup", depth=1)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    model.fit(X, X[:, :1], batch_size=4, shuffle=False, verbose=0, epochs=2)
    checks.close(model.trainable_variables, alone.trainable_variables, 1e-5)


def test_a_seed_of_the_old_initializer_is_kept():
    kernels = []
    for _ in range(2):
        layers = branch(kernel_initializer=keras.initializers.HeNormal(seed=5))
        ScaledResidual(layers, "fixup", num_branches=3).build((None, 6))
        kernels.append(layers[0].kernel.numpy())
    np.testing.assert_array_equal(*kernels)


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"branch": [np.tanh]}, TypeError, "`branch` must be a keras.Layer"),
        ({"branch": []}, TypeError, "`branch` must be a keras.Layer"),
        ({"method": "re-zero"}, ValueError, "`method` must be one of"),
        ({"projection": "linear"}, TypeError, "`projection` must be None"),
        ({"num_branches": 0}, ValueError, "`num_branches` must be a positive integer"),
        ({"branch": branch(), "method": "fixup"}, ValueError, "`num_branches` must be"),
        (
            {"branch": [keras.layers.ReLU()], "method": "fixup", "num_branches": 2},
            ValueError,
            "must hold a layer with a kernel",
        ),
    ],
)
def test_bad_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words):
        ScaledResidual(**arguments)


def test_calls_that_do_not_fit_the_way_it_was_made():
    with pytest.raises(ValueError, match=r"must be called on \[shortcut, branch\]"):
        ScaledResidual()(X)
    with pytest.raises(ValueError, match="must be called on one tensor"):
        ScaledResidual([dense()])([X, X])
