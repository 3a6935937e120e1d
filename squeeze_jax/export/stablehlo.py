"""The `.jaxexport` format: StableHLO for CPU, CUDA and TPU by jax.export, with a description.

The layout, in little endian:

- the magic bytes "jaxexprt" (8 bytes);
- the length of the header, uint32, and the header, JSON: "description" and "compiler_options", the options for
  `jax.jit` by platform;
- what `jax.export.Exported.serialize` returned, up to the end of the file. It is called with images
  (batch, *image_shape) for any batch size.
"""

import functools
import json
import math
import pathlib
import re
import struct

import jax
import jax.export
import numpy as np

from squeeze_jax.errors import ExportError, WeightError
from squeeze_jax.export.description import check_seal, describe, seal
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.forward import forward
from squeeze_jax.network import Network
from squeeze_jax.pretrained.weights import read_bytes
from squeeze_jax.runtime.devices import CPU_COMPILER_OPTIONS

MAGIC = b"jaxexprt"
PLATFORMS = ("cpu", "cuda", "tpu")
LARGEST_TENSOR = 2**28  # values; for a batch of one
CUSTOM_CALL = re.compile(r"custom_call @?\"?([\w.]+)")
TENSOR = re.compile(r"tensor<((?:(?:\d+|\?)x)+)")
HARMLESS = {"shape_assertion"}  # of jax.export: compares the batch size with 1


def serialize(network: Network, pixels: str = "float32") -> bytes:
    """Returns the contents of a `.jaxexport` file.

    Args:
      network: the network.
      pixels: the dtype of the images, "float32" or "uint8".

    Raises:
      ExportError: the network cannot be exported for any batch size.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.dtype(pixels))
    function, variables = forward(network)
    try:
        exported = jax.export.export(jax.jit(functools.partial(function, variables)), platforms=PLATFORMS)(images)
    except jax.errors.ConcretizationTypeError as error:
        raise ExportError(f"the network depends on the batch size: {error}") from error
    header = {
        "description": describe(network, pixels=pixels),
        "compiler_options": {"cpu": CPU_COMPILER_OPTIONS},
    }
    text = json.dumps(header).encode()
    return seal(MAGIC + struct.pack("<I", len(text)) + text + exported.serialize())


def read(path: pathlib.Path, threads: int | None = None) -> Exported:
    """Reads a `.jaxexport` file.

    Args:
      path: the file.
      threads: has no effect: JAX takes all cores that its process may use.

    Raises:
      WeightError: the file is damaged, of another format, or does more than computing logits from images.
    """
    data = read_bytes(path)
    start = len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC:
        raise WeightError(f"{path} is not a .jaxexport file of squeeze_jax: its first bytes differ.")
    check_seal(path, data)
    try:
        end = start + int.from_bytes(data[len(MAGIC) : start], "little")
        header = json.loads(data[start:end])
        description, options = header["description"], header["compiler_options"]
        exported = jax.export.deserialize(bytearray(data[end:]))
        _check_program(exported)
        # Some of XLA's options write files.
        if not options["cpu"].keys() <= CPU_COMPILER_OPTIONS.keys():
            raise WeightError(f"it has the compiler options {options}; expected {list(CPU_COMPILER_OPTIONS)}.")
        call = jax.jit(exported.call, compiler_options=options["cpu"] if jax.default_backend() == "cpu" else None)
        opened = Exported.create(path, description, lambda images: jax.device_get(call(images)))
        found = [(aval.shape[1:], str(aval.dtype)) for aval in (*exported.in_avals, *exported.out_avals)]
        expected = [(opened.image_shape, description["pixels"]), ((len(opened.class_names),), "float32")]
        if found != expected:
            raise WeightError(f"its input and output are {found}; expected {expected}.")
    except Exception as error:  # flatbuffers and MLIR raise errors of many kinds for damaged files
        raise WeightError(f"{path} is not an intact .jaxexport file: {type(error).__name__}: {error}") from error
    return opened


def _check_program(exported: jax.export.Exported) -> None:
    """Raises WeightError if a program, which is untrusted, calls anything outside or has a huge tensor."""
    module = exported.mlir_module()
    calls = set(CUSTOM_CALL.findall(module)) - HARMLESS
    if calls or exported.ordered_effects or exported.unordered_effects:
        raise WeightError(f"it calls functions outside of the program: {', '.join(sorted(calls))}.")
    sizes = (sides.split("x")[:-1] for sides in set(TENSOR.findall(module)))
    largest = max((math.prod(int(side) for side in sides if side != "?") for sides in sizes), default=0)
    if largest > LARGEST_TENSOR:
        raise WeightError(f"it has a tensor of {largest} values; expected at most {LARGEST_TENSOR}.")


serialise = serialize  # the former spelling
