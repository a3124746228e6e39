"""
A deep convolutional net without normalization
==============================================

The signal of a residual net grows with every sum, and batch normalization usually bounds it. That
has a price: examples of a batch depend on each other, and training differs from inference. Here are
24 convolutions without it: plain ones, and with ``ScaledResidual`` (ReZero), where each branch
begins at zero and learns its scale, under ``AdaptiveGradientClipping`` (AGC).
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradstab

EPOCHS, BLOCKS = (4 if "--quick" in sys.argv else 15), 24

digits = gradstab.data.load("digits", seed=0)
(x, y), (x_test, y_test) = (digits.arrays(split) for split in ("train", "test"))
x, x_test = x / digits.pixel_max, x_test / digits.pixel_max

# %%
# Two nets
# --------
# The same layers; only the way in which a branch is added differs.


def build_model(scaled):
    keras.utils.set_random_seed(0)

    def conv(**arguments):
        return keras.layers.Conv2D(
            16, 3, padding="same", kernel_initializer="he_normal", **arguments
        )

    inputs = keras.Input((8, 8, 1))
    h = conv(strides=2)(inputs)
    for _ in range(BLOCKS):
        branch = [keras.layers.ReLU(), conv()]
        if scaled:
            h = gradstab.layers.ScaledResidual(branch, method="rezero")(h)
        else:
            h = keras.layers.add([h, keras.Sequential(branch)(h)])
    h = keras.layers.Flatten()(keras.layers.ReLU()(h))
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(h))


# %%
# Before training
# ---------------
# How large is the signal behind each block? ReZero's is the same all the way, whatever the depth.


def sizes(model):
    sums = [layer.output for layer in model.layers if layer.output.shape[1:] == (4, 4, 16)]
    outputs = keras.Model(model.input, sums)(x[:256])
    return [float(np.sqrt(np.mean(np.square(output)))) for output in outputs]


nets = {"plain sums": build_model(False), "ScaledResidual": build_model(True)}
for name, model in nets.items():
    plt.semilogy(sizes(model), "o-", label=name, markersize=3)
plt.xlabel("layer of that size")
plt.ylabel("root mean square of its output")
plt.title("Before training")
plt.legend()
plt.show()

# %%
# Training
# --------
# AGC bounds the gradient of each unit by a share of its weights' norm. ``bind`` tells it which
# layer is the last, which it leaves out; gradstab's callbacks do that by themselves.

curves, accuracies = {}, {}
for name, model in nets.items():
    optimizer = keras.optimizers.Adam(3e-3)
    if name == "ScaledResidual":
        transforms = gradstab.transforms
        optimizer = gradstab.optimizers.StabilizedOptimizer(
            optimizer,
            [transforms.SkipNonFinite(), transforms.AdaptiveGradientClipping(clip_factor=0.1)],
        )
        optimizer.bind(model)
        print(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = model.fit(x, y, epochs=EPOCHS, batch_size=32, verbose=0)
    curves[name] = history.history["loss"]
    scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    accuracies[name] = scores["accuracy"]
    print(f"{name:16} loss {curves[name][0]:9.2f} to {curves[name][-1]:.3f}, "
          f"test accuracy {accuracies[name]:.3f}")  # fmt: skip

# %%

for name, losses in curves.items():
    plt.semilogy(range(1, EPOCHS + 1), losses, "o-", label=f"{name}: {accuracies[name]:.2f}")
plt.xlabel("epoch")
plt.ylabel("training loss")
plt.legend(title="test accuracy")
plt.show()

# %%
# What the net made of its branches: the scalar before each, all zero in the beginning.

alphas = [float(w.value[()]) for w in nets["ScaledResidual"].weights if "alpha" in w.path]
print("alpha:", *(f"{alpha:+.2f}" for alpha in alphas))

if accuracies["ScaledResidual"] < 0.7:
    raise RuntimeError("the net has not learned")
