"""Half precision as `compile` sets it up: LossScale(Ours(inner))."""

import common_checks as checks
import keras
import numpy as np
import pytest

from gradstab import DivergenceError, optimizers, stabilize

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(32, 4)).astype("float32")
Y = X @ DRAW.normal(size=(4, 1)).astype("float32")


def _model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(optimizer, "mse")
    return model


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fit_learns(policy):
    keras.config.set_dtype_policy(policy)
    model = _model(stabilize("adam", learning_rate=0.05))
    history = model.fit(X, Y, epochs=12, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]
    ours = model.optimizer
    if policy == "mixed_float16":
        assert isinstance(ours, keras.optimizers.LossScaleOptimizer)
        ours = ours.inner_optimizer
    assert isinstance(ours, optimizers.StabilizedOptimizer)
    reading = ours.telemetry.read()
    assert reading.total_skipped == 0
    assert reading.cursor > 12
    # Unscaled: a loss scale of 32768 does not show.
    assert reading.grad_norm.max() < 100


def test_an_overflow_is_skipped_whole_under_a_loss_scale():
    keras.config.set_dtype_policy("mixed_float16")
    model = _model(stabilize("adam"))
    model.fit(X, Y, verbose=0)
    state = [*model.trainable_variables, *checks.lasting_state(model.optimizer)]
    state = [v for v in state if v.name not in ("dynamic_scale", "step_counter")]
    before = checks.contents(state)
    scale = float(model.optimizer.dynamic_scale)
    model.train_on_batch(X, Y + 1e6)  # a loss of 1e12, and gradients that half precision can't hold
    assert float(model.optimizer.dynamic_scale) == scale / 2
    assert not checks.differences(before, checks.contents(state))


def test_a_loss_that_is_not_finite_is_no_fault_of_the_scale():
    """21 steps went by, the scale at its floor, before a loss that was NaN was told of at all."""
    keras.config.set_dtype_policy("mixed_float16")
    model = _model(stabilize("adam", max_consecutive=5))
    bad = np.full_like(X, np.nan)
    scales = []
    for _ in range(6):
        model.train_on_batch(bad, Y)
        scales += [float(model.optimizer.dynamic_scale), int(model.optimizer.step_counter)]
    assert scales == [2.0**15, 0] * 6
    optimizer = model.optimizer.inner_optimizer
    assert optimizer.telemetry.peek().cause == ["nonfinite"] * 6
    with pytest.raises(
        DivergenceError, match="6 steps in a row were skipped, beginning with step 1"
    ):
        optimizer.raise_if_diverged()


def test_a_chain_without_a_skip_counts_it_too():
    keras.config.set_dtype_policy("mixed_float16")
    model = _model(optimizers.clip_by_global_norm(keras.optimizers.SGD(0.1), 1.0))
    before = checks.contents(model.trainable_variables)
    for _ in range(51):
        model.train_on_batch(np.full_like(X, np.nan), Y)
    assert not checks.differences(before, checks.contents(model.trainable_variables))
    with pytest.raises(DivergenceError, match="51 steps in a row"):
        model.optimizer.inner_optimizer.raise_if_diverged()
    assert float(model.optimizer.dynamic_scale) == 2.0**15


def test_a_loss_scaled_model_is_saved_and_goes_on(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = _model(stabilize("adam"))
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(X, Y, shuffle=False, verbose=0)
    pairs = [[*m.variables, *m.optimizer.inner_optimizer.variables] for m in (model, loaded)]
    for got, expected in zip(*map(checks.values_of, pairs), strict=True):
        np.testing.assert_array_equal(got, expected)
