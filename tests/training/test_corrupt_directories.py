"""Directories that something happened to: a run goes on rightly, or is refused in one sentence."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from gradstab import stabilize
from gradstab.training import train
from gradstab.training.checkpoint import RunDirectory

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
ARGUMENTS = {"batch_size": 8, "seed": 0, "jit_compile": False, "verbose": 0, "resume": True}


def make():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(2, "tanh"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(stabilize(keras.optimizers.SGD(0.1, momentum=0.9)), "mse")
    return model


def go_on(directory, epochs=3):
    model = make()
    history = train(model, (X, X[:, :1]), epochs=epochs, run_dir=directory, **ARGUMENTS).history
    return model.get_weights(), history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two epochs, and where its third one ends."""
    directory = tmp_path_factory.mktemp("run") / "run"
    go_on(directory, 2)
    copy = directory.with_name("undisturbed")
    shutil.copytree(directory, copy)
    return directory, go_on(copy)


def changing(**fields):
    def change(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def without(name):
    def change(file):
        content = json.loads(file.read_text())
        del content[name]
        file.write_text(json.dumps(content))

    return change


def damage_middle(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def to_folder(file):
    file.unlink()
    file.mkdir()


CONTENTS = {
    "lost": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "torn": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a folder": to_folder,
    "garbage": lambda file: file.write_bytes(np.random.default_rng(0).bytes(2000)),
}
JSON = {
    "an empty object": lambda file: file.write_text("{}"),
    "a list": lambda file: file.write_text("[]"),
    "nested": lambda file: file.write_text("[" * 100_000),
}
STATES = {
    "too many epochs": changing(epochs_done=1_000_000_000),
    "too few epochs": changing(epochs_done=1),
    "no epochs": changing(epochs_done=0),
    "half an epoch": changing(epochs_done=2.5),
    "true epochs": changing(epochs_done=True),
    "weights elsewhere": changing(weights="../../../etc/passwd"),
    "weights absolute": changing(weights="/etc/passwd"),
    "other weights": changing(weights="epoch-000001.weights.h5"),
    "no weights": without("weights"),
    "no history": without("history"),
    "an empty history": changing(history={}),
    "a long history": changing(history={"loss": [1.0] * 9}),
    "a history of numbers": changing(history={"loss": 2}),
    "a better best": changing(best_value=-1.0),
    "a later best": changing(best_epoch=7),
    "half a best": changing(best_epoch=None),
    "a best of text": changing(best_value="nan"),
    "a best epoch of text": changing(best_epoch="0"),
    "impatient": changing(epochs_since_best=10**9),
    "stopped by text": changing(stopped="yes"),
    "seeds of text": changing(random_states=[["a"]]),
    "seeds too large": changing(random_states=[[2**40, 0]]),
    "too few seeds": changing(random_states=[]),
    "bad coefficients": changing(coefficients=[-1.0]),
    "too many coefficients": changing(coefficients=[0.1, 0.2]),
    "unknown": changing(surprise=1),
}
CONFIGS = {
    "no arguments": without("arguments"),
    "arguments of text": changing(arguments="all"),
    "another order": changing(order_seed=5),
    "an order of text": changing(order_seed="0"),
    "no order": without("order_seed"),
    "another form": changing(loop={"form": "round"}),
    "no form": changing(loop={}),
    "a model of text": changing(model="mlp"),
    "no steps": without("steps"),
}
CASES = [
    (file, name, damage)
    for file, kinds in {
        "checkpoints/state.json": CONTENTS | JSON | STATES,
        "config.json": CONTENTS | JSON | CONFIGS,
        "checkpoints/epoch-000002.weights.h5": CONTENTS | {"a flipped byte": damage_middle},
        "model.keras": CONTENTS | {"a flipped byte": damage_middle},
        # Of these nothing is read, but they are written.
        "history.json": {"a folder": to_folder},
        "record.jsonl": {"a folder": to_folder},
        "checkpoints/before.json": {"a folder": to_folder},
    }.items()
    for name, damage in kinds.items()
]


# What fits no model is found when it is put into one, what is no checkpoint has none before, and in
# the place of a folder no run can write.
REFUSED = {"config.json", "model.keras", "too few seeds", "too many coefficients", "a folder"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file, name, damage in CASES if {file, name} & REFUSED],
    ids=[f"{file}-{name}" for file, name, _ in CASES if {file, name} & REFUSED],
)
def test_broken_files_are_refused_by_name(whole, tmp_path, file, damage):
    directory, _ = whole
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    damage(copy / file)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=re.escape(str(copy / file))) as raised:
        go_on(copy)
    assert "pass another `run_dir`" in str(raised.value)
    assert str(raised.value).count("\n") == 0
    assert len(str(raised.value)) < 600
    # Nothing is lost by being refused.
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file, name, damage in CASES if not {file, name} & REFUSED],
    ids=[f"{file}-{name}" for file, name, _ in CASES if not {file, name} & REFUSED],
)
def test_the_checkpoint_before_serves_if_the_last_is_broken(whole, tmp_path, file, damage):
    directory, (weights, history) = whole
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    damage(copy / file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        resumed, logs = go_on(copy)
    told = [str(each.message) for each in caught if "written after epoch 1: " in str(each.message)]
    assert len(told) == 1
    assert str(copy / file) in told[0]
    assert logs == history
    for one, other in zip(resumed, weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_broken_state_does_not_take_the_place_of_the_one_before(whole, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(whole[0], copy)
    state, before = (copy / "checkpoints" / name for name in ("state.json", "before.json"))
    kept = before.read_bytes()
    state.write_text("garbage")
    directory = RunDirectory(copy)
    with pytest.warns(UserWarning, match="the checkpoint before the last"):
        _, progress = directory.open(resume=True)
    directory.save_last(make(), progress, [])
    assert before.read_bytes() == kept
    last = state.read_bytes()
    directory.save_last(make(), progress, [])
    assert before.read_bytes() == last


def test_both_checkpoints_broken_are_refused_by_the_last(whole, tmp_path):
    directory, _ = whole
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    for name in ("epoch-000001.weights.h5", "epoch-000002.weights.h5"):
        damage_middle(copy / "checkpoints" / name)
    with pytest.raises(ValueError, match=r"epoch-000002.weights.h5' is not as the run wrote it"):
        go_on(copy)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("content", list(CONTENTS))
def test_what_a_run_only_writes_does_not_matter(whole, tmp_path, content):
    directory, (weights, history) = whole
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    if content != "a folder":
        CONTENTS[content](copy / "history.json")
    (copy / "checkpoints" / ".writing-1-epoch-000003.weights.h5").write_bytes(b"torn")
    resumed, told = go_on(copy)
    assert told == history
    for one, other in zip(resumed, weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path):
    expected, _ = go_on(tmp_path / "whole", 1)
    for name, lost in {
        "config": ("model.keras", "history.json", "checkpoints"),
        "weights": ("history.json", "checkpoints/state.json"),
    }.items():
        copy = tmp_path / name
        shutil.copytree(tmp_path / "whole", copy)
        for each in lost:
            path = copy / each
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for one, other in zip(go_on(copy, 1)[0], expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_lies_in_a_directory_is_not_overwritten(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"somebody's model")
    for resume in (False, True):
        with pytest.raises(ValueError, match="run_dir"):
            train(
                make(), (X, X[:, :1]), epochs=1, run_dir=tmp_path, **ARGUMENTS | {"resume": resume}
            )
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


_HOLD = """
import sys, time
from pathlib import Path
from gradstab.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_directory_in_use_is_refused_and_a_dead_process_holds_none(whole, tmp_path):
    directory, (weights, _) = whole
    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    writing = copy / ".writing-1-model.keras"
    writing.write_bytes(b"what the other run is writing")
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, copy], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        for resume in (True, False):
            with pytest.raises(ValueError, match=f"in use .* held by process {holder.pid}"):
                train(
                    make(), (X, X[:, :1]), epochs=3, run_dir=copy, **ARGUMENTS | {"resume": resume}
                )
        assert writing.exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (copy / ".running").exists()
    resumed, _ = go_on(copy)
    for one, other in zip(resumed, weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (copy / ".running").exists()


def test_two_fresh_runs_of_one_process_do_not_share_a_directory(tmp_path):
    class Another(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            train(make(), (X, X[:, :1]), epochs=1, run_dir=tmp_path, **ARGUMENTS)

    with pytest.raises(ValueError, match="in use by another run"):
        train(make(), (X, X[:, :1]), epochs=1, run_dir=tmp_path, callbacks=[Another()], **ARGUMENTS)
