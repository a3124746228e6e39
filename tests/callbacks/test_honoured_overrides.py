"""What a person overrides, on a class or on an instance, is what runs."""

import types

import keras
import numpy as np
import pytest

import gradstab
from gradstab.callbacks import DivergenceGuard, GradientMonitor
from gradstab.monitoring.writer import RecordWriter

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1]


def _model(optimizer="sgd", **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **arguments)
    return model


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"run_eagerly": True}, {"steps_per_execution": 3}])
def test_a_train_step_of_the_instance_takes_every_step(ours, arguments):
    """It took the sampled steps alone, and the attribute was gone afterwards."""
    model = _model(gradstab.stabilize("sgd") if ours else "sgd", **arguments)
    steps = keras.Variable(0.0, trainable=False)

    def mine(self, data):
        steps.assign_add(1.0)
        return keras.Model.train_step(self, data)

    model.train_step = method = types.MethodType(mine, model)
    watching = [GradientMonitor(every_n_steps=50), DivergenceGuard()]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=watching)
    assert float(steps) == 16
    assert vars(model)["train_step"] is method


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", ["compute_loss", "test_step"])
def test_other_methods_of_the_instance(method):
    model = _model()
    calls = []
    original = getattr(model, method)

    def mine(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    setattr(model, method, mine)
    model.fit(
        X, Y, validation_data=(X, Y), verbose=0, callbacks=[GradientMonitor(), DivergenceGuard()]
    )
    assert calls
    assert vars(model)[method] is mine


class _Gradients(keras.optimizers.SGD):
    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(g * 0.0, v) for g, v in grads_and_vars])


class _Apply(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        return super().apply([g * 0.0 for g in grads], trainable_variables)


class _Update(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        pass


def _on_the_instance(method):
    optimizer, of_class = keras.optimizers.SGD(0.1), keras.optimizers.SGD
    own = {
        "apply_gradients": lambda pairs: of_class.apply_gradients(
            optimizer, [(g * 0.0, v) for g, v in pairs]
        ),
        "apply": lambda grads, variables=None: of_class.apply(
            optimizer, [g * 0.0 for g in grads], variables
        ),
        "update_step": lambda *arguments: None,
    }
    setattr(optimizer, method, own[method])
    return optimizer


STILL = {
    "class apply_gradients": lambda: _Gradients(0.1),
    "class apply": lambda: _Apply(0.1),
    "class update_step": lambda: _Update(0.1),
    **{
        f"instance {name}": lambda name=name: _on_the_instance(name)
        for name in ("apply_gradients", "apply", "update_step")
    },
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("arguments", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_an_inner_optimizer_that_stands_still_does_so_when_wrapped(name, arguments):
    model = _model(gradstab.stabilize(STILL[name](), clip=None), **arguments)
    before = [w.tobytes() for w in model.get_weights()]
    model.fit(X, Y, batch_size=16, verbose=0)
    assert [w.tobytes() for w in model.get_weights()] == before
    assert model.optimizer.telemetry.read().cursor == 4


def test_a_skip_vetoes_an_apply_gradients_of_its_own():
    class Doubles(keras.optimizers.SGD):
        def apply_gradients(self, grads_and_vars):
            return super().apply_gradients([(2.0 * g, v) for g, v in grads_and_vars])

    x = X.copy()
    x[3] = np.nan
    ours, plain = _model(gradstab.stabilize(Doubles(0.05), clip=None)), _model(Doubles(0.05))
    ours.fit(x, Y, batch_size=8, shuffle=False, verbose=0)
    plain.fit(x[8:], Y[8:], batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_full_disk_ends_the_record_and_not_the_run(tmp_path, monkeypatch):
    write, written = RecordWriter._write, []

    def full(self, line):
        written.append(line)
        if len(written) > 3:
            raise OSError(28, "No space left on device", str(self.path))
        write(self, line)

    monkeypatch.setattr(RecordWriter, "_write", full)
    model, monitor = _model(), GradientMonitor(tmp_path, every_n_steps=2)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        history = model.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[monitor])
    assert len([each for each in caught if "No space" in str(each.message)]) == 1
    assert len(history.history["grad_norm"]) == 4
    assert len(written) == 4


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_a_gradient_of_zero_is_told_with_the_layer(tmp_path):
    keras.utils.set_random_seed(1)
    bias = keras.initializers.Constant(-9.0)
    stop = keras.layers.Dense(1, "relu", bias_initializer=bias, name="stop")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), stop])
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match=r"exactly zero at all 8 steps.*/stop` stops it"):
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=[GradientMonitor(tmp_path)])
    record = gradstab.monitoring.read_record(tmp_path)
    assert [event.name for event in record.events] == ["zero_gradient", "end"]
    assert "/stop` stops it" in record.events[0].details["message"]
