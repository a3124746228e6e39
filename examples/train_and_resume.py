"""
The same classifier, in a run that survives a kill
==================================================

``gradstab.training.train`` takes the arguments of ``fit`` and runs many steps per call on the
device. With ``run_dir`` it keeps the best and the last model and the run record. A run that is
killed at any moment and started again with ``resume=True`` ends where the undisturbed one ends, bit
for bit on the CPU. This script compares an undisturbed run with one that breaks off in its third
epoch.
"""

# %%
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradstab

EPOCHS = 4 if "--quick" in sys.argv else 20
folder = Path(tempfile.mkdtemp(prefix="gradstab-"))
datasets = gradstab.data.load("digits", seed=0)


def build_model():
    keras.utils.set_random_seed(0)
    model = gradstab.models.cnn_classifier(
        datasets.input_shape,
        datasets.num_classes,
        kernel_regularizer=gradstab.regularizers.L2(1e-4),
        rescale=1 / datasets.pixel_max,
        seed=0,
    )
    model.compile(
        gradstab.recipes.adam(2e-3, epochs=EPOCHS, steps_per_epoch=len(datasets.train), clip=10.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(model, run_dir, **arguments):
    return gradstab.training.train(
        model,
        datasets.train,
        datasets.validation,
        epochs=EPOCHS,
        run_dir=run_dir,
        seed=0,
        jit_compile=False,  # "auto" tries on your machine whether XLA is faster
        verbose=2,
        **arguments,
    )


# %%
# In peace
# --------

undisturbed = build_model()
history = train(undisturbed, folder / "undisturbed")

# %%
# Broken off, and started again
# -----------------------------
# The power fails as the third epoch begins. What was done by then lies in the run directory.


class PowerFailure(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


try:
    train(build_model(), folder / "killed", callbacks=[PowerFailure()])
except KeyboardInterrupt:
    print("\nkilled; left behind:", *sorted(path.name for path in (folder / "killed").iterdir()))

# %%
# The same script, a new process, one argument more:

resumed = build_model()
train(resumed, folder / "killed", resume=True)

# %%
# The same end
# ------------

pairs = zip(undisturbed.get_weights(), resumed.get_weights(), strict=True)
difference = max(float(np.abs(one - other).max()) for one, other in pairs)
print(f"largest difference between the weights of the two runs: {difference}")

scores = resumed.evaluate(datasets.test, verbose=0, return_dict=True)
print(f"test accuracy of the last weights: {scores['accuracy']:.3f}")
best = keras.models.load_model(folder / "killed" / "model.keras")
scores = best.evaluate(datasets.test, verbose=0, return_dict=True)
print(f"test accuracy of the best, as saved: {scores['accuracy']:.3f}")

# %%
# ``gradstab report RUN_DIR`` tells both halves of the run. As text:

record = gradstab.monitoring.read_record(folder / "killed")
print(gradstab.reports.to_text(record))

# %%

_, ax = plt.subplots(figsize=(8, 4))
gradstab.reports.plot_loss(history, ax)
plt.show()

if difference > 1e-6 or scores["accuracy"] < 0.5:
    raise RuntimeError("the resumed run did not end where the undisturbed one did")
