"""What is not finite is named: weights first, in the order of depth; and no such state is kept."""

import common_checks as checks
import keras
import numpy as np
import pytest

import gradstab
from gradstab.optimizers.model.damage import first_damage, holds_infinity, parts_of_model
from gradstab.optimizers.watching.find import optimizers_of
from gradstab.recovery.state import RunState

NAN = float("nan")


def _model(optimizer="adam"):
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="deep")], name="inner")
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="one")(inputs)
    x = inner(keras.layers.BatchNormalization(name="bn")(x))
    model = keras.Model(inputs, keras.layers.Dense(1, name="last")(x))
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 4)), np.zeros((8, 1)), verbose=0)
    return model


def _spoil(variable):
    variable.assign(variable * NAN)


def test_weights_come_before_statistics_before_moments_and_in_the_order_of_depth():
    model = _model(gradstab.stabilize("adam"))
    state = RunState(model, optimizers_of(model))
    assert state.damage() is None
    moment = model.optimizer.inner_optimizer.variables[-1]
    expected = [
        (moment, "moment", None),
        (model.get_layer("bn").moving_mean, "moving statistic", "bn"),
        (model.get_layer("last").kernel, "weight", "last"),
        (model.get_layer("inner").get_layer("deep").bias, "weight", "deep"),
        (model.get_layer("one").kernel, "weight", "one"),
    ]
    for others, (variable, kind, layer) in enumerate(expected):
        _spoil(variable)
        damage = state.damage()
        assert (damage.path, damage.layer, damage.others) == (variable.path, layer, others)
        assert damage.kind.startswith(kind)
        assert f"`{variable.path}`" in str(damage)


def test_a_copy_goes_back_with_moments_that_were_made_since():
    model = _model()
    fresh = keras.models.clone_model(model)
    fresh.compile(keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.3), "mse")
    state = RunState(fresh, optimizers_of(fresh))
    before = [w.tobytes() for w in fresh.get_weights()]
    copy = state.copy()
    fresh.fit(np.ones((8, 4)), np.zeros((8, 1)), verbose=0)
    assert [w.tobytes() for w in fresh.get_weights()] != before
    state.put_back(copy)
    assert [w.tobytes() for w in fresh.get_weights()] == before
    accumulators = fresh.optimizer.variables[2:]
    assert len(accumulators) == len(fresh.trainable_variables)
    for accumulator in accumulators:
        np.testing.assert_allclose(accumulator, 0.3)


def test_a_mask_of_infinities_is_no_damage_but_in_a_weight_it_is():
    class Masked(keras.layers.Dense):
        def build(self, shape):
            super().build(shape)
            self.mask = self.add_weight(shape=(4,), trainable=False, name="mask")
            self.mask.assign([0, 0, -np.inf, -np.inf])

    model = keras.Sequential([keras.Input((4,)), Masked(4)])
    model.compile("sgd", "mse")
    state = RunState(model, optimizers_of(model))
    assert holds_infinity(model.layers[0].mask)
    assert state.damage() is None
    model.layers[0].kernel.assign(np.full((4, 4), np.inf))
    assert state.damage().path == model.layers[0].kernel.path


def test_half_precision_counters_and_empty_variables_do_not_matter():
    keras.config.set_dtype_policy("bfloat16")
    model = _model()
    assert RunState(model, optimizers_of(model)).damage() is None


def test_one_replica_alone_is_seen():
    with checks.mirrored(2).scope():
        model = _model()
    statistic = model.get_layer("bn").moving_variance.value
    statistic.values[1].assign(statistic.values[1] * NAN)
    assert first_damage(parts_of_model(model)).layer == "bn"


@pytest.mark.parametrize("ours", [True, False])
def test_every_optimizer_of_a_model_is_found(ours):
    def make(name):
        optimizer = keras.optimizers.SGD(0.1, name=name)
        return gradstab.stabilize(optimizer) if ours else optimizer

    class Critic(keras.Model):
        def __init__(self):
            super().__init__(name="critic")
            self.c_optimizer = make("c")

    class Several(keras.Model):
        def __init__(self):
            super().__init__()
            self.critic = Critic()
            self.d_optimizer = make("d")
            self._hidden = make("h")
            self.more = [make("m0"), {"x": make("m1")}]
            self.again = self.d_optimizer
            self.raw = getattr(self.d_optimizer, "inner_optimizer", None)

    model = Several()
    names = ["d_optimizer", "more_0", "more_1_x", "hidden", "critic_c_optimizer"]
    model.compile(optimizer=None)
    assert list(optimizers_of(model)) == names
    model.compile(keras.optimizers.LossScaleOptimizer(make("o")))
    assert list(optimizers_of(model)) == ["optimizer", *names]


def test_parts_of_a_multi_optimizer_that_are_wrapped_are_found():
    layers = [keras.layers.Dense(2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    parts = [gradstab.stabilize("sgd"), gradstab.stabilize("adam")]
    found = {"optimizer_0": parts[0], "optimizer_1": parts[1]}
    multi = type("Multi", (keras.optimizers.SGD,), {})(0.1)
    multi.optimizers = parts
    model.compile(multi, "mse")
    assert optimizers_of(model) == found
