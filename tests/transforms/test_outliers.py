"""Steps far above those before are skipped: in norm, and in loss where the trainer gives it."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import DivergenceError, optimizers, transforms


def _run(skip, steps, mode="eager", chain=()):
    """Take steps given as norms, or as pairs of norm and loss; return the causes."""
    weight = keras.Variable(np.zeros(1))
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [*chain, skip])
    optimizer.build([weight])

    def take(norm, loss):
        if loss is not None:
            optimizer.scale_loss(loss)
        optimizer.apply([norm * tf.ones(1)], [weight])

    take = checks.compiled(take, mode)
    for each in steps:
        norm, loss = each if isinstance(each, tuple) else (each, None)
        take(tf.constant(float(norm)), None if loss is None else tf.constant(float(loss)))
    return optimizer.telemetry.peek().cause, optimizer


def _state(optimizer, name):
    (found,) = [v for v in optimizer.variables if v.name == f"SkipOutliers_{name}"]
    return found.numpy().tolist()


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_norm_far_above_the_others(mode):
    skip = transforms.SkipOutliers(3.0, history_length=4, warmup_steps=3)
    norms = [1.0, 2.0, 3.0, 4.4, 4.5, 2.0, 2.5]
    # Mean and deviation of 1, 2, 3: 2 and .8165, so the bound is 4.449.
    causes, optimizer = _run(skip, norms, mode)
    # Then of 1, 2, 3, 4.4: 2.6 and 1.2570, so 4.5 is none any more.
    assert causes == [None] * 7
    causes, optimizer = _run(
        transforms.SkipOutliers(3.0, history_length=4, warmup_steps=3),
        [1.0, 2.0, 3.0, 4.45, 4.44, 1e9, 2.0],
        mode,
    )
    assert causes == [None] * 3 + ["outlier", None, "outlier", None]
    assert _state(optimizer, "norms") == [2.0, 2.0, 3.0, float(np.float32(4.44))]
    assert _state(optimizer, "num_norms") == 5
    assert optimizer.telemetry.peek().skipped_by_cause == {"outlier": 2}


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.01, "use_ema": True}])
def test_a_skipped_outlier_is_atomic(more, mode):
    """With and without a condition round the update, which plain Adam needs none of in a graph."""
    skip = transforms.SkipOutliers(6.0, history_length=4, warmup_steps=2)
    inner = keras.optimizers.Adam(0.1, **more)
    chain = [
        transforms.SkipNonFinite(),
        transforms.PercentileClipping(50.0, history_length=8),
        transforms.ZScoreClipping(warmup_steps=2),
        transforms.AdaGradientClipping(warmup_steps=1),
        skip,
    ]
    optimizer = optimizers.StabilizedOptimizer(inner, chain)
    variables = checks.make_variables()
    step, _ = checks.stepper(optimizer, variables, mode)
    for seed in range(3):
        step(*checks.make_gradients(seed))
    state = [*variables, *checks.lasting_state(optimizer)]
    before = checks.contents(state)
    step(*checks.make_gradients(3, scale=1e3))
    assert not checks.differences(before, checks.contents(state))
    assert optimizer.telemetry.peek().cause[-1] == "outlier"
    step(*checks.make_gradients(3))
    assert checks.differences(before, checks.contents(state))


def test_a_loss_far_above_the_others():
    skip = transforms.SkipOutliers(3.0, history_length=4, warmup_steps=2)
    steps = [(1, 0.5), (1, 0.4), (1, 0.9), (1, np.nan), (1, np.inf), (1, 0.5)]
    causes, optimizer = _run(skip, steps, "graph")
    # Mean .45 and deviation .05: the bound is .6.
    assert causes == [None, None, "outlier", "outlier", "outlier", None]
    np.testing.assert_allclose(_state(optimizer, "losses"), [0.5, 0.4, 0.5, 0.0], rtol=1e-6)
    skip = transforms.SkipOutliers(3.0, history_length=4, warmup_steps=2, use_loss=False)
    causes, optimizer = _run(skip, steps, "graph")
    assert causes == [None] * 6
    assert not [v for v in optimizer.variables if "losses" in v.name]


def test_the_warm_up_judges_nothing_that_is_finite():
    skip = transforms.SkipOutliers(history_length=8, warmup_steps=6)
    causes, _ = _run(skip, [1, 1, 1, 1e6, np.nan, 1, 1e9])
    assert causes == [None] * 4 + ["outlier", None, None]


@pytest.mark.parametrize("value", [0.0, 1e-6, 2.0, 1e15])
def test_equal_numbers_make_no_outlier_of_a_hair_more(value):
    skip = transforms.SkipOutliers(history_length=4, warmup_steps=4)
    steps = [(value, 3.0)] * 6 + [(value * 1.5, 4.5), (value, 3.0)]
    causes, _ = _run(skip, steps)
    assert causes == [None] * 8


def test_a_change_of_level_is_taken_in():
    """After `max_consecutive` skips the next step is applied, and the histories start anew."""
    skip = transforms.SkipOutliers(history_length=8, warmup_steps=4, max_consecutive=3)
    budget = transforms.SkipNonFinite(5)
    causes, optimizer = _run(skip, [1.0] * 6 + [50.0] * 9 + [1e5] + [50.0], "graph", [budget])
    assert causes == [None] * 6 + ["outlier"] * 3 + [None] * 6 + ["outlier", None]
    assert _state(optimizer, "norms")[:7] == [50.0] * 7
    assert _state(optimizer, "num_norms") == 7
    assert optimizer.max_consecutive == 5
    optimizer.raise_if_diverged()


def test_what_is_never_finite_spends_the_budget():
    skip = transforms.SkipOutliers(history_length=4, warmup_steps=2, max_consecutive=3)
    causes, optimizer = _run(skip, [1.0] * 3 + [np.nan] * 5)
    assert causes == [None] * 3 + ["outlier"] * 5
    with pytest.raises(DivergenceError):
        optimizer.raise_if_diverged()


def test_the_bound_can_be_changed():
    skip = transforms.SkipOutliers(np.inf, history_length=4, warmup_steps=2)
    causes, _ = _run(skip, [1.0] * 3 + [1e6])
    assert causes == [None] * 4
    skip.num_sigmas = 2.0
    assert float(skip.bound("num_sigmas")) == 2.0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_shows_the_loss(jit_compile):
    """One batch of wrong targets, whose gradient is clipped away before: the loss tells."""
    x = np.ones((40, 2), "float32")
    y = np.ones((40, 1), "float32") + np.linspace(0, 0.1, 40, dtype="float32")[:, None]
    y[28:32] += 100.0
    skip = transforms.SkipOutliers(history_length=6, warmup_steps=4)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1e-4), [skip])
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert optimizer.telemetry.peek().cause == [None] * 7 + ["outlier"] + [None] * 2
    assert _state(optimizer, "num_losses") == 9
    losses = optimizer.telemetry.peek().loss
    held = sorted(_state(optimizer, "losses"))
    np.testing.assert_allclose(held, sorted(losses[[3, 4, 5, 6, 8, 9]]), rtol=1e-6)


def test_the_loss_over_replicas():
    strategy = checks.mirrored(2)
    with strategy.scope():
        skip = transforms.SkipOutliers(history_length=4, warmup_steps=2)
        optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [skip])
        weight = keras.Variable(np.zeros(1))
        optimizer.build([weight])

    @tf.function
    def step(first, second):
        def on_replica():
            place = tf.get_static_value(
                tf.distribute.get_replica_context().replica_id_in_sync_group
            )
            optimizer.scale_loss((first, second)[place])
            optimizer.apply([tf.ones(1)], [weight])

        strategy.run(on_replica)

    for first, second in [(1.0, 2.0)] * 3 + [(0.5, 9.0), (2.0, 1.0)]:
        step(tf.constant(first), tf.constant(second))
    assert optimizer.telemetry.peek().cause == [None] * 3 + ["outlier", None]
    checks.same_on_all_replicas([weight, *optimizer.variables])
    (losses,) = [v for v in optimizer.variables if v.name == "SkipOutliers_losses"]
    np.testing.assert_allclose(losses.numpy(), [3.0] * 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_sigmas": 0}, ValueError, "`num_sigmas` must be a positive float"),
        ({"history_length": 1}, ValueError, "`history_length` must be an integer of at least 2"),
        ({"warmup_steps": 1}, ValueError, "`warmup_steps` must be an integer of at least 2"),
        ({"history_length": 32}, ValueError, "`warmup_steps` must be at most `history_length`"),
        ({"max_consecutive": 0}, ValueError, "`max_consecutive` must be a positive integer"),
        ({"use_loss": 1}, TypeError, "`use_loss` must be True or False"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        transforms.SkipOutliers(**arguments)
