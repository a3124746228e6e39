"""
A transformer that warms up, and what a bad batch does to Adam
==============================================================

A small decoder learns to sort: it reads eight digits and writes them in order. Two things break
such runs. Adam's first steps are too long, since its moments are estimated from few gradients: a
warm-up fixes that. Later, a single bad batch enters Adam's mean of squared gradients, which
remembers it for a thousand steps, so that the run hardly moves: ``stabilize`` fixes that.
"""

# %%
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np

import gradstab

QUICK = "--quick" in sys.argv
DIGITS, WIDTH, BATCH, STEPS = 8, 48, 32, (240 if QUICK else 1500)
LENGTH = 2 * DIGITS  # the digits, a sign that they end, all of the sorted ones but the last

draw = np.random.default_rng(0)
unsorted = draw.integers(0, 10, (BATCH * STEPS, DIGITS))
answers = np.sort(unsorted, axis=1)
x = np.concatenate([unsorted, np.full((len(unsorted), 1), 10), answers[:, :-1]], axis=1)
print("reads ", *x[0])
print("writes", *["·"] * DIGITS, *answers[0])

# %%
# The model
# ---------


def build_model():
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    places = keras.layers.Embedding(LENGTH, WIDTH)(keras.ops.arange(LENGTH))
    h = keras.layers.Embedding(11, WIDTH)(tokens) + places
    for _ in range(2):
        n = keras.layers.LayerNormalization()(h)
        h += keras.layers.MultiHeadAttention(4, WIDTH // 4)(n, n, use_causal_mask=True)
        n = keras.layers.LayerNormalization()(h)
        h += keras.layers.Dense(WIDTH)(keras.layers.Dense(4 * WIDTH, activation="gelu")(n))
    h = keras.layers.LayerNormalization()(h)[:, DIGITS:]
    return keras.Model(tokens, keras.layers.Dense(10)(h))


class Losses(keras.callbacks.Callback):
    """The loss of every step, without weights: the logs hold the mean over the epoch so far."""

    def on_train_begin(self, logs=None):
        self.values, self._sum = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["unweighted"] * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total


def train(optimizer, weights=None):
    model = build_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    unweighted = keras.metrics.SparseCategoricalCrossentropy("unweighted", from_logits=True)
    model.compile(optimizer, loss, metrics=[unweighted])
    kept = Losses()
    model.fit(x, answers, sample_weight=weights, batch_size=BATCH, shuffle=False, verbose=0,
              callbacks=[kept])  # fmt: skip
    return np.array(kept.values)


def smooth(values):
    return np.convolve(np.minimum(values, 10), np.ones(15) / 15, "valid")


# %%
# Warm-up
# -------
# The same peak rate, reached at once or over a tenth of the run.

PEAK = 1e-2
warm = gradstab.schedules.LinearWarmup(PEAK, warmup_steps=STEPS // 10)
runs = {
    "from the first step": train(keras.optimizers.Adam(PEAK)),
    "after a warm-up": train(keras.optimizers.Adam(warm)),
}
for name, values in runs.items():
    plt.plot(smooth(values), label=name)
    print(f"{name:20} loss of the last 20 steps {values[-20:].mean():.3f}")
plt.xlabel("step")
plt.ylabel("loss, mean of 15 steps")
plt.title(f"Adam at {PEAK:g}")
plt.legend()
plt.show()

# %%
# A bad batch
# -----------
# In the middle of the run, one batch has wrong sample weights: 10,000 in place of 1. Adam's step is
# hardly longer for it. What hurts is its memory: the momentum goes on in that direction for some
# ten steps, and the mean of squares makes all steps short for a thousand.

bad = STEPS // 2
weights = np.ones((len(x), 1), "float32")
weights[bad * BATCH : (bad + 1) * BATCH] = 1e4


def rate():
    return gradstab.schedules.LinearWarmup(3e-3, warmup_steps=STEPS // 10)


optimizer = gradstab.stabilize(keras.optimizers.Adam(rate()))
hit = {
    "Adam": train(keras.optimizers.Adam(rate()), weights),
    "stabilize(Adam)": train(optimizer, weights),
}
after = {name: np.median(values[bad + 10 :][-50:]) for name, values in hit.items()}
for name, values in hit.items():
    plt.plot(smooth(values), label=name)
    before = values[bad - 20 : bad].mean()
    print(f"{name:16} loss before {before:.3f}, at the end {after[name]:.3f}")
plt.axvline(bad, color="tab:red", linestyle=":", label="bad batch")
plt.xlabel("step")
plt.ylabel("loss, mean of 15 steps")
plt.legend()
plt.show()

# %%
# Which rule acted, and when:

reading = optimizer.telemetry.read()
print(f"limited by rule: {reading.total_limited_by}; steps:", *reading.steps[reading.limited][:10])

if after["stabilize(Adam)"] > 0.5 * after["Adam"]:
    raise RuntimeError("the bad batch should have been limited")
