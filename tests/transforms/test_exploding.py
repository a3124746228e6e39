"""Kernels that begin too large: shrunk first, as NumPy says, and nothing else with them."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab
from gradstab import optimizers, transforms

INF = float("inf")
# Kernels of three inputs and four units, and of four and two, and a bias.
SHAPES = (3, 4), (4,), (4, 2)
# More units than inputs: Glorot's variance, 2/(3 + 4). Else LeCun's.
USUAL = np.array([np.sqrt(12 * 2 / 7), np.inf, np.sqrt(8 / 4)])
# He's, of both kernels together.
HE = np.sqrt(12 * 2 / 3 + 8 * 2 / 4)
RATE, ADAMS = 0.01, 0.04

INNER = {
    "SGD": lambda: keras.optimizers.SGD(RATE),
    "momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(ADAMS),
}


def _unlimited(**arguments):
    """A transform that clips nothing."""
    limits = ("max_ratio", "outlier_factor", "loss_factor", "max_rate_ratio")
    return transforms.AutomaticClipping(**dict.fromkeys(limits, INF) | arguments)


def _weights(times, seed=0):
    """Start so many times as large as is usual; the bias as large as a weight."""
    draw = np.random.default_rng(seed)
    starts = [draw.normal(size=shape) for shape in SHAPES]
    sizes = np.where(np.isfinite(USUAL), USUAL, 1.0) * times
    return [
        (size * start / np.linalg.norm(start)).astype("float32")
        for size, start in zip(sizes, starts, strict=True)
    ]


def _gradients(weights, share, loss):
    """Gradients of which w·g is this share of the loss for each kernel; ones for the bias."""
    return [
        np.ones_like(weight)
        if weight.ndim == 1
        else (share * loss * weight / np.sum(weight**2)).astype("float32")
        for weight in weights
    ]


def _optimizer(inner, *chain):
    return optimizers.StabilizedOptimizer(inner, [transforms.SkipNonFinite(), *chain])


def _run(inner, shares, start, mode="graph", transform=None, loss=0.1, known=True):
    """Take steps in which the loss is so much in proportion; return weights after each."""
    optimizer = _optimizer(inner, transform or _unlimited())
    weights = [keras.Variable(value) for value in start]
    optimizer.build(weights)

    def step(*gradients):
        if known:
            optimizer.scale_loss(tf.constant(loss))
        optimizer.apply(list(gradients), weights)

    step = checks.compiled(step, mode)
    after = []
    for share in shares:
        step(*map(tf.constant, _gradients(checks.values_of(weights), share, loss)))
        after.append(checks.values_of(weights))
    return after, optimizer


def _expected(name, shares, start, loss=0.1, most=1000):
    """The same in NumPy, and the number of steps that shrink."""
    weights = [value.astype("float64") for value in start]
    first, second = ([np.zeros_like(value) for value in weights] for _ in range(2))
    momentum = 0.9 if name == "momentum" else 0.0
    after, shrunk, over = [], 0, False
    for number, share in enumerate(shares, 1):
        norms = np.array([np.linalg.norm(weight) for weight in weights])
        kernels = np.isfinite(USUAL)
        if shrunk == 0:
            large = np.linalg.norm(norms[kernels]) > 2 * HE
            explodes = share >= 0.7 and large
        else:
            explodes = share >= 0.5 and bool((norms > USUAL).any())
        over = over or not explodes or shrunk >= most
        if over:
            gradients = _gradients(weights, share, loss)
        else:
            shrunk += 1
            adams = 1e-4 * np.sqrt(12 + 8) / np.linalg.norm(norms)
            pull = adams if name == "Adam" else (1 - momentum) * 0.02 / RATE
            gradients = [
                pull * weight * (norm > usual)
                for weight, norm, usual in zip(weights, norms, USUAL, strict=True)
            ]
        for place, gradient in enumerate(gradients):
            if name == "Adam":
                first[place] += 0.1 * (gradient - first[place])
                second[place] += 0.001 * (gradient**2 - second[place])
                rate = ADAMS * np.sqrt(1 - 0.999**number) / (1 - 0.9**number)
                weights[place] = weights[place] - rate * first[place] / (
                    np.sqrt(second[place]) + 1e-7
                )
            else:
                first[place] = momentum * first[place] - RATE * gradient
                weights[place] = weights[place] + first[place]
        after.append([weight.copy() for weight in weights])
    return after, shrunk


# Mean shares of the loss, step by step.
COURSES = {
    "until it is over": [1.0] * 20 + [0.6] * 5 + [0.4] + [1.0] * 5,
    "until kernels are usual": [1.0] * 72,
    "not where it is no such start": [0.6, 1.0, 1.0],
}


@pytest.mark.parametrize(
    ("name", "mode", "course"),
    [(name, "graph", course) for name in INNER for course in COURSES]
    + [("momentum", mode, "until kernels are usual") for mode in ("eager", "xla")]
    + [("Adam", "xla", "until it is over")],
)
def test_kernels_shrink_as_numpy_says(name, mode, course):
    shares = COURSES[course]
    got, optimizer = _run(INNER[name](), shares, _weights(4.0), mode)
    expected, shrunk = _expected(name, shares, _weights(4.0))
    assert {"until it is over": shrunk == 25, "until kernels are usual": 30 < shrunk < 80}.get(
        course, shrunk == 0
    )
    for weights, others in zip(got, expected, strict=True):
        for weight, other in zip(weights, others, strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-5)
    # Until then a bias stays where it is.
    if shrunk:
        np.testing.assert_array_equal(got[shrunk - 1][1], _weights(4.0)[1])
    assert np.any(got[-1][1] != _weights(4.0)[1])
    assert optimizer.telemetry.peek().total_clipped == shrunk


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_momentum_swings_no_kernel_through_zero(momentum):
    inner = keras.optimizers.SGD(RATE, momentum=momentum)
    start = _weights(4.0)
    got, _ = _run(inner, [1.0] * 1200, start, loss=1e-6)
    for place in (0, 2):
        along = [float(np.sum(w[place] * start[place]) / np.sum(start[place] ** 2)) for w in got]
        assert min(along) > 0.1
        assert np.linalg.norm(got[-1][place]) < 1.05 * USUAL[place]


def test_a_rate_that_begins_at_zero_shrinks_nothing_yet():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.0, RATE])
    start = _weights(4.0)
    got, _ = _run(keras.optimizers.SGD(rate), [1.0] * 5, start)
    np.testing.assert_array_equal(got[2][0], start[0])
    np.testing.assert_allclose(got[4][0], start[0] * 0.98**2, rtol=1e-5)


LEFT_ALONE = {
    "kernels nearly twice as large as He's": {
        "start": _weights(1.98 * HE / np.sqrt(USUAL[0] ** 2 + 2))
    },
    "no known loss": {"known": False},
    "a negative loss": {"loss": -0.1},
    "switched off": {"transform": _unlimited(shrink_steps=0)},
    "not by this one": {"transform": transforms.ClipByGlobalNorm(INF)},
    "by Adagrad": {"inner": keras.optimizers.Adagrad},
    "by Lamb": {"inner": keras.optimizers.Lamb},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name):
    arguments = {"start": _weights(4.0), **LEFT_ALONE[name]}
    make = arguments.pop("inner", keras.optimizers.SGD)
    got, optimizer = _run(make(RATE), [1.0], **arguments)
    start, plain = arguments["start"], make(RATE)
    weights = [keras.Variable(value) for value in start]
    plain.build(weights)
    gradients = _gradients(start, 1.0, arguments.get("loss", 0.1))
    plain.apply([tf.constant(gradient) for gradient in gradients], weights)
    for weight, value in zip(got[0], checks.values_of(weights), strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5)
    assert optimizer.telemetry.peek().total_clipped == 0


@pytest.mark.parametrize("initializer", ["he_normal", "lecun_normal", "orthogonal"])
def test_a_good_start_of_a_regression_is_none(initializer):
    # Of few features, more units: far larger than Glorot's. A squared error is in proportion to the
    # scale of its kernels from the start.
    draw = np.random.default_rng(0)
    x = draw.normal(size=(256, 4)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    for units, seed in ((64, 0), (256, 1), (64, 2)):
        keras.utils.set_random_seed(seed)
        hidden = keras.layers.Dense(units, "relu", kernel_initializer=initializer)
        model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
        optimizer = gradstab.stabilize(keras.optimizers.Adam(1e-3))
        model.compile(optimizer, "mse", jit_compile=False)
        model.fit(x, y, verbose=0)
        (shrunk,) = [v for v in optimizer.variables if v.name.endswith("shrunk")]
        assert int(shrunk) == 0
        assert optimizer.telemetry.peek().total_clipped == 0


def test_what_is_not_finite_is_passed_on():
    inner = keras.optimizers.SGD(RATE)
    optimizer = optimizers.StabilizedOptimizer(inner, [_unlimited()])
    weights = [keras.Variable(value) for value in _weights(4.0)]
    optimizer.build(weights)
    gradients = _gradients(checks.values_of(weights), 1.0, 0.1)
    gradients[1][0] = np.nan
    optimizer.scale_loss(tf.constant(0.1))
    optimizer.apply([tf.constant(gradient) for gradient in gradients], weights)
    assert np.isnan(weights[1].numpy()).tolist() == [True, False, False, False]
    np.testing.assert_allclose(
        weights[0].numpy(), _weights(4.0)[0] - RATE * gradients[0], rtol=1e-5
    )


def test_a_run_that_began_otherwise_is_never_shrunk():
    start = _weights(4.0)
    got, _ = _run(keras.optimizers.SGD(RATE), [0.0, 1.0, 1.0], start)
    expected, shrunk = _expected("SGD", [0.0, 1.0, 1.0], start)
    assert shrunk == 0
    np.testing.assert_allclose(got[-1][0], expected[-1][0], rtol=1e-5)


def test_it_takes_so_many_steps_at_most_and_then_all_begins():
    shares = [1.0] * 12
    transform = _unlimited(shrink_steps=7, history_length=16)
    got, optimizer = _run(INNER["momentum"](), shares, _weights(4.0), transform=transform)
    expected, shrunk = _expected("momentum", shares, _weights(4.0), most=7)
    assert shrunk == 7
    np.testing.assert_allclose(got[-1][0], expected[-1][0], rtol=1e-4)
    state = {v.name.removeprefix("AutomaticClipping_"): v.numpy() for v in optimizer.variables}
    assert state["count"] == 5
    assert np.count_nonzero(state["history"]) == 5


def test_what_is_skipped_shrinks_nothing():
    transform = _unlimited()
    optimizer = _optimizer(INNER["momentum"](), transform)
    weights = [keras.Variable(value) for value in _weights(4.0)]
    optimizer.build(weights)
    for step, size in enumerate((1.0, np.nan, 1.0)):
        before = checks.contents([*weights, *checks.lasting_state(optimizer)])
        optimizer.scale_loss(tf.constant(0.1))
        gradients = _gradients(checks.values_of(weights), 1.0, 0.1)
        optimizer.apply([tf.constant(size * gradient) for gradient in gradients], weights)
        after = checks.contents([*weights, *checks.lasting_state(optimizer)])
        assert bool(checks.differences(before, after)) == (step != 1)


def test_rows_of_an_embedding_are_no_kernel():
    # Beside a table whose gradient is sparse, a kernel shrinks as it does alone.
    start = _weights(4.0)
    results = []
    for extra in (True, False):
        optimizer = _optimizer(keras.optimizers.SGD(RATE), _unlimited())
        weights = [keras.Variable(value) for value in start]
        table = [keras.Variable(np.full((5, 2), 9.0, "float32"))] if extra else []
        optimizer.build([*table, *weights])
        optimizer.scale_loss(tf.constant(0.1))
        rows = [checks.sparse([3, 1, 3], np.ones((3, 2)), (5, 2))] if extra else []
        gradients = [tf.constant(g) for g in _gradients(start, 1.0, 0.1)]
        optimizer.apply([*rows, *gradients], [*table, *weights])
        results.append(checks.values_of(weights))
        for variable in table:
            np.testing.assert_array_equal(variable.numpy(), np.full((5, 2), 9.0))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][0], 0.98 * start[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["momentum", "Adam"])
def test_replicas_shrink_alike(name):
    strategy = checks.mirrored(2)
    start, shares = _weights(4.0), [1.0] * 10 + [0.4] * 3
    with strategy.scope():
        optimizer = _optimizer(INNER[name](), _unlimited())
        weights = [keras.Variable(value) for value in start]
        optimizer.build(weights)

    @tf.function
    def step(gradients):
        def on_replica():
            place = tf.get_static_value(
                tf.distribute.get_replica_context().replica_id_in_sync_group
            )
            # A loss and gradients that are this replica's share, as `fit` has them.
            optimizer.scale_loss(tf.constant((0.04, 0.06)[place]))
            optimizer.apply([(0.25, 0.75)[place] * g for g in gradients], weights)

        strategy.run(on_replica)

    for share in shares:
        values = [variable.value.values[0].numpy() for variable in weights]
        step([tf.constant(g) for g in _gradients(values, share, 0.1)])
    expected, shrunk = _expected(name, shares, start)
    assert shrunk == 10
    for variable, value in zip(weights, expected[-1], strict=True):
        np.testing.assert_allclose(variable.value.values[0].numpy(), value, rtol=1e-4, atol=1e-5)
    checks.same_on_all_replicas([*weights, *optimizer.variables])


@pytest.fixture(scope="module")
def blobs():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 6, 1536)
    centers = np.random.default_rng(1).normal(size=(6, 8))
    return (draw.normal(size=(1536, 8)) * 0.6 + centers[y]).astype("float32"), y


def _model(times, seed=2):
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(48, "relu", kernel_initializer="he_normal") for _ in range(4)]
    model = keras.Sequential([keras.Input((8,)), *hidden, keras.layers.Dense(6)])
    for variable in model.trainable_variables:
        variable.assign(times * variable)
    return model


def _trained(optimizer, data, times, **arguments):
    model = _model(times)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
    x, y = data
    model.fit(x[:1024], y[:1024], batch_size=32, epochs=12, verbose=0)
    return model.evaluate(x[1024:], y[1024:], verbose=0)[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("SGD", {"jit_compile": False, "steps_per_execution": 4}), ("Adam", {"jit_compile": True})],
)
def test_an_exploding_start_ends_as_a_good_one_and_a_good_one_is_left_alone(blobs, name, arguments):
    make = {
        "SGD": lambda: keras.optimizers.SGD(0.03, momentum=0.9),
        "Adam": lambda: keras.optimizers.Adam(0.02),
    }[name]
    good = _trained(make(), blobs, 1.0, jit_compile=False)
    assert good > 0.85
    clipped = _trained(gradstab.stabilize(make(), clip=1.0), blobs, 8.0, jit_compile=False)
    assert clipped < good - 0.03
    optimizer = gradstab.stabilize(make())
    assert _trained(optimizer, blobs, 8.0, **arguments) > good - 0.02
    (shrunk,) = [v for v in optimizer.variables if v.name.endswith("shrunk")]
    assert 10 < int(shrunk) < 300
    optimizer = gradstab.stabilize(make())
    assert _trained(optimizer, blobs, 1.0, jit_compile=False) == pytest.approx(good, abs=0.02)
    (shrunk,) = [v for v in optimizer.variables if v.name.endswith("shrunk")]
    assert int(shrunk) == 0


def test_it_goes_on_where_it_was_saved(blobs, tmp_path):
    x, y = blobs
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = _model(8.0)
    optimizer = gradstab.stabilize(keras.optimizers.SGD(0.03, momentum=0.9))
    model.compile(optimizer, loss, jit_compile=False)
    model.fit(x[:320], y[:320], batch_size=32, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(x[320:640], y[320:640], batch_size=32, shuffle=False, verbose=0)
    (shrunk,) = [v for v in again.optimizer.variables if v.name.endswith("shrunk")]
    assert int(shrunk) == 20
    checks.close(again.trainable_variables, model.trainable_variables)


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_a_number_of_steps_that_is_none(value):
    with pytest.raises((TypeError, ValueError), match=r"`shrink_steps` must be.*Received: "):
        transforms.AutomaticClipping(shrink_steps=value)
