r"""A dense layer that shares another layer's kernel, transposed."""

from __future__ import annotations

from typing import Any, final

import keras
from keras import ops

from gradstab._layers import all_layers
from gradstab._serialization import register
from gradstab.layers._sources import (
    SharedSource,
    check_source,
    find_upstream,
    read_kernel,
)


@final
@register
class TiedDense(keras.layers.Layer):
    r"""Multiplies by the transposed kernel of another layer, and has a bias of its own.

    Use it for the decoder of an autoencoder (`Dense`, then `TiedDense` back to the inputs) and for
    the logits of a language model (`Embedding` below, `TiedDense` on top). It halves the number of
    weights, and each use regularizes the other.

    $$y = \phi(x K^\top + b), \qquad K \in \mathbb{R}^{n \times d},\quad x: (\ldots, d),\quad
    y: (\ldots, n)$$

    $K$ is the kernel of a `Dense` layer from $n$ inputs to $d$ units, or the matrix of an
    `Embedding` of $n$ tokens in $d$ dimensions. It stays a weight of `tied_to` alone, which trains,
    regularizes and saves it; `trainable` of this layer concerns the bias.

    Saved models (`.keras`, weights files) load with the kernel shared, nested ones included.
    `clone_model` and `from_config` look for the new source among the layers before this one. If it
    is not there, as between two nested models, call `tie_weights(model)` afterwards.

    Args:
        tied_to: The `Dense` or `Embedding` layer whose kernel is shared. It has to be built before
            this layer, which is the case if its output leads here.
        activation: Name or function, or None for a linear layer.
        use_bias: Whether to add a bias of `n` entries.
        bias_initializer, bias_regularizer, bias_constraint: For the bias.
        **kwargs: `name`, `dtype`, `trainable`, `activity_regularizer`, as for any layer.

    Raises:
        TypeError: If `tied_to` is not a `Dense` or `Embedding` layer.
        ValueError: If it is quantized, not built when this layer is, or does not fit the input.

    Example:
        >>> import keras
        >>> from gradstab.layers import TiedDense
        >>> encoder = keras.layers.Dense(32, activation="relu")
        >>> model = keras.Sequential([keras.Input((64,)), encoder, TiedDense(encoder)])
        >>> model.output_shape, [tuple(v.shape) for v in model.trainable_variables]
        ((None, 64), [(64, 32), (32,), (64,)])

    References:
        - Vincent, Larochelle, Lajoie, Bengio and Manzagol, 2010, Stacked denoising autoencoders.
        - Press and Wolf, 2017, Using the output embedding to improve language models.
    """

    def __init__(
        self,
        tied_to: Any,
        activation: Any = None,
        use_bias: bool = True,
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._source = SharedSource(check_source(tied_to))
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.bias = None
        self.supports_masking = True

    @property
    def tied_to(self) -> Any:
        """The layer whose kernel is shared."""
        return self._source.layer

    @property
    def is_tied(self) -> bool:
        """Whether `tied_to` is the layer meant, not a stand-in until `tie_weights` finds it."""
        return not self._source.is_stand_in

    @property
    def kernel(self) -> Any:
        """The shared kernel as `tied_to` holds it: (n, d), not transposed."""
        return read_kernel(self._source.layer, self.name)

    def tie(self, layer: Any) -> None:
        """Share the kernel of `layer` from now on; `tie_weights` calls this.

        Raises:
            TypeError: If `layer` is not a `Dense` or `Embedding` layer.
            ValueError: If its kernel has another shape than this layer was built for.
        """
        check_source(layer)
        if self.built:
            shape = tuple(read_kernel(layer, self.name).shape)
            expected = tuple(self.kernel.shape)
            if shape != expected:
                raise ValueError(
                    f"`layer` must have a kernel of shape {expected} to be shared by "
                    f"{self.name!r}. Received: layer={layer.name!r} with {shape}"
                )
        self._source = SharedSource(layer)

    def build(self, input_shape: Any) -> None:
        """Check the input against the shared kernel, and make the bias."""
        num_outputs, num_inputs = read_kernel(self._source.layer, self.name).shape
        if input_shape[-1] is not None and input_shape[-1] != num_inputs:
            raise ValueError(
                f"The input of {self.name!r} must end with {num_inputs} entries, the outputs of "
                f"`tied_to` {self.tied_to.name!r}. Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: num_inputs})
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(num_outputs,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: Any) -> Any:
        """Return the activation of x Kᵀ + b."""
        if self._source.is_stand_in and not isinstance(inputs, keras.KerasTensor):
            raise ValueError(
                f"{self.name!r} does not know the layer {self.tied_to.name!r} that it shares a "
                "kernel with: it was made from a config, and none of the layers before it in its "
                "graph is the one meant. Call `gradstab.layers.tie_weights(model)` with the model, "
                "or all models, that hold both"
            )
        outputs = ops.matmul(inputs, ops.transpose(ops.convert_to_tensor(self.kernel)))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return self.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the input's shape with `n` as its last entry."""
        return (*tuple(input_shape)[:-1], read_kernel(self._source.layer, self.name).shape[0])

    def compute_output_spec(self, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """Return shape and dtype of the output, and find `tied_to` after a reload."""
        if self._source.is_stand_in:
            found = find_upstream(inputs, self._source.layer)
            if found is not None:
                self.tie(found)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "tied_to": keras.saving.serialize_keras_object(self.tied_to),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedDense:
        """Rebuild the layer; what it shares is found as the class says."""
        config = dict(config)
        saved = config.pop("tied_to")
        if isinstance(saved, keras.layers.Layer):
            return super().from_config({**config, "tied_to": saved})
        source = keras.saving.deserialize_keras_object(saved)
        layer = super().from_config({**config, "tied_to": source})
        # While a whole model file is loaded, Keras gives one object for one config.
        if keras.saving.deserialize_keras_object({**saved, "build_config": None}) is not source:
            layer._source = SharedSource(source, is_stand_in=True)
        return layer


def tie_weights(*models: Any) -> int:
    """Connect the `TiedDense` layers of models with the layers whose kernels they share.

    Needed only after `keras.models.clone_model` or `from_config`, and only if the shared layer is
    not before the `TiedDense` layer, for example in another nested model. The source is found by
    its name and its kernel's shape.

    Args:
        *models: Models or layers that together hold both ends of each tie.

    Returns:
        The number of layers that were connected now.

    Raises:
        ValueError: If a layer's source is not in the models, or more than one layer could be it.

    Example:
        >>> import keras
        >>> from gradstab.layers import TiedDense, tie_weights
        >>> code = keras.layers.Dense(8, name="code")
        >>> encoder = keras.Sequential([keras.Input((20,)), code], name="encoder")
        >>> decoder = keras.Sequential([keras.Input((8,)), TiedDense(code)], name="decoder")
        >>> model = keras.Sequential([encoder, decoder])
        >>> clone = keras.models.clone_model(model)
        >>> tie_weights(clone)
        1
        >>> clone.layers[1].layers[0].tied_to is clone.layers[0].layers[0]
        True
    """
    layers = {id(layer): layer for model in models for layer in all_layers(model)}
    loose = [
        layer for layer in layers.values() if isinstance(layer, TiedDense) and not layer.is_tied
    ]
    for layer in loose:
        meant = [other for other in layers.values() if layer._source.is_meant(other)]
        if len(meant) != 1:
            wrong = "no layer" if not meant else f"{len(meant)} layers"
            raise ValueError(
                f"{layer.name!r} shares the kernel of {layer.tied_to.name!r}, and {wrong} of that "
                f"name, kind and shape found. Received: models="
                f"{[getattr(model, 'name', model) for model in models]}. Give all models that hold "
                "both, or call `layer.tie(source)`"
            )
        layer.tie(meant[0])
    return len(loose)
