"""A folder of class folders of images, whole and broken."""

import sys
import time

import numpy as np
import pytest

from gradstab.data import DataError, images, load

Image = pytest.importorskip("PIL.Image")


def save(path, colour, size=(12, 10), mode="RGB"):
    """Save an image of one colour; `size` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], colour).save(path)


@pytest.fixture
def animals(tmp_path):
    """Two classes, told apart by their colour; the green value is the image's number."""
    for number in range(20):
        save(tmp_path / "cat" / f"{number}.png", (200, number, 10))
        save(tmp_path / "dog" / "deeper" / f"{number}.PNG", (50, number, 10))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README").touch()
    return tmp_path


def everything(datasets):
    splits = ("train", "validation", "test")
    inputs, labels = zip(*(datasets.arrays(split) for split in splits), strict=True)
    return np.concatenate(inputs), np.concatenate(labels)


def test_folders_are_classes(animals):
    datasets = load(animals, batch_size=8)
    assert (datasets.class_names, datasets.input_shape) == (("cat", "dog"), (12, 10, 3))
    assert [len(rows) for rows in datasets.rows.values()] == [28, 4, 8]
    assert datasets.pixel_max == 255.0
    inputs, labels = everything(datasets)
    assert np.all(inputs[:, :, :, 0] == np.where(labels == 0, 200, 50)[:, None, None])
    seen = sorted(zip(labels, inputs[:, 0, 0, 1].astype(int), strict=True))
    assert seen == [(label, number) for label in (0, 1) for number in range(20)]
    for split in ("train", "validation", "test"):
        counts = np.bincount(datasets.arrays(split)[1])
        assert counts[0] == counts[1]


def test_images_are_resized_and_made_grey(animals):
    datasets = load(str(animals), image_size=(16, 9), color_mode="grayscale")
    assert datasets.input_shape == (16, 9, 1)
    inputs, labels = everything(datasets)
    # Luma of ITU-R 601: 0.299 R + 0.587 G + 0.114 B.
    greens = inputs[labels == 1][:, 0, 0, 0]
    expected = 0.299 * 50 + 0.587 * np.arange(20) + 0.114 * 10
    np.testing.assert_allclose(np.sort(greens), expected, atol=1)
    assert load(animals, image_size=9).input_shape == (9, 9, 3)


def test_what_does_not_fit_in_memory_is_read_from_the_files(animals, monkeypatch):
    in_memory = load(animals, batch_size=8, image_size=(8, 8))
    monkeypatch.setattr(images, "_MAX_BYTES_IN_MEMORY", 40 * 8 * 8 * 3 - 1)
    from_files = load(animals, batch_size=8, image_size=(8, 8))
    assert from_files._source.slow
    assert not in_memory._source.slow
    for epoch in range(2):
        pairs = zip(
            in_memory.train_for_epoch(epoch).as_numpy_iterator(),
            from_files.train.as_numpy_iterator(),
            strict=True,
        )
        for expected, got in pairs:
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[1], expected[1])
    assert len(from_files.train) == 4
    assert from_files.train.element_spec[0].shape.as_list() == [None, 8, 8, 3]


def test_broken_files_are_all_named(animals):
    whole = animals / "dog" / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    (animals / "cat" / "text.jpg").write_text("no image")
    (animals / "cat" / "half.jpg").write_bytes(whole.read_bytes()[:900])
    (animals / "dog" / "empty.png").touch()
    save(animals / "dog" / "deep.png", 40_000, mode="I;16")
    with pytest.raises(DataError, match="4 of 45 images can't be read") as caught:
        load(animals, image_size=8)
    message = str(caught.value)
    assert all(name in message for name in ("text.jpg", "half.jpg", "empty.png", "deep.png"))
    assert "8 bits per channel" in message
    assert "whole.jpg" not in message

    for number in range(30):
        (animals / "cat" / f"bad_{number}.png").touch()
    with pytest.raises(DataError, match="and 24 more"):
        load(animals, image_size=8)


def test_images_of_many_sizes_need_a_size(animals):
    save(animals / "cat" / "large.png", (200, 1, 10), size=(40, 30))
    with pytest.raises(DataError, match=r"2 different sizes, from \(12, 10\) to \(40, 30\)"):
        load(animals)
    assert load(animals, image_size=(12, 10)).input_shape == (12, 10, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least two folders.*none"),
        (["only"], "at least two folders.*only"),
        (["train", "Test"], "holds splits"),
        (["cat", "dog"], "none in: cat, dog"),
    ],
)
def test_folders_without_classes_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_class_with_too_few_images_is_named(animals):
    for number in range(2):
        save(animals / "emu" / f"{number}.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"at least 3 examples.*'emu' has 2"):
        load(animals)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"image_size": (8, 8, 3)}, ValueError),
        ({"image_size": 0}, ValueError),
        ({"image_size": "large"}, TypeError),
        ({"color_mode": "rgba"}, ValueError),
    ],
)
def test_wrong_arguments_for_folders_are_refused(tmp_path, options, error):
    with pytest.raises(error, match=next(iter(options))):
        load(tmp_path, **options)


def test_missing_pillow_names_the_extra(animals, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"gradstab\[demo\]"):
        load(animals)


def test_large_images_are_decoded_one_at_a_time(animals, monkeypatch):
    """Four of 169 megapixels at once took as many gigabytes."""
    decode, now, most = images._upright, [], []

    def watched(image):
        now.append(1)
        most.append(len(now))
        time.sleep(0.002)
        image = decode(image).convert("RGB")
        now.pop()
        return image

    monkeypatch.setattr(images, "_upright", watched)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 4)
    load(animals)
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(images, "_LARGE_IMAGE", 12 * 10 - 1)
    load(animals)
    assert max(most) == 1


@pytest.mark.parametrize("size", [None, (10, 12)])
def test_photographs_are_turned_as_their_exif_entry_says(tmp_path, size):
    for name in ("cat", "dog"):
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            image = Image.new("RGB", (12, 10), (10, 20, 30))
            image.paste((250, 250, 250), (0, 0, 12, 3))  # a bright strip along the top
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise
            image.save(tmp_path / name / f"{number}.jpg", exif=exif, quality=95)
    datasets = load(tmp_path, image_size=size, validation_fraction=0.25, test_fraction=0.25)
    inputs, _ = datasets.arrays("train")
    assert datasets.input_shape == ((12, 10, 3) if size is None else (10, 12, 3))
    assert inputs[0, :, -1].mean() > 200  # now along the right side
    assert inputs[0, :, 0].mean() < 60


def test_a_broken_exif_entry_says_nothing(tmp_path):
    for name in ("cat", "dog"):
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (12, 10)).save(
                tmp_path / name / f"{number}.jpg", exif=b"Exif\x00\x00nonsense"
            )
    assert load(tmp_path, validation_fraction=0.25, test_fraction=0.25).input_shape == (10, 12, 3)
