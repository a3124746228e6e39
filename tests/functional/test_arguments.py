"""Wrong arguments of the public functions: each is refused by its name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import functional

ONES = np.ones(2, "float32")
SPARSE = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]))
NOT_LISTS = [None, 1.0, "ab", b"ab", {"a": ONES}, {1.0}, object(), keras.KerasTensor((2,))]
NOT_TENSORS = [
    "a",
    object(),
    np.array("a"),
    1j * ONES,
    [[1.0, 2.0], [3.0]],
    SPARSE,
    ONES > 0,
    10**400,
]
NOT_BOUNDS = ["a", None, 0, -1.0, float("nan"), True, 1j, [], {}, object(), np.array([-1.0])]


@pytest.mark.parametrize("name", ["norms", "global_norm", "finite", "all_finite"])
@pytest.mark.parametrize("values", [*NOT_LISTS, *[[each] for each in NOT_TENSORS]])
def test_lists_of_tensors(name, values):
    with pytest.raises(TypeError, match=r"^`values(\[0\])?` must be a"):
        getattr(functional, name)(values)


@pytest.mark.parametrize("value", NOT_TENSORS)
def test_tensors(value):
    with pytest.raises(TypeError, match=r"^`value` must be a"):
        functional.norm(value)


@pytest.mark.parametrize("bound", [*NOT_BOUNDS, ONES])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("clip_by_value", "clip_value"),
        ("clip_by_norm", "max_norm"),
        ("clip_by_global_norm", "max_norm"),
    ],
)
def test_bounds(name, argument, bound):
    with pytest.raises((TypeError, ValueError), match=f"^`{argument}` must be"):
        getattr(functional, name)([ONES], bound)


@pytest.mark.parametrize("order", ["a", None, 0, -1.0, float("nan"), [2], ONES])
def test_orders(order):
    with pytest.raises((TypeError, ValueError), match=r"^`ord` must be a positive float"):
        functional.norm(ONES, order)


def test_factors():
    with pytest.raises(ValueError, match="must broadcast against `norm`"):
        functional.clip_factor(np.ones(3), np.ones(2))
    # A float64 norm beside a float32 bound was a mismatch to TensorFlow.
    assert functional.clip_factor(np.float64(4.0), 2.0).numpy() == 0.5


def test_what_was_taken_is_taken_still():
    assert functional.global_norm((ONES, None, [3.0, 1])).numpy() == pytest.approx(12**0.5)
    assert functional.norms(np.eye(2)).numpy().tolist() == [1.0, 1.0]
    assert functional.finite([]).numpy().tolist() == []
    assert bool(functional.all_finite([]))
    bound = tf.constant(0.5)
    assert functional.clip_by_norm([ONES], bound)[0].numpy() == pytest.approx(0.5**0.5 / 2)
    compiled = tf.function(lambda bound: functional.clip_by_value([ONES], bound)[0])
    assert compiled(bound).numpy().tolist() == [0.5, 0.5]
