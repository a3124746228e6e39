"""L1 and L2 penalties, computed in float32.

Keras sums a penalty in the weight's dtype, and float16 ends at 65504: 4096 weights of 4 are enough
to make the sum of squares, and with it the loss, infinite. Here weights are cast before anything is
multiplied or summed: to float32, or kept in float64. The penalty comes back in
`keras.config.floatx()`, float32 unless set otherwise: the dtype in which Keras adds up the losses
of a model, and the only one that `fit` accepts there.

Coefficients may change during a run: `layer.kernel_regularizer.l2 = 1e-3`, for example in a
callback, takes effect at the next step, without a new trace. A regularizer shared by several layers
has one coefficient for all of them. A `.keras` file and `get_config` hold the current value.
Weights files, `tf.train.Checkpoint` and `BackupAndRestore` hold no regularizers, so after loading
them a coefficient has the value from the script; `training.train` with `resume=True` restores it.
(On TensorFlow; elsewhere a compiled step keeps the old value.)
"""

from __future__ import annotations

from typing import Any, final

import keras
from keras import ops

from gradstab._coefficients import Coefficient, HasCoefficients
from gradstab._serialization import register


@final
@register
class L1(HasCoefficients, keras.regularizers.Regularizer):
    r"""Adds `l1` times the sum of absolute weights to the loss.

    $$\text{penalty} = l_1 \sum_i |w_i|$$

    It pulls each weight towards zero at a constant rate, so that many become (almost) zero. Use it
    for sparse weights; to keep weights small, `L2` is the usual choice.

    Args:
        l1: Coefficient, non-negative and finite, in units of loss per unit of weight.

    Raises:
        TypeError: If `l1` is not a number.
        ValueError: If `l1` is negative, NaN or infinite, at creation or on assignment.

    Example:
        >>> import numpy as np
        >>> from gradstab.regularizers import L1
        >>> float(L1(0.5)(np.array([[1.0, -2.0], [3.0, 0.0]], "float16")))
        3.0

    Reference: Tibshirani, 1996, Regression shrinkage and selection via the lasso.
    """

    l1 = Coefficient()

    def __init__(self, l1: float = 0.01) -> None:
        self.l1 = l1

    def __call__(self, x: Any) -> Any:
        """Return the penalty on the weights `x`, of any shape, as a scalar."""
        return _as_loss(_times(self.coefficient_tensor("l1"), _sum_of_absolutes(x)))


@final
@register
class L2(HasCoefficients, keras.regularizers.Regularizer):
    r"""Adds `l2` times the sum of squared weights to the loss.

    $$\text{penalty} = l_2 \sum_i w_i^2, \qquad \frac{\partial}{\partial w_i} = 2 l_2 w_i$$

    It keeps weights small, and so the gradients, which are multiplied by them in the backward pass.
    Adam and similar optimizers rescale the penalty's gradient like any other; for decay at a chosen
    rate, use the optimizer's `weight_decay`.

    Args:
        l2: Coefficient, non-negative and finite, in units of loss per squared unit of weight.

    Raises:
        TypeError: If `l2` is not a number.
        ValueError: If `l2` is negative, NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from gradstab.regularizers import L2
        >>> float(L2(0.5)(np.full(4096, 4.0, "float16")))  # the sum of squares is 65536
        32768.0

    Reference: Krogh and Hertz, 1991, A simple weight decay can improve generalization.
    """

    l2 = Coefficient()

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        """Return the penalty on the weights `x`, of any shape, as a scalar."""
        return _as_loss(_times(self.coefficient_tensor("l2"), _sum_of_squares(x)))


@final
@register
class L1L2(HasCoefficients, keras.regularizers.Regularizer):
    r"""Adds an L1 and an L2 penalty to the loss (the elastic net).

    $$\text{penalty} = l_1 \sum_i |w_i| + l_2 \sum_i w_i^2$$

    Use it for sparse weights with correlated inputs: L1 alone keeps one of them at random, the L2
    term keeps them together. A coefficient of 0 leaves its term out.

    Args:
        l1: Coefficient of the sum of absolutes, non-negative and finite.
        l2: Coefficient of the sum of squares, non-negative and finite.

    Raises:
        TypeError: If a coefficient is not a number.
        ValueError: If a coefficient is negative, NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from gradstab.regularizers import L1L2
        >>> float(L1L2(l1=0.5, l2=0.25)(np.array([1.0, -3.0], "float32")))
        4.5

    Reference: Zou and Hastie, 2005, Regularization and variable selection via the elastic net.
    """

    l1 = Coefficient()
    l2 = Coefficient()

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = l1
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        """Return the penalty on the weights `x`, of any shape, as a scalar."""
        # Both at any time, since either may be switched on while the step runs.
        penalty = _times(self.coefficient_tensor("l1"), _sum_of_absolutes(x))
        penalty += _times(self.coefficient_tensor("l2"), _sum_of_squares(x))
        return _as_loss(penalty)


def _wide_dtype(x: Any) -> str:
    wide: str = keras.backend.result_type(x.dtype, "float32")
    return wide


def _sum_of_absolutes(x: Any) -> Any:
    return ops.sum(ops.absolute(ops.cast(x, _wide_dtype(x))))


def _sum_of_squares(x: Any) -> Any:
    return ops.sum(ops.square(ops.cast(x, _wide_dtype(x))))


def _times(coefficient: Any, total: Any) -> Any:
    # A coefficient of 0 leaves out what has overflowed, too.
    coefficient = ops.cast(coefficient, total.dtype)
    return ops.where(coefficient > 0, coefficient * total, ops.zeros_like(total))


def _as_loss(penalty: Any) -> Any:
    return ops.cast(penalty, keras.config.floatx())
