"""The `.onnx` format: written by the onnx package in opset 17, run by ONNX Runtime.

The input is "images", (batch, channels, *spatial), float32 or uint8 in 0..255; the output is "logits", float32
(batch, classes). The description is in `metadata_props`.
"""

import functools
import math
import pathlib
import tempfile
from typing import Any

import numpy as np

from squeeze_jax.errors import ExportError, WeightError
from squeeze_jax.export.description import check_seal, describe, seal
from squeeze_jax.export.exported import Exported, require
from squeeze_jax.export.forward import forward
from squeeze_jax.export.jaxpr import trace
from squeeze_jax.export.onnx_graph import INPUT, OPERATIONS, OUTPUT, Graph, Node
from squeeze_jax.network import Network
from squeeze_jax.pretrained.onnx_zoo import PRODUCER
from squeeze_jax.pretrained.weights import read_bytes

OPSET = 17
IR_VERSION = 8  # of ONNX 1.12, the first release with opset 17
LARGEST_TENSOR = 2**28  # values, for a batch of one
CALIBRATION_BATCH = 8


def serialize(network: Network, pixels: str = "float32", *, with_head: bool = False) -> bytes:
    """Returns the contents of an `.onnx` file.

    Args:
      network: the network.
      pixels: the dtype of the images, "float32" or "uint8".
      with_head: add a second output, the feature map of the network's head, float32 (batch, classes, *spatial), under
        the name of the head. Class activation maps are made of it.

    Raises:
      ExportError: the onnx package is missing, or the network has an operation that cannot be exported.
    """
    return _sealed(_model(network, pixels, with_head), network, pixels)


def _model(network: Network, pixels: str, with_head: bool) -> Any:
    onnx = require("onnx", "exporting to ONNX")
    function, variables = forward(network)
    graph = Graph()
    graph.write(*trace(functools.partial(function, variables), network.image_shape, pixels))
    nodes, tensors = [], []
    for node in graph.nodes.values():
        names = []
        for i, value in enumerate(_inputs(node)):
            if isinstance(value, np.ndarray):
                name = f"{node.output}/{('input', 'kernel', 'bias')[i] if node.kind in ('Conv', 'Gemm') else i}"
                narrow = value.astype(np.float32) if value.dtype == np.float64 else value
                tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(narrow), name))
                value = name
            names.append(value)
        attributes = {
            key: onnx.helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
            for key, value in node.attributes.items()
        }
        nodes.append(onnx.helper.make_node(node.kind, names, [node.output], node.output, **attributes))
    *spatial, channels = network.image_shape
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(pixels))
    images = onnx.helper.make_tensor_value_info(INPUT, kind, ["batch", channels, *spatial])
    outputs = {OUTPUT: ["batch", len(network.class_names)]}
    if with_head:
        name = network.model.head
        if name not in graph.nodes:
            raise ExportError(f"the graph has no layer {name!r}, the head of the network.")
        outputs[name] = ["batch", len(network.class_names), *[None] * len(spatial)]
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()]
    written = onnx.helper.make_graph(nodes, "squeeze_jax", [images], infos, tensors)
    model = onnx.helper.make_model(
        written, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name=PRODUCER
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _inputs(node: Node) -> list[Any]:
    """Returns the inputs of a node, without a bias of zeros."""
    is_plain = node.kind in ("Conv", "Gemm") and not np.any(node.inputs[2])
    return node.inputs[:2] if is_plain else node.inputs


def _sealed(model: Any, network: Network, pixels: str) -> bytes:
    onnx = require("onnx", "exporting to ONNX")
    model.producer_name = PRODUCER
    onnx.helper.set_model_props(model, describe(network, channels_first=True, pixels=pixels))
    onnx.checker.check_model(model, full_check=True)
    return seal(model.SerializeToString(deterministic=True))


def serialize_int8(network: Network, images: np.ndarray, pixels: str = "float32") -> bytes:
    """Returns the contents of an `.onnx` file whose convolutions compute in 8-bit integers.

    Weights are signed, with a scale for each output channel; activations are unsigned, with the range that they have on
    the images (QDQ: the nodes are in float, between QuantizeLinear and DequantizeLinear, which ONNX Runtime replaces).

    Args:
      network: the network.
      images: raw images for calibration, uint8 (images, *image_shape).
      pixels: the dtype of the images that the file takes, "float32" or "uint8".

    Raises:
      ExportError: onnx or onnxruntime is missing, or the network cannot be exported.
    """
    onnx = require("onnx", "exporting to ONNX")
    quantization = require("onnxruntime.quantization", "exporting to ONNX in int8")
    batches = iter(np.split(images, range(CALIBRATION_BATCH, len(images), CALIBRATION_BATCH)))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: _channels_first(batch.astype(pixels))}

    model = _model(network, pixels, False)
    # Tells the quantizer that the graph is already optimized; otherwise it warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # signed ones take four times as long on x86
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load_model(path)
    kept = [
        entry for entry in model.opset_import if not entry.domain
    ]  # the quantizer adds domains that it does not use
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return _sealed(model, network, pixels)


def read(path: pathlib.Path, threads: int | None = None) -> Exported:
    """Reads an `.onnx` file that was written by `serialize` or `serialize_int8`.

    Args:
      path: the file.
      threads: of ONNX Runtime; None for its own choice, all cores.

    Raises:
      WeightError: the file is damaged, of another origin, or contains what these functions do not write.
      ExportError: onnx or onnxruntime is missing.
    """
    onnx, runtime = (require(package, path) for package in ("onnx", "onnxruntime"))
    data = read_bytes(path)
    check_seal(path, data)
    try:
        model = onnx.load_model_from_string(data)
        _check(model)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or 0
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        opened = Exported.create(
            path,
            {entry.key: entry.value for entry in model.metadata_props},
            lambda images: session.run([OUTPUT], {INPUT: _channels_first(images)})[0],
        )
        *spatial, channels = opened.image_shape
        found = [(entry.name, entry.shape[1:], entry.type) for entry in (*session.get_inputs(), *session.get_outputs())]
        dtype = {"float32": "float", "uint8": "uint8"}[opened.description["pixels"]]
        expected = [
            (INPUT, [channels, *spatial], f"tensor({dtype})"),
            (OUTPUT, [len(opened.class_names)], "tensor(float)"),
        ]
        if found[:2] != expected:
            raise WeightError(f"its input and output are {found}; expected {expected}.")
    except Exception as error:  # protobuf, onnx and onnxruntime raise errors of many kinds
        raise WeightError(f"{path} is not an intact .onnx file: {type(error).__name__}: {error}") from error
    return opened


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def _check(model: Any) -> None:
    """Raises an exception if a graph, which is untrusted, reads other files or has a huge tensor."""
    onnx = require("onnx", "reading ONNX")
    if any(tensor.data_location or tensor.external_data for tensor in model.graph.initializer):
        raise WeightError("its weights are in another file.")
    unknown = {node.op_type for node in model.graph.node} - OPERATIONS | {n.domain for n in model.graph.node} - {""}
    if unknown or model.functions or model.graph.sparse_initializer:
        raise WeightError(f"it has operations that are not exported: {', '.join(sorted(unknown))}.")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.value_info, *inferred.output)
        if info.type.tensor_type.HasField("shape")
    }
    outputs = {name for node in model.graph.node for name in node.output}
    if not outputs <= shapes.keys():
        raise WeightError(f"the shapes of these are unknown: {', '.join(sorted(outputs - shapes.keys())[:5])}.")
    largest = max((math.prod(size or 1 for size in shape) for shape in shapes.values()), default=0)
    if largest > LARGEST_TENSOR:
        raise WeightError(f"it has a tensor of {largest} values; expected at most {LARGEST_TENSOR}.")


serialise, serialise_int8 = serialize, serialize_int8  # former spellings
