"""Rules on shapes: layers that are missing before the output, rows that get mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradstab.diagnosis.finding import Finding
from gradstab.diagnosis.looks.bundle import Looks
from gradstab.diagnosis.looks.data import TargetLook
from gradstab.diagnosis.looks.structure import HeadLook
from gradstab.diagnosis.rules.heads import CATEGORICAL, SPARSE

# Layers that keep positions apart: what comes after them has one axis more than rows and units.
_POSITIONAL: Final = ("Conv", "Pooling", "LSTM", "GRU", "RNN", "Bidirectional", "Embedding")


def missing_layer(looks: Looks) -> Iterator[Finding]:
    """Find an output that keeps positions which the targets do not have."""
    for head, target in looks.heads_with_targets():
        extra = len(head.shape) - len(_expected(head, target))
        if extra <= 0 or _fits(head, target) or not _pairs_entries(looks, head):
            continue
        layer = _first_dense_over_positions(looks) or head.layer
        recurrent = [
            each
            for each in looks.structure.layers
            if any(kind in each.kind for kind in ("LSTM", "GRU", "RNN"))
        ]
        if recurrent and recurrent[-1].output_rank == 3 and layer == head.layer:
            layer, fix = recurrent[-1].name, "Set `return_sequences=False` in the last one."
        else:
            fix = f"+ model.add(keras.layers.Flatten())  # before `{layer}`"
        yield Finding(
            "missing-layer",
            "error",
            layer,
            f"The output has shape {_shown(head.shape)} per row and the targets "
            f"{_shown(target.shape)}: the positions are never combined, by `Flatten`, pooling or "
            "`return_sequences=False`.",
            {"output_axes": len(head.shape), "target_axes": len(target.shape)},
            fix,
        )


def wrong_shape(looks: Looks) -> Iterator[Finding]:
    """Find outputs and targets that do not fit, rows that are mixed, and passes that fail."""
    signal = looks.signal
    for head, target in looks.heads_with_targets():
        expected = _expected(head, target)
        is_missing = len(head.shape) > len(expected) and not _fits(head, target)
        is_code = target.kind in ("classes", "binary") and (head.units or 0) > 1
        if _fits(head, target) or is_missing or is_code or not _pairs_entries(looks, head):
            continue
        one = head.units == 1 and head.loss in CATEGORICAL
        if one or (head.loss in SPARSE and target.kind == "one-hot"):
            continue  # said by loss-mismatch and label-encoding
        yield Finding(
            "wrong-shape",
            "error",
            head.layer,
            f"The output has shape {_shown(head.shape)} per row, and the targets "
            f"{_shown(target.shape)}.",
            {"units": head.units, "target_units": target.shape[-1] if target.shape else 1},
            f"Give `{head.layer}` as many units as a target has entries"
            f"{f', {target.shape[-1]}' if target.shape else ''}.",
        )
    mixing = next((each for each in signal.layers if each.mixes_rows), None)
    if mixing is not None:
        yield Finding(
            "wrong-shape",
            "error",
            mixing.name,
            f"The output of `{mixing.name}` for one row depends on the other rows of the batch: it "
            "mixes the batch axis with the features.",
            {"layer": mixing.name},
            "Keep the first axis: `keras.ops.reshape(x, (-1, ...))` or "
            "`keras.ops.reshape(x, (keras.ops.shape(x)[0], ...))`, and transpose other axes only.",
        )
    elif not signal.rows_agree:
        yield Finding(
            "wrong-shape",
            "error",
            None,
            "The model returns a different number of rows than it receives.",
            {},
            "Look for a reshape of, or a reduction over, the first axis.",
        )


def _pairs_entries(looks: Looks, head: HeadLook) -> bool:
    """Whether the loss pairs outputs with targets entry by entry, or failed at it."""
    return head.loss not in ("custom", "", "CTC") or bool(looks.signal.error)


def _expected(head: HeadLook, target: TargetLook) -> tuple[int, ...]:
    """Return the shape that an output should have for a target, as far as axes go."""
    if head.loss in SPARSE:
        shape = target.shape[:-1] if target.shape[-1:] == (1,) else target.shape
        return (*shape, head.units or 1)
    return target.shape or (1,)


def _fits(head: HeadLook, target: TargetLook) -> bool:
    shape, expected = tuple(head.shape), _expected(head, target)
    if head.loss == "custom" or head.loss == "":
        return len(shape) == len(expected) or None in shape
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    elif len(expected) == len(shape) + 1 and expected[-1] == 1:
        expected = expected[:-1]
    return len(shape) == len(expected) and all(
        ours is None or ours == theirs for ours, theirs in zip(shape, expected, strict=True)
    )


def _first_dense_over_positions(looks: Looks) -> str | None:
    seen = False
    for each in looks.structure.layers:
        if seen and each.kind == "Dense" and (each.output_rank or 0) > 2:
            return each.name
        seen = seen or any(kind in each.kind for kind in _POSITIONAL)
    return None


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if each is None else str(each) for each in shape)})"
