import os

import pytest

from squeeze_jax.errors import FileError
from squeeze_jax.files import read_json, replaced, write_json


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replaced(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replaced(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    full = pytest.raises(FileError, match="a.txt cannot be written .No space left on device")
    with full, replaced(path), open("/dev/full", "w", buffering=1) as file:
        print("text", file=file)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_name_may_be_as_long_as_is_allowed(tmp_path):
    path = tmp_path / ("ä" * 125 + ".txt")
    with replaced(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 10_000], ids=["empty", "cut", "binary", "deep"])
def test_what_is_not_json_is_one_kind_of_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    for name in ("a.json", "absent.json", "."):
        with pytest.raises(ValueError):
            read_json(tmp_path / name)
    write_json(tmp_path / "a.json", {"a": [1]})
    assert read_json(tmp_path / "a.json") == {"a": [1]}
