"""
In a notebook
=============

The cells of this page run in Jupyter, Colab or VS Code: download it as a notebook below. There, a
diagnosis and a repair are displayed as tables. Figures appear below their cell; pass an ``ax`` of
pyplot to gradstab's plots. Running a cell again does no harm: ``stabilize`` of an optimizer that is
wrapped already joins both lists into one.
"""

# %%
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradstab

EPOCHS = 8 if "--quick" in sys.argv else 20
run_dir = tempfile.mkdtemp(prefix="gradstab-")

# %%
# Data
# ----
# Two spirals, one for each class, in coordinates from -1 to 1.

draw = np.random.default_rng(0)
turn = np.sqrt(draw.uniform(0, 1, 1000)) * 2 * np.pi
label = draw.integers(0, 2, 1000)
sign = 2 * label - 1
x = np.stack([sign * turn * np.cos(turn), sign * turn * np.sin(turn)], axis=1) / (2 * np.pi)
x += draw.normal(0, 0.02, x.shape)
plt.scatter(*x.T, c=label, s=6, cmap="coolwarm")
plt.gca().set_aspect("equal")
plt.show()

# %%
# A deep net of sigmoid units
# ---------------------------

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((2,))])
for number in range(6):
    model.add(keras.layers.Dense(32, activation="sigmoid", name=f"hidden_{number}"))
model.add(keras.layers.Dense(1, activation="sigmoid", name="answer"))
arguments = {"loss": "binary_crossentropy", "metrics": ["accuracy"]}
model.compile(gradstab.stabilize("adam", learning_rate=3e-3), **arguments)

# %%
# Ask first. The last expression of a cell is shown, here as a table.

diagnosis = gradstab.diagnose(model, x, label, epochs=EPOCHS, batch_size=32)
diagnosis

# %%
# Watch it
# --------
# The gradient fades towards the first layers, the upper rows of the figure.

monitor = gradstab.callbacks.GradientMonitor(run_dir, every_n_steps=10)
history = model.fit(x, label, epochs=EPOCHS, batch_size=32, verbose=0, callbacks=[monitor])
print(f"accuracy {history.history['accuracy'][-1]:.3f}")
record = gradstab.monitoring.read_record(run_dir)
_, ax = plt.subplots(figsize=(8, 4))
gradstab.reports.plot_layer_norms(record, ax)
plt.show()

# %%
# Change one thing
# ----------------
# ``lsuv`` scales the first weights on a batch of data, layer by layer, and ``center=True`` takes
# out the mean that sigmoid units add. The activations stay.

keras.utils.set_random_seed(0)
again = keras.models.clone_model(model)
gradstab.initializers.lsuv(again, x, center=True)
again.compile(gradstab.stabilize("adam", learning_rate=3e-3), **arguments)
better = again.fit(x, label, epochs=EPOCHS, batch_size=32, verbose=0)

plt.plot(history.history["accuracy"], label="as it was")
plt.plot(better.history["accuracy"], label="after lsuv")
plt.xlabel("epoch")
plt.ylabel("training accuracy")
plt.legend()
plt.show()
print(f"accuracy {better.history['accuracy'][-1]:.3f}")

if better.history["accuracy"][-1] < history.history["accuracy"][-1] - 0.02:
    raise RuntimeError("lsuv did not help")
