"""The origin of a step that was not finite: plain data, and its text."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

# What a step can have been begun by.
KINDS: Final = (
    "inputs", "targets", "sample_weights", "labels", "weights", "statistics", "moments", "layer",
    "loss", "gradient", "float16", "unknown",
)  # fmt: skip
_DATA: Final = {"inputs": "inputs", "targets": "targets", "sample_weights": "sample weights"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """What began a step that was not finite.

    Attributes:
        kind: One of `KINDS`. `"inputs"`, `"targets"`, `"sample_weights"`: a part of the batch holds
            NaN or infinity; `"labels"`: a label is outside the classes; `"weights"`,
            `"statistics"`, `"moments"`: these were not finite before the step; `"layer"`, `"loss"`,
            `"gradient"`: arithmetic in the forward pass, the loss or the backward pass;
            `"float16"`: a number is too large for half precision.
        step: Number of the step, from 1, as the telemetry counts.
        layer: The layer, where it is one.
        inside: The layer nested in that one, if there is one.
        operation: The operation, such as `"log"`, `"division"`, `"root"`, `"overflow"`.
        what: The operation in words, or other details.
        part: Name of the input or target if there are several, or path of the variable.
        row: Row of the batch, from 0.
        column: Index within that row; empty if a row is one number.
        rows: Number of rows of the batch with such an entry.
        of_rows: Number of rows of the batch.
        example: Index of the row in the training arrays, if known.
        phase: Phase of the step: `"forward"`, `"loss"` or `"backward"`.
    """

    kind: str
    step: int | None = None
    layer: str | None = None
    inside: str | None = None
    operation: str | None = None
    what: str = ""
    part: str | None = None
    row: int | None = None
    column: tuple[int, ...] = ()
    rows: int = 0
    of_rows: int = 0
    example: int | None = None
    phase: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether the origin is known."""
        return self.kind != "unknown"

    def same_as(self, other: Origin) -> bool:
        """Whether it is the same fault, possibly in another row or at another step."""
        mine, theirs = (
            (o.kind, o.layer, o.inside, o.operation, o.part, o.column, o.phase)
            for o in (self, other)
        )
        return mine == theirs

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known, as JSON takes it."""
        return {**dataclasses.asdict(self), "column": list(self.column), "told": str(self)}

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        return f"What began it{at}: {self._told()}"

    def _told(self) -> str:
        if self.kind in _DATA:
            return (
                f"the {_DATA[self.kind]}{self._named_part()} held NaN or infinity{self._where()}. "
                "Look at the data."
            )
        if self.kind == "labels":
            return f"{self.what}{self._where()}. Look at the labels, and at the width of the head."
        if self.kind == "weights":
            return (
                f"`{self.part}`{self._of_layer()} held NaN or infinity before the step, and the "
                "moments were finite: an update that overflowed, or something else that writes the "
                "variable, began it. Look at the learning rate, and at what loads or assigns "
                "weights."
            )
        if self.kind == "statistics":
            return (
                f"`{self.part}`{self._of_layer()}, which is not trained, held NaN or infinity "
                "before the step. An earlier batch or a file that was loaded brought it."
            )
        if self.kind == "moments":
            return (
                f"`{self.part}`, a moment or other state of the optimizer, held NaN or infinity "
                f"before the step, and made the weights of layer `{self.layer}` so. Restore the "
                "optimizer's state, or make it anew."
            )
        if self.kind == "layer":
            return (
                f"layer {self._layer()} made NaN or infinity of finite numbers: "
                f"{self.what}{self._where()}. The data and the weights were finite."
            )
        if self.kind == "loss":
            return (
                f"the model's outputs were finite, and the loss function made NaN or infinity of "
                f"them: {self.what}{self._where()}."
            )
        if self.kind == "gradient":
            where = "the loss function" if self.layer is None else f"layer {self._layer()}"
            return (
                f"the loss was finite, and {where} lost the gradient on the way back: "
                f"{self.what}{self._where()}. Keep its argument away from there, as by adding a "
                "small number inside the root or logarithm."
            )
        if self.kind == "float16":
            where = "the loss function" if self.layer is None else f"layer {self._layer()}"
            way = " on the way back" if self.phase == "backward" else ""
            return (
                f"{where} overflowed in float16{way}: {self.what}{self._where()}. Scale its inputs,"
                " normalize before it, or give it the dtype policy `float32`."
            )
        return f"not known. {self.what}"

    def _layer(self) -> str:
        inside = "" if self.inside is None else f" (in `{self.inside}`)"
        return f"`{self.layer}`{inside}"

    def _of_layer(self) -> str:
        return "" if self.layer is None else f" of layer {self._layer()}"

    def _named_part(self) -> str:
        return "" if self.part is None else f" `{self.part}`"

    def _where(self) -> str:
        if self.row is None:
            return ""
        column = ", ".join(map(str, self.column))
        place = f"row {self.row} of the batch" + (f", column {column}" if column else "")
        if self.example is not None:
            place += f", example {self.example} of the arrays"
        more = f"; {self.rows} of {self.of_rows} rows have one" if self.rows > 1 else ""
        return f" ({place}{more})"
