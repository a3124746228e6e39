"""Draw `docs/images/rules/*.svg`: a sick and a healthy run for each rule that a picture tells.

Both runs of a picture are trained here, on scikit-learn's digits and diabetes, and drawn from the
run record that `GradientMonitor` writes.

    python benchmarks/figures/rules.py              # all
    python benchmarks/figures/rules.py dead-units   # some
"""

import re
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rule_runs import TWINS
from rule_structures import STRUCTURES

import gradstab

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images" / "rules"
# Grey that can be read on white and on black, and two colours that can be told apart on both.
INK, SICK, HEALTHY = "#808890", "#e0603f", "#2f8fd0"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradstab",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
}


def trained(run):
    """Train one run, and return its record (`None` of a frozen model), its model and its inputs."""
    keras.utils.set_random_seed(0)
    model, x, y, fit = run()
    with tempfile.TemporaryDirectory() as folder:
        monitor = gradstab.callbacks.GradientMonitor(folder, every_n_steps=5, activations=True)
        model.fit(x, y, verbose=0, callbacks=[monitor], **fit)
        has_record = (Path(folder) / "record.jsonl").exists()
        return gradstab.monitoring.read_record(folder) if has_record else None, model, x


def draw(code, twin):
    """Draw one picture."""
    figure = Figure(figsize=(5.6, 2.3), layout="constrained")
    axes = figure.subplots()
    for run, color, name in (
        (twin.sick, SICK, twin.names[0]),
        (twin.healthy, HEALTHY, twin.names[1]),
    ):
        if twin.kind == "epochs":
            by_epochs(axes, trained(run)[1].history, twin, color, name)
        elif twin.kind == "layers":
            by_layers(axes, trained(run)[0], twin, color, name)
        else:
            histogram(axes, trained(run), twin, color, name)
    axes.set_ylabel(twin.label)
    axes.legend(frameon=False, labelcolor="linecolor", handlelength=1)
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{code}.svg"
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"\n +", "\n", path.read_text("utf-8"))
    path.write_text(svg, "utf-8")
    print(f"{path.relative_to(IMAGES.parents[2])}: {len(svg) / 1000:.0f} kB")


def by_epochs(axes, history, twin, color, name):
    """Draw a quantity of the logs over the epochs; where it is NaN, a cross at the bottom."""
    values = np.array(history.history[twin.quantity])
    numbers = range(1, len(values) + 1)
    above = 3 if color == SICK else 2
    axes.plot(numbers, values, color=color, label=name, marker="o", markersize=4, zorder=above)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    lost = [n for n, value in zip(numbers, values, strict=True) if not np.isfinite(value)]
    if lost:
        axes.plot(lost, [0] * len(lost), "x", color=color, clip_on=False, label=f"{name}: NaN")
    axes.set_xlabel("epoch")
    if twin.log:
        axes.set_yscale("log")
    elif twin.quantity.endswith("accuracy"):
        axes.set_ylim(0, 1)


def by_layers(axes, record, twin, color, name):
    """Draw what the last sample tells of each layer, from the first layer on."""
    is_output = twin.quantity.startswith("activation")
    samples = record.per_layer(twin.quantity) if is_output else record.per_variable(twin.quantity)
    chosen = [i for i, name in enumerate(samples.names) if is_output or name.endswith("kernel")]
    values = np.asarray(samples.values[-1], dtype=float)[chosen]
    values = values[:-1] if is_output else values  # a softmax is always between 0 and 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(range(1, len(values) + 1), values, color=color, label=name, marker="o", markersize=4)
    axes.set_xlabel("layer, from the first to the last")
    if twin.log:
        axes.set_yscale("log")


def histogram(axes, result, twin, color, name):
    """Draw how the model's largest answer is distributed over the rows."""
    _, model, x = result
    answers = model.predict(x, verbose=0).max(axis=-1)
    bins = np.linspace(0, 1, 31)
    axes.hist(answers, bins, color=color, alpha=0.8, label=name)
    axes.set_xlabel(twin.quantity)


def main():
    twins = TWINS | STRUCTURES
    chosen = sys.argv[1:] or list(twins)
    with rc_context(STYLE):
        for code in chosen:
            draw(code, twins[code])


if __name__ == "__main__":
    main()
