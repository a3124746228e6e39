"""Leaves examples that are not finite out of the loss, once skipping costs too many batches.

With 5 % bad examples 81 % of the batches of 32 hold one, and are skipped as a whole. A healthy run
pays nothing: nothing is built into its step before that. In a pipeline of its own the user has
`data.BadExamples` for the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from gradstab.optimizers.model.binding import MASKED, trains_by_keras_step
from gradstab.recovery.retrace import trace_anew

# The share of steps that is skipped between two looks, twice in a row, before examples are masked.
FROM_SHARE: Final = 0.1


class Masking:
    """Has a model's step train on the good examples of each batch alone.

    A bad example gets the weight 0 and the values of a good one of its batch, and the weights of
    the others are multiplied by n/m, for m good ones among n. A batch without a good one stays as
    it is, so that its step is skipped, and so does one whose weights are not one per example.

    Args:
        model: A compiled and built model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # Examples left out, and batches that held them.
        self._counts = tf.Variable(np.zeros(2, "int64"), trainable=False, name="masked")
        self._is_in_place = self._is_tried = self._many_before = False

    def see(self, steps: int, skipped: int) -> str | None:
        """Take in how many steps were skipped since the last look; return what was done, in words.

        Masking is built in once many of the steps of two looks in a row were skipped, and taken out
        if it then finds no bad example: something else is the cause.

        Args:
            steps: Steps since the last look.
            skipped: How many of them were skipped.
        """
        if not self._is_tried:
            before, self._many_before = self._many_before, skipped > FROM_SHARE * steps
            if before and self._many_before and self._can_install:
                self._install()
                self._is_tried = True
            return None
        if not self._is_in_place or not self._many_before:
            return None
        self._many_before = False
        examples, batches = self.counts()
        if not examples:
            self.uninstall()
            return None
        return (
            "Many steps were skipped, since their batches hold examples that are not finite: "
            f"{examples} in {batches} of the last batches. Now such examples are left out "
            "of the loss, and the others of their batch are trained on. "
            "`gradstab.data.BadExamples` does so from the first batch on, and names them."
        )

    def total(self) -> str | None:
        """Return how much was left out in all, in words, or `None` for nothing."""
        examples, batches = self.counts()
        if not examples:
            return None
        return f"{examples} examples of {batches} batches were not finite and left out of the loss."

    @property
    def _can_install(self) -> bool:
        return (
            trains_by_keras_step(self._model)
            and self._model.distribute_strategy.num_replicas_in_sync == 1
        )

    def _install(self) -> None:
        step: Callable[[Any], Any] = self._model.train_step

        def masked_step(data: Any) -> Any:
            return step(self._masked(data))

        setattr(masked_step, MASKED, True)
        vars(self._model)["train_step"] = masked_step
        self._is_in_place = True
        trace_anew(self._model)

    def uninstall(self) -> None:
        """Take it out of the step."""
        if self._is_in_place:
            vars(self._model).pop("train_step", None)
            self._is_in_place = False
            trace_anew(self._model)

    def counts(self) -> tuple[int, int]:
        """Return how many examples were left out so far, and of how many batches."""
        examples, batches = self._counts.numpy().tolist()
        return examples, batches

    def state(self) -> list[Any]:
        """Return what a resumed run goes on with."""
        return [self._is_tried, self._is_in_place, self._many_before, *self.counts()]

    def resume(self, state: list[Any]) -> None:
        """Go on with what `state` returned."""
        self._is_tried, is_in_place, self._many_before, *counts = state
        self._counts.assign(np.array(counts, "int64"))
        if is_in_place and not self._is_in_place and self._can_install:
            self._install()

    def _masked(self, data: Any) -> Any:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        leaves = [leaf for leaf in keras.tree.flatten((x, y, weight)) if leaf is not None]
        if y is None or not all(isinstance(leaf, tf.Tensor) and leaf.shape.rank for leaf in leaves):
            return data
        if weight is not None and (keras.tree.is_nested(weight) or weight.shape.rank != 1):
            return data
        size = tf.shape(leaves[0])[0]
        good = tf.ones((size,), tf.bool)
        for leaf in leaves:
            if leaf.dtype.is_floating:
                axes = list(range(1, leaf.shape.rank))
                good = tf.logical_and(good, tf.reduce_all(tf.math.is_finite(leaf), axis=axes))
        many = tf.reduce_sum(tf.cast(good, tf.int32))
        mask = tf.logical_or(good, many == 0)
        bad = tf.cast(size - tf.where(many > 0, many, size), tf.int64)
        self._counts.assign_add(tf.stack([bad, tf.cast(bad > 0, tf.int64)]))
        # XLA takes no rows of a number that it does not know: one good example stands in for all.
        one = tf.argmax(tf.cast(good, tf.int32), output_type=tf.int32)
        rows = tf.where(mask, tf.range(size), one)
        x, y = keras.tree.map_structure(
            lambda leaf: None if leaf is None else tf.gather(leaf, rows), (x, y)
        )
        dtype = tf.as_dtype(keras.config.floatx())
        whole = tf.ones((size,), dtype) if weight is None else tf.cast(weight, dtype)
        share = tf.cast(size, dtype) / tf.cast(tf.where(many > 0, many, size), dtype)
        return x, y, tf.where(mask, whole * share, tf.zeros_like(whole))
