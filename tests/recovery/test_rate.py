"""Rates are cut and given back, whatever they come from and whoever else sets them."""

import keras
import numpy as np
import pytest

import gradstab
from gradstab.recovery.rate import RateCut

SCHEDULES = keras.optimizers.schedules


def rate(optimizer):
    return float(np.asarray(optimizer.learning_rate))


def halved():
    return SCHEDULES.ExponentialDecay(0.4, 1, 0.5)


MAKERS = {
    "number": lambda: keras.optimizers.SGD(0.4),
    "stabilized": lambda: gradstab.stabilize(keras.optimizers.SGD(0.4)),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.4)),
    "schedule": lambda: keras.optimizers.SGD(halved()),
    "stabilized schedule": lambda: gradstab.stabilize(keras.optimizers.SGD(halved())),
    "adjustable": lambda: keras.optimizers.SGD(gradstab.schedules.Adjustable(halved())),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_cut_multiplies_and_is_taken_back(name):
    optimizer = MAKERS[name]()
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    config = inner.get_config()
    cut = RateCut([optimizer])
    assert cut.can_cut
    anew = cut.set(0.1)
    assert anew == ("schedule" in name)
    assert rate(inner) == pytest.approx(0.04)
    assert not cut.set(0.5)
    assert rate(inner) == pytest.approx(0.2)
    cut.release()
    assert rate(inner) == pytest.approx(0.4)
    if not isinstance(config["learning_rate"], float):
        assert inner.get_config() == config


def test_a_rate_that_was_lowered_meanwhile_stays_lowered():
    optimizer = keras.optimizers.SGD(0.4)
    cut = RateCut([optimizer])
    optimizer.learning_rate = 0.1  # by `ReduceLROnPlateau`, after the snapshot
    before = cut.whole()
    optimizer.learning_rate = 0.4  # the snapshot is put back
    cut.set_after_restoring(0.5, before, then=1.0)
    assert rate(optimizer) == pytest.approx(0.05)


def test_a_rate_that_jumped_up_is_put_back():
    optimizer = keras.optimizers.SGD(0.4)
    cut = RateCut([optimizer])
    optimizer.learning_rate = 4e5
    before = cut.whole()
    optimizer.learning_rate = 0.4
    cut.set_after_restoring(1.0, before, then=1.0)
    assert rate(optimizer) == pytest.approx(0.4)


def test_a_snapshot_of_a_cut_rate_counts_as_cut():
    optimizer = keras.optimizers.SGD(0.4)
    cut = RateCut([optimizer])
    cut.set(0.5)
    before = cut.whole()
    optimizer.learning_rate = 0.2
    cut.set_after_restoring(0.1, before, then=0.5)
    assert rate(optimizer) == pytest.approx(0.04)


def test_who_sets_a_rate_anew_means_the_whole_rate():
    optimizer = keras.optimizers.SGD(0.4)
    cut = RateCut([optimizer])
    cut.set(0.5)
    optimizer.learning_rate = 0.3  # by `LearningRateScheduler`
    cut.keep()
    assert rate(optimizer) == pytest.approx(0.15)
    optimizer.learning_rate = 0.1  # lowered: by a factor of what is cut
    cut.keep()
    cut.release()
    assert rate(optimizer) == pytest.approx(0.2)


def test_a_function_as_a_rate_is_left_alone():
    optimizer = keras.optimizers.SGD(lambda: 0.4)
    cut = RateCut([optimizer])
    assert not cut.can_cut
    assert not cut.set(0.5)
    assert rate(optimizer) == pytest.approx(0.4)
