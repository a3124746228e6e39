"""Records that ask for gigabytes, and headers that hold what they should not."""

import json
import tracemalloc
import warnings

import numpy as np
import pytest

from gradstab.cli.main import main
from gradstab.monitoring.record import read_record
from gradstab.reports.text import to_text

HEADER = {"kind": "run", "schema": 1, "variables": ["a"]}


def write(path, entries):
    with (path / "record.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(entry)}\n" for entry in entries)
    return path


def peak_of_reading(path):
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        record = read_record(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return record, peak


def test_many_names_do_not_ask_for_a_table_of_all(tmp_path):
    """20,000 steps with a scalar of their own each were a table of 400 million numbers."""
    steps = ({"kind": "step", "step": n, "scalars": {f"s{n}": 1.0}} for n in range(5000))
    record, peak = peak_of_reading(write(tmp_path, [HEADER, *steps]))
    assert len(record.columns) == 500
    assert record.columns["s3"][3] == 1.0
    assert np.isnan(record.columns["s3"][4])
    assert peak < 100e6
    assert "more than 500 names" in record.problems[-1]
    assert "5,000 steps" in to_text(record)


def test_variables_that_change_at_every_step_do_not_either(tmp_path):
    path = tmp_path / "runs"
    path.mkdir()
    lines = []
    for n in range(6000):
        lines.append(HEADER | {"variables": [f"v{n}"]})
        lines.append({"kind": "step", "step": n + 1, "per_variable": {"grad_norm": [1.0]}})
    record, peak = peak_of_reading(write(path, lines))
    assert record.norms.names == ("v5999",)
    assert len(record.steps) == 6000
    assert peak < 100e6


@pytest.mark.parametrize("odd", ["text", 5, [1], None, True])
def test_a_header_of_other_kinds_is_read_without_them(tmp_path, odd):
    header = HEADER | {"config": odd, "versions": odd, "started": odd}
    step = {"kind": "step", "step": 1, "scalars": {"loss": "inf", "grad_norm": "-inf"}}
    record = read_record(write(tmp_path, [header, step]))
    assert record.header["config"] == record.header["versions"] == {}
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Not recorded" in page


def test_a_bound_beyond_all_floats_is_not_drawn(tmp_path):
    step = {"kind": "step", "step": 1, "scalars": {"grad_norm": 1.0}}
    write(tmp_path, [HEADER | {"config": {"max_norm": 10**400}}, step])
    assert main(["report", str(tmp_path)]) == 0


def test_no_name_commands_the_terminal(tmp_path, capsys):
    folder = tmp_path / "\x1b[2Jrun"
    folder.mkdir()
    write(folder, [HEADER | {"variables": ["\x1b[31ma"]}, {"kind": "step", "step": 1}])
    for form in ("html", "text", "json"):
        assert main(["report", str(folder), "--format", form]) == 0
    assert main(["report", str(folder / "not there")]) == 2
    assert main(["report", str(folder), "--form\x1b[2J"]) == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\\x1b[2Jrun" in told.out
