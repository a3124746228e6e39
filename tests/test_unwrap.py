"""The model without gradstab: same weights and moments, and it loads where gradstab is not."""

import common_checks as checks
import keras
import numpy as np
import pytest

from gradstab import regularizers, schedules, stabilize, unwrap

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(16, 3)), DRAW.normal(size=(16, 1))


def _model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4,
                "tanh",
                kernel_regularizer=regularizers.L2(0.02),
                bias_regularizer=regularizers.L1(0.01),
            ),
            keras.layers.Dense(1, kernel_regularizer=regularizers.L1L2(0.01, 0.03)),
        ]
    )
    model.compile(optimizer, "mse")
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    return model


def test_an_optimizer():
    inner = keras.optimizers.Adam(0.1, global_clipnorm=0.5)
    wrapped = stabilize(inner)
    weights = checks.make_variables()
    wrapped.apply(checks.make_gradients(), weights)
    before = checks.contents(inner.variables)
    assert unwrap(wrapped) is inner
    assert inner.global_clipnorm == 0.5
    assert not checks.differences(before, checks.contents(inner.variables))
    plain = keras.optimizers.SGD(0.1)
    assert unwrap(plain) is plain
    scaled = keras.optimizers.LossScaleOptimizer(stabilize("adam"))
    assert unwrap(scaled) is scaled
    assert type(scaled.inner_optimizer) is keras.optimizers.Adam


def test_a_model_in_place():
    inner = keras.optimizers.Adam(0.05, clipnorm=0.3)
    model = _model(stabilize(inner))
    weights, moments = model.get_weights(), checks.contents(inner.variables)
    losses = sum(float(loss) for loss in model.losses)
    assert unwrap(model) is model
    assert model.optimizer is inner
    assert inner.clipnorm == 0.3
    assert int(inner.iterations) == 4
    assert not checks.differences(moments, checks.contents(inner.variables))
    for got, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, expected)
    first, second = model.layers
    assert type(first.kernel_regularizer) is keras.regularizers.L2
    assert type(first.bias_regularizer) is keras.regularizers.L1
    assert type(second.kernel_regularizer) is keras.regularizers.L1L2
    np.testing.assert_allclose(float(second.kernel_regularizer.l1), 0.01)
    np.testing.assert_allclose(float(second.kernel_regularizer.l2), 0.03)
    np.testing.assert_allclose(sum(float(loss) for loss in model.losses), losses, rtol=1e-6)
    model.fit(X, Y, verbose=0)
    assert int(inner.iterations) == 5
    assert unwrap(model) is model  # again: nothing left to do


def test_it_goes_on_as_plain_keras_does():
    """Where nothing was clipped, wrapped and unwrapped half-way is plain Keras throughout."""

    def trained(wrap):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(wrap(keras.optimizers.Adam(0.05)), "mse")
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        unwrap(model).fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for got, expected in zip(
        trained(lambda inner: stabilize(inner, clip=1e9)), trained(lambda inner: inner), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


LOADS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gradstab":
            raise ImportError("gradstab is not here")
sys.meta_path.insert(0, Blocked())
import keras, numpy as np
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    before = int(optimizer.iterations)
    mean = float(np.mean(np.abs(inner.variables[2])))
    model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
    print(type(optimizer).__name__, type(inner).__name__, before, int(optimizer.iterations),
          np.isfinite(model.get_weights()[0]).all(), mean > 0, inner.clipnorm)
assert not any(name.startswith("gradstab") for name in sys.modules)
"""


@pytest.mark.slow
def test_it_loads_and_trains_on_where_gradstab_is_not(tmp_path, run_python):
    inner = keras.optimizers.Adam(0.05, clipnorm=0.3)
    unwrap(_model(stabilize(inner))).save(tmp_path / "plain.keras")
    keras.config.set_dtype_policy("mixed_float16")
    unwrap(_model(stabilize("adam"))).save(tmp_path / "scaled.keras")
    said = run_python(LOADS, tmp_path / "plain.keras", tmp_path / "scaled.keras")
    assert said.splitlines() == [
        "Adam Adam 4 5 True True 0.3",
        "LossScaleOptimizer Adam 4 5 True True None",
    ]


def _adjustable(rate=None):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return schedules.Adjustable(decay if rate is None else rate)


def test_an_adjustable_schedule_gives_what_is_in_it():
    model = _model(stabilize(keras.optimizers.SGD(_adjustable())))
    rate = float(model.optimizer.learning_rate)
    unwrap(model)
    config = model.optimizer.get_config()["learning_rate"]
    assert config["class_name"] == "ExponentialDecay"
    assert config["registered_name"] is None
    assert np.isclose(float(model.optimizer.learning_rate), rate)


def test_an_adjustable_number_becomes_the_number_cut():
    schedule = _adjustable(0.5)
    model = _model(stabilize(keras.optimizers.Adam(schedule)))
    model.optimizer.learning_rate = 0.125
    moments = checks.values_of(model.optimizer.inner_optimizer.variables)
    unwrap(model)
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == 0.125
    kept = [v for v in model.optimizer.variables if "learning_rate" not in v.path]
    for got, expected in zip(checks.values_of(kept), moments, strict=True):
        np.testing.assert_array_equal(got, expected)
    model.fit(X, Y, verbose=0)
    assert int(model.optimizer.iterations) == 5
    model.optimizer.learning_rate = 0.25  # a plain number again


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (lambda: schedules.LinearWarmup(0.1, 3), "LinearWarmup"),
        (lambda: schedules.Adjustable(schedules.LinearWarmup(0.1, 3)), "LinearWarmup"),
        (lambda: schedules.Join([0.1, 0.2], [3]), "Join"),
    ],
)
def test_schedules_of_ours_are_refused_by_name_unless_a_rate_is_given(schedule, name):
    wrapped = stabilize(keras.optimizers.Adam(schedule(), clipnorm=0.5))
    model = _model(wrapped)
    with pytest.raises(ValueError, match=rf"Received: {name}.*Pass `learning_rate=`"):
        unwrap(model)
    # Nothing was changed.
    assert model.optimizer is wrapped
    assert wrapped.inner_optimizer.clipnorm is None
    assert isinstance(model.layers[0].kernel_regularizer, regularizers.L2)
    moments = checks.values_of(wrapped.inner_optimizer.variables)
    unwrap(model, learning_rate=0.02)
    optimizer = model.optimizer
    assert type(optimizer) is keras.optimizers.Adam
    assert optimizer.clipnorm == 0.5
    assert np.isclose(float(optimizer.learning_rate), 0.02)
    kept = [v for v in optimizer.variables if "learning_rate" not in v.path]
    for got, expected in zip(checks.values_of(kept), moments, strict=True):
        np.testing.assert_array_equal(got, expected)
    model.fit(X, Y, verbose=0)


def test_a_cut_schedule_is_refused():
    optimizer = stabilize(keras.optimizers.SGD(_adjustable()))
    optimizer.learning_rate = 0.05
    with pytest.raises(ValueError, match=r"Adjustable, cut to 0.5 of its schedule"):
        unwrap(optimizer)
    assert float(unwrap(optimizer, learning_rate=0.05).learning_rate) == np.float32(0.05)


def test_what_is_neither_model_nor_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"must be a keras.Model or a Keras optimizer"):
        unwrap("adam")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert unwrap(model) is model  # not compiled: nothing to do


def test_two_bounds_that_keras_could_not_load_are_refused():
    optimizer = keras.optimizers.Adam(clipnorm=1.0)
    optimizer.clipvalue = 0.5
    wrapped = stabilize(optimizer)
    assert len(wrapped.taken_over) == 2
    with pytest.raises(ValueError, match=r"clipvalue=0\.5 and clipnorm=1 at once"):
        unwrap(wrapped)
    del wrapped.taken_over["clipvalue"]
    assert unwrap(wrapped).clipnorm == 1.0
