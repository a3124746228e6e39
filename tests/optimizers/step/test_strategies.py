"""Several replicas step as one does: the sum over them is measured, clipped and judged."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import stabilize, transforms
from gradstab.keras_hooks import one_step
from gradstab.optimizers import StabilizedOptimizer, clip_by_global_norm

COLLECTIVES = ("CollectiveReduceV2", "CollectiveReduce", "CollectiveReduceV3")


def _pair(make, num_replicas, mode="graph"):
    """Return two steps with their variables: on one replica, and on many."""
    strategy = checks.mirrored(num_replicas)
    alone, variables = make(), checks.make_variables()
    with strategy.scope():
        many, others = make(), checks.make_variables()
    step, _ = checks.stepper(alone, variables, mode)
    return (alone, variables, step), (many, others, checks.replicated(strategy, many, others, mode))


def test_without_our_wrapper_the_bound_grows_with_the_replicas():
    """What this room is for. If Keras clips after the sum one day, the README has to say so."""
    (_, variables, step), (_, others, on_all) = _pair(
        lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.1), 2
    )
    gradients = checks.make_gradients()
    step(*gradients)
    on_all(gradients, gradients)
    begin = checks.make_variables()
    for changed, norm in ((variables, 0.1), (others, 0.2)):
        change = [n - o for n, o in zip(*map(checks.values_of, (changed, begin)), strict=True)]
        np.testing.assert_allclose(np.sqrt(sum((c**2).sum() for c in change)), norm, rtol=1e-5)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_what_is_not_finite_on_one_replica_is_skipped_on_all(mode):
    _, (many, others, on_all) = _pair(lambda: stabilize("adam"), 2, mode)
    good = checks.make_gradients()
    bad = [good[0] * np.nan, *good[1:]]
    on_all(good, good)
    state = [*others, *checks.lasting_state(many)]
    before = [[copy.numpy().tobytes() for copy in v.value.values] for v in state]
    on_all(good, bad)
    on_all(bad, good)
    assert before == [[copy.numpy().tobytes() for copy in v.value.values] for v in state]
    reading = many.telemetry.peek()
    assert reading.total_skipped == 2
    assert reading.bad_variable[1:] == ["embeddings"] * 2
    on_all(good, good)
    assert int(many.iterations.numpy()) == 2


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_rate_that_a_transform_limits_is_limited_on_all(mode):
    spike = keras.optimizers.schedules.PiecewiseConstantDecay([12, 13], [0.01, 5.0, 0.01])
    (alone, variables, step), (many, others, on_all) = _pair(
        lambda: StabilizedOptimizer(
            keras.optimizers.AdamW(spike, weight_decay=0.1),
            [transforms.SkipNonFinite(), transforms.LimitRateJumps()],
        ),
        2,
        mode,
    )
    gradients = checks.make_gradients()
    for _ in range(16):
        step(*[gradient * 2 for gradient in gradients])
        on_all(gradients, gradients)
    checks.close(others, variables)
    assert all(np.abs(value).max() < 5.0 for value in checks.values_of(variables))
    for optimizer in (many, alone):
        reading = optimizer.telemetry.peek()
        assert (reading.total_limited_by, reading.total_clipped) == ({"rate_jump": 1}, 0)


def test_a_gradient_that_is_missing_on_one_replica_counts_as_zero():
    (_, variables, step), (_, others, on_all) = _pair(lambda: stabilize("sgd", clip=0.5), 2)
    first, second, third = checks.make_gradients()
    step(first, second * 2, third)
    on_all([first, second, None], [None, second, third])
    checks.close(others, variables)


def test_a_gradient_that_is_missing_on_all_replicas_stays_missing():
    _, (_, others, on_all) = _pair(lambda: stabilize("adam"), 2)
    before = checks.contents(others[1:2])
    first, _, third = checks.make_gradients()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        on_all([first, None, third], [first, None, third])
    assert not checks.differences(before, checks.contents(others[1:2]))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("second", ["sparse", "dense", "none"])
def test_sparse_gradients_are_summed_over_replicas_and_rows(second):
    (_, variables, step), (_, others, on_all) = _pair(
        lambda: stabilize(keras.optimizers.Adagrad(0.1), clip=1.0), 2
    )
    rows = np.array([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]], "float32")
    _, *rest = checks.make_gradients()
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, [3, 1, 3], rows)
    here = checks.sparse([3, 1, 3], rows, (5, 2))
    there = {
        "sparse": checks.sparse([1, 1, 4], rows, (5, 2)),
        "dense": tf.constant(dense),
        "none": None,
    }[second]
    total = dense + (0 if there is None else tf.convert_to_tensor(there).numpy())
    for _ in range(2):
        step(tf.constant(total), *rest)
        on_all([here, *[g / 2 for g in rest]], [there, *[g / 2 for g in rest]])
    checks.close(others, variables)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_float32(dtype):
    """The sum of 60 000 and -60 000 and 3 is 3, whatever the order; in float16 it can overflow."""
    strategy = checks.mirrored(4)
    with strategy.scope():
        weight = keras.Variable(np.zeros(1), dtype=dtype)
        optimizer = stabilize("sgd", learning_rate=1.0, clip=None)
    step = checks.replicated(strategy, optimizer, [weight])
    step(*[[tf.constant([value], dtype)] for value in (49152.0, 49152.0, -98304.0 / 2, -49152.0)])
    assert float(weight.numpy()[0]) == 0.0
    assert optimizer.telemetry.peek().total_skipped == 0


def test_the_gradients_travel_once_in_one_reduction_per_replica():
    strategy = checks.mirrored(2)
    with strategy.scope():
        variables, optimizer = checks.make_variables(), stabilize("adam")
    step = checks.replicated(strategy, optimizer, variables)
    gradients = checks.make_gradients()
    graph = step.get_concrete_function(gradients, gradients).graph
    reductions = [node for node in checks.nodes_of(graph) if node.op in COLLECTIVES]
    assert len(reductions) == 2, [node.name for node in reductions]


def test_where_keras_reduction_can_not_be_switched_off_shares_are_summed_again(monkeypatch):
    monkeypatch.setattr(one_step, "_INNER_REDUCTION", "_another_name")
    assert not one_step.reduces_once([keras.optimizers.SGD()])
    (_, variables, step), (many, others, on_all) = _pair(
        lambda: stabilize(keras.optimizers.Adam(0.1), clip=0.5), 2
    )
    for seed in range(3):
        gradients = checks.make_gradients(seed)
        step(*gradients)
        on_all(*checks.shares_of(gradients, 2))
    checks.close(others, variables)
    checks.same_on_all_replicas([*others, *many.variables])


INNER = {
    "SGD with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "averages": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "averages that overwrite": lambda: keras.optimizers.Adam(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "accumulation and averages": lambda: keras.optimizers.SGD(
        0.1, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=3
    ),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    ),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("inner", INNER)
def test_what_keras_optimizers_can_do_they_do_under_a_strategy(inner, bounded):
    chain = [transforms.LimitUpdateRatio] if bounded else []
    (alone, variables, step), (many, others, on_all) = _pair(
        lambda: StabilizedOptimizer(
            INNER[inner](), [transforms.ClipByNorm(0.5), *(each(0.02) for each in chain)]
        ),
        2,
    )
    for seed in range(5):
        gradients = checks.make_gradients(seed)
        step(*gradients)
        on_all(*checks.shares_of(gradients, 2))
    checks.close(
        [*others, *many.inner_optimizer.variables],
        [*variables, *alone.inner_optimizer.variables],
    )
    checks.same_on_all_replicas([*others, *many.variables])


def test_constraints_and_multi_optimizer_under_a_strategy():
    def make():
        variables = [
            keras.Variable(np.full((3, 2), 2.0), name="kernel"),
            keras.Variable(np.ones(4), name="bias"),
        ]
        variables[0].constraint = keras.constraints.MaxNorm(1.0)
        optimizers = {"kernel": keras.optimizers.SGD(0.1), "bias": keras.optimizers.Adam(0.1)}
        inner = keras.optimizers.MultiOptimizer(lambda variable: optimizers[variable.name])
        return variables, StabilizedOptimizer(inner, [transforms.ClipByGlobalNorm(0.5)])

    variables, optimizer = make()
    strategy = checks.mirrored(2)
    with strategy.scope():
        others, many = make()
    on_all = checks.replicated(strategy, many, others)
    for seed in range(3):
        gradients = checks.make_gradients(seed)[1:]
        optimizer.apply(gradients, variables)
        on_all(*checks.shares_of(gradients, 2))
    checks.close(others, variables)
    assert np.linalg.norm(others[0].numpy(), axis=0).max() <= 1 + 1e-6


def _model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer, "mse")
    return model


def test_fit_under_a_strategy_is_fit_on_one_device():
    """Keras' own `fit` fails under a strategy with `steps_per_execution` above 1."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(48, 3)).astype("float32"), draw.normal(size=(48, 1)).astype("float32")
    x[16] = np.nan  # in the first replica's half of the third batch
    y[30] = np.nan  # and in the second's half of the fourth

    def trained():
        model = _model(clip_by_global_norm(stabilize("adam", learning_rate=0.01), 0.1))
        history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model, history

    alone, _ = trained()
    strategy = checks.mirrored(2)
    with strategy.scope():
        many, _ = trained()
    checks.close(alone.variables, many.variables)
    got, expected = (each.optimizer.telemetry.peek() for each in (many, alone))
    assert got.total_skipped == expected.total_skipped == 4
    np.testing.assert_allclose(got.grad_norm, expected.grad_norm, rtol=1e-5)
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-5)


@pytest.mark.slow
def test_a_model_trained_under_a_strategy_is_saved_and_goes_on_without(tmp_path):
    x, y = np.ones((8, 3)), np.ones((8, 1))
    strategy = checks.mirrored(2)
    with strategy.scope():
        model = _model(stabilize("adam", clip=0.5))
        model.fit(x, y, verbose=0)
        model.optimizer.transforms[1].max_norm = 0.25
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.transforms[1].max_norm == 0.25
    model.fit(x, y, verbose=0)
    loaded.fit(x, y, verbose=0)
    checks.close(loaded.variables, model.variables)
    checks.close(loaded.optimizer.variables, model.optimizer.variables)


def test_apply_outside_the_replicas_is_refused():
    strategy = checks.mirrored(2)
    with strategy.scope():
        variables, optimizer = checks.make_variables(), stabilize("sgd")
        with pytest.raises(ValueError, match=r"replica context.*strategy.run"):
            optimizer.apply(checks.make_gradients(), variables)
