"""Initial weights from a batch of data: layer by layer to unit variance."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import keras
import numpy as np
from keras import ops

from gradstab._layers import children, layers_in_order
from gradstab._validation import check_float, check_int
from gradstab.functional._backend import is_symbolic
from gradstab.initializers.layer_scaling import (
    WHOLE,
    Call,
    LayerScale,
    Rule,
    kind_of,
    pre_activations_of,
    scale,
)
from gradstab.keras_hooks.substitute import replaced_method


@final
class LsuvReport(Sequence[LayerScale]):
    """Result of `lsuv`, one entry per layer in the order of the forward pass; prints as a table.

    Attributes:
        left_out: Paths of the layers with weights that were not changed, with the reason.
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
) -> LsuvReport:
    r"""Rescale a model's kernels, layer by layer, until pre-activations have unit variance on data.

    Kernels begin orthonormal; then, in the order of the forward pass,

    $$W \leftarrow W / \sqrt{\mathrm{Var}(y)} \quad\text{until}\quad
    |\mathrm{Var}(y) - 1| < \mathrm{tolerance}$$

    with y the layer's pre-activations on the batch. With `center`, the mean of every unit is first
    subtracted through its bias; deep nets of sigmoids need this, since their inputs are all
    positive. Call it before training if no formula for the initial scale fits: for unusual
    activations, residual graphs, or pretrained parts next to new ones.

    It scales Dense, EinsumDense, all convolutions (the pointwise kernel of separable ones), the
    projections of MultiHeadAttention, and of recurrent layers the input kernel, so that what the
    input adds to the state has unit variance; recurrent kernels become orthogonal, gate by gate.
    The forward pass is that of inference, run once before and once during the change. Other state
    that it writes, such as statistics of BatchNormalization or states of recurrent layers, is
    restored. Layers that are frozen (kernels under LoRA are), not reached, or of another kind keep
    their weights, and the report lists them. A layer that is used several times is scaled at its
    first use.

    Args:
        model: A Keras model, functional, sequential or subclassed; it need not be compiled.
        x: One batch of inputs, as the model takes them; a few hundred samples, passed through at
            once.
        center: Whether to set the mean of each unit's pre-activations to 0 through its bias. Layers
            without a bias are only scaled.
        tolerance: Largest deviation of the variance from 1, a positive float.
        max_rounds: Largest number of rescalings of a layer. One is enough unless precision is low.
        orthonormal: Whether to replace kernels by orthonormal ones first; otherwise the present
            ones are rescaled.
        seed: An integer for the orthonormal kernels, or `None`.

    Returns:
        A `LsuvReport`: each layer before and after.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a number is out of range, if no layer can be scaled, or if pre-activations of
            a layer are all equal or not finite. The model then keeps its weights.

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
    rule = Rule(bool(center), tolerance, max_rounds, orthonormal)
    x = _batch(x)
    if not model.built:
        model(x, training=False)
    layers = [layer for layer in layers_in_order(model) if kind_of(layer) is not None]
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
                lambda layer, call: scale(layer, call, found[id(layer)], rule, draw),
            )
        if not scaled:
            raise ValueError(
                "`model` must have a layer that lsuv can scale: Dense, EinsumDense, a convolution, "
                f"attention or a recurrent layer, not frozen. Received: model={model.name!r}"
            )
    return LsuvReport(list(scaled.values()), _left_out(model, scaled))


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
    put_back = True
    try:
        yield
        put_back = not on_error_only
    finally:
        if put_back:
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
        if not layer.trainable or (isinstance(layer, WHOLE) and kind_of(layer) is None):
            reason = "since it is frozen"
        elif kind_of(layer) is not None:
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
    failures: list[ValueError] = []

    def stopping(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def stop_and_call(*args: Any, **kwargs: Any) -> Any:
            inside_a_loop = any(map(is_symbolic, keras.tree.flatten((args, kwargs))))
            if id(layer) not in results and not inside_a_loop and not failures:
                look = functools.partial(pre_activations_of, layer, call, args, kwargs)
                try:
                    results[id(layer)] = visit(layer, look)
                except ValueError as error:
                    # Raised after the pass: Keras adds what it was doing at every layer above.
                    failures.append(error)
            return call(*args, **kwargs)

        return stop_and_call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_method(layer, "call", stopping(layer, layer.call)))
        model(x, training=False)
    if failures:
        raise failures[0]
    return results


def _measure(layer: Any, pre_activations: Call) -> tuple[float, float]:
    values = pre_activations()
    with np.errstate(all="ignore"):
        return float(values.mean()), float(values.var())
