"""Residual connections whose branch is scaled, so that a deep net starts near the identity."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Final, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab.layers._wrapped import as_layer, build_layer, call_layer, output_shape

_PROJECTION: Final = "projection"
_CONVOLUTIONS: Final = {3: "Conv1D", 4: "Conv2D", 5: "Conv3D"}


@final
@register
class ScaledResidual(keras.layers.Layer):
    r"""Adds a branch to its input, times a trainable scalar: ReZero, SkipInit and Fixup.

    Use it in deep residual nets without normalization. In a plain sum each branch adds its variance
    to the signal's, which grows exponentially with depth; with the branch silenced at first, the
    net starts as the identity however deep it is, and each branch comes in as it learns.

    $$y = \phi\big(\text{shortcut}(x) + \alpha \cdot \text{branch}(x)\big)$$

    | | arguments | what else it takes |
    |---|---|---|
    | ReZero, SkipInit | the defaults: $\alpha = 0$ | nothing: the branch has its usual initializers and no normalization |
    | SkipInit, second form | `alpha_initializer=num_branches ** -0.5` | nothing |
    | Fixup | `alpha_initializer=1.0, scalar_biases=True` | `gradstab.initializers.fixup(model)` once it is built, or `fixup_initializers` in the branch, whose layers need no bias of their own |

    With `scalar_biases` a trainable scalar, 0 at first, is added before each layer of the branch and
    one after it: $y = \phi(\text{shortcut}(x) + \alpha \cdot f_m(\ldots f_1(x + b_1) \ldots + b_m) +
    b_{m+1})$.

    The scalars and the sum are computed in float32 where the layer computes in half precision: the
    gradient of $\alpha$ is a sum over all entries of the branch.

    Args:
        branch: A layer, a `Sequential` or any model with one input, or a list of layers. `None`:
            the layer is called on a list, `[shortcut, branch]`.
        shortcut: What is applied to the input on the other way: `None` for nothing, a layer or list
            of layers, or `"projection"`: where the branch changes the shape, a linear map of the
            channels (a 1×1 convolution with the stride that is needed), and nothing elsewhere.
        activation: A name or function for $\phi$.
        alpha_initializer: First value of $\alpha$: a float or an initializer.
        alpha_regularizer: Penalty on $\alpha$.
        alpha_constraint: Constraint on $\alpha$.
        scalar_biases: Whether to add Fixup's scalar biases.
        **kwargs: As for every Keras layer: `name`, `dtype`, `trainable`.

    Raises:
        TypeError: If branch or shortcut are not layers.
        ValueError: If the shapes of shortcut and branch differ.

    Example:
        >>> import keras, numpy as np
        >>> from gradstab.layers import ScaledResidual
        >>> block = ScaledResidual([keras.layers.Dense(8, "relu"), keras.layers.Dense(4)])
        >>> x = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
        >>> block(x).numpy(), float(block.alpha.numpy())
        (array([[1., 2., 3., 4.]], dtype=float32), 0.0)
        >>> inputs = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(6, 3, strides=2, padding="same")(inputs)
        >>> ScaledResidual(shortcut="projection")([inputs, y]).shape
        (None, 4, 4, 6)

    References:
        - Bachlechner, Majumder, Mao, Cottrell and McAuley, 2020, ReZero is all you need: fast
          convergence at large depth.
        - De and Smith, 2020, Batch normalization biases residual blocks towards the identity
          function in deep networks (SkipInit).
        - Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without
          normalization.
    """  # noqa: E501  a table row can't be broken

    def __init__(
        self,
        branch: Any = None,
        shortcut: Any = None,
        activation: Any = None,
        alpha_initializer: Any = 0.0,
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        scalar_biases: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.branch = None if branch is None else as_layer("branch", branch)
        self.shortcut = shortcut
        if shortcut is not None and not isinstance(shortcut, str):
            self.shortcut = as_layer("shortcut", shortcut)
        elif shortcut not in (None, _PROJECTION):
            raise ValueError(
                f'`shortcut` must be a layer, a list of layers, "projection" or None. Received: '
                f"shortcut={shortcut!r}"
            )
        self.activation = keras.activations.get(activation)
        if isinstance(alpha_initializer, numbers.Real):
            alpha_initializer = keras.initializers.Constant(float(alpha_initializer))
        self.alpha_initializer = keras.initializers.get(alpha_initializer)
        self.alpha_regularizer = keras.regularizers.get(alpha_regularizer)
        self.alpha_constraint = keras.constraints.get(alpha_constraint)
        self.scalar_biases = bool(scalar_biases)
        self.supports_masking = True
        self._projection: Any = None

    def build(self, input_shape: Any) -> None:
        """Build branch and shortcut, and make the scalars."""
        shape, branch_shape = self._split(input_shape)
        for layer in self._branch_layers():
            build_layer(layer, branch_shape)
            branch_shape = output_shape(layer, branch_shape)
        shortcut_shape = shape
        if isinstance(self.shortcut, keras.layers.Layer):
            build_layer(self.shortcut, shape)
            shortcut_shape = output_shape(self.shortcut, shape)
        elif self.shortcut == _PROJECTION and not _fits(shape, branch_shape):
            self._projection = _projection(shape, branch_shape, self.dtype_policy)
            build_layer(self._projection, shape)
            shortcut_shape = output_shape(self._projection, shape)
        _check_fit(shortcut_shape, branch_shape)
        self.alpha = self.add_weight(
            name="alpha",
            shape=(),
            initializer=self.alpha_initializer,
            regularizer=self.alpha_regularizer,
            constraint=self.alpha_constraint,
            autocast=False,
        )
        count = len(self._branch_layers()) + 1 if self.scalar_biases else 0
        self.biases = [
            self.add_weight(name=f"bias_{place}", shape=(), initializer="zeros", autocast=False)
            for place in range(count)
        ]
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return `activation(shortcut + alpha · branch)`."""
        x, y = self._split(inputs)
        x_mask, y_mask = self._split(mask)
        for place, layer in enumerate(self._branch_layers()):
            if self.scalar_biases:
                y = ops.add(y, ops.cast(self.biases[place], y.dtype))
            before = y
            y = call_layer(layer, y, training, y_mask)
            y_mask = layer.compute_mask(before, y_mask) if layer.supports_masking else None
        way = self._way()
        x = x if way is None else call_layer(way, x, training, x_mask)
        wide = keras.backend.result_type(self.compute_dtype, "float32")
        result = ops.add(
            ops.cast(x, wide), ops.multiply(ops.cast(self.alpha, wide), ops.cast(y, wide))
        )
        if self.scalar_biases:
            result = ops.add(result, ops.cast(self.biases[-1], wide))
        result = ops.cast(result, self.compute_dtype)
        return result if self.activation is None else self.activation(result)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape of the sum."""
        _, shape = self._split(input_shape)
        for layer in self._branch_layers():
            shape = output_shape(layer, shape)
        return tuple(shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Return the mask of the shortcut, or that of the branch where only it has one."""
        x = self._split(inputs)[0]
        x_mask, y_mask = self._split(mask)
        way = self._way()
        if way is not None:
            x_mask = way.compute_mask(x, x_mask) if way.supports_masking else None
        return y_mask if self.branch is None and x_mask is None else x_mask

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer, its layers included."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "branch": None if self.branch is None else serialize(self.branch),
            "shortcut": (
                serialize(self.shortcut)
                if isinstance(self.shortcut, keras.layers.Layer)
                else self.shortcut
            ),
            "activation": keras.activations.serialize(self.activation),
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer),
            "alpha_regularizer": keras.regularizers.serialize(self.alpha_regularizer),
            "alpha_constraint": keras.constraints.serialize(self.alpha_constraint),
            "scalar_biases": self.scalar_biases,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaledResidual:
        """Rebuild the layer and those in it."""
        config = dict(config)
        for name in ("branch", "shortcut"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)

    def _way(self) -> Any:
        return self._projection if isinstance(self.shortcut, str) else self.shortcut

    def _branch_layers(self) -> list[Any]:
        if self.branch is None:
            return []
        if self.scalar_biases and isinstance(self.branch, keras.Sequential):
            return list(self.branch.layers)
        return [self.branch]

    def _split(self, value: Any) -> tuple[Any, Any]:
        """Return what goes the one way and what goes the other, of inputs, shapes or masks."""
        if self.branch is not None or value is None:
            return value, value
        if not isinstance(value, list | tuple) or len(value) != 2 or isinstance(value[1], int):
            raise ValueError(
                f"{self.name!r} has no `branch` and must be called on a list, [shortcut, branch]. "
                f"Received: {value!r}"
            )
        return value[0], value[1]


def _fits(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def _check_fit(shortcut: Sequence[Any], branch: Sequence[Any]) -> None:
    if not _fits(shortcut, branch):
        raise ValueError(
            "The branch must have the shape of the shortcut. Received: shortcut of shape "
            f"{tuple(shortcut)}, branch of shape {tuple(branch)}. Give a layer as `shortcut` that "
            'changes the shape likewise, or shortcut="projection"'
        )


def _projection(shape: Sequence[Any], target: Sequence[Any], policy: Any) -> Any:
    """Return a linear layer without bias that makes one shape the other."""
    places, targets, rank = shape[1:-1], target[1:-1], len(shape)
    arguments = {"use_bias": False, "dtype": policy, "name": _PROJECTION}
    if len(target) == rank and _fits(places, targets):
        return keras.layers.Dense(target[-1], **arguments)
    strides = [
        -(-size // out) if size is not None and out else 0
        for size, out in zip(places, targets, strict=False)
    ]
    reached = [
        -(-size // stride) if stride else None
        for size, stride in zip(places, strides, strict=False)
    ]
    if len(target) != rank or rank not in _CONVOLUTIONS or reached != list(targets):
        raise ValueError(
            f"A projection can't make shape {tuple(target)} of {tuple(shape)}. Give a layer as "
            "`shortcut` that does"
        )
    convolution = getattr(keras.layers, _CONVOLUTIONS[rank])
    return convolution(
        target[-1], 1, strides=tuple(strides), data_format="channels_last", **arguments
    )
