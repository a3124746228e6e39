"""The command line from outside: exit codes, one line of error, nothing heavy loaded for it."""

import argparse
import os
import subprocess
import sys

import pytest

from gradstab import __version__
from gradstab._errors import DivergenceError
from gradstab.cli import console
from gradstab.cli import main as main_module
from gradstab.cli.data_arguments import NAMES
from gradstab.cli.main import main
from gradstab.data.named import NAMED
from gradstab.monitoring.writer import RecordWriter


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a folder, not a model", encoding="utf-8")
    return path


def _one_line_of_error(capsys):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["nonsense"], "'demo', 'train', 'evaluate'"),
        (["demo", "--seed", "-1"], "--seed: must be an integer of at least 0"),
        (["demo", "--seed", "4294967296"], "at most 4294967295. Received: 4294967296"),
        (["demo", "--epochs", "0"], "--epochs: must be an integer of at least 1"),
        (["demo", "--epochs", "2.5"], "Received: 2.5"),
        (["demo", "--output", "{file}/inside"], "--output"),
        (["train", "--data", "digits"], "--output"),
        (["train", "--output", "{folder}"], "--data"),
        (["train", "--data", "digits", "--output", "{file}"], "can't be written"),
        (["train", "--data", "digits", "--output", "x", "--learning-rate", "nan"], "positive"),
        (["train", "--data", "digits", "--output", "x", "--learning-rate", "-1"], "positive"),
        (["train", "--data", "digits", "--output", "x", "--clip", "0"], "--clip"),
        (["train", "--data", "digits", "--output", "x", "--optimizer", "adm"], "--optimizer"),
        (["train", "--data", "digits", "--output", "x", "--epoch", "1"], "--epoch"),
        (["train", "--data", "digits", "--output", "x", "--epoch", "1"], "`gradstab train --help`"),
        (["train", "--data", "nowhere", "--output", "{folder}"], "--data must be one of digits"),
        (["train", "--data", "nowhere", "--output", "{folder}"], "`gradstab train --help`"),
        (["train", "--data", "{file}", "--output", "{folder}"], "which is a file"),
        (
            ["train", "--data", "digits", "--image-size", "9", "--output", "{folder}"],
            "--image-size is for folders",
        ),
        (["evaluate", "{folder}/nothing"], "there is no model"),
        (["evaluate", "{folder}/nothing"], "`gradstab evaluate --help`"),
        (["evaluate", "{folder}"], "model.keras"),
        (["evaluate", "{file}"], "--data is needed"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(arguments, told, file, tmp_path, capsys):
    given = [each.format(file=file, folder=tmp_path) for each in arguments]
    assert main(given) == 2
    assert told in _one_line_of_error(capsys)


def test_bad_data_is_refused_before_tensorflow_is_imported(run_python):
    code = """
import sys
from gradstab.cli.main import main
print(main(["train", "--data", "nowhere", "--output", sys.argv[1]]))
print(sorted({"keras", "tensorflow", "numpy"} & set(sys.modules)))
"""
    assert run_python(code, "/tmp").split() == ["2", "[]"]


def test_the_names_of_data_are_those_of_the_library():
    assert tuple(NAMED) == NAMES


def test_messages_of_the_library_are_told_in_flags():
    flags = {"image_size": "--image-size", "name_or_folder": "--data", "resume": "--resume"}
    told = console.in_words_of(flags, "`name_or_folder` is 'x'. Received: name_or_folder='x'")
    assert told == "--data is 'x'. Received: --data 'x'"
    told = console.in_words_of(flags, "Pass `resume=True`, such as image_size=(64, 64)")
    assert told == "Pass --resume, such as --image-size 64"


@pytest.mark.parametrize("command", [["--help"], ["report", "RUN", "--format", "json"]])
def test_a_broken_pipe_is_silent(command, tmp_path):
    with RecordWriter(tmp_path, variables=[f"layer_{place}/kernel" for place in range(3000)]):
        pass
    command = [str(tmp_path) if part == "RUN" else part for part in command]
    with subprocess.Popen(
        [sys.executable, "-m", "gradstab", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        run.stdout.read(1)
        run.stdout.close()
        told = run.stderr.read()
        run.wait(60)
    assert told == b""
    assert run.returncode in (0, 141)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["train", "--data", "digits", "--output", str(tmp_path)]) == 2
    assert "can't be written" in _one_line_of_error(capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (console.InputError("bad\n  data"), 2),
        (console.RunFailedError("disk is full"), 1),
        (DivergenceError("50 steps\nin a row"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(error, code, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(main_module.demo, "run", fail)
    assert main(["demo"]) == code
    assert console.one_line(str(error)) in _one_line_of_error(capsys)


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(main_module.demo, "run", lambda arguments: [][0])
    with pytest.raises(IndexError):
        main(["demo"])


def test_help_and_version_end_with_0(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradstab {__version__}\n"
    for command in ("demo", "train", "evaluate"):
        assert main([command, "--help"]) == 0
        told = capsys.readouterr().out
        assert "None" not in told
        assert "--seed" in told


def test_python_m_gradstab_is_the_command(run_python):
    code = """
import runpy, sys
sys.argv = ["gradstab", "demo", "--seed", "x"]
try:
    runpy.run_module("gradstab", run_name="__main__")
except SystemExit as end:
    print(end.code, sorted({"keras", "tensorflow", "matplotlib", "numpy"} & set(sys.modules)))
"""
    assert run_python(code) == "2 []"


@pytest.mark.slow
def test_tensorflow_starts_without_a_word(run_python):
    # stderr is the file descriptor, to which C++ writes without asking Python.
    code = """
import os, sys, tempfile
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
aside = tempfile.TemporaryFile()
os.dup2(aside.fileno(), 2)
from gradstab.cli.console import quiet_tensorflow
quiet_tensorflow()
import tensorflow as tf
tf.function(lambda: tf.constant(1))()
os.write(2, b"and after that it is heard again")
aside.seek(0)
print(aside.read().decode(), os.environ["TF_CPP_MIN_LOG_LEVEL"])
"""
    assert run_python(code) == "and after that it is heard again 3"


def test_a_failed_import_is_not_silent(monkeypatch, capfd):
    def fail(name):
        os.write(2, b"the loader's reason\n")
        raise ImportError("no keras")

    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    monkeypatch.delitem(console.sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(console.importlib, "import_module", fail)
    with pytest.raises(console.InputError, match="no keras"), console.refusing_bad_input():
        console.quiet_tensorflow()
    assert "the loader's reason" in capfd.readouterr().err
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


def test_argument_types():
    assert console.whole_number(0)("0") == 0
    assert console.positive_number("1e-3") == 0.001
    for text in ("0", "-1", "inf", "nan", "one"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"Received: {text}"):
            console.positive_number(text)


def test_table_lines_up():
    text = console.table(("way", "n"), [["plain", "1"], ["x", "100"]])
    assert text == "way      n\n-----  ---\nplain    1\nx      100"


def test_files_are_written_whole(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old", encoding="utf-8")
    console.write_whole(target, "new")
    assert target.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]
