"""Turns data in any form into a feed for the compiled loop."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gradstab.training.array_feed import HOW_TO_FEED, ArrayFeed
from gradstab.training.generated import as_pipeline, is_generated
from gradstab.training.pipeline_feed import DatasetFeed
from gradstab.training.weighting import weighted_arrays, weighted_pipeline


def make_feed(
    name: str,
    data: Any,
    *,
    batch_size: int,
    steps_per_epoch: int | None = None,
    seed: int | None = None,
    first_epoch: int = 0,
    class_weight: dict[int, float] | None = None,
) -> ArrayFeed | DatasetFeed:
    """Return the feed for `data`, or refuse it by its argument's `name`.

    Args:
        name: The argument that `data` came in as, for messages.
        data: A tuple of arrays, a `tf.data.Dataset` of batches, a `PyDataset` or a generator.
        batch_size: Examples per step, for arrays.
        steps_per_epoch: Cuts a pipeline into epochs of that many batches, repeating it as needed.
        seed: Shuffles arrays and the batches of a `PyDataset` by seed and epoch; None keeps their
            order.
        first_epoch: The epoch that is opened first.
        class_weight: Weights of examples by class.
    """
    if is_generated(data):
        data = as_pipeline(name, data, seed=seed)
    if isinstance(data, tf.data.Dataset):
        if class_weight is not None:
            data = weighted_pipeline(data, class_weight)
        return DatasetFeed(name, data, steps_per_epoch, first_epoch)
    if steps_per_epoch is not None:
        raise ValueError(
            "`steps_per_epoch` goes with a tf.data.Dataset; an epoch of arrays is one pass over "
            f"them. Received: steps_per_epoch={steps_per_epoch} with `{name}` of arrays. Leave "
            "`steps_per_epoch` out"
        )
    if not isinstance(data, tuple) or len(data) not in (1, 2, 3):
        shown = f"a {type(data).__name__}" + (
            f" of length {len(data)}" if isinstance(data, tuple) else ""
        )
        raise TypeError(f"`{name}` is not data to train on. Received: {shown}. {HOW_TO_FEED}")
    if class_weight is not None:
        data = weighted_arrays(data, class_weight)
    return ArrayFeed(name, data, batch_size, seed)
