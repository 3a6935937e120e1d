"""LiteRT (`.tflite`), float32 and int8, converted by jax.export and LiteRT's converter, without TensorFlow.

A file contains plain operations for images (batch, *image_shape), by default of batch 1; interpreters can resize the
batch. The description is JSON in the metadata buffer "squeeze_jax".

The required versions of the converter's dependencies differ from the ones tested here, so the converter runs in a child
process. $SQUEEZE_JAX_LITERT_PYTHON names the Python of an environment in which it is installed; the default is the
running Python.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.export
import numpy as np

from squeeze_jax.errors import ExportError, WeightError
from squeeze_jax.export import litert_child
from squeeze_jax.export.description import check_seal, describe, seal
from squeeze_jax.export.exported import Exported, require
from squeeze_jax.export.forward import forward
from squeeze_jax.network import Network
from squeeze_jax.pretrained.weights import read_bytes

PYTHON = "SQUEEZE_JAX_LITERT_PYTHON"
# Exact versions: some of the functions used are not public.
CONVERTER = ("litert-converter==0.5.0", "litert-quantizer==0.11.0")
TIME_LIMIT = 600  # seconds for the child process
# Lowering for this platform yields the plain operations that LiteRT has, see squeeze_jax.models.layers.
PLATFORM = "tpu"


def serialize(network: Network, pixels: str = "float32") -> bytes:
    """Returns the contents of a float32 `.tflite` file.

    Args:
      network: the network.
      pixels: the dtype of the images, "float32" or "uint8".

    Raises:
      ExportError: the converter is not installed, or cannot convert the network.
    """
    return seal(_convert(network, pixels))


def serialize_int8(network: Network, images: np.ndarray, pixels: str = "float32") -> bytes:
    """Returns the contents of a `.tflite` file with int8 weights and activations.

    Weights are quantized per output channel, activations per tensor by their extremes over the images. Images, logits
    and the average pooling before the logits keep their dtype.

    Args:
      network: the network.
      images: raw images for calibration, uint8 (images, *image_shape).
      pixels: the dtype of the images of the file, "float32" or "uint8".

    Raises:
      ExportError: the converter is not installed, or cannot convert the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, calibration, target = (pathlib.Path(folder) / name for name in ("float", "images.npy", "int8"))
        source.write_bytes(_convert(network, pixels))
        np.save(calibration, images.astype(pixels))
        _run_child("quantize", source, calibration, target)
        return seal(target.read_bytes())


def _convert(network: Network, pixels: str) -> bytes:
    image = jax.ShapeDtypeStruct((1, *network.image_shape), np.dtype(pixels))
    function, variables = forward(network)
    exported = jax.export.export(jax.jit(functools.partial(function, variables)), platforms=[PLATFORM])(image)
    with tempfile.TemporaryDirectory() as folder:
        module, metadata, target = (pathlib.Path(folder) / name for name in ("module", "metadata", "output"))
        module.write_bytes(exported.mlir_module_serialized)
        # The resize inside the file has the batch of the image that was traced.
        batch = "1" if network.config.dataset.image_size else "batch"
        metadata.write_text(json.dumps(describe(network, pixels=pixels, batch=batch)))
        _run_child("convert", module, metadata, target)
        return target.read_bytes()


def _run_child(command: str, *paths: pathlib.Path) -> None:
    python = os.environ.get(PYTHON) or sys.executable
    # -P: the folder of the script has modules with the names of packages.
    arguments = [python, "-P", litert_child.__file__, command, *map(str, paths)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=TIME_LIMIT, env=environment)
    except OSError as error:
        raise ExportError(f"${PYTHON}={python} cannot be started ({error.strerror}); expected a Python.") from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"LiteRT's converter did not finish within {TIME_LIMIT} s.") from error
    if done.returncode == litert_child.MISSING:
        raise ExportError(
            f"LiteRT's converter is not installed for {python}. Install it into an environment of its own:\n"
            f"  python -m venv litert && litert/bin/pip install {' '.join(CONVERTER)}\n"
            f"  export {PYTHON}=$PWD/litert/bin/python"
        )
    if done.returncode:
        raise ExportError(f"LiteRT's converter failed (exit status {done.returncode}):\n{done.stderr[-2000:]}")


def read(path: pathlib.Path, threads: int | None = None) -> Exported:
    """Reads a `.tflite` file written by `python -m squeeze_jax.export`.

    Damaged files can crash LiteRT's interpreter and with it the process, so the checksum is verified first.

    Args:
      path: the file.
      threads: of LiteRT; None for all cores.

    Raises:
      WeightError: the file is damaged, or was not written by this project.
      ExportError: LiteRT's interpreter is not installed.
    """
    data = read_bytes(path)
    check_seal(path, data)
    interpreter = require("ai_edge_litert.interpreter", path)
    schema = require("ai_edge_litert.schema_py_generated", path)
    try:
        description = json.loads(_metadata(data, schema.Model.GetRootAsModel(data, 0)))
        opened = interpreter.Interpreter(model_content=data, num_threads=threads or os.cpu_count())
        opened.allocate_tensors()
    except Exception as error:  # flatbuffers raises errors of many kinds for damaged files
        raise WeightError(f"{path} is not an intact .tflite file: {type(error).__name__}: {error}") from error
    runner = _Runner(opened)
    exported = Exported.create(path, description, runner.run)
    wanted = [((1, *exported.image_shape), exported.description["pixels"]), ((1, len(exported.class_names)), "float32")]
    if runner.ends != wanted:
        raise WeightError(f"{path} maps {runner.ends[:1]} to {runner.ends[1:]}; expected {wanted}.")
    return exported


def _metadata(data: bytes, model: Any) -> bytes:
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == litert_child.METADATA.encode():
            buffer = model.Buffers(entry.Buffer())
            if buffer.Offset() > 1:  # the quantizer appends buffers to the model
                return data[buffer.Offset() : buffer.Offset() + buffer.Size()]
            return buffer.DataAsNumpy().tobytes()
    raise ValueError(f"it has no metadata with the name {litert_child.METADATA}")


class _Runner:
    """An interpreter whose batch is resized when it has to be; one thread at a time may use it."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs, self._outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._batch = 1

    @property
    def ends(self) -> list[tuple[tuple[int, ...], str]]:
        """The shapes and dtypes of the inputs and outputs in the file."""
        ends = [*self._inputs, *self._outputs]
        return [(tuple(end["shape"].tolist()), np.dtype(end["dtype"]).name) for end in ends]

    def run(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits of a batch, see `Exported`."""
        (image,), (logits,) = self._inputs, self._outputs
        if len(images) != self._batch:
            try:
                self._resize(len(images))
            except RuntimeError:  # a resize of the images inside the file has a fixed batch
                self._resize(1)
                return np.concatenate([self.run(images[i : i + 1]) for i in range(len(images))])
        self._interpreter.set_tensor(image["index"], images)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(logits["index"])

    def _resize(self, batch: int) -> None:
        (image,) = self._inputs
        self._interpreter.resize_tensor_input(image["index"], (batch, *image["shape"][1:]))
        self._interpreter.allocate_tensors()
        self._batch = batch
