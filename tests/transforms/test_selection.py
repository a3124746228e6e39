"""`Only` binds a transform to variables by patterns on their paths."""

import common_checks as checks
import keras
import numpy as np
import pytest
import references
import tensorflow as tf

from gradstab import optimizers, transforms
from gradstab.transforms import ClipByGlobalNorm, ClipByNorm, LimitUpdateRatio, Only, SkipNonFinite


def _optimizer(*chain, inner=None):
    return optimizers.StabilizedOptimizer(inner or keras.optimizers.SGD(1.0), list(chain))


def test_the_rest_is_passed_on_as_it_came():
    optimizer = _optimizer(Only(ClipByGlobalNorm(0.5), include=["embed*", "kernel"]))
    variables, gradients = checks.make_variables(), checks.make_gradients()
    before = checks.values_of(variables)
    step, _ = checks.stepper(optimizer, variables, "graph")
    step(*gradients)
    expected = [*references.clip_by_global_norm(gradients[:2], 0.5), gradients[2].numpy()]
    for old, variable, change in zip(before, variables, expected, strict=True):
        np.testing.assert_allclose(old - variable.numpy(), change, rtol=1e-5, atol=1e-6)
    assert optimizer.telemetry.peek().clipped.tolist() == [True]
    all_norms = references.global_norm([g.numpy() for g in gradients])
    np.testing.assert_allclose(optimizer.telemetry.peek().grad_norm, [all_norms], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ({"include": "kernel"}, ["kernel"]),
        ({"exclude": "*s"}, ["kernel"]),  # neither "embeddings" nor "bias"
        ({"include": ["*e*"], "exclude": ["k*"]}, ["embeddings"]),
        ({"include": "[bk]*"}, ["kernel", "bias"]),
        ({"include": "?ias"}, ["bias"]),
        ({"include": "in/*"}, ["kernel"]),
        ({"include": "deep/in/*"}, ["kernel"]),
    ],
)
def test_patterns(arguments, chosen):
    optimizer = _optimizer(Only(ClipByNorm(0.01), **arguments))
    gradients = checks.make_gradients()
    with keras.name_scope("deep"), keras.name_scope("in"):
        kernel = keras.Variable(np.ones((3, 2)), name="kernel")
    variables = [keras.Variable(np.ones((5, 2)), name="embeddings"), kernel]
    variables.append(keras.Variable(np.ones(4), name="bias"))
    assert kernel.path == "deep/in/kernel"
    before = checks.values_of(variables)
    optimizer.apply(gradients, variables)
    lengths = [np.linalg.norm(o - v.numpy()) for o, v in zip(before, variables, strict=True)]
    assert [v.name for v, length in zip(variables, lengths, strict=True) if length < 0.02] == chosen


def test_nested_and_in_the_update_stage():
    inside = Only(LimitUpdateRatio(1e-3), exclude="bias")
    outer = Only(inside, include=["kernel", "bias"])
    optimizer = _optimizer(outer)
    assert outer.stage == "update"
    variables, gradients = checks.make_variables(), checks.make_gradients()
    before = checks.values_of(variables)
    optimizer.apply(gradients, variables)
    changes = [v.numpy() - o for o, v in zip(before, variables, strict=True)]
    expected = references.limit_update_ratio(before[1], -gradients[1].numpy(), 1e-3)
    np.testing.assert_allclose(changes[1], expected, rtol=1e-3, atol=1e-7)
    for place in (0, 2):
        np.testing.assert_allclose(changes[place], -gradients[place].numpy(), rtol=1e-5, atol=1e-6)


def test_a_bound_inside_changes_the_compiled_step_and_is_saved():
    only = Only(ClipByNorm(0.1), include="kernel")
    optimizer = _optimizer(only)
    variables, gradients = checks.make_variables(), checks.make_gradients()
    step, traces = checks.stepper(optimizer, variables, "graph")
    step(*gradients)
    first = len(traces)
    only.transform.max_norm = 0.25
    before = variables[1].numpy()
    step(*gradients)
    np.testing.assert_allclose(np.linalg.norm(variables[1].numpy() - before), 0.25, rtol=1e-5)
    assert len(traces) == first
    again = optimizers.StabilizedOptimizer.from_config(optimizer.get_config())
    assert again.transforms[0] == Only(ClipByNorm(0.25), include="kernel")
    assert again.transforms[0] != Only(ClipByNorm(0.1), include="kernel")


def test_it_is_loaded_with_a_model(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
    chain = [Only(Only(ClipByNorm(0.1), exclude="*/bias"), include=["head/*"]), SkipNonFinite()]
    model.compile(_optimizer(*chain), "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    model.optimizer.transforms[0].transform.transform.max_norm = 0.5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert repr(loaded.optimizer) == repr(model.optimizer)
    assert loaded.optimizer.transforms[0].transform.transform.max_norm == 0.5
    variables = [m.optimizer.variables for m in (model, loaded)]
    assert not checks.differences(*map(checks.contents, variables))


def test_a_skip_inside_judges_the_chosen_variables_alone():
    optimizer = _optimizer(Only(SkipNonFinite(3), include="kernel"))
    variables, gradients = checks.make_variables(), checks.make_gradients()
    step, _ = checks.stepper(optimizer, variables, "graph")
    bad = gradients[1] * np.nan
    before = checks.contents(variables)
    step(gradients[0], bad, gradients[2])
    assert not checks.differences(before, checks.contents(variables))
    step(gradients[0], gradients[1], gradients[2] * np.nan)
    assert np.isnan(variables[2].numpy()).all()
    assert optimizer.telemetry.peek().total_skipped == 1
    assert optimizer.max_consecutive == 3


def test_patterns_that_fit_nothing_are_told_with_the_nearest_paths():
    optimizer = _optimizer(Only(ClipByNorm(1e-3), include="kernal"))
    variables, gradients = checks.make_variables(), checks.make_gradients()
    with pytest.warns(UserWarning, match=r"`include` .* matches no variable.*'kernal'.*'kernel'"):
        optimizer.build(variables)
    expected = [v.numpy() - g.numpy() for v, g in zip(variables, gradients, strict=True)]
    optimizer.apply(gradients, variables)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"`transform` must be an instance of .*Transform"):
        Only("ClipByNorm", include="*")
    with pytest.raises(ValueError, match="`include` or `exclude` must be given"):
        Only(ClipByNorm(1.0))
    with pytest.raises(TypeError, match="`include` must be a pattern"):
        Only(ClipByNorm(1.0), include=[1])
    with pytest.raises(ValueError, match=r"`exclude` must be a pattern .* none of them empty"):
        Only(ClipByNorm(1.0), exclude=[])
    shared = ClipByNorm(1.0)
    optimizer = _optimizer(Only(shared, include="kernel"), Only(shared, include="bias"))
    with pytest.raises(ValueError, match="belongs to another optimizer already"):
        optimizer.build(checks.make_variables())


def test_outliers_of_a_part():
    """A spike elsewhere is no outlier of the part, one inside is."""
    skip = transforms.SkipOutliers(history_length=4, warmup_steps=4)
    optimizer = _optimizer(Only(skip, include="a"))
    weights = [keras.Variable(np.zeros(1), name=name) for name in "ab"]
    for a, b in [(1, 1)] * 4 + [(1, 100), (100, 1)]:
        optimizer.apply([tf.constant([float(a)]), tf.constant([float(b)])], weights)
    assert optimizer.telemetry.peek().cause == [None] * 5 + ["outlier"]
