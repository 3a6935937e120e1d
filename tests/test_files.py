import os

import pytest

from squeeze_jax.errors import FileError
from squeeze_jax.files import replaced


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
