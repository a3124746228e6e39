"""`train` and `evaluate` on real digits: what they leave, print, refuse, and go on with."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest

from gradstab.callbacks.gradient_monitor import GradientMonitor
from gradstab.cli.main import main
from gradstab.data.datasets import from_arrays
from gradstab.monitoring.record import read_record
from gradstab.training.lock import locked

TRAIN = ["train", "--data", "digits", "--jit-compile", "off", "--quiet", "--batch-size", "64"]


def _error(capsys):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = [*TRAIN, "--recipe", "adam", "--epochs", "3", "--seed", "4"]
    assert main([*arguments, "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_run_directory_holds_the_run(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints", "command.json", "config.json", "gradient_norm.png", "history.json",
        "layer_norms.png", "loss.png", "model.keras", "record.jsonl",
    }  # fmt: skip
    for plot in ("gradient_norm.png", "loss.png"):
        assert (run_dir / plot).read_bytes().startswith(b"\x89PNG")
    history = json.loads((run_dir / "history.json").read_text(encoding="utf-8"))
    assert len(history["val_accuracy"]) == 3
    assert history["val_accuracy"][-1] > 0.7
    record = read_record(run_dir)
    assert record.steps[-1] == 3 * 20
    assert record.earlier == ()
    assert [(event.name, event.step) for event in record.events] == [("end", 60)]
    assert [epoch.number for epoch in record.epochs] == [1, 2, 3]
    assert record.totals.steps == 60
    assert np.isfinite(record.columns["grad_norm"]).all()
    model = keras.models.load_model(run_dir / "model.keras", safe_mode=True)
    assert model.optimizer.transforms
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam
    # The recipe's course over 60 steps ends here.
    assert float(model.optimizer.learning_rate) < 2e-4
    rates = record.per_layer("effective_rate_median")
    assert [name.rpartition("/")[2] for name in rates.names][-2:] == ["dense", "logits"]
    assert np.isfinite(rates.values).all()
    assert record.columns["learning_rate"].max() == pytest.approx(1e-3, rel=0.05)


def test_a_recipe_and_an_optimizer_contradict_each_other(tmp_path, capsys):
    both = ["--recipe", "adam", "--optimizer", "sgd", "--output", str(tmp_path / "run")]
    assert main([*TRAIN, *both]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert main([*TRAIN, "--recipe", "sgd", "--output", str(tmp_path / "run")]) == 2
    assert "invalid choice: 'sgd'" in capsys.readouterr().err


def test_evaluate_prints_metrics_and_gradients_over_depth(run_dir, capsys):
    assert main(["evaluate", str(run_dir)]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    model = keras.models.load_model(run_dir / "model.keras")
    from gradstab.data.datasets import load

    images, labels = load("digits", seed=4).arrays("test")
    accuracy = np.mean(np.argmax(model.predict(images, verbose=0), axis=1) == labels)
    assert f"accuracy {accuracy:.4f}" in lines[0]
    layers = [line.split()[0] for line in lines if line.startswith(("conv", "dense", "logits"))]
    assert layers == ["conv_1", "conv_2", "conv_3", "conv_4", "dense", "logits"]
    assert any(line.startswith("First-to-last ratio: ") for line in lines)
    assert "Gradients: neither vanishing nor exploding" in lines
    assert "AUTOTRAINER" in lines[-1]


def test_evaluate_takes_a_model_file_and_other_data(run_dir, tmp_path, capsys):
    alone = tmp_path / "alone.keras"
    alone.write_bytes((run_dir / "model.keras").read_bytes())
    assert main(["evaluate", str(alone)]) == 2
    assert "--data is needed" in _error(capsys)
    arguments = ["--data", "digits", "--seed", "4", "--gradient-batches", "1"]
    assert main(["evaluate", str(alone), *arguments]) == 0
    assert "Test data" in capsys.readouterr().out


def test_evaluate_refuses_in_one_line(run_dir, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.keras"
    broken.write_text("no zip file", encoding="utf-8")
    assert main(["evaluate", str(broken), "--data", "digits"]) == 2
    _error(capsys)
    assert main(["evaluate", str(run_dir), "--data", "nowhere"]) == 2
    assert "nowhere" in _error(capsys)
    other = from_arrays(np.zeros((60, 9, 9, 1), "uint8"), np.arange(60) % 10)
    monkeypatch.setattr("gradstab.data.datasets.load", lambda *_, **__: other)
    assert main(["evaluate", str(run_dir)]) == 2
    assert "(8, 8, 1)" in _error(capsys)
    fewer = from_arrays(np.zeros((60, 8, 8, 1), "uint8"), np.arange(60) % 3)
    monkeypatch.setattr("gradstab.data.datasets.load", lambda *_, **__: fewer)
    assert main(["evaluate", str(run_dir)]) == 2
    assert "10 classes apart" in _error(capsys)


def test_train_refuses_unknown_data_and_a_folder_without_classes(tmp_path, capsys):
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", "--data", "nowhere", *output]) == 2
    assert "nowhere" in _error(capsys)
    (tmp_path / "images" / "only").mkdir(parents=True)
    assert main(["train", "--data", str(tmp_path / "images"), *output]) == 2
    _error(capsys)
    assert main([*TRAIN, "--epochs", "1", "--image-size", "16", *output]) == 2
    assert "--image-size is for folders" in _error(capsys)


def test_a_run_is_neither_overwritten_nor_resumed_as_another(run_dir, tmp_path, capsys):
    before = (run_dir / "model.keras").read_bytes()
    same = [*TRAIN, "--epochs", "3", "--seed", "4", "--output", str(run_dir)]
    assert main(same) == 2
    assert "Add --resume" in _error(capsys)
    assert main([*same, "--resume", "--clip", "none", "--optimizer", "sgd"]) == 2
    told = _error(capsys)
    assert "--optimizer adam" in told
    assert "--clip auto" in told
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert main([*TRAIN, "--output", str(tmp_path), "--resume"]) == 2
    assert "not begun by `gradstab train`" in _error(capsys)
    assert (run_dir / "model.keras").read_bytes() == before


@pytest.mark.parametrize(
    ("begun_with", "told"),
    [
        ({"clip": None}, "begun with --clip none."),
        ({"augment": True}, "begun with --augment."),
        ({"image_size": 16, "l2": 0.1}, "begun with --image-size 16, --l2 0.1."),
    ],
)
def test_what_a_run_was_begun_with_is_told_as_arguments(
    begun_with, told, run_dir, tmp_path, capsys
):
    command = json.loads((run_dir / "command.json").read_text(encoding="utf-8"))
    (tmp_path / "command.json").write_text(json.dumps(command | begun_with), encoding="utf-8")
    same = [*TRAIN, "--recipe", "adam", "--epochs", "3", "--seed", "4", "--output", str(tmp_path)]
    assert main([*same, "--resume"]) == 2
    assert told in _error(capsys)


def test_what_was_left_out_is_told_as_left_out(run_dir, tmp_path, capsys):
    (tmp_path / "command.json").write_bytes((run_dir / "command.json").read_bytes())
    same = [*TRAIN, "--recipe", "adam", "--epochs", "3", "--seed", "4", "--output", str(tmp_path)]
    assert main([*same, "--resume", "--augment"]) == 2
    assert "begun with no --augment." in _error(capsys)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(run_dir, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    arguments = [*TRAIN, "--epochs", "3", "--seed", "4", "--output", str(output)]
    begin = GradientMonitor.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(GradientMonitor, "on_epoch_begin", interrupt)
        assert main(arguments) == 130
    assert "interrupted" in _error(capsys)
    assert main([*arguments, "--resume"]) == 0
    resumed, whole = (
        json.loads((folder / "history.json").read_text(encoding="utf-8"))
        for folder in (output, run_dir)
    )
    # The uninterrupted run is the fixture's, with the same arguments.
    assert resumed["val_loss"] == whole["val_loss"]
    assert resumed["loss"] == whole["loss"]


@pytest.mark.slow
def test_resume_with_more_epochs_goes_on_to_them(run_dir, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(run_dir, output)
    same = [*TRAIN, "--recipe", "adam", "--seed", "4", "--output", str(output), "--resume"]
    assert main([*same, "--epochs", "2"]) == 2
    assert "begun with --epochs 3. Resume it with as many or more" in _error(capsys)
    arguments = [argument for argument in same if argument != "--quiet"]
    assert main([*arguments, "--epochs", "4"]) == 0
    told = capsys.readouterr().out
    assert "Resumed with 4 epochs instead of 3" in told
    assert told.count("gradstab: ") == 1
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    assert len(history["loss"]) == 4
    record = read_record(output)
    assert [(event.name, event.step) for event in record.events] == [("end", 80)]
    assert [epoch.number for epoch in record.epochs] == [1, 2, 3, 4]
    assert main(same) == 0  # as many epochs as it has now: those of the command file
    assert main([*same[:-1], "--resume", "--epochs", "4"]) == 0


@pytest.mark.parametrize("damage", ["torn", "members", "config", "weights"])
def test_evaluate_refuses_a_broken_archive_in_one_line(run_dir, tmp_path, capsys, damage):
    broken = tmp_path / "broken.keras"
    whole = run_dir / "model.keras"
    if damage == "torn":
        broken.write_bytes(whole.read_bytes()[:2000])
    else:
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(broken, "w") as target:
            for name in source.namelist() if damage != "members" else ["metadata.json"]:
                bad = {"config": name == "config.json", "weights": name.endswith(".h5")}
                target.writestr(name, b"[1]" if bad.get(damage) else source.read(name))
    assert main(["evaluate", str(broken), "--data", "digits"]) == 2
    assert "can't be loaded as a Keras model" in _error(capsys)


@pytest.mark.parametrize("content", ["", "[1]", '{"data": 5}', '{"batch_size": [1]}'])
def test_a_broken_command_file_is_refused_in_one_line(run_dir, tmp_path, capsys, content):
    (tmp_path / "model.keras").write_bytes((run_dir / "model.keras").read_bytes())
    (tmp_path / "command.json").write_text(content, encoding="utf-8")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "command.json" in _error(capsys)
    assert main([*TRAIN, "--output", str(tmp_path), "--resume"]) == 2
    assert "command.json" in _error(capsys)


def test_a_run_that_can_not_go_on_is_refused_in_one_line(run_dir, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    for name in ("state.json", "before.json"):
        (copy / "checkpoints" / name).write_text("{}", encoding="utf-8")
    same = [*TRAIN, "--recipe", "adam", "--epochs", "3", "--seed", "4", "--output", str(copy)]
    assert main([*same, "--resume"]) == 2
    assert "state.json" in _error(capsys)
    with locked(copy):
        assert main([*same, "--resume"]) == 2
    assert "in use by another run" in _error(capsys)


@pytest.mark.slow
def test_training_that_diverges_ends_with_1(tmp_path, monkeypatch, capsys):
    images = np.full((800, 8, 8, 1), np.nan, "float32")
    hopeless = from_arrays(images, np.arange(800) % 10, batch_size=8, pixel_max=16.0)
    monkeypatch.setattr("gradstab.data.datasets.load", lambda *_, **__: hopeless)
    arguments = ["train", "--data", "digits", "--epochs", "2", "--jit-compile", "off"]
    assert main([*arguments, "--quiet", "--output", str(tmp_path / "run")]) == 1
    told = _error(capsys)
    assert "diverged" in told
    assert "conv_1/kernel" in told
