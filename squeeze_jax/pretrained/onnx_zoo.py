"""Reads ONNX files of SqueezeNet 1.0 and 1.1, such as the ONNX model zoo's. Needs `pip install squeeze_jax[onnx]`.

The graph is compared with the network's, operation by operation (`graphs.match`), so the names of its weights do not
matter. What both versions may differ in (additions, the head's padding, the rounding of the pooling) is read from it.

ONNX does not store how images are prepared. It is known by who wrote the file: the zoo's squeezenet1.0 files came from
Caffe by way of Caffe2 and take BGR minus a mean (and they hold the network of version 1.1); its squeezenet1.1 files
came from MXNet and, like those of PyTorch, take what torchvision's networks take. Other files are refused.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import models
from squeeze_jax.errors import WeightError, shown
from squeeze_jax.models.registry import CAFFE_IMAGENET, TORCHVISION_IMAGENET, ImageInput
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.pretrained import graphs
from squeeze_jax.pretrained.graphs import Operation
from squeeze_jax.pretrained.weights import (
    MODEL_OF_STEM,
    Leaves,
    Weights,
    class_names_for,
    imagenet_config,
    make_weights,
    read_bytes,
)

PRODUCER = "squeeze_jax"  # of files that this project exports
CAFFE2, PYTORCH = "onnx-caffe2", "pytorch"  # producers
CAFFE2_KERNEL = re.compile(r"conv1_w_0")  # the names of the first kernel
MXNET_KERNEL = re.compile(r"squeezenet\d+_conv0_weight")
PYTORCH_KERNEL = re.compile(r"features\.0\.weight")
SIZES = (CAFFE_IMAGENET.size, TORCHVISION_IMAGENET.size)
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger")
SAME = (b"SAME_UPPER", b"SAME_LOWER")


def read(path: pathlib.Path) -> Weights:
    """Reads an `.onnx` file.

    Raises:
      WeightError: the onnx package is missing, the file is damaged, its writer is unknown, or its graph is not that of
        SqueezeNet; the message names the first operation that differs.
    """
    config, leaves = decode(path)
    return make_weights(path, config, leaves, class_names_for(leaves, SqueezeNet.head))


def decode(path: pathlib.Path) -> tuple[ConfigDict, Leaves]:
    """Returns the config and the kernels and biases, before the network is made; errors are those of `read`."""
    model = _parse(path)
    try:
        graph = _Graph(model)
        convolutions = [operation for operation in graph.operations if operation.kind == graphs.CONVOLUTION]
        if not convolutions:
            raise WeightError("it has no convolutions")
        stem, head = convolutions[0], convolutions[-1]
        name = MODEL_OF_STEM.get(stem.options["kernel"][0])
        if name is None:
            raise WeightError(f"{stem} has a kernel of {stem.options['kernel']}; expected conv1, 3 x 3 or 7 x 7")
        attributes = graphs.variant(graph.operations)
        network = models.create(name, **attributes, num_classes=head.options["outputs"])
        images, is_bgr = _images(model.producer_name, graph.kernel_names[stem.output])
        images = dataclasses.replace(images, size=graph.size or images.size)
        found = graphs.with_whole_maps(graph.operations, network, images.size)
        matched, last = graphs.match(graphs.operations(network), found, graph.images)
        if last != graph.output:
            raise WeightError(f"its output is {shown(graph.output)!r}; expected {shown(last)!r}")
    except WeightError as error:
        raise WeightError(f"{path} is not a SqueezeNet: {error}.") from error
    leaves: Leaves = {}
    for layer, operation in matched.items():
        if operation.kind == graphs.CONVOLUTION:
            kernel, bias = graph.weights[operation.output]
            leaves[f"params/{layer}/kernel"] = kernel.transpose(2, 3, 1, 0)
            leaves[f"params/{layer}/bias"] = bias
    if is_bgr:
        leaves["params/conv1/kernel"] = leaves["params/conv1/kernel"][:, :, ::-1]
    config = imagenet_config(name, images)
    config.model.update(attributes)
    return config, leaves


def _parse(path: pathlib.Path) -> Any:
    """Returns the ModelProto of a file."""
    try:
        import onnx
    except ImportError as error:
        raise WeightError(f"{path} needs the onnx package: pip install onnx") from error
    data = read_bytes(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises errors of many kinds for damaged files
        reason = shown(f"{type(error).__name__}: {error}")
        raise WeightError(f"{path} is not an intact ONNX file: {reason}") from error
    if model.producer_name == PRODUCER:
        raise WeightError(
            f"{path} is not a weight file: it was exported by squeeze_jax, and runs with squeeze_jax.predict; load its "
            "source."
        )
    return model


def _images(producer: str, kernel: str) -> tuple[ImageInput, bool]:
    """Returns the images that a file takes, and whether their channels are in the order BGR."""
    if CAFFE2_KERNEL.fullmatch(kernel):
        producer = CAFFE2
    elif MXNET_KERNEL.fullmatch(kernel) or PYTORCH_KERNEL.fullmatch(kernel):
        producer = PYTORCH  # MXNet's networks take the same images
    if producer not in (CAFFE2, PYTORCH):
        raise WeightError(
            f"nothing says how its images are prepared: its producer is {shown(producer)!r}, its first kernel "
            f"{shown(kernel)!r}. Set its producer_name with the onnx package: {CAFFE2!r} for BGR minus the mean of "
            f"ImageNet, {PYTORCH!r} for RGB in 0..1 with torchvision's mean and standard deviation"
        )
    return (CAFFE_IMAGENET, True) if producer == CAFFE2 else (TORCHVISION_IMAGENET, False)


class _Graph:
    """A graph as operations.

    Attributes:
      operations: those that the output depends on, in order.
      weights: kernel and bias, float32, of each convolution, by the name of its output.
      kernel_names: the names of the kernels, likewise.
      images, output: the names of the tensors.
      size: the side of the images in pixels; 0 if the file leaves it open.
    """

    def __init__(self, model: Any):
        graph = model.graph
        if not all(isinstance(name, str) for name in _names(model)):  # protobuf returns what is not UTF-8 as bytes
            raise WeightError("a name in it is damaged")
        if model.functions:
            raise WeightError(f"it defines the operation {shown(model.functions[0].name)!r} itself")
        self._opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self._stored = {tensor.name: _array(tensor) for tensor in graph.initializer}
        if len(self._stored) < len(graph.initializer):
            raise WeightError("two of its weights have one name")
        inputs = [value for value in graph.input if value.name not in self._stored]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise WeightError(
                f"it has {len(inputs)} inputs and {len(graph.output)} outputs; expected images and logits"
            )
        self.images = inputs[0].name
        self.size = _side(inputs[0].type.tensor_type)
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.kernel_names: dict[str, str] = {}
        self._same_as: dict[str, str] = {}
        self._flat: set[str] = set()  # tensors of shape (batch, classes)
        self._shapes: set[str] = set()  # tensors that are the shape of another one
        self._outputs = 0  # of the latest convolution
        known, found = {self.images, *self._stored}, []
        for node in graph.node:
            if known & set(node.output):
                raise WeightError(f"{_label(node)} computes {shown(node.output[0])!r}, which exists already")
            known |= set(node.output) - {""}
            operation = self._convert(node)
            if operation is not None:
                found.append(operation)
        self.output = self._same_as.get(graph.output[0].name, graph.output[0].name)
        needed = {self.output}
        for operation in reversed(found):
            needed |= set(operation.inputs) if operation.output in needed else set()
        self.operations = [operation for operation in found if operation.output in needed]

    def _convert(self, node: Any) -> Operation | None:
        """Returns the operation of a node; None if it computes nothing of the images."""
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if kind in QUANTIZED:
            raise WeightError(f"it is quantized ({_label(node)}); expected a file with float weights")
        attributes = {a.name: _value(a) for a in node.attribute}
        inputs = [self._same_as.get(name, name) for name in node.input]
        if not node.output or not (node.input or kind == "Constant"):
            raise WeightError(f"{_label(node)} has no input or no output")
        output = node.output[0]
        if kind == "Constant" and "value" in attributes:
            self._stored[output] = _array(attributes["value"])
        elif kind == "Identity" and inputs[0] in self._stored:
            self._stored[output] = self._stored[inputs[0]]
        elif self._changes_nothing(kind, attributes, inputs):
            self._same_as[output] = inputs[0]
            self._flat |= {output} if inputs[0] in self._flat else set()
        elif kind == "Shape" and inputs[0] not in self._stored:
            self._shapes.add(output)
        else:
            convert = getattr(self, f"_{kind.lower()}", None) if kind in CONVERTED else None
            kind, options = convert(node, attributes, inputs) if convert else (kind, {})
            if kind == graphs.CONVOLUTION:
                inputs = inputs[:1]
            elif kind in (graphs.FLATTEN, graphs.POOLING):
                inputs = inputs[:1]  # shapes and axes are constants that were looked at
            name = node.name or output
            return Operation(kind, name, tuple(inputs), output, options, label=node.op_type)
        return None

    def _changes_nothing(self, kind: str, attributes: dict[str, Any], inputs: list[str]) -> bool:
        if kind == "Dropout":
            trains = self._stored.get(inputs[2]) if len(inputs) > 2 and inputs[2] else np.array(False)
            return trains is not None and not trains.any()
        return kind == "Identity" or (kind == "Cast" and attributes.get("to") in _float_types()[:3])

    def _conv(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        stored = [self._stored.get(name) for name in inputs[1:]]
        if not stored or any(value is None for value in stored):
            raise WeightError(f"{_label(node)} takes weights that are computed; expected all weights in the file")
        kernel, bias = stored[0], stored[1] if len(stored) > 1 else np.zeros(stored[0].shape[:1], np.float32)
        if kernel.ndim != 4 or not _is_float(kernel) or not _is_float(bias) or bias.shape != kernel.shape[:1]:
            raise WeightError(
                f"{_label(node)} has weights of {kernel.dtype} {kernel.shape}; expected a 4-D float kernel"
            )
        if _attribute(attributes, "kernel_shape", kernel.shape[2:]) != kernel.shape[2:]:
            raise WeightError(f"{_label(node)} has a kernel of {kernel.shape}, which is not its kernel_shape")
        self.weights[node.output[0]] = kernel.astype(np.float32), bias.astype(np.float32)
        self.kernel_names[node.output[0]] = node.input[1]
        self._outputs = len(kernel)
        options = {"groups": _attribute(attributes, "group", 1), "outputs": len(kernel)}
        return graphs.CONVOLUTION, {**_window(attributes, kernel.shape[2:]), **options}

    def _relu(self, *_: Any) -> tuple[str, dict[str, Any]]:
        return graphs.RELU, {}

    def _maxpool(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        options = _window(attributes, _attribute(attributes, "kernel_shape", ()))
        rounding = "ceil" if _attribute(attributes, "ceil_mode", 0) else "floor"
        if rounding == "floor" and options["padding"] == (0, 0, 1, 1) and options["stride"] == (2, 2):
            options["padding"], rounding = (0, 0, 0, 0), "ceil"  # the same windows
        return graphs.POOLING, {**options, "method": "max", "rounding": rounding}

    def _averagepool(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        options = _window(attributes, _attribute(attributes, "kernel_shape", ()))
        whole = options["kernel"] if not any(options["padding"]) and options["dilation"] == (1, 1) else False
        return graphs.POOLING, {"method": "mean", "whole": whole}

    def _globalaveragepool(self, *_: Any) -> tuple[str, dict[str, Any]]:
        return graphs.POOLING, {"method": "mean", "whole": True}

    def _reducemean(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        if self._axes(attributes, inputs) != {2, 3}:
            return node.op_type, {}
        self._flat |= set() if _attribute(attributes, "keepdims", 1) else {node.output[0]}
        return graphs.POOLING, {"method": "mean", "whole": True}

    def _concat(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        return graphs.CONCATENATION, {"axis": _attribute(attributes, "axis", 1) % 4}

    def _add(self, *_: Any) -> tuple[str, dict[str, Any]]:
        return graphs.ADDITION, {}

    _sum = _add

    def _flatten(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        return self._flattened(node, _attribute(attributes, "axis", 1) == 1)

    def _reshape(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        if inputs[1:] and inputs[1] in self._shapes:  # softmax, between opsets: flattened and back
            return graphs.FLATTEN, {}
        stored = self._stored.get(inputs[1]) if len(inputs) > 1 else _attribute(attributes, "shape", ())
        shape = [] if stored is None else np.asarray(stored).tolist()
        return self._flattened(node, len(shape) == 2 and shape[0] in (-1, 0, 1) and shape[1] in (-1, self._outputs))

    def _squeeze(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        return self._flattened(node, self._axes(attributes, inputs) == {2, 3})

    def _flattened(self, node: Any, is_flat: bool) -> tuple[str, dict[str, Any]]:
        self._flat |= {node.output[0]} if is_flat else set()
        return (graphs.FLATTEN if is_flat else node.op_type), {}

    def _softmax(self, node: Any, attributes: dict[str, Any], inputs: list[str]) -> tuple[str, dict[str, Any]]:
        # Before opset 13 everything from the axis on is one vector.
        axis = _attribute(attributes, "axis", 1 if self._opset < 13 else -1)
        rank = 2 if inputs[0] in self._flat else 4
        return (graphs.SOFTMAX if axis in (1, 1 - rank) else f"{node.op_type} over axis {axis}"), {}

    def _axes(self, attributes: dict[str, Any], inputs: list[str]) -> set[int]:
        """Returns the axes, of four, that an attribute or a constant input names."""
        stored = self._stored.get(inputs[1]) if len(inputs) > 1 else _attribute(attributes, "axes", ())
        axes = np.ravel(() if stored is None else stored)
        return {int(axis) % 4 for axis in axes} if axes.dtype.kind == "i" else set()


# Types of nodes with a method that says what they compute.
CONVERTED = [
    "Conv",
    "Relu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Concat",
    "Add",
    "Sum",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Softmax",
]


def _names(model: Any) -> Iterator[Any]:
    """Yields all names in a model that are looked at."""
    graph = model.graph
    yield model.producer_name
    for entry in (*model.functions, *graph.initializer, *graph.input, *graph.output):
        yield entry.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.t.name for attribute in node.attribute if attribute.HasField("t"))


def _label(node: Any) -> str:
    return f"{shown(node.op_type)} {shown(node.name or ''.join(node.output[:1]))!r}"


def _value(attribute: Any) -> Any:
    """Returns the value of a node's attribute, if operations here need it: whole numbers, a string or a tensor."""
    if attribute.ints:
        return tuple(attribute.ints)
    for field in ("t", "s", "i"):
        if attribute.HasField(field):
            return getattr(attribute, field)
    return None


def _attribute(attributes: dict[str, Any], name: str, default: Any) -> Any:
    """Returns the value of an attribute; the default says of which type it must be."""
    value = attributes.get(name, default)
    if type(value) is not type(default):
        raise WeightError(f"the attribute {name} is of another type")
    return value


def _window(attributes: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """Returns the options of a convolution or pooling; the defaults are ONNX's."""
    stride, dilation = (_attribute(attributes, name, (1, 1)) for name in ("strides", "dilations"))
    padding = _attribute(attributes, "pads", (0, 0, 0, 0))
    automatic = _attribute(attributes, "auto_pad", b"NOTSET")
    if automatic != b"NOTSET" and any(padding):
        raise WeightError(
            f"an operation has pads and auto_pad={shown(str(automatic, 'latin-1'))}, which exclude each other"
        )
    if automatic in SAME:
        is_plain = stride == dilation == (1, 1) and all(size % 2 for size in kernel)
        padding = tuple(size // 2 for size in kernel) * 2 if is_plain else str(automatic, "ascii")
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


def _array(tensor: Any) -> np.ndarray:
    """Returns the values of a TensorProto."""
    import onnx
    from onnx import numpy_helper

    if not isinstance(tensor, onnx.TensorProto):
        raise WeightError("a constant is not a tensor")
    if tensor.data_location != onnx.TensorProto.DEFAULT:
        raise WeightError(f"{shown(tensor.name)!r} is stored in another file; expected all weights in this file")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # onnx raises errors of many kinds for damaged tensors
        reason = shown(f"{type(error).__name__}: {error}")
        raise WeightError(f"the tensor {shown(tensor.name)!r} is damaged: {reason}") from error


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def _float_types() -> tuple[int, ...]:
    from onnx import TensorProto

    return TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16


def _side(images: Any) -> int:
    """Returns the side of the images in pixels; 0 if the file leaves it open."""
    if images.elem_type not in _float_types():
        raise WeightError("its images are not float, so that nothing says how they are prepared")
    sides = {dim.dim_value for dim in images.shape.dim[2:]}
    if sides <= {0}:
        return 0
    if len(sides) > 1 or not sides <= set(SIZES):
        size = " x ".join(str(dim.dim_value) for dim in images.shape.dim[2:])
        raise WeightError(
            f"its images have {size} pixels, and nothing says how photographs become such; expected "
            f"{' or '.join(map(str, SIZES))}, or free sizes"
        )
    return sides.pop()
