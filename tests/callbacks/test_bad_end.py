"""A run that learned nothing, or lost it again, is warned of when it ends, also if it is silent."""

import re
import warnings

import keras
import numpy as np
import pytest

from gradstab.callbacks import DivergenceGuard

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 192)
X = (RNG.normal(size=(192, 4)) * 0.3 + np.eye(4)[LABELS]).astype("float32")


class _Forget(keras.callbacks.Callback):
    """Sets all weights to zero when each later epoch begins: the loss is finite and stays so."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= 3:
            for variable in self.model.trainable_variables:
                variable.assign(variable * 0.0)


def _fit(rate, epochs, *callbacks, l2=0.0):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, "relu", kernel_regularizer=keras.regularizers.L2(l2)),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    guard = DivergenceGuard(verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, LABELS, epochs=epochs, batch_size=16, verbose=0, callbacks=[guard, *callbacks])
    assert guard.verdict is None
    return [str(each.message) for each in caught if each.category is UserWarning]


def test_what_was_lost_again_is_told():
    (told,) = _fit(0.1, 6, _Forget())
    assert re.search("lost what it had learned: the loss fell from .* 72 steps.*diagnose", told)


def test_a_model_no_better_than_a_constant_output_is_told():
    (told,) = _fit(1e-9, 3)
    share = np.bincount(LABELS) / len(LABELS)
    # The best constant is that of the first batch, whose shares are near those of all.
    constant = float(re.search("no better than a constant .* constant has ([0-9.]+[0-9])", told)[1])
    assert constant == pytest.approx(-np.sum(share * np.log(share)), rel=0.1)


@pytest.mark.parametrize(
    ("rate", "epochs", "l2"),
    [(0.02, 6, 0.0), (0.02, 6, 1.0), (1e-9, 1, 0.0)],
    ids=["it learns", "its penalty is larger than the loss", "one epoch is a trial"],
)
def test_other_runs_end_without_a_word(rate, epochs, l2):
    assert not _fit(rate, epochs, l2=l2)
