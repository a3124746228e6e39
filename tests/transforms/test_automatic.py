"""AutomaticClipping against NumPy, limit by limit, and what it does to runs."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab import optimizers, transforms

INF = float("inf")
RATE = 0.5


def _limits(**arguments):
    """A transform with those limits only that are named."""
    return transforms.AutomaticClipping(
        **dict.fromkeys(("max_ratio", "outlier_factor", "loss_factor", "max_rate_ratio"), INF)
        | arguments
    )


def _run(
    transform,
    norms,
    mode="graph",
    *,
    weight_norm=10.0,
    rates=None,
    losses=None,
    adam=False,
    momentum=0.0,
):
    """Take steps with gradients of these norms; return the norms that were applied.

    The weight is put back before each. SGD, or Adam whose first moments are the gradients.
    """
    start = np.array([0.8, 0.6], "float32") * weight_norm
    weight = keras.Variable(start)
    sgd = keras.optimizers.SGD(RATE, momentum=momentum)
    inner = keras.optimizers.Adam(RATE, beta_1=0.0) if adam else sgd
    optimizer = optimizers.StabilizedOptimizer(inner, [transforms.SkipNonFinite(), transform])
    optimizer.build([weight])

    @tf.function(jit_compile=mode == "xla")
    def compiled(gradient, rate, loss):
        inner.learning_rate.assign(rate)
        if losses is not None:
            optimizer.scale_loss(loss)
        optimizer.apply([gradient], [weight])

    step = compiled.python_function if mode == "eager" else compiled
    lengths = []
    for place, norm in enumerate(norms):
        weight.assign(start)
        if momentum:
            inner.momentums[0].assign([0.0, 0.0])
        rate = RATE if rates is None else rates[place]
        loss = 0.0 if losses is None else losses[place]
        gradient = tf.constant([0.6, 0.8]) * tf.constant(norm, "float32")
        step(gradient, tf.constant(rate, "float32"), tf.constant(loss, "float32"))
        change = inner._momentums[0].numpy() if adam else (weight.numpy() - start) / rate
        lengths.append(float(np.linalg.norm(change)))
    return np.array(lengths), optimizer


def _expected_outliers(norms, rates, factor, length):
    """The first limit, in NumPy."""
    history, applied, peak = [], [], 0.0
    for norm, rate in zip(norms, rates, strict=True):
        told, early = rate, 1 + 8 / max(1, len(history))
        if peak and rate > factor * early * peak:
            rate = 1.25 * early * peak
        peak = max(peak, min(rate, 1.25 * early * peak)) if peak else rate
        s = norm * rate
        largest = max(history[-length:], default=0.0)
        limit = factor * (1 + 8 / max(1, len(history))) * largest if largest else INF
        applied.append(norm * rate / told * ((limit / s) ** 2 if s > limit else 1.0))
        history.append(1.25 * largest if s > limit else s)
    return np.array(applied)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_outliers(mode):
    draw = np.random.default_rng(0)
    norms = np.exp(draw.normal(scale=0.3, size=40))
    norms[[15, 30]] *= (1e3, 40.0)
    rates = np.full(40, RATE)
    rates[22] *= 100  # A spike of the rate is one of the step.
    got, _ = _run(_limits(outlier_factor=2.0, history_length=6), norms, mode, rates=rates)
    expected = _expected_outliers(norms, rates, 2.0, 6)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    clipped = expected < norms * (1 - 1e-6)
    np.testing.assert_array_equal(np.flatnonzero(clipped), [15, 22, 30])
    assert expected[15] < 0.1 < norms.min()


# With the counts of Keras' steps between which the rate is 100 times as high, and how many were
# applied before.
JUMPING = {
    "SGD": (lambda rate: keras.optimizers.SGD(rate, momentum=0.9), (19, 20), 20),
    "Adam": (lambda rate: keras.optimizers.Adam(rate), (19, 20), 20),
    "AdamW": (lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1), (19, 20), 20),
    "averaged": (lambda rate: keras.optimizers.Adam(rate, use_ema=True), (19, 20), 20),
    "two batches": (
        lambda rate: keras.optimizers.Adam(rate, gradient_accumulation_steps=2), (19, 21), 10
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "graph") for name in JUMPING] + [("AdamW", mode) for mode in ("eager", "xla")],
)
def test_a_spike_of_the_rate_is_no_step_of_that_length(name, mode):
    make, spike, before = JUMPING[name]
    draw = np.random.default_rng(1)
    gradients = [tf.constant(g, "float32") for g in draw.uniform(1, 1.2, (50, 3))]

    def result(highest, *chain):
        weight = keras.Variable(np.ones(3, "float32"))
        optimizer = make(
            keras.optimizers.schedules.PiecewiseConstantDecay(spike, [0.01, highest, 0.01])
        )
        if chain:
            optimizer = optimizers.StabilizedOptimizer(optimizer, chain)
        optimizer.build([weight])
        step = tf.function(
            lambda gradient: optimizer.apply([gradient], [weight]), jit_compile=mode == "xla"
        )
        for gradient in gradients:
            (step.python_function if mode == "eager" else step)(gradient)
        return weight.numpy(), optimizer

    expected, _ = result(0.01 * 1.25 * (1 + 8 / before))
    unlimited, _ = result(1.0)
    assert np.abs(unlimited - expected).max() > 0.1
    automatic = transforms.AutomaticClipping(max_ratio=INF, max_rate_ratio=INF)
    got, optimizer = result(1.0, transforms.SkipNonFinite(), automatic)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert optimizer.telemetry.peek().total_clipped == 1
    assert float(optimizer.learning_rate) == pytest.approx(0.01)


def test_a_rate_that_is_raised_for_good_gets_there_within_some_steps():
    rates = [0.1] * 20 + [1.0] * 20
    got, _ = _run(_limits(outlier_factor=2.0), [1.0] * 40, rates=rates)
    np.testing.assert_allclose(got[:20], 1.0, rtol=1e-5)
    np.testing.assert_allclose(got[20], 0.1 * 1.25 * (1 + 8 / 20), rtol=1e-5)
    np.testing.assert_allclose(got[-8:], 1.0, rtol=1e-5)


@pytest.mark.parametrize(("first", "settled"), [(1e-3, 1), (0.0, 1), (1e-5, 6), (1e-9, 30)])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_warm_up_of_the_rate_is_followed(first, settled):
    got, _ = _run(_limits(outlier_factor=2.0), [1.0] * 60, rates=first + 0.01 * np.arange(60))
    np.testing.assert_allclose(got[settled:], 1.0, rtol=1e-4)


def test_a_new_level_is_accepted_within_some_steps():
    norms = [1.0] * 50 + [100.0] * 30
    got, _ = _run(_limits(outlier_factor=2.0), norms)
    assert got[50] < 0.1
    np.testing.assert_allclose(got[-10:], 100.0, rtol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_the_weights_bound_the_gradient_along_any_schedule(mode):
    rates = [0.5, 0.4, 0.1, 50.0, 0.1, 0.1]
    got, _ = _run(
        _limits(max_ratio=0.25, warmup_steps=0), [8.0] * 6, mode, weight_norm=20.0, rates=rates
    )
    # 0.4·r·‖w‖/η*, as the loss is not known, with the largest rate so far, which a spike can't
    # raise as far as it goes.
    raised = 0.5 * 1.25 * (1 + 8 / 3)
    bounds = [0.1 * 20 / rate for rate in (0.5, 0.5, 0.5, 50.0, raised, raised)]
    np.testing.assert_allclose(got, np.minimum(8.0, bounds), rtol=1e-4)


def _expected_weights(norms, losses, ratio, steps, weight_norm, waits=False):
    """The second limit over a warm-up, in NumPy; also how far it has come at the end.

    Args:
        waits: Whether a strained net gets further by gradients within their bound alone.
    """
    applied, progress = [], None
    for norm, loss in zip(norms, losses, strict=True):
        sensitivity = norm * weight_norm / loss if loss > 0 else 40.0
        limit = ratio * np.clip(np.sqrt(4 / sensitivity), 0.4, 1) * weight_norm / RATE
        strain = max(1.0, sensitivity / 40)
        if progress is None:
            progress = steps * max(0.0, 1 - strain * norm / limit)
        first = np.clip(0.05 * 4 / sensitivity, 0.003, 0.05)
        bound = (first + (1 - first) * progress / steps) * limit
        applied.append(min(norm, bound))
        if not (waits and strain > 1 and norm > bound):
            progress += (1.0 if norm <= limit else 0.1) * max(1 / strain, 0.1)
        progress = min(progress, steps)
    return np.array(applied), progress


# Norms of gradients and losses; of weights of norm 20, 25 % of which may change with a usual loss.
WARM_UPS = {
    "from its beginning": ([4.0, 3.9, 3.9, 3.9, 3.9, 3.9], [0.0] * 6),
    "slowly while gradients are long": ([8.0, 3.9, 3.9, 8.0, 8.0, 3.9, 3.9, 8.0], [0.0] * 8),
    "with a head start": ([1.0, 3.9, 3.9, 3.9], [0.0] * 4),
    "not at all": ([0.02, 0.1, 3.9], [0.0] * 3),
    "to more where the loss is insensitive": ([9.9] * 7, [100.0, 50.0, 25.0, 12.0, 9.0, 6.0, 50.0]),
    "slower where it is sensitive": ([2.0, 3.9, 3.9, 8.0, 3.9], [1.5, 1.0, 0.01, 1.0, -1.0]),
    "with no head start where it is": ([1.0, 1.0, 1.0], [0.01, 0.02, 10.0]),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "graph") for name in WARM_UPS]
    + [("slower where it is sensitive", mode) for mode in ("eager", "xla")],
)
def test_the_ratio_to_the_weights_and_its_warm_up(name, mode):
    norms, losses = WARM_UPS[name]
    limits = _limits(max_ratio=0.25, warmup_steps=4)
    got, optimizer = _run(limits, norms, mode, weight_norm=20.0, losses=losses)
    expected, progress = _expected_weights(norms, losses, 0.25, 4, 20.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    (state,) = [v for v in optimizer.variables if v.name.endswith("progress")]
    assert float(state) == pytest.approx(progress, rel=1e-4)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_strained_net_waits_for_short_gradients_where_adam_remembers_long_ones(mode):
    # The third and the fourth are within the limit, and beyond the bound of their step of the
    # warm-up; the fourth does not strain the net.
    norms = [30.0, 20.0, 2.0, 3.0, 0.01, 0.02, 5.0, 0.03, 1.0]
    losses = [1.0, 1.0, 0.1, 100.0, 1e-4, 0.02, 2.0, 1e-3, 2.0]
    limits = _limits(max_ratio=0.25, warmup_steps=4)
    arguments = {"weight_norm": 20.0, "losses": losses}
    got, optimizer = _run(limits, norms, mode, **arguments, adam=True)
    expected, progress = _expected_weights(norms, losses, 0.25, 4, 20.0, waits=True)
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    (state,) = [v for v in optimizer.variables if v.name.endswith("progress")]
    assert float(state) == pytest.approx(progress, rel=1e-4)
    # SGD would not get anywhere.
    limits = _limits(max_ratio=0.25, warmup_steps=4)
    got, optimizer = _run(limits, norms, mode, **arguments)
    expected, further = _expected_weights(norms, losses, 0.25, 4, 20.0)
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    assert further > progress


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_no_step_is_predicted_to_take_the_loss_below_zero(mode):
    # η·n² is 8, 8, 8, 8, 8: a loss of 5 is exceeded by less than a factor of 2.
    losses = [10.0, 5.0, 2.0, 0.0, -3.0]
    got, _ = _run(_limits(loss_factor=1.0), [4.0] * 5, mode, losses=losses)
    np.testing.assert_allclose(got, [4.0, 4.0, 2.0 / (0.5 * 4.0), 4.0, 4.0], rtol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_step_undoes_more_than_the_largest_loss(mode, momentum):
    losses = np.array([20.0, 30.0, 90.0, 20.0, 20.0, 20.0, 20.0, -1.0, 0.0])
    # The largest loss grows by a quarter in a step, the largest rate so far counts.
    largest = np.array([20.0, 25.0, 31.25, 31.25, 31.25, 31.25, 31.25, 31.25, 31.25])
    rates = np.array([RATE] * 5 + [RATE / 4] * 4)
    allowed = np.sqrt((1 - momentum) / RATE * largest)
    norms = allowed * [1.6, 1.6, 1.69, 1.71, 2.0, 1.0, 0.1, 1.8, 2.0]
    got, _ = _run(
        _limits(loss_factor=1.0), norms, mode, losses=losses, rates=rates, momentum=momentum
    )
    to_zero = np.where(losses > 0, losses / (rates * norms), INF)  # What a loss of its own allows.
    expected = np.minimum(
        np.where(norms > 1.7 * allowed, allowed, norms),
        np.where(norms > 2 * to_zero, to_zero, norms),
    )
    assert np.flatnonzero(expected < norms).tolist() == (
        [3, 4, 7, 8] if momentum else [0, 1, 3, 4, 7, 8]
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_adam_divides_by_its_gradients_and_undoes_no_more_for_long_ones():
    # With SGD 40 is beyond the limit by the largest loss, 1.7·14, and within twice that by its own.
    norms, losses = [1.0, 40.0, 1.0], [1000.0] * 3
    got, _ = _run(_limits(loss_factor=1.0), norms, losses=losses, adam=True)
    np.testing.assert_allclose(got, norms, rtol=1e-4)
    got, _ = _run(_limits(loss_factor=1.0), norms, losses=losses, momentum=0.9)
    np.testing.assert_allclose(got, [1.0, np.sqrt(0.1 * 1000 / RATE), 1.0], rtol=1e-4)


def test_an_infinite_loss_is_no_largest_one():
    norms, losses = [1.0, 40.0, 1.0], [np.inf, 1000.0, 1000.0]
    got, _ = _run(_limits(loss_factor=1.0), norms, losses=losses, momentum=0.9)
    np.testing.assert_allclose(got[1], np.sqrt(0.1 * 1000 / RATE), rtol=1e-4)


def _changes(
    inner, rates, norm, mode, *, losses=None, shapes=((3, 4), (4,)), growth=None, **arguments
):
    """Take steps along a gradient of ones; return the change of a weight in each.

    Weights of this norm together, such as a kernel of 3 inputs and 4 units and a bias, are put back
    before each; `growth` is what they are multiplied by then.
    """
    optimizer = optimizers.StabilizedOptimizer(
        inner, [transforms.SkipNonFinite(), _limits(**arguments)]
    )
    size = sum(np.prod(shape) for shape in shapes)
    starts = [np.full(shape, norm / np.sqrt(size), "float32") for shape in shapes]
    weights = [keras.Variable(start) for start in starts]
    optimizer.build(weights)

    @tf.function(jit_compile=mode == "xla")
    def compiled(rate, loss):
        inner.learning_rate.assign(rate)
        optimizer.scale_loss(loss)
        optimizer.apply([tf.ones(start.shape) for start in starts], weights)

    step = compiled.python_function if mode == "eager" else compiled
    changes = []
    losses = [0.0] * len(rates) if losses is None else losses
    growth = [1.0] * len(rates) if growth is None else growth
    for rate, loss, times in zip(rates, losses, growth, strict=True):
        for weight, start in zip(weights, starts, strict=True):
            weight.assign(start * times)
        step(tf.constant(rate, "float32"), tf.constant(loss, "float32"))
        changes.append(float((times * starts[-1] - weights[-1].numpy()).max()))
    return np.array(changes), optimizer


RATES = np.array([0.02, 0.1, 0.4, 0.2, 0.1, 0.01])


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_the_weights_bound_the_rate_of_adam_along_any_schedule(mode):
    got, optimizer = _changes(keras.optimizers.Adam(), RATES, 4.0, mode, max_rate_ratio=0.3)
    # A kernel of 3 inputs, whose part of the norm is √(12/16); the bias is none.
    limit = 0.3 * 4.0 * np.sqrt(12 / 16) / np.sqrt(12 * 3)
    peaks = np.maximum.accumulate(RATES)
    expected = RATES * np.minimum(1, limit / peaks)
    assert expected[1] == RATES[1]
    assert expected[-1] < RATES[-1]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert optimizer.telemetry.peek().total_clipped == 4
    assert float(optimizer.learning_rate) == pytest.approx(0.01)  # As it was set.


@pytest.mark.parametrize(
    ("shapes", "responses"),
    [
        # √(n·f)/‖w‖ of each kernel of n entries with f inputs per unit, for entries of 2.
        (((3, 3, 2, 4),), [np.sqrt(72 * 18) / (2 * np.sqrt(72))]),
        (((5, 2, 4), (2, 4)), [np.sqrt(10) / 2, np.sqrt(2) / 2]),
        (((0, 4), (3, 4), (4,)), [np.sqrt(3) / 2]),
    ],
)
def test_what_layers_give_changes_by_so_much(shapes, responses):
    norm = 2 * np.sqrt(sum(np.prod(shape) for shape in shapes))
    got, _ = _changes(
        keras.optimizers.Adam(), [5.0, 5.0], norm, "graph", shapes=shapes, max_rate_ratio=1.0
    )
    np.testing.assert_allclose(got, 1.0 / sum(responses), rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "usual"),
    [
        ((3, 4), np.sqrt(12 * 2 / 7)),  # More units than inputs: Glorot's variance, 2/(3 + 4).
        ((4, 3), np.sqrt(12 / 4)),  # LeCun's.
        ((5, 2, 4), np.sqrt(40 / 10)),
    ],
)
def test_a_layer_that_begins_with_less_counts_as_usual(shape, usual):
    inputs = np.prod(shape[:-1])
    for norm in (0.0, 0.1, 0.9):
        got, _ = _changes(
            keras.optimizers.Adam(), [5.0], norm * usual, "graph",
            shapes=[shape], max_rate_ratio=1.0,
        )  # fmt: skip
        expected = usual / np.sqrt(np.prod(shape) * inputs)
        np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize(("norm", "first"), [(3.0, 3.0), (0.5, np.sqrt(12 * 2 / 7))])
def test_weights_that_blow_up_bear_a_lower_rate(norm, first):
    growth = np.array([1.0, 2.0, 7.9, 16.0, 40.0, 0.5, 600.0])
    got, _ = _changes(
        keras.optimizers.Adam(), [5.0] * 7, norm, "graph",
        shapes=[(3, 4)], growth=growth, max_rate_ratio=1.0,
    )  # fmt: skip
    beyond = np.maximum(norm * growth / (8 * first), 1.0)
    expected = first / 6 / beyond**2
    np.testing.assert_allclose(got[:-1], expected[:-1], rtol=1e-3)
    # Not below the default rate, of which weights of that size show two digits.
    assert expected[-1] < 0.8e-3
    assert got[-1] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(("rate", "clips"), [(0.016, 0), (0.064, 1)])
def test_a_rate_at_which_plain_adam_is_best_is_left_alone(rate, clips):
    # On Fashion-MNIST this net learns best at 0.008 to 0.016, and badly from 0.064 on.
    model = keras.Sequential(
        [keras.Input((784,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    )
    optimizer = gradstab.stabilize(keras.optimizers.Adam(rate))
    optimizer.build(model.trainable_variables)
    gradients = [tf.fill(v.shape, 1e-4) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    assert optimizer.telemetry.peek().total_clipped == clips


def test_a_bias_of_any_rank_is_no_layer():
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.GRU(2, reset_after=True)])
    kernel, recurrent, bias = model.trainable_variables
    assert bias.shape == (2, 6)
    kernel.assign(tf.ones((4, 6)))
    recurrent.assign(tf.fill((2, 6), 2.0))
    inner = keras.optimizers.Adam(0.5)
    optimizer = optimizers.StabilizedOptimizer(inner, [_limits(max_rate_ratio=0.1)])
    optimizer.bind(model)
    optimizer.apply(
        [tf.ones(v.shape) for v in (kernel, recurrent, bias)], [kernel, recurrent, bias]
    )
    expected = 0.1 / (np.sqrt(4) / 1.0 + np.sqrt(2) / 2.0)
    np.testing.assert_allclose(1.0 - kernel.numpy(), expected, rtol=1e-4)


def test_no_rate_of_up_to_the_default_one_is_limited():
    rates = np.array([1e-3, 5e-4, 1e-3])
    for norm in (0.0, 1e-6):
        got, _ = _changes(keras.optimizers.Adam(), rates, norm, "graph", max_rate_ratio=1e-4)
        np.testing.assert_allclose(got, rates, rtol=1e-3)
    got, _ = _changes(keras.optimizers.Adam(), 10 * rates, 0.0, "graph", max_rate_ratio=1e-4)
    np.testing.assert_allclose(got, rates, rtol=1e-3)
    got, _ = _changes(keras.optimizers.Adam(), 10 * rates, 0.0, "graph")  # No limit at all.
    np.testing.assert_allclose(got, 10 * rates, rtol=1e-3)


def test_rates_of_other_optimizers_mean_something_else():
    got, _ = _changes(keras.optimizers.SGD(), RATES, 1e-3, "graph", max_rate_ratio=1.5)
    np.testing.assert_allclose(got, RATES, rtol=1e-3)


def test_without_a_loss_or_weights_there_is_nothing_to_compare_with():
    got, _ = _run(transforms.AutomaticClipping(), [3.0], weight_norm=0.0)
    np.testing.assert_allclose(got, [3.0], rtol=1e-5)


def test_a_rate_that_begins_at_zero_is_followed():
    rates = np.linspace(0, 0.5, 20)
    rates[0] = 1e-12
    got, optimizer = _run(_limits(max_ratio=0.25, warmup_steps=0), [2.0] * 20, rates=rates)
    np.testing.assert_allclose(got[-1], 2.0, rtol=1e-4)
    (peak,) = [v for v in optimizer.variables if v.name.endswith("peak_rate")]
    assert float(peak) > 0


def test_what_is_skipped_enters_nothing():
    _, optimizer = _run(transforms.AutomaticClipping(), [1.0, 2.0])
    before = checks.contents(checks.lasting_state(optimizer))
    weight = optimizer.inner_optimizer._trainable_variables[0]
    optimizer.apply([tf.constant([np.nan, 1.0])], [weight])
    assert not checks.differences(before, checks.contents(checks.lasting_state(optimizer)))


def test_auto_is_what_stabilize_takes_it_for():
    optimizer = gradstab.stabilize("sgd", clip="auto", learning_rate=0.1)
    assert [type(each) for each in optimizer.transforms] == [
        transforms.SkipNonFinite,
        transforms.AutomaticClipping,
    ]
    with pytest.raises((TypeError, ValueError), match="'auto' needs no bound"):
        gradstab.stabilize("sgd", clip="automatic")


def test_several_rates_leave_outliers_to_be_clipped():
    parts = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2)]
    weights = [keras.Variable(np.ones(2)) for _ in parts]
    inner = keras.optimizers.MultiOptimizer(lambda variable: parts[variable is weights[1]])
    optimizer = gradstab.stabilize(inner, clip="auto")
    optimizer.build(weights)
    for size in [1.0] * 20 + [1e4]:
        before = weights[0].numpy()
        optimizer.apply([tf.fill([2], size)] * 2, weights)
    assert np.abs(weights[0].numpy() - before).max() < 0.01


@pytest.fixture(scope="module")
def blobs():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 4, 1280)
    return (draw.normal(size=(1280, 8)) + 1.5 * np.eye(4, 8)[y] * 2).astype("float32"), y


def _accuracy(optimizer, data, steps=120, hit=None, depth=1):
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(32, "relu") for _ in range(depth)]
    model = keras.Sequential([keras.Input((8,)), *hidden, keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    x, y = (part.copy() for part in data)
    if hit is not None:
        x[hit], y[hit] = x[hit] * 1e3, (y[hit] + 1) % 4
    model.fit(x, y, batch_size=32, epochs=steps // 40, shuffle=False, verbose=0)
    return model.evaluate(*data, verbose=0)[1]


def test_a_run_that_is_far_too_fast_learns_still(blobs):
    def optimizer(rate):
        decay = keras.optimizers.schedules.CosineDecay(rate, 120)
        return keras.optimizers.SGD(decay, momentum=0.9)

    healthy = _accuracy(optimizer(0.05), blobs)
    assert healthy > 0.9
    assert _accuracy(optimizer(50.0), blobs) < 0.5
    fast = gradstab.stabilize(optimizer(50.0), clip="auto")
    assert _accuracy(fast, blobs) > healthy - 0.03
    assert fast.telemetry.peek().total_clipped > 60


def test_a_rate_that_is_far_too_high_for_adam_is_brought_down(blobs):
    def accuracy(rate, clip=None):
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, 120))
        if clip is not None:
            optimizer = gradstab.stabilize(optimizer, clip=clip)
        return _accuracy(optimizer, blobs, depth=4), optimizer

    healthy, _ = accuracy(0.01)
    assert healthy > 0.9
    assert accuracy(50.0)[0] < healthy - 0.2
    fast, optimizer = accuracy(50.0, "auto")
    assert fast > healthy - 0.03
    assert optimizer.telemetry.peek().total_clipped == 120
    left_alone, optimizer = accuracy(0.01, "auto")
    assert left_alone == pytest.approx(healthy, abs=0.01)
    assert optimizer.telemetry.peek().total_clipped == 0


def test_a_healthy_run_is_left_alone_and_a_bad_batch_does_no_harm(blobs):
    plain = _accuracy(keras.optimizers.SGD(0.05, momentum=0.9), blobs)
    auto = gradstab.stabilize(keras.optimizers.SGD(0.05, momentum=0.9), clip="auto")
    assert _accuracy(auto, blobs) == pytest.approx(plain, abs=0.01)
    hit = slice(640, 672)
    assert _accuracy(keras.optimizers.SGD(0.05, momentum=0.9), blobs, hit=hit) < plain - 0.05
    auto = gradstab.stabilize(keras.optimizers.SGD(0.05, momentum=0.9), clip="auto")
    assert _accuracy(auto, blobs, hit=hit) == pytest.approx(plain, abs=0.02)
