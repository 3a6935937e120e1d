"""The peers that benchmarks/ measures are the same network as ours, and its figures are what they say."""

import csv
import importlib

import flax
import jax
import numpy as np
import onnx.reference
import pytest
from conftest import ROOT

from squeeze_jax import models


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    ("name", "shape"), [("squeezenet_v1_1", (1, 32, 32, 3)), ("squeezenodule_v2", (1, 13, 15, 13, 1))]
)
def test_the_onnx_peer_gives_our_logits(name, shape):
    import peers

    small = {"base_filters": 8, "filter_increment": 8, "stem_filters": 8, "num_classes": 5}
    model = models.create(name, stem="3x3/1", bypass="simple", **small)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    weights = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    rank = len(shape) - 2
    serialized = peers.onnx_network(peers.layers_of(model, shape[-1]), rank, weights)
    (logits,) = onnx.reference.ReferenceEvaluator(serialized).run(None, {"images": np.moveaxis(images, -1, 1)})
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, images), rtol=1e-4, atol=1e-5)


def test_a_table_holds_medians_and_keeps_other_rows(tmp_path):
    import report

    path = tmp_path / "table.csv"
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    rows = [{"case": case} | report.spread(values, "seconds", 1) for case in ("a", "b")]
    assert rows[0] == {"case": "a", "seconds": 3.0, "quartile_low": 1.5, "quartile_high": 52.0}
    assert report.ratio([6.0, 6.0, 0.0], values) == 2.0
    report.write(path, rows, 5, key="case")
    report.write(path, [rows[1] | {"seconds": 7.0}], 5, key="case")
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert [(row["case"], row["seconds"], row["rounds"]) for row in found] == [("a", "3.0", "5"), ("b", "7.0", "5")]


@pytest.mark.parametrize(
    ("benchmark", "name", "page"),
    [("networks", "table", "speed.md"), ("networks", "compact_table", "speed.md"), ("latency", "table", "export.md")],
)
def test_the_documentation_has_the_table_of_the_csv(benchmark, name, page):
    table = getattr(importlib.import_module(benchmark), name)(ROOT / "benchmarks" / "results" / f"{benchmark}.csv")
    assert table.count("\n") > 2
    assert table in (ROOT / "docs" / page).read_text()


@pytest.mark.parametrize("training", [True, False])
def test_a_profile_finds_the_layers_of_a_step(training):
    import layer_profile
    from layers import compiled_step
    from networks import SMALL, Case

    narrow = (("base_filters", 16), ("filter_increment", 16), ("stem_filters", 16))
    compiled, run = compiled_step(Case(training, 4, (32, 32, 3), "squeezenet_v1_1", (*SMALL, *narrow)))
    run()
    found = layer_profile.by_layer(layer_profile.trace(run), layer_profile.sources_of(compiled.as_text()))
    layers = {"conv1", "pool1", "pool3", "pool5", "conv10", *(f"fire{i}" for i in range(2, 10))}
    assert layers <= {layer for (layer, is_backward), milliseconds in found.items() if milliseconds > 0}
    assert {"fire2", "fire9"} & {layer for layer, is_backward in found if is_backward} == (
        {"fire2", "fire9"} if training else set()
    )
