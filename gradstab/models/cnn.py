"""A small convolutional classifier that trains from the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from gradstab._validation import check_choice, check_float, check_int
from gradstab.initializers.identity import ConvolutionIdentity
from gradstab.initializers.orthogonal import DeltaOrthogonal

_MIN_SIDE = 8
_AUGMENTATION: dict[str, Any] = {"flip": "horizontal", "zoom": 0.1, "shear": 0.1}
_FLIPS = ("horizontal", "vertical", "horizontal_and_vertical")
# Data is height × width × channels everywhere in gradstab, whatever Keras' setting.
_LAYOUT = {"data_format": "channels_last"}
_KERNELS, _AUGMENTATIONS, _DROPOUT = range(3)


def cnn_classifier(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    filters: Sequence[int] = (32, 64, 64, 256),
    dense_units: int = 128,
    kernel_initializer: Any = "he_normal",
    kernel_regularizer: Any = None,
    rescale: float | tuple[float, float] | None = None,
    augment: bool | Mapping[str, Any] = False,
    pooling: str = "flatten",
    dropout: float = 0.0,
    seed: int | None = None,
    name: str = "cnn_classifier",
) -> Any:
    r"""Build a convolutional classifier for images of any size from 8×8 up.

    For each number in `filters` there is a 3×3 convolution with relu and a 2×2 max pooling, both
    with padding `"same"`, so that no image is too small: $h \times w$ pixels leave block $i$ as
    $\lceil h / 2^i \rceil \times \lceil w / 2^i \rceil$. Then come one dense layer with relu and
    one without activation:

    $$x \to [\text{rescale}] \to [\text{augment}] \to
    (\text{conv} \to \text{relu} \to \text{pool})^{n} \to \text{flatten or average} \to
    \text{dense} \to \text{relu} \to [\text{dropout}] \to \text{logits}$$

    The outputs are logits, in float32 also under mixed precision: train with
    `SparseCategoricalCrossentropy(from_logits=True)`, and use `keras.ops.softmax` for
    probabilities. A softmax in the model followed by a logarithm in the loss can give NaN.

    It is a plain functional `keras.Model` of Keras' own layers, so a saved model loads anywhere,
    with `safe_mode` on. Zooming and shearing have no XLA kernel on TensorFlow: Keras compiles a
    model with them without XLA (flipping alone is fine). At inference the model is deterministic
    and augmentation does nothing.

    Args:
        input_shape: Height, width and channels of one image.
        num_classes: Number of classes, at least 2.
        filters: Output channels of each convolution.
        dense_units: Units of the dense layer before the logits.
        kernel_initializer: Initializer of every kernel, that of the logits included: a name, an
            initializer or its config. Each layer gets a copy with another seed, since a Keras
            initializer returns the same values each time. A plain function is used as it is. With
            gradstab's `DeltaOrthogonal` and `ConvolutionIdentity`, which make only convolution
            kernels, dense kernels get Keras' `Orthogonal` and `Identity` with the same gain. Models
            with gradstab's initializers load where gradstab is imported.
        kernel_regularizer: Regularizer of every kernel: a name, a regularizer or its config.
        rescale: Factor on the pixels, such as 1 / 255, or factor and offset, such as `(1 / 127.5,
            -1.0)`. None leaves them raw.
        augment: True flips images left to right and zooms and shears them by up to a tenth, at
            random, in training. A mapping chooses some of `{"flip": "horizontal", "zoom": 0.1,
            "shear": 0.1}`; `"flip"` can also be `"vertical"` or `"horizontal_and_vertical"`. Do not
            flip digits or letters.
        pooling: `"flatten"` keeps the positions of features; `"average"` (the mean over all
            positions) drops them, and needs fewer weights for large images.
        dropout: Share of the dense layer's units that is dropped in training.
        seed: Seed of kernels, augmentation and dropout. None leaves them to the initializer's own
            seed and to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Example:
        >>> from gradstab.models import cnn_classifier
        >>> model = cnn_classifier((8, 8, 1), num_classes=10, rescale=1 / 16, seed=0)
        >>> [layer.output.shape[1:] for layer in model.layers if "pool" in layer.name]
        [(4, 4, 32), (2, 2, 64), (1, 1, 64), (1, 1, 256)]
        >>> model.count_params()
        237642

    References:
        He, Zhang, Ren and Sun, 2015, Delving deep into rectifiers: surpassing human-level
        performance on ImageNet classification (the initializer).
    """
    shape = _check_input_shape(input_shape)
    num_classes = check_int("num_classes", num_classes, minimum=2)
    filters = _check_filters(filters)
    dense_units = check_int("dense_units", dense_units)
    dropout = check_float("dropout", dropout, include_minimum=True, maximum=0.99)
    check_choice("pooling", pooling, ("flatten", "average"))
    if seed is not None:
        seed = check_int("seed", seed, minimum=0)
    preprocessing = _rescaling(rescale) + _augmentation(augment, seed)
    initializers = _independent_copies(kernel_initializer, len(filters) + 2, seed)
    regularizer = keras.regularizers.get(kernel_regularizer)

    def kernel(dense: bool = False) -> dict[str, Any]:
        initializer = next(initializers)
        return {
            "kernel_initializer": _for_dense(initializer) if dense else initializer,
            "kernel_regularizer": regularizer,
        }

    inputs = keras.Input(shape, name="image")
    x = inputs
    # Keras' random layers act by default; said here, a plain `model(x)` is inference with them too.
    for layer in preprocessing:
        x = layer(x, training=False)
    for block, num_filters in enumerate(filters, start=1):
        x = keras.layers.Conv2D(
            num_filters,
            3,
            padding="same",
            activation="relu",
            name=f"conv_{block}",
            **kernel(),
            **_LAYOUT,
        )(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool_{block}", **_LAYOUT)(x)
    if pooling == "flatten":
        x = keras.layers.Flatten(name="flatten", **_LAYOUT)(x)
    else:
        x = keras.layers.GlobalAveragePooling2D(name="average", **_LAYOUT)(x)
    x = keras.layers.Dense(dense_units, activation="relu", name="dense", **kernel(True))(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=_derived_seed(seed, _DROPOUT), name="dropout")(x)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits", **kernel(True))(x)
    return keras.Model(inputs, logits, name=name)


def _check_input_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    expected = (
        f"`input_shape` must be (height, width, channels), at least ({_MIN_SIDE}, {_MIN_SIDE}, 1). "
        f"Received: input_shape={input_shape!r}"
    )
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str):
        raise TypeError(expected)
    if len(input_shape) != 3:
        raise ValueError(expected)
    height, width, channels = (
        check_int(f"input_shape[{axis}]", size) for axis, size in enumerate(input_shape)
    )
    if min(height, width) < _MIN_SIDE:
        raise ValueError(expected)
    return height, width, channels


def _check_filters(filters: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(filters, Sequence) or isinstance(filters, str) or not filters:
        kind = ValueError if isinstance(filters, Sequence) else TypeError
        raise kind(
            "`filters` must be one positive integer for each convolution, such as (32, 64). "
            f"Received: filters={filters!r}"
        )
    return tuple(check_int(f"filters[{index}]", number) for index, number in enumerate(filters))


def _rescaling(rescale: float | tuple[float, float] | None) -> list[Any]:
    if rescale is None:
        return []
    if isinstance(rescale, (tuple, list)) and len(rescale) != 2:
        raise ValueError(
            "`rescale` must be one positive float, or that and an offset. Received: "
            f"rescale={rescale!r}"
        )
    scale, offset = rescale if isinstance(rescale, (tuple, list)) else (rescale, 0.0)
    scale = check_float("rescale", scale, fix="For pixels up to 255 give 1 / 255")
    offset = check_float("rescale[1]", offset, minimum=-math.inf)
    # In float32 under mixed precision too: half precision would round the pixels first.
    return [keras.layers.Rescaling(scale, offset, dtype="float32", name="rescale")]


def _augmentation(augment: bool | Mapping[str, Any], seed: int | None) -> list[Any]:
    if not isinstance(augment, (bool, Mapping)):
        raise TypeError(
            f"`augment` must be True, False or a mapping such as {_AUGMENTATION}. Received: "
            f"augment={augment!r}"
        )
    chosen = (_AUGMENTATION if augment else {}) if isinstance(augment, bool) else augment
    for key in chosen:
        check_choice("augment", key, list(_AUGMENTATION))
    seeds = {
        key: _derived_seed(seed, _AUGMENTATIONS, index) for index, key in enumerate(_AUGMENTATION)
    }
    layers = []
    if "flip" in chosen:
        mode = check_choice('augment["flip"]', chosen["flip"], _FLIPS)
        layers.append(
            keras.layers.RandomFlip(
                mode, seed=seeds["flip"], dtype="float32", name="flip", **_LAYOUT
            )
        )
    if "zoom" in chosen:
        factor = check_float('augment["zoom"]', chosen["zoom"], maximum=0.9)
        layers.append(
            keras.layers.RandomZoom(
                factor, seed=seeds["zoom"], dtype="float32", name="zoom", **_LAYOUT
            )
        )
    if "shear" in chosen:
        factor = check_float('augment["shear"]', chosen["shear"], maximum=0.9)
        # A range, since Keras saves a single number as one that it refuses to load again (#21110 of
        # keras-team/keras). The sign is drawn apart from it, so both directions occur.
        sizes = (0.0, factor)
        layers.append(
            keras.layers.RandomShear(
                sizes, sizes, seed=seeds["shear"], dtype="float32", name="shear", **_LAYOUT
            )
        )
    return layers


def _independent_copies(identifier: Any, number: int, seed: int | None) -> Iterator[Any]:
    """Return copies of an initializer whose values do not repeat each other."""
    initializer = keras.initializers.get(identifier)
    if initializer is None:
        raise TypeError(
            "`kernel_initializer` must be a name, an initializer or its config. Received: None"
        )
    if not isinstance(initializer, keras.initializers.Initializer):
        return iter([initializer] * number)
    config = initializer.get_config()
    if "seed" not in config:
        return iter([type(initializer).from_config(config) for _ in range(number)])
    if seed is None:
        own = config["seed"]
        # A serialized `keras.random.SeedGenerator` holds its seed in a config of its own.
        seed = own["config"]["seed"] if isinstance(own, dict) else own
    return iter(
        [
            type(initializer).from_config({**config, "seed": _derived_seed(seed, _KERNELS, index)})
            for index in range(number)
        ]
    )


def _for_dense(initializer: Any) -> Any:
    """Return what does for a dense kernel what an initializer does for a convolution's."""
    if isinstance(initializer, DeltaOrthogonal):
        return keras.initializers.Orthogonal(initializer.gain, initializer.seed)
    if isinstance(initializer, ConvolutionIdentity):
        return keras.initializers.Identity(initializer.gain)
    return initializer


def _derived_seed(seed: int | None, purpose: int, index: int = 0) -> int | None:
    if seed is None:
        return None
    words = np.random.SeedSequence(seed, spawn_key=(purpose, index)).generate_state(1)
    return int(words[0]) & 0x7FFFFFFF
