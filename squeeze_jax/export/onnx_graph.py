"""The ONNX graph of a traced function.

Each operation of the trace becomes one or two nodes by a table of primitives. A tensor of the graph remembers which
axis of the JAX array each of its axes is, so that a transposition only renames axes. The input of the graph has the
channels first, as ONNX's convolutions want it, and so has every tensor that follows from it: a Transpose node appears
only where the function itself reorders data, as a channel shuffle does.

Constants that are multiplied with or added to the channels after a convolution are folded into it in float64: so batch
normalization takes no nodes.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from squeeze_jax.errors import ExportError
from squeeze_jax.export.jaxpr import Operation, Value, Variable, without_traced_batch

INPUT, OUTPUT = "images", "logits"


@dataclasses.dataclass
class Node:
    """A node of the graph.

    Attributes:
      kind: the type of the operation.
      inputs: names of tensors, and arrays for constants; floating-point ones are float64.
      output: the name of the output.
      attributes: ONNX's attributes; a dtype is one of NumPy.
    """

    kind: str
    inputs: list[Any]
    output: str
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
      name: its name.
      axes: the axis of the JAX array that is axis 0, 1, ... of the tensor.
      shape: the shape of the JAX array, with BATCH for the batch.
      stored: the same, with 1 in the place of an axis along which the tensor is still to be broadcast.
      exclusive: whether only one operation reads it, so that its node may be changed.
    """

    name: str
    axes: tuple[int, ...]
    shape: tuple[Any, ...]
    stored: tuple[Any, ...]
    exclusive: bool = False


# The kinds of nodes that this module writes, and those of int8 files.
_KINDS = """
Abs Add And AveragePool Cast Ceil Clip Concat Conv Cos Div Einsum Equal Erf Exp Expand Flatten Floor Gemm
GlobalAveragePool Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max MaxPool Min Mul Neg Not Or Pad Pow
Reciprocal ReduceMax ReduceMean ReduceMin Relu Reshape Sigmoid Sign Sin Slice Sqrt Sub Tanh Transpose Where
QuantizeLinear DequantizeLinear
"""
OPERATIONS = frozenset(_KINDS.split())


def canonical(rank: int) -> tuple[int, ...]:
    """Returns the order of axes with the channels first, for an array with the channels last."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 2 else tuple(range(rank))


class Graph:
    """The nodes of a function's graph, in order of computation."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}  # by the name of the output
        self._layer = ""

    def write(self, operations: Sequence[Operation], argument: Variable, result: Value) -> None:
        """Writes all operations.

        Args:
          operations, argument, result: what `jaxpr.trace` returns.

        Raises:
          ExportError: there is an operation that has no counterpart here.
        """
        uses = Counter(value.index for op in operations for value in op.inputs if isinstance(value, Variable))
        uses.update([result.index] if isinstance(result, Variable) else [])
        values: dict[int, Tensor] = {
            argument.index: Tensor(INPUT, canonical(len(argument.shape)), *[argument.shape] * 2)
        }
        for operation in operations:
            self._layer = operation.layer
            where = operation.layer or "the network"
            if operation.name not in PRIMITIVES:
                raise ExportError(f"{where} uses the operation {operation.name}, which cannot be exported to ONNX.")
            inputs = [values[value.index] if isinstance(value, Variable) else value for value in operation.inputs]
            try:
                found = PRIMITIVES[operation.name](self, operation, *inputs)
            except ExportError as error:
                raise ExportError(f"{where}, operation {operation.name}: {error}") from error
            for variable, tensor in zip(
                operation.outputs, [found] if isinstance(found, Tensor) else found, strict=True
            ):
                alone = uses[variable.index] == 1 and all(
                    tensor.name != source.name or source.exclusive for source in inputs if isinstance(source, Tensor)
                )
                values[variable.index] = dataclasses.replace(tensor, exclusive=alone)
        if not isinstance(result, Variable):
            raise ExportError("the outputs do not depend on the images.")
        self._layer = ""
        last = self.ordered(self.whole(values[result.index]), tuple(range(len(result.shape))))
        self.nodes[OUTPUT] = Node("Identity", [last.name], OUTPUT, {})
        self._remove_dead()

    def _remove_dead(self) -> None:
        if self.nodes[self.nodes[OUTPUT].inputs[0]].kind != "Identity" and self.nodes[OUTPUT].inputs[0] != INPUT:
            last = self.nodes.pop(self.nodes.pop(OUTPUT).inputs[0])
            self.nodes[OUTPUT] = dataclasses.replace(last, output=OUTPUT)
        needed = {OUTPUT}
        for name in reversed(self.nodes):
            if name in needed:
                needed |= {source for source in self.nodes[name].inputs if isinstance(source, str)}
        self.nodes = {name: node for name, node in self.nodes.items() if name in needed}

    def add(self, kind: str, inputs: Sequence[Any], name: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        wanted = name = "/".join(filter(None, [self._layer, name])) or kind.lower()
        for count in itertools.count(2):
            if name not in self.nodes and name not in (INPUT, OUTPUT):
                break
            name = f"{wanted}_{count}"
        self.nodes[name] = Node(kind, list(inputs), name, attributes)
        return name

    def node(self, kind: str, x: Tensor, *others: Any, **attributes: Any) -> Tensor:
        """Adds a node whose output has the shape and axes of x."""
        return dataclasses.replace(x, name=self.add(kind, [x.name, *others], kind.lower(), **attributes))

    def times(self, mean: str, count: int) -> str:
        """Adds the node of a sum, given the mean and the number of summands."""
        return self.add("Mul", [mean, np.array(float(count))], "sum") if count > 1 else mean

    def ordered(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Returns x with its axes in this order."""
        if x.axes == axes:
            return x
        if _longer_axes(x.axes, x.stored) == _longer_axes(axes, x.stored):
            name = self.add("Reshape", [x.name, _sizes(x.stored[axis] for axis in axes)], "reshape")
        else:
            name = self.add("Transpose", [x.name], "transpose", perm=[x.axes.index(axis) for axis in axes])
        return dataclasses.replace(x, name=name, axes=axes)

    def whole(self, x: Tensor) -> Tensor:
        """Returns x broadcast to its full shape."""
        if x.shape == x.stored:
            return x
        sizes = [x.shape[axis] if x.shape[axis] != x.stored[axis] else 1 for axis in x.axes]
        if not all(isinstance(size, int) for size in sizes):
            raise ExportError("a constant is repeated along the batch.")
        name = self.add("Expand", [x.name, np.array(sizes, np.int64)], "expand")
        return dataclasses.replace(x, name=name, stored=x.shape)

    def affine(self, x: Tensor, factor: Any, summand: Any) -> Tensor | None:
        """Folds `x * factor + summand` into the convolution or dense layer that computes x, if one does.

        Args:
          x: the tensor.
          factor, summand: arrays that broadcast with the JAX array, or numbers.

        Returns:
          The tensor of the changed node; None if nothing can be folded.
        """
        node = self.nodes.get(x.name)
        if node is None or node.kind not in ("Conv", "Gemm") or not x.exclusive:
            return None
        kernel, bias = node.inputs[1:]
        channel = x.axes[1]
        values = []
        for value in (factor, summand):
            value = np.asarray(value, np.float64)
            if any(size > 1 for axis, size in enumerate(value.shape) if axis != channel):
                return None
            values.append(np.broadcast_to(value.reshape(-1), bias.shape))
        by_output = (slice(None), *[None] * (kernel.ndim - 1)) if node.kind == "Conv" else slice(None)
        node.inputs[1:] = [kernel * values[0][by_output], bias * values[0] + values[1]]
        return x


def _sizes(shape: Any) -> np.ndarray:
    """Returns a shape for the Reshape node, which infers the size of the batch."""
    return np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)


def _longer_axes(axes: tuple[int, ...], shape: tuple[Any, ...]) -> list[int]:
    return [axis for axis in axes if not _is_one(shape[axis])]


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _broadcast_shapes(shapes: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(next((size for size in sizes if not _is_one(size)), 1) for sizes in zip(*shapes, strict=True))


def _elementwise(kind: str) -> Callable[..., Tensor]:
    """Returns the writer of a primitive that computes each value from the values at the same place."""

    def write(graph: Graph, operation: Operation, *inputs: Tensor | np.ndarray) -> Tensor:
        return _write_elementwise(graph, kind, operation, *inputs)

    return write


def _write_elementwise(graph: Graph, kind: str, operation: Operation, *inputs: Tensor | np.ndarray) -> Tensor:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    shape = operation.outputs[0].shape
    rank = len(shape)
    # The largest one keeps its order of axes.
    axes = max((x for x in tensors), key=lambda x: len(_longer_axes(x.axes, x.stored))).axes
    names = [
        graph.ordered(x, axes).name
        if isinstance(x, Tensor)
        else _typed(x if x.ndim < rank else x.transpose(axes), operation)
        for x in inputs
    ]
    stored = [x.stored if isinstance(x, Tensor) else x.shape or (1,) * rank for x in inputs]
    return Tensor(graph.add(kind, names, kind.lower()), axes, shape, _broadcast_shapes(stored))


def _typed(constant: np.ndarray, operation: Operation) -> np.ndarray:
    """Returns an integer constant in the dtype of the variables that it meets."""
    dtype = next(value.dtype for value in operation.inputs if isinstance(value, Variable))
    return constant.astype(dtype) if dtype.kind in "iu" and constant.dtype.kind in "iu" else constant


def _scalar(x: Any) -> float | None:
    return float(x.reshape(())) if isinstance(x, np.ndarray) and x.size == 1 else None


def _add(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(y, np.ndarray) and not np.any(y):
        return x
    folded = graph.affine(x, 1.0, y) if isinstance(y, np.ndarray) else None
    return folded or _write_elementwise(graph, "Add", operation, x, y)


def _sub(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    folded = None
    if isinstance(y, np.ndarray) and not np.any(y):
        return x
    if isinstance(y, np.ndarray):
        folded = graph.affine(x, 1.0, -y)
    elif isinstance(x, np.ndarray):
        folded = graph.affine(y, -1.0, x)
    return folded or _write_elementwise(graph, "Sub", operation, x, y)


def _mul(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x, y = y, x
    return (
        _scaled(graph, operation, x, y, y)
        if isinstance(y, np.ndarray)
        else _write_elementwise(graph, "Mul", operation, x, y)
    )


def _div(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    if isinstance(y, np.ndarray):
        return _scaled(graph, operation, x, y, np.asarray(1.0 / y), "Div")
    return _write_elementwise(graph, "Div", operation, x, y)


def _scaled(
    graph: Graph, operation: Operation, x: Tensor, y: np.ndarray, factor: np.ndarray, kind: str = "Mul"
) -> Tensor:
    """Multiplies by a constant factor; `kind` of y says the same."""
    if np.all(factor == 1):
        return x
    node, number = graph.nodes.get(x.name), _scalar(factor)
    # A sum divided by the number of summands: the sum was written as the mean times that number.
    if x.exclusive and number is not None and node is not None and node.kind == "Mul":
        before = _scalar(node.inputs[1])
        if before is not None and math.isclose(before * number, 1.0, rel_tol=1e-6):
            return dataclasses.replace(x, name=node.inputs[0])
    return graph.affine(x, factor, 0.0) or _write_elementwise(graph, kind, operation, x, y)


def _max(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x, y = y, x
    if _scalar(y) == 0.0:
        return graph.node("Relu", x)
    return _write_elementwise(graph, "Max", operation, x, y)


def _min(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x, y = y, x
    node, limit = graph.nodes.get(x.name), _scalar(y)
    if limit is not None and x.exclusive and node is not None and node.kind == "Relu":
        name = graph.add("Clip", [node.inputs[0], np.array(0.0), np.array(limit)], "clip")
        return dataclasses.replace(x, name=name)
    return _write_elementwise(graph, "Min", operation, x, y)


def _clamp(graph: Graph, operation: Operation, low: Any, x: Any, high: Any) -> Tensor:
    if not isinstance(x, Tensor) or _scalar(low) is None or _scalar(high) is None:
        raise ExportError("its limits are not numbers.")
    return graph.node("Clip", x, *(_typed(limit.reshape(()), operation) for limit in (low, high)))


def _integer_pow(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    power = operation.params["y"]
    return graph.node("Mul", x, x.name) if power == 2 else graph.node("Pow", x, np.array(float(power)))


def _convert(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    before, after = operation.inputs[0].dtype, operation.outputs[0].dtype
    if before == after or before.kind == after.kind == "f":
        return x
    return graph.node("Cast", x, to=after)


def _same(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    return x


def _transpose(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    order = operation.params["permutation"]
    axes = tuple(order.index(axis) for axis in x.axes)
    shape, stored = (tuple(sizes[axis] for axis in order) for sizes in (x.shape, x.stored))
    return Tensor(x.name, axes, shape, stored)


def _reshape(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    return _reshaped(graph, graph.whole(x), operation.outputs[0].shape)


def _broadcast(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    shape = operation.outputs[0].shape
    stored: list[Any] = [1] * len(shape)
    for size, axis in zip(x.stored, operation.params["broadcast_dimensions"], strict=True):
        stored[axis] = size
    found = _reshaped(graph, dataclasses.replace(x, shape=x.stored), tuple(stored))
    return dataclasses.replace(found, shape=shape)


def _reshaped(graph: Graph, x: Tensor, shape: tuple[Any, ...]) -> Tensor:
    """Reshapes like JAX, in row-major order of the JAX array, without moving data where that is possible."""
    if x.shape == shape:
        return x
    groups = _groups(x.shape, shape)
    # The axes that become one have to lie one after the other.
    order = [axis for axis in x.axes if not _is_one(x.shape[axis])]
    together = [group for group, _ in groups if len(group) > 1]
    if any(order[order.index(group[0]) :][: len(group)] != group for group in together):
        firsts = {axis: group for group in together for axis in group}
        seen: list[int] = []
        for axis in order:
            seen += [a for a in firsts.get(axis, [axis]) if a not in seen]
        ones = [axis for axis in x.axes if _is_one(x.shape[axis])]
        x = graph.ordered(x, (*seen, *ones))
        order = seen
    new = [axis for old in order for group, made in groups if group[:1] == [old] for axis in made]
    ones = [axis for axis, size in enumerate(shape) if _is_one(size)]
    usual = canonical(len(shape))
    axes = usual if _longer_axes(usual, shape) == new else (*new, *ones)
    name = graph.add("Reshape", [x.name, _sizes(shape[axis] for axis in axes)], "reshape")
    return Tensor(name, axes, shape, shape)


def _groups(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[list[int], list[int]]]:
    """Returns which axes longer than 1 become which, from left to right: ([2], [2, 3]) splits axis 2 into two."""
    before, after = ([axis for axis, size in enumerate(shape) if not _is_one(size)] for shape in (old, new))
    groups = []
    while before or after:
        group, made = [before.pop(0)], [after.pop(0)]
        while (sizes := [math.prod(s[a] for a in g) for s, g in ((old, group), (new, made))])[0] != sizes[1]:
            if not all(isinstance(size, int) for size in sizes):
                raise ExportError(f"the batch is mixed with other axes: {old} becomes {new}.")
            shorter, rest = (group, before) if sizes[0] < sizes[1] else (made, after)
            shorter.append(rest.pop(0))
        groups.append((group, made))
    return groups


def _concatenate(graph: Graph, operation: Operation, *inputs: Any) -> Tensor:
    shape, axis = operation.outputs[0].shape, operation.params["dimension"]
    axes = next(x for x in inputs if isinstance(x, Tensor)).axes
    names = []
    for x, value in zip(inputs, operation.inputs, strict=True):
        if isinstance(x, Tensor):
            names.append(graph.ordered(graph.whole(x), axes).name)
        elif all(isinstance(size, int) for size in shape):
            names.append(_typed(np.broadcast_to(x, value.shape).transpose(axes), operation))
        else:
            raise ExportError("a constant is repeated along the batch.")
    name = graph.add("Concat", names, "concat", axis=axes.index(axis))
    return Tensor(name, axes, shape, shape)


def _pad(graph: Graph, operation: Operation, x: Any, value: Any) -> Tensor:
    config = operation.params["padding_config"]
    if (
        not isinstance(x, Tensor)
        or _scalar(value) is None
        or any(min(low, high) < 0 or inner for low, high, inner in config)
    ):
        raise ExportError(f"padding {config} cannot be exported.")
    x = graph.whole(x)
    if not any(low or high for low, high, _ in config):
        return x
    ends = np.array([[config[axis][end] for axis in x.axes] for end in (0, 1)], np.int64).reshape(-1)
    name = graph.add("Pad", [x.name, ends, _typed(value.reshape(()), operation)], "pad")
    shape = operation.outputs[0].shape
    return Tensor(name, x.axes, shape, shape)


def _slice(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    x, params = graph.whole(x), operation.params
    starts, limits = params["start_indices"], map(without_traced_batch, params["limit_indices"])
    strides = params["strides"] or (1,) * len(starts)
    parts = [
        (start, limit, x.axes.index(axis), stride)
        for axis, (start, limit, stride, size) in enumerate(zip(starts, limits, strides, x.shape, strict=True))
        if (start, stride) != (0, 1) or limit != size
    ]
    return _sliced(graph, operation, x, parts)


def _rev(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    x = graph.whole(x)
    parts = [(-1, -(2**31), x.axes.index(axis), -1) for axis in operation.params["dimensions"]]
    return _sliced(graph, operation, x, parts)


def _sliced(graph: Graph, operation: Operation, x: Tensor, parts: list[tuple[Any, ...]]) -> Tensor:
    if not parts:
        return x
    if not all(isinstance(number, int) for part in parts for number in part):
        raise ExportError("a part of the batch is taken.")
    numbers = [np.array(column, np.int64) for column in zip(*parts, strict=True)]
    shape = operation.outputs[0].shape
    return Tensor(graph.add("Slice", [x.name, *numbers], "slice"), x.axes, shape, shape)


def _reduce(kind: str) -> Callable[..., Tensor]:
    def write(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
        x, axes, positions = _kept(graph, operation, x)
        name = graph.add(kind, [x.name], kind.lower(), axes=positions, keepdims=0)
        shape = operation.outputs[0].shape
        return Tensor(name, axes, shape, shape)

    return write


def _sum(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    """Writes a sum as the mean times the number of summands; a division by that number then removes the factor."""
    x, axes, positions = _kept(graph, operation, x)
    count = math.prod(x.shape[axis] for axis in operation.params["axes"])
    if not isinstance(count, int):
        raise ExportError("it sums over the batch.")
    if len(x.axes) > 2 and positions == list(range(2, len(x.axes))):
        mean = graph.add("GlobalAveragePool", [x.name], "average")
        mean = graph.add("Flatten", [mean], "flatten", axis=1)
    else:
        mean = graph.add("ReduceMean", [x.name], "average", axes=positions, keepdims=0)
    shape = operation.outputs[0].shape
    return Tensor(graph.times(mean, count), axes, shape, shape)


def _kept(graph: Graph, operation: Operation, x: Tensor) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """Returns the tensor to reduce, the axes of the result, and the reduced axes of the tensor."""
    reduced = operation.params["axes"]
    kept = [axis for axis in x.axes if axis not in reduced]
    axes = tuple(sorted(kept).index(axis) for axis in kept)
    return graph.whole(x), axes, sorted(x.axes.index(axis) for axis in reduced)


def _pool(kind: str) -> Callable[..., Tensor]:
    def write(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
        params, shape = operation.params, operation.outputs[0].shape
        window, strides, padding = (params[f"{name}"] for name in ("window_dimensions", "window_strides", "padding"))
        x = graph.ordered(graph.whole(x), canonical(len(x.shape)))
        dilations = params["window_dilation"]
        first, spatial = x.axes[:2], x.axes[2:]
        if any(window[axis] != 1 or strides[axis] != 1 or any(padding[axis]) for axis in first) or not spatial:
            raise ExportError(f"its window {window} spans images or channels.")
        if set(params["base_dilation"]) != {1} or (kind == "AveragePool" and set(dilations) != {1}):
            raise ExportError("it is dilated.")
        attributes = {
            "kernel_shape": [window[axis] for axis in spatial],
            "strides": [strides[axis] for axis in spatial],
            "pads": [padding[axis][end] for end in (0, 1) for axis in spatial],
        }
        if kind == "MaxPool":
            if set(dilations) != {1}:
                attributes["dilations"] = [dilations[axis] for axis in spatial]
            name = graph.add(kind, [x.name], "pool", **attributes)
        else:
            mean = graph.add(kind, [x.name], "pool", count_include_pad=1, **attributes)
            name = graph.times(mean, math.prod(window))
        return Tensor(name, x.axes, shape, shape)

    return write


def _convolution(graph: Graph, operation: Operation, x: Any, kernel: Any) -> Tensor:
    params, shape = operation.params, operation.outputs[0].shape
    if not isinstance(x, Tensor) or not isinstance(kernel, np.ndarray):
        raise ExportError("its kernel is not constant.")
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise ExportError("it is transposed, or grouped by image.")
    numbers = params["dimension_numbers"]
    x = graph.ordered(graph.whole(x), tuple(numbers.lhs_spec))
    kernel = np.broadcast_to(kernel, operation.inputs[1].shape).transpose(numbers.rhs_spec)
    padding = params["padding"]
    if min(min(pair) for pair in padding) < 0:
        raise ExportError(f"its padding {padding} is negative.")
    name = graph.add(
        "Conv",
        [x.name, kernel, np.zeros(len(kernel))],
        kernel_shape=list(kernel.shape[2:]),
        strides=list(params["window_strides"]),
        pads=[pair[end] for end in (0, 1) for pair in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return Tensor(name, tuple(numbers.out_spec), shape, shape)


def _dot(graph: Graph, operation: Operation, left: Any, right: Any) -> Tensor:
    (contracted, batched), shape = operation.params["dimension_numbers"], operation.outputs[0].shape
    constant_is_left = isinstance(left, np.ndarray)
    x, constant = (right, left) if constant_is_left else (left, right)
    if isinstance(x, Tensor) and not constant_is_left and not any(batched) and {0, *contracted[0]} == set(x.axes):
        return _dense(graph, operation, x, constant)
    if any(batched) or len(contracted[0]) != 1 or not isinstance(constant, np.ndarray) or constant.ndim != 2:
        return _einsum(graph, operation, left, right)
    (along,), (rows,) = contracted[::-1] if constant_is_left else contracted
    value = operation.inputs[0 if constant_is_left else 1]
    matrix = np.moveaxis(np.broadcast_to(constant, value.shape), rows, 0)  # (contracted, new)
    x = graph.whole(x)
    # The new axis comes last in the JAX array, or first, and in the place of the contracted one in the tensor.
    kept = sorted(axis for axis in x.axes if axis != along)
    place, rank = x.axes.index(along), len(x.axes)
    new = 0 if constant_is_left else rank - 1
    axes = tuple(new if axis == along else kept.index(axis) + constant_is_left for axis in x.axes)
    if rank > 2 and place == 1:
        kernel = matrix.T.reshape(*matrix.T.shape, *[1] * (rank - 2))
        name = graph.add("Conv", [x.name, kernel, np.zeros(len(kernel))], kernel_shape=[1] * (rank - 2))
    elif place == rank - 1:
        name = graph.add("MatMul", [x.name, matrix], "matmul")
    elif place == rank - 2:
        name = graph.add("MatMul", [matrix.T, x.name], "matmul")
    else:
        return _einsum(graph, operation, left, right)
    return Tensor(name, axes, shape, shape)


def _dense(graph: Graph, operation: Operation, x: Tensor, constant: Any) -> Tensor:
    """Writes a product with all values of an image; the rows of the matrix follow the axes of the tensor."""
    (axes, rows), _ = operation.params["dimension_numbers"]
    shape = operation.outputs[0].shape
    if not isinstance(constant, np.ndarray) or x.axes[0] != 0 or constant.ndim != len(rows) + 1:
        return _einsum(graph, operation, x, constant)
    constant = np.broadcast_to(constant, operation.inputs[1].shape)
    order = [rows[axes.index(axis)] for axis in x.axes[1:]]
    (new,) = set(range(constant.ndim)) - set(rows)
    matrix = constant.transpose(*order, new).reshape(-1, constant.shape[new])
    name = graph.whole(x).name
    if len(x.axes) > 2:
        name = graph.add("Flatten", [name], "flatten", axis=1)
    return Tensor(graph.add("Gemm", [name, matrix, np.zeros(matrix.shape[1])]), (0, 1), shape, shape)


def _einsum(graph: Graph, operation: Operation, left: Any, right: Any) -> Tensor:
    (contracted, batched), shape = operation.params["dimension_numbers"], operation.outputs[0].shape
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    ranks = [len(value.shape) for value in operation.inputs]
    names: list[dict[int, str]] = [{}, {}]
    for pairs in (batched, contracted):
        for axes in zip(*pairs, strict=True):
            letter = next(letters)
            names[0][axes[0]] = names[1][axes[1]] = letter
    for side in (0, 1):
        names[side] |= {axis: next(letters) for axis in range(ranks[side]) if axis not in names[side]}
    shared = [names[0][axis] for axis in batched[0]]
    out = shared + [
        names[side][axis]
        for side in (0, 1)
        for axis in range(ranks[side])
        if axis not in (*batched[side], *contracted[side])
    ]
    inputs, terms = [], []
    for x, value, own in zip((left, right), operation.inputs, names, strict=True):
        if isinstance(x, Tensor):
            x = graph.whole(x)
            inputs.append(x.name)
            terms.append("".join(own[axis] for axis in x.axes))
        else:
            inputs.append(np.broadcast_to(x, value.shape))
            terms.append("".join(own[axis] for axis in range(len(value.shape))))
    axes = canonical(len(shape))
    equation = f"{','.join(terms)}->{''.join(out[axis] for axis in axes)}"
    return Tensor(graph.add("Einsum", inputs, "einsum", equation=equation), axes, shape, shape)


def _chain(*kinds: str) -> Callable[..., Tensor]:
    """Returns the writer of a primitive of one argument that takes several nodes."""

    def write(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
        for kind in kinds:
            x = graph.node(kind, x)
        return x

    return write


def _erfc(graph: Graph, operation: Operation, x: Tensor) -> Tensor:
    erf = graph.node("Erf", x)
    return dataclasses.replace(erf, name=graph.add("Sub", [np.array(1.0), erf.name], "sub"))


def _split(graph: Graph, operation: Operation, x: Tensor) -> list[Tensor]:
    x, axis = graph.whole(x), operation.params["axis"]
    ends = np.cumsum(operation.params["sizes"])
    parts = []
    for variable, size, end in zip(operation.outputs, operation.params["sizes"], ends, strict=True):
        numbers = [np.array([number], np.int64) for number in (end - size, end, x.axes.index(axis), 1)]
        name = graph.add("Slice", [x.name, *numbers], "slice")
        parts.append(Tensor(name, x.axes, variable.shape, variable.shape))
    return parts


def _not_equal(graph: Graph, operation: Operation, x: Any, y: Any) -> Tensor:
    return graph.node("Not", _write_elementwise(graph, "Equal", operation, x, y))


def _select(graph: Graph, operation: Operation, which: Any, *cases: Any) -> Tensor:
    if len(cases) != 2 or operation.inputs[0].dtype != bool:
        raise ExportError("it selects from more than two.")
    return _write_elementwise(graph, "Where", operation, which, cases[1], cases[0])


PRIMITIVES: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "abs": _chain("Abs"),
    "add": _add,
    "add_any": _add,
    "and": _elementwise("And"),
    "broadcast_in_dim": _broadcast,
    "ceil": _chain("Ceil"),
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "copy": _same,
    "cos": _chain("Cos"),
    "div": _div,
    "dot_general": _dot,
    "eq": _elementwise("Equal"),
    "erf": _chain("Erf"),
    "erfc": _erfc,
    "exp": _chain("Exp"),
    "expand_dims": _reshape,
    "floor": _chain("Floor"),
    "ge": _elementwise("GreaterOrEqual"),
    "gt": _elementwise("Greater"),
    "integer_pow": _integer_pow,
    "le": _elementwise("LessOrEqual"),
    "log": _chain("Log"),
    "logistic": _chain("Sigmoid"),
    "lt": _elementwise("Less"),
    "max": _max,
    "min": _min,
    "mul": _mul,
    "ne": _not_equal,
    "neg": _chain("Neg"),
    "not": _chain("Not"),
    "optimization_barrier": lambda graph, operation, *inputs: list(inputs),
    "or": _elementwise("Or"),
    "pad": _pad,
    "pow": _elementwise("Pow"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _sum,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reshape": _reshape,
    "rev": _rev,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": _chain("Sign"),
    "sin": _chain("Sin"),
    "slice": _slice,
    "split": _split,
    "sqrt": _chain("Sqrt"),
    "square": lambda graph, operation, x: graph.node("Mul", x, x.name),
    "squeeze": _reshape,
    "stop_gradient": _same,
    "sub": _sub,
    "tanh": _chain("Tanh"),
    "transpose": _transpose,
}
