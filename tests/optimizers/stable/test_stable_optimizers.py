"""StableAdamW, ClippyAdagrad and SPAM against NumPy, in every mode, wrapped and saved."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import stabilize, transforms, unwrap
from gradstab.keras_hooks import optimizer_state
from gradstab.optimizers import SPAM, ClippyAdagrad, StabilizedOptimizer, StableAdamW

# Powers of two less than 1 that float32 holds exactly, so that NumPy's float64 sees the same.
BETAS = {"beta_1": 1 - 2**-3, "beta_2": 1 - 2**-6}
CASES = {
    "StableAdamW": (
        lambda **more: StableAdamW(2**-4, weight_decay=2**-5, **BETAS, **more),
        lambda: references.StableAdamW(2**-4, weight_decay=2**-5, **BETAS),
    ),
    "ClippyAdagrad": (
        lambda **more: ClippyAdagrad(0.5, 0.25, 0.25, 2**-6, 2**-4, epsilon=2**-20, **more),
        lambda: references.ClippyAdagrad(0.5, 0.25, 0.25, 2**-6, 2**-4, 2**-20),
    ),
    "SPAM": (
        lambda **more: SPAM(
            2**-4,
            threshold=16.0,
            reset_steps=4,
            warmup_steps=3,
            weight_decay=2**-5,
            **BETAS,
            **more,
        ),
        lambda: references.SPAM(2**-4, 16.0, 4, 3, weight_decay=2**-5, **BETAS),
    ),
}
# One spike of everything, and one of a single entry.
SCALES = (1.0, 0.5, 200.0, 1.0, 0.1, 2.0, 1.0, 1.0, 30.0, 1.0)


def _gradients(seed, scale, dtype="float32"):
    gradients = [g.numpy() for g in checks.make_gradients(seed, scale=scale)]
    if seed == 5:
        gradients[1][0, 0] = 1e4
    return [tf.constant(g, dtype) for g in gradients]


def _reference(name, number=len(SCALES)):  # noqa: B008
    weights = [np.array(v, "float64") for v in checks.values_of(checks.make_variables())]
    optimizers = [CASES[name][1]() for _ in weights]
    for seed in range(number):
        for place, gradient in enumerate(_gradients(seed, SCALES[seed])):
            weights[place] += optimizers[place].change(weights[place], gradient.numpy())
    return weights


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("name", CASES)
def test_against_numpy(name, mode):
    optimizer, variables = CASES[name][0](), checks.make_variables()
    step, traces = checks.stepper(optimizer, variables, mode)
    for seed, scale in enumerate(SCALES):
        step(*_gradients(seed, scale))
        if seed == 0:
            first = len(traces)
    assert mode == "eager" or len(traces) == first
    for variable, expected in zip(variables, _reference(name), strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_not_the_plain_optimizer(name):
    """What is compared acts: Keras' own goes elsewhere on the same gradients."""
    plain = {
        "StableAdamW": lambda: keras.optimizers.AdamW(2**-4, weight_decay=2**-5, **BETAS),
        "ClippyAdagrad": lambda: keras.optimizers.Adagrad(0.5, 0.25),
        "SPAM": lambda: keras.optimizers.Adam(2**-4, weight_decay=2**-5, **BETAS),
    }[name]()
    variables = checks.make_variables()
    for seed, scale in enumerate(SCALES):
        plain.apply(_gradients(seed, scale), variables)
    for variable, expected in zip(variables, _reference(name), strict=True):
        assert np.abs(variable.numpy() - expected).max() > 0.01


def test_clippy_by_the_numbers():
    """Both a dense and a sparse gradient, of two rows that are one: by 0.4·x + 0.01/0.1 + 0.1."""
    optimizer = ClippyAdagrad(0.2, 0.1**2, 0.4, 0.01, 0.1, epsilon=0.0)
    x, table = keras.Variable([1.0, 2.0]), keras.Variable([[3.0, 4.0], [1.0, 2.0]])
    half = checks.sparse([1, 1], [[5.0, 5.0], [5.0, 5.0]], (2, 2))
    step, _ = checks.stepper(optimizer, [x, table], "graph")
    step(tf.constant([10.0, 10.0]), half)
    np.testing.assert_allclose(x.numpy(), [0.4, 1.4], rtol=1e-6)
    np.testing.assert_allclose(table.numpy(), [[3.0, 4.0], [0.4, 1.4]], rtol=1e-6)
    np.testing.assert_allclose(
        optimizer.variables[-1].numpy(), [[0.01, 0.01], [100.01, 100.01]], rtol=1e-6
    )


def test_where_nothing_is_to_be_cut_the_step_is_keras_own():
    pairs = [
        (
            SPAM(0.1, threshold=np.inf, weight_decay=0.01),
            keras.optimizers.Adam(0.1, weight_decay=0.01),
        ),
        (StableAdamW(0.1, beta_2=0.5), keras.optimizers.AdamW(0.1, beta_2=0.5)),
    ]
    for ours, theirs in pairs:
        variables, expected = checks.make_variables(), checks.make_variables()
        for seed in range(4):
            # Falling, so that the second moment is ahead of the gradient.
            gradients = checks.make_gradients(1, scale=0.5**seed)
            ours.apply(gradients, variables)
            theirs.apply(gradients, expected)
        checks.close(variables, expected, 2e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", CASES)
def test_sparse_gradients_are_the_dense_ones_that_they_stand_for(name):
    (ours, variables), (dense, expected) = (
        (CASES[name][0](), checks.make_variables()) for _ in range(2)
    )
    step, _ = checks.stepper(ours, variables, "graph")
    for seed in range(6):
        _, *rest = checks.make_gradients(seed)
        rows = np.random.default_rng(seed).normal(size=(4, 2)).astype("float32")
        summed = np.zeros((5, 2), "float32")
        np.add.at(summed, [3, 1, 3, 0], rows)
        step(checks.sparse([3, 1, 3, 0], rows, (5, 2)), *rest)
        dense.apply([tf.constant(summed), *rest], expected)
    checks.close(variables, expected, 3e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(name, dtype):
    optimizer, variables = CASES[name][0](), checks.make_variables(dtype)
    for seed in range(2):
        optimizer.apply(_gradients(seed, SCALES[seed], dtype), variables)
    tolerance = {"float16": 2e-2, "bfloat16": 1e-1}[dtype]
    for variable, expected in zip(variables, _reference(name, 2), strict=True):
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        got = np.asarray(keras.ops.convert_to_numpy(variable), "float64")
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", CASES)
def test_wrapped_with_an_infinite_bound_it_is_the_same(name):
    plain, expected = CASES[name][0](), checks.make_variables()
    chain = [transforms.SkipNonFinite(), transforms.ClipByGlobalNorm(np.inf)]
    wrapped, variables = StabilizedOptimizer(CASES[name][0](), chain), checks.make_variables()
    for seed, scale in enumerate(SCALES[:6]):
        plain.apply(_gradients(seed, scale), expected)
        wrapped.apply(_gradients(seed, scale), variables)
        if seed == 3:
            before = checks.contents([*variables, *checks.lasting_state(wrapped)])
            wrapped.apply([g * np.nan for g in checks.make_gradients()], variables)
            after = checks.contents([*variables, *checks.lasting_state(wrapped)])
            assert not checks.differences(before, after)
    for got, other in zip(checks.values_of(variables), checks.values_of(expected), strict=True):
        np.testing.assert_array_equal(got, other)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_on_two_replicas(name, is_wrapped):
    def make():
        return stabilize(CASES[name][0](), clip=None) if is_wrapped else CASES[name][0]()

    alone, variables = make(), checks.make_variables()
    strategy = checks.mirrored(2)
    with strategy.scope():
        many, others = make(), checks.make_variables()
    step, _ = checks.stepper(alone, variables, "graph")
    on_all = checks.replicated(strategy, many, others)
    for seed, scale in enumerate(SCALES[:6]):
        gradients = _gradients(seed, scale)
        step(*gradients)
        on_all(*checks.shares_of(gradients, 2))
    checks.close(others, variables, 1e-4)
    checks.same_on_all_replicas(others)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", CASES)
def test_over_micro_batches(name):
    many, variables = CASES[name][0](gradient_accumulation_steps=2), checks.make_variables()
    wrapped = stabilize(CASES[name][0](gradient_accumulation_steps=2), clip=None)
    others = checks.make_variables()
    whole = CASES[name][0]()
    expected = checks.make_variables()
    for seed, scale in enumerate(SCALES[:6]):
        gradients = _gradients(seed, scale)
        for share in (0.5, 1.5):
            many.apply([g * share for g in gradients], variables)
            wrapped.apply([g * share for g in gradients], others)
        whole.apply(gradients, expected)
    checks.close(variables, expected, 1e-5)
    checks.close(others, expected, 1e-5)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_fit_saves_loads_and_goes_on(name, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 9, (24, 3)), draw.normal(size=(24, 1)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(CASES[name][0](), "mse")
    before = checks.contents(model.trainable_variables)
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, y, **fit)
    assert len(checks.differences(before, checks.contents(model.trainable_variables))) == 3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inner = getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer)
    assert type(inner).__name__ == name
    assert (
        inner.get_config()
        == getattr(model.optimizer, "inner_optimizer", model.optimizer).get_config()
    )
    for each in (model, loaded):
        each.fit(x, y, **fit)
    variables = [[*m.trainable_variables, *m.optimizer.variables] for m in (model, loaded)]
    for got, expected in zip(*map(checks.values_of, variables), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_spam_resets_at_its_interval():
    optimizer = SPAM(0.1, reset_steps=3, warmup_steps=2, **BETAS)
    weight = keras.Variable(np.zeros(2))
    moments = []
    for _ in range(7):
        optimizer.apply([tf.ones(2)], [weight])
        moments.append(optimizer.variables[2].numpy()[0])
    one = 1 - BETAS["beta_1"]
    np.testing.assert_allclose([moments[0], moments[3], moments[6]], [one] * 3, rtol=1e-6)
    assert moments[2] > 2 * one


def test_config_and_names():
    for name, (make, _) in CASES.items():
        optimizer = make()
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert type(again) is type(optimizer)
        assert again.get_config() == optimizer.get_config()
        assert keras.saving.get_registered_name(type(optimizer)) == f"gradstab>{name}"
        assert getattr(type(optimizer), "__final__", False)


def test_unwrap_names_what_keras_lacks():
    with pytest.raises(ValueError, match=r"Received: SPAM\..*compile the model with one of Keras'"):
        unwrap(stabilize(SPAM(0.1)))
    with pytest.raises(ValueError, match="Received: StableAdamW"):
        unwrap(StableAdamW(0.1))


def test_the_private_names_of_keras_are_there():
    """Slots and the choice of what decays; `slots.py` is the one place to mend."""
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    variables = checks.make_variables()
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    for variable in variables:
        raw = variable.value
        assert optimizer_state.slot(optimizer, "_velocities", raw).shape == variable.shape
        assert optimizer_state.decays(optimizer, raw) == (variable.name != "bias")
    assert not optimizer_state.decays(keras.optimizers.SGD(0.1), variables[0].value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StableAdamW(beta_2=1.0), "`beta_2` must be a float at least 0 and below 1"),
        (lambda: StableAdamW(epsilon=0.0), "`epsilon` must be a positive float"),
        (lambda: StableAdamW(weight_decay=-1.0), "`weight_decay` must be a non-negative float"),
        (lambda: ClippyAdagrad(variable_relative_threshold=-1), "`variable_relative_threshold`"),
        (lambda: ClippyAdagrad(0.1, 0.1, 0, 0, 0), "must be positive, or nothing could move"),
        (lambda: ClippyAdagrad(initial_accumulator_value=0.0), "`initial_accumulator_value` must"),
        (lambda: SPAM(threshold=0.0), "`threshold` must be a positive float"),
        (lambda: SPAM(reset_steps=0), "`reset_steps` must be a positive integer"),
        (lambda: SPAM(reset_steps=10), "`warmup_steps` must be at most `reset_steps`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
