"""Two callbacks that watch a run and end it when there is nothing left to learn from.

The script trains as before; its optimizer is wrapped, and `callbacks=[...]` gets two entries:

- `GradientMonitor` adds `grad_norm`, `grad_norm_max`, `clipped` and `skipped` to the logs, for the
  progress bar, History and CSVLogger, and leaves a record and a plot in its folder.
- `DivergenceGuard` stops `fit` when too many steps in a row had to be skipped, says since when and
  because of which variable, and puts back the best weights that it saw.

To show the second, the data fail after three epochs, as if a disk or a preprocessing step broke at
night: every image from there on is NaN. The weights of the best epoch come out of it unharmed.
"""

import argparse
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

import gradstab


def load_failing_digits(good_epochs):
    """Load the digits, with training images that are NaN after some epochs."""
    digits = gradstab.data.load("digits", seed=0)

    def damaged(epoch):
        def damage(images, labels):
            return tf.where(epoch < good_epochs, images, float("nan")), labels

        return digits.train_for_epoch(epoch).map(damage)

    return digits.with_train(damaged)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", help="folder of the record; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="fails after one epoch, not three")
    arguments = parser.parse_args()
    run_dir = arguments.run_dir or tempfile.mkdtemp(prefix="gradstab-")
    good_epochs = 1 if arguments.quick else 3

    keras.utils.set_random_seed(0)
    digits = load_failing_digits(good_epochs)
    model = gradstab.models.cnn_classifier((8, 8, 1), 10, rescale=1 / 16, seed=0)
    model.compile(
        gradstab.stabilize(keras.optimizers.Adam(1e-3), max_consecutive=20),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    guard = gradstab.callbacks.DivergenceGuard()
    history = model.fit(
        digits.train,
        validation_data=digits.validation,
        epochs=10,
        shuffle=False,  # the pipeline shuffles
        callbacks=[gradstab.callbacks.GradientMonitor(run_dir, every_n_steps=10), guard],
        verbose=2,
    )

    print("\nin the history:")
    for name in ("grad_norm", "grad_norm_max", "clipped", "skipped"):
        print(f"  {name:13}", *(f"{value:8.2f}" for value in history.history[name]))
    record = gradstab.monitoring.read_record(run_dir)
    first = next(event for event in record.events if event.name == "skip")
    print(f"in {record.path}:")
    print(f"  first skip at step {first.step}: {first.details['cause']}, "
          f"{first.details['variable']}")  # fmt: skip
    _, accuracy = model.evaluate(digits.test, verbose=0)
    print(f"test accuracy with the weights put back: {accuracy:.3f}")

    stopped_early = guard.verdict is not None and len(history.epoch) == good_epochs + 1
    return 0 if stopped_early and accuracy > 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
