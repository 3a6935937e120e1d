"""Tests of compression on calibration images: second-order rounding, the segmented forward pass, searching a size."""

import csv
import dataclasses
import itertools
import shutil
import sys
import types

import flax.traverse_util
import jax
import numpy as np
import pytest
from conftest import SHORT, configure, options_of
from flax import linen as nn
from PIL import Image
from test_export import network_of

from experiments import compression_curve, compression_sources
from squeeze_jax import Network, commands, load, models
from squeeze_jax.compression import compressor as compressor_lib
from squeeze_jax.compression import second_order
from squeeze_jax.compression.__main__ import main
from squeeze_jax.compression.compressor import Compressor
from squeeze_jax.compression.report import Stage
from squeeze_jax.compression.segments import SegmentedForward
from squeeze_jax.compression.sequential import Sequential, double
from squeeze_jax.errors import InputError, ModelError
from squeeze_jax.pretrained import sqz


def problem(groups=1, inputs=70, outputs=12, seed=0):
    """Returns weights and the moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, 400, inputs)) @ rng.normal(size=(groups, inputs, inputs)) / np.sqrt(inputs)
    return rng.laplace(size=(groups, inputs, outputs)) * 0.05, x.swapaxes(1, 2) @ x / 400 + 0.01 * np.eye(inputs)


def output_error(change, moments):
    return ((moments @ change) * change).sum()


@pytest.mark.parametrize("groups", [1, 3])
def test_feedback_reduces_the_error_of_the_outputs(groups):
    weights, moments = problem(groups)
    rounded = second_order.round_weights(weights, moments, np.ones((groups, 12)), rate_factor=1e-4)
    assert (rounded.integers == np.round(rounded.integers)).all() and np.float32(rounded.step) == rounded.step
    ours = output_error(rounded.integers * rounded.step - weights, moments)
    nearest = output_error(np.round(weights / rounded.step) * rounded.step - weights, moments)
    assert ours < 0.7 * nearest


def test_without_correlations_weights_become_near_multiples_and_zeros_stay():
    weights, _ = problem()
    weights[:, ::3] = 0
    rounded = second_order.round_weights(weights, np.eye(70)[None], np.ones((1, 12)), rate_factor=1e-6)
    assert not rounded.integers[:, ::3].any()
    difference = np.abs(weights / rounded.step) - np.abs(rounded.integers)
    assert (np.abs(difference) <= 0.5).mean() > 0.9 and (difference > -0.5).all()


def test_a_larger_rate_factor_costs_fewer_bits():
    weights, moments = problem()
    nonzero = [
        np.count_nonzero(second_order.round_weights(weights, moments, np.ones((1, 12)), factor).integers)
        for factor in (1e-6, 1e-4, 1e-3)
    ]
    assert nonzero[0] > nonzero[1] > nonzero[2] > 0


def test_pruned_weights_are_zero_and_the_others_compensate():
    weights, moments = problem(inputs=64)
    pruned = second_order.prune_weights(weights, moments, 0.25)
    assert np.count_nonzero(pruned) == weights.size // 4
    smallest = np.where(np.abs(weights) >= np.quantile(np.abs(weights), 0.75), weights, 0)
    assert output_error(pruned - weights, moments) < 0.7 * output_error(smallest - weights, moments)
    rounded = second_order.round_weights(pruned, moments, np.ones((1, 12)), 1e-6)
    assert 0.2 * weights.size < np.count_nonzero(rounded.integers) <= weights.size // 4


class Mixed(nn.Module):
    """Layers of all kinds: strides, explicit padding, dilation, groups, batch norm, a residual, dense layers."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 5), strides=(2, 1), padding=[(1, 0), (2, 2)], name="a")(x))
        y = nn.Conv(8, (3, 3), kernel_dilation=2, feature_group_count=4, use_bias=False, name="b")(x)
        x = x + nn.relu(nn.BatchNorm(use_running_average=True, name="b_bn")(y))
        x = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=8, name="c")(x)
        y = nn.DenseGeneral(8, axis=(1, 2, 3), name="d")(x)
        dense = nn.remat(nn.Dense) if self.scanned else nn.Dense
        return dense(3, name="head")(x.mean((1, 2)) + y)


def mixed_inputs():
    x = np.random.default_rng(0).normal(size=(4, 13, 11, 3)).astype(np.float32)
    variables = jax.device_get(Mixed().init(jax.random.key(1), x))
    return x, variables


def test_the_inputs_of_each_layer_give_its_outputs():
    x, variables = mixed_inputs()
    forward = SegmentedForward(Mixed(), variables, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert [layer.name for layer in forward.layers] == ["a", "b", "c", "d", "head"]
    _, outputs = Mixed().apply(variables, x, capture_intermediates=True)
    state = (x,)
    for index, layer in enumerate(forward.layers):
        state = forward.run(index, variables, state)
        inputs = np.asarray(layer.inputs_of(state[0], layer.output_cells(state[0].shape)))
        params = variables["params"][layer.name]
        kernel = params["kernel"].reshape(-1, layer.groups, params["kernel"].shape[-1] // layer.groups)
        computed = np.einsum("bngi,igo->bngo", inputs, kernel).reshape(len(x), -1) + np.tile(
            params.get("bias", np.zeros(kernel.shape[1] * kernel.shape[2])), inputs.shape[1]
        )
        expected = outputs["intermediates"][layer.name]["__call__"][0]
        np.testing.assert_allclose(computed, expected.reshape(len(x), -1), rtol=1e-5, atol=1e-5)
    logits = forward.run(len(forward.layers), variables, state)[0]
    np.testing.assert_allclose(logits, Mixed().apply(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet_v1_0", {"use_batch_norm": True}),
        ("squeezenodule_v2", {"use_batch_norm": True}),
        ("alexnet", {"stem": "3x3/1"}),
        ("efficientnet_b0", {}),
        ("shufflenet_v2_x0_5", SHORT),
    ],
)
def test_segments_compute_the_network(name, options, short_networks):
    model = models.create(name, num_classes=3, **options_of(name, **options))
    x = np.random.default_rng(0).normal(size=(2, *(28,) * (3 if name == "squeezenodule_v2" else 2), 3))
    x = x.astype(np.float32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x))
    forward = SegmentedForward(model, variables, jax.ShapeDtypeStruct(x.shape, x.dtype))
    state = (x,)
    for index in range(len(forward.layers) + 1):
        state = forward.run(index, variables, state)
    np.testing.assert_allclose(state[0], model.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_layers_inside_transformations_are_refused():
    x, variables = mixed_inputs()
    with pytest.raises(ModelError, match=r"inside nn\.scan"):
        SegmentedForward(Mixed(scanned=True), variables, jax.ShapeDtypeStruct(x.shape, x.dtype))


def test_calibration_images_are_doubled_by_shifts():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1)).astype(np.uint8)
    doubled = double(images, mirrored=False)[:]
    np.testing.assert_array_equal(doubled[:3], images)
    shifted = [
        np.pad(images[0], ((2, 2), (2, 2), (0, 0)), "edge")[i : i + 16, j : j + 16]
        for i, j in itertools.product(range(5), repeat=2)
    ]
    assert any((doubled[3] == image).all() for image in shifted)
    np.testing.assert_array_equal(double(images, mirrored=True)[3:], doubled[3:, :, ::-1])


@pytest.fixture(scope="module", params=[False, True], ids=["biases", "batch_norm"])
def network(request):
    """Returns a small untrained network whose outputs differ from image to image."""
    config = configure("")
    config.model.name, config.model.use_batch_norm = "squeezenet_v1_1", request.param
    config.crop.size, config.crop.resize = 32, 36
    config.augment.flip = ("width",)
    options = {"base_filters": 16, "filter_increment": 16, "stem_filters": 16, "stem": "3x3/1", "head_relu": False}
    for key, value in options.items():
        config.model[key] = value
    model = models.create("squeezenet_v1_1", num_classes=3, use_batch_norm=request.param, **options)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)))
    # Otherwise the activations fade from layer to layer.
    variables["params"] = jax.tree.map(lambda leaf: leaf * 1.6 if leaf.ndim > 1 else leaf, variables["params"])
    variables["params"]["conv10"]["kernel"] = variables["params"]["conv10"]["kernel"] * 30
    return Network(model, variables, config, 7, ("ant", "bee", "cow"), (32, 32, 3))


@pytest.fixture(scope="module")
def pictures():
    """Returns smooth random pictures, uint8 (40, 32, 32, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((32, 32))) for image in coarse])


def logits_of(network, images):
    return np.asarray(network.model.apply(network.variables, network.task.preprocessing.evaluate(images)))


def test_sequential_rounding_keeps_the_outputs(network, pictures):
    sequential = Sequential(network, pictures)
    variables, steps = sequential.quantize(1e-5)
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    plain = dict(flax.traverse_util.flatten_dict(network.variables, sep="/"))
    for name, step in steps.items():
        multiples = leaves[name] / step
        np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-3)
        plain[name] = (np.round(np.asarray(plain[name]) / step) * step).astype(np.float32)
    assert {name for name in leaves if name.endswith("kernel")} <= steps.keys()
    original = logits_of(network, pictures)
    ours = logits_of(dataclasses.replace(network, variables=variables), pictures)
    nearest = dataclasses.replace(network, variables=flax.traverse_util.unflatten_dict(plain, sep="/"))
    assert np.abs(ours - original).mean() < 0.8 * np.abs(logits_of(nearest, pictures) - original).mean()
    # The same file comes out again, and a coarser one is smaller.
    again, _ = sequential.quantize(1e-5)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    coarse, coarse_steps = sequential.quantize(1e-4)
    sizes = [
        len(sqz.serialize(dataclasses.replace(network, variables=v), steps=s))
        for v, s in ((variables, steps), (coarse, coarse_steps))
    ]
    assert sizes[1] < sizes[0]


def test_a_head_without_bias_is_rounded(pictures):
    """SqueezeNext's, which also has groups."""
    grouped = network_of("squeezenext_1_0_g_23", (32, 32, 3), depths=(1, 1, 0, 0))
    variables, steps = Sequential(grouped, pictures[:8]).quantize(1e-5)
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    assert {name for name in leaves if name.endswith("kernel")} == steps.keys()
    assert jax.tree.structure(variables) == jax.tree.structure(grouped.variables)


def test_pruning_keeps_the_outputs(network, pictures):
    variables, steps = Sequential(network, pictures).quantize(None, density=0.5)
    assert not steps
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    plain = dict(flax.traverse_util.flatten_dict(network.variables, sep="/"))
    for name in (name for name in leaves if name.endswith("kernel")):
        assert abs(np.count_nonzero(leaves[name]) / leaves[name].size - 0.5) < 0.02, name
        kernel = np.asarray(plain[name])
        plain[name] = np.where(np.abs(kernel) >= np.median(np.abs(kernel)), kernel, 0)
    original = logits_of(network, pictures)
    ours = logits_of(dataclasses.replace(network, variables=variables), pictures)
    smallest = dataclasses.replace(network, variables=flax.traverse_util.unflatten_dict(plain, sep="/"))
    assert np.abs(ours - original).mean() < np.abs(logits_of(smallest, pictures) - original).mean()


def test_a_task_without_a_likelihood_is_named(network, pictures):
    other = dataclasses.replace(network)
    other.__dict__["task"] = object()
    with pytest.raises(
        InputError, match="needs a task with log_likelihood_of_draw, which 'classification' does not have"
    ):
        Sequential(other, pictures)


def test_the_command_reaches_a_size_and_continues(network, pictures, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compression", "--weights", str(weights), *map(str, arguments)])
        return commands.run(main), *capsys.readouterr()

    weights, output, stages = tmp_path / "small.sqz", tmp_path / "out.sqz", tmp_path / "stages"
    sqz.save(network, weights)
    for i, picture in enumerate(pictures[:8]):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(picture).resize((40, 40)).save(tmp_path / "images" / f"{i}.png")
    options = ["--output", output, "--calibration", tmp_path / "images"]
    size = weights.stat().st_size // 3
    status, printed, error = run(*options, "--size", size, "--stages", stages, "--batch_norm", "float16")
    assert status == 0, error
    assert 0.9 * size <= output.stat().st_size <= size and "second-order rounding" in printed
    loaded = load(output)
    assert np.isfinite(loaded.predict(pictures)).all()
    # A repeated command uses what was kept.
    before = output.read_bytes()

    def fail(*_):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(compressor_lib.Sequential, "quantize", fail)
        status, *_ = run(*options, "--size", size, "--stages", stages, "--batch_norm", "float16")
        assert status == 0 and output.read_bytes() == before
    status, printed, error = run(*options, "--density", 0.5, "--bits", 4, "--no_augmentation")
    assert status == 0 and "50% of the weights" in printed and "density weight sharing" in printed, error
    for arguments, message in (
        (["--output", output, "--size", "1000"], "need images: --calibration FOLDER"),
        ([*options, "--size", "1000", "--biases", "float16"], "round them to int8"),
        ([*options, "--density", "1.5"], "the density is 1.5"),
        ([*options[2:], "--output", tmp_path / "out.net", "--quality", "0.02"], "write .sqz files"),
    ):
        status, _, error = run(*arguments)
        assert status == 1 and message in error and "Traceback" not in error, error
    for what, free in (("images", 1000), ("feature maps", 10**5)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
        status, _, error = run(*options, "--size", size)
        assert status == 1 and f"{what} need 0.0 GB in {tmp_path}" in error and "Traceback" not in error, error
    assert output.read_bytes() != before and not list(tmp_path.glob(".*"))


def test_the_curve_has_a_row_for_each_file(network, pictures, tmp_path, monkeypatch, capsys):
    sqz.save(network, tmp_path / "small.sqz")
    for folder in ("calibration", "labeled/ant"):
        (tmp_path / folder).mkdir(parents=True)
        for i, picture in enumerate(pictures[:5]):
            Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
    options = {"weights": "small.sqz", "calibration": "calibration", "evaluation": "labeled", "output": "."}
    words = [word for key, name in options.items() for word in (f"--{key}", str(tmp_path / name))]
    monkeypatch.setattr(sys, "argv", ["compression_curve", *words, "--rate_factors", "1e-8", "1e-6"])
    assert compression_curve.main() == 0
    with (tmp_path / "compression_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["lossless", "8-bit rounding", *["k-means"] * 3, *["second-order"] * 2]
    assert float(rows[0]["divergence"]) == 0 and rows[0]["images"] == "5"
    assert int(rows[-1]["bytes"]) < int(rows[-2]["bytes"]) < int(rows[0]["bytes"])
    assert Image.open(tmp_path / "compression_curve.png").width > 300


@pytest.mark.parametrize("network", [False], indirect=True, ids=["biases"])
def test_sources_are_judged_by_what_calibrated_nothing(network, pictures, tmp_path, monkeypatch, capsys):
    sqz.save(network, tmp_path / "small.sqz")
    for i, picture in enumerate(pictures[:10]):
        folder = tmp_path / ("first", "second")[i % 2] / ("ant", "bee")[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i}.png")
    seen = []

    def compress(compressor, size):
        seen.append(compressor._calibration_images()[:])
        return 1e-7, Stage("unchanged", network, size)

    monkeypatch.setattr(compression_sources, "compress", compress)
    words = [f"--{name}={tmp_path / name}" for name in ("first", "second")]
    words += [f"--weights={tmp_path / 'small.sqz'}", f"--output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["compression_sources", *words])
    assert compression_sources.main() == 0
    with (tmp_path / "compression_sources.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["calibration"] for row in rows}) == len(seen) == 5
    assert not [row for row in rows if row["judged"] in row["calibration"]]
    assert {row["judged_images"] for row in rows} == {"2", "3"} and {row["agreement"] for row in rows} == {"1.0"}
    half = [network.read_image(next((tmp_path / "first").rglob(f"{i}.png"))) for i in (0, 4, 8)]
    np.testing.assert_array_equal(seen[0][:3], half)
    assert len(seen[0]) == len(seen[4]) == 6 and (seen[0][3:] != seen[4][3:]).any()  # shifts and crops


def test_a_divergence_is_reached_or_refused(network, pictures, monkeypatch):
    compressor = Compressor(network, pictures, augment=False)
    compressor.round_to_divergence(0.02)
    (stage,) = compressor.stages
    original = network.predict(pictures)
    found = stage.network.predict(pictures)
    divergence = (original * np.log(original / found)).sum(1).mean()
    assert 0 < divergence <= 0.02 + 1e-6
    # Pruning starts from the original network again, and has no steps.
    compressor.prune(0.5)
    assert not compressor.steps and compressor.stages[-1].bytes > compressor.stages[0].bytes
    monkeypatch.setattr(compressor_lib, "TRIALS", 2)
    with pytest.raises(InputError, match="no file with at most 100 bytes was found in 2 trials"):
        Compressor(network, pictures).round_to_size(100)
    with pytest.raises(InputError, match="--calibration"):
        Compressor(network).prune(0.5)
