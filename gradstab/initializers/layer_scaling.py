"""Scales one layer to unit variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import keras
import numpy as np
from keras import ops

from gradstab.keras_hooks.layer_kernels import kernel_variables
from gradstab.keras_hooks.substitute import replaced_untracked

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

WHOLE: Final = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
_CELLS: Final = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)


@final
@dataclasses.dataclass(frozen=True)
class LayerScale:
    """The effect of `lsuv` on one layer.

    Attributes:
        layer: Path of the layer.
        mean_before: Mean of its pre-activations on the batch, with the weights that the model had.
        variance_before: Their variance, over the batch and all units.
        mean_after: Final mean; with `center` that of every unit is 0.
        variance_after: Final variance; with `center`, around each unit's mean.
        rounds: Number of rescalings of the kernel.
    """

    layer: str
    mean_before: float
    variance_before: float
    mean_after: float
    variance_after: float
    rounds: int


@dataclasses.dataclass(frozen=True)
class Rule:
    """What `lsuv` was asked for; the fields are its arguments of the same names."""

    center: bool
    tolerance: float
    max_rounds: int
    orthonormal: bool


def kind_of(layer: Any) -> str | None:
    """Return how a layer is scaled: `"whole"`, `"recurrent"`, or not at all."""
    if not layer.built or not layer.trainable:
        return None
    if isinstance(layer, WHOLE):
        return "whole" if _scaled_kernel(layer).trainable else None
    if isinstance(layer, keras.layers.RNN) and isinstance(getattr(layer, "cell", None), _CELLS):
        return "recurrent"
    return None


def pre_activations_of(
    layer: Any, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Array:
    """Return the pre-activations of a layer; of a recurrent one, what its inputs add to the state.

    Args:
        layer: A layer of some kind that is scaled.
        call: Its `call`.
        args: Its arguments.
        kwargs: Those by name.
    """
    if kind_of(layer) == "recurrent":
        sequence = ops.cast(args[0] if args else kwargs["sequences"], "float32")
        result = ops.matmul(sequence, ops.cast(layer.cell.kernel, "float32"))
        if layer.cell.use_bias:
            bias = ops.cast(layer.cell.bias, "float32")
            # GRU keeps a bias of its input beside one of its state.
            result = result + (bias if len(bias.shape) == 1 else bias[0])
    else:
        with replaced_untracked(layer, "activation", keras.activations.linear):
            result = call(*args, **kwargs)
    return np.asarray(ops.convert_to_numpy(ops.cast(result, "float32")), "float64")


def scale(
    layer: Any, pre_activations: Call, found: tuple[float, float], rule: Rule, draw: Any
) -> LayerScale:
    """Bring a layer to unit variance, and say how it went.

    Args:
        layer: A layer of some kind that is scaled.
        pre_activations: Returns its pre-activations on the batch, with its weights as they are.
        found: Their mean and variance with the weights that the model had.
        rule: What to do.
        draw: A NumPy generator, for orthonormal kernels.

    Raises:
        ValueError: If the pre-activations are all equal or not finite.
    """
    owner = layer.cell if kind_of(layer) == "recurrent" else layer
    kernel = _scaled_kernel(owner)
    if rule.orthonormal:
        _make_orthonormal(layer, owner, draw)
    rounds = 0
    while True:
        values = pre_activations()
        centred = values
        if rule.center and _center(layer, owner, values):
            values = pre_activations()
            centred = values - values.mean(axis=_batch_axes(layer, values), keepdims=True)
        variance = float(centred.var())
        if not np.isfinite(variance) or variance <= 0.0:
            raise ValueError(
                "`x` must give pre-activations that differ and are finite. Received: variance "
                f"{variance:g} at `{layer.path or layer.name}`. Look at the batch (is it scaled, "
                "are there NaNs?) and at the layers before; the model keeps the weights it had"
            )
        close_enough = rule.tolerance if rounds else rule.tolerance / 100
        if abs(variance - 1.0) < close_enough or rounds == rule.max_rounds:
            break
        kernel.assign(ops.cast(ops.cast(kernel, "float32") / variance**0.5, kernel.dtype))
        rounds += 1
    mean, before = found
    return LayerScale(
        layer.path or layer.name, mean, before, float(values.mean()), variance, rounds
    )


def _scaled_kernel(owner: Any) -> Any:
    """Return the variable that is rescaled."""
    *_, last = kernel_variables(owner).values()
    return last


def _batch_axes(layer: Any, values: Array) -> tuple[int, ...]:
    """Return the axes over which a unit has one bias: all but that of the units."""
    return tuple(axis for axis in range(values.ndim) if axis not in _unit_axes(layer, values))


def _unit_axes(layer: Any, values: Array) -> tuple[int, ...]:
    bias = getattr(layer, "bias", None)
    if isinstance(layer, keras.layers.EinsumDense) and bias is not None:
        # The bias broadcasts against the output from the right.
        offset = values.ndim - len(bias.shape)
        return tuple(offset + axis for axis, size in enumerate(bias.shape) if size > 1)
    if getattr(layer, "data_format", None) == "channels_first" and values.ndim > 2:
        return (1,)
    return (values.ndim - 1,)


def _center(layer: Any, owner: Any, values: Array) -> bool:
    """Take each unit's mean from its bias; return whether there is one."""
    bias = getattr(owner, "bias", None)
    if bias is None:
        return False
    means = values.mean(axis=_batch_axes(layer, values))
    old = np.array(ops.convert_to_numpy(ops.cast(bias, "float32")))
    if old.ndim == 2 and owner is not layer:
        new = old.copy()
        new[0] -= means
    else:
        new = old - means.reshape(old.shape)
    bias.assign(ops.cast(new, bias.dtype))
    return True


def _make_orthonormal(layer: Any, owner: Any, draw: Any) -> None:
    """Replace a layer's kernels by orthonormal ones, and its recurrent kernel gate by gate."""
    if kind_of(layer) == "recurrent":
        units = owner.units
        recurrent = owner.recurrent_kernel
        gates = [_orthonormal((units, units), draw) for _ in range(recurrent.shape[-1] // units)]
        recurrent.assign(ops.cast(np.concatenate(gates, axis=1), recurrent.dtype))
    for name, kernel in kernel_variables(owner).items():
        shape = tuple(kernel.shape)
        kernel.assign(ops.cast(_orthonormal(_as_matrix(layer, name, shape), draw).reshape(shape),
                               kernel.dtype))  # fmt: skip


def _as_matrix(layer: Any, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a kernel as (inputs of a unit, units), or with the two exchanged."""
    last = shape[-1]
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    if name == "depthwise_kernel" or isinstance(layer, depthwise):
        return int(np.prod(shape[:-2])), int(np.prod(shape[-2:]))
    if isinstance(layer, keras.layers.EinsumDense):
        operands, output = layer.equation.replace("...", "").split("->")
        letters = operands.split(",")[1]
        # In Keras' own uses the axes that are summed over come first.
        summed = [size for letter, size in zip(letters, shape, strict=True) if letter not in output]
        count = int(np.prod(summed))
        return count, int(np.prod(shape)) // count
    return int(np.prod(shape)) // last, last


def _orthonormal(shape: tuple[int, int], draw: Any) -> Array:
    rows, columns = shape
    q, r = np.linalg.qr(draw.normal(size=(max(shape), min(shape))))
    q = q * np.sign(np.diag(r))
    result: Array = (q if rows >= columns else q.T).astype("float32")
    return result
