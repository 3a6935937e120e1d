"""The file of 134 rated nodules: read as it is; another one, or damage, is an error that names it."""

import zipfile

import numpy as np
import pytest
from conftest import SHARED

from squeeze_jax.data.builders import pulmonary_nodules as nodules
from squeeze_jax.errors import DataError

NAMES = [f"{i}_nod1_ann0" for i in range(134)]


def write(path, **arrays):
    np.savez_compressed(path, **{"image": np.zeros((134, 51, 51, 51), np.uint8), "name": NAMES} | arrays)
    return path


def test_the_file_as_it_is():
    path = SHARED / "lung" / "nodules_51_3d.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    images, names = nodules.read_volumes(path)
    assert images.shape == (134, 51, 51, 51) and len(set(names)) == 134
    ratings = nodules.read_ratings(path.with_suffix(".csv"), "malignancy")
    assert set(names) <= ratings.keys() and set(ratings.values()) == {1, 2, 3, 4, 5}
    assert ratings["0_nod1_ann0"] == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((4, 51, 51, 51), np.uint8)}, r"images of type uint8 and shape \(4, 51, 51, 51\)"),
        ({"image": np.zeros((300, 51, 51, 51), np.uint8)}, "has an array of 39,795,428 bytes; expected at most"),
        ({"other": np.zeros(2 * 10**7, np.uint8)}, "has an array of 20,000,128 bytes"),
        ({"name": ["nobody"] * 134}, "has a nodule called 'nobody'"),
        ({"name": ["5000_x"] * 134}, "has a nodule called '5000_x'"),
        ({"name": np.array([{}] * 134)}, "is not an intact .npz file"),
    ],
)
def test_another_file_is_refused(arrays, message, tmp_path):
    with pytest.raises(DataError, match=message):
        nodules.read_volumes(write(tmp_path / "x.npz", **arrays))


def test_a_damaged_file_is_refused(tmp_path):
    path = write(tmp_path / "x.npz")
    data = path.read_bytes()
    flipped = data[:300] + bytes([data[300] ^ 255]) + data[301:]
    for damaged in (data[: len(data) // 2], flipped, b"", b"\x93NUMPY"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="x.npz is not an intact .npz file with image and name"):
            nodules.read_volumes(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("name.npy", b"")
    with pytest.raises(DataError, match="is not an intact"):
        nodules.read_volumes(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Filename,texture\na,1\n", "has no column malignancy"),
        ("Filename,malignancy\na,1\nb,99\n", "line 3: malignancy is '99'; expected one of 1, 2, 3, 4, 5"),
        ("Filename,malignancy\na,\n", "line 2: malignancy is ''"),
        ("Filename,malignancy\na\n", "line 2: malignancy is None"),
        ("Filename,malignancy\nü,1\n".encode("latin-1"), "the list of ratings, cannot be read"),
    ],
)
def test_wrong_ratings_are_named(text, message, tmp_path):
    (tmp_path / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        nodules.read_ratings(tmp_path / "x.csv", "malignancy")
    with pytest.raises(DataError, match="nothing.csv"):
        nodules.read_ratings(tmp_path / "nothing.csv", "malignancy")
