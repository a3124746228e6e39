"""The demo's runs: four broken settings of one CNN on real digits, each trained four ways.

Faults are put into the data and the first weights, from outside: nothing that trains knows of them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.cli.demo_report import CLASSES, PARTS, Result, Setting, Way, verdict
from gradstab.data.datasets import load
from gradstab.models.cnn import cnn_classifier
from gradstab.optimizers.stabilize import stabilize
from gradstab.regularizers.penalties import L2
from gradstab.schedules.warmup import LinearWarmup

BATCH_SIZE: Final = 32
LEARNING_RATE: Final = 0.01
MOMENTUM: Final = 0.9
_SCALE: Final = 1 / 16  # digits are drawn in grey levels 0..16


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images of shape (n, 8, 8, 1) in grey levels 0..16, and their labels."""

    train: tuple[Any, Any]
    test: tuple[Any, Any]


def load_digits(seed: int) -> Digits:
    """Return scikit-learn's digits, split by seed."""
    datasets = load("digits", seed=seed)
    return Digits(train=datasets.arrays("train"), test=datasets.arrays("test"))


def run(setting: Setting, way: Way, digits: Digits, seed: int, epochs: int) -> Result:
    """Train one way in one setting, and judge what came out on the test images.

    Args:
        setting: What is broken.
        way: How it is trained.
        digits: The data, without faults.
        seed: Of the first weights, of the order of the data and of the place of the fault.
        epochs: Epochs to train.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    batches = _Batches(setting, digits.train, seed, epochs)
    model = _model(setting, way, seed)
    optimizer = _optimizer(way, batches.steps_per_epoch, epochs)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # An epoch in one call, for speed; XLA would take longer to compile than to train.
        steps_per_execution=batches.steps_per_epoch,
        jit_compile=False,
    )
    watch = _Watch(batches, digits.train)
    model.fit(
        batches.dataset(),
        epochs=epochs,
        steps_per_epoch=batches.steps_per_epoch,
        callbacks=[watch],
        shuffle=False,
        verbose=0,
    )
    images, labels = digits.test
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    finite = _finite(model)
    accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    reading = optimizer.telemetry.peek() if way.wrapped else None
    return Result(
        setting=setting.name,
        way=way.name,
        accuracy=accuracy,
        loss=watch.loss[-1],
        verdict=verdict(accuracy, finite),
        skipped=None if reading is None else reading.total_skipped,
        clipped=None if reading is None else reading.total_clipped + reading.total_limited,
        steps=batches.steps_per_epoch * epochs,
        seconds=time.perf_counter() - started,
        series={"epoch": watch.epoch, "loss": watch.loss, "grad_norm": watch.grad_norm},
    )


def _model(setting: Setting, way: Way, seed: int) -> Any:
    """Return the CNN as the setting has it, or with what all parts put in its place."""
    if way.parts:
        init, penalty, scaled = "he_normal", L2(PARTS.l2), True
    else:
        init, penalty, scaled = _initializer(setting), None, setting.scaled
    return cnn_classifier(
        (8, 8, 1),
        CLASSES,
        kernel_initializer=init,
        kernel_regularizer=penalty,
        rescale=_SCALE if scaled else None,
        seed=seed,
    )


def _initializer(setting: Setting) -> Any:
    if setting.stddev is None:
        return "he_normal"
    return keras.initializers.RandomNormal(stddev=setting.stddev)


def _optimizer(way: Way, steps_per_epoch: int, epochs: int) -> Any:
    rate: Any = LEARNING_RATE
    if way.parts:
        total = steps_per_epoch * epochs
        warmup = round(PARTS.warmup_share * total)
        cosine = keras.optimizers.schedules.CosineDecay(PARTS.peak_learning_rate, total - warmup)
        rate = LinearWarmup(cosine, warmup)
    sgd = keras.optimizers.SGD(rate, momentum=MOMENTUM)
    if not way.wrapped:
        return sgd
    return stabilize(sgd, clip=PARTS.clip) if way.parts else stabilize(sgd)


class _Batches:
    """The batches of a whole run, in an order that seed and epoch alone decide, faults included."""

    def __init__(self, setting: Setting, data: tuple[Any, Any], seed: int, epochs: int) -> None:
        images, labels = data
        self._images, self._labels = images.copy(), labels
        if setting.fault == "nan image":
            self._images[np.random.default_rng([seed, 1]).integers(len(images))] = np.nan
        self.steps_per_epoch = len(images) // BATCH_SIZE
        kept = self.steps_per_epoch * BATCH_SIZE
        order = [
            np.random.default_rng([seed, 2, epoch]).permutation(len(images))[:kept]
            for epoch in range(epochs)
        ]
        self._rows = np.reshape(order, (-1, BATCH_SIZE)).astype("int32")
        corrupted = setting.fault == "corrupted batch"
        self._corrupted = len(self._rows) // 2 if corrupted else -1

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        """Return the batch of `step` as tensors."""
        return self._batch(tf.constant(step), tf.constant(self._rows[step]))

    def dataset(self) -> Any:
        """Return the batches of all epochs, one after the other."""
        steps = np.arange(len(self._rows), dtype="int32")
        return tf.data.Dataset.from_tensor_slices((steps, self._rows)).map(self._batch).prefetch(8)

    def _batch(self, step: Any, rows: Any) -> tuple[Any, Any]:
        images, labels = tf.gather(self._images, rows), tf.gather(self._labels, rows)
        bad = tf.equal(step, self._corrupted)
        return (
            tf.where(bad, images * 1e3, images),
            tf.where(bad, (labels + 1) % CLASSES, labels),
        )


class _Watch(keras.callbacks.Callback):
    """Measures between epochs, outside the training step, so that it is the same for all ways.

    The loss is that of fixed, clean training images; the gradient is that of the batch that comes
    next, faults included, and at the end that of clean images. Weights that are not finite give
    NaN: oneDNN's fused relu maps NaN to 0, so that a ruined model can have a finite loss.
    """

    def __init__(self, batches: _Batches, data: tuple[Any, Any]) -> None:
        super().__init__()
        self.epoch: list[int] = []
        self.loss: list[float] = []
        self.grad_norm: list[float] = []
        self._batches = batches
        self._clean = data[0][:256], data[1][:256]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._measure(epoch, self._batches[epoch * self._batches.steps_per_epoch])

    def on_train_end(self, logs: Any = None) -> None:
        self._measure(len(self.epoch), tuple(each[:BATCH_SIZE] for each in self._clean))

    def _measure(self, epoch: int, batch: tuple[Any, ...]) -> None:
        loss = norm = math.nan
        if _finite(self.model):
            images, labels = self._clean
            logits = self.model(images, training=False)
            loss = float(self.model.loss(labels, logits))
            norm = _gradient_norm(self.model, *batch)
        self.epoch.append(epoch)
        self.loss.append(loss)
        self.grad_norm.append(norm)


def _gradient_norm(model: Any, images: Any, labels: Any) -> float:
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = model.compute_loss(x=images, y=labels, y_pred=logits)
    gradients = tape.gradient(loss, [each.value for each in model.trainable_variables])
    # In float64, where the square of no float32 overflows.
    squares = [np.sum(np.square(gradient.numpy(), dtype="float64")) for gradient in gradients]
    return float(np.sqrt(np.sum(squares)))


def _finite(model: Any) -> bool:
    return all(np.isfinite(weight).all() for weight in model.get_weights())
