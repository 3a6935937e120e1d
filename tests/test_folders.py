"""Folders of images as people have them: what is split, class and patient, what is left out, what is refused."""

import io
import itertools
import os

import pytest
from conftest import configure
from PIL import Image

from squeeze_jax.data import pipeline
from squeeze_jax.data.folders import ImageFolder
from squeeze_jax.data.sources import open_dataset
from squeeze_jax.errors import DataError
from squeeze_jax.experiment import build
from squeeze_jax.training.trainer import train_and_evaluate


def encoded(mode="L", size=(4, 4), kind="PNG"):
    stored = io.BytesIO()
    Image.new(mode, size).save(stored, kind)
    return stored.getvalue()


PNG = encoded()


def write(root, entries):
    """Pictures of one pixel value each; "a/" is a folder, "a -> b" a link to b, "a = text" a text, "a | " a pipe."""
    for entry in entries:
        path, _, target = entry.partition(" -> ")
        path, _, text = path.partition(" = ")
        path, is_pipe, _ = path.partition(" | ")
        file = root / path
        (file if path.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if target:
            file.symlink_to(root / target)
        elif is_pipe:
            os.mkfifo(file)
        elif text:
            file.write_text(text)
        elif not path.endswith("/"):
            file.write_bytes(PNG + path.encode())  # Pillow ignores what follows a picture


def many(*patterns, count=2):
    return [pattern.replace("*", str(i)) for pattern in patterns for i in range(count)]


PLAIN = many("train/ants/*.png", "train/bees/*.png", "val/ants/*.png", "val/bees/*.png")
TWO = {"train": 4, "validation": 4}
PATIENTS = many("train/a/p*/1.png", "train/b/q*/1.png", "val/a/r*/1.png", "val/b/s*/1.png")
TINY = many("train/n1/images/n1_*.JPEG", "train/n2/images/n2_*.JPEG", "val/images/val_*.JPEG", "test/images/t*.JPEG")
TINY += ["wnids.txt = n1 n2", "words.txt = n1\tant", "train/n1/n1_boxes.txt = n1_0.JPEG\t0\t62"]
ANNOTATED = "val/val_annotations.txt = val_0.JPEG\tn2\t0\t32\nval_1.JPEG\tn1\t0\t9\n"
COPY = ["__MACOSX/train/ants/._0.png = \0\5\x16\7", "__MACOSX/._train = x"]


def below(folder, entries):
    return [f"{folder}/{entry}" for entry in entries]


# name: entries, images in each split, classes, levels of groups, what is said of the rest (kind and count)
LAYOUTS = {
    "plain": (PLAIN, TWO, "ants bees", 0, {}),
    "Intel's doubled folders": (
        many("seg_train/seg_train/sea/*.png", "seg_train/seg_train/ice/*.png", "seg_test/seg_test/sea/*.png"),
        None,
        "",
        0,
        "seg_test holds seg_test, named like a folder around or beside it",
    ),
    "a copy of the classes beside them": (
        many("cells/ill/*.png", "cells/well/*.png", "cells/cells/ill/*.png", "cells/cells/well/*.png"),
        None,
        "",
        0,
        "cells holds ill, well, named like a folder around or beside it",
    ),
    "a single folder around": (below("hymenoptera_data", PLAIN), TWO, "ants bees", 0, {}),
    "two folders around": (below("archive/chest_xray", PLAIN), TWO, "ants bees", 0, {}),
    "around, with a copy inside": (
        below("chest_xray", [*PLAIN, *below("chest_xray", PLAIN)]),
        TWO,
        "ants bees",
        0,
        {"beside those of the splits": 8},
    ),
    "a mac's zip": ([*PLAIN, *COPY], TWO, "ants bees", 0, {"left behind": 1}),
    "a mac's zip with a folder around": ([*below("data", PLAIN), *COPY], TWO, "ants bees", 0, {"left behind": 1}),
    "._ files": ([*PLAIN, *many("train/ants/._*.png = x")], TWO, "ants bees", 0, {"left behind": 2}),
    "a NAS and Windows": (
        [*PLAIN, "train/@eaDir/ants/0.png", "val/ants/Thumbs.db = x", "desktop.ini = x"],
        TWO,
        "ants bees",
        0,
        {"left behind": 3},
    ),
    "a notebook's copies": (
        [*PLAIN, "train/.ipynb_checkpoints/", "train/ants/.ipynb_checkpoints/0.png", ".git/x/y/1.png"],
        TWO,
        "ants bees",
        0,
        {"left behind": 3},
    ),
    "an empty class": ([*PLAIN, "train/wasps/", "val/wasps/"], TWO, "ants bees", 0, {"folders without images": 2}),
    "a class of other files": (
        [*PLAIN, "train/wasps/1.heic = x", "train/labels.csv = x"],
        TWO,
        "ants bees",
        0,
        {"folders without images": 1, "without the suffix of an image (.csv, .heic)": 2},
    ),
    "nested below a class": (
        [*PLAIN, "train/ants/more/9.png", "train/ants/more/again/9.png"],
        {"train": 6, "validation": 4},
        "ants bees",
        0,
        {"taken, but": 2},
    ),
    "one class nested": (
        [*many("train/ants/*.png"), *many("train/bees/sub/*.png"), *many("val/ants/*.png", "val/bees/*.png")],
        TWO,
        "ants bees",
        0,
        {"taken, but": 2},
    ),
    "a stray picture at the top": ([*PLAIN, "sample.png"], TWO, "ants bees", 0, {"no folder of a class": 1}),
    "a stray picture in a split": ([*PLAIN, "train/0.png"], TWO, "ants bees", 0, {"no folder of a class": 1}),
    "a stray picture around": ([*below("x", PLAIN), "a.png"], TWO, "ants bees", 0, {"no folder of a class": 1}),
    "unlabeled test images": (
        [*PLAIN, *many("test/*.png", count=9)],
        TWO,
        "ants bees",
        0,
        {"no folder of a class": 9},
    ),
    "sample pictures beside": ([*PLAIN, "docs/1.png"], TWO, "ants bees", 0, {"beside those of the splits": 1}),
    "a split of another name": (
        [*PLAIN, *many("extra/ants/*.png")],
        {**TWO, "extra": 2},
        "ants bees",
        0,
        {},
    ),
    "other suffixes": (
        ["train/a/1.ppm", "train/a/2.PGM", "train/b/3.jfif", "train/b/4.gif", "train/b/5.JPG", "train/b/6.webp"],
        {"train": 6},
        "a b",
        0,
        {},
    ),
    "capital splits": (
        many("Train/ants/*.png", "Train/bees/*.png", "Test/bees/*.png"),
        {"Train": 4, "Test": 2},
        "ants bees",
        0,
        {},
    ),
    "splits of any name": (
        many("here/ants/*.png", "here/bees/*.png", "there/bees/*.png"),
        {"here": 4, "there": 2},
        "ants bees",
        0,
        {},
    ),
    "two folders with splits": (
        [*below("a", PLAIN), *below("b", PLAIN)],
        None,
        None,
        0,
        r"several folders with splits in them \(a, b, with train, val\); name one",
    ),
    "a link around itself": (
        [*PLAIN, "train/ants/loop -> train", "val/dead.png -> nothing.png"],
        TWO,
        "ants bees",
        0,
        {"links to a folder around them": 1, "broken links or special files": 1},
    ),
    "patients": (PATIENTS, TWO, "a b", 1, {}),
    "a pipe, which never ends": (
        [*PLAIN, "train/ants/x.png | "],
        TWO,
        "ants bees",
        0,
        {"broken links or special files": 1},
    ),
    "patients, with a folder around": (below("x", PATIENTS), TWO, "a b", 1, {}),
    "patients, and pictures of their folders": (
        [*PATIENTS, "train/a/overview.png"],
        None,
        None,
        1,
        r"train/a/overview.png is not in split/class/patient/, like other images of this folder \(8\)",
    ),
    "cases without splits": (many("a/p*/n1/1.png", "b/q*/n1/2.png"), {"train": 4}, "a b", 2, {}),
    "cases without splits, and a stray": (
        [*many("a/p*/n1/1.png", "b/q*/n1/2.png"), "overview.png"],
        {"train": 4},
        "a b",
        2,
        {"no folder of a class": 1},
    ),
    "classes only": (many("ants/*.png", "bees/*.png"), {"train": 4}, "ants bees", 0, {}),
    "classes only, in a folder": (many("photos/ants/*.png", "photos/bees/*.png"), {"train": 4}, "ants bees", 0, {}),
    "classes and patients only": (many("a/p*/1.png", "b/q*/1.png"), None, None, 0, "no b is in two a's"),
    "a class called test": (many("test/*.png", "control/*.png"), None, None, 0, "contains no images in split/class/"),
    "boxes, not classes": (
        [*many("train/images/*.png"), "train/labels/0.txt = 0 .5 .5 1 1"],
        None,
        None,
        0,
        "contains no images in split/class/.*left out, in no folder of a class: 2, such as train/images/0.png",
    ),
    "val and valid": ([*PLAIN, "valid/ants/1.png"], None, None, 0, "val and valid, which both mean the split 'valid"),
    "Tiny ImageNet": (
        [*TINY, ANNOTATED],
        {"train": 4, "validation": 2},
        "n1 n2",
        0,
        {"no folder of a class": 2, "without the suffix of an image": 4},
    ),
    "Tiny ImageNet in its folder": (
        below("tiny-imagenet-200", [*TINY, ANNOTATED]),
        {"train": 4, "validation": 2},
        "n1 n2",
        0,
        {"no folder of a class": 2, "without the suffix of an image": 4},
    ),
    "Tiny ImageNet's train folder": (
        [entry.removeprefix("train/") for entry in TINY[:4]],
        {"train": 4},
        "n1 n2",
        0,
        {},
    ),
    "Tiny ImageNet, sorted": (
        [*TINY[:4], *many("val/n1/val_*.JPEG", "val/n2/images/val_2*.JPEG"), ANNOTATED],
        TWO,
        "n1 n2",
        0,
        {"without the suffix of an image": 1},
    ),
    "Tiny ImageNet, cut": ([*TINY[:5], ANNOTATED], None, None, 0, "names 1 images that are not there, such as val_1"),
    "Tiny ImageNet, damaged": (
        [*TINY, "val/val_annotations.txt = val_0.JPEG n2"],
        None,
        None,
        0,
        "val_annotations.txt, line 1: expected a file name of its own, a tab and a class",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    entries, sizes, classes, levels, said = LAYOUTS[name]
    write(tmp_path, entries)
    if sizes is None:
        with pytest.raises(DataError, match=said):
            ImageFolder(tmp_path)
        return
    found = ImageFolder(tmp_path)
    assert found.split_sizes == sizes and " ".join(found.class_names) == classes
    assert list(found.group_names) == ["patient", "case"][:levels]
    notes = list(found.notes)
    for kind, count in said.items():
        (note,) = [note for note in notes if kind in note and f": {count}, such as " in note]
        notes.remove(note)
    assert notes == []
    for split, size in sizes.items():
        examples = found.examples(split)
        assert len({examples.describe(i) for i in range(size)}) == size and all(ex["image"] for ex in examples)


def test_linked_splits_classes_and_patients_are_followed(tmp_path):
    real = tmp_path / "real"
    write(real, PATIENTS)
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "train").symlink_to(real / "train")
    (tmp_path / "data" / "val" / "a").symlink_to(real / "val" / "a")
    (tmp_path / "data" / "val" / "b").mkdir()
    (tmp_path / "data" / "val" / "b" / "s0").symlink_to(real / "val" / "b" / "s0")
    found = ImageFolder(tmp_path / "data")
    assert found.split_sizes == {"train": 4, "validation": 3} and found.notes == ()


def test_tiny_imagenet_has_the_labels_of_its_annotations(tmp_path):
    write(tmp_path, [*TINY, ANNOTATED])
    found = ImageFolder(tmp_path)
    labels = {}
    for i in range(2):
        examples = found.examples("validation")
        labels[os.path.basename(examples.describe(i))] = examples.targets(i)["label"]
    assert labels == {"val_0.JPEG": 1, "val_1.JPEG": 0} and found.class_names == ("n1", "n2")


def test_the_first_image_that_is_one_gives_the_shape(tmp_path):
    write(tmp_path, ["train/a/0.png = no image", "train/a/1.png", "train/b/2.png"])
    (tmp_path / "train" / "a" / "00.jpg").touch()
    dataset = open_dataset(str(tmp_path), skip_unreadable=True)
    assert dataset.image_shape == (4, 4, 1)
    split = dataset.split("train")
    batch = split.batch(range(4))
    assert [row for row, _ in batch["unreadable"]] == [0, 1] and batch["label"].tolist() == [0, 0, 0, 1]
    assert all(wrong.startswith(f"{split.describe(row)} cannot be read: ") for row, wrong in batch["unreadable"])
    with pytest.raises(DataError, match=r"a/0.png cannot be read: it is not an image of"):
        open_dataset(str(tmp_path)).split("train").batch([0])
    write(tmp_path / "none", ["train/a/0.png = no image", "train/b/1.png = no image"])
    with pytest.raises(DataError, match=r"none of the 2 images of .*none can be decoded, such as .*a/0.png: "):
        open_dataset(str(tmp_path / "none"), skip_unreadable=True)


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("RGB", (4, 4), "is in color .* Set config.dataset.channels=3"),
        ("I;16", (4, 4), "more than 8 bits"),
        ("L", (4, 5), r"has shape \(5, 4, 1\); expected \(4, 4, 1\), like the first image; set config.crop.size"),
    ],
)
def test_a_wrong_setting_is_an_error_also_where_unreadable_images_are_replaced(tmp_path, mode, size, message):
    """Gray among color pictures: all others were replaced by the gray ones, without a word."""
    write(tmp_path, ["train/a/0.png", "train/b/1.png"])
    (tmp_path / "train" / "b" / "2.png").write_bytes(encoded(mode, size))
    split = open_dataset(str(tmp_path), skip_unreadable=True).split("train")
    with pytest.raises(DataError, match=f"b/2.png .*{message}"):
        split.batch(range(3))


def test_too_many_unreadable_images_end_an_iteration(tmp_path):
    write(tmp_path, [*many("train/a/*.png", "train/b/*.png", count=10), "train/a/3.png = no image"])
    write(tmp_path, ["train/b/7.png = no image", "train/b/8.png = no image"])
    (tmp_path / "train" / "b" / "8.png").write_bytes(PNG[:40])

    def split(share):
        return open_dataset(str(tmp_path), skip_unreadable=True, max_unreadable=share).split("train")

    evaluated = list(pipeline.eval_batches(split(0.15), batch_size=5))
    assert sum(batch["valid"].sum() for batch in evaluated) == 17
    message = r"3 of the 20 examples of .*/train cannot be decoded, more than a share of 0.1, such as: .*a/3.png cannot"
    with pytest.raises(DataError, match=message):
        list(pipeline.eval_batches(split(0.1), batch_size=5))
    with pytest.raises(DataError, match=message):
        list(itertools.islice(pipeline.train_batches(split(0.1), batch_size=5, seed=0), 4))
    batches = pipeline.train_batches(split(0.15), batch_size=5, seed=0)
    assert len(list(itertools.islice(batches, 12))) == 12, "the same three, epoch after epoch"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (many("train/cats/*.png", "val/cats/*.png"), "has one class, 'cats', so there is nothing to learn"),
        ([*PLAIN, "val/wasps/1.png"], "has images of 'wasps', but none in train; add some, or remove"),
    ],
)
def test_classes_that_cannot_be_learned_do_not_train_but_can_be_looked_at(tmp_path, entries, message):
    write(tmp_path / "data", entries)
    options = {"dataset.name": str(tmp_path / "data"), "dataset.test_split": "", "dataset.image_size": ()}
    config = configure(None, **options)
    assert len(build(config).splits["train"]) in (2, 4)
    with pytest.raises(DataError, match=message):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
