"""The forward pass of a network, cut before each of its layers.

Compression changes one layer after another and needs the inputs of each. Computing the network anew for each layer
would take as many forward passes as there are layers; here each part of it is computed once.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core as jax_core

from squeeze_jax.errors import ModelError
from squeeze_jax.models.summary import DENSE
from squeeze_jax.runtime.devices import compile_often

_MARK = "inputs of "


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer.

    Attributes:
      name: its path, such as "fire2/squeeze1x1".
      window: the size of the kernel along each axis; empty for a dense layer, the whole map for `nn.DenseGeneral`.
      strides: the stride along each axis.
      dilation: the dilation of the kernel along each axis.
      padding: (before, after) along each axis.
      groups: the number of groups of channels.
    """

    name: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int

    @classmethod
    def of(cls, module: nn.Module, inputs: jax.Array) -> "Layer":
        """Describes a module that is applied to inputs (batch, *spatial, channels)."""
        name = "/".join(module.path)
        if isinstance(module, nn.Dense):
            return cls(name, (), (), (), (), 1)
        rank = inputs.ndim - 2
        if isinstance(module, nn.DenseGeneral):
            if module.axis != tuple(range(1, inputs.ndim)):
                raise ModelError(f"{name} is a nn.DenseGeneral of the axes {module.axis}; expected all but the first.")
            return cls(name, inputs.shape[1:-1], (1,) * rank, (1,) * rank, ((0, 0),) * rank, 1)

        def each_axis(value: Any) -> tuple:
            return (1 if value is None else value,) * rank if value is None or np.ndim(value) == 0 else tuple(value)

        window, strides, dilation = map(each_axis, (module.kernel_size, module.strides, module.kernel_dilation))
        padding = module.padding
        if isinstance(padding, str):
            extents = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
            padding = jax.lax.padtype_to_pads(inputs.shape[1:-1], extents, strides, padding)
        padding = tuple((side, side) if np.ndim(side) == 0 else tuple(side) for side in each_axis(padding))
        return cls(name, window, strides, dilation, padding, module.feature_group_count)

    def output_cells(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the positions of all outputs for inputs of a shape (batch, *spatial, channels).

        The result is int (cells, axes): the first row, column, ... of the padded input that an output depends on.
        """
        if not self.window:
            return np.zeros((math.prod(shape[1:-1]), 0), int)
        starts = [
            np.arange(0, size + sum(pad) - (window - 1) * step, stride)
            for size, pad, window, step, stride in zip(
                shape[1:-1], self.padding, self.window, self.dilation, self.strides, strict=True
            )
        ]
        return np.stack([axis.ravel() for axis in np.meshgrid(*starts, indexing="ij")], axis=-1)

    def inputs_of(self, x: jax.Array, cells: np.ndarray) -> jax.Array:
        """Returns the inputs that outputs depend on.

        Args:
          x: inputs of the layer, (batch, *spatial, channels).
          cells: positions of outputs, from `output_cells`, (cells, axes).

        Returns:
          (batch, cells, groups, inputs), where the inputs have the order of the rows of the kernel.
        """
        if not self.window:
            return x.reshape(len(x), -1, 1, x.shape[-1])
        padded = jnp.pad(x, [(0, 0), *self.padding, (0, 0)])
        taps = []
        for offset in itertools.product(*map(range, self.window)):
            places = cells + np.array(offset) * np.array(self.dilation)
            taps.append(padded[(slice(None), *jnp.moveaxis(places, -1, 0))])
        windows = jnp.stack(taps, axis=2)  # (batch, cells, window, channels)
        windows = windows.reshape(*windows.shape[:-1], self.groups, -1)
        return jnp.moveaxis(windows, 3, 2).reshape(*windows.shape[:2], self.groups, -1)


class SegmentedForward:
    """A forward pass that stops before each layer.

    The state between segments is a tuple of arrays, each with the batch as first axis; the first one is the input of
    the next layer. Segment 0 takes `(inputs,)`; the last one returns the outputs of the network.

    Attributes:
      layers: the layers in order of computation; segment i ends before layers[i].
    """

    def __init__(self, model: nn.Module, variables: Any, inputs: jax.ShapeDtypeStruct) -> None:
        """Traces the network.

        Args:
          model: the network.
          variables: its variables.
          inputs: the shape and dtype of a batch of inputs.

        Raises:
          ModelError: the network computes a layer inside a transformation such as `nn.scan` or `nn.remat`, combines
            examples of a batch, or has a `nn.DenseGeneral` of some axes only.
        """
        self.layers: list[Layer] = []

        def mark(method: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.Conv | DENSE) and context.method_name == "__call__":
                layer = Layer.of(context.module, args[0])
                self.layers.append(layer)
                args = (_marked(layer.name)(args[0]), *args[1:])
            return method(*args, **kwargs)

        def forward(variables: Any, inputs: jax.Array) -> jax.Array:
            with nn.intercept_methods(mark):
                return model.apply(variables, inputs)

        closed = jax.make_jaxpr(forward)(variables, inputs)
        self._jaxpr, self._constants = closed.jaxpr, closed.consts
        *self._variables, image = closed.jaxpr.invars
        self._cut(image)
        if [_mark_of(part[0]) for part in self._parts[1:]] != [layer.name for layer in self.layers]:
            raise ModelError("the network computes layers inside nn.scan, nn.remat or the like, or uses one twice.")
        if any(var.aval.shape[:1] != inputs.shape[:1] for state in self._states for var in state):
            raise ModelError("the network combines the examples of a batch; its layers cannot be computed one by one.")
        self._run = [compile_often(self._segment(i)) for i in range(len(self._parts))]

    def _cut(self, image: Any) -> None:
        """Divides the equations into those that do not depend on the image, and one part for each segment."""
        dependent = {image}
        self._independent: list[Any] = []
        self._parts: list[list[Any]] = [[]]
        for equation in self._jaxpr.eqns:
            if not any(_is_variable(var) and var in dependent for var in equation.invars):
                self._independent.append(equation)
                continue
            dependent.update(equation.outvars)
            if _mark_of(equation):
                self._parts.append([])
            self._parts[-1].append(equation)
        # From the end: what the later parts need.
        needed = list(self._jaxpr.outvars)
        self._states = [needed]
        for part in reversed(self._parts):
            made = {var for equation in part for var in equation.outvars}
            used = [var for equation in part for var in equation.invars if _is_variable(var) and var in dependent]
            needed = [var for var in dict.fromkeys([*used, *needed]) if var not in made]
            self._states.insert(0, needed)

    def _segment(self, index: int) -> Callable:
        invars, outvars = [*self._variables, *self._states[index]], self._states[index + 1]
        part = self._jaxpr.replace(
            invars=invars,
            outvars=outvars,
            eqns=[*self._independent, *self._parts[index]],
            debug_info=self._jaxpr.debug_info._replace(
                arg_names=("",) * len(invars), result_paths=("",) * len(outvars)
            ),
        )
        function = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(part, self._constants))

        def segment(variables: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(function(*jax.tree.leaves(variables), *state))

        return segment

    def state_shapes(self, index: int) -> list[jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the state before layers[index]."""
        return [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in self._states[index + 1]]

    def run(self, index: int, variables: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Computes segment `index` with these variables."""
        return self._run[index](variables, state)


def _marked(name: str) -> Callable:
    def identity(x: jax.Array) -> jax.Array:
        return x

    identity.__name__ = _MARK + name
    return jax.jit(identity)


def _mark_of(equation: Any) -> str:
    """Returns the name of the layer that an equation marks the input of; empty for other equations."""
    name = str(equation.params.get("name", ""))
    return name.removeprefix(_MARK) if name.startswith(_MARK) else ""


def _is_variable(value: Any) -> bool:
    return not hasattr(value, "val")  # a literal has a value
