"""Draws how signals and gradients fare over 100 layers, from several initial weights.

    PYTHONPATH=benchmarks python benchmarks/figures/signal_over_depth.py FILE.png

Dense layers of width 1024 as in `signal_parts/variances.py`. Lines are medians over three seeds,
shades reach from the least to the largest.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib as mpl
import numpy as np
from signal_parts.variances import DEPTH, WIDTH, over_depth

from gradstab.initializers import CriticalNormal

mpl.use("agg")
import matplotlib.pyplot as plt

SEEDS = 3
LINES = (
    ("tanh", "CriticalNormal"), ("tanh", "GlorotNormal"), ("tanh", "RandomNormal(0.05)"),
    ("relu", "CriticalNormal"), ("relu", "GlorotNormal"), ("silu", "CriticalNormal"),
)  # fmt: skip


def start(activation: str, weights: str, seed: int) -> tuple[Any, Any]:
    """Return the initializers of kernels and biases."""
    generator = keras.random.SeedGenerator(seed)
    if weights == "CriticalNormal":
        critical = CriticalNormal(activation, seed=generator)
        return critical, critical.bias_initializer(seed=generator)
    if weights == "GlorotNormal":
        return keras.initializers.GlorotNormal(generator), keras.initializers.Zeros()
    return keras.initializers.RandomNormal(0.0, 0.05, generator), keras.initializers.Zeros()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    layers = np.arange(1, DEPTH + 1)
    for activation, weights in LINES:
        runs = [
            over_depth(activation, WIDTH, np.random.default_rng(seed),
                       *start(activation, weights, seed)) for seed in range(SEEDS)
        ]  # fmt: skip
        for ax, series in zip(axes, np.moveaxis(np.array(runs), 1, 0), strict=True):
            style = "-" if weights == "CriticalNormal" else "--"
            drawn = ax.plot(layers, np.median(series, 0), style, label=f"{activation}, {weights}")
            colour = drawn[0].get_color()
            ax.fill_between(layers, series.min(0), series.max(0), color=colour, alpha=0.2, lw=0)
    titles = ("Signal: variance of pre-activations", "Gradient: mean square at pre-activations")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="layer", yscale="log", ylim=(1e-6, 1e6))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(sys.argv[1], dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
