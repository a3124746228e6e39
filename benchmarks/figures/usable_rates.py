"""Draw `docs/images/usable_rates.png`: scores over the rates, from the clipping study's results."""

import json
import math
import statistics
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "clipping_study.json"
IMAGE = ROOT / "docs" / "images" / "usable_rates.png"
BASE_RATE = 1e-3
# In the order in which they are drawn, the last on top.
STYLES = {
    "plain": {"color": "#555555", "label": "plain Keras", "linewidth": 1.5},
    "global norm 1.0": {"color": "#d08a2e", "label": "global norm 1.0", "linewidth": 1.2},
    "auto": {"color": "#2a6fb0", "label": 'clip="auto"', "linewidth": 2.2},
}


def shares(result, plain):
    """Return rates, and what share of plain Keras' best gain over chance the median run keeps."""
    best = median(plain["rates"][str(plain["exponent"])])
    # `usable` lies at nine tenths of the way from chance to the best.
    chance = (plain["usable"] - 0.9 * best) / 0.1
    exponents = sorted(map(int, result["rates"]))
    scores = [median(result["rates"][str(exponent)]) for exponent in exponents]
    return (
        [BASE_RATE * 2.0**exponent for exponent in exponents],
        [max((score - chance) / (best - chance), 0.0) for score in scores],
    )


def median(runs):
    """Return the median test score; what ended in NaN is worse than any other."""
    return statistics.median(-math.inf if run["test"] is None else run["test"] for run in runs)


def main():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    optimizers = ("SGD", "Adam")
    models = [
        name
        for name in ("MLP", "CNN", "LSTM", "transformer", "embedding")
        if all(f"{name}, {optimizer}, auto" in results for optimizer in optimizers)
    ]
    figure = Figure(figsize=(2.6 * len(models), 5.2), layout="constrained")
    axes = figure.subplots(2, len(models), sharey=True, squeeze=False)
    for row, optimizer in enumerate(optimizers):
        for column, model in enumerate(models):
            panel = axes[row][column]
            plain = results[f"{model}, {optimizer}, plain"]
            for candidate, style in STYLES.items():
                result = results.get(f"{model}, {optimizer}, {candidate}")
                if result is not None:
                    panel.plot(*shares(result, plain), **style)
            panel.axhline(0.9, color="#999999", linewidth=0.8, linestyle=":")
            panel.set_xscale("log")
            panel.set_ylim(0, 1.12)
            panel.set_title(f"{model}, {optimizer}", fontsize=10)
            panel.grid(alpha=0.25)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
        axes[row][0].set_ylabel("share of plain Keras' best gain")
    for panel in axes[-1]:
        panel.set_xlabel("peak learning rate")
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(STYLES), frameon=False)
    figure.savefig(IMAGE, dpi=110)
    print(f"Written to {IMAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
