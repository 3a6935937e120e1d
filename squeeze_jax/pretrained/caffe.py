"""Reads Caffe's `.caffemodel` files of SqueezeNet 1.0 and 1.1 and of SqueezeNext without Caffe.

Files that Caffe saves hold the whole network: it is compared with ours, layer by layer (`graphs.match`). Files of only
names and weights are read by the names of forresti/SqueezeNet (`fire2/squeeze1x1`), songhan (`fire2/conv1x1_1`) and
amirgholami/SqueezeNext (`Convolution2`, `BatchNorm2`, `Scale2`); in them, nothing else can be checked.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from squeeze_jax import config as config_lib
from squeeze_jax.errors import WeightError, shown
from squeeze_jax.models import create, registered
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.pretrained import graphs
from squeeze_jax.pretrained.caffe_layers import Layer, parse
from squeeze_jax.pretrained.graphs import Operation
from squeeze_jax.pretrained.weights import (
    MODEL_OF_STEM,
    Leaves,
    Rules,
    Weights,
    class_names_for,
    imagenet_config,
    make_weights,
    model_of_stem,
    rename,
)

SONGHAN: Rules = (
    (r"\bconv1x1_1$", "squeeze1x1"),
    (r"\bconv1x1_2$", "expand1x1"),
    (r"\bconv3x3_2$", "expand3x3"),
    (r"^conv_final$", SqueezeNet.head),
)
# By the size of the first kernel, the outputs of the second and the inputs of the third.
SQUEEZENEXTS = {
    (7, 32, 64): "squeezenext_1_0_23",
    (7, 32, 32): "squeezenext_1_0_g_23",
    (5, 32, 32): "squeezenext_1_0_23v5",
    (7, 64, 64): "squeezenext_2_0_23",
    (5, 64, 64): "squeezenext_2_0_23v5",
}
# Layers that bring images, that judge the output, and that change nothing when a network predicts.
SOURCES = ("Data", "HDF5Data", "ImageData", "WindowData", "MemoryData", "DummyData", "Input")
JUDGES = ("SoftmaxWithLoss", "Accuracy", "Silence")
UNCHANGED = ("Dropout", "Split")
# Fields of the messages of caffe.proto.
CONV_PAD, CONV_KERNEL, CONV_GROUP, CONV_STRIDE, CONV_DILATION = (3, 9, 10), (4, 11, 12), 5, (6, 13, 14), (18,)
POOL_METHOD, POOL_KERNEL, POOL_PAD, POOL_STRIDE = 1, (2, 5, 6), (4, 9, 10), (3, 7, 8)
POOL_GLOBAL, POOL_ROUNDING = 12, 13
CONCAT_AXES, ELTWISE_OPERATION, ELTWISE_FACTORS, RELU_SLOPE, SOFTMAX_AXIS = (2, 1), 1, 2, 1, 2
DENSE_AXIS, DENSE_TRANSPOSED, NORM_EPSILON, SUM = 5, 6, 3, 1
SCALE, MEAN_FILE, MEAN = 1, 4, 5


def read(path: pathlib.Path) -> Weights:
    """Reads a `.caffemodel` file.

    Raises:
      WeightError: the file is damaged, or of another network; the message names the first layer that differs, if the
        file holds more than weights.
    """
    layers = parse(path)
    name, rules = _squeezenext({layer.name: layer.blobs for layer in layers if layer.blobs})
    if any(layer.type for layer in layers if layer.blobs):
        name, attributes, names = _checked(path, layers, name)
        leaves = to_leaves(path, layers, lambda theirs: names.get(theirs, theirs))
        for kernel in [leaf for leaf in leaves if leaf.endswith("/kernel")]:  # without a bias, it is zero
            if registered(name).network is SqueezeNet:
                bias = kernel.replace("/kernel", "/bias")
                leaves.setdefault(bias, np.zeros(leaves[kernel].shape[-1], np.float32))
    else:
        leaves, attributes = to_leaves(path, layers, lambda theirs: rename(theirs, rules or SONGHAN)), {}
        name = name or model_of_stem(path, leaves)
    config = caffe_config(name)
    config.model.update(attributes)
    _use_transform(config, layers)
    return make_weights(path, config, leaves, class_names_for(leaves, registered(name).network.head))


def caffe_config(model_name: str) -> ConfigDict:
    """Returns the config of the authors' ImageNet weights; their version 1.0 pads conv10, although it is 1x1."""
    config = imagenet_config(model_name, registered(model_name).input)
    if registered(model_name).network is SqueezeNet:
        config.model.head_padding = model_name == "squeezenet_v1_0"
    return config


def _use_transform(config: ConfigDict, layers: Sequence[Layer]) -> None:
    """Sets the mean and the scale that the file's own data layer states; the mean is in the order BGR."""
    for layer in layers:
        if layer.type in SOURCES and "transform" in layer.settings:
            if MEAN_FILE not in layer.settings["transform"]:
                config.dataset.mean = tuple(reversed(layer.floats("transform", MEAN))) or (0.0,)
            scale = (layer.floats("transform", SCALE) or [1.0])[-1]
            config.dataset.std = (1 / scale if scale else 0.0,)
            config_lib.validate(config)


def _checked(
    path: pathlib.Path, layers: Sequence[Layer], squeezenext: str | None
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Compares the layers of a file with those of a network here.

    Args:
      path: the file, for messages.
      layers: its layers.
      squeezenext: the name of the network, if it is a SqueezeNext.

    Returns:
      The name of the network, the attributes that the file states, and our names of the layers that have weights.

    Raises:
      WeightError: a layer differs.
    """
    try:
        found, images = _operations(layers)
        sized = [operation for operation in found if operation.kind in (graphs.CONVOLUTION, graphs.DENSE)]
        kernel = sized[0].options.get("kernel", (0,))[0] if sized else 0
        name = squeezenext or MODEL_OF_STEM.get(kernel)
        if name is None:
            raise WeightError(f"its first convolution has a kernel of {kernel}; expected conv1, 3 x 3 or 7 x 7")
        attributes = {} if squeezenext else graphs.variant(found)
        given = {"head_padding": caffe_config(name).model.head_padding, **attributes} if not squeezenext else {}
        network = create(name, **given, num_classes=sized[-1].options["outputs"])
        found = graphs.with_whole_maps(found, network, registered(name).input.size)
        matched, _ = graphs.match(graphs.operations(network), found, images)
    except WeightError as error:
        raise WeightError(f"{path} holds none of the networks that this format supports: {error}.") from error
    return name, attributes, {theirs.name: ours.removesuffix(" scale") for ours, theirs in matched.items()}


def _operations(layers: Sequence[Layer]) -> tuple[list[Operation], str]:
    """Returns what the layers compute, and the name of the images."""
    images, latest, found = "", {}, []  # the tensor that a name stands for; layers may overwrite what they take
    for layer in layers:
        if layer.type in SOURCES:
            images = images or (layer.tops or [layer.name])[0]
        elif layer.type in UNCHANGED and layer.bottoms:
            latest |= dict.fromkeys(layer.tops, latest.get(layer.bottoms[0], layer.bottoms[0]))
        elif layer.type not in JUDGES:
            inputs = tuple(latest.get(bottom, bottom) for bottom in layer.bottoms)
            images = images or (inputs or ("",))[0]
            output = f"{layer.name} ({len(found)})" if layer.name in latest.values() else layer.name
            latest |= dict.fromkeys(layer.tops, output)
            kind, options = _convert(layer)
            label = layer.type or "layer without a type"
            found.append(Operation(kind, layer.name, inputs, output, options, label=label))
    return found, images


def _convert(layer: Layer) -> tuple[str, dict[str, Any]]:
    """Returns what a layer computes; the defaults are Caffe's, and a message that is not there says nothing."""
    kind, settings = layer.type, layer.settings
    if kind in ("Convolution", "InnerProduct", "BatchNorm", "Scale") and not layer.blobs:
        raise WeightError(f"the layer {shown(layer.name)!r} has no weights")
    if kind == "Convolution":
        return _convolution(layer)
    if kind == "Pooling":
        return graphs.POOLING, _pooling(layer) if "pooling" in settings else {}
    if kind == "ReLU" and not any(layer.floats("relu", RELU_SLOPE)):
        return graphs.RELU, {}
    if kind == "Concat":
        stated = [axis for field in CONCAT_AXES for axis in layer.numbers("concat", field)]
        return graphs.CONCATENATION, {"axis": stated[0] if stated else 1}
    if kind == "Eltwise":
        is_sum = (layer.numbers("eltwise", ELTWISE_OPERATION) or [SUM])[-1] == SUM
        if is_sum and all(factor == 1 for factor in layer.floats("eltwise", ELTWISE_FACTORS)):
            return graphs.ADDITION, {}
    if kind == "InnerProduct":
        is_plain = not any(layer.numbers("inner_product", DENSE_TRANSPOSED))
        if is_plain and (layer.numbers("inner_product", DENSE_AXIS) or [1]) == [1]:
            return graphs.DENSE, {"outputs": layer.blobs[0].shape[-2] if layer.blobs[0].ndim > 1 else 0}
    if kind == "BatchNorm":
        epsilon = (layer.floats("batch_norm", NORM_EPSILON) or [1e-5])[-1]
        return graphs.NORMALIZATION, {"epsilon": float(f"{epsilon:.6g}")}
    if kind == "Softmax" and (layer.numbers("softmax", SOFTMAX_AXIS) or [1]) == [1]:
        return graphs.SOFTMAX, {}
    return {"Scale": graphs.SCALE, "Flatten": graphs.FLATTEN}.get(kind, f"{kind} with these settings"), {}


def _convolution(layer: Layer) -> tuple[str, dict[str, Any]]:
    shape = layer.blobs[0].shape
    if len(shape) != 4:
        raise WeightError(f"the layer {shown(layer.name)!r} has a kernel of shape {shape}")
    options: dict[str, Any] = {"kernel": shape[2:], "outputs": shape[0]}
    if "convolution" in layer.settings:
        stated = _pair(layer, "convolution", CONV_KERNEL, 0)
        if stated not in ((0, 0), options["kernel"]):
            raise WeightError(f"the layer {shown(layer.name)!r} states the kernel {stated}, but has one of {shape}")
        options |= {
            "stride": _pair(layer, "convolution", CONV_STRIDE, 1),
            "padding": _pair(layer, "convolution", CONV_PAD, 0) * 2,
            "dilation": _pair(layer, "convolution", CONV_DILATION, 1),
            "groups": (layer.numbers("convolution", CONV_GROUP) or [1])[-1],
        }
    return graphs.CONVOLUTION, options


def _pooling(layer: Layer) -> dict[str, Any]:
    method = (layer.numbers("pooling", POOL_METHOD) or [0])[-1]
    kernel, padding = _pair(layer, "pooling", POOL_KERNEL, 0), _pair(layer, "pooling", POOL_PAD, 0) * 2
    is_global = any(layer.numbers("pooling", POOL_GLOBAL))
    if method == 1:
        return {"method": "mean", "whole": is_global or (not any(padding) and kernel)}
    return {
        "method": "max" if method == 0 else f"method {method}",
        "kernel": "the whole map" if is_global else kernel,
        "stride": _pair(layer, "pooling", POOL_STRIDE, 1),
        "padding": padding,
        "rounding": "floor" if any(layer.numbers("pooling", POOL_ROUNDING)) else "ceil",
    }


def _pair(layer: Layer, message: str, fields: tuple[int, ...], default: int) -> tuple[int, int]:
    """Returns (height, width) of a setting that is stated once for both, or for each."""
    both = layer.numbers(message, fields[0]) or [default]
    sides = [layer.numbers(message, field) for field in fields[1:]] or [[], []]
    height, width = ((side or [both[i if len(both) > 1 else 0]])[-1] for i, side in enumerate(sides))
    return height, width


def _squeezenext(layers: dict[str, list[np.ndarray]]) -> tuple[str | None, Rules]:
    """Returns the model and the names of its numbered layers; None and no names for another network."""
    shapes = [layers[name][0].shape for name in ("Convolution1", "Convolution2", "Convolution3") if name in layers]
    if [len(shape) for shape in shapes] != [4, 4, 4]:
        return None, ()
    name = SQUEEZENEXTS.get((shapes[0][-1], shapes[1][0], shapes[2][1]))
    if name is None:
        return None, ()
    ours = ["conv1"]
    for block, settings in create(name).blocks():
        parts = ("reduce1", "reduce2", "first", "second", "expand")
        ours += [f"{block}/{part}" for part in (("shortcut", *parts) if settings.is_first else parts)]
    ours.append("conv_last")
    rules = [(rf"^Convolution{i}$", unit) for i, unit in enumerate(ours, start=1)]
    rules += [(rf"^(?:BatchNorm|Scale){i}$", f"{unit}_bn") for i, unit in enumerate(ours, start=1)]
    return name, [*rules, (r"^fc1000$", "fc")]


def to_leaves(path: pathlib.Path, layers: Sequence[Layer], name_of: Callable[[str], str]) -> Leaves:
    """Converts blobs to this project's names and layout; unknown names are kept, to be reported later.

    A batch norm in Caffe has a layer with the sums of the means and variances and their weight, and a layer with scale
    and bias.

    Args:
      path: the file, for messages.
      layers: the layers.
      name_of: returns our name of a layer.

    Raises:
      WeightError: a layer has blobs of other shapes than a convolution, a dense layer or batch norm.
    """
    leaves: Leaves = {}
    for layer in layers:
        if not layer.blobs:
            continue
        name = name_of(layer.name)
        # Old files give every blob four axes.
        dense = (np.squeeze(blob) if name == "fc" or name.endswith("_bn") else blob for blob in layer.blobs)
        blobs = [np.atleast_1d(blob) for blob in dense]
        ranks = [blob.ndim for blob in blobs]
        if ranks == [1, 1, 1] and blobs[2].size == 1:
            weight = 1 / blobs[2][0] if blobs[2][0] else 0
            leaves[f"batch_stats/{name}/mean"], leaves[f"batch_stats/{name}/var"] = (
                np.float32(blob * weight) for blob in blobs[:2]
            )
        elif ranks == [1, 1]:
            leaves[f"params/{name}/scale"], leaves[f"params/{name}/bias"] = blobs
        elif ranks[0] in (2, 4) and len(blobs) <= 2:
            leaves[f"params/{name}/kernel"] = blobs[0].transpose(*range(2, ranks[0]), 1, 0)
            if len(blobs) == 2:
                leaves[f"params/{name}/bias"] = blobs[1].ravel()
        else:
            raise WeightError(
                f"{path} is not an intact .caffemodel of a network here: the layer {shown(layer.name)!r} has blobs of "
                f"shapes {[blob.shape for blob in blobs][:5]}."
            )
    stem = leaves.get("params/conv1/kernel")
    if stem is not None and stem.ndim == 4:  # Caffe's channel order is BGR
        leaves["params/conv1/kernel"] = stem[:, :, ::-1]
    return leaves
