"""Draw `docs/images/schedules.png` and `docs/images/effective_rate.png`.

    python benchmarks/figures/schedules.py

The first shows every schedule over 1000 steps; the second the effective rates of Adagrad, RMSprop
and Adam by their recipes, over three epochs of a small net on digits, seconds each.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from matplotlib.figure import Figure

import gradstab
from gradstab import reports
from gradstab.schedules import (
    ExponentialWarmup,
    InverseSquareRoot,
    Join,
    LinearDecay,
    LinearWarmup,
    OneCycle,
    Scale,
    UntunedWarmup,
    WarmupStableDecay,
)

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
STEPS = 1000


def panels():
    """Return (title, [(label, schedule)]) of each panel."""
    cosine = keras.optimizers.schedules.CosineDecay(1.0, 800)
    return [
        (
            "Warm-ups before a rate of 1",
            [
                ("LinearWarmup, 200", LinearWarmup(1.0, 200)),
                ("ExponentialWarmup, 200", ExponentialWarmup(1.0, 200)),
                ("UntunedWarmup, beta_2 0.995", UntunedWarmup(1.0, 0.995)),
            ],
        ),
        (
            "Round a schedule of Keras'",
            [
                ("LinearWarmup(CosineDecay)", LinearWarmup(cosine, 200)),
                ("ExponentialWarmup(CosineDecay)", ExponentialWarmup(cosine, 50)),
                ("LinearWarmup(LinearDecay)", LinearWarmup(LinearDecay(1.0, 800), 200)),
            ],
        ),
        (
            "WarmupStableDecay, 100 + 500 + 400",
            [
                (f'"{shape}"', WarmupStableDecay(1.0, 100, 500, 400, decay_shape=shape))
                for shape in ("linear", "cosine", "1-sqrt")
            ],
        ),
        (
            "OneCycle",
            [
                ("cosine", OneCycle(1.0, STEPS)),
                ("linear", OneCycle(1.0, STEPS, shape="linear")),
                ("cosine, three phases", OneCycle(1.0, STEPS, three_phase=True)),
            ],
        ),
        (
            "Without an end",
            [
                ("InverseSquareRoot, 100", InverseSquareRoot(1.0, 100)),
                ("InverseSquareRoot, 300", InverseSquareRoot(1.0, 300)),
            ],
        ),
        (
            "Schedules of schedules",
            [
                ("Join([0.8, 0.4, line])", Join([0.8, 0.4, LinearDecay(0.4, 400)], [300, 600])),
                ("Scale(cycle, 0.5)", Scale(OneCycle(1.0, STEPS), 0.5)),
            ],
        ),
    ]


def draw_schedules():
    figure = Figure(figsize=(11, 6), layout="constrained")
    for ax, (title, lines) in zip(figure.subplots(2, 3).flat, panels(), strict=True):
        for label, schedule in lines:
            reports.plot_schedule(schedule, STEPS, ax, label=label)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_ylim(0, 1.5)
        ax.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(IMAGES / "schedules.png", dpi=110)


def draw_effective_rates():
    datasets = gradstab.data.load("digits", seed=0)
    figure = Figure(figsize=(12, 4), layout="constrained")
    recipes = {"adagrad": 0.03, "rmsprop": 2e-3, "adam": 2e-3}
    for ax, (name, peak) in zip(figure.subplots(1, 3), recipes.items(), strict=True):
        keras.utils.set_random_seed(0)
        model = gradstab.models.cnn_classifier(
            datasets.input_shape,
            datasets.num_classes,
            filters=(16, 32),
            dense_units=32,
            kernel_initializer="he_normal",
            rescale=1 / datasets.pixel_max,
        )
        make = getattr(gradstab.recipes, name)
        optimizer = make(peak, epochs=3, steps_per_epoch=len(datasets.train))
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with tempfile.TemporaryDirectory() as run_dir:
            monitor = gradstab.callbacks.GradientMonitor(
                run_dir, every_n_steps=2, effective_rates=True
            )
            model.fit(datasets.train, epochs=3, shuffle=False, callbacks=[monitor], verbose=0)
            record = gradstab.monitoring.read_record(run_dir)
            reports.plot_effective_rate(record, ax)
        ax.set_title(f"recipes.{name}({peak:g}, ...)", fontsize=10)
    figure.savefig(IMAGES / "effective_rate.png", dpi=110)


if __name__ == "__main__":
    draw_schedules()
    draw_effective_rates()
