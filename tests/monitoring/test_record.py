"""The run record: what is written comes back, whatever happens to the file in between."""

import json
import math
import time

import numpy as np
import pytest

from gradstab.monitoring.record import SCHEMA, Totals, read_record
from gradstab.monitoring.writer import RecordWriter

VARIABLES = ["conv/kernel", "conv/bias", "dense/kernel"]


@pytest.fixture
def written(tmp_path):
    """A record of three steps, the second of them skipped."""
    with RecordWriter(
        tmp_path, variables=VARIABLES, config={"seed": 1, "clip": math.inf}
    ) as writer:
        writer.step(1, {"loss": 2.5, "grad_norm": 4.0}, per_variable={"grad_norm": [3.0, 0.0, 2.0]})
        writer.step(2, {"loss": math.nan, "grad_norm": math.inf})
        writer.event("skip", step=2, cause="nonfinite", variable="conv/kernel")
        writer.step(3, {"loss": 2.25}, per_variable={"grad_norm": [math.nan, math.inf, -math.inf]})
    return tmp_path / "record.jsonl"


def test_what_is_written_comes_back(written):
    record = read_record(written.parent)
    np.testing.assert_array_equal(record.steps, [1, 2, 3])
    np.testing.assert_array_equal(record.column("loss"), [2.5, math.nan, 2.25])
    np.testing.assert_array_equal(record.column("grad_norm"), [4.0, math.inf, math.nan])
    np.testing.assert_array_equal(record.norms.steps, [1, 3])
    np.testing.assert_array_equal(
        record.norms.values, [[3.0, 0.0, 2.0], [math.nan, math.inf, -math.inf]]
    )
    assert record.norms.names == tuple(VARIABLES)
    (event,) = record.events
    assert (event.name, event.step) == ("skip", 2)
    assert event.details == {"cause": "nonfinite", "variable": "conv/kernel"}
    assert record.header["schema"] == SCHEMA
    assert record.header["config"] == {"seed": 1, "clip": "inf"}
    assert record.header["variables"] == VARIABLES
    assert record.header["versions"]["numpy"] == np.__version__
    assert record.problems == ()


def test_the_file_itself_reads_as_its_directory_does(written):
    assert read_record(written).runs == read_record(written.parent).runs


def test_every_line_is_strict_json(written):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    kinds = [
        json.loads(line, parse_constant=refuse)["kind"] for line in written.read_text().splitlines()
    ]
    assert kinds == ["run", "step", "step", "event", "step"]


def test_numbers_keep_their_digits(tmp_path):
    loss, norm = float(np.float32(2.3025851)), 1.234567e-12
    with RecordWriter(tmp_path / "night.jsonl", variables=["w"]) as writer:
        writer.step(1, {"loss": loss, "count": 2**53 - 1}, per_variable={"grad_norm": [norm]})
        writer.step(2, {"loss": np.float32(loss), "clipped": np.True_})
    record = read_record(tmp_path / "night.jsonl")
    np.testing.assert_allclose(record.column("loss"), loss, rtol=1e-6)
    assert record.column("count")[0] == 2**53 - 1
    assert record.column("clipped")[1] == 1.0
    np.testing.assert_allclose(record.norms.values, [[norm]], rtol=1e-4)


def test_a_record_reads_as_it_grows(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.step(step, {"loss": 1.0})
            assert read_record(tmp_path).steps[-1] == step


def test_a_kill_at_any_byte_leaves_a_readable_record(written):
    whole = written.read_bytes()
    header = whole.index(b"\n") + 1
    for end in range(header, len(whole)):
        written.write_bytes(whole[:end])
        # The newline may be missing of a line that is whole otherwise.
        lines = whole[: end + 1].count(b"\n")
        record = read_record(written)
        assert len(record.steps) + len(record.events) == lines - 1
        assert record.problems == ()


@pytest.mark.parametrize("torn", [b'{"kind":"step","st', b'{"kind":"step","step":4,"scalars":{}}'])
def test_a_resumed_run_begins_a_new_line_after_a_torn_one(written, torn):
    with written.open("ab") as file:
        file.write(torn)
    with RecordWriter(written, variables=VARIABLES) as writer:
        writer.step(5, {"loss": 1.5})
    record = read_record(written)
    assert record.steps[-1] == 5
    assert len(record.runs) == 2
    assert record.problems == ()


def test_a_resumed_run_replaces_the_steps_that_it_repeats(written):
    with RecordWriter(written, variables=["conv/kernel", "head/kernel"]) as writer:
        writer.step(2, {"loss": 7.0}, per_variable={"grad_norm": [5.0, 6.0]})
        writer.step(3, {"loss": 8.0})
    record = read_record(written)
    np.testing.assert_array_equal(record.steps, [1, 2, 3])
    np.testing.assert_array_equal(record.column("loss"), [2.5, 7.0, 8.0])
    assert record.norms.names == (*VARIABLES, "head/kernel")
    nan = math.nan
    np.testing.assert_array_equal(record.norms.values, [[3.0, 0.0, 2.0, nan], [5.0, nan, nan, 6.0]])


def test_a_full_disk_does_not_glue_lines(tmp_path):
    class FullOnce:
        """Takes half a line, then has no space, then has space again."""

        def __init__(self, file):
            self.file, self.calls = file, 0

        def write(self, data):
            self.calls += 1
            if self.calls == 2:
                raise OSError(28, "No space left on device")
            return self.file.write(data[: len(data) // 2] if self.calls == 1 else data)

        def close(self):
            self.file.close()

    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": 1.0})
        writer._file = FullOnce(writer._file)
        with pytest.raises(OSError, match="No space"):
            writer.step(2, {"loss": 1.0})
        writer.step(3, {"loss": 1.0})
    with pytest.warns(UserWarning, match="line 3: not JSON"):
        record = read_record(tmp_path)
    np.testing.assert_array_equal(record.steps, [1, 3])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"__import__('os').abort()", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"kind":"step","step":4,"scalars":{"loss":NaN}}', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"kind":"verdict"}', "unknown kind 'verdict'"),
        (b'{"kind":["run"]}', "unknown kind"),
        (b'{"kind":"step","step":"4"}', "a step without a number"),
        (b'{"kind":"step","step":-1}', "a step without a number"),
        (b'{"kind":"step","step":4,"scalars":{"loss":"1+1"}}', r"needs numbers, not '1\+1'"),
        (b'{"kind":"step","step":4,"scalars":{"loss":1' + b"0" * 400 + b"}}", "needs numbers"),
        (b'{"kind":"step","step":4,"scalars":[1]}', "`scalars` is not an object"),
        (b'{"kind":"step","step":4,"per_variable":{"grad_norm":[1]}}', "needs lists of 3 numbers"),
        (b'{"kind":"event","step":4}', "event needs a name"),
        (b'{"kind":"epoch","epoch":1}', "an epoch without its number"),
        (b'{"kind":"totals","step":4,"totals":{"steps":-1}}', "`steps` of the totals is no count"),
        (b'{"kind":"totals","step":4,"totals":{"skipped_by":[]}}', "`skipped_by` is not an object"),
        (b'{"kind":"run","variables":[]}', "a header without a schema version"),
        (b'{"kind":"run","schema":1,"variables":[{}]}', "`variables` are not a list of names"),
    ],
)
def test_a_bad_line_in_the_middle_is_passed_over_and_reported(written, line, problem):
    lines = written.read_bytes().splitlines()
    written.write_bytes(b"\n".join([*lines[:3], line, *lines[3:], b""]))
    with pytest.warns(UserWarning, match=f"line 4: .*{problem}"):
        record = read_record(written)
    assert len(record.problems) == 1
    np.testing.assert_array_equal(record.steps, [1, 2, 3])
    assert len(record.runs) == 1


def test_a_newer_schema_is_refused_with_the_fix(written):
    text = written.read_text().replace(f'"schema":{SCHEMA}', f'"schema":{SCHEMA + 1}')
    written.write_text(text)
    with pytest.raises(ValueError, match=r"schema version is 2, and gradstab .* reads up to 1\."):
        read_record(written)


@pytest.mark.parametrize("content", ["", "\n", "step,loss\n1,2\n", '{"kind":"step","step":1}\n'])
def test_what_is_not_a_record_is_refused(tmp_path, content):
    path = tmp_path / "record.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="`path` must be a run record"):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run directory with a record\.jsonl"):
        read_record(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_record(tmp_path / "nowhere")


def test_an_unknown_column_lists_those_there_are(written):
    with pytest.raises(ValueError, match="loss, grad_norm"):
        read_record(written).column("accuracy")


def test_the_writer_refuses_what_the_reader_could_not_take(tmp_path):
    with pytest.raises(TypeError, match="Received: <object object"):
        RecordWriter(tmp_path / "run", config={"optimizer": object()})
    assert not (tmp_path / "run").exists()
    with RecordWriter(tmp_path, variables=VARIABLES) as writer:
        with pytest.raises(
            ValueError, match=r"each of the 3 variables\. Received: 2 for 'grad_norm'"
        ):
            writer.step(1, {}, per_variable={"grad_norm": [1.0, 2.0]})
        with pytest.raises(ValueError, match="`step` must be an integer of at least 0"):
            writer.step(-1, {})
    assert len(read_record(tmp_path).steps) == 0


def test_ten_thousand_steps_with_500_variables_stay_small_and_load_at_once(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"block_{index}/dense/kernel" for index in range(500)]
    columns = ("loss", "grad_norm", "grad_norm_after", "learning_rate", "max_norm", "clipped")
    with RecordWriter(tmp_path, variables=names) as writer:
        for step in range(1, 10_001):
            scalars = dict(zip(columns, generator.lognormal(size=len(columns)), strict=True))
            sampled = {"grad_norm": generator.lognormal(-9, 3, 500)} if step % 50 == 0 else None
            writer.step(step, scalars, per_variable=sampled)
    assert (tmp_path / "record.jsonl").stat().st_size < 4e6
    # Processor time is the time on an idle machine, whatever else this one does.
    seconds = []
    for _ in range(3):
        start = time.process_time()
        record = read_record(tmp_path)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2.0
    assert record.norms.values.shape == (200, 500)
    assert len(record.column("loss")) == 10_000


def test_two_runs_in_one_folder_stand_apart(tmp_path):
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.event("skip", step=2, cause="nonfinite", variable="a")
        writer.step(50, {"loss": 1.0})
        writer.event("stop", step=60, cause="divergence")
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.step(1, {"loss": 2.0})
        writer.event("skip", step=7, cause="outlier", variable="a")
        writer.event("end", step=40)
    with RecordWriter(tmp_path, variables=["a"]) as writer:  # the same model, trained on
        writer.step(50, {"loss": 3.0})
    record = read_record(tmp_path)
    assert record.steps.tolist() == [50]
    first, second = record.earlier
    assert [(event.name, event.step) for event in first.events] == [("skip", 2), ("stop", 60)]
    assert [(event.name, event.step) for event in second.events] == [("skip", 7), ("end", 40)]
    assert [len(run.runs) for run in (first, second, record)] == [1, 1, 1]


def test_a_run_that_says_so_goes_on_after_its_end(tmp_path):
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.step(1, {"loss": 2.0})
        writer.epoch(1, step=10, logs={"loss": 2.0, "name": "no number"})
        writer.totals(Totals(steps=10, clipped=1, largest_norm=3.0, largest_norm_step=4), step=10)
        writer.event("end", step=10)
    with RecordWriter(tmp_path, variables=["a"], resumes=True) as writer:
        writer.epoch(2, step=20, logs={"loss": 1.0})
        later = Totals(steps=10, skipped=2, skipped_by={"nonfinite": 2}, best_loss=0.5)
        writer.totals(later, step=20)
        writer.event("end", step=20)
    record = read_record(tmp_path)
    assert record.earlier == ()
    assert len(record.runs) == 2
    assert [event.step for event in record.events] == [20]
    assert [(epoch.number, epoch.step) for epoch in record.epochs] == [(1, 10), (2, 20)]
    assert record.epochs[0].logs == {"loss": 2.0}
    assert record.totals == Totals(
        steps=20, clipped=1, skipped=2, skipped_by={"nonfinite": 2}, largest_norm=3.0,
        largest_norm_step=4, best_loss=0.5,
    )  # fmt: skip


def test_a_continuation_replaces_epochs_and_totals_from_its_first_step_on(tmp_path):
    with RecordWriter(tmp_path) as writer:
        for epoch in (1, 2):
            writer.epoch(epoch, step=10 * epoch, logs={"loss": 1.0})
            writer.totals(Totals(steps=10 * epoch, clipped=epoch), step=10 * epoch)
    with RecordWriter(tmp_path) as writer:
        writer.step(11, {"loss": 1.0})
        writer.totals(Totals(steps=5, clipped=3), step=15)
    record = read_record(tmp_path)
    assert [epoch.number for epoch in record.epochs] == [1]
    assert (record.totals.steps, record.totals.clipped) == (15, 4)


def test_a_resumed_run_keeps_the_events_before_it(tmp_path):
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.event("skip", step=2, cause="nonfinite", variable="a")
        writer.step(50, {"loss": 1.0})
        writer.event("skip", step=58, cause="nonfinite", variable="a")
        writer.event("skip", step=60, cause="nonfinite", variable="a")
    with RecordWriter(tmp_path, variables=["a"]) as writer:
        writer.event("skip", step=58, cause="outlier", variable="a")
        writer.step(100, {"loss": 1.0})
    record = read_record(tmp_path)
    assert [event.step for event in record.events] == [2, 58]
    assert record.steps.tolist() == [50, 100]


def test_a_resumed_run_that_trains_nothing_more_keeps_what_it_was(tmp_path):
    with RecordWriter(tmp_path, after_step=0) as writer:
        writer.step(10, {"loss": 2.0})
        writer.epoch(1, step=10, logs={"loss": 2.0})
        writer.totals(Totals(steps=10, clipped=1), step=10)
        writer.event("end", step=10)
    with RecordWriter(tmp_path, after_step=10, resumes=True) as writer:
        writer.totals(Totals(), step=10)
        writer.event("end", step=10)
    record = read_record(tmp_path)
    assert (record.steps.tolist(), len(record.epochs)) == ([10], 1)
    assert (record.totals.steps, record.totals.clipped) == (10, 1)
    assert [event.name for event in record.events] == ["end"]


def test_a_folder_in_the_place_of_the_record_is_refused(tmp_path):
    (tmp_path / "record.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"record\.jsonl must be a file"):
        RecordWriter(tmp_path, variables=("kernel",))
