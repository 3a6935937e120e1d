"""The table of a network's layers: `python -m squeeze_jax.summary --config configs/digits.py`.

One MAC is one multiplication with one addition, two FLOPs. Only convolutions and dense layers count MACs; biases,
normalisation, activations and pooling do not. Activations are a layer's output values for one image.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn

from squeeze_jax.models.layers import MaxPool
from squeeze_jax.models.squeezenet import SqueezeNet


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer for one image; `output_shape` is (*spatial, channels)."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a network and their totals for one image of `input_shape`."""

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    receptive_field: int

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def mebibytes(self) -> float:
        """Size of the parameters as float32."""
        return self.parameters * 4 / 2**20

    def totals(self) -> str:
        """One line."""
        return (
            f"{self.parameters:,} parameters ({self.mebibytes:.2f} MiB as float32), {self.macs / 1e6:,.2f} M MACs "
            f"({2 * self.macs / 1e9:.3f} GFLOPs), {self.activations:,} activations, receptive field "
            f"{self.receptive_field}"
        )

    def table(self) -> str:
        """The layers, one a line, and the totals."""
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


def summarize(model: SqueezeNet, input_shape: tuple[int, ...]) -> Summary:
    """Counts a network's layers without computing anything.

    Args:
      model: a network that has `receptive_field()`.
      input_shape: (*spatial, channels) of one image.
    """
    layers = []

    def record(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense | nn.BatchNorm | MaxPool):
            params = module.variables.get("params", {})
            macs = 0
            if isinstance(module, nn.Conv | nn.Dense):
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
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    return Summary(tuple(input_shape), tuple(layers), model.receptive_field())


def main(_) -> None:
    from squeeze_jax.run import dataset_of, model_of, preprocessing_of

    config = flags.FLAGS.config
    dataset = dataset_of(config)
    input_shape = preprocessing_of(config).input_shape(dataset.image_shape)
    print(config.model.name)
    print(summarize(model_of(config, dataset.num_classes), input_shape).table())


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/digits.py.")
    flags.mark_flag_as_required("config")
    app.run(main)
