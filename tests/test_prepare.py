"""Zips and files that people bring to `prepare`: read as they are, or refused in a line; limits, leftovers."""

import contextlib
import csv
import errno
import struct
import sys
import time
import zipfile

import numpy as np
import pytest
from fuzz import mutants
from test_folders import PLAIN, PNG

from squeeze_jax.data import archives, prepare
from squeeze_jax.data.builders import pulmonary_nodules
from squeeze_jax.data.prepare import unpack
from squeeze_jax.data.sources import open_dataset, prepare_command
from squeeze_jax.errors import DataError


def pack(path, entries, method=zipfile.ZIP_DEFLATED, content=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry in entries:
            archive.writestr(entry, content)
    return path


def patched(path, offset, value):
    """Overwrites bytes of the first file's headers: both have the flags and the method, 2 bytes apart."""
    stored = bytearray(path.read_bytes())
    for start in (offset, stored.rindex(b"PK\1\2") + offset + 2):
        stored[start : start + 2] = struct.pack("<H", value)
    path.write_bytes(bytes(stored))


def test_a_zip_is_unpacked_once_and_another_of_its_name_is_refused(tmp_path, capsys):
    """Kaggle calls every download archive.zip."""
    first = pack(tmp_path / "1" / "archive.zip", [f"chest_xray/{entry}" for entry in [*PLAIN, "._x.png", "a.txt"]])
    folder = unpack(first, str(tmp_path / "my data"))
    assert folder == tmp_path / "my data" / "archive"
    said = capsys.readouterr().err
    assert "left behind by a system: 1, such as chest_xray/._x.png" in said and "(.txt): 1, such as" in said
    dataset = open_dataset("archive", str(tmp_path / "my data"))
    assert dataset.class_names == ("ants", "bees") and dataset.source.split_sizes == {"train": 4, "validation": 4}
    assert not any(".archive.json" in note for note in dataset.notes)
    assert unpack(first, str(tmp_path / "my data")) == folder
    second = pack(tmp_path / "2" / "archive.zip", ["train/roses/1.png", "train/tulips/1.png"])
    with pytest.raises(DataError, match=r"archive exists, but was not unpacked from this archive.zip .* delete that"):
        unpack(second, str(tmp_path / "my data"))
    pack(first, PLAIN)  # the same path, other content
    with pytest.raises(DataError, match="was not unpacked from this archive.zip"):
        unpack(first, str(tmp_path / "my data"))
    # A folder of an earlier version says nothing; its files do.
    (folder / archives.ARCHIVE_RECORD).unlink()
    with pytest.raises(DataError, match="was not unpacked from this archive.zip"):
        unpack(second, str(tmp_path / "my data"))
    unpack(pack(first, [f"chest_xray/{entry}" for entry in PLAIN]), str(tmp_path / "my data"))


def test_capitals_and_the_home_folder_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack(tmp_path / "UP.ZIP", PLAIN)
    assert (unpack(prepare.pathlib.Path("~/UP.ZIP"), str(tmp_path / "d")) / "train").is_dir()


def wrong_zip(path, kind):
    """Makes a file that cannot be unpacked, and returns what is said of it."""
    if kind == "encrypted":
        patched(pack(path, PLAIN[:1], zipfile.ZIP_STORED), 6, 1)
        return r"'train/ants/0.png' is encrypted; unpack it with its password"
    if kind == "Deflate64":
        patched(pack(path, PLAIN[:1]), 8, 9)
        return "is compressed by Deflate64, which Python cannot unpack; unpack it with another program"
    if kind == "another method":
        patched(pack(path, PLAIN[:1]), 8, 99)
        return "is compressed by method 99"
    if kind == "truncated":
        path.write_bytes(pack(path, PLAIN).read_bytes()[:-30])
        return "is not an intact zip: File is not a zip file"
    if kind == "damaged":
        stored = bytearray(pack(path, PLAIN, zipfile.ZIP_STORED).read_bytes())
        stored[60] ^= 1
        path.write_bytes(bytes(stored))
        return "is not an intact zip: Bad CRC-32"
    if kind == "a bomb":
        pack(path, ["train/a/1.png"], content=bytes(archives.SMALL + 1))
        return r"unpacks to 134,217,729 bytes in 1 files; expected at most 134,217,728 bytes \(100 times"
    if kind == "a folder":
        path.mkdir()
        return r"cannot be read \(Is a directory\)"
    if kind == "missing":
        return r"cannot be read \(No such file or directory\)"
    if kind == "twice":
        with pytest.warns(UserWarning, match="Duplicate name"):
            pack(path, [*PLAIN, PLAIN[0]])
        return "'train/ants/0.png' is in it twice"
    if kind == "a long name":
        pack(path, [f"train/ants/{'x' * 300}.png"])
        return "cannot be unpacked to .*: File name too long"
    if kind == "pictures alone":
        pack(path, ["1.png", "2.png"])
        return r"archive.zip contains no images in split/class/, .* left out, in no folder of a class: 2"
    pack(path, [kind])
    return "would be written outside of the dataset's folder"


KINDS = ["encrypted", "Deflate64", "another method", "truncated", "damaged", "a bomb", "a folder", "missing", "twice"]
KINDS += [
    "a long name",
    "pictures alone",
    "../../x.png",
    "/etc/x.png",
    "train/../../x.png",
    "C:\\x.png",
    "a\\..\\x.png",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_unpacked_is_one_line_and_leaves_nothing(tmp_path, kind):
    path = tmp_path / "archive.zip"
    message = wrong_zip(path, kind)
    with pytest.raises(DataError, match=message) as caught:
        unpack(path, str(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    left = list((tmp_path / "data").iterdir()) if (tmp_path / "data").exists() else []
    assert [entry.name for entry in left] in ([], [".archive.lock"])
    assert not list(tmp_path.parent.glob("x.png"))


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.TAR", "photos.7z", "photos.rar"])
def test_other_archives_are_named(tmp_path, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", str(tmp_path / name)])
    with pytest.raises(DataError, match=r"is not a .zip; unpack it, and use the folder"):
        prepare.main()
    with pytest.raises(DataError, match=r"is an archive; unpack it first: python -m squeeze_jax.data"):
        open_dataset(str(tmp_path / name))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    archive = pack(tmp_path / "archive.zip", PLAIN)
    room = archives.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: room)
    with pytest.raises(DataError, match="unpacks to .* has room for 100; make room"):
        unpack(archive, str(tmp_path / "data"))
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(DataError, match="cannot be unpacked to .*: No space left on device; make room"):
        unpack(archive, str(tmp_path / "data"))
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [".archive.lock"]


def test_a_full_disk_of_a_dataset_of_this_project_is_one_line(tmp_path, monkeypatch):
    """array_record raises RuntimeError."""

    def full(_):
        raise RuntimeError("INTERNAL: \n No space left on device")

    monkeypatch.setattr("squeeze_jax.data.builders.digits.Digits.download_and_prepare", full)
    with pytest.raises(DataError, match="digits cannot be prepared in .*: INTERNAL: No space left on device"):
        prepare.prepare("digits", str(tmp_path))


def test_what_a_killed_prepare_left_is_removed_by_the_next_of_its_name(tmp_path):
    left = ["data/.archive.partial-ab12cd_4", "data/.other.partial-ab12cd_4", "data/other/incomplete.ABCDEF_1.0.0"]
    left += ["data/one/incomplete.fractures", "data/one/train/incomplete.x/1.0.0"]  # what may be anybody's
    left += ["data/one/incomplete.ABCDEF_1.0.0", "data/one/config/incomplete.ABCDEF_1.0.0"]
    left += ["data/one/.1.0.0.partial-abcdefgh"]
    for folder in left:
        (tmp_path / folder / "train").mkdir(parents=True)
    unpack(pack(tmp_path / "archive.zip", PLAIN), str(tmp_path / "data"))
    assert [folder for folder in left if (tmp_path / folder).exists()] == left[1:]
    for name in ("../data/other", str(tmp_path / "data" / "other"), "one"):
        with prepare._locked(tmp_path / "data", name):
            assert (tmp_path / left[1]).exists() and (tmp_path / left[2]).exists()
    assert [folder for folder in left if (tmp_path / folder).exists()] == left[1:5]


def test_printed_commands_are_quoted():
    assert prepare_command("cifar10", "/My Drive/tfds").endswith("prepare cifar10 --data_dir '/My Drive/tfds'")


def nodules(path, images=None, names=None, **more):
    """A file of nodules without content, and its ratings."""
    images = np.zeros((134, 51, 51, 51), np.uint8) if images is None else images
    names = np.array([f"{i}_nod1_ann0" for i in range(134)]) if names is None else names
    np.savez_compressed(path, image=images, name=names, **more)
    rows = [{"Filename": str(name), "malignancy": str(1 + i % 5)} for i, name in enumerate(names)]
    write_ratings(path, rows)
    return rows


def write_ratings(path, rows):
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_wrong_files_of_nodules_are_named(tmp_path):
    path = tmp_path / "nodules.npz"
    rows = nodules(path)
    images, names = pulmonary_nodules.read_nodules(path)
    assert images.shape == (134, 51, 51, 51) and names[3] == "3_nod1_ann0"
    assert pulmonary_nodules.read_ratings(path.with_suffix(".csv"), "malignancy")["5_nod1_ann0"] == 1
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[200] ^= 1
    for stored in (intact[:-500], b"", b"PK" * 9, bytes(damaged)):
        path.write_bytes(stored)
        with pytest.raises(DataError, match="is not an intact file of nodules"):
            pulmonary_nodules.read_nodules(path)
    for stored, message in (
        ({"images": np.zeros(1)}, "no item named 'image.npy'"),
        ({"image": np.zeros((2**20,), np.uint8), "name": np.array(["a"])}, r"uint8 images of shape \(1048576,\)"),
        ({"image": np.zeros((134, 51, 51, 51), np.float32), "name": np.array(["a"])}, "holds float32 images"),
        ({"image": np.array([None]), "name": np.array(["a"])}, "image.npy is of object"),
        ({"image": np.zeros((134, 51, 51, 51), np.uint8), "name": np.array(["9999_n"] * 134)}, "names such as 0_nod1"),
    ):
        np.savez_compressed(path, **stored)
        with pytest.raises(DataError, match=message):
            pulmonary_nodules.read_nodules(path)
    for changed, message in (
        ({"malignancy": "99"}, "line 2: malignancy is '99'; expected 1 to 5"),
        ({"malignancy": ""}, "line 2: malignancy is ''"),
        ({"malignancy": "2.5"}, "is '2.5'"),
    ):
        write_ratings(path, [{**rows[0], **changed}, *rows[1:]])
        with pytest.raises(DataError, match=message):
            pulmonary_nodules.read_ratings(path.with_suffix(".csv"), "malignancy")
    with pytest.raises(DataError, match="has no column spiculation; it has"):
        pulmonary_nodules.read_ratings(path.with_suffix(".csv"), "spiculation")
    path.with_suffix(".csv").unlink()
    with pytest.raises(DataError, match="nodules.csv is missing; it has the ratings"):
        pulmonary_nodules.read_ratings(path.with_suffix(".csv"), "malignancy")


def test_a_hundred_mutants_of_a_zip_and_of_nodules_are_read_or_refused(tmp_path, monkeypatch):
    path = pack(tmp_path / "archive.zip", PLAIN)
    outcomes = []
    for i, mutant in enumerate(mutants(path.read_bytes(), 100, seed=35)):
        path.write_bytes(mutant)
        with contextlib.suppress(DataError):
            outcomes.append(open_dataset(str(unpack(path, str(tmp_path / str(i))))).class_names)
    assert len(outcomes) < 50 and set(outcomes) <= {("ants", "bees"), ("ants",), ("bees",)}
    path = tmp_path / "nodules.npz"
    monkeypatch.setattr(pulmonary_nodules, "SIDE", 5)
    nodules(path, np.zeros((134, 5, 5, 5), np.uint8))
    images, _ = pulmonary_nodules.read_nodules(path)
    for mutant in mutants(path.read_bytes(), 100, seed=36):
        path.write_bytes(mutant)
        with contextlib.suppress(DataError):
            found, names = pulmonary_nodules.read_nodules(path)
            assert np.array_equal(found, images) and len(names) == 134


def test_a_download_is_tried_once_and_says_what_to_do(tmp_path, monkeypatch):
    """No address is reachable: the proxy refuses every connection."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    start = time.monotonic()
    with pytest.raises(DataError) as raised:
        prepare.prepare("mnist", str(tmp_path))
    message = str(raised.value)
    assert "mnist could not be downloaded (" in message and f"put it in {tmp_path}/downloads/manual" in message
    assert "/mnist/train-labels-idx1-ubyte.gz as train-labels-idx1-ubyte.gz" in message
    assert message.endswith(f"repeat: python -m squeeze_jax.data.prepare mnist --data_dir {tmp_path}")
    with pytest.raises(DataError, match="chestmnist.npz.* give its file: .* --file chestmnist.npz$"):
        prepare.prepare("medmnist/chestmnist", str(tmp_path))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnnist", "mnist, kmnist, emnist"), ("dgits", "digits"), ("medmnist/chestmnst", "medmnist/chestmnist")],
)
def test_an_unknown_dataset_gets_near_names(name, nearest, tmp_path):
    with pytest.raises(DataError, match=f"the dataset '{name}' is unknown; did you mean {nearest}") as raised:
        prepare.prepare(name, str(tmp_path))
    assert len(str(raised.value)) < 500


def test_what_has_to_be_downloaded_by_hand_is_said(tmp_path):
    with pytest.raises(DataError, match="imagenet2012 has to be downloaded by hand: .*ILSVRC2012_img_train.tar"):
        prepare.prepare("imagenet2012", str(tmp_path))
