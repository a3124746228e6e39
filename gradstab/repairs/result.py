"""The result of a repair: verdict, changes with their evidence, the diff, the repaired model."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

from gradstab.diagnosis.page import block, with_code
from gradstab.repairs.draft import Draft
from gradstab.repairs.prescriptions.base import Change
from gradstab.repairs.search import Evidence


@dataclasses.dataclass(frozen=True)
class Action:
    """A prescription that was applied.

    Attributes:
        name: The change in a few words.
        changes: Lines of code, before and after.
        evidence: Scores before, after, and with this change undone; `None` if time ran out.
    """

    name: str
    changes: tuple[Change, ...]
    evidence: Evidence | None


class Repair:
    """The result of `repair`.

    Scores: 1 is perfect, 0 is that of a constant output.

    Attributes:
        model: The repaired model, compiled, with fresh weights; ready for
            `model.fit(*repair.prepare(x, y), **repair.fit_arguments)`. The given model itself if
            nothing was changed.
        verdict: `"not needed"`, `"repaired"`, `"improved"` or `"not repairable"`.
        reason: The reason for the verdict, in a sentence.
        actions: Changes in the order in which they were made.
        fit_arguments: Arguments of `fit` beside the data.
        score_before: Score of the given model, trained as planned.
        score: Score of the repaired one.
        cost: Time of the search, in multiples of one training as planned.
        diagnosis: The diagnosis of the given model.
    """

    def __init__(
        self,
        model: Any,
        verdict: str,
        reason: str,
        *,
        actions: Sequence[Action],
        draft: Draft,
        score_before: float,
        score: float,
        cost: float,
        diagnosis: Any,
    ) -> None:
        self.model, self.verdict, self.reason = model, verdict, reason
        self.actions = tuple(actions)
        self.fit_arguments: dict[str, Any] = dict(draft.fit_arguments)
        self.score_before, self.score, self.cost = score_before, score, cost
        self.diagnosis = diagnosis
        self._draft = draft

    def prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return data prepared for the repaired model: labels from 0 on, rows with NaN removed."""
        return self._draft.prepared(x, y)

    def diff(self) -> str:
        """Return the change to make in the script: `-` lines to remove, `+` lines to add."""
        lines = []
        for action in self.actions:
            lines.append(f"# {action.name}")
            for change in action.changes:
                lines += [f"- {change.before}"] if change.before else []
                lines += [f"+ {change.after}"] if change.after else []
        return "\n".join(lines)

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.reason}"]
        lines.append(
            f"score {self.score_before:.2f} before, {self.score:.2f} after "
            f"(1 is perfect, 0 a constant output); search: {self.cost:.1f} trainings"
        )
        for action in self.actions:
            lines.append(f"- {action.name}{_told(action.evidence)}")
        if self.actions:
            lines += ["", self.diff()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        names = ", ".join(action.name for action in self.actions)
        return f"<Repair: {self.verdict}{': ' + names if names else ''}>"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the repair as a section of a page; what comes from the model is escaped."""
        rows = "".join(
            f"<tr><td>{html.escape(action.name)}</td>"
            + "".join(f"<td>{number}</td>" for number in _numbers(action.evidence))
            + "</tr>"
            for action in self.actions
        )
        table = (
            "<div class='scroll'><table><tr><th>change</th><th>before</th><th>after</th>"
            f"<th>undone</th></tr>{rows}</table></div>"
            if rows
            else ""
        )
        diff = f"<pre>{html.escape(self.diff())}</pre>" if self.actions else ""
        return block(
            f"<h2>Repair: {html.escape(self.verdict)}</h2>"
            f"<p>{with_code(self.reason)}</p>{table}{diff}"
        )


def _told(evidence: Evidence | None) -> str:
    if evidence is None:
        return " (not undone: the budget was spent)"
    return f" ({evidence.after:.2f} with it, {evidence.undone:.2f} undone)"


def _numbers(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["", "", ""]
    return [f"{number:.2f}" for number in dataclasses.astuple(evidence)]
