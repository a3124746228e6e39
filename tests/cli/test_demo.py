"""The demo's runs: the faults are in the data, plain is plain, and the command leaves its files."""

import json

import numpy as np
import pytest

from gradstab import transforms
from gradstab.cli import demo_runs
from gradstab.cli.demo_report import ALL_PARTS, NO_WRAPPER, ONE_LINE, PLAIN, SETTINGS, WAYS
from gradstab.cli.main import main

EXPLODING, VANISHING, NAN_IMAGE, CORRUPTED = SETTINGS
EPOCHS = 2


@pytest.fixture(scope="module")
def digits():
    generator = np.random.default_rng(7)
    images = generator.integers(0, 17, (100, 8, 8, 1)).astype("float32")
    labels = np.arange(100, dtype="int64") % 10
    return demo_runs.Digits(train=(images, labels), test=(images[:20], labels[:20]))


def _epochs(setting, data, seed=5):
    batches = demo_runs._Batches(setting, data, seed, EPOCHS)
    return [(x.numpy(), y.numpy()) for x, y in batches.dataset()]


def test_every_setting_sees_the_same_batches_but_for_its_fault(digits):
    clean, again = (_epochs(setting, digits.train) for setting in (EXPLODING, VANISHING))
    assert len(clean) == EPOCHS * 3  # 100 images make three whole batches of 32
    for (x, y), (same_x, same_y) in zip(clean, again, strict=True):
        np.testing.assert_array_equal(x, same_x)
        np.testing.assert_array_equal(y, same_y)
    other = _epochs(EXPLODING, digits.train, seed=6)
    assert not all(np.array_equal(y, z) for (_, y), (_, z) in zip(clean, other, strict=True))
    # Every epoch has an order of its own, and no image twice.
    first, second = (np.concatenate([x for x, _ in clean[i : i + 3]]) for i in (0, 3))
    assert not np.array_equal(first, second)
    assert len(np.unique(first.reshape(96, -1), axis=0)) == 96


def test_one_batch_is_corrupted_at_half_time(digits):
    clean, faulty = (_epochs(setting, digits.train) for setting in (EXPLODING, CORRUPTED))
    for step, ((x, y), (bad_x, bad_y)) in enumerate(zip(clean, faulty, strict=True)):
        if step == 3:
            np.testing.assert_allclose(bad_x, x * 1000)
            np.testing.assert_array_equal(bad_y, (y + 1) % 10)
        else:
            np.testing.assert_array_equal(bad_x, x)
            np.testing.assert_array_equal(bad_y, y)


def test_one_training_image_is_nan_and_the_caller_s_data_is_not(digits):
    faulty = demo_runs._Batches(NAN_IMAGE, digits.train, 5, EPOCHS)
    hurt = np.isnan(np.asarray(faulty._images)).all(axis=(1, 2, 3))
    assert hurt.sum() == 1
    assert np.isfinite(digits.train[0]).all()


def test_what_each_way_is_made_of():
    from keras import optimizers

    plain = demo_runs._optimizer(PLAIN, 39, 20)
    assert type(plain) is optimizers.SGD
    assert (plain.clipnorm, plain.clipvalue, plain.global_clipnorm) == (None, None, None)
    assert float(plain.learning_rate) == pytest.approx(0.01)
    assert plain.momentum == 0.9
    one_line = demo_runs._optimizer(ONE_LINE, 39, 20)
    assert repr(one_line.transforms[-1]) == repr(transforms.LimitOvershoot())
    assert float(one_line.learning_rate) == pytest.approx(0.01)
    rest = demo_runs._optimizer(NO_WRAPPER, 39, 20)
    assert type(rest) is optimizers.SGD
    every = demo_runs._optimizer(ALL_PARTS, 39, 20)
    assert "SkipNonFinite" in repr(every)
    assert "ClipByGlobalNorm" in repr(every)
    assert type(every.inner_optimizer) is optimizers.SGD


def _kernels(model):
    return {v.path: v.numpy() for v in model.trainable_variables if v.name == "kernel"}


def test_the_models_are_broken_as_their_settings_say():
    for setting, deviation in ((EXPLODING, 0.2), (VANISHING, 0.01)):
        model = demo_runs._model(setting, PLAIN, seed=3)
        for kernel in _kernels(model).values():
            # Five standard errors of a standard deviation.
            assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size))
        assert not model.losses
    raw = demo_runs._model(EXPLODING, ONE_LINE, seed=3)
    scaled = demo_runs._model(VANISHING, ONE_LINE, seed=3)
    assert not any("rescal" in layer.name for layer in raw.layers)
    assert any("rescal" in layer.name for layer in scaled.layers)


def test_all_parts_make_the_same_good_start_in_every_setting():
    models = [demo_runs._model(setting, ALL_PARTS, seed=3) for setting in SETTINGS]
    first = _kernels(models[0])
    for model in models:
        assert any("rescal" in layer.name for layer in model.layers)
        assert len(model.losses) == len(first)
        for (path, kernel), expected in zip(_kernels(model).items(), first.values(), strict=True):
            np.testing.assert_array_equal(kernel, expected, err_msg=path)
    for kernel in first.values():
        fan_in = np.prod(kernel.shape[:-1])
        # Truncated normal kernels have a little less spread in the tails, never more.
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.25)


@pytest.mark.slow
def test_the_command_trains_and_leaves_plot_and_results(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_runs, "load_digits", lambda seed: digits)
    monkeypatch.setattr("gradstab.cli.demo.SETTINGS", (NAN_IMAGE,))
    output = tmp_path / "new" / "folder"
    arguments = ["demo", "--seed", "5", "--epochs", str(EPOCHS), "--output", str(output)]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((output / "demo.json").read_text(encoding="utf-8"))
    assert (report["seed"], report["epochs"]) == (5, EPOCHS)
    by_way = {result["way"]: result for result in report["results"]}
    assert list(by_way) == [way.name for way in WAYS]
    for way in WAYS:
        result = by_way[way.name]
        assert f"{result['accuracy']:.3f}" in told.out
        assert result["steps"] == EPOCHS * 3
        assert len(result["series"]["loss"]) == EPOCHS + 1
        if way.wrapped:
            # The image is in one batch an epoch, unless it is among the four that are left over.
            assert 1 <= result["skipped"] <= EPOCHS
            assert result["verdict"] != "NaN"
            assert all(loss is not None for loss in result["series"]["loss"])
        else:
            assert result["skipped"] is None
            assert result["verdict"] == "NaN"
            assert result["loss"] is None
            assert result["series"]["loss"][0] is not None
            assert result["series"]["grad_norm"][-1] is None
    assert by_way[PLAIN.name]["series"]["loss"][0] == by_way[ONE_LINE.name]["series"]["loss"][0]
    assert report["conclusions"][0] in told.out


def test_missing_matplotlib_is_told_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["demo", "--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert 'pip install "gradstab[demo]"' in told.err
    assert told.err.count("\n") == 1
