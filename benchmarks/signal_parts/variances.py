"""Forward and backward variance through deep plain nets with `CriticalNormal`.

100 dense layers of width 1024, kernels and biases of `CriticalNormal` at its default fixed point of
1, or at the least power of two above where an activation has a critical point there only; a batch
of 16 inputs that are what a layer of pre-activations of that variance puts out. Forward: the
variance of the pre-activations of the last layer over that of the first. Backward: the second
moment of a gradient, drawn N(0, 1) at the last pre-activations, at the first over that at the last.
Medians over 20 seeds are to lie within a factor of 2 of 1 where theory says that they can: where
the fixed point is stable, that is where the slope dq'/dq = 1 + σ_w²·E[φ·φ''] is at most 1, there
and 10 % above, where a net of finite width gets to. Where the slope is above 1, a deviation is
multiplied by it in each layer, and depth has an end: soft_shrink has 1 at the point, and more as
soon as q grows. The
spread grows with depth over width: the deviation of ln q over seeds is given at widths 1024 and
256. A number that overflowed is given as the largest of float32.

Beside it: how exactly a circular convolution with `DeltaOrthogonal` keeps the norm.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import keras
import numpy as np

from gradstab.initializers import CriticalNormal, DeltaOrthogonal, critical_point

NAME = "Variance through 100 layers"
DEPTH, WIDTH, NARROW, BATCH, SEEDS = 100, 1024, 256, 16, 20
ACTIVATIONS = (
    "linear", "relu", "leaky_relu", "relu6", "tanh", "hard_tanh", "softsign", "soft_shrink",
    "tanh_shrink", "gelu", "silu", "mish", "elu", "celu", "selu", "hard_silu", "exponential",
    "sigmoid", "hard_sigmoid", "sparse_sigmoid",
)  # fmt: skip
FIXED_POINTS = {"sigmoid": 64.0, "hard_sigmoid": 64.0, "sparse_sigmoid": 8.0}
# From 2⁻¹⁰ to 2¹⁰.
WITHOUT = ("hard_shrink", "log_sigmoid", "softplus", "sparse_plus", "squareplus")
LARGEST = float(np.finfo("float32").max)
CONVOLUTION = "delta-orthogonal"


def wanted(quick: bool) -> dict[str, float]:
    """Name the results, with the seconds that each is expected to take on two cores."""
    if quick:
        return {"tanh": 8.0, CONVOLUTION: 5.0}
    return {**dict.fromkeys(ACTIVATIONS, 25.0), CONVOLUTION: 5.0}


def measure(name: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Measure one activation, or the convolution."""
    if name == CONVOLUTION:
        return {"error": max(_convolution(seeds, place) for place in range(1 if quick else SEEDS))}
    count = 2 if quick else SEEDS
    runs = {
        str(width): [_through(name, width, [seeds, place], seeds + place) for place in range(count)]
        for width in (WIDTH, NARROW)
    }
    print(f"{name}: {runs[str(WIDTH)][0]}", file=sys.stderr, flush=True)
    return {"runs": runs}


def _slopes(name: str) -> tuple[float, float]:
    """Return dq'/dq at the fixed point and 10 % above, by differences of second moments."""
    from gradstab.initializers.gains import elementwise, second_moment

    function, fixed_point = elementwise(name), FIXED_POINTS.get(name, 1.0)
    step = 1e-4 * fixed_point
    weight_variance = critical_point(name, fixed_point).weight_variance

    def at(q: float) -> float:
        moments = [second_moment(function, q + sign * step) for sign in (1, -1)]
        return weight_variance * (moments[0] - moments[1]) / (2 * step)

    return at(fixed_point), at(1.1 * fixed_point)


def _through(name: str, width: int, draw_seed: list[int], seed: int) -> tuple[float, float]:
    """Return the ratios of the variances, forward and backward."""
    generator = keras.random.SeedGenerator(seed % 2**31)
    initializer = CriticalNormal(name, FIXED_POINTS.get(name, 1.0), seed=generator)
    biases = initializer.bias_initializer(seed=generator)
    draw = np.random.default_rng(draw_seed)
    forward, backward = over_depth(name, width, draw, initializer, biases)
    ratios = forward[-1] / forward[0], backward[0] / backward[-1]
    return tuple(each if math.isfinite(each) else LARGEST for each in ratios)


def over_depth(
    name: str, width: int, draw: np.random.Generator, initializer: Any, biases: Any
) -> tuple[list[float], list[float]]:
    """Return the variance of each layer's pre-activations, and its gradient's second moment."""
    function = keras.activations.get(name)
    fixed_point = FIXED_POINTS.get(name, 1.0)
    before = math.sqrt(fixed_point) * draw.normal(size=(BATCH, width))
    x = function(keras.ops.convert_to_tensor(before, "float32"))
    kernels, pre_activations = [], []
    for _ in range(DEPTH):
        kernels.append(initializer((width, width)))
        x = keras.ops.matmul(x, kernels[-1]) + biases((width,))
        pre_activations.append(x)
        x = function(x)
    gradient = keras.ops.convert_to_tensor(draw.normal(size=(BATCH, width)), "float32")
    backward = [float(keras.ops.mean(keras.ops.square(gradient)))]
    for place in reversed(range(1, DEPTH)):
        gradient = keras.ops.matmul(gradient, keras.ops.transpose(kernels[place]))
        gradient = gradient * _derivative(function, pre_activations[place - 1])
        backward.append(float(keras.ops.mean(keras.ops.square(gradient))))
    return [float(keras.ops.var(each)) for each in pre_activations], backward[::-1]


def _derivative(function: Any, x: Any) -> Any:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x)


def _convolution(seeds: int, place: int) -> float:
    """Return the relative error of the norm after a circular convolution, by FFT in NumPy."""
    draw = np.random.default_rng([seeds, place])
    kernel = keras.ops.convert_to_numpy(DeltaOrthogonal(seed=place)((3, 3, 32, 48)))
    x = draw.normal(size=(8, 8, 32))
    padded = np.zeros((8, 8, 32, 48))
    padded[:3, :3] = kernel
    spectrum = np.einsum(
        "hwi,hwio->hwo", np.fft.fft2(x, axes=(0, 1)), np.fft.fft2(padded, axes=(0, 1))
    )
    y = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return float(abs(np.linalg.norm(y) / np.linalg.norm(x) - 1))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the ratios of each activation, and what is asked."""
    lines = [
        "| activation | q* | slope dq'/dq at q*, and 1.1 q* | forward | backward "
        "| deviation of ln q, width 1024 and 256 | within a factor of 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == CONVOLUTION:
            continue
        wide, narrow = (np.array(result["runs"][str(width)]) for width in (WIDTH, NARROW))
        forward, backward = np.median(wide, axis=0)
        with np.errstate(all="ignore"):
            spreads = [float(np.std(np.log(each[:, 0]))) for each in (wide, narrow)]
        inside = all(0.5 <= each <= 2 for each in (forward, backward))
        slopes = _slopes(name)
        can = max(slopes) <= 1 + 1e-6
        verdict = "holds" if inside else "FAILS" if can else "no, as theory says"
        lines.append(
            f"| {name} | {FIXED_POINTS.get(name, 1.0):g} | {slopes[0]:.4f}, {slopes[1]:.4f} | "
            f"{forward:.3g} | {backward:.3g} | {spreads[0]:.2g}, {spreads[1]:.2g} | {verdict} |"
        )
    if len(lines) > 2:
        lines.append(f"\nWithout a critical point from 2⁻¹⁰ to 2¹⁰: {', '.join(WITHOUT)}.")
    if CONVOLUTION in results:
        error = results[CONVOLUTION]["error"]
        lines.append(
            f"\nDelta-orthogonal circular convolution: the norm is kept to {error:.1e}; "
            f"floor 1e-5: {'holds' if error < 1e-5 else 'FAILS'}"
        )
    return "\n".join(lines)
