"""Traits of optimizers against what their steps do, and custom optimizers that register theirs."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, stabilize
from gradstab.optimizers import register_traits, traits
from gradstab.optimizers.step import applying, gating
from gradstab.optimizers.traits import TRAITS, Traits, traits_of

RATE = 1e-3
KINDS = sorted(TRAITS, key=lambda kind: kind.__name__)
_NAMES = [kind.__name__ for kind in KINDS]


def _changes(kind, factor):
    """Return what four steps on gradients of mixed sizes add to a variable, step by step."""
    optimizer, weight = kind(RATE), keras.Variable(np.full((2, 3), 2.0))
    draw, changes = np.random.default_rng(0), []
    for _ in range(4):
        before = weight.numpy()
        gradient = draw.normal(size=(2, 3)) * 10.0 ** np.array([2.0, 3.0, 4.0])
        optimizer.apply([tf.constant(factor * gradient, "float32")], [weight])
        changes.append(weight.numpy() - before)
    return np.array(changes)


@pytest.mark.parametrize("kind", KINDS, ids=_NAMES)
def test_steps_are_scale_invariant_where_it_is_said(kind):
    once, more = _changes(kind, 1.0), _changes(kind, 1e3)
    same = np.allclose(once, more, rtol=2e-2)
    assert same == TRAITS[kind].is_scale_invariant


@pytest.mark.parametrize("kind", KINDS, ids=_NAMES)
def test_entries_move_by_the_rate_where_it_is_said(kind):
    size = np.abs(_changes(kind, 1.0))
    by_rate = size[0].min() > 0.3 * RATE and size.max() < 5 * RATE
    assert by_rate or not TRAITS[kind].moves_by_rate
    if kind is keras.optimizers.SGD:
        assert not by_rate


def test_a_subclass_has_the_traits_of_its_base_but_may_write_otherwise():
    class Mine(keras.optimizers.SGD):
        pass

    assert traits_of(keras.optimizers.SGD(momentum=0.5)).writes_by_assign
    assert not traits_of(Mine()).writes_by_assign
    assert traits_of(Mine()).momentum(Mine(momentum=0.5)) == 0.5
    assert traits_of(keras.optimizers.Optimizer(0.1)) == Traits()


@pytest.fixture
def sign_sgd(monkeypatch):
    monkeypatch.setattr(traits, "TRAITS", dict(TRAITS))

    class SignSGD(keras.optimizers.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))

    return SignSGD


@pytest.mark.parametrize("registered", [False, True])
def test_a_custom_optimizer_that_is_registered_needs_no_condition(
    registered, sign_sgd, monkeypatch
):
    gated = []
    monkeypatch.setattr(applying, "gated", lambda *a, **k: gated.append(1) or gating.gated(*a, **k))
    if registered:
        register_traits(sign_sgd, moves_by_rate=True, writes_by_assign=True)
    weights, optimizer = checks.make_variables(), stabilize(sign_sgd(0.5), clip=None)
    optimizer.build(weights)
    before = [weight.numpy() for weight in weights]
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights))
    bad = [tf.fill(weight.shape, np.nan) for weight in weights]
    step(bad)
    assert bool(gated) == registered
    for weight, old in zip(weights, before, strict=True):
        assert weight.numpy().tobytes() == old.tobytes()
    step([tf.ones(weight.shape) for weight in weights])
    for weight, old in zip(weights, before, strict=True):
        np.testing.assert_allclose(weight.numpy(), old - 0.5, rtol=1e-6)


def test_a_custom_optimizer_can_tell_its_momentum_and_its_second_moment(sign_sgd):
    register_traits(
        sign_sgd,
        momentum=lambda optimizer: 0.25,
        second_moment=lambda optimizer, variable: (variable, variable),
    )
    optimizer = sign_sgd(0.5)
    weight = keras.Variable([4.0, 4.0], name="weight")
    optimizer.apply([np.array([1.0, 1.0], "float32")], [weight])
    optimizer.epsilon = 0.0
    found = optimizers.effective_learning_rates(optimizer)["weight"]["median"]
    np.testing.assert_allclose(found, 0.5 / np.sqrt(3.5), rtol=1e-6)


@pytest.mark.parametrize("given", [keras.optimizers.SGD(), int, "sgd"], ids=["one", "int", "name"])
def test_only_classes_of_optimizers_are_registered(given):
    with pytest.raises(TypeError, match=r"`optimizer_class` must be a subclass of keras.optim"):
        register_traits(given)
