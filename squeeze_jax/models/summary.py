"""Counts the parameters, MACs and activations of a network layer by layer, without running it.

One MAC is one multiplication and one addition, or two FLOPs. MACs are counted for convolutions and dense layers only,
not for biases, normalization, activation functions and pooling. Activations are the output values of a layer for one
image.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from squeeze_jax.models.layers import MaxPool

DENSE = nn.Dense | nn.DenseGeneral


@dataclasses.dataclass(frozen=True)
class Layer:
    """The counts of one layer for one image; `output_shape` is (*spatial, channels)."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a network and their totals, for one image of shape `input_shape`.

    `outputs` is the shape and dtype of what the network returns, (1, ...).
    """

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    receptive_field: int
    outputs: Any

    @property
    def parameters(self) -> int:
        """Total number of parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Total number of MACs for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Total number of activations for one image."""
        return sum(layer.activations for layer in self.layers)

    @property
    def mebibytes(self) -> float:
        """Size of the parameters as float32, in MiB."""
        return self.parameters * 4 / 2**20

    def totals(self) -> str:
        """Returns the totals as one line of text."""
        return (
            f"{self.parameters:,} parameters ({self.mebibytes:.2f} MiB as float32), {self.macs / 1e6:,.2f} M MACs "
            f"({2 * self.macs / 1e9:.3f} GFLOPs), {self.activations:,} activations, receptive field "
            f"{self.receptive_field}"
        )

    def table(self) -> str:
        """Returns a text table with one line per layer, and the totals."""
        header = ("layer", "output", "parameters", "MACs", "activations")
        rows = [
            (
                layer.name,
                "x".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                f"{layer.activations:,}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

        def line(cells: tuple[str, ...]) -> str:
            left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            return "  ".join(left + [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)])

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        shape = "x".join(map(str, self.input_shape))
        lines = [f"input {shape}", line(header), rule, *map(line, rows), rule, self.totals()]
        return "\n".join([*lines, "1 MAC = 1 multiplication + 1 addition = 2 FLOPs"])


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Counts parameters, MACs and activations of a network without running it.

    Args:
      model: a network with a method `receptive_field()`.
      input_shape: (*spatial, channels) of one image.
    """
    layers = []

    def record(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, nn.Conv | DENSE | nn.BatchNorm | MaxPool):
            params = module.variables.get("params", {})
            macs = 0
            if isinstance(module, nn.Conv | DENSE):
                # Each output value takes one MAC for every kernel weight of its channel.
                macs = math.prod(output.shape[1:]) * math.prod(params["kernel"].shape[:-1])
            layers.append(
                Layer(
                    name="/".join(module.path),
                    output_shape=tuple(output.shape[1:]),
                    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
                    macs=macs,
                    activations=math.prod(output.shape[1:]),
                )
            )
        return output

    with nn.intercept_methods(record):
        images = jnp.zeros((1, *input_shape))
        outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    counted = sum(layer.parameters for layer in layers)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if total > counted:
        layers.append(Layer("(other modules)", (), total - counted, macs=0, activations=0))
    return Summary(tuple(input_shape), tuple(layers), model.receptive_field(), outputs)
