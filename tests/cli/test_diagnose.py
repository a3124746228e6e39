"""`gradstab diagnose` on models and on run directories."""

import json

import keras
import numpy as np
import pytest

from gradstab.cli.main import main
from gradstab.monitoring.writer import RecordWriter

X = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", (X[:, 0] > 0).astype("float32"))
    return f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"


def saved(tmp_path, activation):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation, name="out")])
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    model.save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


def test_a_sick_model_exits_with_1(tmp_path, files, capsys):
    model = saved(tmp_path, "softmax")
    assert main(["diagnose", model, "--data", files]) == 1
    assert "single-unit-softmax in `out`" in capsys.readouterr().out
    assert main(["diagnose", model, "--data", files, "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "single-unit-softmax"


def test_a_healthy_model_exits_with_0_and_writes_its_page(tmp_path, files, capsys):
    model, page = saved(tmp_path, "sigmoid"), tmp_path / "page.html"
    code = main(
        ["diagnose", model, "--data", files, "--epochs", "20", "--format", "html", "--output",
         str(page)]
    )  # fmt: skip
    assert code == 0
    assert "<!DOCTYPE html>" in page.read_text(encoding="utf-8")


def test_a_run_directory_tells_what_its_record_shows(tmp_path, capsys):
    with RecordWriter(tmp_path, variables=("a/kernel",), config={}) as writer:
        for step in range(1, 60):
            writer.step(step, {"loss": 1.0 + step}, {})
    assert main(["diagnose", str(tmp_path)]) == 0
    assert "learning-rate-too-high" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.keras", "--data", "digits"], "there is no model"),
        (["MODEL"], "--data is needed"),
        (["MODEL", "--data", "x.npy"], "two files"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(tmp_path, capsys, arguments, message):
    model = saved(tmp_path, "sigmoid")
    arguments = [model if each == "MODEL" else each for each in arguments]
    assert main(["diagnose", *arguments]) == 2
    assert message in capsys.readouterr().err
