"""Penalties that keep kernels nearly orthogonal, or their largest singular value small.

A kernel with orthonormal columns (or rows) keeps the length of every gradient passed backward (or
of every signal passed forward). A kernel with a small largest singular value can't amplify either.
Both are computed in float32 at least, and come back in `keras.config.floatx()`. Coefficients change
in a running, compiled `fit` like those of `L1` and `L2`.

The last axis of a kernel counts as its outputs, all others together as its inputs, as in Dense,
Conv1D to Conv3D and recurrent kernels. A transposed convolution's (..., out, in) is read the other
way round, and a depthwise kernel (..., in, multiplier) as one matrix, though no channels mix in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import keras
from keras import ops

from gradstab._coefficients import Coefficient, HasCoefficients
from gradstab._serialization import register
from gradstab._validation import check_choice, check_int
from gradstab.functional.spectra import (
    as_matrix,
    gram_minus_identity,
    largest_singular_value,
    spectral_radius,
    sum_of_squares,
)

_MODES = ("soft", "double", "mutual_coherence", "srip")


@final
@register
class Orthogonal(HasCoefficients, keras.regularizers.Regularizer):
    r"""Penalizes the deviation of a kernel from orthogonality.

    Use it in deep nets, so that kernels stay orthogonal after an orthogonal initializer. With the
    kernel as a matrix $W$ of shape (inputs, outputs), $\text{inputs}$ being all axes but the last,
    and $G = W^\top W - I$, or $W W^\top - I$ if there are fewer inputs than outputs (there are at
    most as many orthonormal columns as entries in one), the penalty is `coefficient` times

    | mode | measure | what counts |
    |---|---|---|
    | `"soft"` | $\lVert G \rVert_F^2$ | all pairs of columns |
    | `"double"` | $\lVert W^\top W - I \rVert_F^2 + \lVert W W^\top - I \rVert_F^2$ | both sides |
    | `"mutual_coherence"` | $\max_{ij} \lvert G_{ij} \rvert$ | the worst pair of columns |
    | `"srip"` | $\max_i \lvert \lambda_i(G) \rvert$ | the worst direction |

    `"srip"` (spectral restricted isometry) bounds the growth and shrinkage of any input. Power
    iteration estimates it from below, from a seeded start at every step. docs/penalties.md compares
    the modes.

    Sums over all entries grow with the kernel, so `"soft"` and `"double"` need smaller coefficients
    (1e-4 to 1e-2 of usual losses) than the other two (1e-2 to 1).

    Args:
        mode: One of the above.
        coefficient: Non-negative and finite, in units of loss. Can be assigned during a run.
        num_iterations: Products with $G$ in the power iteration of `"srip"`.
        seed: Seed of its start.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `mode` is unknown, a number out of range, or a weight has less than two axes.

    Example:
        >>> import numpy as np
        >>> from gradstab.regularizers import Orthogonal
        >>> kernel = np.array([[0.6, -0.8], [0.8, 0.6]], "float32")
        >>> bool(Orthogonal("soft", 1.0)(kernel) < 1e-6)
        True

    Reference: Bansal, Chen and Wang, 2018, Can we gain more from orthogonality regularizations?
    """

    coefficient = Coefficient()

    def __init__(
        self,
        mode: str = "soft",
        coefficient: float = 0.01,
        num_iterations: int = 20,
        seed: int = 0,
    ) -> None:
        self.mode = check_choice("mode", mode, _MODES)
        self.coefficient = coefficient
        self.num_iterations = check_int("num_iterations", num_iterations)
        self.seed = check_int("seed", seed, minimum=0)

    def __call__(self, x: Any) -> Any:
        """Return the penalty on the kernel `x`, of rank 2 or more, as a scalar."""
        measures: dict[str, Callable[[Any], Any]] = {
            "soft": lambda matrix: sum_of_squares(gram_minus_identity(matrix)),
            "double": _double,
            "mutual_coherence": lambda matrix: ops.max(ops.abs(gram_minus_identity(matrix))),
            "srip": lambda matrix: spectral_radius(
                gram_minus_identity(matrix), self.num_iterations, self.seed
            ),
        }
        return _as_loss(self.coefficient_tensor("coefficient"), measures[self.mode](as_matrix(x)))


@final
@register
class SpectralNorm(HasCoefficients, keras.regularizers.Regularizer):
    r"""Penalizes the square of a kernel's largest singular value.

    $$\text{penalty} = c\, \sigma_{\max}(W)^2
    = c \max_z \lVert W z \rVert^2 / \lVert z \rVert^2$$

    with $W$ the kernel as a matrix (inputs, outputs). Use it if a small change of the input must
    not change the output much, such as against exploding activations and gradients. Unlike `L2`, it
    does not shrink all other directions. The gradient is $2 c\,\sigma u v^\top$, of rank one.

    Power iteration estimates $\sigma_{\max}$ from a seeded start at every step. No state is kept
    between steps, so weights files, copies and replicas stay consistent. It is an estimate from
    below, better with more iterations. If the two largest singular values are close to each other,
    the estimate lies between them.

    Args:
        coefficient: $c$, non-negative and finite, in units of loss; half of the reference's λ.
            Can be assigned during a run.
        num_iterations: Products with $W$ and $W^\top$ each.
        seed: Seed of the start.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of its range, or a weight has fewer than two axes.

    Example:
        >>> import numpy as np
        >>> from gradstab.regularizers import SpectralNorm
        >>> round(float(SpectralNorm(1.0)(np.diag([1.0, 3.0, 2.0]))), 5)
        9.0

    Reference: Yoshida and Miyato, 2017, Spectral norm regularization for improving the
    generalizability of deep learning.
    """

    coefficient = Coefficient()

    def __init__(self, coefficient: float = 0.01, num_iterations: int = 20, seed: int = 0) -> None:
        self.coefficient = coefficient
        self.num_iterations = check_int("num_iterations", num_iterations)
        self.seed = check_int("seed", seed, minimum=0)

    def __call__(self, x: Any) -> Any:
        """Return the penalty on the kernel `x`, of rank 2 or more, as a scalar."""
        largest = largest_singular_value(as_matrix(x), self.num_iterations, self.seed)
        return _as_loss(self.coefficient_tensor("coefficient"), ops.square(largest))


def _double(matrix: Any) -> Any:
    """Return ‖WᵀW−I‖² + ‖WWᵀ−I‖², of which the larger side is the smaller plus a constant."""
    inputs, outputs = matrix.shape
    return 2.0 * sum_of_squares(gram_minus_identity(matrix)) + abs(inputs - outputs)


def _as_loss(coefficient: Any, measure: Any) -> Any:
    penalty = ops.cast(coefficient, measure.dtype) * measure
    return ops.cast(penalty, keras.config.floatx())
