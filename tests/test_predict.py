"""`squeeze_jax.predict` over files and names from anybody; what it computes is tested elsewhere."""

import csv
import dataclasses
import io
import json
import os
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from squeeze_jax import commands, drawing, predict
from squeeze_jax.config import base_config
from squeeze_jax.data import synthetic_nodules
from squeeze_jax.data.scans import Cut
from squeeze_jax.data.volumes import read_scan
from squeeze_jax.errors import InputError
from squeeze_jax.experiment import make_task
from squeeze_jax.network import read_image
from squeeze_jax.predict import find_images, map_names
from squeeze_jax.pretrained.imagenet import imagenet_class_names

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@dataclasses.dataclass
class Brightness:
    """Stands for a network: the probability of "bright" is the mean of the pixels."""

    class_names: tuple[str, ...] = ("dark", "bright")
    config: ConfigDict = dataclasses.field(default_factory=base_config)
    image_shape: tuple[int, ...] = (8, 8, 3)
    preparation: dict = dataclasses.field(default_factory=dict)

    @property
    def task(self):
        return make_task(self.config, self.class_names)

    def read_image(self, path):
        return read_image(path, self.config, self.image_shape)

    def predict(self, images):
        bright = images.mean((1, 2, 3)) / 255
        return np.stack([1 - bright, bright], 1).astype(np.float32)

    def explain(self, path, image, predicted, class_name=None):
        index = None if class_name is None else self.task.class_index(class_name)
        drawing.draw_overlay(path, image, image[..., 0], title=str(index))
        return "what it shows"


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command with a network of no weights; returns the exit status, what it printed and its errors."""
    monkeypatch.setattr("squeeze_jax.network.load", lambda source: Brightness())

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", "--weights", "any", *map(str, arguments)])
        status = commands.run(predict.main)
        return status, *capsys.readouterr()

    return run


def test_what_cannot_be_read_is_named_and_the_others_are_classified(run, tmp_path):
    images = tmp_path / "images"
    picture(images / "a.png", 51)
    picture(images / "z.png", 204)
    (images / "b.png").write_bytes(b"no image")
    (images / "c.npy").write_bytes(b"\x93NUMPY\x01\x00\x05\x00-----")
    (images / "d.png").mkdir()
    os.mkfifo(images / "e.png")
    picture(images / "._a.png", 0)
    picture(images / "__MACOSX" / "a.png", 0)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "again").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "images").symlink_to(images)
    status, out, errors = run("--format=json", tmp_path / "linked", tmp_path / "absent.png")
    folder = tmp_path / "linked" / "images"
    assert status == 1
    rows = json.loads(out)
    assert [(row["file"], row["top5"][0]["label"] if "top5" in row else "") for row in rows] == [
        (str(folder / "a.png"), "dark"),
        *((str(folder / name), "") for name in ("b.png", "c.npy", "e.png")),
        (str(folder / "z.png"), "bright"),
        (str(tmp_path / "absent.png"), ""),
    ]
    assert all(("error" in row) == ("top5" not in row) for row in rows) and "not a file" in rows[-1]["error"]
    lines = errors.splitlines()
    assert [line.split(" cannot be read: ")[0] for line in lines[1:4]] == [
        f"skipped: {folder / name}" for name in ("b.png", "c.npy", "e.png")
    ]
    assert lines[5] == "4 of 6 could not be classified, see above."
    assert lines[0] == f"left out 2 hidden file(s) and folder(s), such as {folder / '._a.png'}"
    assert lines[4].startswith(f"skipped: {tmp_path / 'absent.png'} is not a file, a folder with images or a pattern")
    status, _, errors = run(tmp_path / "absent.png")
    assert status == 1 and errors.endswith("InputError: there is no image to classify.\n")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "a.png", 51)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)  # root may read everything
    with pytest.raises(InputError, match=f"the folder {tmp_path} cannot be read .Permission denied."):
        predict.find_images([tmp_path])


def table(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    return list(rows[0]), rows


def test_a_table_has_a_row_for_each_file(run, tmp_path):
    paths = [picture(tmp_path / f"{value}.png", value) for value in (51, 153)]
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no image")
    status, out, _ = run("--format=csv", "--batch_size=2", broken, *paths, paths[0])
    header, rows = table(out)
    assert status == 1 and header == ["file", "class", "label", "probability", *PER_CLASS, "error"]
    assert [row["file"] for row in rows] == [str(path) for path in (broken, *paths, paths[0])]
    assert [row["label"] for row in rows] == ["", "dark", "bright", "dark"]
    assert [row["error"][:10] for row in rows] == [f"{broken}"[:10], "", "", ""]
    assert [float(row["probability_bright"]) for row in rows[1:]] == pytest.approx([0.2, 0.6, 0.2])
    status, out, _ = run("--format=csv", "--top=1", *paths)
    assert status == 0 and table(out)[0] == ["file", "class", "label", "probability", "error"]
    status, out, _ = run("--format=json", "--top=1", paths[0])
    assert [row["label"] for row in json.loads(out)[0]["top1"]] == ["dark"]


PER_CLASS = ["probability_dark", "probability_bright"]


def test_the_best_of_many_classes_have_columns_and_names_have_their_ids(run, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", 51)
    many = Brightness(imagenet_class_names()[:30])
    monkeypatch.setattr("squeeze_jax.network.load", lambda source: many)
    monkeypatch.setattr(Brightness, "predict", lambda self, images: np.arange(30)[None] / np.float32(435))
    _, out, _ = run("--format=csv", path)
    header, (row,) = table(out)
    names = ["class", "label", "probability", "id"]
    assert header == ["file", *names, *(f"{name}_{i}" for i in range(2, 6) for name in names), "error"]
    assert (row["label"], row["id"], row["label_5"]) == (
        "axolotl",
        "n01632777",
        "European fire salamander",
    )
    _, out, _ = run("--format=json", path)
    assert json.loads(out)[0]["top5"][0] == {
        "class": 29,
        "label": row["label"],
        "probability": float(row["probability"]),
        "id": row["id"],
    }


def test_names_of_classes_reach_the_positive_one(run, tmp_path, monkeypatch):
    config = base_config()
    config.task.positive = "dark"
    renamed = predict.renamed(Brightness(config=config.lock()), ("night", "day"))
    assert renamed.task.positive_class == 0 and renamed.task.class_names == ("night", "day")
    assert config.task.positive == "dark"


def test_where_files_went_is_said_and_a_map_is_drawn_once(run, tmp_path, monkeypatch):
    path, drawn, explain = picture(tmp_path / "a.png", 51), [], Brightness.explain
    monkeypatch.setattr(Brightness, "explain", lambda *args: drawn.append(args[1].name) or explain(*args))
    _, _, errors = run("--cam", tmp_path / "maps", "--report", tmp_path / "case.html", path)
    assert errors == f"maps: {tmp_path}/maps\nreport: {tmp_path}/case.html\n"
    assert drawn == ["a.png"] and "what it shows" in (tmp_path / "case.html").read_text()


def test_what_is_known_is_printed_before_a_failure(run, tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{i}.png", 255 * i) for i in range(2)]
    full = OSError(28, "No space left on device", str(tmp_path / "maps/1.png"))
    monkeypatch.setattr(Brightness, "explain", lambda self, path, *_: raise_(full) if path.stem == "1" else None)
    status, out, errors = run("--format=csv", "--cam", tmp_path / "maps", "--batch_size", 1, *paths)
    assert status == 1 and [row["file"] for row in csv.DictReader(io.StringIO(out))] == [str(path) for path in paths]
    assert errors == (
        f"FileError: {tmp_path}/maps/1.png cannot be written (No space left on device); make room or name another "
        "place.\n"
    )


def raise_(error):
    raise error


def test_each_image_has_a_map_of_its_own(run, tmp_path):
    paths = [
        picture(tmp_path / "two" / name, 50 * i)
        for i, name in enumerate(["a/1.png", "b/1.png", "x.jpg", "x.png", "x.png.png"])
    ]
    status, _, _ = run("--cam", tmp_path / "maps", tmp_path / "two")
    found = {str(path.relative_to(tmp_path / "maps")): path.read_bytes() for path in (tmp_path / "maps").rglob("*.png")}
    assert status == 0 and len(set(found.values())) == len(paths)
    assert set(found) == {"a/1.png.png", "b/1.png.png", "x.jpg.png", "x.png.png", "x.png.png.png"}
    assert map_names(paths[1:3]) == {paths[1]: "1.png", paths[2]: "x.png"}
    run("--cam", tmp_path / "one", paths[0], paths[0])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["1.png"]


def test_a_name_that_is_no_text_ends_nothing(run, tmp_path, monkeypatch):
    path = picture(tmp_path / NOT_UTF8, 255)
    for form in ("table", "csv", "json"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        monkeypatch.setattr(sys, "stdout", stdout)
        status, _, _ = run(f"--format={form}", "--cam", tmp_path / "maps", "--report", tmp_path / "case.html", path)
        stdout.flush()
        printed = stdout.buffer.getvalue()
        assert status == 0 and (b"caf\\udce9.png" if form == "json" else b"caf\xe9.png") in printed
    assert (tmp_path / "maps" / NOT_UTF8).exists()
    assert "caf\\udce9.png</h2>" in (tmp_path / "case.html").read_text("utf-8")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    status, _, _ = run(path)
    ascii_only.flush()
    assert status == 0 and b"caf\\udce9.png" in ascii_only.buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cam", "{}/a.png"], "FileError: {}/a.png is a file or inside a file; expected a folder"),
        (["--cam", "{}/a.png/maps"], "FileError: {}/a.png/maps is a file or inside a file"),
        (["--cam", "/proc/maps"], "FileError: the folder /proc/maps cannot be made"),
        (["--report", "{}"], "InputError: --report {} is a folder; expected a file"),
        (["--report", "/proc/case/r.html"], "FileError: the folder /proc/case cannot be made"),
        (["--batch_size", "0"], "InputError: --batch_size 0; expected at least 1"),
        (["--top", "0"], "InputError: --top 0; expected at least 1"),
        (["--grid", "-1"], "InputError: --grid -1; expected a positive number of mm"),
        (["--size", "8"], "InputError: --size is for CT scans; add --candidates LIST.csv or --grid MM"),
        (["--labels", "{}/a.png"], "InputError: {}/a.png cannot be read: it is not text in UTF-8"),
        (["--labels", "{}"], "InputError: {} cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_written_or_read_is_one_line(run, tmp_path, arguments, message):
    path = picture(tmp_path / "a.png", 1)
    status, _, errors = run(*(word.format(tmp_path) for word in arguments), path)
    assert status == 1 and errors.startswith(message.format(tmp_path)) and errors.count("\n") == 1


def test_a_full_disk_leaves_the_old_report(run, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", 1)
    report = tmp_path / "r.html"
    report.write_text("old")
    monkeypatch.setattr(
        "pathlib.Path.write_text", lambda self, *_, **__: raise_(OSError(28, "No space left", str(self)))
    )
    status, out, errors = run("--report", report, path)
    assert (
        status == 1 and "a.png" in out and errors.startswith(f"FileError: {report} cannot be written (No space left)")
    )
    assert report.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["a.png", "r.html"]


def test_home_is_expanded_in_every_path(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photographs" / "a b.png", 255)
    (tmp_path / "labels.txt").write_text("night\nday\n")
    status, out, _ = run("--labels=~/labels.txt", "--cam=~/maps", "--report=~/r/case.html", "~/photographs")
    assert (
        status == 0 and out.startswith(f"{tmp_path}/photographs/a b.png\n") and "100.0% day" in out.replace("  ", " ")
    )
    assert sorted(os.listdir(tmp_path)) == ["labels.txt", "maps", "photographs", "r"]
    assert find_images(["~/photographs/*.png"]) == [tmp_path / "photographs" / "a b.png"]


def test_an_image_that_cannot_be_read_ends_no_calibration(tmp_path, capsys):
    class Reader:
        class_names = ("cat", "dog")

        def read_image(self, path):
            if path.stem == "broken":
                raise InputError(f"{path} cannot be read")
            return np.full((2, 2, 1), int(path.stem), np.uint8)

    paths = [tmp_path / "dog" / f"{name}.png" for name in ("1", "broken", "2", "3", "broken")]
    batches = list(predict.read_images(Reader(), paths, 2))
    assert [images[:, 0, 0, 0].tolist() for images, _ in batches] == [[1, 2], [3]]
    assert [labels.tolist() for _, labels in batches] == [[1, 1], [1]]
    assert capsys.readouterr().err.count("skipped: ") == 2
    with pytest.raises(InputError, match="none of the 2 images can be read"):
        list(predict.read_images(Reader(), paths[1::3], 2))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    pytest.importorskip("SimpleITK", reason="the extra 'ct' has SimpleITK")
    folder = tmp_path_factory.mktemp("scans")
    synthetic_nodules.write(folder, 2)
    return folder


@pytest.fixture
def run_on_scans(run, monkeypatch):
    """Like `run`, with a network of slices of 8 x 8 pixels."""
    recorded = {"cut": dataclasses.asdict(Cut("axial", 8, 2.0))}
    network = Brightness(image_shape=(8, 8, 1), preparation=recorded)
    monkeypatch.setattr("squeeze_jax.network.load", lambda source: network)
    return run


def test_candidates_of_scans_have_a_row_each(run_on_scans, scans, tmp_path):
    first, second = sorted(scans.rglob("*.mhd"))
    with (scans / "candidates.csv").open() as file:
        listed = list(csv.DictReader(file))
    status, out, errors = run_on_scans("--format=csv", "--candidates", scans / "candidates.csv", first)
    header, rows = table(out)
    place = ["seriesuid", "coordX", "coordY", "coordZ"]
    assert header == [*place, "class", "label", "probability", *PER_CLASS, "error"]
    assert status == 0 and errors == "6 of 12 candidates are of other scans\n" and len(rows) == 6
    assert [[row[name] for name in place[:1]] + [float(row[name]) for name in place[1:]] for row in rows] == [
        [row["seriesuid"], *(float(row[name]) for name in place[1:])]
        for row in listed
        if row["seriesuid"] == first.stem
    ]
    scan = read_scan((str(first),))
    center = np.array([float(rows[0][name]) for name in place[1:]])
    bright = Cut("axial", 8, 2.0)(scan, center).mean() / 255
    assert float(rows[0]["probability_bright"]) == pytest.approx(bright, abs=1e-6)

    # A place outside, and a scan that is damaged, end nothing.
    damaged = tmp_path / second.name
    damaged.write_text("NDims = 3")
    (tmp_path / "list.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ\n{first.stem},9999,0,0\n{first.stem},{','.join(map(str, center))}\n"
        f"{second.stem},0,0,0\n"
    )
    status, out, errors = run_on_scans("--format=csv", "--candidates", tmp_path / "list.csv", first, damaged)
    header, rows = table(out)
    assert status == 1 and [row["label"] for row in rows] == ["", "dark" if bright < 0.5 else "bright", ""]
    assert "list.csv, line 2: (9999.0, 0.0, 0.0) mm is outside of the scan" in rows[0]["error"]
    assert str(damaged) in rows[2]["error"] and rows[2]["coordX"] == ""
    assert errors.endswith("2 of 3 could not be classified, see above.\n")


def test_a_grid_in_a_scan_has_a_table_and_a_page_of_the_best(run_on_scans, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(Brightness, "explain", lambda self, path, *_: path.write_bytes(b"drawn") and "note")
    status, out, errors = run_on_scans(
        "--grid=30", "--report", tmp_path / "scan.html", "--cam", tmp_path / "maps", scans
    )
    title = "The 10 of 96 candidates with the highest probability of bright"
    assert status == 0 and f"{title}; --format csv has all:" in errors
    shares = [float(line.split("%")[0]) for line in out.splitlines() if "bright" in line]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True)
    page = (tmp_path / "scan.html").read_text()
    assert f"<h1>{title}</h1>" in page and page.count("<img") == 10 and "mean probability" not in page
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid=30", "{}/nothing.mhd"], "InputError: there is no candidate to classify"),
        (["--grid=30", "{}/nothing"], "InputError: {}/nothing does not exist; expected a scan, or a folder of scans"),
        (["--grid=30", "{}/candidates.csv"], "InputError: {}/candidates.csv is not a scan: not DICOM"),
        (
            ["--grid=30", "--size=9", "--cut=axial", "{}"],
            "InputError: the network was trained on patches Cut(kind='axial'",
        ),
        (["--candidates={}/nothing.csv", "{}"], "DataError: {}/nothing.csv cannot be read: No such file"),
        (
            ["--candidates={}/candidates.csv", "{}/other.mhd"],
            "DataError: {}/candidates.csv has no candidate of the scan",
        ),
        (["{}"], "skipped: {} is not a file, a folder with images or a pattern that matches any image. CT scans are"),
    ],
)
def test_what_is_wrong_with_scans_is_one_line(run_on_scans, scans, arguments, message):
    status, _, errors = run_on_scans(*(word.format(scans) for word in arguments))
    assert status == 1 and message.format(scans) in errors


def test_a_cut_that_is_not_recorded_is_taken_from_options(run_on_scans, scans, monkeypatch):
    monkeypatch.setattr("squeeze_jax.network.load", lambda source: Brightness(image_shape=(8, 8, 1)))
    status, _, errors = run_on_scans("--grid=30", scans)
    assert status == 1 and "does not record how its patches were cut" in errors and "--cut" in errors
    status, _, errors = run_on_scans("--grid=30", "--cut=axial", scans)
    assert status == 1 and "takes images of shape (8, 8, 1), but patches" in errors
    status, out, _ = run_on_scans("--grid=30", "--cut=axial", "--size=8", "--format=csv", scans)
    assert status == 0 and len(table(out)[1]) == 96


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nii.gz", "slice.dcm"])
def test_a_scan_among_images_is_told_what_it_needs(run, tmp_path, name):
    (tmp_path / name).write_bytes(b"0")
    status, out, _ = run("--format=json", tmp_path / name)
    (row,) = json.loads(out)
    assert status == 1 and row["error"].endswith("--candidates LIST.csv or --grid MM of python -m squeeze_jax.predict.")
