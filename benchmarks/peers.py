"""Builds our networks in PyTorch, Keras and ONNX, layer by layer, for benchmarks/networks.py.

`layers_of` lists the layers of one of our models. Each peer is built from that list and gets our weights by name, so
that its logits can be compared with ours before anything is timed.
"""

import dataclasses
from typing import Any

import numpy as np

from squeeze_jax.models.layers import POOL_STRIDE, POOL_WINDOW
from squeeze_jax.models.squeezenet import FIRST_FIRE, STEMS, SqueezeNet


@dataclasses.dataclass(frozen=True)
class Conv:
    name: str
    in_channels: int
    features: int
    kernel: int = 1
    stride: int = 1
    batch_norm: bool = False
    relu: bool = True
    margin: int = 0  # of the head

    @property
    def padding(self) -> int:
        return self.margin + (self.kernel // 2 if self.stride == 1 else 0)


@dataclasses.dataclass(frozen=True)
class Fire:
    squeeze: Conv
    expand: tuple[Conv, ...]
    has_bypass: bool


@dataclasses.dataclass(frozen=True)
class Pool:
    pass


def layers_of(model: SqueezeNet, channels: int) -> list[Conv | Fire | Pool]:
    """Returns the layers of a network without complex bypass, from the images to conv10 and its ReLU."""
    kernel, stride = STEMS[model.stem]
    norm = model.use_batch_norm
    found: list[Conv | Fire | Pool] = [Conv("conv1", channels, model.stem_filters, kernel, stride, norm)]
    channels = model.stem_filters
    for layer, widths in enumerate(model.fire_widths(), start=FIRST_FIRE):
        if layer - 1 in model.pool_after:
            found.append(Pool())
        branches = ((1, "expand1x1", widths.expand1x1), (3, "expand3x3", widths.expand3x3))
        expand = tuple(
            Conv(f"fire{layer}/{name}", widths.squeeze, features, kernel, batch_norm=norm)
            for kernel, name, features in branches
            if features
        )
        squeeze = Conv(f"fire{layer}/squeeze1x1", channels, widths.squeeze, batch_norm=norm)
        out = sum(conv.features for conv in expand)
        found.append(Fire(squeeze, expand, model.bypass == "simple" and channels == out))
        channels = out
    return [*found, Conv("conv10", channels, model.num_classes, relu=model.head_relu, margin=model.head_margin)]


def torch_network(layers: list, rank: int, dropout_rate: float, weights: dict[str, np.ndarray]) -> Any:
    """Returns a torch.nn.Module for images (batch, channels, *spatial)."""
    import torch
    from torch import nn

    conv_of, norm_of, pool_of = (getattr(nn, f"{kind}{rank}d") for kind in ("Conv", "BatchNorm", "MaxPool"))

    def block(layer: Conv) -> nn.Sequential:
        conv = conv_of(
            layer.in_channels, layer.features, layer.kernel, layer.stride, layer.padding, bias=not layer.batch_norm
        )
        with torch.no_grad():
            kernel = weights[f"params/{layer.name}/kernel"]
            conv.weight.copy_(torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()))
            if conv.bias is not None:
                conv.bias.copy_(torch.from_numpy(weights[f"params/{layer.name}/bias"]))
        parts = [conv]
        if layer.batch_norm:
            parts.append(norm_of(layer.features, eps=1e-5))
        if layer.relu:
            parts.append(nn.ReLU(inplace=True))
        return nn.Sequential(*parts)

    class FireModule(nn.Module):
        def __init__(self, fire: Fire):
            super().__init__()
            self.squeeze = block(fire.squeeze)
            self.expand = nn.ModuleList(map(block, fire.expand))
            self.has_bypass = fire.has_bypass

        def forward(self, x):
            squeezed = self.squeeze(x)
            expanded = torch.cat([branch(squeezed) for branch in self.expand], dim=1)
            return expanded + x if self.has_bypass else expanded

    def module(layer: Conv | Fire | Pool) -> nn.Module:
        if isinstance(layer, Pool):
            return pool_of(POOL_WINDOW, POOL_STRIDE, ceil_mode=True)
        return FireModule(layer) if isinstance(layer, Fire) else block(layer)

    *trunk, head = layers
    average = getattr(nn, f"AdaptiveAvgPool{rank}d")(1)
    return nn.Sequential(*map(module, trunk), nn.Dropout(dropout_rate), module(head), average, nn.Flatten())


def keras_network(layers: list, spatial: tuple[int, ...], dropout_rate: float, weights: dict[str, np.ndarray]) -> Any:
    """Returns a Keras model for images (batch, *spatial, channels)."""
    import keras
    from keras import layers as kl

    rank = len(spatial)
    conv_of, pool_of = getattr(kl, f"Conv{rank}D"), getattr(kl, f"MaxPooling{rank}D")

    def block(x: Any, layer: Conv) -> Any:
        if layer.margin:
            raise ValueError(f"{layer.name} has a margin, which the Keras benchmark does not support.")
        padding = "same" if layer.padding else "valid"
        conv = conv_of(layer.features, layer.kernel, layer.stride, padding, use_bias=not layer.batch_norm)
        x = conv(x)
        bias = [] if layer.batch_norm else [weights[f"params/{layer.name}/bias"]]
        conv.set_weights([weights[f"params/{layer.name}/kernel"], *bias])
        if layer.batch_norm:
            x = kl.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        return kl.ReLU()(x) if layer.relu else x

    x = images = keras.Input((*spatial, layers[0].in_channels))
    for layer in layers[:-1]:
        if isinstance(layer, Pool):
            # Keras has no ceil mode, but "same" adds the one cell of padding at the end that ceil mode needs.
            beyond = (x.shape[1] - POOL_WINDOW) % POOL_STRIDE
            x = pool_of(POOL_WINDOW, POOL_STRIDE, "same" if beyond else "valid")(x)
        elif isinstance(layer, Fire):
            squeezed = block(x, layer.squeeze)
            branches = [block(squeezed, branch) for branch in layer.expand]
            expanded = kl.Concatenate()(branches) if len(branches) > 1 else branches[0]
            x = kl.Add()([expanded, x]) if layer.has_bypass else expanded
        else:
            x = block(x, layer)
    x = block(kl.Dropout(dropout_rate)(x), layers[-1])
    return keras.Model(images, getattr(kl, f"GlobalAveragePooling{rank}D")()(x))


def onnx_network(layers: list, rank: int, weights: dict[str, np.ndarray]) -> bytes:
    """Returns a serialized ONNX model for images (batch, channels, *spatial), for inference without batch norm."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors = [], []

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def block(x: str, layer: Conv) -> str:
        if layer.batch_norm:
            raise ValueError(f"{layer.name} has batch norm, which the ONNX benchmark does not support.")
        kernel = np.moveaxis(weights[f"params/{layer.name}/kernel"], (-1, -2), (0, 1))
        for suffix, value in (("kernel", kernel), ("bias", weights[f"params/{layer.name}/bias"])):
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{layer.name}/{suffix}"))
        inputs = [x, f"{layer.name}/kernel", f"{layer.name}/bias"]
        x = node("Conv", inputs, strides=[layer.stride] * rank, pads=[layer.padding] * 2 * rank)
        return node("Relu", [x]) if layer.relu else x

    x = "images"
    for layer in layers:
        if isinstance(layer, Pool):
            x = node("MaxPool", [x], kernel_shape=[POOL_WINDOW] * rank, strides=[POOL_STRIDE] * rank, ceil_mode=1)
        elif isinstance(layer, Fire):
            squeezed = block(x, layer.squeeze)
            expanded = node("Concat", [block(squeezed, branch) for branch in layer.expand], axis=1)
            x = node("Add", [expanded, x]) if layer.has_bypass else expanded
        else:
            x = block(x, layer)
    x = node("Flatten", [node("GlobalAveragePool", [x])])
    shape = ["batch", layers[0].in_channels, *[None] * rank]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "squeezenet", [images], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
