"""A summary as rows of a label and its words, for the page and for the terminal."""

from __future__ import annotations

from gradstab.reports._words import counted, number, share
from gradstab.reports.summary import Summary
from gradstab.reports.verdict import rate_words


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Return the summary as rows of a label and its words, the verdict first."""
    totals, bad = summary.totals, summary.first_bad_variable
    rows = [
        ("verdict", summary.verdict),
        ("end", summary.ending),
        ("started", _time(summary.started) or "not recorded"),
        ("last step", "none" if summary.last_step is None else f"{summary.last_step:,}"),
        ("recorded", _recorded(summary)),
        ("skipped", _with_causes(counted(summary.total_skipped, "step"), summary.skipped)),
        ("clipped", _clipped(summary)),
        ("limited", _limited(summary)),
        ("learning rate", rate_words(totals) or "not recorded"),
        ("last loss", "not recorded" if summary.last_loss is None else number(summary.last_loss)),
        ("best loss of a step", _at(summary.best_loss, summary.best_loss_step)),
        ("largest gradient norm", _of_norm(summary)),
        ("first bad variable", "none recorded" if bad is None else _named(*bad)),
    ]
    if summary.missed:
        rows.append(("missed", f"{counted(summary.missed, 'step')} not read in time"))
    if summary.problems:
        rows.append(("unreadable lines", f"{len(summary.problems)}: {summary.problems[0]}"))
    return rows


def _time(started: str) -> str:
    return started.replace("T", " ").removesuffix("+00:00") + " UTC" * started.endswith("+00:00")


def _recorded(summary: Summary) -> str:
    words = counted(summary.recorded_steps, "step")
    words += f", {counted(summary.sampled_steps, 'sample')} per variable"
    if summary.runs > 1:
        words += f", resumed {counted(summary.runs - 1, 'time')}"
    return words


def _clipped(summary: Summary) -> str:
    if summary.clipped_share is None:
        return "not recorded"
    if summary.counts_every_step:
        totals = summary.totals
        return f"{totals.clipped:,} of {counted(totals.steps, 'step')}"
    return f"{share(summary.clipped_share)} of the recorded steps"


def _limited(summary: Summary) -> str:
    if not summary.counts_every_step:
        return "not recorded"
    return _with_causes(counted(summary.totals.limited, "step"), summary.totals.limited_by)


def _with_causes(words: str, counts: dict[str, int]) -> str:
    causes = ", ".join(f"{cause} {count:,}" for cause, count in counts.items())
    return f"{words} ({causes})" if causes else words


def _at(value: float | None, step: int | None) -> str:
    if value is None:
        return "not recorded"
    return number(value) if step is None else f"{number(value)} at step {step:,}"


def _of_norm(summary: Summary) -> str:
    if summary.largest_norm == 0:
        return "exactly zero at every step: nothing can be learned so"
    return _at(summary.largest_norm, summary.largest_norm_step)


def _named(name: str, step: int | None) -> str:
    return name if step is None else f"{name} at step {step:,}"
