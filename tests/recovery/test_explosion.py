"""A finite explosion is told, and nothing that is healthy is taken for one."""

import keras
import numpy as np
import pytest

from gradstab.recovery.explosion import Explosion, nonnegative_loss

NOISE = np.random.default_rng(0).lognormal(size=2000)


def _told(losses, norms=None, loss=None, steps=20):
    """What an explosion tells of a run, looked at every few steps."""
    losses = np.asarray(losses, "float64")
    norms = np.ones(len(losses)) if norms is None else norms
    explosion = Explosion(loss)
    for start in range(0, len(losses), steps):
        explosion.see_steps(losses[start : start + steps], norms[start : start + steps])
        if explosion.told():
            return explosion.told()
    return None


EXPLODING = {
    "the relu LSTM of a bug report": [0.69] * 30 + list(0.69 * 10 ** np.linspace(0, 30, 60)),
    "after it was learned": list(np.geomspace(2.3, 1e-3, 100)) + [1e6] * 40,
    "begins huge": list(np.geomspace(1e8, 1, 100)) + [1e13] * 40,
}
HEALTHY = {
    "begins huge": np.geomspace(1e12, 1e-3, 500),
    "targets of scale 1e4": 4e8 * NOISE[:500],
    "learned to the last digit, then noise": [*np.geomspace(1, 1e-14, 200), *1e-6 * NOISE[:200]],
    "an excursion to 1e4 that comes back": [0.69] * 100 + [1e4] * 40 + [0.66] * 100,
    "single steps that are huge": [*[0.1] * 99, 1e20] * 5,
    "a critic's loss, negative and growing": -0.01 * 1.02 ** np.arange(500),
    "a loss that passes zero": np.linspace(5, -300, 400),
    "begins with zero": [0.0] * 20 + [5.0] * 200,
}


@pytest.mark.parametrize("name", EXPLODING)
def test_an_explosion_is_told(name):
    assert "exploded" in _told(EXPLODING[name])


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_not(name):
    assert _told(HEALTHY[name]) is None


def test_norms_explode_under_a_loss_that_is_bounded():
    losses = [0.7] * 100 + [8.0] * 40
    assert "gradient norm" in _told(losses, np.array([0.5] * 100 + [1e12] * 40))
    # From next to nothing to where gradients usually are: a last layer that begins as zeros.
    assert _told(losses, np.array([1e-9] * 20 + [10.0] * 120)) is None


def test_without_telemetry_the_epochs_tell_once_it_is_confirmed():
    explosion = Explosion()
    explosion.see_first_loss(0.7)
    assert explosion.see_epoch(0.6, is_last=False) is None
    assert explosion.see_epoch(1e8, is_last=False) is None
    assert explosion.see_epoch(0.6, is_last=False) is None
    assert explosion.see_epoch(1e8, is_last=False) is None
    assert "exploded" in explosion.see_epoch(1e9, is_last=False)
    assert "exploded" in explosion.see_epoch(1e9, is_last=True)


def test_a_cross_entropy_below_zero():
    explosion, free = Explosion("binary_crossentropy"), Explosion()
    told = [explosion.see_epoch(loss, is_last=False) for loss in (0.6, -1, -5, -20, -80)]
    assert told[:3] == [None] * 3
    assert "binary_crossentropy, fell to -20" in told[3]
    assert not any(free.see_epoch(loss, is_last=False) for loss in (0.6, -1, -5, -20, -80))
    # Weighted by advantages, as in policy gradients, it is a little below zero, and stays there.
    policy = Explosion("sparse_categorical_crossentropy")
    assert not any(policy.see_epoch(-0.1 * i % 1 - 0.9, is_last=i == 49) for i in range(50))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("binary_crossentropy", "binary_crossentropy"),
        (keras.losses.SparseCategoricalCrossentropy(), "sparse_categorical_crossentropy"),
        (keras.losses.categorical_crossentropy, "categorical_crossentropy"),
        ("mse", None),
        ("poisson", None),
        (lambda y, p: p, None),
    ],
)
def test_which_losses_can_not_be_below_zero(loss, expected):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss)
    assert nonnegative_loss(model) == expected
    model.compute_loss = lambda **_: 0.0
    assert nonnegative_loss(model) is None
