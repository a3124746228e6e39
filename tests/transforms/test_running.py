"""AutoClip, ZClip and AdaGC against NumPy, step by step, and what may enter their statistics."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.functional import running


def _norms(seed=0, number=12, spikes=((5, 40.0), (9, 1e6))):
    norms = np.exp(np.random.default_rng(seed).normal(scale=0.3, size=number)).astype("float32")
    for place, factor in spikes:
        norms[place] *= factor
    return norms


def _run(transform, norms, mode="eager", skip=True):
    """Take steps with gradients of these norms; return how long each step was, and the optimizer.

    The weight is put back to zero before each, so that float32 holds the whole step.
    """
    weight = keras.Variable(np.zeros(2))
    chain = [transforms.SkipNonFinite(), transform] if skip else [transform]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)
    step, traces = checks.stepper(optimizer, [weight], mode)
    lengths = []
    for norm in norms:
        weight.assign([0.0, 0.0])
        step(tf.constant([0.6, 0.8]) * norm)
        lengths.append(float(np.linalg.norm(weight.numpy())))
        if len(lengths) == 1:
            first = len(traces)
    assert mode == "eager" or len(traces) == first
    return np.array(lengths), optimizer


def _state(optimizer, name):
    (found,) = [v for v in optimizer.variables if v.name.endswith(f"_{name}")]
    return found.numpy()


@pytest.mark.parametrize(("percentile", "length"), [(10.0, 100), (50.0, 4), (100.0, 3), (0.0, 5)])
def test_autoclip(percentile, length):
    norms = _norms()
    lengths, optimizer = _run(
        transforms.PercentileClipping(percentile, history_length=length), norms
    )
    expected = norms * references.percentile_factors(norms, percentile, length)
    np.testing.assert_allclose(lengths, expected, rtol=2e-6)
    assert _state(optimizer, "history").shape == (length,)
    clipped = expected < norms * (1 - 1e-6)
    np.testing.assert_array_equal(optimizer.telemetry.peek().clipped, clipped)


def test_autoclip_forgets_zeros_and_keeps_to_its_upper_bound():
    clip = transforms.PercentileClipping(10.0, max_norm=5.0)
    lengths, optimizer = _run(clip, [100.0, 0.0, 0.0, 0.0, 3.0])
    # Percentile 10 of 3 and 100.
    np.testing.assert_allclose(lengths, [5.0, 0.0, 0.0, 0.0, 3.0], rtol=1e-6)
    assert _state(optimizer, "count") == 2


def test_zclip():
    norms = _norms(number=16)
    arguments = {"z_threshold": 2.0, "decay": 0.9, "warmup_steps": 4, "epsilon": 1e-6}
    lengths, optimizer = _run(transforms.ZScoreClipping(**arguments), norms)
    expected, mean, variance = references.z_score_norms(norms, 2.0, 0.9, 4, 1e-6)
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    np.testing.assert_allclose(_state(optimizer, "mean"), mean, rtol=1e-5)
    np.testing.assert_allclose(_state(optimizer, "variance"), variance, rtol=1e-4)
    assert 0 < optimizer.telemetry.peek().clipped.sum() < len(norms) / 2


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_zclip_by_hand(mode):
    """μ = 1 and σ² = .25 after a warm-up of .5 and 1.5; then a norm of 3, and NaN."""
    clip = transforms.ZScoreClipping(2.0, decay=0.97, warmup_steps=2)
    lengths, optimizer = _run(clip, [0.5, 1.5], mode)
    np.testing.assert_allclose(_state(optimizer, "mean"), 1.0, rtol=1e-6)
    np.testing.assert_allclose(_state(optimizer, "variance"), 0.25, rtol=1e-6)
    clip = transforms.ZScoreClipping(2.0, decay=0.97, warmup_steps=2)
    lengths, optimizer = _run(clip, [0.5, 1.5, 3.0, np.nan, np.inf], mode, skip=False)
    np.testing.assert_allclose(lengths[2], 1.500001, rtol=1e-6)
    np.testing.assert_allclose(_state(optimizer, "mean"), 1.01500003, rtol=1e-6)
    np.testing.assert_allclose(_state(optimizer, "variance"), 0.24955678, rtol=1e-5)
    assert _state(optimizer, "count") == 3


def test_zclip_in_the_warm_up_and_after_equal_norms():
    lengths, _ = _run(transforms.ZScoreClipping(warmup_steps=3, max_norm=10.0), [1e5, 2.0, 2.0])
    np.testing.assert_allclose(lengths, [10.0, 2.0, 2.0], rtol=1e-6)
    lengths, _ = _run(transforms.ZScoreClipping(warmup_steps=3), [1.0] * 6 + [1.02, 1.0, 9.0])
    np.testing.assert_allclose(lengths[:8], [1.0] * 6 + [1.02, 1.0], rtol=1e-6)
    assert 1.0 < lengths[8] < 1.03


def test_a_finite_norm_too_long_to_square_does_not_stay():
    for norm in (1e25, 3e38):
        _, optimizer = _run(transforms.ZScoreClipping(warmup_steps=2), [1.0, norm, 1.0], skip=False)
        assert _state(optimizer, "variance") == 0.0
        assert _state(optimizer, "count") == 2


def test_adagc():
    draw = np.random.default_rng(2)
    norms = np.exp(draw.normal(scale=0.3, size=(14, 2)))
    norms[6, 0] *= 50
    norms[10] *= 20
    clip = transforms.AdaGradientClipping(1.2, decay=0.8, warmup_steps=4, max_norm=1.0)
    weights = [keras.Variable(np.zeros(2), name=name) for name in "ab"]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [clip])
    step, _ = checks.stepper(optimizer, weights)
    lengths = []
    for row in norms:
        for weight in weights:
            weight.assign([0.0, 0.0])
        step(*[tf.constant([-0.6, 0.8]) * norm for norm in row])
        lengths.append([float(np.linalg.norm(weight.numpy())) for weight in weights])
    expected, averages = references.adagc_norms(norms, 1.2, 0.8, 4, 1.0)
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    np.testing.assert_allclose(_state(optimizer, "averages"), averages, rtol=1e-5)


def test_adagc_without_a_gradient_in_the_warm_up():
    """Neither nothing nor zero may become the average, or the variable would never move again."""
    clip = transforms.AdaGradientClipping(2.0, decay=0.5, warmup_steps=2, max_norm=100.0)
    weights = [keras.Variable(np.zeros(1), name=name) for name in "abc"]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [clip])
    optimizer.build(weights)
    one = tf.ones(1)
    for _ in range(2):
        optimizer.apply([one, one * 0], weights[:2])
    np.testing.assert_array_equal(_state(optimizer, "averages"), [1.0, np.inf, np.inf])
    optimizer.apply([one * 10, one * 10, one * 10], weights)
    np.testing.assert_allclose([w.numpy()[0] for w in weights], [-4.0, -10.0, -10.0])
    np.testing.assert_array_equal(_state(optimizer, "averages"), [1.5, 10.0, 10.0])


STATEFUL = {
    "PercentileClipping": lambda: transforms.PercentileClipping(30.0, history_length=3),
    "ZScoreClipping": lambda: transforms.ZScoreClipping(1.0, warmup_steps=2),
    "AdaGradientClipping": lambda: transforms.AdaGradientClipping(warmup_steps=2),
    "SkipOutliers": lambda: transforms.SkipOutliers(3.0, history_length=4, warmup_steps=2),
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("skip", [True, False])
def test_what_is_not_finite_never_enters(skip, name):
    """Skipped or let through, it leaves the statistics as they were, byte for byte."""
    weights = [keras.Variable(np.zeros(2), name=n) for n in "ab"]
    chain = [*([transforms.SkipNonFinite()] if skip else []), STATEFUL[name]()]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)
    step, _ = checks.stepper(optimizer, weights, "graph")
    good = [tf.constant([1.0, 2.0]), tf.constant([0.5, 0.5])]
    for _ in range(3):
        step(*good)
    state = [v for v in optimizer.variables if v.name.startswith(name)]
    assert len(state) >= 3
    before = checks.contents(state)
    for bad in (np.nan, np.inf, -np.inf):
        step(good[0], good[1] * bad)
        step(good[0] * bad, good[1] * bad)
    assert not checks.differences(before, checks.contents(state))
    if skip or name == "SkipOutliers":
        assert optimizer.telemetry.peek().total_skipped == 6
        step(*good)
        assert checks.differences(before, checks.contents(state))


@pytest.mark.parametrize("way", ["keras", "weights", "checkpoint"])
def test_statistics_are_saved_and_go_on(way, tmp_path):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(24, 3)), draw.normal(size=(24, 2))

    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        chain = [make() for make in STATEFUL.values()]
        inner = keras.optimizers.Adam(0.1)
        model.compile(optimizers.StabilizedOptimizer(inner, chain), "mse")
        return model

    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    saved = model()
    saved.fit(x, y, **fit)
    if way == "keras":
        saved.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    else:
        loaded = model()
        loaded.optimizer.build(loaded.trainable_variables)
    if way == "weights":
        saved.save_weights(tmp_path / "model.weights.h5")
        loaded.load_weights(tmp_path / "model.weights.h5")
    if way == "checkpoint":
        tf.train.Checkpoint(model=saved).write(str(tmp_path / "checkpoint"))
        reader = tf.train.Checkpoint(model=loaded)
        reader.read(str(tmp_path / "checkpoint")).assert_existing_objects_matched()
    for each in (saved, loaded):
        each.fit(x, y, **fit)
    of_both = [
        [*m.trainable_variables, *checks.lasting_state(m.optimizer)] for m in (saved, loaded)
    ]
    for got, expected in zip(*map(checks.values_of, of_both), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_transform_has_one_state_in_one_optimizer():
    clip = transforms.ZScoreClipping()
    for place in range(2):
        inner = keras.optimizers.SGD(1.0)
        optimizer = optimizers.StabilizedOptimizer(inner, [clip])
        if place:
            with pytest.raises(ValueError, match="belongs to another optimizer already"):
                optimizer.build([keras.Variable(np.zeros(2))])
        else:
            optimizer.build([keras.Variable(np.zeros(2))])


@pytest.mark.parametrize("count", [1, 2, 5, 7, 23])
def test_percentiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count).astype("float32")
    history = np.full(7, 99.0, "float32")
    for place, value in enumerate(values):
        history = running.push(history, place, value)
    for rank in (0.0, 10.0, 33.0, 50.0, 99.0, 100.0):
        got = float(running.percentile(history, count, rank))
        np.testing.assert_allclose(got, np.percentile(values[-7:], rank), rtol=1e-5, atol=1e-6)
    mean, deviation = running.mean_and_deviation(history, count)
    np.testing.assert_allclose(mean, values[-7:].mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deviation, values[-7:].std(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transforms.PercentileClipping(101), r"`percentile` .*at least 0 and at most 100"),
        (lambda: transforms.PercentileClipping(-1), "`percentile` must be"),
        (
            lambda: transforms.PercentileClipping(history_length=0),
            "`history_length` must be a posi",
        ),
        (lambda: transforms.PercentileClipping(max_norm=0), "`max_norm` must be a positive float"),
        (lambda: transforms.ZScoreClipping(0.0), "`z_threshold` must be a positive float"),
        (lambda: transforms.ZScoreClipping(decay=1.0), r"`decay` .*at least 0 and below 1"),
        (lambda: transforms.ZScoreClipping(warmup_steps=0), "`warmup_steps` must be a positive"),
        (lambda: transforms.ZScoreClipping(epsilon=-1), "`epsilon` must be a positive float"),
        (lambda: transforms.AdaGradientClipping(-1.0), "`relative_threshold` must be a positive"),
        (lambda: transforms.AdaGradientClipping(decay=-0.1), "`decay` must be a float at least 0"),
        (lambda: transforms.AdaGradientClipping(warmup_steps=-1), "`warmup_steps` must be an int"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
