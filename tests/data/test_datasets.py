"""Splits that never overlap, and an order that is a function of seed and epoch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from gradstab.data import DataError, Datasets, from_arrays, load

SPLITS = ("train", "validation", "test")


def numbered(number, classes=2, **options):
    """Return data whose inputs are their own row numbers, and whose labels follow from them."""
    rows = np.arange(number)
    return from_arrays(rows[:, None], rows % classes, **options)


def rows_of(dataset):
    return np.concatenate([inputs[:, 0] for inputs, _ in dataset.as_numpy_iterator()]).astype(int)


def test_digits_are_the_real_ones_in_three_parts_that_share_no_row():
    digits = load("digits")
    assert [len(digits.rows[split]) for split in SPLITS] == [1257, 180, 360]
    everything = np.concatenate([digits.rows[split] for split in SPLITS])
    assert np.array_equal(np.sort(everything), np.arange(1797))
    assert (digits.name, digits.num_classes, digits.input_shape) == ("digits", 10, (8, 8, 1))
    assert (digits.class_names, digits.pixel_max) == (tuple("0123456789"), 16.0)

    raw = load_digits()
    for split in SPLITS:
        inputs, labels = digits.arrays(split)
        rows = digits.rows[split]
        assert np.array_equal(inputs[..., 0], raw.images[rows])
        assert np.array_equal(labels, raw.target[rows])
        if split != "train":
            batches = list(getattr(digits, split).as_numpy_iterator())
            assert np.array_equal(np.concatenate([batch[0] for batch in batches]), inputs)
            assert np.array_equal(np.concatenate([batch[1] for batch in batches]), labels)
    inputs, labels = next(iter(digits.train))
    assert (inputs.dtype, labels.dtype) == (tf.float32, tf.int64)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_split_holds_the_classes_in_proportion(seed):
    digits = load("digits", seed=seed)
    totals = np.bincount(load_digits().target)
    for split, fraction in (("validation", 0.1), ("test", 0.2), ("train", 0.7)):
        counts = np.bincount(digits.arrays(split)[1], minlength=10)
        assert np.all(np.abs(counts - fraction * totals) <= 2)


def test_splits_are_a_function_of_the_seed():
    first, again, other = (numbered(100, seed=seed).rows["test"] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("per_class", [3, 4, 5, 9])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.01, 0.01), (0.45, 0.5)])
def test_a_class_with_three_examples_is_in_every_split(per_class, validation, test):
    datasets = numbered(
        5 * per_class, 5, validation_fraction=validation, test_fraction=test, batch_size=4
    )
    for split in SPLITS:
        assert set(datasets.arrays(split)[1]) == set(range(5))


def test_classes_that_are_too_small_are_named():
    labels = [0] * 10 + [1] * 2 + [2] * 10 + [3]
    with pytest.raises(DataError, match="'bird' has 2, 'fish' has 1") as caught:
        from_arrays(np.zeros((23, 1)), labels, class_names=["ant", "bird", "cat", "fish"])
    assert "'ant'" not in str(caught.value)


# 2,000 rows of 4 bytes: blocks of 32 batches, of fewer, of one, and a batch larger than all.
@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("batch_size", [7, 32, 500, 1400, 5000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_row_once_in_whole_batches_and_a_rest(batch_size, shuffle):
    datasets = numbered(2000, 3, batch_size=batch_size, shuffle=shuffle)
    assert [len(datasets.rows[split]) for split in SPLITS] == [1400, 200, 400]
    for split in SPLITS:
        dataset = getattr(datasets, split)
        batches = list(dataset.as_numpy_iterator())
        whole, rest = divmod(len(datasets.rows[split]), batch_size)
        sizes = [batch_size] * whole + [rest] * bool(rest)
        assert [len(labels) for _, labels in batches] == sizes
        assert len(dataset) == len(sizes)
        rows = np.concatenate([inputs[:, 0] for inputs, _ in batches]).astype(int)
        assert np.array_equal(np.concatenate([labels for _, labels in batches]), rows % 3)
        in_order = np.array_equal(rows, datasets.rows[split])
        assert in_order == (split != "train" or not shuffle)
        assert np.array_equal(np.sort(rows), datasets.rows[split])


def test_large_rows_are_batched_as_well():
    inputs = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 300, 300))
    datasets = from_arrays(inputs, np.arange(40) % 2, batch_size=8)
    values = np.concatenate([x[:, 0, 0] for x, _ in datasets.train.as_numpy_iterator()])
    assert np.array_equal(np.sort(values), datasets.rows["train"])


def test_the_order_is_a_function_of_seed_and_epoch():
    datasets, again = numbered(300, seed=5), numbered(300, seed=5)
    orders = [rows_of(datasets.train_for_epoch(epoch)) for epoch in range(4)]
    for epoch in (3, 0, 2, 1):  # as a resumed run asks, in no order
        assert np.array_equal(rows_of(again.train_for_epoch(epoch)), orders[epoch])
    assert len({tuple(order) for order in orders}) == 4
    other = numbered(300, seed=6)
    assert not np.array_equal(rows_of(other.train_for_epoch(0)), orders[0])
    # No row clings to its place: in 210 rows about one is where it was.
    assert np.mean(orders[0] == orders[1]) < 0.05


def test_iterating_again_is_the_next_epoch():
    datasets = numbered(100)
    for epoch in range(3):
        expected = rows_of(datasets.train_for_epoch(epoch))
        assert np.array_equal(rows_of(datasets.train), expected)
    assert datasets.train.for_epoch is not None
    unshuffled = numbered(100, shuffle=False)
    assert np.array_equal(rows_of(unshuffled.train), rows_of(unshuffled.train_for_epoch(9)))


def test_several_epochs_make_one_pipeline():
    datasets = numbered(100)
    one = tf.data.Dataset.range(2, 5).flat_map(datasets.train_for_epoch)
    each = [rows_of(datasets.train_for_epoch(epoch)) for epoch in (2, 3, 4)]
    assert np.array_equal(rows_of(one), np.concatenate(each))


def test_fit_takes_one_pass_for_each_epoch():
    datasets = numbered(100)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(
        datasets.train, epochs=2, validation_data=datasets.validation, shuffle=False, verbose=0
    )
    assert np.array_equal(rows_of(datasets.train), rows_of(datasets.train_for_epoch(2)))


def test_replaced_training_batches_remain_a_function_of_the_epoch():
    datasets = numbered(40, batch_size=10)

    def damaged(epoch):
        # The second batch of epoch 1, as a fault at a known place.
        def damage(step, batch):
            inputs, labels = batch
            hit = tf.logical_and(tf.equal(epoch, 1), tf.equal(step, 1))
            return tf.where(hit, 1000.0, inputs), labels

        return datasets.train_for_epoch(epoch).enumerate().map(damage)

    changed = datasets.with_train(damaged)
    assert isinstance(changed, Datasets)
    assert len(changed.train) == len(datasets.train)
    for epoch in range(3):
        expected = rows_of(datasets.train_for_epoch(epoch))
        if epoch == 1:
            expected[10:20] = 1000
        assert np.array_equal(rows_of(changed.train_for_epoch(epoch)), expected)
        assert np.array_equal(rows_of(changed.train), expected)
    assert np.array_equal(rows_of(changed.test), rows_of(datasets.test))


def test_a_test_set_of_its_own_is_kept_whole_and_in_order():
    test = (np.arange(100, 130)[:, None], np.zeros(30, int))
    datasets = from_arrays(np.arange(100)[:, None], np.arange(100) % 2, test=test)
    assert [len(datasets.rows[split]) for split in SPLITS] == [90, 10, 30]
    assert np.array_equal(rows_of(datasets.test), np.arange(100, 130))
    assert max(rows_of(datasets.train).max(), rows_of(datasets.validation).max()) < 100


def test_values_reach_the_batches_unchanged():
    inputs = np.linspace(-3, 3, 60).reshape(30, 2)
    inputs[4, 0], inputs[5, 1] = np.nan, np.inf
    datasets = from_arrays(inputs, np.arange(30) % 3)
    for split in SPLITS:
        expected = inputs[datasets.rows[split]].astype(np.float32)
        np.testing.assert_array_equal(datasets.arrays(split)[0], expected)
    finite = np.abs(inputs[datasets.rows["train"]])
    assert datasets.pixel_max == pytest.approx(finite[np.isfinite(finite)].max(), rel=1e-6)
    assert from_arrays(np.ones((30, 2), np.uint8), np.arange(30) % 3).pixel_max == 255.0
    assert from_arrays(np.zeros((30, 2)), np.arange(30) % 3).pixel_max == 1.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` must be a positive integer"),
        ({"batch_size": 2.5}, TypeError, "`batch_size`"),
        ({"validation_fraction": 0.0}, ValueError, "`validation_fraction`"),
        ({"test_fraction": 1.5}, ValueError, "`test_fraction`"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, ValueError, "a part to train on"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"image_size": 16}, ValueError, "`image_size` is for folders"),
        ({"color_mode": "rgb"}, ValueError, "`color_mode` is for folders"),
    ],
)
def test_wrong_arguments_of_load_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        load("digits", **options)


def test_unknown_data_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(
        DataError, match=r"'digits', 'fashion_mnist', 'cifar10'.*'digit'.*not there"
    ):
        load("digit")
    file = tmp_path / "images.zip"
    file.touch()
    with pytest.raises(DataError, match="is a file"):
        load(file)
    with pytest.raises(TypeError, match="from_arrays"):
        load(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("inputs", "labels", "options", "error", "message"),
    [
        (np.zeros((9, 1)), np.zeros(8, int), {}, ValueError, r"shapes \(9, 1\) and \(8,\)"),
        (np.zeros(9), np.zeros(9, int), {}, ValueError, r"shape \(n, ...\)"),
        (np.zeros((9, 1)), np.zeros(9), {}, TypeError, "`labels` must hold integers"),
        (np.array([["a"]] * 9), np.zeros(9, int), {}, TypeError, "`inputs` must hold real"),
        (np.zeros((9, 1)), np.arange(9) - 1, {}, ValueError, "`labels` must count from 0"),
        (np.zeros((9, 1)), [0, 2] * 4 + [0], {}, DataError, "'1' has 0"),
        (np.zeros((9, 1)), [0, 1, 2] * 3, {"class_names": "ab"}, ValueError, "2 names"),
        (np.zeros((9, 1)), [0, 1, 2] * 3, {"pixel_max": 0}, ValueError, "`pixel_max`"),
        (
            np.zeros((9, 1)),
            [0, 1, 2] * 3,
            {"test": (np.zeros((2, 2)), [0, 1])},
            ValueError,
            r"\(2,\) beside \(1,\)",
        ),
        (
            np.zeros((9, 1)),
            [0, 1, 2] * 3,
            {"test": (np.zeros((2, 1)), [0, 1]), "test_fraction": 0.2},
            ValueError,
            "`test_fraction` must be left out",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(inputs, labels, options, error, message):
    with pytest.raises(error, match=message):
        from_arrays(inputs, labels, **options)
