r"""Initial weights: Keras' own initializers, further ones, and when to use which.

Most training that explodes or vanishes from the first step on has initial weights of the wrong
scale. In a layer $y = Wx$ with `fan_in` inputs per unit and independent weights of mean 0,

$$\mathrm{Var}(y) = \mathrm{fan\_in} \cdot \mathrm{Var}(W) \cdot \mathrm{E}[x^2],$$

so a signal keeps its size through many layers only if $\mathrm{Var}(W)$ compensates both the first
factor and the activation's effect on $\mathrm{E}[x^2]$. Backwards the same holds with `fan_out`.
For a convolution, both fans count the kernel's positions: `fan_in` = height · width · channels.

| initializer | Var(W) | use it |
|---|---|---|
| `HeNormal`, `HeUniform` | 2 / fan_in | before relu and similar activations: relu halves E[x²], the factor 2 restores it |
| `GlorotUniform`, `GlorotNormal` (Xavier) | 2 / (fan_in + fan_out) | before tanh, and where outputs are linear; keeps forward and backward in balance |
| `LecunNormal`, `LecunUniform` | 1 / fan_in | before selu, and for linear layers |
| `Orthogonal` | WᵀW = gain² · I | deep linear and recurrent kernels: lengths are kept exactly, not on average |
| `VarianceScaling` | scale / fan | other factors, fans or distributions |
| `RandomNormal`, `RandomUniform`, `TruncatedNormal` | as given | embeddings; in deep nets a fixed spread is right for one width only |
| `CriticalNormal`, `CriticalUniform` | σ_w² / fan_in | deep plain nets with any activation; use its `bias_initializer()` too |
| `DeltaOrthogonal` | orthogonal at the centre | very deep plain convolutions: norms are kept exactly |
| `ConvolutionIdentity`, `ZerO` | 0 | layers that begin as the identity; runs without randomness |
| `Zeros`, `Ones`, `Constant`, `Identity` | 0 | biases and gains; a kernel of zeros never breaks the symmetry of its units |

`gain(activation)` is the factor of the weights that compensates an activation. `critical_point`
returns the variances of weights and biases at which signals survive any depth. Where no formula
fits, `lsuv(model, x)` scales a model's kernels on a batch of data.

The names that Keras has are Keras' own classes, not copies: a model that uses them loads without
gradstab. Ours also have string names once gradstab is imported: `"gradstab>DeltaOrthogonal"`. An
instance returns the same values at each call, unless its seed is a `keras.random.SeedGenerator`:
create one instance per layer, or use the string. Keras' `Orthogonal` can't make bfloat16 weights on
a CPU; ours draw in float32 and cast.

The layout of a kernel can't be seen from its shape. All initializers assume that the last axis
holds the outputs and the others the inputs of a unit, as in Dense and convolutions. For other
layouts ours have `input_axes`, `transposed` and `groups`, and `lsuv` knows the layers.

Example:
    >>> import keras, numpy as np
    >>> from gradstab.initializers import HeNormal
    >>> HeNormal is keras.initializers.HeNormal
    True
    >>> kernel = keras.ops.convert_to_numpy(HeNormal(seed=0)((3, 3, 64, 128)))
    >>> print(f"{kernel.var() * 3 * 3 * 64:.1f}")
    2.0

References:
    - Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward neural
      networks.
    - He, Zhang, Ren and Sun, 2015, Delving deep into rectifiers: surpassing human-level performance
      on ImageNet classification.
    - LeCun, Bottou, Orr and Müller, 1998, Efficient backprop.
    - Saxe, McClelland and Ganguli, 2014, Exact solutions to the nonlinear dynamics of learning in
      deep linear neural networks.
"""  # noqa: E501  a table row can't be broken

import keras  # noqa: F401  first, so that gradstab's classes register in one order
from keras.initializers import (
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    Identity,
    Initializer,
    LecunNormal,
    LecunUniform,
    Ones,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
    Zeros,
)

from gradstab._lazy import names_of
from gradstab.initializers.critical import (
    CriticalNormal,
    CriticalPoint,
    CriticalUniform,
    critical_point,
)
from gradstab.initializers.gains import gain
from gradstab.initializers.identity import ConvolutionIdentity, ZerO
from gradstab.initializers.orthogonal import DeltaOrthogonal

TYPE_CHECKING = False  # Type checkers take it for true; Keras has to be the first import.
if TYPE_CHECKING:
    from gradstab.initializers.data_dependent import LsuvReport, lsuv
    from gradstab.initializers.layer_scaling import LayerScale
    from gradstab.initializers.residual import apply_fixup, apply_skipinit, fixup_initializers

__all__ = [
    "Constant",
    "ConvolutionIdentity",
    "CriticalNormal",
    "CriticalPoint",
    "CriticalUniform",
    "DeltaOrthogonal",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "Initializer",
    "LayerScale",
    "LecunNormal",
    "LecunUniform",
    "LsuvReport",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "ZerO",
    "Zeros",
    "apply_fixup",
    "apply_skipinit",
    "critical_point",
    "fixup_initializers",
    "gain",
    "lsuv",
]

__getattr__ = names_of(
    __name__,
    {
        "LayerScale": "gradstab.initializers.layer_scaling",
        "LsuvReport": "gradstab.initializers.data_dependent",
        "apply_fixup": "gradstab.initializers.residual",
        "apply_skipinit": "gradstab.initializers.residual",
        "fixup_initializers": "gradstab.initializers.residual",
        "lsuv": "gradstab.initializers.data_dependent",
    },
)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
