"""The functions take optimizers as they come; what can't be right is refused early."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, stabilize, transforms
from gradstab.optimizers import StabilizedOptimizer, accepted
from gradstab.optimizers.accepted import check_strategy

SKIP = "SkipNonFinite(max_consecutive=50)"
FUNCTIONS = {
    optimizers.clip_by_value: "ClipByValue(clip_value=0.5)",
    optimizers.clip_by_norm: "ClipByNorm(max_norm=0.5)",
    optimizers.clip_by_global_norm: "ClipByGlobalNorm(max_norm=0.5)",
    stabilize: f"{SKIP} -> ClipByGlobalNorm(max_norm=0.5)",
}
functions = pytest.mark.parametrize("function", FUNCTIONS)


def _chain(optimizer):
    return repr(optimizer).removeprefix("<StabilizedOptimizer: ").removesuffix(">")


@functions
def test_an_instance_a_name_and_a_config(function):
    inner = keras.optimizers.Adam(0.25)
    wrapped = function(inner, 0.5)
    assert wrapped.inner_optimizer is inner
    assert _chain(wrapped) == f"{FUNCTIONS[function]} -> Adam"
    named = function("sgd", 0.5, learning_rate=0.25, momentum=0.5)
    assert float(named.learning_rate) == 0.25
    assert named.inner_optimizer.momentum == 0.5
    assert _chain(named) == f"{FUNCTIONS[function]} -> SGD"
    configured = function(keras.optimizers.serialize(inner), 0.5)
    assert configured.inner_optimizer.get_config() == inner.get_config()


def test_stabilize_needs_no_bound_takes_one_and_may_leave_out_clipping():
    rules = (transforms.LimitRateJumps(), transforms.LimitOutliers(), transforms.LimitOvershoot())
    # Rules on the rate act first, wherever they stand in the list.
    automatic = " -> ".join([repr(rules[0]), SKIP, repr(rules[1]), repr(rules[2]), "Adam"])
    assert _chain(stabilize("adam")) == automatic
    assert _chain(stabilize(stabilize("adam", clip="auto"))) == automatic
    assert _chain(stabilize("adam", 1)) == f"{SKIP} -> ClipByGlobalNorm(max_norm=1.0) -> Adam"
    assert _chain(stabilize("adam", clip=None)) == f"{SKIP} -> Adam"
    assert _chain(stabilize("adam", np.inf)) == f"{SKIP} -> ClipByGlobalNorm(max_norm=inf) -> Adam"


def test_a_wrapped_optimizer_gets_one_list():
    inner = keras.optimizers.SGD(0.1)
    first = optimizers.clip_by_value(inner, 0.5)
    first.build([keras.Variable(np.zeros(2))])
    first.transforms[0].clip_value = 0.25  # what holds now is taken along
    second = stabilize(first, clip=2.0, max_consecutive=9)
    assert second.inner_optimizer is inner
    assert _chain(second) == (
        "ClipByValue(clip_value=0.25) -> SkipNonFinite(max_consecutive=9) -> "
        "ClipByGlobalNorm(max_norm=2.0) -> SGD"
    )
    again = stabilize(second, clip=2.0)  # nothing twice, and the budget stays
    assert _chain(again) == _chain(second)
    assert _chain(stabilize(again, clip=1.0)).count("ClipByGlobalNorm") == 2
    # Fresh transforms: the old optimizer keeps its own.
    again.build([keras.Variable(np.zeros(2))])
    again.transforms[0].clip_value = 3.0
    assert first.transforms[0].clip_value == 0.25


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("clipvalue", "ClipByValue(clip_value=0.1)"),
        ("clipnorm", "ClipByNorm(max_norm=0.1)"),
        ("global_clipnorm", "ClipByGlobalNorm(max_norm=0.1)"),
    ],
)
def test_clipping_of_keras_own_is_taken_over(argument, name):
    inner = keras.optimizers.SGD(1.0, **{argument: 0.1})
    wrapped = stabilize(inner, clip=5.0)
    assert _chain(wrapped) == f"{name} -> {SKIP} -> ClipByGlobalNorm(max_norm=5.0) -> SGD"
    assert getattr(inner, argument) is None
    assert wrapped.taken_over == {argument: 0.1}
    weight, plain = keras.Variable(np.zeros(2)), keras.Variable(np.zeros(2))
    wrapped.apply([tf.constant([3.0, 4.0])], [weight])
    keras.optimizers.SGD(1.0, **{argument: 0.1}).apply([tf.constant([3.0, 4.0])], [plain])
    np.testing.assert_allclose(weight.numpy(), plain.numpy(), rtol=1e-6)
    # A second wrapping remembers, for `unwrap`.
    assert optimizers.clip_by_norm(wrapped, 1.0).taken_over == {argument: 0.1}


def _refuse(optimizer):
    raise ValueError("refused")


def test_what_was_taken_over_is_given_back_when_wrapping_fails(monkeypatch):
    inner = keras.optimizers.SGD(0.1, clipnorm=0.5)
    monkeypatch.setattr(accepted, "window_size", _refuse)
    with pytest.raises(ValueError, match="refused"):
        stabilize(inner)
    assert inner.clipnorm == 0.5


def test_a_loss_scale_is_nested_the_right_way_round():
    inner = keras.optimizers.Adam(0.1, clipnorm=0.5)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=7)
    wrapped = stabilize(scaled)
    assert isinstance(wrapped, keras.optimizers.LossScaleOptimizer)
    assert wrapped.initial_scale == 64.0
    assert wrapped.dynamic_growth_steps == 7
    ours = wrapped.inner_optimizer
    assert isinstance(ours, StabilizedOptimizer)
    assert ours.inner_optimizer is inner
    assert ours.taken_over == {"clipnorm": 0.5}
    again = optimizers.clip_by_value(wrapped, 0.5)  # joined, inside
    assert "ClipByNorm(max_norm=0.5) -> SkipNonFinite" in _chain(again.inner_optimizer)
    assert again.inner_optimizer.inner_optimizer is inner
    # True gradient (3, 4)/10: unscaled before it is clipped.
    weight = keras.Variable(np.zeros(2))
    clipped = optimizers.clip_by_norm(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0), 0.25
    )
    clipped.apply([tf.constant([0.3, 0.4]) * 64.0], [weight])
    np.testing.assert_allclose(weight.numpy(), [-0.15, -0.2], rtol=1e-6)


@functions
@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_keras_names_of_bounds_are_answered_with_ours(argument, function):
    with pytest.raises(TypeError, match=f"no argument `{argument}`.*max_norm"):
        function("adam", 0.5, **{argument: 1.0})


def _legacy():
    return type("Adam", (), {"__module__": "tf_keras.src.optimizers.adam"})()


@pytest.mark.parametrize(
    ("given", "meant"), [("adma", "adam"), ("RMSPorp", "rmsprop"), ("sdg", "sgd"), ("lino", "lion")]
)
def test_a_name_that_is_unknown_is_told_what_it_may_have_meant(given, meant):
    with pytest.raises(ValueError, match=rf"Received: .*'{given}'.*Nearest names: .*'{meant}'"):
        stabilize(given)


@functions
def test_what_is_no_optimizer_is_refused(function):
    with pytest.raises(TypeError, match=r"not a legacy tf_keras one. Use keras.optimizers.Adam"):
        function(_legacy(), 0.5)
    for bad in (None, 3, keras.optimizers.Adam, keras.losses.MeanSquaredError()):
        with pytest.raises(TypeError, match=r"must be a keras.optimizers.Optimizer instance"):
            function(bad, 0.5)
    with pytest.raises(ValueError, match=r"knows by name, such as 'adam'.*'adamant'"):
        function("adamant", 0.5)
    with pytest.raises(TypeError, match=r"taken with a name only. Received: learning_rate"):
        function(keras.optimizers.Adam(), 0.5, learning_rate=0.1)


@functions
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "1"])
def test_bounds_that_mean_nothing_are_refused(bad, function):
    with pytest.raises((ValueError, TypeError), match=r"must be a positive float. Received: "):
        function("adam", bad)


def test_the_constructor_is_strict():
    adam = keras.optimizers.Adam
    chain = [transforms.SkipNonFinite()]
    with pytest.raises(ValueError, match=r"must not be a StabilizedOptimizer itself.*one list"):
        StabilizedOptimizer(stabilize("adam"), chain)
    with pytest.raises(ValueError, match=r"LossScaleOptimizer\(StabilizedOptimizer\(...\)\)"):
        StabilizedOptimizer(keras.optimizers.LossScaleOptimizer(adam()), chain)
    for argument, name in (
        ("clipvalue", "ClipByValue"),
        ("clipnorm", "ClipByNorm"),
        ("global_clipnorm", "ClipByGlobalNorm"),
    ):
        with pytest.raises(ValueError, match=rf"{argument}=0.5. .*{name}\(0.5\).*stabilize"):
            StabilizedOptimizer(adam(**{argument: 0.5}), chain)
    parts = keras.optimizers.OptimizerMap(adam(), {"a": keras.optimizers.SGD(clipnorm=1.0)})
    with pytest.raises(ValueError, match=r"SGD with clipnorm=1.0"):
        StabilizedOptimizer(keras.optimizers.MultiOptimizer(parts), chain)
    parts = keras.optimizers.OptimizerMap(adam(), {"a": stabilize("sgd")})
    with pytest.raises(ValueError, match=r"with wrapped parts.*Wrap the MultiOptimizer alone"):
        StabilizedOptimizer(keras.optimizers.MultiOptimizer(parts), chain)
    for bad in ("adam", {"class_name": "Adam"}, adam):
        with pytest.raises(TypeError, match=r"For a name or a config use `gradstab.stabilize`"):
            StabilizedOptimizer(bad, chain)
    with pytest.raises(TypeError, match="not a legacy tf_keras one"):
        StabilizedOptimizer(_legacy(), chain)


def test_only_transforms_can_be_listed_and_each_once():
    skip = transforms.SkipNonFinite()
    for bad in (skip, None, {skip}, (t for t in [skip])):
        with pytest.raises(TypeError, match="`transforms` must be a list of transforms"):
            StabilizedOptimizer(keras.optimizers.SGD(), bad)
    for bad in (transforms.SkipNonFinite, "clip", 1.0, None):
        with pytest.raises(TypeError, match=r"must hold instances of gradstab.transforms"):
            StabilizedOptimizer(keras.optimizers.SGD(), [skip, bad])
    with pytest.raises(ValueError, match="must not hold the same instance twice"):
        StabilizedOptimizer(keras.optimizers.SGD(), [skip, skip])
    assert _chain(StabilizedOptimizer(keras.optimizers.SGD())) == "SGD"


def test_a_strategy_whose_workers_step_on_their_own_is_refused(monkeypatch):
    strategy = tf.distribute.ParameterServerStrategy.__new__(tf.distribute.ParameterServerStrategy)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)
    with pytest.raises(ValueError, match=r"step together.*ParameterServerStrategyV2.*Mirrored"):
        check_strategy()
