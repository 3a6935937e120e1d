"""Networks outside of SqueezeNet's family in PyTorch, with our weights: torchvision's, and those that it lacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from squeeze_jax import models
from squeeze_jax.models import alexnet, squeezenext
from squeeze_jax.models.convnet import SMALL_STEM
from squeeze_jax.pretrained.torchvision import NETWORKS, to_leaves

RULES = {published.model: published.rules for published in NETWORKS}


def torch_network(name: str, options: Mapping[str, Any], channels: int, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """Returns a network for images (batch, channels, height, width).

    Args:
      name: a name of the registry outside of SqueezeNet's family.
      options: "num_classes", and "stem" if it is the small one.
      channels: of the images.
      weights: our arrays by path, such as "params/conv1/kernel".
    """
    small = options.get("stem") == SMALL_STEM
    classes = options.get("num_classes", 1000)
    if name.startswith("squeezenext"):
        return SqueezeNext(models.create(name, **options), weights)
    if name == "alexnet_grouped":
        return GroupedAlexNet(channels, classes, weights, small)
    model = getattr(torchvision.models, name)(num_classes=classes)
    if small:
        _shrink_stem(name, model)
    state = model.state_dict()
    for key, tensor in state.items():
        for ours in to_leaves({key: tensor.numpy()}, RULES[name]):
            state[key] = _tensor(weights[ours], tuple(tensor.shape))
    model.load_state_dict(state)
    return model


def _shrink_stem(name: str, model: nn.Module) -> None:
    """Gives a network of torchvision our stem for small images."""
    if name == "alexnet":
        model.features[0] = nn.Conv2d(3, 64, 3, padding=1)
    elif name == "resnet18":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif name.startswith("shufflenet"):
        model.conv1[0].stride = (1, 1)
        model.maxpool = nn.Identity()
    else:
        model.features[0][0].stride = (1, 1)


def _tensor(value: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns our array as a tensor of PyTorch's layout: (..., in, out) becomes (out, in, ...)."""
    if value.ndim > 1:
        value = np.moveaxis(value, (-1, -2), (0, 1))
    return torch.from_numpy(np.array(value).reshape(shape))


class SqueezeNext(nn.Module):
    """The network of squeeze_jax.models.squeezenext, with its fresh statistics."""

    def __init__(self, model: squeezenext.SqueezeNext, weights: Mapping[str, np.ndarray]):
        super().__init__()
        self._weights = weights
        kernel, stride = model.stems[model.stem]
        stem = [self._unit("conv1", stride=stride, padding=kernel // 2 if stride == 1 else 0)]
        if model.stem != SMALL_STEM:
            stem.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList()
        for name, block in model.blocks():
            groups, inner = model.groups, 1 if block.is_first and model.reduce_shortcut else block.stride
            padding = [(1, 0), (0, 1)] if block.vertical else [(0, 1), (1, 0)]
            parts = [
                self._unit(f"{name}/reduce1", stride=inner, groups=groups),
                self._unit(f"{name}/reduce2"),
                self._unit(f"{name}/first", padding=padding[0], groups=groups),
                self._unit(f"{name}/second", padding=padding[1], groups=groups),
                self._unit(f"{name}/expand"),
            ]
            shortcut = self._unit(f"{name}/shortcut", stride=block.stride) if block.is_first else nn.Identity()
            self.blocks.append(nn.ModuleList([shortcut, nn.Sequential(*parts)]))
        self.reduces_shortcut = model.reduce_shortcut
        self.last = self._unit("conv_last")
        self.head = nn.Linear(squeezenext.LAST_FILTERS, model.num_classes, bias=f"params/{model.head}/bias" in weights)
        with torch.no_grad():
            kernel = weights[f"params/{model.head}/kernel"]
            self.head.weight.copy_(_tensor(kernel, tuple(self.head.weight.shape)))
        del self._weights

    def _unit(self, name: str, *, stride: int = 1, padding: Any = 0, groups: int = 1) -> nn.Sequential:
        kernel = self._weights[f"params/{name}/kernel"]
        height, width, inputs, outputs = kernel.shape
        conv = nn.Conv2d(inputs * groups, outputs, (height, width), stride, padding, groups=groups, bias=False)
        with torch.no_grad():
            conv.weight.copy_(_tensor(kernel, tuple(conv.weight.shape)))
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for shortcut, parts in self.blocks:
            kept = shortcut(x)
            x = torch.relu(kept + parts(kept if self.reduces_shortcut else x))
        return self.head(self.last(x).mean((2, 3)))


class GroupedAlexNet(nn.Sequential):
    """The grouped network of squeeze_jax.models.alexnet."""

    def __init__(self, channels: int, classes: int, weights: Mapping[str, np.ndarray], small: bool):
        filters = alexnet.FILTERS[True]
        layers: list[nn.Module] = []
        for i, outputs in enumerate(filters, start=1):
            if i == 1:
                conv = nn.Conv2d(channels, outputs, 3, padding=1) if small else nn.Conv2d(channels, outputs, 11, 4)
            else:
                size, groups = alexnet.KERNELS[i - 2], 2 if i in alexnet.GROUPED else 1
                conv = nn.Conv2d(filters[i - 2], outputs, size, padding=size // 2, groups=groups)
            layers += [conv, nn.ReLU(inplace=True)]
            if i in alexnet.POOL_AFTER[:2]:
                layers.append(nn.LocalResponseNorm(alexnet.NEIGHBORS, alexnet.ALPHA, alexnet.BETA))
            if i in alexnet.POOL_AFTER:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        hidden, pooled = alexnet.HIDDEN, alexnet.POOLED_SIZE
        layers += [nn.AdaptiveAvgPool2d(pooled), nn.Flatten()]
        layers += [nn.Linear(filters[-1] * pooled**2, hidden), nn.ReLU(inplace=True), nn.Dropout()]
        layers += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, classes)]
        super().__init__(*layers)
        named = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
        names = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
        with torch.no_grad():
            for name, layer in zip(names, named, strict=True):
                layer.weight.copy_(_tensor(weights[f"params/{name}/kernel"], tuple(layer.weight.shape)))
                layer.bias.copy_(_tensor(weights[f"params/{name}/bias"], tuple(layer.bias.shape)))
