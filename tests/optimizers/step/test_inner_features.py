"""What an inner optimizer can do it does inside the wrapper, whether a transform acts or not."""

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.optimizers import StabilizedOptimizer

BOUND = 0.5


def _schedule():
    return keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.2, 0.1, 0.05])


def _excluding(**arguments):
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1, **arguments)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def _parts(**arguments):
    parts = [
        keras.optimizers.SGD(_schedule(), momentum=0.9, **arguments),
        keras.optimizers.Adam(0.1, weight_decay=0.1, **arguments),
    ]
    return keras.optimizers.MultiOptimizer(lambda variable: parts["bias" in variable.name])


FEATURES = {
    "schedule": lambda **a: keras.optimizers.RMSprop(_schedule(), **a),
    "decay with exclusions": _excluding,
    "averages": lambda **a: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, **a),
    "averages that overwrite": lambda **a: keras.optimizers.Adam(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2, **a
    ),
    "several optimizers": _parts,
}


def _variables(feature):
    """One is constrained, and one frozen: without gradient. A MultiOptimizer wants all."""
    variables = checks.make_variables()
    variables[1].constraint = keras.constraints.MaxNorm(1.0)
    if feature == "several optimizers":
        return variables
    return [*variables, keras.Variable(np.ones(3), name="frozen")]


def _by_hand(gradients):
    """Clip the global norm in float64."""
    norm = np.sqrt(sum((np.asarray(g, "float64") ** 2).sum() for g in gradients))
    return [tf.constant(np.asarray(g, "float64") * min(1.0, BOUND / norm), tf.float32)
            for g in gradients]  # fmt: skip


def _run(feature, mode, chain=None, treat=lambda gradients: gradients):
    """Return all variables after five steps, and the wrapper, if there is a chain."""
    optimizer, variables = FEATURES[feature](), _variables(feature)
    if chain is not None:
        optimizer = StabilizedOptimizer(optimizer, chain)
    optimizer.build(variables)
    step, _ = checks.stepper(optimizer, variables[:3], mode)
    for seed in range(5):
        step(*treat(checks.make_gradients(seed)))
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return [*variables, *inner.variables], optimizer


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mode", checks.MODES)
@pytest.mark.parametrize("feature", FEATURES)
def test_when_no_transform_acts_it_is_the_inner_optimizer(feature, mode):
    chain = [transforms.SkipNonFinite(), transforms.ClipByGlobalNorm(np.inf)]
    got, _ = _run(feature, mode, chain)
    expected, _ = _run(feature, "eager")
    if mode == "eager":
        assert not checks.differences(*_bytes(got, expected))
    checks.close(got, expected)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("feature", FEATURES)
def test_when_one_acts_it_is_the_inner_optimizer_on_what_was_clipped(feature):
    got, ours = _run(feature, "graph", [transforms.ClipByGlobalNorm(BOUND)])
    assert ours.telemetry.peek().total_clipped == 5
    expected, _ = _run(feature, "eager", treat=_by_hand)
    checks.close(got, expected)


@pytest.mark.parametrize("feature", ["schedule", "decay with exclusions", "several optimizers"])
def test_an_update_transform_that_acts_comes_before_constraints(feature):
    """‖Δw‖ is bounded by hand; `test_update_ratio.py` does the same with averages."""
    ratio = 0.02
    ours = StabilizedOptimizer(
        FEATURES[feature](), [transforms.LimitUpdateRatio(ratio, epsilon=0.1)]
    )
    got, variables = _variables(feature), _variables(feature)
    variables[1].constraint = None
    plain = FEATURES[feature]()
    for optimizer, each in ((ours, got), (plain, variables)):
        optimizer.build(each)
    for seed in range(4):
        before = checks.values_of(variables)
        ours.apply(checks.make_gradients(seed), got[:3])
        plain.apply(checks.make_gradients(seed), variables[:3])
        for place, (variable, old) in enumerate(zip(variables, before, strict=True)):
            change = variable.numpy().astype("float64") - old
            size = np.linalg.norm(change)
            allowed = ratio * max(np.linalg.norm(old), 0.1)
            new = old + change * (min(1.0, allowed / size) if size else 1.0)
            if place == 1:
                norms = np.linalg.norm(new, axis=0)
                new = new * np.clip(norms, 0, 1.0) / (norms + 1e-7)
            variable.assign(new)
    checks.close(got, variables, tolerance=3e-6)


def test_the_wrapping_functions_keep_all_of_it():
    inner = keras.optimizers.Adam(
        0.1,
        weight_decay=0.1,
        use_ema=True,
        ema_overwrite_frequency=2,
        gradient_accumulation_steps=2,
        global_clipnorm=BOUND,
    )
    config = inner.get_config()
    wrapped = optimizers.clip_by_value(inner, 10.0)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(wrapped))
    assert again.inner_optimizer.get_config() == {**config, "global_clipnorm": None}
    assert again.gradient_accumulation_steps == 2


def _bytes(*runs):
    return [
        {str(place): value.tobytes() for place, value in enumerate(checks.values_of(run))}
        for run in runs
    ]
