"""Variables of an optimizer are made ahead of the trace, so that one trace is enough."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradstab


@pytest.mark.parametrize("inner", ["Adam", "ScheduleFreeAdamW"])
def test_the_first_step_is_traced_once(inner):
    optimizer = gradstab.stabilize(getattr(keras.optimizers, inner)(0.1))
    variable = keras.Variable(np.ones(3, "float32"), name="w")
    traces = []

    @tf.function
    def step():
        traces.append(1)
        optimizer.apply_gradients([(tf.ones(3), variable)])

    for _ in range(3):
        step()
    assert len(traces) == 1
    assert int(optimizer.iterations) == 3
    assert not np.allclose(variable, 1.0)


def test_what_is_made_ahead_is_named_and_ordered_as_when_made_eagerly():
    def paths(build):
        variable = keras.Variable(np.ones(3, "float32"), name="w")
        optimizer = gradstab.stabilize("adam", name="inner")
        build(optimizer, variable)
        return [each.path.replace(optimizer.name, "") for each in optimizer.variables]

    def traced(optimizer, variable):
        tf.function(lambda: optimizer.apply([tf.ones(3)], [variable]))()

    eager = paths(lambda optimizer, variable: optimizer.build([variable]))
    assert [path.rsplit("/", 1)[-1] for path in paths(traced)] == [
        path.rsplit("/", 1)[-1] for path in eager
    ]


def test_variables_that_are_new_in_the_trace_are_trained_still():
    optimizer, made = gradstab.stabilize("adam", learning_rate=0.1), []

    @tf.function
    def step():
        if not made:
            made.append(tf.Variable([1.0, 2.0]))
        optimizer.apply([tf.ones(2)], made)

    step()
    step()
    np.testing.assert_allclose(made[0], [0.8, 1.8], atol=1e-4)
