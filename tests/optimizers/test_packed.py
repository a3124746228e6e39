"""Scalars that leave a compiled step as one tensor."""

import keras
import numpy as np
import tensorflow as tf

from gradstab.optimizers.packed import pack, unpack


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
    assert np.array(entries["count"], "int32").dtype == np.int32
    assert f"{entries['norm']!r}" == "5.0"


def test_keras_turns_them_into_plain_numbers_for_every_callback():
    seen = []

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs)

    entries = unpack(("norm",), pack({"norm": tf.constant(2.0)}))
    keras.callbacks.CallbackList([Callback()]).on_train_batch_end(0, entries)
    assert seen == [{"norm": 2.0}]
    assert type(seen[0]["norm"]) is float


def test_a_vector_is_fetched_once_and_only_if_it_is_read(monkeypatch):
    fetched = []
    vector = pack({"a": tf.constant(1.0), "b": tf.constant(2.0)})
    entries = unpack(("a", "b"), vector)
    convert = keras.ops.convert_to_numpy
    monkeypatch.setattr("keras.ops.convert_to_numpy", lambda x: fetched.append(1) or convert(x))
    assert not fetched
    assert [float(entry) for entry in entries.values()] == [1.0, 2.0]
    assert len(fetched) == 1
