"""A traced function as a flat list of operations, with everything constant already computed.

The calls in a jaxpr (jit, custom derivatives, checkpoints) are inlined, and of the formulations for several platforms
the plain one is taken. Floating-point constants are computed in float64.

The function is traced for a batch of a size that no other axis has, and that size is then replaced by BATCH: with one
of JAX's symbolic sizes, NumPy's indexing would become a gather.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from squeeze_jax.errors import ExportError

TRACED_BATCH = 7919  # a prime
BATCH = "batch"  # the size of the first axis in all shapes here

CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # the parameters that hold the body of a call
LOOPS = ("scan", "while")


@dataclasses.dataclass(frozen=True)
class Variable:
    """A result that depends on the input; `shape` is that of the JAX array, with BATCH for the batch."""

    index: int
    shape: tuple[Any, ...]
    dtype: np.dtype


Value = Variable | np.ndarray  # an array is a constant; sizes of 1 may stand for any size


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
      name: the name of the JAX primitive.
      inputs: what it computes from; at least one of them is a variable.
      outputs: its results.
      params: the parameters of the primitive.
      layer: the path of the layer that it belongs to, such as "fire2/squeeze1x1".
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Variable, ...]
    params: dict[str, Any]
    layer: str


# Elementwise primitives whose constants are computed by NumPy, which takes a fraction of the time of a JAX operation.
NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "exp": np.exp,
    "log": np.log,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
}


def trace(
    function: Callable[[Any], Any], image_shape: tuple[int, ...], dtype: str
) -> tuple[list[Operation], Variable, Value]:
    """Traces a function of a batch of images to one array.

    Args:
      function: the function.
      image_shape: (*spatial, channels) of one image.
      dtype: the dtype of the images.

    Returns:
      The operations, the argument and the result.

    Raises:
      ExportError: the function has several results, chooses between branches, or mixes the images of a batch.
    """
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((TRACED_BATCH, *image_shape), dtype))
    if len(closed.jaxpr.outvars) != 1:
        raise ExportError(f"the network has {len(closed.jaxpr.outvars)} outputs; only one can be exported.")
    inlined = _Inlined()
    argument = inlined.variable(closed.jaxpr.invars[0].aval)
    (result,) = inlined.run(closed.jaxpr, closed.consts, [argument], "")
    return inlined.operations, argument, result


def without_traced_batch(size: int) -> Any:
    """Returns BATCH for the size that stands for it."""
    return BATCH if size == TRACED_BATCH else size


class _Inlined:
    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._count = 0

    def variable(self, aval: Any) -> Variable:
        self._count += 1
        shape = tuple(map(without_traced_batch, aval.shape))
        if any(isinstance(size, int) and size and size % TRACED_BATCH == 0 for size in shape):
            raise ExportError("the network mixes the images of a batch, which cannot be exported.")
        return Variable(self._count, shape, np.dtype(aval.dtype))

    def run(self, jaxpr: Any, constants: list[Any], arguments: list[Value], outer: str) -> list[Value]:
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(_constant, constants), strict=True))
        values |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            return _constant(atom.val) if isinstance(atom, jex.Literal) else values[atom]

        for equation in jaxpr.eqns:
            layer = "/".join(filter(None, [outer, str(equation.source_info.name_stack)]))
            results = self._equation(equation, [read(atom) for atom in equation.invars], layer)
            values |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value], layer: str) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":
            return [np.array(params["platforms"].index(None))]
        if name == "cond":
            chosen, *inputs = inputs
            if isinstance(chosen, Variable):
                raise ExportError(f"{layer or 'the network'} chooses between branches, which cannot be exported.")
            branches = params["branches"]
            branch = branches[min(max(int(chosen), 0), len(branches) - 1)]
            return self.run(branch.jaxpr, branch.consts, inputs, layer)
        body = next((params[key] for key in CALLS if key in params), None)
        if body is not None and name not in LOOPS:
            closed = body if isinstance(body, jex.ClosedJaxpr) else jex.ClosedJaxpr(body, ())
            return self.run(closed.jaxpr, closed.consts, inputs, layer)
        if not any(isinstance(value, Variable) for value in inputs):
            return _compute(equation, inputs, layer)
        outputs = tuple(self.variable(out.aval) for out in equation.outvars)
        self.operations.append(Operation(name, tuple(inputs), outputs, dict(params), _layer(layer)))
        return list(outputs)


def _layer(stack: str) -> str:
    """Returns "fire2/squeeze1x1" for "SqueezeNet/SqueezeNet._feature_maps/fire2/squeeze1x1"."""
    return "/".join(part for part in stack.split("/")[1:] if re.fullmatch(r"\w+", part))


def _constant(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float64) if jax.numpy.issubdtype(array.dtype, np.floating) else array


def _compute(equation: Any, inputs: list[Any], layer: str) -> list[np.ndarray]:
    """Computes an operation on constants."""
    name, params = equation.primitive.name, equation.params
    avals = [out.aval for out in equation.outvars]
    if name == "broadcast_in_dim":
        (x,) = inputs
        shape = [1] * len(params["shape"])
        for size, axis in zip(x.shape, params["broadcast_dimensions"], strict=True):
            shape[axis] = size
        return [x.reshape(shape)]
    if name == "convert_element_type":
        (x,) = inputs
        is_float = jax.numpy.issubdtype(params["new_dtype"], np.floating)
        return [x.astype(np.float64 if is_float else params["new_dtype"])]
    if name in NUMPY and (name != "div" or inputs[0].dtype.kind == "f"):
        return [np.asarray(NUMPY[name](*inputs))]
    if any(TRACED_BATCH in atom.aval.shape for atom in equation.invars):
        raise ExportError(f"{layer or 'the network'}: the operation {name} repeats a constant along the batch.")
    try:
        whole = [
            np.broadcast_to(x, atom.aval.shape) if x.ndim else x
            for x, atom in zip(inputs, equation.invars, strict=True)
        ]
        wide = {key: np.dtype("float64") if _is_float32(value) else value for key, value in params.items()}
        with jax.enable_x64(True):
            found = equation.primitive.bind(*map(jax.numpy.asarray, whole), **wide)
    except Exception as error:
        raise ExportError(f"{layer or 'the network'}: the operation {name} cannot be exported: {error}") from error
    results = found if equation.primitive.multiple_results else [found]
    return [np.asarray(result) for result, _ in zip(results, avals, strict=True)]


def _is_float32(value: Any) -> bool:
    try:
        return np.dtype(value) == np.float32
    except (TypeError, ValueError):
        return False
