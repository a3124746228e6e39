"""Split and batched data, as returned by `load` and `from_arrays`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstab._validation import check_choice
from gradstab.data.batches import ForEpoch, Source, reshuffled
from gradstab.data.splits import Rows


@dataclass(frozen=True, repr=False)
class Datasets:
    """Training, validation and test batches of one data set.

    Each split is a `tf.data.Dataset` of `(inputs, labels)`: float32 `(batch, *input_shape)` in the
    data's own range and int64 `(batch,)`. The last batch of a pass may be smaller. Validation and
    test keep their order. `train` is shuffled anew each time it is iterated: the first time in the
    order of `train_for_epoch(0)`, then of `train_for_epoch(1)`, and so on.

    Attributes:
        train: Training batches. Its attribute `for_epoch` is `train_for_epoch`, by which
            `gradstab.training.train` gives a resumed run the order of the uninterrupted one.
        validation: Batches for model selection.
        test: Batches for the final score.
        class_names: A name for each class; labels count from 0 in this order.
        name: Name of the data set.
        input_shape: Shape of one input, for images (height, width, channels).
        pixel_max: Largest possible value of an input: `rescale=1 / pixel_max` scales it to 1.
        rows: For `"train"`, `"validation"` and `"test"` the row numbers in the source, ascending;
            no row is in two of them.
    """

    train: Any
    validation: Any
    test: Any
    class_names: tuple[str, ...]
    name: str
    input_shape: tuple[int, ...]
    pixel_max: float
    rows: Mapping[str, Rows]
    _source: Source = field(compare=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def train_for_epoch(self, epoch: Any) -> Any:
        """Return the training batches in their order in `epoch`, a function of seed and epoch.

        Args:
            epoch: The number of the epoch, from 0: an int, or a scalar integer tensor, so that
                `tf.data.Dataset.range(first, last).flat_map(datasets.train_for_epoch)` is one
                pipeline over several epochs.
        """
        return self.train.for_epoch(epoch)

    def with_train(self, for_epoch: ForEpoch) -> Datasets:
        """Return a copy with other training batches that are still a function of the epoch.

        Use it to augment, filter or damage the training batches and keep exact resuming, which
        `datasets.train.map(...)` would lose.

        Args:
            for_epoch: From a scalar integer tensor, the number of the epoch, to a
                `tf.data.Dataset`. It is traced: branch on the epoch with TensorFlow's operations.

        Example:
            >>> from gradstab.data import load
            >>> digits = load("digits")
            >>> halved = digits.with_train(
            ...     lambda epoch: digits.train_for_epoch(epoch).map(lambda x, y: (x / 2, y)))
            >>> float(next(iter(halved.train))[0].numpy().max())
            8.0
        """
        return replace(self, train=reshuffled(for_epoch))

    def arrays(self, split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the inputs and labels of a split as NumPy arrays, in the order of `rows`.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
        """
        rows = self.rows[check_choice("split", split, list(self.rows))]
        inputs, labels = self._source.fetch(rows)
        return inputs.numpy(), labels.numpy()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(rows)}" for split, rows in self.rows.items())
        return (
            f"Datasets(name={self.name!r}, input_shape={self.input_shape}, "
            f"num_classes={self.num_classes}, {sizes})"
        )
