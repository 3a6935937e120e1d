"""The networks: SqueezeNet's family and what it is compared with. Create, list, register and summarize them."""

import dataclasses
from typing import Any

from squeeze_jax.models.alexnet import AlexNet
from squeeze_jax.models.efficientnet import EfficientNetB0
from squeeze_jax.models.mobilenet import MobileNetV2
from squeeze_jax.models.registry import TORCHVISION_IMAGENET, create, list_models, override_types, register, registered
from squeeze_jax.models.resnet import ResNet
from squeeze_jax.models.shufflenet import ShuffleNetV2
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.models.squeezenext import SqueezeNext
from squeeze_jax.models.squeezenodule import SqueezeNoduleNet
from squeeze_jax.models.summary import summarize

__all__ = [
    "AlexNet",
    "EfficientNetB0",
    "MobileNetV2",
    "ResNet",
    "ShuffleNetV2",
    "SqueezeNet",
    "SqueezeNext",
    "SqueezeNoduleNet",
    "create",
    "list_models",
    "override_types",
    "register",
    "registered",
    "summarize",
]

_V1_0: dict[str, Any] = {"stem": "7x7/2", "stem_filters": 96, "pool_after": (1, 4, 8)}
_V1_1: dict[str, Any] = {"stem": "3x3/2", "stem_filters": 64, "pool_after": (1, 3, 5)}

register("squeezenet_v1_0", SqueezeNet, **_V1_0)
register("squeezenet_v1_1", SqueezeNet, **_V1_1)
register("squeezenet_v1_0_simple_bypass", SqueezeNet, **_V1_0, bypass="simple")
register("squeezenet_v1_0_complex_bypass", SqueezeNet, **_V1_0, bypass="complex")
register("squeezenodule_v1", SqueezeNoduleNet, **_V1_0, squeeze_ratio=0.25)
register("squeezenodule_v2", SqueezeNoduleNet, **_V1_0, squeeze_ratio=(0.5,) * 6 + (0.25,) * 2)

_V5: dict[str, Any] = {"stem": "5x5/2", "depths": (2, 4, 14, 1), "reduce_shortcut": True}

register("squeezenext_1_0_23", SqueezeNext)
register("squeezenext_1_0_g_23", SqueezeNext, groups=2)
register("squeezenext_1_0_23v5", SqueezeNext, **_V5)
register("squeezenext_2_0_23", SqueezeNext, width=2.0)
register("squeezenext_2_0_23v5", SqueezeNext, width=2.0, **_V5)

register("alexnet", AlexNet, input=TORCHVISION_IMAGENET)
register("alexnet_grouped", AlexNet, grouped=True)
register("resnet18", ResNet, input=TORCHVISION_IMAGENET)
register("mobilenet_v2", MobileNetV2, input=TORCHVISION_IMAGENET)
register("shufflenet_v2_x0_5", ShuffleNetV2, input=TORCHVISION_IMAGENET, stage_filters=(48, 96, 192))
register("shufflenet_v2_x1_0", ShuffleNetV2, input=TORCHVISION_IMAGENET)
register("efficientnet_b0", EfficientNetB0, input=dataclasses.replace(TORCHVISION_IMAGENET, interpolation="bicubic"))
