"""`gradstab report` from outside."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gradstab.cli import report as command
from gradstab.cli.main import main
from gradstab.monitoring.writer import RecordWriter


@pytest.fixture
def run_dir(tmp_path):
    with RecordWriter(tmp_path / "run", variables=["a/kernel"]) as writer:
        for step in range(1, 31):
            writer.step(step, {"loss": 1 / step, "grad_norm": 2.0}, {"grad_norm": [2.0]})
        writer.event("skip", step=17, cause="nonfinite", variable="a/kernel")
        writer.event("stop", step=30, message="enough")
    return tmp_path / "run"


def test_html_is_written_beside_the_record_and_its_path_printed(run_dir, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<svg") == 3  # heat map, norm, loss


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("form", ["html", "text", "json"])
def test_output_goes_where_it_is_told(form, run_dir, tmp_path, capsys):
    target = tmp_path / "new" / "file"
    assert main(["report", str(run_dir), "--format", form, "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert {"html": "<html", "text": "skipped  ", "json": '"skipped"'}[form] in target.read_text()
    assert not (run_dir / "report.html").exists()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_text_and_json_are_printed(run_dir, capsys):
    assert main(["report", str(run_dir), "--format", "text"]) == 0
    assert "stopped at step 30: enough" in capsys.readouterr().out
    assert main(["report", str(run_dir / "record.jsonl"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == {"nonfinite": 1}


def test_a_bad_line_is_told_in_the_report(run_dir, capsys):
    with (run_dir / "record.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert main(["report", str(run_dir), "--format", "text"]) == 0
    captured = capsys.readouterr()
    assert "unreadable lines" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{folder}"], "record.jsonl"),
        (["{folder}/nothing"], "nothing"),
        (["{folder}/text"], "run record"),
        (["{folder}/newer"], "newer gradstab"),
        (["{folder}/nothing", "--watch"], "there is no run directory"),
        (["{run}", "--watch", "--format", "text"], "--watch"),
        (["{run}", "--watch", "--output", "x"], "--watch"),
        (["{run}", "--format", "pdf"], "'html', 'text', 'json'"),
        (["{run}", "--output", "{folder}/text/inside"], "text"),
        (["{run}", "--format", "json", "--output", "{folder}/text/inside"], "text"),
        (["{run}", "--format", "text", "--output", "{run}"], "run"),
        ([], "RUN_DIR"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(arguments, told, run_dir, tmp_path, capsys):
    (tmp_path / "text").write_text("hello\n", encoding="utf-8")
    header = {"kind": "run", "schema": 99, "variables": []}
    (tmp_path / "newer").write_text(json.dumps(header) + "\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    given = [each.format(run=run_dir, folder=tmp_path) for each in arguments]
    assert main(["report", *given]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_it_says_what_to_install(run_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run_dir)]) == 2
    assert 'pip install "gradstab[report]"' in capsys.readouterr().err
    assert not (run_dir / "report.html").exists()
    assert main(["report", str(run_dir), "--format", "text"]) == 0


def test_neither_keras_nor_tensorflow_is_loaded(run_dir):
    code = """
    import sys
    from gradstab.cli.main import main
    assert main(["report", sys.argv[1]]) == 0
    assert main(["report", sys.argv[1], "--watch"]) == 0
    print(sorted({"keras", "tensorflow", "matplotlib.pyplot"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(run_dir)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_watch_shows_the_last_lines_of_a_run_that_ended(run_dir, capsys):
    assert main(["report", str(run_dir), "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "step     30  STOP  message enough"
    assert lines[-3].startswith("step     30  loss 0.0333")


def test_watch_follows_a_run_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.02)

    def train():
        with RecordWriter(tmp_path) as writer:
            for step in range(1, 26):
                writer.step(step, {"loss": 1.0})
                time.sleep(0.01)
            writer.event("end", step=25)

    run = threading.Thread(target=train)
    run.start()
    try:
        assert main(["report", str(tmp_path), "--watch"]) == 0
    finally:
        run.join()
    lines = capsys.readouterr().out.splitlines()
    steps = [int(line.split()[1]) for line in lines if line.startswith("step")]
    assert steps == [*range(1, 26), 25]
    assert lines[-1].endswith("END")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_watch_without_an_error(tmp_path):
    with RecordWriter(tmp_path) as writer:
        writer.step(1, {"loss": 1.0})
    watch = subprocess.Popen(
        [sys.executable, "-m", "gradstab", "report", str(tmp_path), "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite that runs in the background hands down that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    with watch:
        try:
            assert watch.stdout.readline().startswith("run started")
            assert watch.stdout.readline().startswith("step      1")
            watch.send_signal(signal.SIGINT)
            _, errors = watch.communicate(timeout=30)
        finally:
            watch.kill()
    assert (watch.returncode, errors) == (0, "")
