"""
A convolutional classifier set up correctly
===========================================

Articles on exploding and vanishing gradients often use an image classifier with convolutions of
32, 64, 64 and 256 filters, with faults that are copied from one program into the next. Here is the
correction of each:

========================================================  ==========================================
often seen                                                here
========================================================  ==========================================
data and labels overwritten on the way, no test split     three splits that share no example
a generator of augmented images built for each image      augmentation as layers of the model
kernels of whatever size                                  He initialization, made for relu
a softmax in the model and a logarithm in the loss        logits, and a loss that takes them
raw pixels                                                rescaling as a layer, saved with the model
a fixed rate from the first step on                       a warm-up, then half a cosine down to zero
a plain optimizer, and no monitoring                      bad steps skipped, norms logged and drawn
========================================================  ==========================================

``--data fashion_mnist``, or ``--data FOLDER --image-size 64`` for a folder with one folder of
images for each class, trains it on something else than the digits of scikit-learn.
"""

# %%
import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import gradstab

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits", help="name of a data set, or a folder")
parser.add_argument("--image-size", type=int, help="side in pixels, for a folder")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--run-dir", help="where to leave the run record; default: a temporary one")
parser.add_argument("--quick", action="store_true", help="four epochs")
arguments, _ = parser.parse_known_args()  # in a notebook there are arguments of others
epochs = 4 if arguments.quick else arguments.epochs
run_dir = arguments.run_dir or tempfile.mkdtemp(prefix="gradstab-")

keras.utils.set_random_seed(0)
datasets = gradstab.data.load(arguments.data, image_size=arguments.image_size, seed=0)
print(datasets)

# %%
# The model
# ---------
# Everything that prevents stands in it: rescaling, augmentation, He kernels, L2, logits.

augment = {"zoom": 0.1, "shear": 0.1}
if datasets.name != "digits":  # a digit in the mirror is no digit
    augment["flip"] = "horizontal"
model = gradstab.models.cnn_classifier(
    datasets.input_shape,
    datasets.num_classes,
    filters=(32, 64, 64, 256),
    dense_units=128,
    kernel_initializer="he_normal",
    kernel_regularizer=gradstab.regularizers.L2(1e-4),
    rescale=1 / datasets.pixel_max,
    augment=augment,
    seed=0,
)

# %%
# The optimizer
# -------------
# Adam that warms up, comes down along a cosine, skips bad steps and clips long gradients. A healthy
# step of this model is 1 to 10 long (``grad_norm`` in the log below): only longer ones are cut.

optimizer = gradstab.recipes.adam(
    2e-3, epochs=epochs, steps_per_epoch=len(datasets.train), clip=10.0
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss, metrics=["accuracy"])
print(optimizer)

# %%
# Training
# --------
# Two callbacks: one watches and leaves a record, one ends a run that is lost and says why.

guard = gradstab.callbacks.DivergenceGuard()
model.fit(
    datasets.train,
    validation_data=datasets.validation,
    epochs=epochs,
    shuffle=False,  # the pipeline shuffles
    callbacks=[gradstab.callbacks.GradientMonitor(run_dir, every_n_steps=5), guard],
    verbose=2,
)
accuracy = model.evaluate(datasets.test, verbose=0, return_dict=True)["accuracy"]
print(f"test accuracy {accuracy:.3f}")

# %%
# What the record shows
# ---------------------
# Gradient norms of one order from the first layer to the last, for the whole run: nothing vanishes,
# nothing explodes. ``gradstab report RUN_DIR`` makes a page of the same record.

record = gradstab.monitoring.read_record(run_dir)
_, (upper, lower) = plt.subplots(2, figsize=(8, 8), layout="constrained")
gradstab.reports.plot_layer_norms(record, upper)
gradstab.reports.plot_gradient_norm(record, lower)
plt.show()

# %%
# The same by hand, on the test batches and without a record: ``functional.global_norm`` of each
# layer's gradients.

layers = [layer for layer in model.layers if layer.trainable_variables]


@tf.function
def gradient_norms(images, labels):
    with tf.GradientTape() as tape:
        value = loss(labels, model(images, training=False))
    gradients = tape.gradient(value, [layer.trainable_variables for layer in layers])
    return [gradstab.functional.global_norm(each) for each in gradients]


means = [keras.metrics.Mean(layer.name) for layer in layers]
for images, labels in datasets.test:
    for mean, norm in zip(means, gradient_norms(images, labels), strict=True):
        mean.update_state(norm)
for mean in means:
    print(f"{mean.name:8} {float(mean.result()):.2e}")

if guard.verdict is not None or accuracy < 2 / datasets.num_classes:
    raise RuntimeError("the model has not learned")
