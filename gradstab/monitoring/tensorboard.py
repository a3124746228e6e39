"""Writes measurements of a run as TensorBoard event files.

It needs the extra `tensorboard`: `pip install "gradstab[tensorboard]"`. TensorFlow writes the
file, so this module works with TensorFlow only; both are imported when a writer is made.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, final

import numpy as np

from gradstab._validation import check_int

_HISTOGRAMS: Final = "gradient_histograms"
_PNG_BEGINS: Final = b"\x89PNG\r\n\x1a\n"

_Array = np.ndarray[Any, Any]


@final
class TensorBoardWriter:
    """Appends scalars, histograms and images to a TensorBoard event file of its own.

    Use it together with Keras' `TensorBoard` callback, or alone. Every writer opens a file of its
    own, so the folder may hold others, and `tf.summary.record_if` elsewhere does not affect it.
    Data are in the file when a call returns, so a killed run loses nothing. TensorBoard groups its
    cards by the part of a tag before the first `/`.

    Args:
        log_dir: Folder for the event file, local or remote as TensorFlow knows it. It is created if
            missing.

    Raises:
        ImportError: If tensorboard is missing: `pip install "gradstab[tensorboard]"`.
        OSError: If the file can't be created.

    Example:
    ```python
    with TensorBoardWriter("logs/first") as writer:
        writer.scalars(10, {"gradients/grad_norm": 0.7})
        writer.histograms(10, [[3, 5]], low=[-0.1], high=[0.1], names=["dense/kernel"])
    ```
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = os.fspath(log_dir)
        self._format = _Format()

        import tensorflow as tf

        try:
            self._writer = tf.summary.create_file_writer(self.log_dir)
        except tf.errors.OpError as error:
            raise OSError(
                f"`log_dir` must be a folder in which files can be made. "
                f"Received: log_dir={self.log_dir!r} ({error.message})"
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of one step, NaN and infinity as they are.

        Args:
            step: Number of the step.
            values: Numbers by tag, such as `gradients/grad_norm`, written in float32.
        """
        summary = self._format.summary()
        # TensorBoard's default data server passes over scalars in float64 without a word.
        with np.errstate(over="ignore"):
            for tag, value in values.items():
                self._format.add(summary, tag, "scalar", np.asarray(value, "float32"))
        self._write(step, summary)

    def histograms(
        self,
        step: int,
        counts: Sequence[Sequence[float]] | _Array,
        low: Sequence[float] | _Array,
        high: Sequence[float] | _Array,
        names: Sequence[str],
    ) -> None:
        """Write histograms, given their counts, one for each variable.

        Bin j of variable i reaches from `low[i] + j w` to `low[i] + (j + 1) w`, where
        `w = (high[i] - low[i]) / bins`. A variable with equal entries gets one bin of width 0. A
        variable whose range is not finite can't be drawn and is left out of this step.

        Args:
            step: Number of the step.
            counts: Number of entries in each bin, shape (variables, bins).
            low: Left end of the first bin, shape (variables,).
            high: Right end of the last bin, shape (variables,).
            names: Paths of the variables. The tag is `gradient_histograms/` and the path.

        Raises:
            ValueError: If the shapes do not match, or if a finite `low` is above `high`.
        """
        counts, low, high = (np.asarray(part, "float64") for part in (counts, low, high))
        _check_histograms(counts, low, high, names)
        # Each end is reached exactly, and a range that float64 can't hold does not overflow.
        shares = np.linspace(0.0, 1.0, counts.shape[1] + 1)
        summary = self._format.summary()
        for place in np.flatnonzero(np.isfinite(low) & np.isfinite(high)).tolist():
            if low[place] == high[place]:
                bins = np.array([[low[place], high[place], counts[place].sum()]])
            else:
                edges = (1.0 - shares) * low[place] + shares * high[place]
                bins = np.stack([edges[:-1], edges[1:], counts[place]], axis=1)
            self._format.add(summary, f"{_HISTOGRAMS}/{names[place]}", "histogram", bins)
        self._write(step, summary)

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Write an encoded image, such as a figure.

        Args:
            step: Number of the step.
            tag: Tag of the image, such as `gradients/layers`.
            png: Content of a PNG file.

        Raises:
            ValueError: If `png` is not a PNG file.
        """
        if not png.startswith(_PNG_BEGINS) or len(png) < 24:
            raise ValueError(
                f"`png` must be the content of a PNG file. Received: {len(png)} bytes that begin "
                f"with {png[:8]!r}"
            )
        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
        summary = self._format.summary()
        content = [str(width).encode(), str(height).encode(), png]
        self._format.add(summary, tag, "image", content)
        self._write(step, summary)

    def flush(self) -> None:
        """Flush the file; every write does so by itself."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file. A second call does nothing."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, step: int, summary: Any) -> None:
        import tensorflow as tf

        step = check_int("step", step, minimum=0)
        # One op for all: `tf.summary.write` costs several for each tag. Keras' `TensorBoard` leaves
        # its own condition on while a batch runs. The end of `as_default` flushes.
        with self._writer.as_default(), tf.summary.record_if(True):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)


class _Format:
    """TensorBoard's messages, and the marks by which its dashboards know them."""

    def __init__(self) -> None:
        self.summary = _tensorboard("compat.proto.summary_pb2").Summary
        self._tensor = _tensorboard("util.tensor_util").make_tensor_proto
        self._metadata = {
            kind: _tensorboard(f"plugins.{kind}.metadata").create_summary_metadata(
                display_name=None, description=None
            )
            for kind in ("scalar", "histogram", "image")
        }

    def add(self, summary: Any, tag: str, kind: str, content: Any) -> None:
        """Add one value, whose tensor holds what the dashboard of its kind reads.

        A scalar is a number; a histogram has rows (left, right, count); an image is the strings
        (width, height, file).
        """
        summary.value.add(tag=tag, metadata=self._metadata[kind], tensor=self._tensor(content))


def _tensorboard(module: str) -> Any:
    try:
        return importlib.import_module(f"tensorboard.{module}")
    except ImportError as error:
        raise ImportError(
            f'Event files need tensorboard: pip install "gradstab[tensorboard]" ({error})'
        ) from error


def _check_histograms(counts: _Array, low: _Array, high: _Array, names: Sequence[str]) -> None:
    if not (
        counts.ndim == 2
        and counts.shape[1] > 0
        and counts.shape[:1] == low.shape == high.shape == (len(names),)
    ):
        raise ValueError(
            "`counts` must have the shape (variables, bins), and `low`, `high` and `names` one "
            f"entry for each variable. Received: counts.shape={counts.shape}, "
            f"low.shape={low.shape}, high.shape={high.shape}, {len(names)} names"
        )
    for place in np.flatnonzero(np.isfinite(low) & np.isfinite(high) & (low > high)).tolist():
        raise ValueError(
            "`low` must be at most `high`. "
            f"Received: {low[place]} and {high[place]} for {names[place]!r}"
        )
