"""Level and profile of gradients over depth, read together; values from a closed form."""

import math

import keras
import numpy as np
import pytest

from gradstab.cli.gradient_profile import LayerGradient, first_to_last, judge, measure


def _profile(norms, *, weight_norm=1.0, entries=1000):
    return [
        LayerGradient(f"layer_{i}", (entries,), norm, norm / math.sqrt(entries), weight_norm)
        for i, norm in enumerate(norms)
    ]


@pytest.mark.parametrize(
    ("norms", "learned", "weight_norm", "verdict"),
    [
        ([0.3, 1.6, 2.2, 1.2], True, 5.0, "neither"),
        # Fades on the way back, at whatever accuracy the last layers reach alone.
        ([1e-9, 1e-6, 1e-3, 1.0], True, 5.0, "vanishing: the gradient fades"),
        # The ratio is small, but the first layer still gets a gradient worth having.
        ([1e-3, 1e-1, 2.0], True, 5.0, "neither"),
        # Next to nothing everywhere, with a ratio that alone would be called exploding.
        ([1e-11, 1e-12, 1e-13], False, 5.0, "vanishing: the gradient is next to nothing"),
        # The same of a model that has learned: it is done, not sick.
        ([1e-11, 1e-12, 1e-13], True, 5.0, "neither"),
        ([1e4, 1e2, 10.0], False, 5.0, "exploding: the gradient grows"),
        # A large ratio at a harmless level.
        ([7.1, 1.0, 0.1], True, 5.0, "neither"),
        # As large in the last layer as in the first: no ratio shows it.
        ([1e6, 1e6, 1e6], False, 5.0, "exploding: the gradient is too large"),
        ([1.0, math.nan, 1.0], False, 5.0, "not finite: the gradient of `layer_1`"),
        ([1.0, 1.0, math.inf], False, 5.0, "not finite: the gradient of `layer_2`"),
        ([1.0], True, 5.0, "neither"),
        ([0.0, 0.0], False, 5.0, "vanishing: the gradient is next to nothing"),
        ([1.0, 0.0], False, 0.0, "exploding: the gradient grows"),
    ],
)
def test_judge(norms, learned, weight_norm, verdict):
    told = judge(_profile(norms, weight_norm=weight_norm), learned=learned)
    assert told.startswith(verdict)


def test_first_to_last():
    assert first_to_last(_profile([3.0, 1.0, 2.0])) == 1.5
    assert first_to_last(_profile([1.0, 0.0])) == math.inf
    assert math.isnan(first_to_last(_profile([0.0, 0.0])))


def test_measure_is_the_mean_over_batches_of_a_gradient_known_in_closed_form():
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(3, 4)), generator.normal(size=(4, 2))
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")]
    )
    model.set_weights([first, np.zeros(4), second, np.zeros(2)])
    model.compile("sgd", loss="mse")
    batches = [
        (generator.normal(size=(5, 3)).astype("float32"), generator.normal(size=(5, 2)))
        for _ in range(3)
    ]
    expected = []
    for x, y in batches:
        error = 2 * (x @ first @ second - y) / y.size
        expected.append((x.T @ error @ second.T, (x @ first).T @ error))
    profile = measure(model, batches)
    assert [each.shape for each in profile] == [(3, 4), (4, 2)]
    assert [each.layer.split("/")[-1] for each in profile] == ["a", "b"]
    for place, each in enumerate(profile):
        gradients = [pair[place] for pair in expected]
        assert each.norm == pytest.approx(np.mean([np.linalg.norm(g) for g in gradients]), rel=1e-4)
        assert each.mean_abs == pytest.approx(np.mean(np.abs(gradients)), rel=1e-4)
    assert profile[0].relative == pytest.approx(profile[0].norm / np.linalg.norm(first), rel=1e-5)
