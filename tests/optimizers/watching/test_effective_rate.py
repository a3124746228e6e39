"""Effective rates against NumPy, on slots that NumPy computes too, in every mode, and recorded."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from common_checks import MODES, compiled, mirrored

import gradstab
from gradstab.callbacks import GradientMonitor
from gradstab.functional import effective_rates as functional
from gradstab.monitoring import read_record
from gradstab.optimizers import effective_learning_rates
from gradstab.optimizers.watching.effective_rate import (
    LEVELS,
    MOST_ENTRIES,
    EffectiveRates,
    second_moments,
)

RATE = 0.3


def adagrad(gradients, rate=RATE):
    return rate / np.sqrt(0.1 + sum(g**2 for g in gradients) + 1e-7)


def rmsprop(gradients, rate=RATE, centered=False):
    v, mean = 0.0, 0.0
    for g in gradients:
        v, mean = 0.9 * v + 0.1 * g**2, 0.9 * mean + 0.1 * g
    return rate / np.sqrt(v - centered * mean**2 + 1e-7)


def adam(gradients, rate=RATE, amsgrad=False):
    v, largest = 0.0, 0.0
    for g in gradients:
        v = 0.999 * v + 0.001 * g**2
        largest = np.maximum(v, largest)
    corrected = np.sqrt(1 - 0.999 ** len(gradients))
    return rate * corrected / (np.sqrt(largest if amsgrad else v) + 1e-7)


KINDS = {
    "adagrad": (lambda rate: keras.optimizers.Adagrad(rate), adagrad),
    "rmsprop": (lambda rate: keras.optimizers.RMSprop(rate, momentum=0.5), rmsprop),
    "centered": (
        lambda rate: keras.optimizers.RMSprop(rate, centered=True),
        lambda *a: rmsprop(*a, centered=True),
    ),
    "adam": (lambda rate: keras.optimizers.Adam(rate), adam),
    "amsgrad": (
        lambda rate: keras.optimizers.Adam(rate, amsgrad=True),
        lambda *a: adam(*a, amsgrad=True),
    ),
    "adamw": (lambda rate: keras.optimizers.AdamW(rate), adam),
}


def layers():
    """Two layers, one with two variables, in the paths that Keras gives them."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")]
    )
    return model.trainable_variables


def gradients_for(variables, seed, scale=1.0):
    draw = np.random.default_rng(seed)
    return [scale * draw.normal(size=v.shape).astype("float32") + 0.01 for v in variables]


def expected_quantiles(closed_form, steps, rate=RATE):
    """Quantiles over each layer's entries, kernel and bias together; `steps` as they were given."""
    by_variable = [
        closed_form([np.float64(g) for g in history], rate).ravel()
        for history in zip(*steps, strict=True)
    ]
    together = [np.concatenate(by_variable[i : i + 2]) for i in (0, 2)]
    return np.stack([np.quantile(each, list(LEVELS.values())) for each in together])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "graph") for kind in KINDS), ("adam", "eager"), ("adam", "xla"), ("centered", "xla")],
)
def test_against_numpy_in_every_mode(kind, mode):
    make, closed_form = KINDS[kind]
    variables, optimizer = layers(), make(RATE)
    optimizer.build(variables)
    rates = EffectiveRates(optimizer)
    read = compiled(rates.quantiles, mode)
    steps = [gradients_for(variables, seed, scale) for seed, scale in enumerate((1.0, 30.0, 0.1))]
    for place, step in enumerate(steps, start=1):
        optimizer.apply([tf.constant(g) for g in step], variables)
        got = read().numpy()
        expected = expected_quantiles(closed_form, steps[:place])
        # One minus a power of 0.999 in float32, as Keras has it, is exact to 1e-4 at first.
        np.testing.assert_allclose(got, expected, rtol=2e-4)
    assert [layer.rpartition("/")[2] for layer in rates.layers] == ["a", "b"]


@pytest.mark.parametrize("kind", ["adagrad", "rmsprop", "adam", "amsgrad", "adamw"])
def test_it_is_what_the_first_update_multiplies_the_gradient_by(kind):
    variables, optimizer = layers(), KINDS[kind][0](RATE)
    if kind == "adamw":
        optimizer.exclude_from_weight_decay(variables)
    gradients = gradients_for(variables, 0)
    before = [v.numpy().copy() for v in variables]
    optimizer.apply([tf.constant(g) for g in gradients], variables)
    factors = [
        ((old - new.numpy()) / g).ravel()
        for old, new, g in zip(before, variables, gradients, strict=True)
    ]
    found = effective_learning_rates(optimizer).values()
    for quantiles, whole in zip(found, (factors[:2], factors[2:]), strict=True):
        expected = np.quantile(np.concatenate(whole), list(LEVELS.values()))
        np.testing.assert_allclose(list(quantiles.values()), expected, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_quantiles_are_numpys(mode):
    levels = [0.0, 0.05, 0.25, 0.5, 0.9, 1.0]
    quantiles = compiled(lambda v, k: functional.quantiles(v, k, levels), mode)
    for count in (1, 2, 5, 100, 101):
        values = np.random.default_rng(count).lognormal(0, 3, size=120).astype("float32")
        kept = np.zeros(120, bool)
        kept[np.random.default_rng(1).permutation(120)[:count]] = True
        got = quantiles(tf.constant(values), tf.constant(kept)).numpy()
        np.testing.assert_allclose(got, np.quantile(values[kept], levels), rtol=1e-5)
    nothing = quantiles(tf.constant(values), tf.zeros(120, "bool")).numpy()
    assert np.isnan(nothing).all()


def test_the_rate_is_that_of_the_update_not_of_the_next_one():
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.01])
    variables, optimizer = layers(), keras.optimizers.Adagrad(decay)
    steps = [gradients_for(variables, 0)]
    optimizer.apply([tf.constant(g) for g in steps[0]], variables)
    rates = EffectiveRates(optimizer)
    got, rate = rates.read()
    assert rate == pytest.approx(0.5)
    np.testing.assert_allclose(got, expected_quantiles(adagrad, steps, 0.5), rtol=1e-5)


def test_entries_without_a_gradient_do_not_count():
    embeddings = keras.Variable(np.ones((50, 2)), name="table")
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build([embeddings])
    assert np.isnan(list(effective_learning_rates(optimizer)["table"].values())).all()
    rows = tf.IndexedSlices(tf.fill((1, 2), 4.0), tf.constant([7]), tf.constant([50, 2]))
    optimizer.apply([rows], [embeddings])
    assert list(effective_learning_rates(optimizer)["table"].values()) == pytest.approx(
        [RATE / 4] * 5, rel=1e-4
    )


def test_adagrad_has_no_rate_before_its_first_update():
    optimizer = keras.optimizers.Adagrad(RATE)
    optimizer.build(layers())
    assert np.isnan(EffectiveRates(optimizer).read()[0]).all()


def test_a_large_layer_is_looked_at_on_a_grid_that_does_not_repeat_its_channels():
    size = (256, 512)  # of which every 32nd entry would be one of 16 channels
    variable = keras.Variable(np.zeros(size), name="kernel")
    optimizer = keras.optimizers.Adagrad(RATE, initial_accumulator_value=0.0)
    # The rate falls from channel to channel, so that looking at some of them only shows.
    gradient = np.tile(np.exp(np.linspace(0, 5, size[1])), (size[0], 1)).astype("float32")
    optimizer.apply([tf.constant(gradient)], [variable])
    got = list(effective_learning_rates(optimizer)["kernel"].values())
    expected = np.quantile(RATE / gradient, list(LEVELS.values()))
    assert variable.shape[0] * variable.shape[1] > 10 * MOST_ENTRIES
    np.testing.assert_allclose(got, expected, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(dtype):
    variable = keras.Variable(np.zeros(3), dtype=dtype, name="weight")
    optimizer = keras.optimizers.Adagrad(RATE, initial_accumulator_value=1.0)
    optimizer.apply([tf.constant([0.0, 2.0, 4.0], dtype)], [variable])
    got = effective_learning_rates(optimizer)["weight"]
    assert got["median"] == pytest.approx(RATE / np.sqrt(5), rel=5e-3)


def test_whatever_wraps_the_optimizer_and_several_at_once():
    variables = layers()
    plain = keras.optimizers.Adam(RATE)
    wrapped = keras.optimizers.LossScaleOptimizer(
        gradstab.stabilize(keras.optimizers.Adam(RATE), clip=None), initial_scale=1.0
    )
    gradients = [tf.constant(g) for g in gradients_for(variables, 0)]
    for optimizer in (plain, wrapped):
        optimizer.apply(gradients, variables)
    assert effective_learning_rates(wrapped) == effective_learning_rates(plain)
    for other in (keras.optimizers.SGD(0.1), None):
        with pytest.raises(
            TypeError, match="must be one of Adagrad, RMSprop, Adam, AdamW, or wrap"
        ):
            effective_learning_rates(other)


def test_adams_count_is_that_of_updates_under_accumulation():
    variables, window = layers(), 3
    optimizer = keras.optimizers.Adam(RATE, gradient_accumulation_steps=window)
    steps = [gradients_for(variables, seed) for seed in range(2)]
    for step in steps:
        for _ in range(window):
            optimizer.apply([tf.constant(g) for g in step], variables)
    got = EffectiveRates(optimizer).read()[0]
    np.testing.assert_allclose(got, expected_quantiles(adam, steps), rtol=2e-4)


def test_on_replicas_they_are_those_of_one():
    strategy = mirrored(2)
    with strategy.scope():
        variables = layers()
        optimizer = gradstab.stabilize(keras.optimizers.Adam(RATE), clip=None)
        optimizer.build(variables)
    steps = [gradients_for(variables, seed) for seed in range(2)]
    for step in steps:
        shares = [tf.constant(g / 2) for g in step]
        strategy.run(lambda s=shares: optimizer.apply(s, variables))
    got = EffectiveRates(optimizer.inner_optimizer).read()[0]
    np.testing.assert_allclose(got, expected_quantiles(adam, steps), rtol=2e-4)


def test_keras_keeps_its_slots_where_they_are_read():
    """Private lists are read, which a new version of Keras may keep elsewhere."""
    for make, _ in KINDS.values():
        variables, optimizer = layers(), make(RATE)
        optimizer.build(variables)
        for variable in variables:
            assert all(each.shape == variable.shape for each in second_moments(optimizer, variable))


# Over a run -------------------------------------------------------------------------------------


def fit(optimizer, run_dir, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(1)]
    )
    model.compile(optimizer, "mse", **arguments)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(64, 3)), draw.normal(size=(64, 1))
    monitor = GradientMonitor(run_dir, every_n_steps=3, effective_rates=True)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, callbacks=[monitor], verbose=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "jit_compile"), [(False, False), (True, True)])
def test_a_run_is_recorded_and_drawn(tmp_path, ours, jit_compile):
    from gradstab.reports import plot_effective_rate, to_html

    optimizer = keras.optimizers.Adam(gradstab.schedules.LinearDecay(0.1, 32))
    wrapped = gradstab.stabilize(optimizer) if ours else optimizer
    fit(wrapped, tmp_path, jit_compile=jit_compile)
    record = read_record(tmp_path)
    medians = record.per_layer("effective_rate_median")
    assert [name.rpartition("/")[2] for name in medians.names] == ["a", "dense"]
    assert medians.steps.tolist() == [3, 6, 8, 11, 14, 16]
    now = effective_learning_rates(wrapped)
    for place, name in enumerate(medians.names):
        for level in LEVELS:
            values = record.per_layer(f"effective_rate_{level}").values
            assert values[-1, place] == pytest.approx(now[name][level], rel=1e-4)
    set_rate = record.columns["learning_rate"][np.isin(record.steps, medians.steps)]
    np.testing.assert_allclose(set_rate, 0.1 * (1 - (medians.steps - 1) / 32), rtol=1e-5)
    ax = plot_effective_rate(record)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "a", "dense", "the rate that was set",
    ]  # fmt: skip
    assert 'id="effective-rate"' in to_html(record)


def test_many_steps_per_call_and_several_epochs(tmp_path):
    optimizer = gradstab.stabilize(keras.optimizers.RMSprop(0.01))
    fit(optimizer, tmp_path, steps_per_execution=4)
    medians = read_record(tmp_path).per_layer("effective_rate_median")
    assert medians.steps.tolist() == [4, 8, 12, 16]
    assert np.isfinite(medians.values).all()


def test_an_optimizer_without_such_rates_is_warned_of_and_trained(tmp_path):
    with pytest.warns(UserWarning, match=r"`effective_rates` needs Adagrad, RMSprop.*with SGD"):
        fit(keras.optimizers.SGD(0.1), tmp_path)
    medians = read_record(tmp_path).per_layer("effective_rate_median")
    assert medians.values.shape[1] == 2
    assert np.isnan(medians.values).all()


def test_bad_arguments():
    with pytest.raises(TypeError, match="`effective_rates` must be True or False"):
        GradientMonitor(effective_rates=1)


def test_tensorboard_gets_the_medians(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="a")])
    model.compile(keras.optimizers.Adagrad(0.1), "mse")
    monitor = GradientMonitor(tensorboard_dir=tmp_path, every_n_steps=2, effective_rates=True)
    model.fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=2, callbacks=[monitor], verbose=0)
    (file,) = tmp_path.glob("events*")
    tags = [
        (event.step, value.tag)
        for event in loader.EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    rates = [(step, tag) for step, tag in tags if tag.startswith("effective_rate/")]
    assert [step for step, _ in rates] == [2, 4]
    assert rates[0][1].endswith("/a")
