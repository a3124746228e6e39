"""A residual block whose branch begins at nothing, or nearly so."""

from __future__ import annotations

import inspect
from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_choice, check_int
from gradstab.functional.depth import fixup_scale

_METHODS = ("rezero", "skipinit", "fixup")
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
)


@final
@register
class ScaledResidual(keras.layers.Layer):
    r"""Adds a branch, times a trainable scalar, to its input: ReZero, SkipInit or Fixup.

    Use it to train residual nets of many blocks without normalization. A sum of L branches has a
    variance that grows with L, or doubles with every block, unless something keeps the branches
    small at first; here it is one scalar for each block:

    $$y = x + \alpha F(x)$$

    - `"rezero"` and `"skipinit"`, two names for one rule: $\alpha$ begins at 0, so that the whole
      net begins as the identity, however deep.
    - `"fixup"`: $\alpha$ begins at 1; instead, the branch's $m$ kernels are made small. All but the
      last are drawn from $N(0, 2 / \mathrm{fan\_in} \cdot L^{-1/(m-1)})$ and the last is 0. A
      scalar bias, 0 at first, is added before each layer with a kernel, before each activation
      layer, and to the scaled branch. (Set the kernel of the layer that makes the logits to zero
      as well.)

    Give the branch when the block is made, or make it yourself and call the block on
    `[shortcut, branch]`, as `keras.layers.Add` is called. x and F(x) have one shape, (batch, ...).

    Args:
        branch: F: a layer, a model, or a list of layers that are called in turn. None if the block
            is called on `[shortcut, branch]`.
        method: `"rezero"`, `"skipinit"` or `"fixup"`.
        num_branches: L, the number of residual branches in the whole net; for Fixup with a branch
            only, where it is needed.
        projection: What brings x to the shape of F(x): a layer; or `"auto"`: where the shapes
            differ, every s-th position and a linear layer on the last axis, which is a strided
            1×1 convolution; or None, where they must not differ.
        alpha_initializer: For the scalar; None for 0 or, with Fixup, 1.
        **kwargs: `name`, `dtype`, `trainable`, as for any layer.

    Fixup sets the `kernel_initializer` of the branch's layers that have one (Dense, Conv,
    EinsumDense), and draws the kernels of those that are built already anew. A functional or
    subclassed model as branch gets no scalar biases inside.

    Raises:
        TypeError: If `branch` or `projection` is no layer, or `num_branches` no integer.
        ValueError: If `method` is unknown, `num_branches` is missing where it is needed, the shapes
            do not fit, or a Fixup branch has no layer with a kernel.

    Example:
        >>> import keras
        >>> from gradstab.layers import ScaledResidual
        >>> def block():
        ...     dense = keras.layers.Dense
        ...     return ScaledResidual([dense(32, activation="relu"), dense(32)], method="rezero")
        >>> model = keras.Sequential([keras.Input((32,)), *(block() for _ in range(20))])
        >>> x = keras.ops.ones((1, 32))
        >>> bool(keras.ops.all(model(x) == x))
        True

    References:
        - Bachlechner and others, 2020, ReZero is all you need: fast convergence at large depth.
        - De and Smith, 2020, Batch normalization biases residual blocks towards the identity
          function in deep networks (SkipInit).
        - Zhang, Dauphin and Ma, 2019, Fixup initialization: residual learning without
          normalization.
    """

    def __init__(
        self,
        branch: Any = None,
        method: str = "rezero",
        num_branches: int | None = None,
        projection: Any = None,
        alpha_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("method", method, _METHODS)
        if num_branches is not None:
            num_branches = check_int("num_branches", num_branches)
        if projection not in (None, "auto") and not isinstance(projection, keras.Layer):
            raise TypeError(
                '`projection` must be None, "auto" or a keras.Layer. Received: '
                f"projection={projection!r}"
            )
        self.branch = _check_branch(branch)
        self.method = method
        self.num_branches = num_branches
        self.projection = projection
        self.alpha_initializer = keras.initializers.get(alpha_initializer)
        self.alpha = None
        self.biases = None
        self.supports_masking = True
        self._linear: Any = None
        self._strides: tuple[int, ...] = ()
        if method == "fixup" and branch is not None:
            self._set_fixup_initializers()

    def build(self, input_shape: Any) -> None:
        """Build branch and projection, and make the scalars."""
        shortcut, branch = self._shapes(input_shape)
        self._build_projection(shortcut, branch)
        begin = "ones" if self.method == "fixup" else "zeros"
        self.alpha = self.add_weight(
            name="alpha", shape=(), initializer=self.alpha_initializer or begin
        )
        if self.method == "fixup":
            number = sum(map(_takes_bias, self._steps())) + 1
            self.biases = self.add_weight(name="biases", shape=(number,), initializer="zeros")

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Return x + α F(x), or shortcut + α branch for inputs `[shortcut, branch]`."""
        if self.branch is None:
            shortcut, outputs = inputs
        else:
            shortcut, outputs = inputs, self._run_branch(inputs, mask)
        if self._linear is not None:
            shortcut = shortcut[(slice(None), *(slice(None, None, s) for s in self._strides))]
            shortcut = self._linear(shortcut)
        elif isinstance(self.projection, keras.Layer):
            shortcut = self.projection(shortcut)
        outputs = ops.multiply(self.alpha, outputs)
        if self.biases is not None:
            outputs = ops.add(outputs, self.biases[-1])
        return ops.add(shortcut, outputs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Return the mask of the shortcut."""
        return previous_mask[0] if isinstance(previous_mask, list | tuple) else previous_mask

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the branch's output shape."""
        if self.branch is None:
            return tuple(input_shape[1])
        shape = input_shape
        for layer in self._steps():
            shape = self._output_shape(layer, shape)
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer, those of the layers inside included."""
        branch = list(self.branch) if isinstance(self.branch, list | tuple) else self.branch
        return {
            **super().get_config(),
            "branch": keras.saving.serialize_keras_object(branch),
            "method": self.method,
            "num_branches": self.num_branches,
            "projection": keras.saving.serialize_keras_object(self.projection),
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer)
            if self.alpha_initializer is not None
            else None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaledResidual:
        """Rebuild the layer and those inside."""
        config = dict(config)
        for name in ("branch", "projection"):
            if config.get(name) is not None and config[name] != "auto":
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return super().from_config(config)

    def _steps(self) -> list[Any]:
        """Return what is called in turn: Fixup's biases stand between the layers of a list."""
        if self.branch is None:
            return []
        if isinstance(self.branch, list | tuple):
            return list(self.branch)
        if self.method == "fixup" and isinstance(self.branch, keras.Sequential):
            return list(self.branch.layers)
        return [self.branch]

    def _output_shape(self, layer: Any, shape: Any) -> Any:
        try:
            return layer.compute_output_shape(shape)
        except NotImplementedError:  # A layer that says what it gives only by being called.
            return layer.compute_output_spec(keras.KerasTensor(shape, self.compute_dtype)).shape

    def _run_branch(self, x: Any, mask: Any) -> Any:
        place = 0
        for layer in self._steps():
            if self.biases is not None and _takes_bias(layer):
                x = ops.add(x, self.biases[place])
                place += 1
            # The sum above has lost the mask that Keras would find on its own.
            x = layer(x, mask=mask) if mask is not None and _takes_mask(layer) else layer(x)
        return x

    def _shapes(self, input_shape: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if self.branch is None:
            if not isinstance(input_shape, list | tuple) or not all(
                isinstance(shape, list | tuple) for shape in input_shape
            ):
                raise ValueError(
                    f"{self.name!r} has no `branch` and so must be called on [shortcut, branch]. "
                    f"Received: input_shape={input_shape}"
                )
            shortcut, branch = input_shape
            return tuple(shortcut), tuple(branch)
        if input_shape and isinstance(input_shape[0], list | tuple):
            raise ValueError(
                f"{self.name!r} has a `branch` and so must be called on one tensor. Received: "
                f"input_shape={input_shape}"
            )
        shape = input_shape
        for layer in self._steps():
            if not layer.built:
                layer.build(shape)
            shape = self._output_shape(layer, shape)
        if isinstance(self.branch, keras.Sequential) and not self.branch.built:
            self.branch.build(input_shape)
        return tuple(input_shape), tuple(shape)

    def _build_projection(self, shortcut: tuple[Any, ...], branch: tuple[Any, ...]) -> None:
        if isinstance(self.projection, keras.Layer):
            if not self.projection.built:
                self.projection.build(shortcut)
            shortcut = tuple(self.projection.compute_output_shape(shortcut))
        elif self.projection == "auto" and shortcut[1:] != branch[1:]:
            strides = _strides(shortcut, branch)
            if strides is not None:
                self._strides = strides
                self._linear = keras.layers.Dense(
                    branch[-1],
                    use_bias=False,
                    kernel_initializer="lecun_normal",
                    dtype=self.dtype_policy,
                    name="projection",
                )
                self._linear.build((*shortcut[:-1], shortcut[-1]))
                return
        if len(shortcut) != len(branch) or any(
            a != b for a, b in zip(shortcut, branch, strict=True) if None not in (a, b)
        ):
            raise ValueError(
                f"The branch of {self.name!r} must give the shape of the shortcut, {shortcut}. "
                f"Received: {branch}. "
                'Give `projection="auto"` or a layer that makes the one from the other'
            )

    def _set_fixup_initializers(self) -> None:
        layers = [layer for layer in _flat(self.branch) if _has_kernel(layer)]
        if not layers:
            raise ValueError(
                '`branch` must hold a layer with a kernel for `method="fixup"`. Received: '
                f"branch={self.branch!r}"
            )
        if self.num_branches is None and len(layers) > 1:
            raise ValueError(
                '`num_branches` must be a positive integer for `method="fixup"`: the number of '
                "residual branches in the whole net. Received: num_branches=None"
            )
        scale = 2.0 * fixup_scale(self.num_branches or 1, len(layers)) ** 2
        for layer in layers[:-1]:
            _initialize(layer, "VarianceScaling", scale)
        _initialize(layers[-1], "Zeros", 0.0)


def _check_branch(branch: Any) -> Any:
    layers = branch if isinstance(branch, list | tuple) else [branch]
    if branch is not None and (
        not layers or not all(isinstance(layer, keras.Layer) for layer in layers)
    ):
        raise TypeError(
            f"`branch` must be a keras.Layer, a list of them or None. Received: branch={branch!r}"
        )
    return list(branch) if isinstance(branch, tuple) else branch


def _flat(branch: Any) -> list[Any]:
    if isinstance(branch, keras.Model):
        branch = branch.layers
    if isinstance(branch, list | tuple):
        return [layer for part in branch for layer in _flat(part)]
    return [branch]


def _initialize(layer: Any, kind: str, scale: float) -> None:
    """Have a layer's kernel begin as Fixup says, unless it does already."""
    old = layer.kernel_initializer
    if type(old).__name__ == kind and getattr(old, "scale", scale) == scale:
        return
    if kind == "Zeros":
        layer.kernel_initializer = keras.initializers.Zeros()
    else:
        seed = old.get_config().get("seed") if hasattr(old, "get_config") else None
        layer.kernel_initializer = keras.initializers.VarianceScaling(
            scale, "fan_in", "untruncated_normal", seed=seed
        )
    if layer.built:
        layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, layer.kernel.dtype))


def _has_kernel(layer: Any) -> bool:
    # A recurrent layer only shows its cell's initializers, as properties.
    return "kernel_initializer" in vars(layer)


def _takes_bias(layer: Any) -> bool:
    return _has_kernel(layer) or isinstance(layer, _ACTIVATIONS)


def _takes_mask(layer: Any) -> bool:
    return "mask" in inspect.signature(layer.call).parameters


def _strides(shortcut: tuple[Any, ...], branch: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the steps between the positions to keep, or None if none lead to the branch."""
    if len(shortcut) != len(branch) or None in (shortcut[-1], branch[-1]):
        return None
    strides = []
    for size, wanted in zip(shortcut[1:-1], branch[1:-1], strict=True):
        if size is None or wanted is None or size == wanted:
            strides.append(1)
            continue
        stride = -(-size // wanted)
        if -(-size // stride) != wanted:
            return None
        strides.append(stride)
    return tuple(strides)
