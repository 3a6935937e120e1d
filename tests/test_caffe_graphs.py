"""Caffe's nets with one thing changed: refused by name, or loaded and equal to ONNX Runtime."""

import numpy as np
import pytest
from test_importers import caffe_messages
from test_onnx_graphs import CLASSES, Net, images, of_network, tensors

from squeeze_jax import load
from squeeze_jax.errors import WeightError
from squeeze_jax.pretrained import caffe, caffe_layers


class CaffeNet:
    """The layers of a .caffemodel of SqueezeNet 1.1, in the order of a prototxt; `parts` are changed before writing."""

    def __init__(self):
        self.parts = {}
        x = self.conv("conv1", "data", kernel=3, stride=2)
        x = self.add("Pooling", "pool1", [x], pooling={"kernel_size": 3, "stride": 2})
        for fire in range(2, 10):
            squeezed = self.conv(f"fire{fire}/squeeze1x1", x)
            branches = [self.conv(f"fire{fire}/expand{i}x{i}", squeezed, kernel=i) for i in (1, 3)]
            x = self.add("Concat", f"fire{fire}/concat", branches)
            if fire in (3, 5):
                x = self.add("Pooling", f"pool{fire}", [x], pooling={"kernel_size": 3, "stride": 2})
        self.add("Dropout", "drop9", [x], tops=[x])
        self.add("Pooling", "pool10", [self.conv("conv10", x)], pooling={"pool": 1, "global_pooling": True})
        self.add("SoftmaxWithLoss", "loss", ["pool10", "label"])

    def add(self, kind, name, bottoms, *, tops=None, **settings):
        self.parts[name] = {"type": kind, "bottom": bottoms, "top": tops or [name], **settings}
        return (tops or [name])[0]

    def conv(self, name, x, *, kernel=1, stride=1):
        settings = {"num_output": 1, "kernel_size": [kernel], "stride": [stride]}
        settings |= {"pad": [1]} if name.endswith("expand3x3") else {}
        self.add("Convolution", name, [x], convolution=settings)
        self.add("ReLU", f"relu_{name}", [name], tops=[name])
        return name

    def bypass(self, *fires, **settings):
        for fire in fires:
            before = self.parts[f"fire{fire}/squeeze1x1"]["bottom"][0]
            entries = list(self.parts.items())
            place = list(self.parts).index(f"fire{fire}/concat") + 1
            for _, part in entries[place:]:
                part["bottom"] = [f"sum{fire}" if x == f"fire{fire}/concat" else x for x in part["bottom"]]
            sum_ = {"type": "Eltwise", "bottom": [before, f"fire{fire}/concat"], "top": [f"sum{fire}"], **settings}
            self.parts = dict([*entries[:place], (f"sum{fire}", sum_), *entries[place:]])

    def write(self, *, old=False):
        net = caffe_messages()(name="net")
        made = net.layers if old else net.layer
        made.add(name="data", type=5 if old else "Data", top=["data", "label"])
        numbers = {name: number for number, name in caffe_layers.V1_TYPES.items()}
        for name, part in self.parts.items():
            settings = {f"{key}_param": value for key, value in part.items() if key not in ("type", "bottom", "top")}
            kind = numbers[part["type"]] if old else part["type"]
            layer = made.add(name=name, type=kind, bottom=part["bottom"], top=part["top"], **settings)
            if part["type"] == "Convolution":
                kernel = tensors()[f"{name}_w"][:, ::-1] if name == "conv1" else tensors()[f"{name}_w"]
                for values in (kernel, tensors()[f"{name}_b"]):
                    blob = layer.blobs.add()
                    blob.data.extend(values.ravel().tolist())
                    blob.shape.dim.extend(values.shape)
        return net.SerializeToString()


def to(name, **settings):
    return lambda net: net.parts[name].update(settings)


def without(name):
    def change(net):
        gone = net.parts.pop(name)
        for part in net.parts.values():
            part["bottom"] = [gone["bottom"][0] if x == gone["top"][0] else x for x in part["bottom"]]

    return change


def in_front(kind):
    def change(net):
        net.parts = {kind: {"type": kind, "bottom": ["data"], "top": ["data"]}, **net.parts}

    return change


CAFFE = {
    "nothing": (lambda net: None, {}),
    "additions": (lambda net: net.bypass(3, 5, 7, 9), {"bypass": "simple"}),
    "additions by name": (lambda net: net.bypass(3, 5, 7, 9, eltwise={"operation": 1}), {"bypass": "simple"}),
    "products": (lambda net: net.bypass(3, 5, 7, 9, eltwise={"operation": 0}), "Eltwise 'sum3'"),
    "maxima": (lambda net: net.bypass(3, 5, 7, 9, eltwise={"operation": 2}), "Eltwise 'sum3'"),
    "differences": (lambda net: net.bypass(3, 5, 7, 9, eltwise={"coeff": [1, -1]}), "Eltwise 'sum3'"),
    "one addition": (lambda net: net.bypass(5), "Pooling 'pool3' differs: expected addition|'fire4/squeeze1x1'"),
    "ELU": (to("relu_conv1", type="ELU"), "ELU 'relu_conv1' differs: expected ReLU"),
    "slope": (to("relu_fire2/squeeze1x1", relu={"negative_slope": 0.1}), "ReLU 'relu_fire2/squeeze1x1'"),
    "a ReLU less": (without("relu_fire9/squeeze1x1"), "Convolution 'fire9/expand1x1' differs: expected ReLU"),
    "no ReLU of conv10": (without("relu_conv10"), {"head_relu": False}),
    "stride": (to("conv1", convolution={"kernel_size": [3]}), r"Convolution 'conv1'.*stride \(1, 1\)"),
    "padding": (
        to("conv1", convolution={"kernel_size": [3], "stride": [2], "pad": [1]}),
        "Convolution 'conv1'.*padding",
    ),
    "padding of one side": (to("fire2/expand3x3", convolution={"pad_h": 1}), "'fire2/expand3x3'.*padding"),
    "dilation": (to("fire2/expand3x3", convolution={"pad": [2], "dilation": [2]}), "'fire2/expand3x3'.*dilation"),
    "groups": (to("fire2/squeeze1x1", convolution={"group": 2}), "'fire2/squeeze1x1'.*groups 2"),
    "padded conv10": (to("conv10", convolution={"kernel_size": [1], "pad": [1]}), {"head_padding": True}),
    "averages": (to("pool1", pooling={"pool": 1, "kernel_size": 3, "stride": 2}), "Pooling 'pool1'.*method mean"),
    "window": (to("pool3", pooling={"kernel_size": 2, "stride": 2}), "Pooling 'pool3'.*kernel"),
    "padded pool": (to("pool3", pooling={"kernel_size": 3, "stride": 2, "pad": 1}), "Pooling 'pool3'.*padding"),
    "floor once": (to("pool3", pooling={"kernel_size": 3, "stride": 2, "round_mode": 1}), "'pool3'.*rounding floor"),
    "a part of the map": (to("pool10", pooling={"pool": 1, "kernel_size": 3}), r"'pool10'.*whole \(3, 3\)"),
    "maximum at the end": (to("pool10", pooling={"global_pooling": True}), "Pooling 'pool10'.*method max"),
    "a pool less": (without("pool3"), "'fire4/squeeze1x1' differs: expected pooling"),
    "concatenation the other way round": (
        lambda net: net.parts["fire4/concat"]["bottom"].reverse(),
        "Concat 'fire4/concat' differs: it takes",
    ),
    "concatenation of another axis": (to("fire4/concat", concat={"axis": 2}), "Concat 'fire4/concat'.*axis 2"),
    "Power in front": (in_front("Power"), "Power 'Power' differs: expected convolution"),
    "LRN": (in_front("LRN"), "LRN 'LRN'"),
    "no settings": (lambda net: [part.pop("convolution", 0) for part in net.parts.values()], {}),
    "a layer without a type": (to("relu_conv1", type=""), "layer without a type 'relu_conv1'"),
}


@pytest.mark.parametrize("change", CAFFE)
def test_a_changed_caffe_net_is_refused_or_equal_to_onnx_runtime(change, tmp_path, monkeypatch):
    apply, outcome = CAFFE[change]
    net, path = CaffeNet(), tmp_path / "net.caffemodel"
    apply(net)
    path.write_bytes(net.write())
    # What is loaded is compared without its names and shapes, which other tests do, and which takes a second each.
    monkeypatch.setattr(caffe, "make_weights", lambda path, config, leaves, names: (config, leaves))
    if isinstance(outcome, str):
        with pytest.raises(WeightError, match=f"holds none of the networks that this format supports: .*({outcome})"):
            caffe.read(path)
        return
    config, leaves = caffe.read(path)
    for key, value in outcome.items():
        assert config.model[key] == value
    same = Net()
    if outcome.get("bypass"):
        same.bypass(3, 5, 7, 9)
    if outcome.get("head_padding"):
        same.set("conv10", pads=[1] * 4)
    if outcome.get("head_relu") is False:
        same.remove("conv10/relu")
    np.testing.assert_allclose(of_network(config, leaves, images()), same.logits(images()), atol=1e-4, rtol=1e-4)


def test_the_old_form_of_a_caffe_net_is_compared_too(tmp_path):
    net, path = CaffeNet(), tmp_path / "net.caffemodel"
    net.bypass(3, 5, 7, 9)
    path.write_bytes(net.write(old=True))
    network = load(path)
    assert network.model.bypass == "simple" and len(network.class_names) == CLASSES
    net.parts["relu_conv1"]["type"] = "Split"  # no ReLU
    path.write_bytes(net.write(old=True))
    with pytest.raises(WeightError, match="Pooling 'pool1' differs: expected ReLU"):
        load(path)


def test_the_mean_and_the_scale_of_a_caffe_net_are_its_own(tmp_path):
    path = tmp_path / "net.caffemodel"
    net = caffe_messages()(name="net")
    net.ParseFromString(CaffeNet().write())
    net.layer[0].transform_param.mean_value.extend([90, 100, 110])
    net.layer[0].transform_param.scale = 0.5
    path.write_bytes(net.SerializeToString())
    config = load(path).config
    assert config.dataset.mean == (110.0, 100.0, 90.0) and config.dataset.std == (2.0,)
