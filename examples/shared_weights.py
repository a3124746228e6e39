"""
Weights with more than one use
==============================

A tied autoencoder, and one block that is called at every depth. The optimizer gets only the sum of
the gradients over all uses; here the gradient of each use is shown.
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
from gradstab.layers import ScaledResidual, SharedBlock, TiedDense

EPOCHS = 5 if "--quick" in sys.argv else 30
USES = 8
digits = gradstab.data.load("digits", seed=0)
(x, y), (x_test, y_test) = (digits.arrays(split) for split in ("train", "test"))
x, x_test = (images.reshape(-1, 64) / 16 for images in (x, x_test))

# %%
# One kernel, both ways
# ---------------------
# Digits are compressed to 16 numbers and back, by a Dense layer and the same kernel transposed
# (``TiedDense``), beside an autoencoder with a kernel of its own for the way back.


def autoencoder(tied):
    keras.utils.set_random_seed(0)
    code = keras.layers.Dense(16, "tanh", name="code")
    inputs = keras.Input((64,))
    hidden = code(inputs)
    back = TiedDense(code, name="back") if tied else keras.layers.Dense(64, name="back")
    model = keras.Model(inputs, back(hidden))
    model.compile(gradstab.stabilize("adam", learning_rate=3e-3), "mse")
    model.fit(x, x, batch_size=64, epochs=EPOCHS, verbose=0)
    error = np.mean((model.predict(x_test, verbose=0) - x_test) ** 2)
    kind = "one kernel, both ways" if tied else "two kernels"
    print(f"{kind:22}: {model.count_params():5} weights, test error {error:.4f}")
    return model, error


_, error_of_two = autoencoder(tied=False)
model, error_of_one = autoencoder(tied=True)

# %%
# It is one kernel after loading, too.

path = Path(tempfile.mkdtemp()) / "tied.keras"
model.save(path)
loaded = keras.models.load_model(path)
shared = loaded.get_layer("back").tied_to is loaded.get_layer("code")
print(f"loaded as shared: {shared}")

# %%
# One block at every depth
# ------------------------
# ``SharedBlock`` calls one block eight times; ``SharedBlockMonitor`` shows the gradient of each
# use. With a block that contracts, uses far from the loss have next to no say; with a residual
# connection all have.


def deep(residual):
    keras.utils.set_random_seed(0)
    small = keras.initializers.RandomNormal(stddev=0.05)
    layers = [keras.layers.Dense(32, "tanh", kernel_initializer=small)]
    block = keras.Sequential(layers)
    if residual:
        block = ScaledResidual(layers, alpha_initializer="ones")
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, "tanh"),
            SharedBlock(block, USES, name="shared"),
            keras.layers.Dense(10),
        ]
    )


accuracies, shares = {}, {}
for name, residual in (("plain block", False), ("residual block", True)):
    model = deep(residual)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(gradstab.stabilize("adam", learning_rate=1e-3), loss, metrics=["accuracy"])
    monitor = gradstab.callbacks.SharedBlockMonitor(every_n_steps=20)
    model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0, callbacks=[monitor])
    scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    accuracies[name] = scores["accuracy"]
    (first, seen), (last, seen_last) = monitor.history[0], monitor.history[-1]
    norms = seen["shared"].use_norm
    shares[name] = norms[0] / norms[-1]
    uses = range(1, USES + 1)
    (line,) = plt.semilogy(uses, norms, "o-", label=f"{name}, step {first}")
    plt.semilogy(uses, seen_last["shared"].use_norm, "o--", color=line.get_color(),
                 label=f"{name}, step {last}")  # fmt: skip
    print(f"{name:14}: test accuracy {accuracies[name]:.3f}, use 1 over use 8 {shares[name]:.0e}")
plt.xlabel("use of the block")
plt.ylabel("norm of its gradient")
plt.legend()
plt.show()

learned = error_of_one < 0.5 * np.var(x_test) and accuracies["residual block"] > 0.8
if not (shared and learned and shares["plain block"] < 1e-2 < 0.1 < shares["residual block"]):
    raise RuntimeError("the uses of the block should differ as this page says")
