"""Scalars that leave a compiled step as one tensor."""

import keras
import numpy as np
import tensorflow as tf

from gradstab.optimizers.packed import can_pack, pack, unpack


def test_entries_are_the_scalars_in_any_form_that_keras_asks_for():
    @tf.function
    def step(x):
        return pack({"norm": tf.norm(x), "count": tf.constant(3), "flag": tf.reduce_any(x > 1)})

    entries = unpack(("norm", "count", "flag"), step(tf.constant([3.0, 4.0])))
    assert {name: float(entry) for name, entry in entries.items()} == {
        "norm": 5.0,
        "count": 3.0,
        "flag": 1.0,
    }
    assert np.array(entries["norm"]) == np.float32(5)
    assert np.array(entries["norm"]).dtype == np.float32
    assert "5.0" in f"{entries['norm']!r}"


def test_keras_turns_them_into_plain_numbers_for_every_callback():
    seen = []

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs)

    entries = unpack(("norm",), pack({"norm": tf.constant(2.0)}))
    keras.callbacks.CallbackList([Callback()]).on_train_batch_end(0, entries)
    assert seen == [{"norm": 2.0}]
    assert type(seen[0]["norm"]) is float


def test_a_vector_on_another_device_is_fetched_once_and_only_if_it_is_read():
    class Vector:
        device = "/device:GPU:0"
        fetched = 0

        def numpy(self):
            self.fetched += 1
            return np.array([1.0, 2.0], "float32")

    vector = Vector()
    entries = unpack(("a", "b"), vector)
    assert vector.fetched == 0
    assert [float(entry) for entry in entries.values()] == [1.0, 2.0]
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
