"""A dense layer whose kernel is another layer's, transposed."""

from __future__ import annotations

from typing import Any, final

import keras
from keras import ops

from gradstab._layers import all_layers, origin
from gradstab._serialization import register

_BIASES = ("bias", "_bias")


class _Reference:
    """Holds a layer out of Keras' sight, so that it is not taken for a part of this one."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer


@final
@register
class TiedDense(keras.layers.Layer):
    r"""Goes the way back of another layer: a dense layer with that layer's kernel, transposed.

    Use it as the decoder of an autoencoder, or to turn a transformer's outputs into logits with the
    embedding of its inputs. One kernel learns from both uses, and the model has fewer weights.

    $$y = \phi(x K^\top + b)$$

    with $K$ of shape `(inputs, units)` from a `Dense` layer or `(vocabulary, dimension)` from an
    `Embedding`. In both the last axis is what the other layer puts out, so it is what this one
    takes in: $x$ is `(..., units)` or `(..., dimension)`, $y$ is `(..., inputs)` or
    `(..., vocabulary)`. The bias $b$ and the activation $\phi$ are this layer's own.

    There is one variable, in the layer that is tied to. It has one place in the optimizer and in a
    saved file, its gradient is the sum over its uses, and its regularizer, its constraint and its
    `trainable` are those of the other layer: freezing this one freezes the bias. A model that holds
    this layer alone has the kernel among its weights, so that it can be trained, saved and loaded.

    What is loaded or cloned is tied again: `keras.saving.load_model` (safe mode included) and
    weights files always; `keras.models.clone_model`, `from_config` and `model_from_json` where the
    other layer comes before this one in the same sequential or functional model. For clones whose
    two layers lie in different nested models, call `retie`.

    Args:
        tied_to: A `keras.layers.Dense` or `Embedding`, or another layer whose `kernel` or
            `embeddings` is a matrix. It must have been built when this layer is first called,
            unless it is an `Embedding`.
        activation: A name or function for $\phi$; `None` for logits.
        use_bias: Whether to add $b$.
        bias_initializer: First value of $b$.
        bias_regularizer: Penalty on $b$.
        bias_constraint: Constraint on $b$.
        activity_regularizer: Penalty on $y$.
        **kwargs: As for every Keras layer: `name`, `dtype`, `trainable`.

    Raises:
        TypeError: If `tied_to` is not a layer.
        ValueError: If it has no kernel, is itself tied, quantized or not built, or if the last axis
            of the inputs is not its number of outputs.

    Example:
        >>> import keras
        >>> from gradstab.layers import TiedDense
        >>> encoder = keras.layers.Dense(16, activation="relu")
        >>> model = keras.Sequential([keras.Input((64,)), encoder, TiedDense(encoder)])
        >>> model.output_shape, [tuple(weight.shape) for weight in model.weights]
        ((None, 64), [(64, 16), (16,), (64,)])

    References:
        - Press and Wolf, 2017, Using the output embedding to improve language models.
        - Vincent, Larochelle, Lajoie, Bengio and Manzagol, 2010, Stacked denoising autoencoders.
    """

    def __init__(
        self,
        tied_to: Any,
        activation: Any = None,
        use_bias: bool = True,
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        bias_constraint: Any = None,
        activity_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        if not isinstance(tied_to, keras.layers.Layer):
            raise TypeError(
                f"`tied_to` must be a layer with a kernel. Received: tied_to={tied_to!r}"
            )
        if isinstance(tied_to, TiedDense):
            raise ValueError(
                f"`tied_to` must have a kernel of its own. Received: tied_to={tied_to!r}. Tie to "
                f"{tied_to.tied_to.name!r}, as that layer does"
            )
        if self.quantization_mode is not None:
            raise ValueError(
                "`dtype` must be a policy of floats: TiedDense can't be quantized, since its "
                f"kernel is another layer's. Received: dtype={self.dtype_policy.name!r}"
            )
        self._reference = _Reference(tied_to)
        _mark_as_shared(tied_to)
        self._may_retie = False
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.supports_masking = True
        self.bias = None

    @property
    def tied_to(self) -> Any:
        """The layer whose kernel this one shares."""
        return self._reference.layer

    def build(self, input_shape: Any) -> None:
        """Make the bias; the kernel is there already."""
        if isinstance(self.tied_to, keras.layers.Embedding) and not self.tied_to.built:
            self.tied_to.build(None)
        outputs, inputs = self._kernel_shape()
        if input_shape[-1] != inputs:
            raise ValueError(
                f"The last axis of the inputs must be what {self.tied_to.name!r} puts out, "
                f"{inputs}. Received: input_shape={tuple(input_shape)}"
            )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(outputs,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, tied to the copy in this model where it was made from a config."""
        if self._may_retie and args:
            self._retie_before(args[0])
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Return `activation(inputs · kernelᵀ + bias)`."""
        kernel = ops.cast(self._kernel(), self.compute_dtype)
        outputs = ops.matmul(inputs, ops.transpose(kernel))
        if self.bias is not None:
            outputs = ops.add(outputs, ops.cast(self.bias, outputs.dtype))
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape of the outputs: the last axis is the other layer's inputs."""
        return (*input_shape[:-1], self._kernel_shape()[0])

    @property
    def variables(self) -> list[Any]:
        """The shared kernel and the bias, as of a dense layer."""
        return _once(self._shared_variables() + super().variables)

    @property
    def weights(self) -> list[Any]:
        """The shared kernel and the bias, as of a dense layer."""
        return _once(self._shared_variables() + super().weights)

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Refuse: the kernel belongs to another layer."""
        raise NotImplementedError(
            f"TiedDense can't be quantized, since its kernel is that of {self.tied_to.name!r}. "
            f"Received: mode={mode!r}. Copy its weights into a `keras.layers.Dense` first"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer; `load_model` makes the two share again."""
        return {
            **super().get_config(),
            "tied_to": keras.saving.serialize_keras_object(self.tied_to),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedDense:
        """Rebuild the layer, to be tied to the layer of that name in the model it is called in."""
        config = dict(config)
        if isinstance(config["tied_to"], dict):
            config["tied_to"] = keras.saving.deserialize_keras_object(config["tied_to"])
        layer = cls(**config)
        layer._may_retie = True
        return layer

    def _kernel(self) -> Any:
        source = self.tied_to
        if getattr(source, "quantization_mode", None) is not None:
            raise ValueError(
                f"TiedDense can't share the kernel of {source.name!r}, which is quantized. Copy "
                "its weights into a `keras.layers.Dense` before you quantize the model"
            )
        kernel = None
        if source.built:
            kernel = getattr(source, "embeddings", None)
            kernel = getattr(source, "kernel", None) if kernel is None else kernel
        if kernel is None or len(kernel.shape) != 2:
            found = "none" if kernel is None else f"one of shape {tuple(kernel.shape)}"
            fix = "" if source.built else f". Call or build {source.name!r} before this layer"
            raise ValueError(
                "`tied_to` must be a layer with a kernel that is a matrix, as Dense and Embedding "
                f"have. Received: {source!r} with {found}{fix}"
            )
        return kernel

    def _kernel_shape(self) -> tuple[int, int]:
        rows, columns = self._kernel().shape
        return int(rows), int(columns)

    def _shared_variables(self) -> list[Any]:
        # While Keras' own constructor runs there is no reference yet.
        reference = getattr(self, "_reference", None)
        if reference is None or not reference.layer.built:
            return []
        biases = {id(getattr(reference.layer, name, None)) for name in _BIASES}
        return [v for v in reference.layer.weights if id(v) not in biases]

    def _retie_before(self, tensor: Any) -> None:
        """Tie to the layer of that name from which a symbolic tensor comes, where there is one."""
        found = _layers_before(tensor)
        if any(layer is self.tied_to for layer in found):
            return
        self._retie_among(found)

    def _retie_among(self, layers: list[Any]) -> bool:
        own = self.tied_to
        same = [layer for layer in layers if layer.name == own.name and type(layer) is type(own)]
        if len(same) > 1:
            raise ValueError(
                f"{self.name!r} must find one layer named {own.name!r} to be tied to. Received: "
                f"{len(same)} of that name in the model. Give them different names"
            )
        if same:
            self._reference.layer = same[0]
            _mark_as_shared(same[0])
        return bool(same)


def retie(model: Any) -> list[str]:
    """Tie the `TiedDense` layers of a model to the layers in it that bear the right names.

    `keras.models.clone_model` and `from_config` make every nested model from its own config, so a
    layer that is tied to one in another nested model ends up with a copy of it. Call this on such
    a clone before you compile it or set its weights. Layers that are tied already are left alone.

    Args:
        model: A built `keras.Model`.

    Returns:
        Names of the layers that were tied anew.

    Raises:
        TypeError: If `model` is not a layer or model.
        ValueError: If several layers in the model have the name that is looked for.

    Example:
        >>> import keras
        >>> from gradstab.layers import TiedDense, retie
        >>> encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="code")])
        >>> decoder = keras.Sequential([keras.Input((2,)), TiedDense(encoder.layers[0], name="back")])
        >>> clone = keras.models.clone_model(keras.Sequential([encoder, decoder]))
        >>> len(clone.weights), retie(clone), len(clone.weights)
        (4, ['back'], 3)
    """  # noqa: E501  an example's line
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"`model` must be a Keras model. Received: model={model!r}")
    layers = list(all_layers(model))
    return [
        layer.name
        for layer in layers
        if isinstance(layer, TiedDense)
        and not any(each is layer.tied_to for each in layers)
        and layer._retie_among(layers)
    ]


def _layers_before(tensor: Any) -> list[Any]:
    """Return all layers on the way to symbolic tensors, those inside nested models too."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    pending = keras.tree.flatten(tensor)
    while pending:
        current = pending.pop()
        made = None if id(current) in seen else origin(current)
        seen.add(id(current))
        if made is not None:
            operation, inputs = made
            if isinstance(operation, keras.layers.Layer):
                found |= {id(layer): layer for layer in all_layers(operation)}
            pending.extend(inputs)
    return list(found.values())


def _mark_as_shared(layer: Any) -> None:
    """Have Keras write down, where it saves this layer first, that the layer is shared.

    Keras finds out that an object is shared when it meets it again, and then notes so in what it
    wrote first. Of a nested model it keeps a deep copy, in which that note is missing, and two
    layers are loaded where there was one. An object that it has met before is noted at once, so
    the layer's `get_config` shows it to Keras once more. What the layer is saved as stays the same.
    """
    if "get_config" in vars(layer):
        return
    get_config = layer.get_config
    inside = [False]

    def get_config_of_shared() -> Any:
        if not inside[0]:
            inside[0] = True
            try:
                keras.saving.serialize_keras_object(layer)
            finally:
                inside[0] = False
        return get_config()

    vars(layer)["get_config"] = get_config_of_shared


def _once(variables: list[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())
