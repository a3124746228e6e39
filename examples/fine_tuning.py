"""
Fine-tune a keras.applications model
====================================

A new head on trained layers begins with random weights. Its first gradients flow back into the
trained layers and destroy what these had learned. A bound on the step of those layers, relative to
the norm of their weights, prevents that, while the head learns at full speed.

To need no download, the script builds the MobileNet with ``weights=None`` and trains it on the
digits 0 to 4. Then it fine-tunes it to 5 to 9, with 20 examples each. With ``weights="imagenet"``
the second part is the same.
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradstab

FIRST, SECOND = (5, 30) if "--quick" in sys.argv else (20, 60)

digits = gradstab.data.load("digits", seed=0)


def images_of(split, classes, per_class=None):
    x, y = digits.arrays(split)
    rows = np.concatenate([np.flatnonzero(y == label)[:per_class] for label in classes])
    x = np.repeat(np.repeat(x[rows], 4, axis=1), 4, axis=2)  # 8×8 to 32×32
    return np.repeat(x, 3, axis=3) / 8 - 1, y[rows] - classes[0]  # three channels, -1 to 1


# %%
# The trained layers
# ------------------

keras.utils.set_random_seed(0)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
whole = keras.applications.MobileNet((32, 32, 3), alpha=0.25, include_top=False, weights=None)
half = whole.get_layer("conv_pw_6_relu").output  # deep enough for images of 32×32
backbone = keras.Model(whole.input, keras.layers.GlobalAveragePooling2D()(half), name="backbone")
for layer in backbone.layers:  # few steps: their statistics must follow quickly
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.9
first = keras.Sequential([backbone, keras.layers.Dense(5)])
first.compile(gradstab.stabilize(keras.optimizers.Adam(3e-3)), loss, metrics=["accuracy"])
first.fit(*images_of("train", range(5)), epochs=FIRST, batch_size=32, verbose=2)
trained = backbone.get_weights()

# %%
# Fine-tuning, with a bound and without
# -------------------------------------
# ``Only`` limits a transform to variables by the names of their paths, and ``LimitUpdateRatio``
# bounds the change of a step: here 0.3 % of the norm of each array of weights. BatchNorm's
# statistics stay as they are (``training=False``), as Keras' guide advises for few examples.

few, tested = images_of("train", range(5, 10), per_class=20), images_of("test", range(5, 10))


def fine_tune(transforms):
    keras.utils.set_random_seed(1)
    backbone.set_weights(trained)
    inputs = keras.Input((32, 32, 3))
    features = backbone(inputs, training=False)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(features))
    optimizer = gradstab.optimizers.StabilizedOptimizer(
        keras.optimizers.Adam(1e-2), [gradstab.transforms.SkipNonFinite(), *transforms]
    )
    model.compile(optimizer, loss, metrics=["accuracy"])
    before = np.concatenate([v.numpy().ravel() for v in backbone.trainable_variables])
    history = model.fit(
        *few, validation_data=tested, epochs=SECOND, batch_size=100, verbose=0
    ).history
    after = np.concatenate([v.numpy().ravel() for v in backbone.trainable_variables])
    moved = np.linalg.norm(after - before) / np.linalg.norm(before)
    old = first.evaluate(*images_of("test", range(5)), verbose=0, return_dict=True)["accuracy"]
    return history["val_accuracy"], moved, old


bound = gradstab.transforms.LimitUpdateRatio(max_ratio=0.003)
found = {
    "without a bound": fine_tune([]),
    "trained layers bounded": fine_tune([gradstab.transforms.Only(bound, exclude="head/*")]),
}
for name, (curve, moved, old) in found.items():
    print(f"{name:24} new digits {curve[-1]:.3f}, old digits {old:.3f}, weights moved {moved:.1%}")

# %%
# It is a trade. Unbounded, the layers learn the new digits somewhat better, and forget: with the
# old head on top they lose half of the old ones. Bounded, they keep what they knew.

for name, (curve, _, _) in found.items():
    plt.plot(range(1, SECOND + 1), curve, label=name)
plt.axhline(0.2, color="grey", linestyle=":", label="guessing")
plt.xlabel("epoch")
plt.ylabel("test accuracy, digits 5 to 9")
plt.ylim(0, 1)
plt.legend()
plt.show()

(_, _, lost), (curve, _, kept) = found.values()
if curve[-1] < 0.4 or kept < lost + 0.1:
    raise RuntimeError("the bounded model should learn and keep what it knew")
