"""
Diagnose a broken net, then repair it
=====================================

A net should distinguish benign from malignant tumours (569 samples of 30 measurements,
scikit-learn's breast cancer data). It predicts the same for all of them, and more epochs do not
help. Two calls name the cause and the change to make. Both leave the model as it was.
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import gradstab

EPOCHS = 10 if "--quick" in sys.argv else 20

x, y = load_breast_cancer(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    x.astype("float32"), y, test_size=0.25, random_state=0, stratify=y
)

# %%
# The broken net
# --------------
# Read it before you go on. What is wrong?

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((30,)),
        keras.layers.Dense(32, activation="relu", name="hidden"),
        keras.layers.Dense(1, activation="relu", name="answer"),
    ]
)
model.compile(keras.optimizers.SGD(0.01), "binary_crossentropy", metrics=["accuracy"])

# %%
# Diagnose
# --------
# Some seconds, before the first epoch is lost: it looks at the data, at the last layer and the
# loss, at a batch forward and backward, and trains shortly in several ways from the same weights.
# What comes first is the likeliest cause, with the lines to change.

diagnosis = gradstab.diagnose(model, x_train, y_train, epochs=EPOCHS, batch_size=32)
print(diagnosis)

# %%
# The first finding as data, for a program to act on:

first = diagnosis.roots[0]
print(first.code, "|", first.severity, "|", first.layer, "|", first.remedy)

# %%
# Repair
# ------
# Changes that answer the findings are tried on copies. What does not help is taken out again;
# each change that stays is shown with what it is worth: the score without it. ``budget`` is the
# time that the search may take, in multiples of one training.

found = gradstab.repair(model, x_train, y_train, epochs=EPOCHS, batch_size=32, budget=6.0)
print(found)

# %%
# Both trained
# ------------


def accuracies(model, *data, **arguments):
    history = model.fit(*data, validation_data=(x_test, y_test), verbose=0, **arguments)
    return history.history["val_accuracy"]


broken = accuracies(model, x_train, y_train, epochs=EPOCHS, batch_size=32)
repaired = accuracies(found.model, *found.prepare(x_train, y_train), **found.fit_arguments)

plt.plot(range(1, len(broken) + 1), broken, "o-", label="as it was")
plt.plot(range(1, len(repaired) + 1), repaired, "o-", label="repaired")
plt.xlabel("epoch")
plt.ylabel("test accuracy")
plt.ylim(0, 1.02)
plt.legend()
plt.show()
print(f"test accuracy: {broken[-1]:.3f} as it was, {repaired[-1]:.3f} repaired")

if first.code != "output-activation" or repaired[-1] < broken[-1] + 0.2:
    raise RuntimeError("the repair did not heal")
