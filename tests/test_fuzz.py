"""Damaged files of every format; `python tests/fuzz.py` reads more of them."""

import fuzz
import pytest

WITH_CHECKSUM = (".sqz", ".safetensors", "exported .onnx", "exported .jaxexport", "nii.gz")


@pytest.fixture(scope="module")
def results():
    return fuzz.run(fuzz.default_formats(), count=100, seed=0, seconds=60)  # on a machine that is busy


def test_damaged_files_are_refused_by_name_or_accepted_and_nothing_else_happens(results):
    assert list(results) == fuzz.default_formats()
    assert fuzz.failures(results) == {}
    for name, rows in results.items():
        refused = [text for result, text, *_ in rows if result == "refused"]
        assert refused and all(fuzz.FORMATS[name].file.partition(".")[0] in text for text in refused), name


@pytest.mark.parametrize("name", WITH_CHECKSUM)
def test_a_checksum_shows_all_damage(results, name):
    assert {result for result, *_ in results[name]} == {"refused"}
