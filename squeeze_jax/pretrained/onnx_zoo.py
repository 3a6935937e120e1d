"""Reads ONNX files of SqueezeNet 1.0 and 1.1, such as the ONNX model zoo's. Needs `pip install squeeze_jax[onnx]`.

The weights are identified by the graph, not by name: convolutions by their order, and the two expand branches of a Fire
module by their kernel sizes. The padding of the head and the rounding of the pooling are read from the graph. The
preprocessing is the one that the zoo's README gives for both versions (RGB, torchvision's mean and standard deviation).
"""

import pathlib
from typing import Any

import numpy as np

from squeeze_jax.errors import WeightError
from squeeze_jax.models.registry import TORCHVISION_IMAGENET
from squeeze_jax.models.squeezenet import FIRST_FIRE, NUM_FIRE_MODULES, SqueezeNet
from squeeze_jax.pretrained.weights import (
    Leaves,
    Weights,
    imagenet_class_names,
    imagenet_config,
    make_weights,
    model_of_stem,
    read_bytes,
)

PRODUCER = "squeeze_jax"  # of files that this project exports
CONVOLUTIONS = 2 + 3 * NUM_FIRE_MODULES


def read(path: pathlib.Path) -> Weights:
    """Reads an `.onnx` file.

    Raises:
      WeightError: the onnx package is missing, or the file is damaged or of another network.
    """
    leaves, head_padding, pooling = decode(path)
    config = imagenet_config(model_of_stem(path, leaves), TORCHVISION_IMAGENET)
    config.model.head_padding = head_padding
    config.model.pooling = pooling
    return make_weights(path, config, leaves, imagenet_class_names())


def decode(path: pathlib.Path) -> tuple[Leaves, bool, str]:
    """Returns the kernels and biases, whether conv10 is padded, and the pooling, "ceil" or "floor".

    Raises:
      WeightError: see `read`.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise WeightError(f"{path} needs the onnx package: pip install onnx") from error
    data = read_bytes(path)
    try:
        model = onnx.load_model_from_string(data)
        if model.producer_name == PRODUCER:
            raise WeightError("it was exported by squeeze_jax, and runs with squeeze_jax.predict; load its source")
        graph = model.graph
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.DEFAULT:
                raise WeightError(f"{tensor.name!r} is stored in another file; expected all weights in this file")
        stored = {tensor.name: np.asarray(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        if len(convolutions) != CONVOLUTIONS:
            raise WeightError(f"its graph has {len(convolutions)} convolutions; expected {CONVOLUTIONS}")
        leaves: Leaves = {}
        for i, node in enumerate(convolutions):
            if node.input[1] not in stored or stored[node.input[1]].ndim != 4:
                raise WeightError(f"convolution {i} has no 4-D kernel")
            kernel = stored[node.input[1]]
            name = _name(i, kernel.shape[-1])
            leaves[f"params/{name}/kernel"] = kernel.astype(np.float32).transpose(2, 3, 1, 0)
            if len(node.input) > 2 and node.input[2] in stored:
                leaves[f"params/{name}/bias"] = stored[node.input[2]].astype(np.float32).ravel()
        pools = [_attributes(node) for node in graph.node if node.op_type == "MaxPool"]
        ceil = any(pool.get("ceil_mode") or any(pool.get("pads", ())) for pool in pools)
        return leaves, any(_attributes(convolutions[-1]).get("pads", ())), "ceil" if ceil else "floor"
    except WeightError as error:
        raise WeightError(f"{path} is not a SqueezeNet: {error}.") from error
    except Exception as error:  # protobuf and onnx raise errors of many kinds for damaged files
        raise WeightError(f"{path} is not an intact ONNX file: {type(error).__name__}: {error}") from error


def _name(position: int, kernel_size: int) -> str:
    """Returns this project's name for the convolution at this position in the graph."""
    if position in (0, CONVOLUTIONS - 1):
        return "conv1" if position == 0 else SqueezeNet.head
    fire, place = divmod(position - 1, 3)
    branch = "squeeze1x1" if place == 0 else f"expand{kernel_size}x{kernel_size}"
    return f"fire{fire + FIRST_FIRE}/{branch}"


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: list(a.ints) if a.ints else a.i for a in node.attribute}
