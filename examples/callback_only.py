"""
A run that fails at night
=========================

Two callbacks, and the optimizer wrapped; the rest of the script is as before.

- ``GradientMonitor`` adds ``grad_norm``, ``grad_norm_max``, ``clipped``, ``limited`` and
  ``skipped`` to the logs, for the progress bar, History and CSVLogger, and leaves a record in its
  folder.
- ``DivergenceGuard`` stops ``fit`` when too many steps in a row were skipped, names the first such
  step and the variable, and restores the best weights.

The data fail after some epochs, as if a disk or a preprocessing step broke at night: every image
from there on is NaN. The weights of the best epoch survive.
"""

# %%
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import gradstab

GOOD_EPOCHS = 1 if "--quick" in sys.argv else 3
run_dir = tempfile.mkdtemp(prefix="gradstab-")

digits = gradstab.data.load("digits", seed=0)


def failing(epoch):
    def damage(images, labels):
        return tf.where(epoch < GOOD_EPOCHS, images, float("nan")), labels

    return digits.train_for_epoch(epoch).map(damage)


digits = digits.with_train(failing)

# %%
# Ten epochs are planned.

keras.utils.set_random_seed(0)
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

# %%
# The morning after
# -----------------
# What the logs say, epoch by epoch:

for name in ("grad_norm", "grad_norm_max", "limited", "skipped"):
    print(f"{name:13}", *(f"{value:8.2f}" for value in history.history[name]))

# %%
# What the record says, in words, and the steps that were skipped along the top of the figure:

record = gradstab.monitoring.read_record(run_dir)
print(gradstab.reports.to_text(record))
_, ax = plt.subplots(figsize=(8, 4))
gradstab.reports.plot_gradient_norm(record, ax)
plt.show()

# %%
# And the model, which is what it was after its best epoch:

accuracy = model.evaluate(digits.test, verbose=0, return_dict=True)["accuracy"]
print(f"test accuracy with the weights put back: {accuracy:.3f}")

if guard.verdict is None or len(history.epoch) != GOOD_EPOCHS + 1 or accuracy < 0.5:
    raise RuntimeError("the guard did not save the run")
