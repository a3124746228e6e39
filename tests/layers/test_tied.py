"""TiedDense: one kernel with two uses, however the model is made, saved and trained."""

import zipfile

import common_checks as checks
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab.layers import TiedDense, tie_weights
from gradstab.layers._sources import all_layers

X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
TOKENS = np.random.default_rng(1).integers(0, 7, size=(16, 5))


def flat():
    code = keras.layers.Dense(4, "tanh", name="code", kernel_regularizer="l2")
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, name="between")(code(inputs))
    return keras.Model(inputs, TiedDense(code, name="tied")(hidden))


def sequential():
    code = keras.layers.Dense(4, "tanh", name="code")
    return keras.Sequential([keras.Input((6,)), code, TiedDense(code, name="tied")])


def nested():
    code = keras.layers.Dense(4, "tanh", name="code")
    encoder = keras.Sequential([keras.Input((6,)), code], name="encoder")
    hidden = keras.Input((4,))
    decoder = keras.Model(hidden, TiedDense(code, name="tied")(hidden), name="decoder")
    inputs = keras.Input((6,))
    return keras.Model(inputs, decoder(encoder(inputs)))


@keras.saving.register_keras_serializable("test_tied")
class Subclassed(keras.Model):
    """Its attributes are visited in the order of their names: the tied layer first."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.last = keras.layers.Dense(4, "tanh", name="code")
        self.first = TiedDense(self.last, name="tied")

    def call(self, x):
        return self.first(self.last(x))


def subclassed():
    model = Subclassed()
    model(X)
    return model


MODELS = (flat, sequential, nested, subclassed)


def find(model, name):
    return next(layer for layer in all_layers(model) if layer.name == name)


def is_shared(model):
    return find(model, "tied").tied_to is find(model, "code")


def trained(make, optimizer=None, **arguments):
    keras.utils.set_random_seed(3)
    model = make()
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **arguments)
    model.fit(X, X, batch_size=4, shuffle=False, verbose=0)
    return model


# What it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
def test_output_is_input_times_transposed_kernel(use_bias):
    code = keras.layers.Dense(4)
    code.build((None, 6))
    tied = TiedDense(code, activation="tanh", use_bias=use_bias, bias_initializer="ones")
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    expected = np.tanh(x @ code.kernel.numpy().T + use_bias)
    np.testing.assert_allclose(tied(x), expected, rtol=1e-5, atol=1e-6)
    assert tied.compute_output_shape((3, None, 4)) == (3, None, 6)
    assert len(tied.weights) == use_bias


def test_an_embedding_gives_logits():
    embedding = keras.layers.Embedding(7, 3)
    x = embedding(TOKENS)
    logits = TiedDense(embedding, use_bias=False)(x)
    table = embedding.embeddings.numpy()
    np.testing.assert_allclose(logits, table[TOKENS] @ table.T, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_the_sum_of_both_uses():
    """The same net with two kernels of equal values, by hand."""
    model = nested()
    kernel, bias, last = (v.numpy() for v in model.trainable_variables)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X) - X) ** 2)
    got = tape.gradient(loss, find(model, "code").kernel.value)
    first, second = tf.Variable(kernel), tf.Variable(kernel)
    with tf.GradientTape() as tape:
        outputs = tf.matmul(tf.tanh(X @ first + bias), second, transpose_b=True) + last
        loss = tf.reduce_mean((outputs - X) ** 2)
    one, other = tape.gradient(loss, [first, second])
    assert min(np.abs(one).max(), np.abs(other).max()) > 1e-3
    np.testing.assert_allclose(got, one + other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", MODELS)
def test_the_kernel_is_one_weight_with_one_penalty(make):
    model = make()
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    assert sum(shape in {(6, 4), (4, 6)} for shape in shapes) == 1
    if make is flat:
        kernel = find(model, "code").kernel.numpy()
        np.testing.assert_allclose(sum(model.losses), 0.01 * (kernel**2).sum(), rtol=1e-5)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    moments = [v for v in model.optimizer.variables if tuple(v.shape) in {(6, 4), (4, 6)}]
    assert len(moments) == 2


def test_trainable_is_about_the_bias_and_the_kernel_follows_its_source():
    model = nested()
    find(model, "tied").trainable = False
    assert [v.path for v in model.trainable_variables] == [
        "encoder/code/kernel",
        "encoder/code/bias",
    ]
    find(model, "tied").trainable = True
    find(model, "code").trainable = False
    assert [v.name for v in model.trainable_variables] == ["bias"]


# How it is saved ----------------------------------------------------------------------------------


def copies_in(file):
    with h5py.File(file) as opened:
        shapes = []
        opened.visititems(lambda name, item: shapes.append(getattr(item, "shape", None)))
    return sum(shape == (6, 4) for shape in shapes)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", MODELS)
def test_a_model_file_gives_one_shared_kernel(make, tmp_path):
    model = trained(make, run_eagerly=True)
    model.save(tmp_path / "model.keras")
    zipfile.ZipFile(tmp_path / "model.keras").extract("model.weights.h5", tmp_path)
    assert copies_in(tmp_path / "model.weights.h5") == 1 + 2  # and Adam's moments
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert is_shared(loaded)
    assert len(loaded.variables) == len(model.variables)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    for one in (model, loaded):
        one.train_on_batch(X, X)
    checks.close(loaded.trainable_variables, model.trainable_variables)
    kernel = find(loaded, "code").kernel
    kernel.assign(kernel + 1)
    np.testing.assert_array_equal(find(loaded, "tied").kernel.numpy(), kernel.numpy())


@pytest.mark.parametrize("make", [nested, subclassed])
def test_a_saved_copy_of_a_loaded_model_is_shared_too(make, tmp_path):
    make().save(tmp_path / "first.keras")
    keras.models.load_model(tmp_path / "first.keras").save(tmp_path / "second.keras")
    assert is_shared(keras.models.load_model(tmp_path / "second.keras"))


@pytest.mark.parametrize("make", [nested, subclassed])
def test_a_weights_file_holds_the_kernel_once(make, tmp_path):
    model, other = trained(make, run_eagerly=True), make()
    model.save_weights(tmp_path / "own.weights.h5")
    assert copies_in(tmp_path / "own.weights.h5") == 1 + 2  # and Adam's moments
    other.load_weights(tmp_path / "own.weights.h5")
    np.testing.assert_array_equal(other(X), model(X))


@pytest.mark.slow
def test_a_model_file_loads_after_nothing_but_import_gradstab(run_python, tmp_path):
    nested().save(tmp_path / "model.keras")
    code = """
import sys, gradstab, keras
model = keras.models.load_model(sys.argv[1])
encoder, decoder = model.layers[1:]
print(decoder.layers[-1].tied_to is encoder.layers[-1])
"""
    assert run_python(code, tmp_path / "model.keras") == "True"


@pytest.mark.parametrize("make", [flat, sequential])
@pytest.mark.parametrize("copy", ["clone", "config", "json"])
def test_a_copy_without_weights_finds_its_own_source(make, copy):
    model = make()
    other = copied(model, copy)
    assert is_shared(other)
    assert find(other, "code") is not find(model, "code")
    assert len(other.variables) == len(model.variables)
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other(X), model(X))


@pytest.mark.parametrize("copy", ["clone", "config", "json"])
def test_between_nested_models_a_copy_asks_to_be_tied(copy):
    model = nested()
    other = copied(model, copy)
    with pytest.raises(ValueError, match="tie_weights"):
        other(X)
    assert tie_weights(other) == 1
    assert is_shared(other)
    assert tie_weights(other) == 0
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other(X), model(X))


def copied(model, how):
    if how == "clone":
        return keras.models.clone_model(model)
    if how == "json":
        return keras.models.model_from_json(model.to_json())
    return type(model).from_config(model.get_config())


def test_tie_weights_says_what_is_missing_and_what_is_ambiguous():
    clone = keras.models.clone_model(nested())
    encoder, decoder = clone.layers[1:]
    with pytest.raises(ValueError, match="no layer of that name"):
        tie_weights(decoder)
    double = keras.models.clone_model(encoder)
    with pytest.raises(ValueError, match="2 layers of that name"):
        tie_weights(encoder, double, decoder)
    assert tie_weights(encoder, decoder) == 1


def test_a_decoder_by_itself_is_saved_with_the_kernel(tmp_path):
    model = nested()
    decoder = model.layers[-1]
    assert [v.name for v in decoder.trainable_variables] == ["bias"]
    decoder.save(tmp_path / "decoder.keras")
    loaded = keras.models.load_model(tmp_path / "decoder.keras")
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(loaded(x), decoder(x))


def test_config_round_trip():
    code = keras.layers.Dense(4)
    code.build((None, 6))
    tied = TiedDense(code, "relu", False, "ones", "l2", "non_neg", name="tied", dtype="float32")
    config = tied.get_config()
    again = TiedDense.from_config(config)
    assert again.get_config() == config
    assert not again.is_tied
    assert keras.saving.get_registered_name(TiedDense) == "gradstab>TiedDense"


# How it is trained --------------------------------------------------------------------------------


def test_eager_graph_and_xla_train_alike_and_trace_once():
    make = nested
    eager = trained(make, run_eagerly=True)
    for jit_compile in (False, True):
        model = trained(make, jit_compile=jit_compile)
        checks.close(model.trainable_variables, eager.trainable_variables, 1e-5)
    traces = []
    call = find(model, "tied").call
    find(model, "tied").call = lambda x: (traces.append(1), call(x))[1]
    model.make_train_function(force=True)
    model.fit(X, X, batch_size=4, verbose=0, epochs=2)
    assert len(traces) == 1


def language_model():
    embedding = keras.layers.Embedding(7, 3)
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Dense(3, "tanh")(embedding(inputs))
    return keras.Model(inputs, TiedDense(embedding, dtype="float32")(hidden))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_sparse_and_dense_gradient_of_an_embedding_add_up(jit_compile):
    """One SGD step against the step of an untied net whose two tables get the summed gradient."""
    keras.utils.set_random_seed(0)
    model = language_model()
    table, kernel, bias, last = (v.numpy() for v in model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    first, second = tf.Variable(table), tf.Variable(table)
    with tf.GradientTape() as tape:
        hidden = tf.tanh(tf.gather(first, TOKENS) @ kernel + bias)
        value = loss(TOKENS, tf.matmul(hidden, second, transpose_b=True) + last)
    parts = [tf.convert_to_tensor(part).numpy() for part in tape.gradient(value, [first, second])]
    optimizer = gradstab.stabilize(keras.optimizers.SGD(0.5), clip=1e9)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    model.train_on_batch(TOKENS, TOKENS)
    got = model.trainable_variables[0].numpy()
    np.testing.assert_allclose(got, table - 0.5 * sum(parts), rtol=1e-5, atol=1e-7)
    assert int(optimizer.telemetry.peek().total_skipped) == 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    half = policy.removeprefix("mixed_")
    model = nested()
    tied = find(model, "tied")
    assert tied.bias.dtype == (half if half == policy else "float32")
    outputs = model(X)
    assert keras.backend.standardize_dtype(outputs.dtype) == half
    kernel, bias, last = (v.numpy().astype("float32") for v in model.variables)
    expected = np.tanh(X @ kernel + bias) @ kernel.T + last
    tolerance = 4e-2 if half == "bfloat16" else 5e-3
    np.testing.assert_allclose(np.float32(outputs), expected, atol=tolerance, rtol=tolerance)
    model.compile("sgd", "mse")
    before = kernel
    model.fit(X, X, verbose=0)
    assert np.abs(tied.kernel.numpy().astype("float32") - before).max() > 0
    logits = language_model()
    assert keras.backend.standardize_dtype(logits(TOKENS).dtype) == "float32"


def test_two_replicas_train_as_one():
    alone = trained(nested)
    with checks.mirrored(2).scope():
        keras.utils.set_random_seed(3)
        model = nested()
        model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(X, X, batch_size=4, shuffle=False, verbose=0)
    checks.close(model.trainable_variables, alone.trainable_variables, 1e-5)


def test_micro_batches_train_as_their_mean():
    keras.utils.set_random_seed(3)
    model = nested()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
    model.fit(X, X, batch_size=4, shuffle=False, verbose=0)
    keras.utils.set_random_seed(3)
    whole = nested()
    whole.compile(keras.optimizers.SGD(0.1), "mse")
    whole.fit(X, X, batch_size=16, shuffle=False, verbose=0)
    checks.close(model.trainable_variables, whole.trainable_variables, 1e-5)


def test_a_source_that_is_a_kind_of_dense_and_lora_are_followed():
    model = sequential()
    code = find(model, "code")
    code.enable_lora(2)
    code.lora_kernel_b.assign(np.ones((2, 4), "float32"))
    effective = keras.ops.convert_to_numpy(code.kernel)
    assert np.abs(effective - code._kernel.numpy()).max() > 0
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(find(model, "tied")(x), x @ effective.T, rtol=1e-5)


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "dense", keras.layers.Conv2D(3, 3)])
def test_only_dense_and_embedding_can_be_shared(bad):
    with pytest.raises(TypeError, match="`tied_to` must be a keras"):
        TiedDense(bad)


def test_a_source_that_is_not_built_is_refused_with_the_fix():
    tied = TiedDense(keras.layers.Dense(4, name="code"))
    with pytest.raises(ValueError, match=r"`tied_to` must be built before .* Call it first"):
        tied(X[:, :4])
    code = keras.layers.Dense(4)
    late = TiedDense(code)  # made before its source is built, called after
    assert late(code(X)).shape == (16, 6)


def test_an_input_that_does_not_fit_is_refused():
    code = keras.layers.Dense(4)
    code.build((None, 6))
    with pytest.raises(ValueError, match="must end with 4 entries"):
        TiedDense(code)(X)


def test_another_shape_is_refused_after_building():
    tied = find(sequential(), "tied")
    other = keras.layers.Dense(5)
    other.build((None, 6))
    with pytest.raises(ValueError, match=r"must have a kernel of shape \(6, 4\)"):
        tied.tie(other)


def test_a_quantized_source_is_refused():
    model = sequential()
    find(model, "code").quantize("int8")
    with pytest.raises(ValueError, match="must not be quantized"):
        find(model, "tied")(X[:, :4])
