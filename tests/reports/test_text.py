"""Summary, text, JSON and the lines of a run that is followed."""

import json
import math

import pytest

from gradstab.monitoring.record import read_record
from gradstab.monitoring.writer import RecordWriter
from gradstab.reports.live import Tail, to_line
from gradstab.reports.summary import summarize
from gradstab.reports.text import to_json, to_text

NAN = math.nan


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_the_summary_counts_what_the_record_says(tmp_path):
    with RecordWriter(tmp_path, variables=["a", "b"]) as writer:
        norms, losses = [1.0, 40.0, NAN, 2.0, 3.0], [3.0, 0.5, 0.25, NAN, math.inf]
        for step, (norm, loss) in enumerate(zip(norms, losses, strict=True), start=1):
            clipped = int(norm > 2.0)
            writer.step(step, {"loss": loss, "grad_norm": norm, "clipped": clipped})
        writer.event("skip", step=3, cause="nonfinite", variable="b")
        writer.event("skip", step=4, cause="spike")
        writer.event("missed", step=9, steps=4)
    summary = summarize(read_record(tmp_path))
    assert (summary.largest_norm, summary.largest_norm_step) == (40.0, 2)
    assert (summary.best_loss, summary.best_loss_step) == (0.25, 3)
    assert summary.last_loss == math.inf
    assert summary.clipped_share == pytest.approx(2 / 5)
    assert summary.skipped == {"nonfinite": 1, "spike": 1}
    assert summary.first_bad_variable == ("b", 3)
    assert (summary.missed, summary.last_step, summary.recorded_steps) == (4, 9, 5)
    assert "the loss is not finite at the last 2 recorded steps, from 4 on" in summary.ending


def test_a_resumed_run_counts_a_skip_once(tmp_path):
    for last in (3, 6):
        with RecordWriter(tmp_path) as writer:
            for step in range(2, last):
                writer.step(step, {"skipped": int(step == 2)})
                if step == 2:
                    writer.event("skip", step=2, cause="nonfinite")
    summary = summarize(read_record(tmp_path))
    assert summary.skipped == {"nonfinite": 1}
    assert (summary.runs, summary.recorded_steps) == (2, 4)


def test_a_skip_that_only_the_column_tells_is_counted(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"skipped": 1})
        writer.event("skip", cause="spike")
    assert summarize(read_record(tmp_path)).skipped == {"cause not recorded": 1, "spike": 1}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "stop", "step": 7, "cause": "divergence", "message": "50 in a row"},
         "stopped at step 7 (divergence): 50 in a row"),
        ({"event": "end", "step": 8}, "ended at step 8"),
        ({"event": "stop", "reason": "budget"}, "stopped: reason budget"),
    ],
)  # fmt: skip
def test_the_end_in_words(event, told, tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.event(**event)
    assert summarize(read_record(tmp_path)).ending == told


def test_a_loss_that_nobody_told_is_no_divergence(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": NAN, "grad_norm": 1.0})
    ending = summarize(read_record(tmp_path)).ending
    assert ending.startswith("no finite loss is recorded")


def test_equal_incidents_in_a_row_are_one(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step in (4, 5, 6, 8):
            writer.event("skip", step=step, cause="nonfinite", variable="a")
        writer.event("skip", step=9, cause="nonfinite", variable="b")
        writer.event("note")
        writer.event("note")
    found = summarize(read_record(tmp_path)).incidents
    assert [(each.first, each.last, each.count) for each in found] == [
        (4, 6, 3), (8, 8, 1), (9, 9, 1), (None, None, 1), (None, None, 1),
    ]  # fmt: skip


def test_text_of_a_real_run(nan_run):
    text = to_text(read_record(nan_run))
    assert "skipped                2 steps (nonfinite 2)" in text
    assert "first/kernel at step 6" in text
    rows = [line for line in text.splitlines() if line.startswith("6 ")]
    assert len(rows) == 2
    assert "skipped: nonfinite" in rows[0]
    assert "What began it at step 6: the inputs held NaN" in rows[1]


def test_text_steers_no_terminal_and_is_cut(full_run, wide_run):
    text = to_text(read_record(full_run))
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "<script>alert(1)</script>" in text  # no page: nothing to escape
    text.encode()
    wide = to_text(read_record(wide_run))
    assert "... and 280 more variables; --format json and html have all" in wide
    assert len(wide.splitlines()) < 100


def test_json_is_strict_and_whole(full_run, wide_run, empty_run, nan_run):
    for run_dir in (full_run, wide_run, empty_run, nan_run):
        record = read_record(run_dir)
        found = json.loads(to_json(record), parse_constant=refuse)
        assert [each["name"] for each in found["variables"]] == list(record.header["variables"])
        assert found["recorded_steps"] == len(record.steps)
    assert found["first_bad_variable"]["step"] == 6
    assert found["skipped"] == {"nonfinite": 2}


def test_json_tells_nan_from_nothing(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": NAN})
    found = json.loads(to_json(read_record(tmp_path)), parse_constant=refuse)
    assert (found["last_loss"], found["best_loss"]) == ("nan", None)


# --- a run that goes on


def steps_of(entries):
    return [entry.get("step") for entry in entries if entry["kind"] != "run"]


def test_a_tail_gives_each_line_once_and_waits_for_half_ones(tmp_path):
    tail = Tail(tmp_path)
    assert tail.look() == []  # the record need not be there yet
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": 1.0})
        assert [entry["kind"] for entry in tail.look()] == ["run", "step"]
        assert tail.look() == []
        with writer.path.open("ab") as file:
            file.write(b'{"kind":"step","st')
        assert tail.look() == []
        with writer.path.open("ab") as file:
            file.write(b'ep":2,"scalars":{}}\n')
        assert steps_of(tail.look()) == [2]
        with writer.path.open("ab") as file:
            file.write(b'\xff\n[1]\n{"kind":"new"}\n' + b"[" * 100_000 + b"\n")
        writer.step(3, {})
        assert steps_of(tail.look()) == [3]


def test_a_tail_knows_the_end_and_a_run_that_resumes_after_it(tmp_path):
    tail = Tail(tmp_path / "record.jsonl")
    with RecordWriter(tmp_path) as writer:
        writer.event("skip", step=1)
        tail.look()
        assert not tail.ended
        writer.event("stop", step=1)
        tail.look()
        assert tail.ended
    with RecordWriter(tmp_path) as writer:
        tail.look()
        assert not tail.ended
        writer.event("end", step=2)
        tail.look()
        assert tail.ended


def test_a_record_that_was_replaced_is_read_from_its_start(tmp_path):
    tail = Tail(tmp_path)
    with RecordWriter(tmp_path) as writer:
        for step in range(50):
            writer.step(step, {})
    tail.look()
    (tmp_path / "record.jsonl").unlink()
    with RecordWriter(tmp_path) as writer:
        writer.step(7, {})
    assert steps_of(tail.look()) == [7]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"kind": "step", "step": 12, "scalars": {"loss": 0.5, "grad_norm": "nan", "clipped": 1}},
         "step     12  loss 0.5        grad_norm nan        clipped"),
        ({"kind": "event", "step": 3, "event": "skip", "details": {"cause": "\x1b[2J\n"}},
         "step      3  SKIP  cause �[2J"),
        ({"kind": "finding", "step": None, "finding": "dead", "details": {}},
         "step      -  DEAD"),
        ({"kind": "step", "step": "x", "scalars": 3}, "step      ?"),
        ({"kind": "event", "event": ["x"], "details": None}, "step      -  ['X']"),
    ],
)  # fmt: skip
def test_lines(entry, line):
    assert to_line(entry).rstrip() == line


def test_one_sample_that_is_not_finite_is_told_as_one(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": 2.0, "grad_norm": 0.0})
        writer.step(50, {"loss": math.nan, "grad_norm": 0.0})
    record = read_record(tmp_path)
    assert "the loss of the last recorded step, 50, is not finite" in summarize(record).ending
    assert "exactly zero at every step" in to_text(record)
