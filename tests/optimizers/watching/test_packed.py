"""Scalars that leave a compiled step as one tensor."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.optimizers.watching.packed import StepLogs, can_pack, pack

NAMES = ("loss", "count", "flag")


@pytest.fixture
def logs():
    @tf.function
    def step(x):
        return pack({"loss": tf.norm(x), "count": tf.constant(3), "flag": tf.reduce_any(x > 1)})

    return StepLogs({"other": 7}, NAMES, step(tf.constant([3.0, 4.0])))


def test_entries_are_the_scalars_in_any_form(logs):
    expected = {"other": 7.0, "loss": 5.0, "count": 3.0, "flag": 1.0}
    assert {name: float(entry) for name, entry in logs.items()} == expected
    assert {name: float(logs[name]) for name in logs} == expected
    assert {name: float(entry) for name, entry in dict(logs).items()} == expected
    assert set(logs.keys()) == set(expected)
    assert np.array(logs["loss"]) == np.float32(5)
    assert np.array(logs["loss"]).dtype == np.float32
    assert np.array(logs["count"], "int32").dtype == np.int32
    assert "5.0" in f"{logs['loss']!r}"


def test_keras_turns_them_into_plain_numbers_for_every_callback(logs):
    seen = []

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs)

    keras.callbacks.CallbackList([Callback()]).on_train_batch_end(0, logs)
    assert seen == [{"other": 7.0, "loss": 5.0, "count": 3.0, "flag": 1.0}]
    assert {type(number) for number in seen[0].values()} == {float}


def test_keras_takes_them_for_tensors_which_it_finds_out_fastest(logs):
    assert all(tf.is_tensor(number) for name, number in logs.items() if name in NAMES)


def test_a_vector_is_fetched_once_and_only_if_it_is_read():
    class Vector:
        fetched = 0

        def numpy(self):
            self.fetched += 1
            return np.array([1.0, 2.0], "float32")

    vector = Vector()
    entries = StepLogs({}, ("a", "b"), vector)
    assert vector.fetched == 0
    assert [float(entry) for _, entry in entries.items()] == [1.0, 2.0]
    assert [float(entries[name]) for name in ("a", "b")] == [1.0, 2.0]
    assert vector.fetched == 1


def test_what_float32_would_change_and_what_is_no_scalar_is_not_packed():
    found = {}

    @tf.function
    def step():
        logs = {
            "loss": tf.constant(1.0),
            "wide": tf.constant(1.0, tf.float64),
            "count": tf.constant(16_777_217),
            "vector": tf.constant([1.0]),
            "number": 1.0,
        }
        found.update({name: can_pack(log) for name, log in logs.items()})

    step()
    assert [name for name, packs in found.items() if packs] == ["loss"]
