"""Reads the state dicts of torchvision's networks (`.safetensors`, and the files of torch.save) without PyTorch.

A state dict has names and shapes, and no graph: it is taken for the network here that has them all, in its published
form. Their names may have a prefix that a wrapper of PyTorch adds, such as "module.".
"""

import math
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from squeeze_jax.errors import WeightError, shown
from squeeze_jax.models.efficientnet import EfficientNetB0
from squeeze_jax.models.registry import TORCHVISION_IMAGENET, registered
from squeeze_jax.models.squeezenet import FIRST_FIRE, SqueezeNet
from squeeze_jax.pretrained import pth
from squeeze_jax.pretrained.weights import (
    Leaves,
    Rules,
    Weights,
    class_names_for,
    imagenet_config,
    make_weights,
    read_bytes,
    rename,
)

# In a torchvision `Sequential`, a convolution is followed by its normalization.
PAIRS: Rules = ((r"\.0$", ""), (r"\.1$", "_bn"))


def _squeezenet(*places: int) -> Rules:
    """Returns the rules of SqueezeNet, whose Fire modules have these indices in `features`."""
    fires = [(rf"^features\.{place}\.", f"fire{i}/") for i, place in enumerate(places, start=FIRST_FIRE)]
    ends = [(r"^features\.0$", "conv1"), (r"^classifier\.1$", SqueezeNet.head), (r"/squeeze$", "/squeeze1x1")]
    return [*fires, *ends]


def _efficientnet() -> Rules:
    """Returns the rules of EfficientNet, whose blocks are numbered within their stage."""
    counts = [count for *_, count, _ in EfficientNetB0.table]
    places = [(stage, i) for stage, count in enumerate(counts, start=1) for i in range(count)]
    blocks = [(rf"^features\.{stage}\.{i}\.block\.", f"block{n}/") for n, (stage, i) in enumerate(places, start=1)]
    parts = [
        (r"^block1/(\d)", lambda found: f"block1/{int(found[1]) + 1}"),  # the only block without an expansion
        (r"/0\.", "/expand."),
        (r"/1\.", "/depthwise."),
        (r"/2\.fc1$", "/squeeze"),
        (r"/2\.fc2$", "/excite"),
        (r"/3\.", "/project."),
    ]
    ends = [(r"^features\.0\.", "conv1."), (r"^features\.8\.", "conv_last."), (r"^classifier\.1$", "fc")]
    return [*ends, *blocks, *parts, *PAIRS]


MOBILENET_V2: Rules = (
    (r"^features\.0\.", "conv1."),
    (r"^features\.18\.", "conv_last."),
    (r"^classifier\.1$", "fc"),
    (r"^features\.1\.conv\.0\.", "block1/depthwise."),  # the only block without an expansion
    (r"^features\.1\.conv\.1$", "block1/project.0"),
    (r"^features\.1\.conv\.2$", "block1/project.1"),
    (r"^features\.(\d+)\.conv\.0\.", r"block\1/expand."),
    (r"^features\.(\d+)\.conv\.1\.", r"block\1/depthwise."),
    (r"^features\.(\d+)\.conv\.2$", r"block\1/project.0"),
    (r"^features\.(\d+)\.conv\.3$", r"block\1/project.1"),
    *PAIRS,
)
SHUFFLENET_V2: Rules = (
    (r"^conv5\.", "conv_last."),
    (r"^(stage\d)\.(\d)\.", r"\1_\2/"),
    (r"branch1\.0$", "shortcut_depthwise"),
    (r"branch1\.1$", "shortcut_depthwise_bn"),
    (r"branch1\.2$", "shortcut"),
    (r"branch1\.3$", "shortcut_bn"),
    (r"branch2\.0$", "conv1"),
    (r"branch2\.1$", "conv1_bn"),
    (r"branch2\.3$", "depthwise"),
    (r"branch2\.4$", "depthwise_bn"),
    (r"branch2\.5$", "conv2"),
    (r"branch2\.6$", "conv2_bn"),
    *PAIRS,
)
RESNET: Rules = (
    (r"^layer(\d)\.(\d)\.", r"stage\1_\2/"),
    (r"downsample", "shortcut"),
    (r"\bbn(\d)$", r"conv\1_bn"),
    *PAIRS,
)
ALEXNET: Rules = tuple(
    (rf"^{theirs}$", ours)
    for theirs, ours in {
        **{rf"features\.{place}": f"conv{i}" for i, place in enumerate((0, 3, 6, 8, 10), start=1)},
        **{rf"classifier\.{place}": f"fc{i}" for i, place in enumerate((1, 4, 6), start=6)},
    }.items()
)


class Published(NamedTuple):
    """How to recognize a network's state dict, by one of its tensors, and to rename its layers."""

    model: str
    tensor: str
    shape: tuple[int, ...]
    rules: Rules


NETWORKS = (
    Published("squeezenet_v1_0", "features.0.weight", (96, 3, 7, 7), _squeezenet(3, 4, 5, 7, 8, 9, 10, 12)),
    Published("squeezenet_v1_1", "features.0.weight", (64, 3, 3, 3), _squeezenet(3, 4, 6, 7, 9, 10, 11, 12)),
    Published("alexnet", "features.0.weight", (64, 3, 11, 11), ALEXNET),
    Published("resnet18", "layer1.0.conv2.weight", (64, 64, 3, 3), RESNET),
    Published("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3), MOBILENET_V2),
    Published("shufflenet_v2_x0_5", "stage2.0.branch1.2.weight", (24, 24, 1, 1), SHUFFLENET_V2),
    Published("shufflenet_v2_x1_0", "stage2.0.branch1.2.weight", (58, 24, 1, 1), SHUFFLENET_V2),
    Published("efficientnet_b0", "features.1.0.block.0.0.weight", (32, 1, 3, 3), _efficientnet()),
)
# The channels and sides of maps that torchvision flattens, by the layer that takes them.
FLATTENED = {"fc6": (256, 6, 6)}
COUNTER = "num_batches_tracked"  # of training steps; not needed

AVERAGED = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
# What wrappers put before the names: DataParallel, Lightning, torch.compile, a network within a network.
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "network.")
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I64": "<i8", "I32": "<i4"}


def read_safetensors(path: pathlib.Path) -> Weights:
    """Reads a state dict in a safetensors file; errors are those of `read_pth`."""
    return _weights(path, from_safetensors(path))


def read_pth(path: pathlib.Path) -> Weights:
    """Reads a state dict in a file of torch.save.

    Raises:
      WeightError: the file is damaged or of another network, or its pickle uses more than a state dict needs.
    """
    return _weights(path, pth.read_tensors(path))


def _weights(path: pathlib.Path, state: dict[str, np.ndarray]) -> Weights:
    for network in NETWORKS:
        prefix = _prefix(state, network)
        if prefix is None:
            continue
        images = registered(network.model).input
        if network.model.startswith("squeezenet"):  # the registry has the authors' own
            images = TORCHVISION_IMAGENET
        config = imagenet_config(network.model, images)
        try:
            names = [name.removeprefix(prefix) for name in state]
            if len(set(names)) < len(names):
                raise WeightError(f"it has names with and without {shown(prefix)}, which mean the same weights")
            leaves = to_leaves(dict(zip(names, state.values(), strict=True)), network.rules)
        except WeightError as error:
            raise WeightError(f"{path} is not a state dict of {network.model}: {error}") from error
        return make_weights(path, config, leaves, class_names_for(leaves, registered(network.model).network.head))
    raise WeightError(
        f"{path} is not a state dict of a network here ({', '.join(network.model for network in NETWORKS)}); it has "
        f"{', '.join(shown(name) for name in list(state)[:3])}, ..."
    )


def _prefix(state: dict[str, np.ndarray], network: Published) -> str | None:
    """Returns the prefix of all names if the state dict may be of this network; None if it is not."""
    for name, value in state.items():
        prefix = name.removesuffix(network.tensor)
        if name.endswith(network.tensor) and value.shape == network.shape:
            rest = prefix
            while known := next((part for part in PREFIXES if rest.startswith(part)), ""):
                rest = rest.removeprefix(known)
            if not rest:
                return prefix
    return None


def to_leaves(state: dict[str, np.ndarray], rules: Rules) -> Leaves:
    """Converts tensors to this project's names and layout; unknown names are kept, to be reported later.

    Args:
      state: name -> tensor; kernels are (out, in, height, width) or (out, in).
      rules: how the layers are renamed.

    Returns:
      float32 arrays; kernels are (height, width, in, out) or (in, out).

    Raises:
      WeightError: a tensor holds whole numbers, or two tensors are one of ours.
    """
    leaves = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == COUNTER or name == AVERAGED:
            continue
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise WeightError(
                f"{shown(name)} holds {value.dtype} values; expected float values, not a quantized network"
            )
        layer, value = rename(layer, rules), value.astype(np.float32)
        if kind == "weight" and layer in FLATTENED and value.shape[1:] == (math.prod(FLATTENED[layer]),):
            value = value.reshape(-1, *FLATTENED[layer])
        if kind == "weight" and value.ndim > 1:
            value = value.transpose(*range(2, value.ndim), 1, 0)
        stored = f"params/{layer}/{kind}"
        if kind == "weight":
            stored = f"params/{layer}/{'kernel' if value.ndim > 1 else 'scale'}"
        elif kind.startswith("running_"):
            stored = f"batch_stats/{layer}/{kind.removeprefix('running_')}"
        if stored in leaves:
            raise WeightError(f"{shown(name)} and another tensor are both {stored}")
        leaves[stored] = value
    return leaves


def from_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file, by name.

    Raises:
      WeightError: the file is damaged, or holds values of another type than `DTYPES`.
    """
    data = read_bytes(path)
    try:
        stored = safetensors.deserialize(data)
    except Exception as error:  # the library raises errors of many kinds
        raise WeightError(f"{path} is not an intact safetensors file: {shown(str(error))}") from error
    state = {}
    for name, tensor in stored:
        dtype = DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise WeightError(
                f"{path} has values of {shown(tensor['dtype'])} in {shown(name)}; expected one of {', '.join(DTYPES)}."
            )
        state[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return state
