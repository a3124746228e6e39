"""`train` takes its data as `fit` does, and gives what `fit` gives on the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradstab.training import train

PLAIN = {"verbose": 0, "jit_compile": False, "seed": 0}


def same_weights(first, second):
    for weight, expected in zip(first.weights, second.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


class Batches(keras.utils.PyDataset):
    def __init__(self, data, **arguments):
        super().__init__(**arguments)
        self.data = data
        self.epochs = 0

    def __len__(self):
        return 7

    def __getitem__(self, place):
        return tuple(part[10 * place : 10 * place + 10] for part in self.data)

    def on_epoch_end(self):
        self.epochs += 1


class Autoencoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        difference = self.dense(x) - x
        self.add_loss(keras.ops.mean(keras.ops.square(difference)))
        return difference


def test_targets_stand_beside_the_inputs_or_with_them(make_model, data):
    x, y = data
    ways = [
        ((x, y), {"validation_data": (x, y)}),
        (((x, y), (x, y)), {}),
        ((x, y, (x, y)), {}),
        ((x, y), {"validation_data": tf.data.Dataset.from_tensor_slices(data).batch(32)}),
    ]
    models = []
    for given, more in ways:
        models.append(make_model())
        history = train(models[-1], *given, epochs=2, **more, **PLAIN)
        assert list(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
        assert history.epoch == [0, 1]
    for model in models[1:]:
        same_weights(model, models[0])


def test_targets_given_twice_are_refused(make_model, data):
    x, y = data
    with pytest.raises(TypeError, match=r"`y` must be left out where `train_data` holds"):
        train(make_model(), (x, y), y, epochs=1, **PLAIN)
    with pytest.raises(TypeError, match="Several inputs go in a list"):
        train(make_model(), (x, y), (x, y), (x, y), epochs=1, **PLAIN)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("form", ["array", "tuple", "pipeline", "generator"])
def test_data_without_targets(form, data):
    x = data[0]
    model = Autoencoder()
    model.compile("adam")
    pipeline = tf.data.Dataset.from_tensor_slices(x).batch(32)
    given = {"array": x, "tuple": (x,), "pipeline": pipeline, "generator": iter([x[:32], x[32:]])}
    epochs = 1 if form == "generator" else 3
    history = train(model, given[form], epochs=epochs, **PLAIN)
    assert np.isfinite(history.history["loss"]).all()
    assert len(history.history["loss"]) == epochs


def test_validation_split_takes_the_last_examples(make_model, data):
    x, y = data
    split, apart = make_model(), make_model()
    history = train(split, x, y, epochs=2, validation_split=0.2, **PLAIN)
    expected = train(apart, (x[:56], y[:56]), (x[56:], y[56:]), epochs=2, **PLAIN)
    assert history.history == expected.history
    same_weights(split, apart)


@pytest.mark.parametrize(
    ("share", "more", "message"),
    [
        (1.5, {}, "must be between 0 and 1"),
        (0.99, {}, "must leave examples on both sides"),
        (0.2, {"validation_data": "same"}, "can't be given with `validation_data`"),
    ],
)
def test_a_split_that_can_not_be_is_refused(make_model, data, share, more, message):
    more = dict.fromkeys(more, data)
    with pytest.raises(ValueError, match=message):
        train(make_model(), *data, epochs=1, validation_split=share, **more, **PLAIN)


def test_a_pipeline_can_not_be_split(make_model, data):
    pipeline = tf.data.Dataset.from_tensor_slices(data).batch(32)
    with pytest.raises(ValueError, match="`validation_split` needs arrays"):
        train(make_model(), pipeline, epochs=1, validation_split=0.2, **PLAIN)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", ["arrays", "pipeline"])
def test_class_weights_are_those_of_fit(make_model, data, form):
    weights = {0: 3.0, 2: 0.0}
    pipeline = tf.data.Dataset.from_tensor_slices(data).batch(35)
    ours, theirs = make_model(), make_model()
    given = data if form == "arrays" else pipeline
    if form == "arrays":
        order = [np.random.default_rng([0, epoch]).permutation(70) for epoch in range(2)]
        for rows in order:
            x, y = data[0][rows], data[1][rows]
            theirs.fit(x, y, batch_size=35, class_weight=weights, shuffle=False, verbose=0)
    else:
        full = weights | {1: 1.0}
        theirs.fit(pipeline, epochs=2, class_weight=full, shuffle=False, verbose=0)
    train(ours, given, epochs=2, batch_size=35, class_weight=weights, **PLAIN)
    same_weights(ours, theirs)


def test_class_weights_of_one_hot_targets(make_model, data):
    x, y = data
    ours, theirs = make_model(), make_model()
    for model in (ours, theirs):
        model.compile(keras.optimizers.SGD(0.1), "mse")
    one_hot = np.eye(3, dtype="float32")[y]
    train(ours, x, one_hot, epochs=1, batch_size=70, class_weight={1: 5.0}, **PLAIN)
    weights = np.where(y == 1, 5.0, 1.0).astype("float32")
    train(theirs, (x, one_hot, weights), epochs=1, batch_size=70, **PLAIN)
    same_weights(ours, theirs)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "must be a dictionary from classes"),
        ({"cat": 1.0}, TypeError, "must be a dictionary from classes"),
        ({0: -1.0}, ValueError, r"`class_weight\[0\]` must be a non-negative float"),
    ],
)
def test_other_class_weights_are_refused(make_model, data, weights, error, message):
    with pytest.raises(error, match=message):
        train(make_model(), *data, epochs=1, class_weight=weights, **PLAIN)
    given = (*data, np.ones(70, "float32"))
    with pytest.raises(ValueError, match="can't be given with sample weights"):
        train(make_model(), given, epochs=1, class_weight={0: 1.0}, **PLAIN)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_py_dataset_is_gone_through_in_an_order_of_seed_and_epoch(make_model, data, workers):
    ours, theirs = make_model(), make_model()
    batches = Batches(data, workers=workers)
    history = train(ours, batches, batches, epochs=3, **PLAIN)
    assert len(history.history["val_loss"]) == 3
    assert batches.epochs == 4  # between three of training, and between three of validation
    for epoch in range(3):
        for place in np.random.default_rng([0, epoch]).permutation(7):
            theirs.train_on_batch(*batches[place])
    same_weights(ours, theirs)


@pytest.mark.slow
def test_a_run_on_a_py_dataset_resumes_as_it_was(make_model, data, tmp_path, same_state):
    whole, halved = make_model(), make_model()
    train(whole, Batches(data), epochs=4, run_dir=tmp_path / "whole", **PLAIN)
    train(halved, Batches(data), epochs=2, run_dir=tmp_path / "halved", **PLAIN)
    resumed = make_model()
    arguments = {"epochs": 4, "run_dir": tmp_path / "halved", "resume": True, **PLAIN}
    history = train(resumed, Batches(data), **arguments)
    assert history.epoch == [0, 1, 2, 3]
    assert same_state(whole, resumed)


def test_a_generator_is_cut_into_epochs(make_model, data):
    def batches():
        for place in range(6):
            yield [part[10 * place : 10 * place + 10] for part in data]

    ours, theirs = make_model(), make_model()
    history = train(ours, batches(), epochs=3, steps_per_epoch=2, **PLAIN)
    assert history.epoch == [0, 1, 2]
    for x, y in batches():
        theirs.train_on_batch(x, y)
    same_weights(ours, theirs)
    train(make_model(), batches(), epochs=1, **PLAIN)


def test_what_a_generator_can_not_do_is_refused(make_model, data):
    def batches():
        yield data

    with pytest.raises(ValueError, match="can be gone through once"):
        train(make_model(), batches(), epochs=2, **PLAIN)
    with pytest.raises(ValueError, match="needed after every epoch"):
        train(make_model(), data, batches(), epochs=1, **PLAIN)
    with pytest.raises(ValueError, match="must yield at least one batch"):
        train(make_model(), iter([]), epochs=1, **PLAIN)
    with pytest.raises(ValueError, match="Received: none in epoch 1"):
        train(make_model(), batches(), epochs=2, steps_per_epoch=1, **PLAIN)


@pytest.mark.slow
def test_initial_epoch_is_that_of_fit(make_model, data, tmp_path):
    first, whole = make_model(), make_model()
    train(whole, data, epochs=3, **PLAIN)
    train(first, data, epochs=1, **PLAIN)
    arguments = {"epochs": 3, "initial_epoch": 1, "run_dir": tmp_path, **PLAIN}
    history = train(first, data, **arguments)
    assert history.epoch == [1, 2]
    same_weights(first, whole)
    again = train(make_model(), data, resume=True, **arguments | {"epochs": 4})
    assert again.epoch == [1, 2, 3]
    with pytest.raises(ValueError, match="`initial_epoch` is after the last completed epoch"):
        train(make_model(), data, resume=True, **arguments | {"epochs": 9, "initial_epoch": 6})
