"""LiteRT files: every network in float, int8, files that are damaged or of others, the converter's child process.

The converter is looked for where squeeze_jax.export.litert looks for it, see docs/export_litert.md.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, SHARED
from fuzz import mutants
from test_export import (
    FAMILY,
    NET,
    OTHERS,
    assert_same_logits,
    expected_logits,
    exported,
    images_for,
    narrowed,
    network_of,
)

from squeeze_jax import load
from squeeze_jax.errors import ExportError, WeightError
from squeeze_jax.export import litert
from squeeze_jax.export.description import KEYS

PYTHON = os.environ.get(litert.PYTHON, sys.executable)
SCRIPT = """
import sys
assert not {"jax", "squeeze_jax", "tensorflow"} & set(sys.modules)
images, labels = np.load(sys.argv[1]), np.load(sys.argv[2])
step = len(images) if "(batch, " in description["input"] else 1
logits = np.concatenate([logits_of(images[i : i + step]) for i in range(0, len(images), step)])
print(float(np.mean(logits.argmax(axis=1) == labels)))
"""


@functools.cache
def has_converter():
    code = "import litert_converter.mlir, litert_quantizer"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, timeout=120).returncode == 0


@pytest.fixture
def converter():
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    if not has_converter():
        pytest.skip(f"{PYTHON} has no LiteRT converter; see docs/export_litert.md")


@pytest.fixture(scope="module")
def small():
    return network_of("squeezenet_v1_1", **narrowed("squeezenet_v1_1"))


@pytest.mark.parametrize("shape", [(64, 67, 3), (28, 28, 28, 1)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", FAMILY)
def test_every_network_agrees_with_jax(name, shape, converter, tmp_path):
    options = {} if len(shape) == 3 else {"stem": "3x3/1"}
    network = network_of(name, shape, use_batch_norm=True, **narrowed(name), **options)
    assert_same_logits(network, exported(network, tmp_path, ".tflite"))


@pytest.mark.parametrize("name", OTHERS)
def test_so_does_every_other_kind_of_network(name, short_networks, converter, tmp_path):
    network = network_of(name, (64, 67, 3), stem="3x3/1", **narrowed(name))
    assert_same_logits(network, exported(network, tmp_path, ".tflite"))


OPTIONS = {
    "head": {"head_relu": False, "head_padding": True},
    "pooling": {"pooling": "floor"},
    "bfloat16": {"dtype": "bfloat16"},
    "image_size": {"image_size": (40, 36)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_and_the_resize_inside(options, converter, tmp_path):
    network = network_of("squeezenet_v1_1", **narrowed("squeezenet_v1_1"), **OPTIONS[options])
    found = exported(network, tmp_path, ".tflite")
    assert_same_logits(network, found)
    # The resize has a fixed batch, and the file says so.
    assert ("(1, 32, 35, 3)" if options == "image_size" else "(batch, 32, 35, 3)") in found.description["input"]


@pytest.mark.parametrize("shape", [(32, 35, 3), (35, 32, 3), (33, 33, 3), (32, 32, 3)])
def test_pooling_that_pads_one_axis_and_not_the_other(shape, converter, tmp_path):
    network = network_of("squeezenet_v1_1", shape, **narrowed("squeezenet_v1_1"))
    assert_same_logits(network, exported(network, tmp_path, ".tflite"))


def test_pixels_in_uint8(small, converter, tmp_path):
    found = exported(small, tmp_path, ".tflite", "uint8")
    images = images_for(small, 3)
    expected = expected_logits(small, images)
    assert np.abs(found.logits(images) - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_file_describes_itself(small, converter, tmp_path):
    found = exported(small, tmp_path, ".tflite")
    assert found.description.keys() == set(KEYS)
    assert found.class_names == small.class_names and found.image_shape == small.image_shape
    assert found.config == small.config and found.description["layout"] == "channels_last"


def test_int8_is_near_and_takes_and_returns_the_same(small, converter, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(litert.serialize_int8(small, images_for(small, 20)))
    found = litert.read(path)
    images = images_for(small, 3, seed=1)
    expected = expected_logits(small, images)
    difference = np.abs(found.logits(images) - expected).max() / np.abs(expected).max()
    assert 1e-4 < difference < 0.05
    assert found.class_names == small.class_names


@pytest.mark.skipif(not NET.exists(), reason=f"{NET} is not there; set SQUEEZE_JAX_SHARED")
def test_the_papers_network_in_int8_agrees_on_photographs(converter, tmp_path):
    network = load(NET)
    paths = sorted((SHARED / "imagenet_sample").glob("*.JPEG"))[::3]
    images = np.stack([network.read_image(path) for path in paths])
    path = tmp_path / "net.tflite"
    path.write_bytes(litert.serialize_int8(network, images[::2]))
    assert path.stat().st_size < 0.3 * 4 * sum(map(np.size, jax.tree.leaves(network.variables)))
    found, expected = litert.read(path).logits(images[1::2]), expected_logits(network, images[1::2])
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.85
    assert np.abs(found - expected).max() < 6  # 13 by the quantizer's own statistics


def test_damaged_files_end_in_our_error(small, converter, tmp_path):
    path = tmp_path / "net.tflite"
    data = litert.serialize(small)
    for mutant in mutants(data, 100):
        path.write_bytes(mutant)
        with pytest.raises(WeightError, match=re.escape(str(path))):
            litert.read(path)


def test_files_of_others_are_refused(small, converter, tmp_path):
    path = tmp_path / "net.tflite"
    data = litert.serialize(small)
    for other in (data.replace(b"sha256:", b"sha512:"), b"", b"TFL3" * 100):
        path.write_bytes(other)
        with pytest.raises(WeightError, match="was not written by"):
            litert.read(path)


def test_the_documented_reader_needs_neither_jax_nor_this_project(converter, tmp_path, request):
    """The snippet of the documentation, in the environment of the converter, on the test split of a digits run."""
    page = (ROOT / "docs" / "export_litert.md").read_text()
    (tmp_path / "read.py").write_text(re.search(r"```py\n(.*?)```", page, re.S).group(1) + SCRIPT)
    network = load(request.getfixturevalue("reference"))  # trained only if there is a converter
    (tmp_path / "net.tflite").write_bytes(litert.serialize(network))
    split = network.split("test")
    batch = split.batch(np.arange(len(split)))
    np.save(tmp_path / "images.npy", batch["image"])
    np.save(tmp_path / "labels.npy", batch["label"])
    command = [PYTHON, "-P", "read.py", "images.npy", "labels.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(network.evaluate("test").values["top1"], abs=1e-9)


def fake_python(folder, script):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_missing_converter_is_explained(small, tmp_path, monkeypatch):
    monkeypatch.setenv(litert.PYTHON, fake_python(tmp_path, "exit 3"))
    with pytest.raises(ExportError, match=r"pip install litert-converter==.*\n.*export SQUEEZE_JAX_LITERT_PYTHON"):
        litert.serialize(small)
    monkeypatch.setenv(litert.PYTHON, fake_python(tmp_path, "echo out of memory >&2; exit 1"))
    with pytest.raises(ExportError, match="(?s)failed.*out of memory"):
        litert.serialize(small)
    monkeypatch.setenv(litert.PYTHON, str(tmp_path / "nothing"))
    with pytest.raises(ExportError, match="cannot be started"):
        litert.serialize(small)


def test_a_missing_interpreter_is_explained(tmp_path, monkeypatch):
    from squeeze_jax.export.description import UNSEALED, seal

    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    path = tmp_path / "net.tflite"
    path.write_bytes(seal(json.dumps(UNSEALED.decode()).encode()))
    with pytest.raises(ExportError, match="ai-edge-litert"):
        litert.read(pathlib.Path(path))
