"""The contract that every later transform builds on, held by a transform of one's own."""

from typing import ClassVar, final

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.transforms import Bound, SeedSpec, StateSpec, Transform


@final
@keras.saving.register_keras_serializable(package="tests")
class SkipLong(Transform):
    """Adds noise; skips steps far above the running mean of accepted norms; remembers them."""

    cause: ClassVar[str] = "long"
    factor = Bound(lambda name, value: float(value))

    def __init__(self, factor, noise=0.0, seed=None):
        self.factor = factor
        self.noise = noise
        self.seed = seed

    def state_spec(self, variables):
        return {
            "mean": StateSpec(),
            "count": StateSpec(dtype="int32"),
            "norms": StateSpec(shape=(len(variables),), initial=np.arange(len(variables))),
            "stream": SeedSpec(self.seed),
        }

    def apply(self, values, state, context):
        count = state["count"] + 1
        mean = state["mean"] + (values.global_norm - state["mean"]) / keras.ops.cast(
            count, "float32"
        )
        noisy = values.mapped(
            lambda index, value: (
                value + self.noise * keras.random.normal(value.shape, seed=state["stream"])
            )
        )
        return noisy, {"mean": mean, "count": count, "norms": values.norms}

    def veto(self, state, context):
        ready = state["count"] > 0
        limit = self.bound("factor") * state["mean"]
        return keras.ops.logical_and(ready, context.incoming.global_norm > limit)


@final
@keras.saving.register_keras_serializable(package="tests")
class Watch(Transform):
    """Has no arguments, and notes what it is shown."""

    def apply(self, values, state, context):
        self.seen = context
        return values, {}


def _norm(*values):
    return [tf.constant([value, 0.0]) for value in values]


def _state(optimizer):
    """The state as Python numbers, by name."""
    return {
        variable.name.removeprefix("SkipLong_"): variable.numpy().tolist()
        for variable in optimizer.variables
        if variable.name.startswith("SkipLong_")
    }


@pytest.mark.parametrize("mode", checks.MODES)
def test_state_is_fed_by_accepted_steps_only(mode):
    skip = SkipLong(10.0)
    weights = [keras.Variable(np.zeros(2)) for _ in range(2)]
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(1.0), [transforms.SkipNonFinite(), skip]
    )
    optimizer.build(weights)
    assert _state(optimizer) == {"factor": 10.0, "mean": 0.0, "count": 0, "norms": [0.0, 1.0]}
    step, traces = checks.stepper(optimizer, weights, mode)
    for norms in ([3.0, 4.0], [np.nan, 0.0], [0.0, 3.0], [300.0, 400.0], [np.inf, np.nan]):
        step(*_norm(*norms))
    assert _state(optimizer) == {"factor": 10.0, "mean": 4.0, "count": 2, "norms": [0.0, 3.0]}
    assert [float(w.numpy()[0]) for w in weights] == [-3.0, -7.0]
    reading = optimizer.telemetry.peek()
    # A NaN norm is above no limit, an infinite one above every: the first cause in the list counts.
    assert reading.cause == [None, "nonfinite", None, "long", "nonfinite"]
    assert reading.skipped_by_cause == {"nonfinite": 2, "long": 1}
    skip.factor = 1e6
    first = len(traces)
    step(*_norm(300.0, 400.0))
    assert not optimizer.telemetry.peek().skipped[-1]
    assert mode == "eager" or len(traces) == first


@pytest.mark.parametrize("mode", checks.MODES)
def test_a_seed_gives_a_stream(mode):
    def run(seed):
        weight = keras.Variable(np.zeros(1000))
        optimizer = optimizers.StabilizedOptimizer(
            keras.optimizers.SGD(1.0), [SkipLong(np.inf, noise=1.0, seed=seed)]
        )
        step, _ = checks.stepper(optimizer, [weight], mode)
        held = [weight.numpy()]
        for _ in range(2):
            step(tf.zeros(1000))
            held.append(weight.numpy())
        return np.diff(held, axis=0)

    first, second = run(7)
    assert abs(first.std() - 1.0) < 0.1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    if mode == "eager":
        np.testing.assert_array_equal(run(7), [first, second])
        assert not np.array_equal(run(8)[0], first)


def test_state_is_saved_loaded_and_continued(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        chain = [transforms.SkipNonFinite(), SkipLong(5.0, noise=0.1, seed=3)]
        model.compile(optimizers.StabilizedOptimizer(keras.optimizers.Adam(0.1), chain), "mse")
        return model

    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(12, 3)), draw.normal(size=(12, 2))
    x[5] = np.nan  # the second batch of each epoch
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    saved = model()
    saved.fit(x, y, **fit)
    saved.save(tmp_path / "model.keras")
    assert _state(saved.optimizer)["count"] == 2
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer.transforms[1], SkipLong)
    variables = [m.trainable_variables + m.optimizer.variables for m in (saved, loaded)]
    for got, expected in zip(*map(checks.values_of, variables), strict=True):
        np.testing.assert_array_equal(got, expected)
    for each in (saved, loaded):
        each.fit(x, y, **fit)
    for got, expected in zip(*map(checks.values_of, variables), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_cause_may_have_any_name():
    """Counts of causes stood beside the telemetry's own by name, and hid them."""

    class Hiding(Transform):
        cause: ClassVar[str] = "skipped"

        def apply(self, values, state, context):
            return values, {}

    weight = keras.Variable(np.zeros(2))
    chain = [transforms.SkipNonFinite(), Hiding()]
    optimizer = optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), chain)
    optimizer.apply(_norm(np.nan), [weight])
    reading = optimizer.telemetry.peek()
    assert reading.total_skipped == 1
    assert reading.skipped_by_cause == {"nonfinite": 1, "skipped": 0}


def test_a_veto_in_the_update_stage_is_refused():
    class Late(Transform):
        stage: ClassVar[str] = "update"
        cause: ClassVar[str] = "late"

        def apply(self, values, state, context):
            return values, {}

    with pytest.raises(ValueError, match="must not hold one that skips steps in the update stage"):
        optimizers.StabilizedOptimizer(keras.optimizers.SGD(1.0), [Late()])


def test_a_transform_without_arguments_has_an_empty_config():
    assert Watch().get_config() == {}
    assert repr(Watch()) == "Watch()"
    assert isinstance(
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Watch())), Watch
    )


def test_the_context_holds_what_it_says():
    watch = Watch()
    weights = checks.make_variables()
    optimizer = optimizers.StabilizedOptimizer(
        keras.optimizers.SGD(0.25, loss_scale_factor=4.0), [transforms.SkipNonFinite(), watch]
    )
    gradients = checks.make_gradients()
    for _ in range(2):
        loss = optimizer.scale_loss(tf.constant(1.5))
    assert float(loss) == 6.0
    optimizer.apply([4 * gradient for gradient in gradients], weights)
    assert float(watch.seen.loss) == 1.5
    bad = checks.sparse([4, 1, 4], np.full((3, 2), np.nan), (5, 2))
    optimizer.apply([bad, *gradients[1:]], weights)
    context = watch.seen
    assert context.loss is None  # shown for the step before
    assert context.variables == weights
    assert int(context.step) == 1
    assert float(context.learning_rate) == 0.25
    assert int(context.consecutive_skips) == 0
    assert set(context.rows[0].numpy().tolist()) == {1, 4}
    assert context.rows[1:] == [None, None]
    assert [role.path for role in context.roles] == [w.path for w in weights]
    optimizer.apply([4 * gradient for gradient in gradients], weights)
    assert int(watch.seen.consecutive_skips) == 1
    for seen, gradient in zip(watch.seen.incoming.values, gradients, strict=True):
        np.testing.assert_array_equal(seen, gradient)
