"""Every private name that gradstab uses is there in this Keras, and does what it is used for."""

import ast
from pathlib import Path

import common_checks as checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.keras_hooks import (
    attributes,
    batches,
    compiled_model,
    conditions,
    epoch_logs,
    graph_history,
    log_numbers,
    loss_scale,
    one_step,
    required,
    strategies,
)

FOLDER = Path(required.__file__).parent
# They need no private name.
OTHERS = {"__init__", "required", "substitute"}


def _stepped(optimizer, steps=1):
    """Build an optimizer on two variables and take steps with gradients of 1 and 2."""
    weights = [keras.Variable(tf.ones(3), name=name) for name in ("first", "second")]
    optimizer.build(weights)
    for _ in range(steps):
        optimizer.apply([tf.fill((3,), 1.0), tf.fill((3,), 2.0)], weights)
    return optimizer, weights


def _adam(**arguments):
    return _stepped(keras.optimizers.Adam(0.1, **arguments))


def _model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def _noted(owner, name):
    """Note the arguments of each call of a method in the list that is returned."""
    calls, method = [], getattr(owner, name)

    def noted(*arguments, **named):
        calls.append(arguments)
        return method(*arguments, **named)

    vars(owner)[name] = noted
    return calls


def _close(slot, value):
    np.testing.assert_allclose(keras.ops.convert_to_numpy(slot), value, rtol=1e-5)


def trainable_variables():
    adam, weights = _adam()
    assert [id(v) for v in adam._trainable_variables] == [id(v) for v in weights]


def iterations():
    adam, _ = _adam(gradient_accumulation_steps=2)
    assert isinstance(vars(adam)["_iterations"], keras.Variable)
    assert int(adam._iterations) == 1
    assert int(adam.iterations) == 0


def learning_rate():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    sgd = keras.optimizers.SGD(schedule)
    assert vars(sgd)["_learning_rate"] is schedule
    vars(sgd)["_learning_rate"] = lambda: tf.constant(0.25)
    assert float(sgd.learning_rate) == 0.25


def variables():
    adam, _ = _adam()
    assert [id(v) for v in adam._variables] == [id(v) for v in adam.variables]


def track_variable():
    adam = keras.optimizers.Adam()
    variable = keras.random.SeedGenerator(1).state
    adam._track_variable(variable)
    assert any(each is variable for each in adam.variables)


def get_variable_index():
    adam, weights = _adam()
    assert [adam._get_variable_index(each) for each in weights] == [0, 1]
    assert adam._get_variable_index(weights[1].value) == 1


def momentums():
    adam, _ = _adam()
    _close(adam._momentums[1], 0.1 * 2)


def velocities():
    adam, _ = _adam()
    _close(adam._velocities[1], 0.001 * 4)
    rmsprop, _ = _stepped(keras.optimizers.RMSprop(rho=0.5))
    _close(rmsprop._velocities[1], 0.5 * 4)


def velocity_hats():
    adam, _ = _adam(amsgrad=True)
    _close(adam._velocity_hats[1], 0.001 * 4)


def accumulators():
    adagrad, _ = _stepped(keras.optimizers.Adagrad(initial_accumulator_value=0.5))
    _close(adagrad._accumulators[1], 0.5 + 4)


def average_gradients():
    rmsprop, _ = _stepped(keras.optimizers.RMSprop(rho=0.5, centered=True))
    _close(rmsprop._average_gradients[1], 0.5 * 2)


def use_weight_decay():
    adamw = keras.optimizers.AdamW()
    weights = [keras.Variable(tf.ones(3), name=name) for name in ("first", "second")]
    adamw.exclude_from_weight_decay(var_names=["second"])
    adamw.build(weights)
    assert [bool(adamw._use_weight_decay(each)) for each in weights] == [True, False]


def apply_weight_decay():
    sgd = keras.optimizers.SGD(0.1, weight_decay=0.5)
    calls = _noted(sgd, "_apply_weight_decay")
    _, weights = _stepped(sgd)
    assert [[id(v) for v in each] for (each,) in calls] == [[id(v) for v in weights]]
    _close(weights[0], 1 - 0.1 * 0.5 - 0.1)


def backend_apply_gradients():
    sgd = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    vars(sgd)["_backend_apply_gradients"] = lambda gradients, variables: None
    _, weights = _stepped(sgd, 2)
    _close(weights[0], 1.0)


def backend_update_step():
    sgd, weights = _stepped(keras.optimizers.SGD(0.1), 0)
    sgd._backend_update_step([tf.ones(3), tf.ones(3)], weights, tf.constant(0.5))
    _close(weights[0], 0.5)


def all_reduce_sum_gradients():
    sgd = keras.optimizers.SGD(0.1)
    calls = _noted(sgd, "_all_reduce_sum_gradients")
    with checks.mirrored(2).scope():
        weights = [keras.Variable(tf.ones(3))]
        sgd.build(weights)
    strategy = weights[0].value.distribute_strategy
    strategy.run(lambda: sgd.apply([tf.ones(3)], weights))
    _close(weights[0], 1 - 0.1 * 2)
    assert calls
    vars(sgd)["_all_reduce_sum_gradients"] = list
    strategy.run(lambda: sgd.apply([tf.ones(3)], weights))
    _close(weights[0], 1 - 0.1 * 3)


def model_variables_moving_average():
    adam, weights = _adam(use_ema=True, ema_momentum=0.5)
    assert len(adam._model_variables_moving_average) == 2
    _close(adam._model_variables_moving_average[0], keras.ops.convert_to_numpy(weights[0]))


def accumulated_gradients():
    adam, _ = _adam(gradient_accumulation_steps=2)
    _close(adam._accumulated_gradients[1], 2.0)


def apply():
    seen = []

    class Ours(keras.optimizers.SGD):
        def apply_scaled(self, scale, gradients, variables):
            seen.append(("apply", scale))

        def note_loss(self, loss):
            seen.append(("loss", float(loss)))

    kind = keras.optimizers.LossScaleOptimizer
    before = kind.apply, kind.scale_loss
    try:
        loss_scale.hand_over_to(Ours)
        outer = kind(Ours(0.1))
        outer.build([keras.Variable(1.0)])
        assert float(outer.scale_loss(tf.constant(2.0))) == 2.0 * 2**15
        outer.apply_gradients([(tf.constant(1.0), keras.Variable(1.0))])
        assert seen == [("loss", 2.0), ("apply", outer)]
        other = kind(keras.optimizers.SGD(0.1))
        weight = keras.Variable(1.0)
        other.apply([tf.constant(2.0**15)], [weight])
        _close(weight, 0.9)
    finally:
        kind.apply, kind.scale_loss = before


def variable_dict():
    count = keras.Variable(3, dtype="int64")
    once = one_step.ReadOnce(count)
    assert isinstance(once, keras.Variable)
    once.assign(once + 1)
    assert int(count) == 4
    assert int(keras.ops.convert_to_tensor(once)) == int(once + 0) == 3
    assert once.dtype == "int64"
    assert once.shape == ()


def kernel():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    assert vars(layer)["_kernel"] is layer.kernel
    layer.enable_lora(1)
    assert isinstance(vars(layer)["_kernel"], keras.Variable)
    assert not isinstance(layer.kernel, keras.Variable)


def compile_config(tmp_path):
    model = _model()
    compiled_model.set_optimizer(model, keras.optimizers.RMSprop(0.5))
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is keras.optimizers.RMSprop
    assert float(loaded.learning_rate) == 0.5


def initial_epoch(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.epoch = compiled_model.epoch_of_backup(self.model)

    look = Look()
    for more in (Stop(), look):
        model = _model()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        try:
            x, y = np.ones((4, 2)), np.ones((4, 1))
            model.fit(x, y, epochs=3, verbose=0, callbacks=[backup, more])
        except KeyboardInterrupt:
            assert more is not look
    assert look.epoch == 2


def get_metrics_result_or_logs():
    model, fed = _model(), []

    def scalars():
        fed.append(1)
        return {"ours": 7.0}

    class Feed(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            epoch_logs.feed_epoch_logs(self.model, scalars)

        def on_epoch_end(self, epoch, logs=None):
            self.seen = dict(logs)

    feed = Feed()
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[feed])
    assert feed.seen["ours"] == 7.0
    assert history.history["ours"] == [7.0]


def autoconvert_optionals():
    model, shown = _model(), []
    assert batches.show_batches(model, shown.append)
    assert not batches.shows_batches(model.train_function)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0)
    assert batches.shows_batches(model.train_function)
    (batch,) = shown  # while it was traced
    assert [tuple(part.shape)[1:] for part in batch] == [(2,), (1,)]
    batches.stop_showing(model)
    model.make_train_function(force=True)
    assert not batches.shows_batches(model.train_function)


def keras_history():
    first = keras.Input((2,), name="first")
    double, single = keras.layers.Dense(3), keras.layers.Dense(1)
    both = keras.layers.Concatenate()([double(first), first])
    origin = graph_history.origin_of(single(both))
    assert (origin.operation, origin.place) == (single, 0)
    assert [id(each) for each in origin.inputs] == [id(both)]
    assert graph_history.origin_of(both).inputs[1] is first
    assert graph_history.origin_of(tf.zeros(2)) is None


inbound_nodes = keras_history


def self_prefix():
    layer = keras.layers.Dense(1)
    names = set(vars(layer)) - set(attributes.own_attributes(layer))
    assert names
    assert all(name.startswith("_self_") for name in names)


def _kinds_in_the_runtime(*, whole):
    made = []

    @tf.function
    def step(x):
        result = tf.cond(x > 0, lambda: x, lambda: -x)
        made.append(conditions.kept_whole(result) if whole else result)
        return made[0]

    graph = step.get_concrete_function(tf.TensorSpec((), tf.float32)).graph
    return [node for node in graph.as_graph_def().node if "If" in node.op]


def set_attr():
    (apart,), (whole,) = _kinds_in_the_runtime(whole=False), _kinds_in_the_runtime(whole=True)
    assert apart.attr["_lower_using_switch_merge"].b
    assert not whole.attr["_lower_using_switch_merge"].b


def lower_using_switch_merge():
    found = {}
    for jit_compile in (False, True):

        @tf.function(jit_compile=jit_compile)
        def step(x, jit_compile=jit_compile):
            found[jit_compile] = conditions.is_compiled_by_xla()
            return x

        step(tf.constant(1.0))
    assert found == {False: False, True: True}


def strategy_supports_no_merge_call():
    with checks.mirrored(2).scope():
        assert strategies.can_meet_while_tracing() is True


def tensor_type():
    number = log_numbers.LogNumber(2.5)
    assert tf.is_tensor(number)
    assert number + 1 == 3.5


def abort_collective_ops():
    from tensorflow.python.eager import context

    assert callable(context.context().abort_collective_ops)


TRIALS = {
    "__dict__": variable_dict,
    "_self_": self_prefix,
    "Tensor": tensor_type,
    "scale_loss": apply,
    "strategy_supports_no_merge_call": strategy_supports_no_merge_call,
    "abort_collective_ops": abort_collective_ops,
    "apply": apply,
}


@pytest.mark.parametrize("each", required.REQUIRED, ids=lambda each: f"{each.owner}.{each.name}")
def test_keras_still_has_it_and_it_still_does_this(each, tmp_path):
    trial = TRIALS.get(each.name) or globals()[each.name.removeprefix("_")]
    trial(*[tmp_path] * trial.__code__.co_argcount)


def test_the_table_lists_all_files_of_the_room_and_says_what_they_use():
    trees = {path.stem: ast.parse(path.read_text()) for path in FOLDER.glob("*.py")}
    used = {
        stem: {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        | {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        for stem, tree in trees.items()
    }
    assert set(used) - OTHERS == {module for each in required.REQUIRED for module in each.where}
    for each in required.REQUIRED:
        for module in each.where:
            assert each.name in used[module], f"{module}.py does not use {each.name}"
