"""Round trips through Caffe, torchvision and ONNX files that independent writers make; altered and hostile files."""

import io
import pickle
import tracemalloc
import zipfile

import flax.traverse_util
import jax
import numpy as np
import pytest
from fuzz import mutants
from test_pretrained import MUTATIONS

from squeeze_jax import load, models, pretrained
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import caffe_layers, onnx_zoo, torchvision
from squeeze_jax.pretrained.pth import read_tensors

FIRE_PLACES = {
    "squeezenet_v1_0": [3, 4, 5, 7, 8, 9, 10, 12],
    "squeezenet_v1_1": [3, 4, 6, 7, 9, 10, 11, 12],
}


@pytest.fixture(scope="module", params=["squeezenet_v1_0", "squeezenet_v1_1"])
def network(request):
    """A model's name and random variables, flat."""
    return request.param, random_leaves(request.param)


def random_leaves(name):
    shapes = jax.eval_shape(models.create(name).init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    rng = np.random.default_rng(0)
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    return {name: (rng.normal(size=leaf.shape) * 0.05).astype(np.float32) for name, leaf in flat.items()}


def layers(leaves):
    """(name, kernel (out, in, height, width), bias) in the order of the network."""
    order = ["conv1"]
    order += [f"fire{i}/{part}" for i in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")]
    for name in [*order, "conv10"]:
        yield name, leaves[f"params/{name}/kernel"].transpose(3, 2, 0, 1), leaves[f"params/{name}/bias"]


def assert_same(run, leaves):
    found = flax.traverse_util.flatten_dict(run.variables, sep="/")
    assert found.keys() == leaves.keys()
    for name in leaves:
        np.testing.assert_array_equal(found[name], leaves[name], err_msg=name)


def caffe_messages():
    """Message classes of the part of caffe.proto that holds weights, made by the protobuf package."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="weights.proto", package="weights", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for field, number, kind, repeated, packed in fields:
            added = made.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".weights.{kind}"
            else:
                added.type = kind
            if packed:
                added.options.packed = True

    integer, number, text, flag = kinds.TYPE_INT32, kinds.TYPE_FLOAT, kinds.TYPE_STRING, kinds.TYPE_BOOL
    message("BlobShape", ("dim", 1, kinds.TYPE_INT64, True, True))
    message(
        "BlobProto",
        *((name, i, integer, False, False) for i, name in enumerate(("num", "channels", "height", "width"), start=1)),
        ("data", 5, number, True, True),
        ("shape", 7, "BlobShape", False, False),
        ("double_data", 8, kinds.TYPE_DOUBLE, True, True),
    )
    once, many = {"num_output": 1, "group": 5, "pad_h": 9, "pad_w": 10}, {"pad": 3, "kernel_size": 4, "stride": 6}
    message(
        "Convolution",
        *((name, i, integer, False, False) for name, i in once.items()),
        *((name, i, integer, True, False) for name, i in {**many, "dilation": 18}.items()),
    )
    once = {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4, "round_mode": 13}
    settings = [(name, i, integer, False, False) for name, i in once.items()]
    message("Pooling", *settings, ("global_pooling", 12, flag, False, False))
    message("Relu", ("negative_slope", 1, number, False, False))
    message("Eltwise", ("operation", 1, integer, False, False), ("coeff", 2, number, True, False))
    message("Concat", ("axis", 2, integer, False, False))
    message("Transform", ("scale", 1, number, False, False), ("mean_value", 5, number, True, False))
    kinds_of_settings = ("Convolution", "Pooling", "Relu", "Eltwise", "Concat", "Transform")

    def layer(name, kind, numbers, settings):
        fields = zip(("name", "type", "bottom", "top", "blobs"), numbers, strict=True)
        types = (text, kind, text, text, "BlobProto")
        message(
            name,
            *((field, i, of, i in numbers[2:], False) for (field, i), of in zip(fields, types, strict=True)),
            *((f"{of.lower()}_param", i, of, False, False) for of, i in zip(kinds_of_settings, settings, strict=True)),
        )

    layer("V1", integer, (4, 5, 2, 3, 6), (10, 19, 30, 24, 9, 36))
    layer("Layer", text, (1, 2, 3, 4, 7), (106, 121, 123, 110, 104, 100))
    message(
        "Net", ("name", 1, text, False, False), ("layers", 2, "V1", True, False), ("layer", 100, "Layer", True, False)
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("weights.Net"))


def caffemodel(leaves, *, new_layers=True, songhan=False, doubles=False):
    """The bytes of a .caffemodel; blue comes first in its conv1."""
    net = caffe_messages()(name="net")
    renamed = {"squeeze1x1": "conv1x1_1", "expand1x1": "conv1x1_2", "expand3x3": "conv3x3_2"} if songhan else {}
    (net.layer if new_layers else net.layers).add(name="data")
    for name, kernel, bias in layers(leaves):
        head, _, last = name.rpartition("/")
        name = f"{head}/{renamed.get(last, last)}" if head else ("conv_final" if songhan and name == "conv10" else name)
        layer = (net.layer if new_layers else net.layers).add(name=name)
        kernel = kernel[:, ::-1] if name == "conv1" else kernel
        for values in (kernel, bias):
            blob = layer.blobs.add()
            (blob.double_data if doubles else blob.data).extend(values.ravel().tolist())
            if new_layers:
                blob.shape.dim.extend(values.shape)
            else:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
    return net.SerializeToString()


@pytest.mark.parametrize("options", [{}, {"new_layers": False}, {"songhan": True}, {"doubles": True}], ids=str)
def test_caffemodels_come_back(network, tmp_path, options):
    name, leaves = network
    if options and name == "squeezenet_v1_1":
        pytest.skip("the variants are the same for both versions")
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(leaves, **options))
    run = load(path)
    assert_same(run, leaves)
    assert run.config.model.name == name and run.model.head_padding == (name == "squeezenet_v1_0")
    assert run.config.dataset.mean == (123.0, 117.0, 104.0) and run.config.crop.size == 227


def state_dict(leaves, name):
    """The tensors by torchvision's names."""
    places = dict(zip([f"fire{i}" for i in range(2, 10)], FIRE_PLACES[name], strict=True))
    state = {}
    for layer, kernel, bias in layers(leaves):
        fire, _, branch = layer.partition("/")
        theirs = {"conv1": "features.0", "conv10": "classifier.1"}.get(layer)
        theirs = theirs or f"features.{places[fire]}.{branch.replace('squeeze1x1', 'squeeze')}"
        state[f"{theirs}.weight"], state[f"{theirs}.bias"] = np.ascontiguousarray(kernel), bias
    return state


class Global:
    """Pickles as a name of a module that need not be there."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class PthPickler(pickle._Pickler):
    """Writes the pickle of a state dict opcode by opcode, as torch.save does, without torch."""

    def save_global_name(self, module, name):
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def pickled(state, extra=b""):
    """The pickle of a state dict of float32 tensors; `extra` opcodes run first."""
    out = io.BytesIO()
    pickler = PthPickler(out, protocol=2)
    write, save = pickler.write, pickler.save
    write(pickle.PROTO + b"\x02")
    write(extra)
    pickler.save_global_name("collections", "OrderedDict")
    write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.MARK)
    for i, (name, value) in enumerate(state.items()):
        save(name)
        pickler.save_global_name("torch._utils", "_rebuild_tensor_v2")
        write(pickle.MARK + pickle.MARK)
        save("storage")
        pickler.save_global_name("torch", "FloatStorage")
        for part in (str(i), "cpu", int(value.size)):
            save(part)
        write(pickle.TUPLE + pickle.BINPERSID)
        save(0)
        save(value.shape)
        save(tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim)))
        save(False)
        pickler.save_global_name("collections", "OrderedDict")
        write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
    write(pickle.SETITEMS + pickle.STOP)
    return out.getvalue()


def pth(state, extra=b""):
    """The bytes of a .pth file with these float32 tensors; `extra` opcodes run first."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("net/data.pkl", pickled(state, extra))
        for i, value in enumerate(state.values()):
            zipped.writestr(f"net/data/{i}", value.tobytes())
    return archive.getvalue()


def old_pth(state, extra=b"", *, little_endian=True):
    """The same before PyTorch 1.6: pickles of a magic number, the version, the machine, the state and its storages."""
    machine = {
        "protocol_version": 1001,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    before = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    storages = pickle.dumps([str(i) for i in range(len(state))], 2)
    values = [int(value.size).to_bytes(8, "little") + value.tobytes() for value in state.values()]
    return b"".join([*before, pickled(state, extra), storages, *values])


def test_state_dicts_come_back(network, tmp_path):
    import safetensors.numpy

    name, leaves = network
    state = state_dict(leaves, name)
    (tmp_path / "net.pth").write_bytes(pth(state))
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "old.pth").write_bytes(old_pth(state))
    for file in ("net.pth", "old.pth", "net.safetensors"):
        run = load(tmp_path / file)
        assert_same(run, leaves)
        assert run.config.model.name == name and not run.model.head_padding
        assert run.config.crop.size == 224 and run.config.dataset.std == (58.395, 57.12, 57.375)
    assert len(list(read_tensors(tmp_path / "net.pth"))) == 52


def test_logits_are_pytorchs(network, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    name, leaves = network
    state = {key: torch.from_numpy(value) for key, value in state_dict(leaves, name).items()}
    torch.save(state, tmp_path / "net.pth")
    run = load(tmp_path / "net.pth")
    assert_same(run, leaves)
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)

    def conv(x, layer, **options):
        return torch.relu(torch.nn.functional.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], **options))

    def pool(x):
        return torch.nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)

    x = pool(conv(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), "features.0", stride=2))
    for place in range(FIRE_PLACES[name][0], FIRE_PLACES[name][-1] + 1):
        if place not in FIRE_PLACES[name]:
            x = pool(x)
            continue
        squeezed = conv(x, f"features.{place}.squeeze")
        wide = conv(squeezed, f"features.{place}.expand3x3", padding=1)
        x = torch.cat([conv(squeezed, f"features.{place}.expand1x1"), wide], 1)
    expected = conv(x, "classifier.1").mean((2, 3)).numpy()
    ours = jax.jit(run.model.apply)(run.variables, images)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


def onnx_file(leaves, *, head_padding, ceil=True):
    """The bytes of an ONNX file of the network; its expand branches stand in the other order, its names say nothing."""
    onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
    from onnx import helper, numpy_helper

    nodes, weights, x = [], [], "image"
    kernel_of = {name: (kernel, bias) for name, kernel, bias in layers(leaves)}

    def add(kind, inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def conv(x, name, pads=(0, 0, 0, 0), stride=1):
        names = [f"w{len(weights)}", f"w{len(weights) + 1}"]
        for weight, value in zip(names, kernel_of[name], strict=True):
            weights.append(numpy_helper.from_array(np.ascontiguousarray(value), weight))
        size = kernel_of[name][0].shape[-1]
        return add("Relu", [add("Conv", [x, *names], kernel_shape=[size] * 2, pads=pads, strides=[stride] * 2)])

    x = conv(x, "conv1", stride=2)
    after_pool = (2, 5, 9) if kernel_of["conv1"][0].shape[-1] == 7 else (2, 4, 6)
    for fire in range(2, 10):
        if fire in after_pool:
            x = add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=int(ceil))
        squeezed = conv(x, f"fire{fire}/squeeze1x1")
        wide = conv(squeezed, f"fire{fire}/expand3x3", pads=(1, 1, 1, 1))
        x = add("Concat", [conv(squeezed, f"fire{fire}/expand1x1"), wide], axis=1)
    x = conv(x, "conv10", pads=(int(head_padding),) * 4)
    add("GlobalAveragePool", [x])
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 224, 224])
    logits = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, [1, 1000, 1, 1])
    made = helper.make_graph(nodes, "net", [image], [logits], weights)
    return helper.make_model(made, producer_name="pytorch").SerializeToString()


@pytest.mark.parametrize(("head_padding", "ceil"), [(True, False), (False, True)])
def test_onnx_files_come_back(network, tmp_path, head_padding, ceil):
    name, leaves = network
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_file(leaves, head_padding=head_padding, ceil=ceil))
    run = load(path)
    assert_same(run, leaves)
    assert run.model.head_padding == head_padding and run.model.pooling == ("ceil" if ceil else "floor")
    assert run.config.model.name == name


def test_every_import_can_be_saved_to_our_own_file(tmp_path):
    leaves = random_leaves("squeezenet_v1_1")
    (tmp_path / "net.caffemodel").write_bytes(caffemodel(leaves))
    pretrained.save(load(tmp_path / "net.caffemodel"), tmp_path / "net.safetensors")
    run = load(tmp_path / "net.safetensors")
    assert_same(run, leaves)
    assert run.config.crop.size == 227


def writers():
    leaves = random_leaves("squeezenet_v1_1")
    state = state_dict(leaves, "squeezenet_v1_1")
    import safetensors.numpy

    return {
        "caffemodel": (lambda: caffemodel(leaves), caffe_layers.parse),
        "pth": (lambda: pth(state), read_tensors),
        "old.pth": (lambda: old_pth(state), read_tensors),
        "safetensors": (lambda: safetensors.numpy.save(state), torchvision.from_safetensors),
        "onnx": (lambda: onnx_file(leaves, head_padding=False), onnx_zoo.decode),
    }


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "old.pth", "safetensors", "onnx"])
def test_altered_files_are_refused_or_give_arrays(tmp_path, suffix):
    """Never a crash, another error, or more than 200 MiB."""
    write, read = writers()[suffix]
    path = tmp_path / f"mutant.{suffix}"
    refused, largest = 0, 0
    tracemalloc.start()
    for data in mutants(write(), MUTATIONS):
        path.write_bytes(data)
        tracemalloc.reset_peak()
        try:
            read(path)
        except WeightError as error:
            refused += 1
            assert str(path) in str(error)
        largest = max(largest, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert refused > MUTATIONS / 10 and largest < 200 * 2**20


def test_a_number_in_place_of_a_layer_is_named(tmp_path):
    """One of a thousand altered files had it."""
    (tmp_path / "net.caffemodel").write_bytes(b"\xa0\x06\x01")  # field 100, a whole number
    with pytest.raises(WeightError, match="a number where a message is expected"):
        load(tmp_path / "net.caffemodel")


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"(X\x01\x00\x00\x001t0", "uses POP"),
        (b"cos\nsystem\n(X\x0b\x00\x00\x00touch owned" + b"tR", "uses os.system, which no state dict needs"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001" + b"tR", "uses builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93", "uses os.system"),
        (b"}r\xff\xff\xff\x7f", "not a state dict of a network here"),  # a memo of that index takes no memory
        (b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", "its pickle is damaged"),
    ],
)
def test_a_pickle_that_asks_for_more_is_not_followed(tmp_path, monkeypatch, opcodes, message):
    monkeypatch.chdir(tmp_path)
    for write in (pth, old_pth):
        (tmp_path / "evil.pth").write_bytes(write({"features.0.weight": np.zeros((2, 2), np.float32)}, opcodes))
        with pytest.raises(WeightError, match=message):
            load(tmp_path / "evil.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


def test_an_old_file_of_another_byte_order_is_named(tmp_path):
    (tmp_path / "net.pth").write_bytes(old_pth({"a": np.zeros(2, np.float32)}, little_endian=False))
    with pytest.raises(WeightError, match="written on a big-endian machine"):
        load(tmp_path / "net.pth")


def test_what_is_missing_or_left_over_is_listed(tmp_path):
    leaves = random_leaves("squeezenet_v1_1")
    state = state_dict(leaves, "squeezenet_v1_1")
    state["features.13.weight"] = state.pop("classifier.1.weight")
    (tmp_path / "net.pth").write_bytes(pth(state))
    with pytest.raises(WeightError) as error:
        load(tmp_path / "net.pth")
    assert "  - params/conv10/kernel (1, 1, 512, 1000)" in str(error.value)
    assert "  + params/features.13/kernel (1, 1, 512, 1000)" in str(error.value)
    (tmp_path / "other.pth").write_bytes(pth({"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)}))
    with pytest.raises(WeightError, match="not a state dict of a network here"):
        load(tmp_path / "other.pth")
