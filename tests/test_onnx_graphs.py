"""ONNX graphs with one thing changed: refused by name, or loaded and equal to ONNX Runtime; who wrote them."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest
from test_importers import random_leaves

from squeeze_jax import load, models
from squeeze_jax.errors import WeightError
from squeeze_jax.experiment import network_options
from squeeze_jax.pretrained import onnx_zoo

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NAME, CLASSES, SIDE = "squeezenet_v1_1", 10, 64
PADS = {"expand3x3": [1, 1, 1, 1]}


@functools.cache
def weights():
    """Random weights of a network of 10 classes, flat, of a size at which maps neither vanish nor explode."""
    leaves = random_leaves(NAME)
    for name in ("params/conv10/kernel", "params/conv10/bias"):
        leaves[name] = leaves[name][..., :CLASSES]
    for fire in (2, 4, 6, 8):  # for the complex bypass, which these files do not have
        inputs = leaves[f"params/fire{fire}/squeeze1x1/kernel"].shape[2]
        outputs = 2 * leaves[f"params/fire{fire}/expand1x1/bias"].size
        leaves[f"params/fire{fire}/bypass1x1/kernel"] = random((1, 1, inputs, outputs), fire)
        leaves[f"params/fire{fire}/bypass1x1/bias"] = random((outputs,), fire)
    scaled = lambda leaf: leaf / leaf.std() * (1.5 / np.prod(leaf.shape[:-1])) ** 0.5  # noqa: E731
    return {name: np.float32(scaled(leaf) if leaf.ndim > 1 else leaf) for name, leaf in leaves.items()}


def random(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def tensors():
    names = [(name.removeprefix("params/").rpartition("/")[0], name) for name in weights() if name.endswith("kernel")]
    made = {}
    for layer, name in names:
        made[f"{layer}_w"] = np.ascontiguousarray(weights()[name].transpose(3, 2, 0, 1))
        made[f"{layer}_b"] = weights()[f"params/{layer}/bias"]
    return made


class Net:
    """An ONNX graph of SqueezeNet 1.1 whose nodes have our names, to be changed."""

    def __init__(self):
        self.nodes, self.stored = {}, dict(tensors())
        x = self.conv("conv1", "image", kernel=3, strides=[2, 2])
        x = self.add("MaxPool", "pool1", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        for fire in range(2, 10):
            squeezed = self.conv(f"fire{fire}/squeeze1x1", x)
            branches = [self.conv(f"fire{fire}/expand{i}x{i}", squeezed, kernel=i) for i in (1, 3)]
            x = self.add("Concat", f"fire{fire}/concat", branches, axis=1)
            if fire in (3, 5):
                x = self.add("MaxPool", f"pool{fire}", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        self.add("GlobalAveragePool", "mean", [self.conv("conv10", x)])
        self.output, self.producer, self.opset, self.size = "mean", "pytorch", 17, None

    def add(self, kind, name, inputs, **attributes):
        self.nodes[name] = onnx.helper.make_node(kind, inputs, [name], name=name, **attributes)
        return name

    def conv(self, name, x, *, kernel=1, strides=(1, 1)):
        pads = PADS.get(name.rpartition("/")[2], [0] * 4)
        shape = [kernel, kernel]
        self.add("Conv", name, [x, f"{name}_w", f"{name}_b"], kernel_shape=shape, pads=pads, strides=list(strides))
        return self.add("Relu", f"{name}/relu", [name])

    def set(self, name, kind=None, **attributes):
        """Changes the type and the attributes of a node; None takes an attribute away."""
        node = self.nodes[name]
        old = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute if kind is None}
        new = {key: value for key, value in {**old, **attributes}.items() if value is not None}
        self.nodes[name] = onnx.helper.make_node(kind or node.op_type, node.input, node.output, name=name, **new)

    def take(self, old, new, *, but=()):
        """Nodes that take a tensor take another one."""
        for name, node in self.nodes.items():
            if name not in but:
                node.input[:] = [new if tensor == old else tensor for tensor in node.input]
        self.output = new if self.output == old else self.output

    def insert(self, kind, after, *more, **attributes):
        name = f"new {kind}"
        self.take(after, name)
        made = onnx.helper.make_node(kind, [after, *more], [name], name=name, **attributes)
        place = list(self.nodes).index(after) + 1 if after in self.nodes else 0
        entries = list(self.nodes.items())
        self.nodes = dict([*entries[:place], (name, made), *entries[place:]])
        return name

    def remove(self, name):
        self.take(name, self.nodes.pop(name).input[0])

    def swap(self, name):
        self.nodes[name].input[:] = list(self.nodes[name].input)[::-1]

    def store(self, name, values):
        self.stored[name] = np.asarray(values)
        return name

    def bypass(self, *fires, kind="Add"):
        for fire in fires:
            before = self.nodes[f"fire{fire}/squeeze1x1"].input[0]
            after = self.insert(kind, f"fire{fire}/concat", before)
            self.nodes = {(f"sum{fire}" if name == after else name): node for name, node in self.nodes.items()}
            self.take(after, f"sum{fire}")
            self.nodes[f"sum{fire}"].output[:] = [f"sum{fire}"]
            self.nodes[f"sum{fire}"].name = f"sum{fire}"

    def complex(self):
        self.bypass(3, 5, 7, 9)
        for fire in (2, 4, 6, 8):
            before = self.nodes[f"fire{fire}/squeeze1x1"].input[0]
            x = self.conv(f"fire{fire}/bypass1x1", before)
            self.take(f"fire{fire}/concat", f"sum{fire}")
            self.add("Add", f"sum{fire}", [f"fire{fire}/concat", x])
        done, order, waiting = {"image", *self.stored}, {}, dict(self.nodes)
        while waiting:  # nodes stand after those that they need
            name = next(name for name, node in waiting.items() if set(node.input) <= done)
            order[name] = waiting.pop(name)
            done |= set(order[name].output)
        self.nodes = order

    def model(self):
        used = {tensor for node in self.nodes.values() for tensor in node.input}
        made = [onnx.numpy_helper.from_array(value, name) for name, value in self.stored.items() if name in used]
        sides = [self.size] * 2 if self.size else ["height", "width"]
        image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, *sides])
        output = onnx.helper.make_tensor_value_info(self.output, onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph(list(self.nodes.values()), "net", [image], [output], made)
        opset = onnx.helper.make_opsetid("", self.opset)
        return onnx.helper.make_model(graph, producer_name=self.producer, opset_imports=[opset], ir_version=8)

    def logits(self, images):
        session = onnxruntime.InferenceSession(self.model().SerializeToString())
        return session.run(None, {"image": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0].reshape(CLASSES)


def each(*names, **attributes):
    return lambda net: [net.set(name, **attributes) for name in names]


def both(*changes):
    return lambda net: [change(net) for change in changes]


def before_everything(kind, value):
    return lambda net: net.insert(kind, "image", net.store("constant", np.float32(value)))


def norm(net):
    names = [net.store(f"norm{i}", np.full(64, value, np.float32)) for i, value in enumerate((2, 1, 0, 1))]
    net.insert("BatchNormalization", "conv1", *names)


def constants(net):
    values = {name: net.stored.pop(name) for name in ("conv1_w", "fire2/expand3x3_b")}
    made = {
        name: onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in values.items()
    }
    same = onnx.helper.make_node("Identity", ["fire3/expand3x3_w"], ["same"])
    net.nodes = {**made, "same": same, **net.nodes}
    net.nodes["fire3/expand3x3"].input[1] = "same"


def groups(net):
    net.store("fire2/squeeze1x1_w", net.stored["fire2/squeeze1x1_w"][:, :32])
    net.set("fire2/squeeze1x1", group=2)


def flattened(kind, *more, **attributes):
    def change(net):
        constants = [net.store(f"axes{i}", np.array(value, np.int64)) for i, value in enumerate(more)]
        net.insert(kind, "mean", *constants, **attributes)

    return change


def without_bias(net):
    del net.nodes["fire4/squeeze1x1"].input[2]
    net.stored.pop("fire4/squeeze1x1_b")


def old_softmax(net):
    net.insert("Softmax", "mean")
    net.opset = 12


def later_relu(net):
    for branch in (1, 3):
        net.remove(f"fire2/expand{branch}x{branch}/relu")
    net.insert("Relu", "fire2/concat")


def moved_pool(net):
    net.remove("pool3")
    net.insert("MaxPool", "fire4/concat", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


def other_input(net):
    net.nodes["fire3/expand1x1"].input[0] = "fire3/expand3x3/relu"
    net.store("fire3/expand1x1_w", random((64, 64, 1, 1), 0) / 8)
    entries = list(net.nodes.items())
    place = list(net.nodes).index("fire3/expand1x1")
    third = place + 2  # after the branch that it takes
    net.nodes = dict([*entries[:place], *entries[third : third + 2], *entries[place:third], *entries[third + 2 :]])


def fixed(kernel):
    def change(net):
        net.set("mean", "AveragePool", kernel_shape=[kernel] * 2, strides=[1, 1])
        net.size = 224

    return change


POOLS = ("pool1", "pool3", "pool5")
# A change, and what becomes of the file: attributes of the network that is loaded, or what the error names.
ONNX = {
    "nothing": (lambda net: None, {}),
    "additions": (lambda net: net.bypass(3, 5, 7, 9), {"bypass": "simple"}),
    "sums": (lambda net: net.bypass(3, 5, 7, 9, kind="Sum"), {"bypass": "simple"}),
    "additions with convolutions": (lambda net: net.complex(), {"bypass": "complex"}),
    "one addition": (lambda net: net.bypass(3), "MaxPool 'pool5' differs: expected addition"),
    "another addition": (lambda net: net.bypass(3, 5, 7, 8, 9), "'sum8'"),
    "products": (lambda net: net.bypass(3, 5, 7, 9, kind="Mul"), "Mul 'sum3'"),
    "batch norm": (norm, "BatchNormalization 'new BatchNormalization'"),
    "stride of conv1": (each("conv1", strides=[1, 1]), r"Conv 'conv1'.*stride \(1, 1\) instead of \(2, 2\)"),
    "stride left out": (each("conv1", strides=None), r"Conv 'conv1'.*stride"),
    "stride of one side": (each("fire5/expand3x3", strides=[1, 2]), "Conv 'fire5/expand3x3'.*stride"),
    "padding of conv1": (each("conv1", pads=[1, 1, 1, 1]), "Conv 'conv1'.*padding"),
    "padding left out": (each("fire2/expand3x3", pads=[0] * 4), "Conv 'fire2/expand3x3'.*padding"),
    "padding at one side": (each("fire2/expand3x3", pads=[0, 0, 2, 2]), "Conv 'fire2/expand3x3'.*padding"),
    "automatic padding": (each("fire2/expand3x3", pads=None, auto_pad="SAME_UPPER"), {}),
    "no padding by name": (each("conv1", pads=None, auto_pad="VALID"), {}),
    "automatic padding of a stride": (each("conv1", pads=None, auto_pad="SAME_UPPER"), "Conv 'conv1'.*SAME_UPPER"),
    "dilation": (each("fire9/expand3x3", dilations=[2, 2], pads=[2] * 4), "Conv 'fire9/expand3x3'.*dilation"),
    "groups": (groups, "Conv 'fire2/squeeze1x1'.*groups 2"),
    "LeakyRelu": (each("conv1/relu", kind="LeakyRelu", alpha=0.1), "LeakyRelu 'conv1/relu'.*expected ReLU"),
    "Elu": (each("fire5/squeeze1x1/relu", kind="Elu"), "Elu 'fire5/squeeze1x1/relu'"),
    "Sigmoid": (each("fire9/expand1x1/relu", kind="Sigmoid"), "Sigmoid 'fire9/expand1x1/relu'"),
    "Tanh of conv10": (each("conv10/relu", kind="Tanh"), "Tanh 'conv10/relu'"),
    "a ReLU less": (lambda net: net.remove("fire7/squeeze1x1/relu"), "'fire7/expand1x1' differs: expected ReLU"),
    "a ReLU more": (lambda net: net.insert("Relu", "fire7/concat"), "Relu 'new Relu'"),
    "a later ReLU": (later_relu, "'fire2/concat' differs: expected ReLU"),
    "no ReLU of conv10": (lambda net: net.remove("conv10/relu"), {"head_relu": False}),
    "concatenation the other way round": (lambda net: net.swap("fire2/concat"), "Concat 'fire2/concat'.*takes"),
    "concatenation of another axis": (each("fire9/concat", axis=2), "Concat 'fire9/concat'.*axis 2"),
    "concatenation, counted from the end": (each("fire9/concat", axis=-3), {}),
    "averages": (each("pool1", kind="AveragePool", kernel_shape=[3, 3], strides=[2, 2]), "AveragePool 'pool1'.*mean"),
    "window": (each("pool3", kernel_shape=[2, 2]), r"MaxPool 'pool3'.*kernel \(2, 2\)"),
    "stride of a pool": (each("pool3", strides=None), r"MaxPool 'pool3'.*stride \(1, 1\)"),
    "padded pool": (each("pool5", pads=[1, 1, 1, 1]), "MaxPool 'pool5'.*padding"),
    "dilated pool": (each("pool5", dilations=[2, 2]), "MaxPool 'pool5'.*dilation"),
    "floor": (each(*POOLS, ceil_mode=0), {"pooling": "floor"}),
    "floor once": (each("pool3", ceil_mode=0), "MaxPool 'pool3'.*rounding floor"),
    "ceil by padding": (each(*POOLS, ceil_mode=0, pads=[0, 0, 1, 1]), {"pooling": "ceil"}),
    "a pool less": (lambda net: net.remove("pool3"), "'fire4/squeeze1x1' differs: expected pooling"),
    "a pool elsewhere": (moved_pool, "'fire4/squeeze1x1' differs: expected pooling"),
    "Sub in front": (before_everything("Sub", 0.1), "Sub 'new Sub'"),
    "Mul in front": (before_everything("Mul", 1 / 255), "Mul 'new Mul'"),
    "another input": (other_input, "'fire3/expand3x3'|expected convolution .fire3/expand1x1"),
    "padded conv10": (each("conv10", pads=[1] * 4), {"head_padding": True}),
    "maximum at the end": (each("mean", kind="GlobalMaxPool"), "GlobalMaxPool 'mean'"),
    "average of the whole map": (fixed(13), {}),
    "average of a part": (fixed(12), r"AveragePool 'mean'.*whole \(12, 12\)"),
    "ReduceMean": (each("mean", kind="ReduceMean", axes=[2, 3]), {}),
    "ReduceSum": (each("mean", kind="ReduceMax", axes=[2, 3]), "ReduceMax 'mean'"),
    "Flatten": (flattened("Flatten"), {}),
    "Reshape": (flattened("Reshape", [0, -1]), {}),
    "Reshape to two images": (flattened("Reshape", [-1, 5]), "Reshape 'new Reshape'"),
    "Softmax": (both(flattened("Flatten"), lambda net: net.insert("Softmax", "new Flatten")), {"softmax": True}),
    "Softmax before opset 13": (old_softmax, {"softmax": True}),
    "padding and no padding by name": (
        each(*POOLS, ceil_mode=0, pads=[0, 0, 1, 1], auto_pad="VALID"),
        "has pads and auto_pad=VALID, which exclude each other",
    ),
    "Softmax of nothing": (lambda net: net.insert("Softmax", "mean"), "Softmax 'new Softmax'"),
    "Dropout": (lambda net: net.insert("Dropout", "fire9/concat"), {}),
    "Dropout that trains": (
        lambda net: net.insert("Dropout", "fire9/concat", "", net.store("trains", np.array(True))),
        "Dropout 'new Dropout'",
    ),
    "Identity": (lambda net: net.insert("Identity", "fire4/concat"), {}),
    "Constant and Identity": (constants, {}),
    "no bias": (without_bias, {}),
}


@functools.cache
def images():
    return random((1, SIDE, SIDE, 3), 1)


def of_network(config, leaves, x):
    """The logits of the network that an importer's config and arrays describe."""
    model = models.create(config.model.name, **{**network_options(config), "num_classes": CLASSES})
    return model.apply(flax.traverse_util.unflatten_dict(leaves, sep="/"), x)[0]


@pytest.mark.parametrize("change", ONNX)
def test_a_changed_onnx_graph_is_refused_or_equal_to_onnx_runtime(change, tmp_path):
    apply, outcome = ONNX[change]
    net = Net()
    apply(net)
    path = tmp_path / "net.onnx"
    path.write_bytes(net.model().SerializeToString())
    if isinstance(outcome, str):
        with pytest.raises(WeightError, match=outcome) as error:
            onnx_zoo.decode(path)
        assert str(error.value).count("\n") == 0
        return
    config, leaves = onnx_zoo.decode(path)
    is_softmax = outcome.get("softmax", False)
    for key, value in outcome.items():
        assert key == "softmax" or config.model[key] == value
    if net.size is None:
        ours, theirs = of_network(config, leaves, images()), net.logits(images())
    else:  # compiling our network for another size takes long; the unchanged graph gives what it gives
        x = random((1, net.size, net.size, 3), 1)
        ours, theirs = Net().logits(x), net.logits(x)
    assert np.std(theirs) > 1e-3
    np.testing.assert_allclose(jax.nn.softmax(ours) if is_softmax else ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("producer", "kernel", "mean", "is_reversed"),
    [
        ("onnx-caffe2", "conv1_w", (123.0, 117.0, 104.0), True),
        ("", "conv1_w_0", (123.0, 117.0, 104.0), True),  # the zoo's newer files do not name their writer
        ("", "squeezenet0_conv0_weight", (123.675, 116.28, 103.53), False),
        ("", "features.0.weight", (123.675, 116.28, 103.53), False),
        ("pytorch", "conv1_w", (123.675, 116.28, 103.53), False),
        ("tf2onnx", "conv1_w", None, None),
    ],
)
def test_images_are_prepared_by_who_wrote_the_file(producer, kernel, mean, is_reversed, tmp_path):
    net = Net()
    net.producer, net.size = producer, 224
    net.stored[kernel] = net.stored.pop("conv1_w")
    net.nodes["conv1"].input[1] = kernel
    (tmp_path / "net.onnx").write_bytes(net.model().SerializeToString())
    if mean is None:
        with pytest.raises(WeightError, match="nothing says how its images are prepared.*'tf2onnx'.*producer_name"):
            onnx_zoo.decode(tmp_path / "net.onnx")
        return
    network = load(tmp_path / "net.onnx")
    assert network.config.dataset.mean == mean and network.image_shape == (224, 224, 3)
    assert network.class_names == tuple(map(str, range(CLASSES)))
    stored = network.variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(stored[:, :, ::-1] if is_reversed else stored, weights()["params/conv1/kernel"])


def other_images(kind=None, size=None):
    def change(model):
        described = model.graph.input[0].type.tensor_type
        described.elem_type = kind or described.elem_type
        for dim in described.shape.dim[2:]:
            dim.dim_value = size or 224

    return change


def second_output(model):
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("conv1", onnx.TensorProto.FLOAT, None))


def external(model):
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def twice(model):
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def two_softmaxes(model):
    for kind, name in (("Flatten", "flat"), ("Softmax", "once"), ("Softmax", "twice")):
        model.graph.node.append(onnx.helper.make_node(kind, [model.graph.output[0].name], [name], name=name, axis=1))
        model.graph.output[0].name = name


def shape_of_a_weight(model):
    model.graph.node.append(onnx.helper.make_node("Shape", ["conv10_b"], ["shape"]))
    model.graph.node.append(onnx.helper.make_node("Reshape", [model.graph.output[0].name, "shape"], ["reshaped"]))
    model.graph.output[0].name = "reshaped"


def quantized(model):
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["conv1_w", "a", "b"], ["c"]))


def own_function(model):
    model.functions.add(name="Relu", domain="")


def computed_kernel(model):
    model.graph.node[0].input[1] = "image"


def foreign(model):
    model.graph.node[1].domain = "com.microsoft"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_images(kind=2), "its images are not float"),
        (other_images(size=128), "128 x 128 pixels, and nothing says.*expected 227 or 224"),
        (second_output, "1 inputs and 2 outputs"),
        (external, "'conv1_w' is stored in another file"),
        (two_softmaxes, "Softmax 'twice' is left over"),
        (twice, "two of its weights have one name"),
        (shape_of_a_weight, "Shape 'shape'|Reshape 'reshaped'"),
        (quantized, "it is quantized .DequantizeLinear 'c'"),
        (own_function, "defines the operation 'Relu' itself"),
        (computed_kernel, "Conv 'conv1' takes weights that are computed"),
        (foreign, "Relu 'conv1/relu' differs: expected ReLU"),
    ],
)
def test_what_an_onnx_file_cannot_be_is_said(change, message, tmp_path):
    model = Net().model()
    change(model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightError, match=f"^{tmp_path}/net.onnx is not a SqueezeNet: .*{message}"):
        onnx_zoo.decode(tmp_path / "net.onnx")
