"""Tests of exported files: every network in every format, damaged and hostile files, int8, the commands."""

import collections
import dataclasses
import json
import pathlib
import re
import shutil
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from conftest import SHARED, SHORT, options_of
from flax import linen as nn
from PIL import Image

from squeeze_jax import Network, commands, load, models, predict
from squeeze_jax.compression.report import Answers
from squeeze_jax.config import base_config
from squeeze_jax.errors import ExportError, InputError, WeightError
from squeeze_jax.export import __main__ as command
from squeeze_jax.export import latency, onnx_file, onnx_graph, stablehlo
from squeeze_jax.export.comparison import TOLERANCE, Comparison, compare
from squeeze_jax.export.description import KEYS, UNSEALED, check_seal, describe, seal
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import FORMATS, is_exported, open_exported
from squeeze_jax.export.forward import forward
from squeeze_jax.pretrained import own_file, sqz

NARROW = {"base_filters": 8, "filter_increment": 8, "stem_filters": 8}
FAMILY = [name for name in models.list_models() if issubclass(models.registered(name).network, models.SqueezeNet)]
# One of each kind.
OTHERS = (
    "alexnet",
    "alexnet_grouped",
    "efficientnet_b0",
    "mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenext_1_0_23v5",
    "squeezenext_1_0_g_23",
)
CLASSES = ("ant", "bee", "cow", "dog", "emu")
NET = SHARED / "deep_compression" / "compressed_SqueezeNet.net"


def network_of(name="squeezenet_v1_1", image_shape=(32, 35, 3), image_size=(), model=None, **options):
    """Returns an untrained network with biases and batch norm statistics that are not trivial."""
    config = base_config()
    config.model.name = name
    for key, value in options.items():
        config.model[key] = value
    channels = image_shape[-1]
    config.dataset.channels = channels
    config.dataset.image_size = image_size
    config.dataset.mean, config.dataset.std = (120.0, 115.0, 100.0)[:channels], (60.0, 50.0, 55.0)[:channels]
    if model is None:
        model = models.create(name, num_classes=len(CLASSES), **options)
    inputs = np.zeros((1, *(image_size or image_shape[:-1]), channels), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    rng = np.random.default_rng(0)

    def changed(leaf):
        leaf = np.asarray(leaf)
        return leaf if leaf.ndim > 1 else (leaf + rng.uniform(0.1, 0.5, leaf.shape)).astype(np.float32)

    return Network(model, jax.tree.map(changed, variables), config, 7, CLASSES, image_shape)


def narrowed(name):
    """Returns those options that make a registered network narrow."""
    return options_of(name, **NARROW, **SHORT)


def images_for(network, count, seed=0):
    shape = (count, *network.image_shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected_logits(network, images):
    function, variables = forward(network)
    return jax.device_get(jax.jit(function)(variables, images))


def exported(network, folder, suffix, pixels="float32"):
    path = folder / f"net{suffix}"
    path.write_bytes(FORMATS[suffix].serialize(network, pixels))
    return open_exported(path)


def assert_same_logits(network, found, counts=(1, 3)):
    images = images_for(network, max(counts))
    expected = expected_logits(network, images)
    assert np.ptp(expected) > 0
    for count in counts:
        for pixels in (images[:count], images[:count].astype(np.float32)):
            logits = found.logits(pixels)
            assert logits.shape == (count, len(network.class_names)) and logits.dtype == np.float32
            assert np.abs(logits - expected[:count]).max() <= TOLERANCE * np.abs(expected).max()


def kinds(data):
    return collections.Counter(node.op_type for node in onnx.load_model_from_string(data).graph.node)


@pytest.mark.parametrize("name", FAMILY)
def test_every_network_gives_its_logits_in_every_format(name, tmp_path):
    network = network_of(name, **narrowed(name))
    for suffix in (".onnx", ".jaxexport"):
        assert_same_logits(network, exported(network, tmp_path, suffix))
    counted = kinds((tmp_path / "net.onnx").read_bytes())
    assert "Transpose" not in counted and counted["GlobalAveragePool"] == 1


@pytest.mark.parametrize("name", OTHERS)
def test_so_does_every_other_kind_of_network(name, short_networks, tmp_path):
    network = network_of(name, (64, 67, 3), stem="3x3/1", **narrowed(name))
    for suffix in (".onnx", ".jaxexport"):
        assert_same_logits(network, exported(network, tmp_path, suffix))
    counted = kinds((tmp_path / "net.onnx").read_bytes())
    assert counted["Transpose"] == (4 if "shuffle" in name else 0)  # one per shuffle
    # Batch norm is folded, also into grouped convolutions.
    kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(network.variables))
    assert counted["Conv"] + counted["Gemm"] == kernels


@pytest.mark.parametrize("name", [*FAMILY, "mobilenet_v2"])
def test_networks_give_their_logits_on_volumes(name, short_networks, tmp_path):
    options = {"use_batch_norm": True} if name in FAMILY else {}
    network = network_of(name, (28, 28, 28, 1), stem="3x3/2", **narrowed(name), **options)
    assert_same_logits(network, exported(network, tmp_path, ".onnx"))
    assert "Transpose" not in kinds((tmp_path / "net.onnx").read_bytes())


OPTIONS = {
    "batch norm": {"use_batch_norm": True},
    "floor": {"pooling": "floor", "head_relu": False},
    "padded head": {"head_padding": True, "bypass": "complex"},
    "more 3x3": {"fraction_3x3": 0.75, "stem": "3x3/1", "bypass": "simple"},
    "bfloat16": {"dtype": "bfloat16"},
    "resized": {"image_size": (37, 31)},
    "enlarged": {"image_size": (70, 64)},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_is_exported(case, tmp_path):
    network = network_of(**NARROW, **OPTIONS[case])
    for suffix in (".onnx", ".jaxexport"):
        assert_same_logits(network, exported(network, tmp_path, suffix))
    data = (tmp_path / "net.onnx").read_bytes()
    found = kinds(data)
    assert found["Conv"] == sum(leaf.ndim > 1 for leaf in jax.tree.leaves(network.variables))
    # Only the preprocessing and the sums of bypasses are arithmetic.
    assert (found["Sub"], found["Div"], found["Mul"]) == (1, 1, 0) and "Transpose" not in found


def test_pixels_may_be_integers(tmp_path):
    network = network_of(**NARROW)
    images = images_for(network, 2)
    for suffix in (".onnx", ".jaxexport"):
        found = exported(network, tmp_path, suffix, "uint8")
        np.testing.assert_allclose(found.logits(images), expected_logits(network, images), rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match="takes pixels in uint8"):
            found.logits(images.astype(np.float32))
        with pytest.raises(InputError, match=r"expected \(batch, 32, 35, 3\)"):
            found.logits(images[:, 1:])


def test_openvino_reads_the_onnx_file(tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    network = network_of(**NARROW)
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_file.serialize(network))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    images = images_for(network, 2)
    logits, expected = compiled(np.moveaxis(images, -1, 1).astype(np.float32))[0], expected_logits(network, images)
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_nncf_quantizes_the_onnx_file(tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    nncf = pytest.importorskip("nncf", reason="nncf is not installed")
    network = network_of(**NARROW)
    (tmp_path / "net.onnx").write_bytes(onnx_file.serialize(network))
    images = np.moveaxis(images_for(network, 64), -1, 1).astype(np.float32)
    model = openvino.Core().read_model(tmp_path / "net.onnx")
    quantized = nncf.quantize(model, nncf.Dataset(list(images[:, None])), subset_size=len(images))
    openvino.save_model(quantized, tmp_path / "int8.xml", compress_to_fp16=False)
    assert (tmp_path / "int8.bin").stat().st_size < 0.5 * (tmp_path / "net.onnx").stat().st_size
    compiled = openvino.Core().compile_model(str(tmp_path / "int8.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = expected_logits(network, images_for(network, 64))
    difference = np.abs(compiled(images)[0] - expected).max()
    assert 0 < difference < 0.1 * np.abs(expected).max()


class Zoo(nn.Module):
    """Layers that the registered networks do not have."""

    head = "head"
    ranks = (2,)
    head_margin = 0

    num_classes: int = 5
    kind: str = "mobile"
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False, positions=None):
        x = getattr(self, f"_{self.kind}")(images)
        return jnp.mean(x, axis=(1, 2)) if x.ndim > 2 else x

    def _mobile(self, x):
        """Depthwise, squeeze and excitation, swish, hard swish, a residual sum, grouped and dilated convolutions."""
        x = nn.swish(nn.Conv(8, (3, 3), strides=2, padding=[(0, 1), (2, 0)], name="stem")(x))
        y = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise")(x)
        y = nn.hard_swish(nn.BatchNorm(use_running_average=True, name="bn")(y))
        pooled = jnp.mean(y, axis=(1, 2), keepdims=True)
        gate = nn.sigmoid(nn.Conv(8, (1, 1), name="expand")(nn.relu(nn.Conv(2, (1, 1), name="reduce")(pooled))))
        x = x + y * gate
        x = nn.relu6(nn.Conv(6, (3, 1), feature_group_count=2, kernel_dilation=2, name="grouped")(x))
        x = nn.BatchNorm(use_running_average=True, name="alone")(x)
        x = nn.leaky_relu(nn.avg_pool(x, (2, 3), (2, 2), [(0, 1), (1, 1)]))
        return nn.Conv(self.num_classes, (1, 1), name="head")(x)

    def _dense(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="stem")(x)), (4, 4), (4, 4))
        x = nn.Dense(6, name="pointwise")(x)
        x = x * nn.DenseGeneral(6, axis=(1, 2, 3), name="all")(x)[:, None, None]
        x = nn.gelu(nn.Dense(7, name="hidden")(x.reshape(x.shape[0], -1)), approximate=False)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.num_classes, use_bias=False, name="head")(nn.softmax(x))

    def _shuffle(self, x):
        x = nn.Conv(6, (3, 3), name="stem")(x)
        x = x.reshape(*x.shape[:-1], 2, 3).swapaxes(-1, -2).reshape(x.shape)
        x = jnp.pad(x, [(0, 0), (1, 0), (0, 2), (0, 0)], constant_values=0.5)[:, ::-1, 1::2, 1:]
        x = x * jnp.split(x[..., ::2], [1], axis=-1)[0] + x[:, :1, -1:]
        return nn.Conv(self.num_classes, (1, 1), name="head")(jnp.concatenate([x, jnp.abs(x)], -1))

    def _attention(self, x):
        x = nn.Conv(4, (4, 4), strides=4, name="stem")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        weights = nn.softmax(jnp.einsum("bqc,bkc->bqk", x, x))
        x = jnp.einsum("bqk,bkc->bqc", weights, x)
        return nn.Dense(self.num_classes, name="head")(jnp.max(x, axis=1))

    def _sorted(self, x):
        return jnp.sort(nn.Conv(self.num_classes, (1, 1), name="head")(x), axis=-1)

    def _loop(self, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, None, length=3)[0]


@pytest.mark.parametrize("kind", ["mobile", "dense", "shuffle", "attention"])
def test_other_peoples_layers_are_exported(kind, tmp_path):
    network = network_of(model=Zoo(kind=kind))
    assert_same_logits(network, exported(network, tmp_path, ".onnx"))
    found = kinds((tmp_path / "net.onnx").read_bytes())
    transposes = {"mobile": 0, "shuffle": 1}  # a channel shuffle is a transposition
    assert found["Transpose"] == transposes.get(kind, found["Transpose"])


@pytest.mark.parametrize(("kind", "message"), [("sorted", "sort"), ("loop", "scan")])
def test_an_unknown_operation_is_named(kind, message):
    with pytest.raises(ExportError, match=f"uses the operation {message}, which cannot be exported"):
        onnx_file.serialize(network_of(model=Zoo(kind=kind)))


def test_batch_norm_and_scalars_are_folded_in_float64():
    network = network_of(**NARROW, use_batch_norm=True)
    model = onnx.load_model_from_string(onnx_file.serialize(network))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    params, stats = network.variables["params"], network.variables["batch_stats"]["conv1_bn"]
    factor = params["conv1_bn"]["scale"] / np.sqrt(np.float64(stats["var"]) + 1e-5)
    kernel = np.float32(np.float64(params["conv1"]["kernel"]) * factor).transpose(3, 2, 0, 1)
    np.testing.assert_array_max_ulp(stored["conv1/kernel"], kernel, 1)
    bias = params["conv1_bn"]["bias"] - np.float64(stats["mean"]) * factor
    np.testing.assert_allclose(stored["conv1/bias"], bias, rtol=1e-6)


def test_the_feature_map_of_the_head_is_a_second_output():
    network = network_of(**NARROW)
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file.serialize(network, with_head=True))
    images = images_for(network, 2)
    logits, head = session.run(None, {"images": np.moveaxis(images, -1, 1).astype(np.float32)})
    found = network.features(images)["conv10"]
    np.testing.assert_allclose(np.moveaxis(head, 1, -1), found, rtol=1e-4, atol=1e-4 * np.abs(found).max())
    np.testing.assert_allclose(logits, expected_logits(network, images), rtol=1e-4, atol=1e-4)


def test_every_kind_of_node_that_is_written_may_be_read():
    text = pathlib.Path(onnx_graph.__file__).read_text() + pathlib.Path(onnx_file.__file__).read_text()
    named = set(
        re.findall(r'(?:add|node|_chain|_elementwise|_reduce|_pool|_write_elementwise)\([^()]*?"([A-Z]\w+)"', text)
    )
    assert len(named) > 25 and named <= onnx_graph.OPERATIONS


def test_the_description_says_everything():
    network = network_of(**NARROW)
    network.config.crop.size, network.config.crop.resize = 32, 36
    found = describe(network, channels_first=True)
    assert tuple(found) == KEYS and all(isinstance(value, str) for value in found.values())
    assert json.loads(found["class_names"]) == list(CLASSES) and json.loads(found["image_shape"]) == [32, 35, 3]
    assert "(batch, 3, 32, 35): RGB, pixels in 0..255" in found["input"]
    assert json.loads(found["crop"]) == {"resize": 36, "keep_aspect": True, "filter": "bilinear", "size": [32, 32]}
    assert "shorter side has 36 pixels" in found["preprocessing"]


def test_a_changed_byte_is_noticed(tmp_path):
    data = seal(b"head " + UNSEALED + b" body")
    check_seal("file", data)
    for i in range(len(data)):
        with pytest.raises(WeightError):
            check_seal("file", data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    with pytest.raises(ExportError, match="2 places"):
        seal(UNSEALED * 2)


@pytest.fixture(scope="module")
def small():
    return network_of(image_shape=(20, 20, 3), stem="3x3/1", **NARROW)


def resealed(data):
    return seal(re.sub(rb"sha256:[0-9a-f]{64}", UNSEALED, data))


@pytest.mark.parametrize("suffix", [".onnx", ".jaxexport"])
def test_files_with_a_recomputed_checksum_are_refused_or_run(suffix, small, tmp_path):
    data = FORMATS[suffix].serialize(small)
    head = data.find(b"sha256:")
    path = tmp_path / f"hostile{suffix}"
    rng = np.random.default_rng(0)
    # Text of the description; the weights may be anything.
    for _ in range(20):
        copy = bytearray(data)
        position = int(rng.integers(max(0, head - 3000), head))
        copy[position] ^= 1 << int(rng.integers(7))
        path.write_bytes(resealed(bytes(copy)))
        try:
            found = open_exported(path)
        except WeightError:
            continue
        assert found.logits(images_for(small, 1)).shape == (1, len(found.class_names))


def reworked(data, change):
    """An .onnx file with a changed graph and its checksum computed again."""
    model = onnx.load_model_from_string(data)
    change(model)
    return resealed(model.SerializeToString(deterministic=True))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def expanded(model):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "huge"))
    model.graph.node[-1].output[0] = "small"
    model.graph.node.append(onnx.helper.make_node("Expand", ["small", "huge"], ["logits"]))


def foreign(model):
    model.graph.node[0].op_type = "SequenceConstruct"


def narrower(model):
    next(entry for entry in model.metadata_props if entry.key == "class_names").value = '["ant"]'


def undescribed(model):
    del model.metadata_props[0]


@pytest.mark.parametrize("change", [external, expanded, foreign, narrower, undescribed])
def test_hostile_graphs_are_refused(change, small, tmp_path):
    path = tmp_path / "hostile.onnx"
    path.write_bytes(reworked(onnx_file.serialize(small), change))
    with pytest.raises(WeightError, match="not an intact .onnx file"):
        open_exported(path)


def test_a_program_that_cannot_be_run_is_one_error(small):
    """A file with a computed checksum may open and fail later."""

    def fails(images):
        raise RuntimeError("a node\nis wrong")

    with pytest.raises(WeightError, match="cannot be run .RuntimeError: a node is wrong"):
        Exported.create("a.onnx", describe(small), fails).logits(images_for(small, 1))
    other = Exported.create("a.onnx", describe(small), lambda images: np.zeros((len(images), 1), np.float32))
    with pytest.raises(WeightError, match=r"returns logits of shape \(2, 1\) for 2 image"):
        other.logits(images_for(small, 2))


def with_header(data, change):
    length = struct.unpack("<I", data[8:12])[0]
    header = json.loads(data[12 : 12 + length])
    change(header)
    text = json.dumps(header).encode()
    return resealed(data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :])


def test_hostile_programs_are_refused(small, tmp_path):
    path = tmp_path / "hostile.jaxexport"
    data = stablehlo.serialize(small)

    def dumping(header):
        header["compiler_options"]["cpu"]["xla_dump_to"] = str(tmp_path / "dump")

    def wider(header):
        header["description"]["image_shape"] = "[21, 20, 3]"

    for change, message in ((dumping, "compiler options"), (wider, "input and output")):
        path.write_bytes(with_header(data, change))
        with pytest.raises(WeightError, match=message):
            open_exported(path)

    length = struct.unpack("<I", data[8:12])[0]
    printing = jax.jit(
        lambda x: jnp.zeros((x.shape[0], 5)) + jax.pure_callback(lambda v: v, x[0, 0, 0, :1], x[0, 0, 0, :1])
    )
    (batch,) = jax.export.symbolic_shape("batch")
    checks = [jax.export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")]
    try:
        program = jax.export.export(printing, disabled_checks=checks, platforms=["cpu"])(
            jax.ShapeDtypeStruct((batch, *small.image_shape), np.float32)
        ).serialize()
    except Exception as error:  # newer JAX may refuse to export a callback
        pytest.skip(f"JAX exports no callbacks: {error}")
    path.write_bytes(resealed(data[: 12 + length] + program))
    with pytest.raises(WeightError, match="calls functions outside"):
        open_exported(path)


def test_a_missing_runtime_is_named(small, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_file.serialize(small))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"needs the package onnxruntime: pip install 'squeeze_jax\[export\]'"):
        open_exported(path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of random colors in one folder per class."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in CLASSES[:3]:
        (folder / name).mkdir()
        for i in range(4):
            coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((20, 20), Image.Resampling.BILINEAR).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    own_file.save(small, path)
    return path


def run(monkeypatch, capsys, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    status = commands.run(main)
    return status, *capsys.readouterr()


@pytest.mark.parametrize("suffix", [".onnx", ".jaxexport"])
def test_predict_prints_the_same_for_the_file_as_for_the_weights(
    suffix, weights, photographs, tmp_path, monkeypatch, capsys
):
    path = tmp_path / f"net{suffix}"
    status, output, error = run(
        monkeypatch, capsys, command.main, "--weights", weights, "--output", path, "--evaluation", photographs
    )
    assert status == 0, error
    assert "12 images" in output and "top-1" in output and f"{path.stat().st_size:,} bytes" in output
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    printed = [
        run(monkeypatch, capsys, predict.main, "--weights", source, "--batch_size", 5, photographs)
        for source in (weights, path)
    ]
    assert printed[0] == printed[1] and printed[0][0] == 0 and "ant" in printed[0][1]
    status, _, error = run(
        monkeypatch, capsys, predict.main, "--weights", path, "--cam", tmp_path / "maps", photographs
    )
    assert status == 1 and "--cam and --report need feature maps" in error


def test_no_file_is_replaced_where_the_logits_differ(small, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    kernel = np.asarray(small.variables["params"]["conv10"]["kernel"])
    wrong = jax.tree.map(lambda leaf: leaf * 1.001 if leaf.shape == kernel.shape else leaf, small.variables)
    other = onnx_file.serialize(dataclasses.replace(small, variables=wrong))
    monkeypatch.setattr(onnx_file, "serialize", lambda network, pixels: other)
    with pytest.raises(ExportError, match="was not written, because its logits differ"):
        command.export(small, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_int8_is_judged_by_images_that_calibration_did_not_see(weights, photographs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "net.onnx"
    arguments = ("--weights", weights, "--output", path, "--int8", "--calibration", photographs)
    status, output, error = run(monkeypatch, capsys, command.main, *arguments, "--allow_loss", 100)
    assert status == 0, error
    assert "calibrated on 9 images\n3 images" in output and "file: top-1" in output
    found = open_exported(path)
    counted = kinds(path.read_bytes())
    assert counted["QuantizeLinear"] > 20 and found.description["pixels"] == "float32"
    network = load(weights)
    images = np.stack([network.read_image(file) for file in sorted(photographs.rglob("*.png"))])
    difference = np.abs(found.logits(images) - expected_logits(network, images)).max()
    assert 0 < difference < 0.2 * np.abs(expected_logits(network, images)).max()


def test_int8_that_costs_too_much_is_not_written(small, photographs, tmp_path, monkeypatch):
    files = [tmp_path / file.name for file in sorted(photographs.glob("ant/*.png"))]
    for file in files:  # in a folder that is not a class
        shutil.copy(photographs / "ant" / file.name, file)

    def rolled(leaf):  # the channels of the head are the classes
        return np.roll(leaf, 1, -1) if leaf.shape[-1] == len(CLASSES) else leaf

    wrong = dataclasses.replace(small, variables=jax.tree.map(rolled, small.variables))
    broken = onnx_file.serialize_int8(wrong, images_for(small, 2))
    monkeypatch.setattr(onnx_file, "serialize_int8", lambda network, images, pixels: broken)
    path = tmp_path / "net.onnx"
    with pytest.raises(ExportError, match=r"int8 changes (\d+) of \1 answers, 100.0 %; at most 10 are allowed"):
        command.export(small, path, calibration=files, evaluation=files)
    assert not path.exists()
    comparison = compare(small, exported(small, tmp_path, ".onnx"), [(images_for(small, 3), np.full(3, -1))])
    assert not comparison.file.has_labels and comparison.agreement == 1
    comparison.check_int8(None)
    changed = dataclasses.replace(comparison, file=dataclasses.replace(comparison.file, agree=2))
    with pytest.raises(
        ExportError, match="changes 1 of 3 answers, 33.3 %; at most 10 are allowed. 3 images are too few"
    ):
        changed.check_int8(None)
    changed.check_int8(40)


def test_int8_that_costs_one_of_twelve_images_says_so():
    ours, theirs = (Answers(images=12, labeled=12, classes=3, top1=top1, top5=12) for top1 in (11, 10))
    comparison = Comparison(0.1, 1.0, ours, theirs)
    message = "int8 gets 1 fewer of 12 images right, 8.3 points .* at most 1 are allowed. 12 images are too few"
    with pytest.raises(ExportError, match=message):
        comparison.check_int8(None)
    comparison.check_int8(10)
    assert "network: top-1 0.9167 (11 of 12 images)" in str(comparison) and "top-5" not in str(comparison)
    many = (dataclasses.replace(its, images=1200, labeled=1200, top1=100 * its.top1) for its in (ours, theirs))
    with pytest.raises(ExportError, match="100 fewer of 1200 images right, .* Use more calibration images, or"):
        Comparison(0.1, 1.0, *many).check_int8(None)


def test_the_latency_of_a_file_and_of_weights(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "limit_threads", lambda threads: None)  # which would limit the tests that follow
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)  # of no file, so not imported
    file, weights = tmp_path / "net.onnx", tmp_path / "net.sqz"
    file.write_bytes(onnx_file.serialize(small))
    sqz.save(small, weights)
    status, output, _ = run(monkeypatch, capsys, latency.main, str(file), str(weights), "--seconds=0", "--threads=1")
    head, _, *rows = output.splitlines()
    assert status == 0 and head.endswith(", 1 thread, batch 1: milliseconds of a call") and len(rows) == 2
    assert all(re.fullmatch(r" +[\d.]+  [\d.]+ to [\d.]+ +10  .*", row) for row in rows)
    assert "net.onnx (ONNX Runtime 1." in rows[0] and "net.sqz (JAX 0." in rows[1]
    for argument, message in (("--threads=0", "expected 1 to"), ("--batch=0", "expected at least 1")):
        status, _, error = run(monkeypatch, capsys, latency.main, str(file), argument)
        assert status == 1 and message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "net.pb"], "must end in .onnx, .tflite, .jaxexport"),
        (["--output", "nowhere/net.onnx"], "does not exist"),
        (["--output", "net.onnx", "--int8"], "go together"),
        (["--output", "net.jaxexport", "--int8", "--calibration", "."], "have no int8"),
    ],
)
def test_wrong_commands_are_one_line(arguments, message, monkeypatch, capsys):
    status, _, error = run(monkeypatch, capsys, command.main, "--weights", "net.sqz", *arguments)
    assert status == 1 and message in error and error.count("\n") == 1


def test_calibration_images_are_never_judged(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(300)]
    calibration, rest = command.choose_calibration(files, [])
    assert len(calibration) == 200 and sorted(calibration + rest) == sorted(files)
    assert command.choose_calibration(files, [])[0] == calibration
    assert command.choose_calibration(files[:10], files[5:20])[1] == files[10:20]
    with pytest.raises(InputError, match="leaves none"):
        command.choose_calibration(files[:1], [])


def test_files_of_others_stay_weight_files(small, tmp_path):
    path = tmp_path / "zoo.onnx"
    path.write_bytes(onnx_file.serialize(small))
    assert is_exported(path)
    with pytest.raises(WeightError, match="it was exported by squeeze_jax"):
        load(path)
    model = onnx.load_model(path)
    model.producer_name = "pytorch"
    onnx.save_model(model, path)
    assert not is_exported(path)
    with pytest.raises(WeightError, match="is not a file"):
        open_exported(tmp_path / "nothing.onnx")
    with pytest.raises(WeightError, match="ends in .sqz"):
        (tmp_path / "net.sqz").touch()
        open_exported(tmp_path / "net.sqz")


@pytest.mark.skipif(not NET.exists(), reason=f"{NET} is not there; set SQUEEZE_JAX_SHARED")
def test_the_papers_network_answers_alike_on_photographs(tmp_path):
    network = load(NET)
    paths = sorted((SHARED / "imagenet_sample").glob("*.JPEG"))[:6]
    images = np.stack([network.read_image(path) for path in paths])
    expected = expected_logits(network, images)
    for suffix in (".onnx", ".jaxexport"):
        logits = exported(network, tmp_path, suffix).logits(images)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
        assert (np.argsort(-logits)[:, :5] == np.argsort(-expected)[:, :5]).all()
