"""Rules on weights before training, and on what is not finite in the first pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.signal import LayerSignal
from gradstab.diagnosis.rules.comparison import healing, healings, learns

# Kernels this many times larger than He's draw; smaller than its inverse are too small.
_OFF: Final = 4.0


def constant_initialization(looks: Looks) -> Iterator[Finding]:
    """Find hidden layers whose units begin alike and stay alike."""
    for each in looks.hidden:
        signal = looks.signal.layer(each.name)
        unknown = signal is None or signal.gradient is None
        if each.kernel_alike and each.trainable and (unknown or (signal and signal.gradient_alike)):
            value = each.kernel_offset or 0.0
            yield Finding(
                "constant-initialization",
                "error",
                each.name,
                f"All units of `{each.name}` begin with the same weights ({value:.3g}) and get the "
                "same gradient, so they stay equal: the layer is worth a single unit."
                if value
                else f"All weights of `{each.name}` begin at 0: no signal passes, and all units "
                "get the same gradient.",
                {"value": value, "units": each.units},
                '- kernel_initializer=...\n+ kernel_initializer="he_normal"',
            )
            return


def kernels_off_scale(looks: Looks) -> Iterator[Finding]:
    """Find first weights far from He's and Glorot's size, where another start heals."""
    if looks.structure.iterations:
        return
    ratios = [
        (each, each.kernel_scale / math.sqrt(2 / (each.fan_in + (each.fan_out or each.fan_in))))
        for each in looks.structure.layers
        if each.kernel_scale and each.fan_in and not each.kernel_orthogonal and each.trainable
    ]
    healed = healing(looks, "start")
    if not ratios or (learns(looks.trial) and healed is None):
        return
    large = [pair for pair in ratios if pair[1] > _OFF]
    small = [pair for pair in ratios if pair[1] < 1 / _OFF]
    plan = looks.trial.plan
    for code, pairs, word in (
        ("kernels-too-large", large, "larger"), ("kernels-too-small", small, "smaller"),
    ):  # fmt: skip
        if not pairs or any(each.kernel_alike for each, _ in pairs):
            continue
        layer, ratio = pairs[0]
        times = ratio if ratio > 1 else 1 / ratio
        if healed is None and not (code == "kernels-too-large" and ratio > 2 * _OFF):
            continue
        begins = plan is None or not plan.points or plan.points[0].explained < -0.5
        if healed is None and not begins:
            continue
        shown = (
            ""
            if healed is None
            else (f"; with Glorot's the same training learns {healed.run.merit:.0%}")
        )
        yield Finding(
            code,
            "warning",
            layer.name,
            f"The initial kernel of `{layer.name}` is {times:.0f} times {word} than Glorot's and "
            f"He's initializers make it for {layer.fan_in} inputs{shown}.",
            {"ratio": ratio, "gain": healed.gain if healed is not None else 0.0,
             "layers": len(pairs)},
            "- kernel_initializer=...\n+ kernel_initializer=\"he_normal\"",
        )  # fmt: skip


def disconnected_variables(looks: Looks) -> Iterator[Finding]:
    """Find trained variables that the loss does not depend on."""
    names = looks.signal.disconnected
    # Biases before a normalization and the like come and go; whole layers do not.
    if names:
        layer = names[0].split("/")[-2] if "/" in names[0] else names[0]
        everything = len(names) >= sum(each.trainable for each in looks.structure.layers) * 2
        yield Finding(
            "disconnected-variables",
            "error" if everything else "warning",
            layer,
            f"The loss does not depend on {len(names)} trained variables, the first of which is "
            f"`{names[0]}`: they never change.",
            {"variables": len(names)},
            "Use the layer's output in `call`, or remove the layer. `argmax`, rounding, casts to "
            "integers, NumPy and `stop_gradient` stop the gradient.",
        )


def frozen_model(looks: Looks) -> Iterator[Finding]:
    """Find a model in which nothing, or next to nothing, is trained."""
    layers = [each for each in looks.structure.layers if each.units is not None]
    frozen = [each.name for each in layers if each.frozen and not each.trainable]
    if layers and looks.structure.trainable_weights == 0:
        yield Finding(
            "frozen-model",
            "error",
            frozen[0] if frozen else None,
            "The model has no trained weight: training changes nothing.",
            {"layers": len(layers)},
            "Set `layer.trainable = True` for the layers that should learn, then compile again.",
        )
    elif frozen and layers[-1].name in frozen:
        yield Finding(
            "frozen-model",
            "warning",
            layers[-1].name,
            f"The last layer, `{layers[-1].name}`, is frozen, so the model can't adapt its outputs "
            "to the targets.",
            {"frozen": len(frozen)},
            f'`model.get_layer("{layers[-1].name}").trainable = True`, then compile again.',
        )
    elif len(frozen) * 2 > len(layers) and not looks.structure.iterations:
        # Layers that were trained before go with a plan that learns.
        trial = looks.trial
        is_stuck = trial.plan is not None and not learns(trial) and not healings(looks)
        yield Finding(
            "frozen-model",
            "warning" if is_stuck else "info",
            frozen[0],
            f"{len(frozen)} of {len(layers)} layers are frozen"
            f"{', and the rest learns next to nothing' if is_stuck else ''}.",
            {"frozen": len(frozen), "layers": len(layers)},
            "Correct for a pretrained model; otherwise set `trainable = True` and compile again.",
        )


def nonfinite_forward(looks: Looks) -> Iterator[Finding]:
    """Find the first layer that turns finite inputs into NaN or infinity."""
    first = next((each for each in looks.signal.layers if each.finite < 1), None)
    if first is not None and first.input_finite:
        yield Finding(
            "nonfinite-forward",
            "error",
            first.name,
            f"`{first.name}` turns finite inputs into outputs of which {1 - first.finite:.0%} are "
            f"NaN or infinite{_why(first)}.",
            {"finite": first.finite, "input_minimum": first.input_minimum,
             "input_maximum": first.input_maximum},
            "Keep the arguments of logarithms, roots and divisions away from 0: "
            "`ops.log(ops.maximum(x, 1e-7))`; scale the arguments of exponentials.",
        )  # fmt: skip
    signal = looks.signal
    is_lost = signal.loss is not None and not math.isfinite(signal.loss)
    has_data = not any(target.nonfinite for target in looks.data.targets)
    if first is None and is_lost and signal.outputs_finite and has_data and looks.structure.heads:
        yield Finding(
            "nonfinite-forward",
            "error",
            looks.structure.heads[0].layer,
            "The outputs are finite and the loss is not: the loss takes a logarithm, a root or a "
            "quotient of a number at or below 0.",
            {"loss": str(signal.loss)},
            "Clip inside the loss, `ops.clip(y_pred, 1e-7, 1 - 1e-7)`, or use the Keras loss of "
            "that kind.",
        )


def _why(layer: LayerSignal) -> str:
    size = max(abs(layer.input_minimum), abs(layer.input_maximum))
    if size > 80:
        return f"; its inputs reach {size:.3g}, where exponentials overflow"
    if layer.input_minimum <= 0:
        return f"; its inputs go down to {layer.input_minimum:.3g}, which has no logarithm"
    return ""


def nonfinite_gradients(looks: Looks) -> Iterator[Finding]:
    """Find a finite loss whose gradient is not finite."""
    bad = [each for each in looks.signal.layers if not each.gradient_finite]
    if bad and looks.signal.loss is not None and abs(looks.signal.loss) < float("inf"):
        last = bad[-1]
        yield Finding(
            "nonfinite-gradients",
            "error",
            last.name,
            f"The loss is finite and its gradient is not, from `{last.name}` backwards: after that "
            "layer a root, norm or power is taken at 0.",
            {"layers": len(bad)},
            "Add a small number inside the root: `ops.sqrt(x + 1e-12)`.",
        )
