"""What `python -m squeeze_jax.data.check` says of a folder before training."""

import io

import numpy as np
import pytest
from PIL import Image

from squeeze_jax.config import base_config
from squeeze_jax.data import check
from squeeze_jax.errors import DataError
from squeeze_jax.experiment import open_config_dataset


def save(path, size=(8, 6), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(len(list(path.parent.iterdir()))).integers(0, 256, shape, np.uint8)).save(
        path, **options
    )


def test_all_that_is_wrong_is_listed_at_once(tmp_path, capsys):
    for i in range(12):
        save(tmp_path / "Cat" / f"{i}.png")
    for i in range(3):
        save(tmp_path / "cat" / f"{i}.png", size=(5, 4), mode="L")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "dög (Rex)" / "phone.jpg", exif=exif)
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(stored, "JPEG")
    (tmp_path / "dög (Rex)" / "half.jpg").write_bytes(stored.getvalue()[:600])
    (tmp_path / "dög (Rex)" / "empty.jpg").write_bytes(b"")
    (tmp_path / "dög (Rex)" / "notes.jpg").write_text("notes")
    (tmp_path / "dög (Rex)" / "notes.txt").write_text("notes")
    (tmp_path / "dög (Rex)" / "copy.jpg").write_bytes((tmp_path / "Cat" / "3.png").read_bytes())
    assert not check.check(tmp_path)
    said = capsys.readouterr().out
    for line in (
        "20 pictures in 3 classes",
        "3 cannot be used; repair or remove them",
        "  dög (Rex)/empty.jpg: it is empty",
        "  dög (Rex)/half.jpg: it is damaged: ",
        "  dög (Rex)/notes.jpg: it is not an image",
        "3 sizes: 13 of 8 x 6, 3 of 5 x 4, 1 of 6 x 8; training needs config.crop.size",
        "3 gray and 14 in color; set config.dataset.channels=3",
        "1 turned upright, as the EXIF data say",
        "classes with fewer than 10 pictures: cat (3), dög (Rex) (5)",
        "differ only in case or spaces: 'Cat', 'cat'",
        "identical files in two classes: 1, such as Cat/3.png = dög (Rex)/copy.jpg",
        "divided here",
        "without the suffix of an image (.txt): 1",
    ):
        assert line in said, line


def test_a_good_folder_and_none(tmp_path, capsys):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        for i in range(12):
            save(tmp_path / name / f"{i}.png", size=(3 + i, 4))
    assert check.check(tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:4] == [["class", "train", "validation", "test"], ["a", "10", "12", "2"], ["b", "10", "12", "2"]]
    with pytest.raises(DataError, match="is not a folder; expected a folder of images"):
        check.check(tmp_path / "nowhere")


def test_a_picture_of_another_size_is_never_skipped(tmp_path):
    for i in range(10):
        save(tmp_path / "a" / f"{i}.png")
        save(tmp_path / "b" / f"{i}.png", size=(9, 6))
    config = base_config()
    config.dataset.update({"name": str(tmp_path), "skip_unreadable": True, "image_size": (32, 32)})
    split = open_config_dataset(config).split("train")
    with pytest.raises(DataError, match=r"b/.*png has shape \(6, 9, 3\); expected \(6, 8, 3\).*set config.crop.size"):
        split.batch(range(len(split)))
