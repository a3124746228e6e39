"""What optimizers of ours read from the Keras optimizer that they extend.

Keras' optimizers have no public way to a slot of theirs, such as Adam's second moment of one
variable, and none to whether weight decay holds for it. The private names stand here alone.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gradstab.optimizers.sparse import is_sparse, join_sparse, split_sparse


def slot(optimizer: Any, name: str, variable: Any) -> Any:
    """Return the variable in which an optimizer keeps something of another variable.

    Args:
        optimizer: A built optimizer.
        name: Attribute with a list of slots, such as `"_velocities"`.
        variable: The variable that is trained, as `update_step` receives it.

    Raises:
        AttributeError: If this version of Keras keeps its slots elsewhere.
    """
    return getattr(optimizer, name)[optimizer._get_variable_index(variable)]


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer's weight decay holds for a variable, as `update_step` receives it.

    Raises:
        AttributeError: If this version of Keras decides it elsewhere.
    """
    return optimizer.weight_decay is not None and bool(optimizer._use_weight_decay(variable))


def with_rows_once(gradient: Any) -> Any:
    """Sum the duplicate rows of a sparse gradient, which Keras would square one by one."""
    if not is_sparse(gradient):
        return gradient
    values, rows = split_sparse([gradient])
    return join_sparse(values, rows, [gradient])[0]


def dense(gradient: Any) -> Any:
    """Return a sparse gradient as the dense one that it stands for; a dense one as it is.

    Duplicate rows are summed. (`ops.convert_to_tensor` would leave it sparse.)
    """
    return tf.convert_to_tensor(gradient)
