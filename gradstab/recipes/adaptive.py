"""The three recipes: published settings, with a warm-up."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import keras

from gradstab._validation import check_choice, check_float
from gradstab.optimizers.stabilize import stabilize
from gradstab.recipes.runs import RunLength, rate_of, run_of


@dataclasses.dataclass(frozen=True)
class _Published:
    momentum: float
    epsilon: float
    stairs: tuple[float, float] | None  # factor, and the epochs after which it comes
    clip: float


_RMSPROP: Final = {
    "tieleman_hinton": _Published(0.0, 1e-7, None, 1.0),
    "efficientnet": _Published(0.9, 1e-3, (0.97, 2.4), 1.0),
    "mobilenet_v2": _Published(0.9, 1e-7, (0.98, 1.0), 1.0),
    "inception_v3": _Published(0.0, 1.0, (0.94, 2.0), 2.0),
}
# Stands for the bound that a setting brings along; `None` means not to clip.
_OF_THE_SETTING: Final = "default"


def adagrad(
    peak_learning_rate: float,
    total_steps: int | None = None,
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    warmup_steps: int | None = None,
    decay: str = "cosine",
    clip: float | str | None = 1.0,
    gradient_accumulation_steps: int | None = None,
) -> Any:
    """Adagrad with an initial accumulator of 0.1, as in the original implementations.

    w ← w − η·g/√(a + ε), a the sum of squared gradients, from 0.1, ε 1e-7 inside the root: the rate
    of each weight falls with the gradients that it has received. Made for sparse features. The
    schedule's decay comes on top of that.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included; or give `epochs`.
        epochs: Epochs in the whole run.
        steps_per_epoch: Batches in an epoch, as `fit` counts them.
        num_examples: Examples in an epoch, where `steps_per_epoch` is not known.
        batch_size: Examples in a batch, with `num_examples`.
        warmup_steps: Updates of linear warm-up; 5 % of the run by default.
        decay: How the rate comes down to 0 at the end: `"cosine"` or `"linear"`.
        clip: Bound on the global gradient norm, `"auto"` or `None`, as for `stabilize`.
        gradient_accumulation_steps: Batches whose gradients make one update. All steps but
            `steps_per_epoch` are updates.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, if the length of the run is not told or told twice,
            or if the warm-up does not fit into it.

    Reference: Duchi, Hazan and Singer, 2011, Adaptive subgradient methods for online learning and
    stochastic optimization.

    >>> adagrad(0.01, total_steps=1000, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> Adagrad>
    """
    run = run_of(
        total_steps, epochs, steps_per_epoch, num_examples, batch_size, gradient_accumulation_steps
    )
    rate = rate_of(run, peak_learning_rate, warmup_steps, _twentieth, decay)
    inner = keras.optimizers.Adagrad(rate, initial_accumulator_value=0.1, **_window(run))
    return stabilize(inner, clip=clip)


def rmsprop(
    peak_learning_rate: float,
    total_steps: int | None = None,
    *,
    setting: str = "tieleman_hinton",
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    warmup_steps: int | None = None,
    decay: str = "cosine",
    clip: float | str | None = _OF_THE_SETTING,
    gradient_accumulation_steps: int | None = None,
) -> Any:
    """RMSprop with decay 0.9, and with momentum and ε of a published setting.

    v ← ρ·v + (1 − ρ)·g², from 0, w ← w − η·g/√(v + ε), with momentum in some settings, ε inside the
    root. In Keras v starts at 0 without bias correction, so the first steps are up to 1/√(1 − ρ) =
    3.2 times too long; the warm-up compensates that.

    | `setting` | ρ | momentum | ε | published rate, and its decay | clip |
    |---|---|---|---|---|---|
    | `"tieleman_hinton"` | 0.9 | 0 | 1e-7 | 0.001, none | 1.0 |
    | `"efficientnet"` | 0.9 | 0.9 | 1e-3 | 0.256, ×0.97 every 2.4 epochs | 1.0 |
    | `"mobilenet_v2"` | 0.9 | 0.9 | 1e-7 | 0.045, ×0.98 every epoch | 1.0 |
    | `"inception_v3"` | 0.9 | 0 | 1.0 | 0.045, ×0.94 every 2 epochs | 2.0 |

    The first is RMSprop as proposed, with the rate that Ruder reports for it. The others were used
    for image networks with batch normalization, at batches of one to four thousand images. With an
    ε that large, all weights whose gradients stay below its root (0.03 or 1) have one rate, as with
    SGD. Where no ε was published, it is Keras' own. Only Inception-v3's clip was published.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included; or give `epochs`.
        setting: One of the table.
        epochs: Epochs in the whole run.
        steps_per_epoch: Batches in an epoch, as `fit` counts them.
        num_examples: Examples in an epoch, where `steps_per_epoch` is not known.
        batch_size: Examples in a batch, with `num_examples`.
        warmup_steps: Updates of linear warm-up; 5 % of the run by default.
        decay: How the rate comes down: `"cosine"` or `"linear"` to 0 at the end, or
            `"exponential"` in the steps of a setting that has them, which have to know what an
            epoch is.
        clip: Bound on the global gradient norm, `"auto"` or `None`, as for `stabilize`; by default
            that of the setting.
        gradient_accumulation_steps: Batches whose gradients make one update. All steps but
            `steps_per_epoch` are updates.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, if the length of the run is not told or told twice,
            if the warm-up does not fit into it, or if there is no such setting.

    References:
        - Tieleman and Hinton, 2012, Lecture 6.5: RMSprop.
        - Ruder, 2016, An overview of gradient descent optimization algorithms.
        - Tan and Le, 2019, EfficientNet: rethinking model scaling for convolutional neural
          networks.
        - Sandler et al., 2018, MobileNetV2: inverted residuals and linear bottlenecks.
        - Szegedy et al., 2016, Rethinking the Inception architecture for computer vision.

    >>> rmsprop(1e-3, total_steps=1000, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> RMSprop>
    """
    run = run_of(
        total_steps, epochs, steps_per_epoch, num_examples, batch_size, gradient_accumulation_steps
    )
    published = _RMSPROP[check_choice("setting", setting, _RMSPROP)]
    rate = rate_of(run, peak_learning_rate, warmup_steps, _twentieth, decay, published.stairs)
    inner = keras.optimizers.RMSprop(
        rate, rho=0.9, momentum=published.momentum, epsilon=published.epsilon, **_window(run)
    )
    bound: Any = published.clip if clip == _OF_THE_SETTING else clip
    return stabilize(inner, clip=bound)


def adam(
    peak_learning_rate: float,
    total_steps: int | None = None,
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    warmup_steps: int | None = None,
    decay: str = "cosine",
    beta_2: float = 0.999,
    weight_decay: float | None = None,
    clip: float | str | None = 1.0,
    gradient_accumulation_steps: int | None = None,
) -> Any:
    """Adam with a warm-up of the length that its second moment needs.

    m and v are bias-corrected means of gradients and of their squares, and w ← w − η·m̂·√(1 −
    β₂ᵗ)/(√v + ε), ε 1e-7 outside the root. For about 2/(1 − β₂) steps, v is too noisy to divide by.
    So there are 2000 steps of linear warm-up at β₂ = 0.999, but at most a tenth of the run.

    Args:
        peak_learning_rate: Rate at the end of the warm-up, a positive float.
        total_steps: Updates in the whole run, warm-up included; or give `epochs`.
        epochs: Epochs in the whole run.
        steps_per_epoch: Batches in an epoch, as `fit` counts them.
        num_examples: Examples in an epoch, where `steps_per_epoch` is not known.
        batch_size: Examples in a batch, with `num_examples`.
        warmup_steps: Updates of linear warm-up; 2/(1 − β₂), but at most total_steps/10, by default.
        decay: How the rate comes down to 0 at the end: `"cosine"` or `"linear"`.
        beta_2: Decay of the mean of squared gradients, above 0 and below 1; 0.98 or 0.95 for
            transformers.
        weight_decay: Decoupled weight decay (AdamW), a positive float, or `None`.
        clip: Bound on the global gradient norm, `"auto"` or `None`, as for `stabilize`.
        gradient_accumulation_steps: Batches whose gradients make one update. All steps but
            `steps_per_epoch` are updates.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, if the length of the run is not told or told twice,
            or if the warm-up does not fit into it.

    References:
        - Kingma and Ba, 2015, Adam: a method for stochastic optimization.
        - Ma and Yarats, 2021, On the adequacy of untuned warmup for adaptive optimization.
        - Loshchilov and Hutter, 2019, Decoupled weight decay regularization.

    >>> adam(1e-3, epochs=10, num_examples=60_000, batch_size=128, clip=None)
    <StabilizedOptimizer: SkipNonFinite(max_consecutive=50) -> Adam>
    """
    run = run_of(
        total_steps, epochs, steps_per_epoch, num_examples, batch_size, gradient_accumulation_steps
    )
    beta_2 = check_float("beta_2", beta_2, maximum=1.0)
    if beta_2 == 1.0:
        raise ValueError(
            f"`beta_2` must be a float above 0 and below 1. Received: beta_2={beta_2!r}"
        )
    untuned = math.ceil(round(2 / (1 - beta_2), 6))
    rate = rate_of(
        run, peak_learning_rate, warmup_steps, lambda steps: min(untuned, steps // 10), decay
    )
    arguments = {"beta_2": beta_2, **_window(run)}
    if weight_decay is None:
        return stabilize(keras.optimizers.Adam(rate, **arguments), clip=clip)
    weight_decay = check_float("weight_decay", weight_decay)
    return stabilize(
        keras.optimizers.AdamW(rate, weight_decay=weight_decay, **arguments), clip=clip
    )


def _twentieth(steps: int) -> int:
    return steps // 20


def _window(run: RunLength) -> dict[str, int]:
    """Return the argument with which Keras accumulates, which it refuses to have for one batch."""
    return {"gradient_accumulation_steps": run.window} if run.window > 1 else {}
