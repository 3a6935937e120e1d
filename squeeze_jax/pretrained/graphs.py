"""The operations of a network in another program's file, compared with those of a network here.

Many networks have the names and shapes of SqueezeNet and compute something else: with additions, another activation,
another stride. Each importer turns its file into `Operation`s, which say what is computed in one vocabulary; `match`
compares them with what a network here computes and names the first one that differs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from squeeze_jax.errors import WeightError, shown
from squeeze_jax.models.convnet import ConvNet
from squeeze_jax.models.layers import POOL_STRIDE, POOL_WINDOW
from squeeze_jax.models.squeezenet import FIRST_FIRE, NUM_FIRE_MODULES, STEMS, SqueezeNet
from squeeze_jax.models.squeezenext import LAST_FILTERS, STEM_FILTERS, SqueezeNext

# Kinds of operations; an operation that is none of these keeps the name of its type, and fits nowhere.
CONVOLUTION, RELU, POOLING, CONCATENATION, ADDITION = "convolution", "ReLU", "pooling", "concatenation", "addition"
NORMALIZATION, SCALE, DENSE = "batch normalization", "scale", "dense layer"
FLATTEN, SOFTMAX = "flatten", "softmax"
AFTERWARDS = (FLATTEN, SOFTMAX)  # what may follow the logits; the task of a network applies softmax itself
IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one layer or node computes.

    Attributes:
      kind: one of the kinds above, or the name of another type.
      name: its name; for an operation of a network here, the name of the layer.
      inputs: the names of the tensors that it takes, without weights.
      output: the name of the tensor that it computes.
      options: such as kernel and stride, (height, width); what a file leaves open is missing, and not compared.
      label: how its own program calls it, for messages.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{shown(self.label or self.kind)} {shown(self.name)!r}"

    def differing(self, wanted: "Operation", inputs: tuple[str, ...]) -> str:
        """Returns how this operation differs from the wanted one, which takes `inputs`; nothing if it is the same."""
        if self.kind != wanted.kind:
            return f"expected {wanted.kind} there ({wanted.name})"
        ours, theirs = (inputs, self.inputs) if self.kind != ADDITION else (sorted(inputs), sorted(self.inputs))
        if ours != theirs:
            return f"it takes {', '.join(map(shown, theirs))}; expected {', '.join(map(shown, ours))} for {wanted.name}"
        lines = [
            f"{option} {shown(str(self.options[option]))} instead of {value}"
            for option, value in wanted.options.items()
            if option in self.options and self.options[option] != value
        ]
        return f"it has the {', the '.join(lines)} of {wanted.name}" if lines else ""


def match(wanted: Sequence[Operation], found: Sequence[Operation], images: str) -> tuple[dict[str, Operation], str]:
    """Finds the operations of a network among those of a file.

    Args:
      wanted: the operations of a network here, in order, see `operations`.
      found: all operations that the file's output depends on, in the order of the file.
      images: the name of the tensor of the images in the file.

    Returns:
      The found operation of each wanted one, by the latter's name, and the name of the file's last tensor.

    Raises:
      WeightError: an operation is missing, left over or different; the message names the first one.
    """
    tensors, matched, unused = {IMAGES: images}, {}, list(found)
    last = images
    for operation in wanted:
        inputs = tuple(tensors[name] for name in operation.inputs)
        candidates = [other for other in unused if set(inputs) & set(other.inputs)]
        same = next((other for other in candidates if not other.differing(operation, inputs)), None)
        if same is None:
            if not candidates:
                after = f"after {shown(inputs[0])!r}, "
                raise WeightError(f"{after}nothing follows; expected {operation.kind} ({operation.name})")
            closest = min(candidates, key=lambda other: other.kind != operation.kind)
            raise WeightError(f"{closest} differs: {closest.differing(operation, inputs)}")
        unused.remove(same)
        matched[operation.name] = same
        tensors[operation.output] = last = same.output
    kinds: list[str] = []
    while after := [other for other in unused if other.kind in AFTERWARDS and other.inputs == (last,)]:
        kinds.append(after[0].kind)
        if kinds.count(SOFTMAX) > 1:  # that of a softmax is another function
            break
        unused.remove(after[0])
        last = after[0].output
    if unused:
        raise WeightError(f"{unused[0]} is left over: the network has no such operation")
    return matched, last


def variant(found: Sequence[Operation]) -> dict[str, Any]:
    """Returns the attributes of SqueezeNet that the operations of a file tell apart.

    They are only the nearest ones; `match` decides whether the file is that network.
    """
    convolutions = [operation for operation in found if operation.kind == CONVOLUTION]
    attributes: dict[str, Any] = {"bypass": "none"}
    if any(operation.kind == ADDITION for operation in found):
        is_complex = len(convolutions) > 2 + 3 * NUM_FIRE_MODULES
        attributes["bypass"] = "complex" if is_complex else "simple"
    for operation in found:
        if operation.kind == POOLING and "rounding" in operation.options:
            attributes["pooling"] = operation.options["rounding"]
            break
    if convolutions:
        head = convolutions[-1]
        attributes["head_relu"] = any(other.kind == RELU and other.inputs == (head.output,) for other in found)
        if "padding" in head.options:
            attributes["head_padding"] = any(head.options["padding"])
    return attributes


def with_whole_maps(found: Sequence[Operation], model: ConvNet, size: int) -> list[Operation]:
    """Returns the operations with averages over a window as large as the head's map as averages over the whole map.

    Args:
      found: the operations of a file.
      model: the network that they should be.
      size: the side of its images in pixels.
    """
    for stage in model.stages():
        size = stage.output_size(size)
    size += 2 * model.head_margin
    return [
        dataclasses.replace(operation, options={**operation.options, "whole": True})
        if operation.options.get("whole") == (size, size)
        else operation
        for operation in found
    ]


def operations(model: ConvNet) -> list[Operation]:
    """Returns what a network computes, in order: SqueezeNet without batch norm, or SqueezeNext."""
    made = _Operations()
    (made.squeezenet if isinstance(model, SqueezeNet) else made.squeezenext)(model)
    return made.made


class _Operations:
    """Writes down the operations of a network; each method returns the name of the tensor that it computes."""

    def __init__(self):
        self.made: list[Operation] = []

    def add(self, kind: str, name: str, *inputs: str, **options: Any) -> str:
        self.made.append(Operation(kind, name, inputs, name, options))
        return name

    def convolution(
        self,
        x: str,
        name: str,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        same: bool = True,
        padding: int = 0,
        groups: int = 1,
        relu: bool = True,
        normalize: bool = False,
    ) -> str:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        sides = tuple(size // 2 for size in kernel) if same else (padding, padding)
        x = self.add(
            CONVOLUTION,
            name,
            x,
            kernel=kernel,
            stride=(stride, stride),
            padding=sides * 2,
            dilation=(1, 1),
            groups=groups,
            outputs=outputs,
        )
        if normalize:
            x = self.add(SCALE, f"{name}_bn scale", self.add(NORMALIZATION, f"{name}_bn", x, epsilon=1e-5))
        return self.add(RELU, f"{name} ReLU", x) if relu else x

    def pool(self, x: str, name: str, rounding: str) -> str:
        window, stride = (POOL_WINDOW,) * 2, (POOL_STRIDE,) * 2
        options = {"kernel": window, "stride": stride, "padding": (0,) * 4, "dilation": (1, 1), "rounding": rounding}
        return self.add(POOLING, name, x, method="max", **options)

    def squeezenet(self, model: SqueezeNet) -> str:
        kernel, stride = STEMS[model.stem]
        x = self.convolution(IMAGES, "conv1", model.stem_filters, kernel, stride=stride, same=stride == 1)
        x = self.pool(x, "pool1", model.pooling) if 1 in model.pool_after else x
        channels = model.stem_filters
        for layer, widths in enumerate(model.fire_widths(), start=FIRST_FIRE):
            name, before = f"fire{layer}", x
            squeezed = self.convolution(before, f"{name}/squeeze1x1", widths.squeeze, 1)
            branches = [
                self.convolution(squeezed, f"{name}/expand{size}x{size}", outputs, size)
                for size, outputs in ((1, widths.expand1x1), (3, widths.expand3x3))
            ]
            x = self.add(CONCATENATION, f"{name} concatenation", *branches, axis=1)
            expanded = widths.expand1x1 + widths.expand3x3
            if model.bypass != "none" and expanded == channels:
                x = self.add(ADDITION, f"{name} bypass", before, x)
            elif model.bypass == "complex":
                x = self.add(ADDITION, f"{name} bypass", x, self.convolution(before, f"{name}/bypass1x1", expanded, 1))
            channels = expanded
            x = self.pool(x, f"pool{layer}", model.pooling) if layer in model.pool_after else x
        padding = int(model.head_padding)
        x = self.convolution(x, model.head, model.num_classes, 1, same=False, padding=padding, relu=model.head_relu)
        return self.add(POOLING, "mean", x, method="mean", whole=True)

    def squeezenext(self, model: SqueezeNext) -> str:
        def unit(x: str, name: str, outputs: int, kernel: int | tuple[int, int], **options: Any) -> str:
            return self.convolution(x, name, outputs, kernel, normalize=True, **options)

        kernel, stride = model.stems[model.stem]
        x = self.pool(unit(IMAGES, "conv1", STEM_FILTERS, kernel, stride=stride, same=False), "pool1", "ceil")
        for name, block in model.blocks():
            filters, stride, before = block.filters, block.stride, x
            shortcut = unit(before, f"{name}/shortcut", filters, 1, stride=stride) if block.is_first else before
            if block.is_first and model.reduce_shortcut:
                before, stride = shortcut, 1
            x = unit(before, f"{name}/reduce1", filters // 2, 1, stride=stride, groups=model.groups)
            x = unit(x, f"{name}/reduce2", filters // 4, 1)
            kernels = ((3, 1), (1, 3)) if block.vertical else ((1, 3), (3, 1))
            x = unit(x, f"{name}/first", filters // 2, kernels[0], groups=model.groups)
            x = unit(x, f"{name}/second", filters // 2, kernels[1], groups=model.groups)
            x = unit(x, f"{name}/expand", filters, 1)
            x = self.add(RELU, f"{name} ReLU", self.add(ADDITION, f"{name} addition", shortcut, x))
        x = self.add(POOLING, "mean", unit(x, "conv_last", LAST_FILTERS, 1), method="mean", whole=True)
        return self.add(DENSE, model.head, x, outputs=model.num_classes)
