"""Statistics of all tensors of a step at once, against NumPy tensor by tensor."""

import numpy as np
import pytest
import tensorflow as tf

from gradstab.functional import statistics

# Small ones lie together in rows of 256, two groups of them here; a large one on its own.
SHAPES = [(4, 3), (), (12,), (0, 2), (3, 257), (700, 3), (5,), (3000,), (16, 16), (10, 4)]
MOST = 2900


def _step(*, finite):
    draw = np.random.default_rng(0)
    before, after, gradients = (
        [np.asarray(draw.normal(size=shape), "float32") for shape in SHAPES] for _ in range(3)
    )
    gradients[0][1, 2], gradients[4][:] = 0.0, -np.abs(gradients[4])
    gradients[5], gradients[6] = None, gradients[6].astype("float16")
    after[2] = before[2].copy()
    after[8] = after[8] * np.float32(1e25)  # Its squares are more than float32 holds.
    if not finite:
        gradients[0][0, 0], gradients[2][1], gradients[7][9] = np.nan, -np.inf, np.inf
        after[6][0] = np.nan
    return gradients, before, after


def _expected(gradient, before, after):
    gradient = np.zeros_like(after) if gradient is None else gradient.astype("float64")
    update = after.astype("float64") - before
    finite = np.abs(np.where(np.isfinite(gradient), gradient, 0))
    with np.errstate(invalid="ignore"):
        return {
            "largest": finite.max(initial=0),
            "nonzero": (gradient != 0).sum(),
            "nonfinite": (~np.isfinite(gradient)).sum(),
            "weight_norm": np.sqrt((after.astype("float64") ** 2).sum()),
            "update_norm": np.sqrt((update**2).sum()),
            "predicted": (gradient * update).sum() if update.any() else 0.0,
        }


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_each_tensor_has_its_own_numbers(finite, jit_compile, monkeypatch):
    monkeypatch.setattr(statistics, "_MOST", MOST)
    gradients, before, after = _step(finite=finite)
    rows = [None] * len(SHAPES)
    rows[9] = tf.constant([7, 2, 2])
    gradients[9] = gradients[9][:3]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def measure(present, before, after):
        rest = iter(present)
        given = [None if each is None else next(rest) for each in gradients]
        return statistics.statistics_of_step(given, before, after, rows)

    found = measure([each for each in gradients if each is not None], before, after)
    for place, step in enumerate(zip(gradients, before, after, strict=True)):
        expected = _expected(*step) if place != 9 else _expected(None, *step[1:])
        if place == 9:
            gradient, update = gradients[9], (after[9] - before[9])[[7, 2, 2]]
            expected |= {
                "largest": np.abs(gradient).max(),
                "nonzero": gradient.size,
                "predicted": (gradient * update).sum(),
            }
        for name, value in expected.items():
            exact = name in ("largest", "nonzero", "nonfinite")
            told = float(found[name][place])
            tolerance = {"rtol": 0 if exact else 1e-5, "atol": 0 if exact else 1e-5}
            np.testing.assert_allclose(told, value, **tolerance, err_msg=f"{name} of {place}")


def test_of_nothing_there_is_nothing_to_tell():
    found = statistics.statistics_of_step([None], [np.zeros((0, 2))], [np.zeros((0, 2))])
    assert [value.numpy().tolist() for value in found.values()] == [[0.0]] * 6


def test_double_precision_is_kept():
    tiny = np.array([1.0 + 1e-12, -2.0])
    found = statistics.statistics_of_step([tiny], [np.array([1.0, -2.0])], [tiny])
    assert found["update_norm"].numpy()[0] == pytest.approx(1e-12, rel=1e-3)
