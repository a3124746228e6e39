"""Rules on what passes through the layers, forward and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.signal import LayerSignal
from gradstab.diagnosis.looks.structure import LayerStructure
from gradstab.diagnosis.rules.comparison import healing, learns

_SQUASHING: Final = ("sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "softsign", "softmax")
_RECTIFYING: Final = ("relu", "relu6")
# Share of a layer's outputs at a bound, or of its units at zero, from which on it is lost.
_LOST: Final = 0.8
# Layers with kernels from which on a net is deep.
_DEEP: Final = 6
# Growth of the signal per layer, on the mean over depth, that nothing makes up for.
_GROWTH: Final = 3.0


def saturated_units(looks: Looks) -> Iterator[Finding]:
    """Find hidden layers whose outputs stand at a bound, or that let too little through."""
    if learns(looks.trial):
        return
    healed = healing(looks, "relu")
    squashing = [each for each in looks.hidden if each.activation in _SQUASHING]
    if healed is not None and squashing:
        worst = squashing[0]
        yield Finding(
            "saturated-units",
            "warning",
            worst.name,
            f"`{worst.activation}` in `{worst.name}` lets little of the signal and of the gradient "
            f"through: with relu instead the same training learns {healed.run.merit:.0%}.",
            {"gain": healed.gain, **_numbers(looks.signal.layer(worst.name))},
            f'- activation="{worst.activation}"\n+ activation="relu"',
        )
        return
    for each, signal in _hidden(looks):
        if each.activation in _SQUASHING and (signal.saturated or 0.0) > _LOST:
            yield Finding(
                "saturated-units",
                "warning",
                each.name,
                f"{signal.saturated:.0%} of the outputs of `{each.name}` are at a bound of "
                f"`{each.activation}`, where its slope is 0; the layer's inputs have a size of "
                f"{signal.input_scale:.3g}.",
                _numbers(signal),
                "Scale the inputs, start from smaller kernels, or put a BatchNormalization "
                "before the activation.",
            )
            return


def dead_units(looks: Looks) -> Iterator[Finding]:
    """Find rectified layers that are zero on a whole batch."""
    if learns(looks.trial):
        return
    for each, signal in _hidden(looks):
        if each.activation in _RECTIFYING and signal.dead > _LOST and signal.finite == 1:
            yield Finding(
                "dead-units",
                "warning",
                each.name,
                f"{signal.dead:.0%} of the units of `{each.name}` are zero for every row of a "
                "batch: no gradient passes them.",
                _numbers(signal),
                '- activation="relu", kernel_initializer=...\n'
                '+ activation="leaky_relu", kernel_initializer="he_normal"',
            )
            return


def no_nonlinearity(looks: Looks) -> Iterator[Finding]:
    """Find layers with kernels that follow each other without an activation between."""
    layers = [each for each in looks.structure.layers if each.kind != "Dropout"]
    kernels = [each for each in looks.hidden if each.activation == "linear"]
    linear = [each for each in kernels if _is_followed_by_kernel(looks, each)]
    healed = healing(looks, "relu")
    squashing = any(each.activation in _SQUASHING for each in looks.hidden)
    if not linear or not layers:
        return
    if healed is not None and not squashing:
        yield _linear(linear[0], "warning", healed.gain, healed.run.merit)
    elif len(linear) == len(looks.hidden):
        yield _linear(linear[0], "info", 0.0, None)


def _linear(layer: LayerStructure, severity: str, gain: float, merit: float | None) -> Finding:
    shown = "" if merit is None else f"; with relu the same training learns {merit:.0%}"
    return Finding(
        "no-nonlinearity",
        severity,
        layer.name,
        f"There is no activation between `{layer.name}` and the next layer, so the two are one "
        f"linear map{shown}.",
        {"gain": gain},
        '- Dense(units)\n+ Dense(units, activation="relu")',
    )


def exploding_signal(looks: Looks) -> Iterator[Finding]:
    """Find a signal that grows from layer to layer."""
    if learns(looks.trial):
        return
    scales = [(each.name, signal.scale) for each, signal in _kernels(looks) if signal.finite == 1]
    if len(scales) < 3 or scales[0][1] <= 0:
        return
    growth = (scales[-1][1] / scales[0][1]) ** (1 / (len(scales) - 1))
    if growth > _GROWTH and scales[-1][1] > 30:
        yield Finding(
            "exploding-signal",
            "info",
            scales[0][0],
            f"The signal grows {growth:.1f}-fold from layer to layer, to {scales[-1][1]:.3g} at "
            "the output.",
            {"growth": growth, "last": scales[-1][1], "layers": len(scales)},
            '+ kernel_initializer="he_normal", or a normalization after each layer',
        )


def vanishing_signal(looks: Looks) -> Iterator[Finding]:
    """Find a signal that fades from layer to layer until rows look alike."""
    if learns(looks.trial):
        return
    seen = [(each, signal) for each, signal in _kernels(looks) if signal.finite == 1]
    if len(seen) < 3:
        return
    first, last = seen[0][1], seen[-2][1]
    if first.variation > 0 and last.variation < 1e-2 and last.variation < 0.05 * first.variation:
        worst = min(
            range(1, len(seen) - 1),
            key=lambda at: seen[at][1].variation / max(seen[at - 1][1].variation, 1e-30),
        )
        yield Finding(
            "vanishing-signal",
            "warning",
            seen[worst][0].name,
            "Differences between rows fade with depth: they are "
            f"{last.variation:.1g} of the signal after `{seen[-2][0].name}`, and "
            f"{first.variation:.1g} after the first layer.",
            {"first": first.variation, "last": last.variation, "layers": len(seen)},
            '+ activation="relu", kernel_initializer="he_normal", or BatchNormalization between',
        )


def missing_normalization(looks: Looks) -> Iterator[Finding]:
    """Find a deep net without normalization that does not learn."""
    if learns(looks.trial) or looks.trial.plan is None:
        return
    seen = [each for each, _ in _kernels(looks)]
    has_norm = any("Normalization" in each.kind for each in looks.structure.layers)
    if len(seen) >= _DEEP and not has_norm:
        yield Finding(
            "missing-normalization",
            "info",
            seen[0].name,
            f"{len(seen)} layers with kernels follow each other without a normalization.",
            {"layers": len(seen)},
            "+ keras.layers.BatchNormalization() after each of them, before its activation",
        )


def vanishing_gradients(looks: Looks) -> Iterator[Finding]:
    """Find gradients that fade on the way back to the first layers."""
    if learns(looks.trial):
        return
    seen = [(each, s) for each, s in _kernels(looks) if s.gradient is not None and s.weight_scale]
    if len(seen) < 3:
        return
    relative = [(s.gradient or 0.0) / (s.weight_scale or 1.0) for _, s in seen]
    best = max(relative[1:])
    if best > 0 and relative[0] < 1e-3 * best and relative[0] < 1e-4:
        yield Finding(
            "vanishing-gradients",
            "warning",
            seen[0][0].name,
            f"The gradient of `{seen[0][0].name}` is {relative[0]:.1g} of the size of its weights, "
            f"{best / max(relative[0], 1e-30):.0e} times less than in later layers.",
            {"first": relative[0], "best": best, "layers": len(seen)},
            '+ activation="relu", kernel_initializer="he_normal"; with more than about ten '
            "layers, residual connections or normalization",
        )


def exploding_gradients(looks: Looks) -> Iterator[Finding]:
    """Find gradients many times larger than the weights that they are to change."""
    if learns(looks.trial):
        return
    seen = [(each, s) for each, s in _kernels(looks) if s.gradient and s.weight_scale]
    worst = max(seen, key=lambda p: (p[1].gradient or 0) / (p[1].weight_scale or 1), default=None)
    if worst is None:
        return
    ratio = (worst[1].gradient or 0) / (worst[1].weight_scale or 1)
    if ratio > 1000 and math.isfinite(ratio):
        yield Finding(
            "exploding-gradients",
            "info",
            worst[0].name,
            f"The gradient of `{worst[0].name}` is {ratio:.2g} times as large as its weights.",
            {"ratio": ratio},
            "Scale inputs and targets; clip: `gradstab.stabilize(optimizer, clip=1.0)`.",
        )


def bottleneck(looks: Looks) -> Iterator[Finding]:
    """Find hidden layers so narrow that a wider copy learns clearly better."""
    healed = healing(looks, "wider")
    dense = [each for each in looks.hidden if each.kind == "Dense" and each.units]
    if healed is not None and dense:
        narrow = min(dense, key=lambda each: each.units or 0)
        yield Finding(
            "bottleneck",
            "warning",
            narrow.name,
            f"`{narrow.name}` has {narrow.units} units; with 64 in each hidden layer the same "
            f"training learns {healed.run.merit:.0%}.",
            {"units": narrow.units, "gain": healed.gain},
            f"- Dense({narrow.units}, ...)\n+ Dense(64, ...)",
        )


def _numbers(signal: LayerSignal | None) -> dict[str, float]:
    if signal is None:
        return {}
    found = {"scale": signal.scale, "variation": signal.variation, "dead": signal.dead}
    return found | ({} if signal.saturated is None else {"saturated": signal.saturated})


def _hidden(looks: Looks) -> Iterator[tuple[LayerStructure, LayerSignal]]:
    for each in looks.hidden:
        signal = looks.signal.layer(each.name)
        if signal is not None:
            yield each, signal


def _kernels(looks: Looks) -> Iterator[tuple[LayerStructure, LayerSignal]]:
    for each in looks.structure.layers:
        signal = looks.signal.layer(each.name)
        if each.units is not None and signal is not None:
            yield each, signal


def _is_followed_by_kernel(looks: Looks, layer: LayerStructure) -> bool:
    """Whether nothing that bends stands between a layer and the next with a kernel."""
    layers = list(looks.structure.layers)
    for each in layers[layers.index(layer) + 1 :]:
        if each.units is not None:
            return True
        if (
            each.activation not in (None, "linear")
            or "Normalization" in each.kind
            or ("Max" in each.kind)
        ):
            return False
    return False
