"""Initial weights from a batch of data: layer by layer to unit variance."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, final

import keras
import numpy as np
from keras import ops

from gradstab._layers import children, layers_in_order
from gradstab._validation import check_float, check_int
from gradstab.functional._backend import is_symbolic

Array = np.ndarray[Any, Any]

_KERNELS: Final = ("kernel", "_kernel", "depthwise_kernel", "pointwise_kernel")
_DENSE: Final = (
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
    """What `lsuv` found at a layer, and what it made of it.

    Attributes:
        layer: Path of the layer.
        mean_before: Mean of its pre-activations on the batch, with the weights that the model had.
        variance_before: Their variance, over the batch and all units.
        mean_after: Mean in the end; with `center` that of every unit is 0.
        variance_after: Variance in the end, of what is left when units are centred if they are.
        rounds: How often the kernel was rescaled.
    """

    layer: str
    mean_before: float
    variance_before: float
    mean_after: float
    variance_after: float
    rounds: int


@final
class Report(Sequence[LayerScale]):
    """What `lsuv` did, an entry for each layer in the order of the forward pass; prints as a table.

    Attributes:
        left_out: Paths of the layers with weights that it left as they were, with the reason.
    """

    def __init__(self, layers: Sequence[LayerScale], left_out: dict[str, str]) -> None:
        self._layers = tuple(layers)
        self.left_out = left_out

    def __getitem__(self, place: Any) -> Any:
        return self._layers[place]

    def __len__(self) -> int:
        return len(self._layers)

    def __str__(self) -> str:
        width = max([len(each.layer) for each in self._layers] + [5])
        lines = [f"{'layer':{width}}  {'variance before':>15}  {'after':>9}  {'rounds':>6}"]
        lines += [
            f"{each.layer:{width}}  {each.variance_before:15.4g}  {each.variance_after:9.4g}  "
            f"{each.rounds:6}"
            for each in self._layers
        ]
        lines += [f"{path}: left as it was, {reason}" for path, reason in self.left_out.items()]
        return "\n".join(lines)


def lsuv(
    model: keras.Model,
    x: Any,
    center: bool = False,
    *,
    tolerance: float = 0.1,
    max_rounds: int = 10,
    orthonormal: bool = True,
    seed: int | None = None,
) -> Report:
    r"""Rescale a model's kernels, layer by layer, until pre-activations have unit variance on data.

    Kernels begin orthonormal; then, in the order of the forward pass,

    $$W \leftarrow W / \sqrt{\mathrm{Var}(y)} \quad\text{until}\quad
    |\mathrm{Var}(y) - 1| < \mathrm{tolerance}$$

    with y the layer's pre-activations on the batch. With `center`, the mean of every unit is taken
    from its bias first, and the variance is that which is left: without it deep nets of sigmoids do
    not train, since their inputs all lie on one side. Use it before training, where no formula for
    the initial scale fits: unusual activations, residual graphs, pretrained parts beside new ones.

    It scales Dense, EinsumDense, all convolutions (the pointwise kernel of separable ones), the
    projections of MultiHeadAttention, and of recurrent layers the input kernel, so that what the
    input adds to the state has unit variance; recurrent kernels become orthogonal, gate by gate.
    The forward pass is that of inference, run once before and once during the change: nothing is
    dropped, and whatever else a pass may write, such as statistics of BatchNormalization or states
    of recurrent layers, is put back. Layers that are frozen (the kernels under LoRA are), that are
    not reached, or whose kind is another keep their weights; the report says so. A layer that is
    used several times is scaled at its first use.

    Args:
        model: A Keras model, functional, sequential or subclassed; it need not be compiled.
        x: One batch of inputs, as the model takes them; a few hundred samples. All of it goes
            through at once.
        center: Whether to bring the mean of each unit's pre-activations to 0 by its bias. Layers
            without a bias are scaled only.
        tolerance: How far from 1 the variance may stay, a positive float.
        max_rounds: Rescalings of one layer at most. One is enough unless precision is low.
        orthonormal: Whether kernels are replaced by orthonormal ones before; else those that are
            there are rescaled.
        seed: An integer for the orthonormal kernels, or `None`.

    Returns:
        A `Report`: each layer before and after.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, if no layer can be scaled, or if pre-activations of
            a layer are all equal or not finite. The model then has the weights that it had.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.initializers import lsuv
        >>> model = keras.Sequential(
        ...     [keras.Input((8,))] + [keras.layers.Dense(8, "sigmoid") for _ in range(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> [round(each.variance_after, 2) for each in lsuv(model, x, center=True, seed=0)]
        [1.0, 1.0, 1.0]

    Reference: Mishkin and Matas, 2016, All you need is a good init. Centring is ours.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    check_float("tolerance", tolerance)
    check_int("max_rounds", max_rounds)
    rule = _Rule(bool(center), tolerance, max_rounds, orthonormal)
    x = _batch(x)
    if not model.built:
        model(x, training=False)
    layers = [layer for layer in layers_in_order(model) if _kind(layer) is not None]
    weights = [variable for layer in layers for variable in layer.weights]
    state = _state(model, weights)
    draw = np.random.default_rng(seed)
    with _kept(weights, on_error_only=True):
        with _kept(state):
            found = _forward(model, x, layers, _measure)
        with _kept(state):
            scaled = _forward(
                model,
                x,
                layers,
                lambda layer, call: _scale(layer, call, found[id(layer)], rule, draw),
            )
        if not scaled:
            raise ValueError(
                "`model` must have a layer that lsuv can scale: Dense, EinsumDense, a convolution, "
                f"attention or a recurrent layer, not frozen. Received: model={model.name!r}"
            )
    return Report(list(scaled.values()), _left_out(model, scaled))


@dataclasses.dataclass(frozen=True)
class _Rule:
    center: bool
    tolerance: float
    max_rounds: int
    orthonormal: bool


def _kind(layer: Any) -> str | None:
    """Return how a layer is scaled: `"whole"`, `"recurrent"`, or not at all."""
    if not layer.built or not layer.trainable:
        return None
    if isinstance(layer, _DENSE):
        return "whole" if _scaled_kernel(layer).trainable else None
    if isinstance(layer, keras.layers.RNN) and isinstance(getattr(layer, "cell", None), _CELLS):
        return "recurrent"
    return None


def _batch(x: Any) -> Any:
    try:
        return keras.tree.map_structure(ops.convert_to_tensor, x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`x` must be one batch of inputs: an array, or a list, tuple or dict of arrays, as the "
            f"model takes them. Received: x of type {type(x).__name__}. From a data set, take "
            "`next(iter(dataset))[0]`"
        ) from error


def _state(model: Any, weights: Sequence[Any]) -> list[Any]:
    """Return what a forward pass may write, beside the weights that are to be changed."""
    changed = {id(variable) for variable in weights}
    state = [each for each in model.non_trainable_variables if id(each) not in changed]
    for layer in layers_in_order(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:  # Not among its variables.
            state += [each for each in keras.tree.flatten(layer.states) if each is not None]
    return state


@contextlib.contextmanager
def _kept(variables: Sequence[Any], on_error_only: bool = False) -> Iterator[None]:
    """Give variables the values back that they had before; with a flag, only after an error."""
    before = [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]
    done = False
    try:
        yield
        done = True
    finally:
        if not (done and on_error_only):
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def _left_out(model: Any, scaled: dict[int, LayerScale]) -> dict[str, str]:
    """Name the layers with weights to multiply by that were not scaled."""
    within = {id(child) for layer in layers_in_order(model) if id(layer) in scaled
              for child in layers_in_order(layer)}  # fmt: skip
    reasons = {}
    for layer in layers_in_order(model):
        if id(layer) in within or not (_has_matrix(layer) or _shares_kernel(layer)):
            continue
        reason = "a layer of another kind"
        if not layer.trainable or (isinstance(layer, _DENSE) and _kind(layer) is None):
            reason = "since it is frozen"
        elif _kind(layer) is not None:
            reason = "since no pass outside of a loop reaches it"
        reasons[layer.path or layer.name] = reason
    return reasons


def _has_matrix(layer: Any) -> bool:
    """Whether a layer has weights of its own with more than one axis."""
    below = {id(each) for child in children(layer) for each in child.weights}
    return any(len(each.shape) > 1 for each in layer.weights if id(each) not in below)


def _shares_kernel(layer: Any) -> bool:
    """Whether a layer shows another's kernel as its own, as `TiedDense` does."""
    return layer.built and isinstance(getattr(layer, "kernel", None), keras.Variable)


# The forward pass -------------------------------------------------------------------------------

Call = Callable[[], Any]


def _forward(
    model: Any, x: Any, layers: Sequence[Any], visit: Callable[[Any, Call], Any]
) -> dict[int, Any]:
    """Run the model, and call `visit` at the first use of each layer, before the layer runs.

    Args:
        model: The model.
        x: Its inputs.
        layers: The layers to stop at.
        visit: Gets a layer, and a function that returns its pre-activations on what it was given.

    Returns:
        What `visit` returned, by the `id` of the layer, in the order of the visits.
    """
    results: dict[int, Any] = {}
    failures: list[Exception] = []

    def stopping(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def stop_and_call(*args: Any, **kwargs: Any) -> Any:
            inside_a_loop = any(map(is_symbolic, keras.tree.flatten((args, kwargs))))
            if id(layer) not in results and not inside_a_loop:
                look = functools.partial(_pre_activations, layer, call, args, kwargs)
                try:
                    results[id(layer)] = visit(layer, look)
                except Exception as error:
                    failures.append(error)
                    raise
            return call(*args, **kwargs)

        return stop_and_call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_replaced(layer, "call", stopping(layer, layer.call)))
        try:
            model(x, training=False)
        except Exception:
            if failures:  # Keras adds to the message what it was doing, at every layer above.
                raise failures[0] from None
            raise
    return results


def _pre_activations(
    layer: Any, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Array:
    if _kind(layer) == "recurrent":
        sequence = ops.cast(args[0] if args else kwargs["sequences"], "float32")
        result = ops.matmul(sequence, ops.cast(layer.cell.kernel, "float32"))
        if layer.cell.use_bias:
            bias = ops.cast(layer.cell.bias, "float32")
            # GRU keeps a bias of its input beside one of its state.
            result = result + (bias if len(bias.shape) == 1 else bias[0])
    else:
        with _replaced(layer, "activation", keras.activations.linear):
            result = call(*args, **kwargs)
    return np.asarray(ops.convert_to_numpy(ops.cast(result, "float32")), "float64")


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value, past what tracks the owner's attributes."""
    missing = object()
    before = vars(owner).get(name, missing)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before


def _measure(layer: Any, pre_activations: Call) -> tuple[float, float]:
    values = pre_activations()
    with np.errstate(all="ignore"):
        return float(values.mean()), float(values.var())


# A layer ----------------------------------------------------------------------------------------


def _scale(
    layer: Any, pre_activations: Call, found: tuple[float, float], rule: _Rule, draw: Any
) -> LayerScale:
    owner = layer.cell if _kind(layer) == "recurrent" else layer
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
    for name in ("pointwise_kernel", "_kernel", "kernel", "depthwise_kernel"):
        variable = vars(owner).get(name)
        if isinstance(variable, keras.Variable):
            return variable
    return owner.kernel


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
    if _kind(layer) == "recurrent":
        units = owner.units
        recurrent = owner.recurrent_kernel
        gates = [_orthonormal((units, units), draw) for _ in range(recurrent.shape[-1] // units)]
        recurrent.assign(ops.cast(np.concatenate(gates, axis=1), recurrent.dtype))
    for name in _KERNELS:
        kernel = vars(owner).get(name)
        if not isinstance(kernel, keras.Variable):
            continue
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
