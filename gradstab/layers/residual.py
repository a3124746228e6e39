"""A residual block whose branch begins at or near zero."""

from __future__ import annotations

import inspect
from typing import Any, final

import keras
from keras import ops

from gradstab._serialization import register
from gradstab._validation import check_choice, check_int
from gradstab.layers._fixup import initialize_by_fixup, takes_bias
from gradstab.layers._inside import build_inside, output_shape, strides_between

_METHODS = ("rezero", "skipinit", "fixup")


@final
@register
class ScaledResidual(keras.layers.Layer):
    r"""Adds a branch, times a trainable scalar, to its input: ReZero, SkipInit or Fixup.

    For residual nets of many blocks without normalization: $y = x + \alpha F(x)$, with one scalar
    for each block that keeps the sum of L branches small at first.

    - `"rezero"` and `"skipinit"` are the same rule: $\alpha$ begins at 0, the net as the identity.
    - `"fixup"`: $\alpha$ begins at 1, and the branch's $m$ kernels begin small. All but the last
      are drawn from $N(0, 2 / \mathrm{fan\_in} \cdot L^{-1/(m-1)})$, and the last is 0; scalar
      biases are added. docs/layers.md has their places and the other parts of Fixup.

    Args:
        branch: F: a layer, a model, or a list of layers; None to call the block on
            `[shortcut, branch]`.
        method: `"rezero"`, `"skipinit"` or `"fixup"`.
        num_branches: L, the number of residual branches in the whole net; required for Fixup with a
            `branch`.
        projection: Maps x to the shape of F(x): a layer; `"auto"` for a strided 1×1 convolution if
            the shapes differ; or None if they are equal.
        alpha_initializer: Initializer of the scalar; None for 0 or, with Fixup, 1.
        **kwargs: `name`, `dtype`, `trainable`, as for any layer.

    Raises:
        TypeError: If `branch` or `projection` is not a layer, or `num_branches` not an integer.
        ValueError: If `method` is unknown, shapes do not match, or `num_branches` is missing.

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
        - De and Smith, 2020, Batch normalization biases residual blocks towards the identity.
        - Zhang, Dauphin and Ma, 2019, Fixup initialization.
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
            initialize_by_fixup(branch, num_branches)

    def build(self, input_shape: Any) -> None:
        """Build branch and projection, and make the scalars."""
        shortcut, branch = self._shapes(input_shape)
        self._build_projection(shortcut, branch)
        begin = "ones" if self.method == "fixup" else "zeros"
        self.alpha = self.add_weight(
            name="alpha",
            shape=(),
            initializer=self.alpha_initializer or begin,
            autocast=False,
        )
        if self.method == "fixup":
            number = sum(map(takes_bias, self._steps())) + 1
            self.biases = self.add_weight(
                name="biases", shape=(number,), initializer="zeros", autocast=False
            )

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
        outputs = ops.multiply(_wide(self.alpha), _wide(outputs))
        if self.biases is not None:
            outputs = ops.add(outputs, _wide(self.biases[-1]))
        return ops.cast(ops.add(_wide(shortcut), outputs), self.compute_dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Return the mask of the shortcut."""
        return previous_mask[0] if isinstance(previous_mask, list | tuple) else previous_mask

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the branch's output shape."""
        if self.branch is None:
            return tuple(input_shape[1])
        shape = input_shape
        for layer in self._steps():
            shape = output_shape(layer, shape)
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

    def _run_branch(self, x: Any, mask: Any) -> Any:
        place = 0
        for layer in self._steps():
            if self.biases is not None and takes_bias(layer):
                x = ops.cast(ops.add(_wide(x), _wide(self.biases[place])), x.dtype)
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
            shape = build_inside(layer, shape)
        if isinstance(self.branch, keras.Sequential) and not self.branch.built:
            self.branch.build(input_shape)
        return tuple(input_shape), tuple(shape)

    def _build_projection(self, shortcut: tuple[Any, ...], branch: tuple[Any, ...]) -> None:
        if isinstance(self.projection, keras.Layer):
            shortcut = build_inside(self.projection, shortcut)
        elif self.projection == "auto" and shortcut[1:] != branch[1:]:
            strides = strides_between(shortcut, branch)
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


def _check_branch(branch: Any) -> Any:
    layers = branch if isinstance(branch, list | tuple) else [branch]
    if branch is not None and (
        not layers or not all(isinstance(layer, keras.Layer) for layer in layers)
    ):
        raise TypeError(
            f"`branch` must be a keras.Layer, a list of them or None. Received: branch={branch!r}"
        )
    return list(branch) if isinstance(branch, tuple) else branch


def _wide(value: Any) -> Any:
    """Return `value` in float32 at least.

    A scalar's gradient is a sum over all entries of what it is multiplied with or added to. In
    float16 that sum is infinite long before the entries are, in bfloat16 it has two digits.
    """
    return ops.cast(value, keras.backend.result_type(value.dtype, "float32"))


def _takes_mask(layer: Any) -> bool:
    return "mask" in inspect.signature(layer.call).parameters
