"""What TensorFlow tells of its strategies in `tf.__internal__` alone."""

from __future__ import annotations

import tensorflow as tf


def can_meet_while_tracing() -> bool:
    """Whether the replicas can meet while a step is traced (`merge_call`).

    Where XLA compiles for several GPUs they can't, and need not.
    """
    return not tf.__internal__.distribute.strategy_supports_no_merge_call()
