"""TensorBoard event files: TensorBoard's own readers find in them what was written."""

import io
import math
import os
import sys

import numpy as np
import pytest

from gradstab.monitoring.tensorboard import TensorBoardWriter

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def read():
    """Return a function that reads a folder as TensorBoard does: all data, nothing sampled."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is missing: the extra gradstab[tensorboard]",
    )

    def read(path):
        return accumulators.EventAccumulator(str(path), {"scalars": 0, "tensors": 0}).Reload()

    return read


def make_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def tensors(accumulator, tag):
    """Return steps and arrays of a tag."""
    from tensorboard.util import tensor_util

    events = accumulator.Tensors(tag)
    return [event.step for event in events], [
        tensor_util.make_ndarray(event.tensor_proto) for event in events
    ]


def plugin(accumulator, tag):
    return accumulator.SummaryMetadata(tag).plugin_data.plugin_name


def test_scalars_come_back_the_non_finite_too(tmp_path, read):
    written = {"gradients/grad_norm": 0.1, "gradients/nan": math.nan, "loss": -math.inf}
    with TensorBoardWriter(tmp_path) as writer:
        writer.scalars(5, written)
        writer.scalars(12, {"loss": np.float32(2.5), "gradients/clipped": 3})
        writer.scalars(13, {"loss": 1e300})
        writer.scalars(2**40, {})
    accumulator = read(tmp_path)
    assert set(accumulator.Tags()["tensors"]) == {*written, "gradients/clipped"}
    for tag, value in written.items():
        steps, values = tensors(accumulator, tag)
        assert plugin(accumulator, tag) == "scalars"
        # TensorBoard's data server passes over scalars of any other dtype.
        assert values[0].dtype == "float32"
        assert steps[0] == 5
        np.testing.assert_array_equal(values[0], np.float32(value))
    steps, values = tensors(accumulator, "loss")
    assert steps == [5, 12, 13]
    np.testing.assert_array_equal(values, [-math.inf, 2.5, math.inf])
    assert tensors(accumulator, "gradients/clipped") == ([12], [3.0])


def test_histograms_hold_the_bins_that_were_counted(tmp_path, read):
    rng = np.random.default_rng(0)
    entries = {"conv/kernel": rng.normal(size=900), "model/dense 1/bias": rng.uniform(2, 3, 64)}
    expected = {name: np.histogram(values, bins=7) for name, values in entries.items()}
    with TensorBoardWriter(tmp_path) as writer:
        for step in (50, 100):
            writer.histograms(
                step,
                np.stack([counts for counts, _ in expected.values()]),
                low=[values.min() for values in entries.values()],
                high=[values.max() for values in entries.values()],
                names=list(entries),
            )
    accumulator = read(tmp_path)
    assert set(accumulator.Tags()["tensors"]) == {f"gradient_histograms/{name}" for name in entries}
    for name, (counts, edges) in expected.items():
        tag = f"gradient_histograms/{name}"
        assert plugin(accumulator, tag) == "histograms"
        steps, bins = tensors(accumulator, tag)
        assert steps == [50, 100]
        for triples in bins:
            assert triples.shape == (7, 3)
            np.testing.assert_allclose(triples[:, 0], edges[:-1], rtol=1e-12)
            np.testing.assert_allclose(triples[:, 1], edges[1:], rtol=1e-12)
            np.testing.assert_array_equal(triples[:, 2], counts)


def test_the_dashboards_find_what_tf_summary_would_have_written(tmp_path, read):
    """The same data through TensorFlow's own functions, down to the plugins' metadata."""
    import tensorflow as tf

    values = np.random.default_rng(0).normal(size=300).astype("float32")
    counts, _ = np.histogram(values.astype("float64"), bins=30)
    pixels = np.arange(24, dtype="uint8").reshape(4, 6)
    with tf.summary.create_file_writer(str(tmp_path / "theirs")).as_default() as theirs:
        tf.summary.scalar("gradients/grad_norm", 0.1, step=1)
        tf.summary.histogram("gradient_histograms/kernel", values, step=1)
        tf.summary.image("layers", pixels[None, :, :, None], step=1)
    theirs.close()
    with TensorBoardWriter(tmp_path / "ours") as writer:
        writer.scalars(1, {"gradients/grad_norm": 0.1})
        writer.histograms(1, [counts], [values.min()], [values.max()], ["kernel"])
        writer.image(1, "layers", make_png(pixels))
    ours, theirs = read(tmp_path / "ours"), read(tmp_path / "theirs")
    assert set(ours.Tags()["tensors"]) == set(theirs.Tags()["tensors"])
    for tag in ours.Tags()["tensors"]:
        assert ours.SummaryMetadata(tag) == theirs.SummaryMetadata(tag)
        (first,), (second,) = tensors(ours, tag)[1], tensors(theirs, tag)[1]
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        if tag == "layers":
            np.testing.assert_array_equal(first[:2], second[:2])
        else:
            np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-300])
def test_a_variable_whose_entries_are_all_the_same_has_one_bin(tmp_path, read, value):
    with TensorBoardWriter(tmp_path) as writer:
        writer.histograms(1, [[3, 0, 4]], [value], [value], ["bias"])
    _, (bins,) = tensors(read(tmp_path), "gradient_histograms/bias")
    np.testing.assert_array_equal(bins, [[value, value, 7]])


@pytest.mark.parametrize(
    ("low", "high"),
    [(math.nan, 1), (0, math.nan), (-math.inf, 0), (0, math.inf), (math.inf, -math.inf)],
)
def test_a_variable_without_a_finite_range_is_left_out_of_the_step(tmp_path, read, low, high):
    with TensorBoardWriter(tmp_path) as writer:
        writer.histograms(1, np.ones((2, 3)), [low, 0], [high, 3], ["bad", "good"])
        writer.histograms(2, np.ones((1, 3)), [low], [high], ["bad"])
        writer.histograms(3, np.ones((2, 3)), [0, 0], [3, 3], ["bad", "good"])
    accumulator = read(tmp_path)
    assert tensors(accumulator, "gradient_histograms/good")[0] == [1, 3]
    steps, (bins,) = tensors(accumulator, "gradient_histograms/bad")
    assert steps == [3]
    np.testing.assert_array_equal(bins, [[0, 1, 1], [1, 2, 1], [2, 3, 1]])


def test_the_widest_range_of_all_does_not_overflow(tmp_path, read):
    widest = np.finfo("float64").max
    with TensorBoardWriter(tmp_path) as writer:
        writer.histograms(1, [[1, 2]], [-widest], [widest], ["kernel"])
    _, (bins,) = tensors(read(tmp_path), "gradient_histograms/kernel")
    np.testing.assert_array_equal(bins, [[-widest, 0, 1], [0, widest, 2]])


def test_no_variables_are_no_histograms(tmp_path, read):
    with TensorBoardWriter(tmp_path) as writer:
        writer.histograms(1, np.zeros((0, 3)), [], [], [])
    assert read(tmp_path).Tags()["tensors"] == []


@pytest.mark.parametrize(
    ("counts", "low", "high", "names"),
    [
        ([1, 2], [0], [1], ["a"]),
        (np.zeros((1, 0)), [0], [1], ["a"]),
        ([[1, 2]], [0, 0], [1], ["a"]),
        ([[1, 2]], [0], 1, ["a"]),
        ([[1, 2]], [0], [1], ["a", "b"]),
        ([[1, 2], [1, 2]], [0], [1], ["a"]),
    ],
)
@pytest.mark.usefixtures("read")
def test_histograms_that_do_not_fit_together_are_refused(tmp_path, counts, low, high, names):
    with (
        TensorBoardWriter(tmp_path) as writer,
        pytest.raises(ValueError, match=r"`counts` must have the shape \(variables, bins\)"),
    ):
        writer.histograms(1, counts, low, high, names)


@pytest.mark.usefixtures("read")
def test_a_range_that_ends_before_it_begins_is_refused(tmp_path):
    with (
        TensorBoardWriter(tmp_path) as writer,
        pytest.raises(ValueError, match=r"at most `high`. Received: 2.0 and 1.0 for 'b'"),
    ):
        writer.histograms(1, [[1], [1]], [0, 2], [1, 1], ["a", "b"])


def test_an_image_comes_back_with_its_size_and_its_pixels(tmp_path, read):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 300, 3), dtype="uint8")
    with TensorBoardWriter(tmp_path) as writer:
        writer.image(7, "gradients/layers", make_png(pixels))
    accumulator = read(tmp_path)
    assert plugin(accumulator, "gradients/layers") == "images"
    steps, ((width, height, png),) = tensors(accumulator, "gradients/layers")
    assert (steps, width, height) == ([7], b"300", b"5")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)


@pytest.mark.parametrize("png", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(64)])
@pytest.mark.usefixtures("read")
def test_what_is_not_a_png_is_refused(tmp_path, png):
    with (
        TensorBoardWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="`png` must be the content of a PNG file"),
    ):
        writer.image(1, "layers", png)


@pytest.mark.parametrize(("step", "kind"), [(-1, ValueError), (1.5, TypeError)])
@pytest.mark.usefixtures("read")
def test_the_step_is_an_integer_from_0(tmp_path, step, kind):
    with TensorBoardWriter(tmp_path) as writer, pytest.raises(kind, match="`step` must be"):
        writer.scalars(step, {"loss": 1.0})


def test_what_was_written_outlives_a_kill(tmp_path, read, run_python):
    run_python(
        """
import os, sys
from gradstab.monitoring.tensorboard import TensorBoardWriter

writer = TensorBoardWriter(sys.argv[1])
for step in (1, 2, 3):
    writer.scalars(step, {"loss": 0.5})
os._exit(0)
""",
        tmp_path / "run",
    )
    assert tensors(read(tmp_path / "run"), "loss") == ([1, 2, 3], [0.5] * 3)


def test_a_folder_that_is_there_gets_another_file(tmp_path, read):
    for step in (1, 2):
        with TensorBoardWriter(tmp_path / "runs" / "first") as writer:
            writer.scalars(step, {"loss": step})
    assert len(list((tmp_path / "runs" / "first").iterdir())) == 2
    assert tensors(read(tmp_path / "runs" / "first"), "loss") == ([1, 2], [1.0, 2.0])


@pytest.mark.usefixtures("read")
def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "run"
    path.write_text("something else")
    with pytest.raises(OSError, match="`log_dir` must be a folder"):
        TensorBoardWriter(path)
    assert path.read_text() == "something else"


def test_closing_twice_is_closing_once_and_nothing_is_written_after(tmp_path, read):
    writer = TensorBoardWriter(tmp_path)
    assert writer.log_dir == os.fspath(tmp_path)
    writer.scalars(1, {"loss": 0.5})
    writer.close()
    writer.close()
    writer.flush()
    with pytest.raises(RuntimeError, match="already closed"):
        writer.scalars(2, {"loss": 0.5})
    assert tensors(read(tmp_path), "loss") == ([1], [0.5])


def test_a_condition_of_others_does_not_reach_it(tmp_path, read):
    """Keras' `TensorBoard` leaves its own on while a batch runs, and its own writer the default."""
    import tensorflow as tf

    others = tf.summary.create_file_writer(str(tmp_path / "others"))
    with (
        others.as_default(),
        tf.summary.record_if(False),
        TensorBoardWriter(tmp_path / "ours") as writer,
    ):
        writer.scalars(3, {"loss": 0.5})
        assert not tf.summary.should_record_summaries()
    others.close()
    assert tensors(read(tmp_path / "ours"), "loss") == ([3], [0.5])
    assert read(tmp_path / "others").Tags()["tensors"] == []


@pytest.mark.parametrize("missing", ["tensorboard", "tensorboard.plugins.image"])
def test_without_tensorboard_the_message_names_the_extra(tmp_path, monkeypatch, missing):
    for module in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "gradstab\[tensorboard\]"'):
        TensorBoardWriter(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_module_is_imported_without_what_it_needs(run_python):
    code = """
import sys, gradstab.monitoring.tensorboard
print(sorted({"keras", "tensorboard", "tensorflow"} & set(sys.modules)))
"""
    assert run_python(code) == "[]"
