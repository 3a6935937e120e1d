"""The child process that writes `.tflite` files; it runs in the environment of LiteRT's converter, without squeeze_jax.

    python litert_child.py convert MODULE.mlirbc METADATA.json OUTPUT.tflite
    python litert_child.py quantize FLOAT.tflite IMAGES.npy OUTPUT.tflite

`convert` turns a StableHLO module of batch 1 into a float32 file with the metadata in a named buffer. `quantize` turns
such a file into an int8 one. Neither command uses TensorFlow.
"""

import pathlib
import sys
from typing import Any

import numpy as np

METADATA = "squeeze_jax"  # the name of the metadata buffer
INPUT, OUTPUT = "images", "logits"
SIGNATURE = "serving_default"
IDENTIFIER = b"TFL3"
MISSING = 3  # exit status if a package is not installed


def convert(module_path: str, metadata_path: str, output_path: str) -> None:
    """Converts a serialized StableHLO module with one input and one output."""
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import _stablehlo
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = _stablehlo.deserialize_portable_artifact(context, pathlib.Path(module_path).read_bytes())
        # Resolves the choices between formulations: for a single platform, each has one outcome.
        passmanager.PassManager.parse("builtin.module(func.func(canonicalize))").run(module.operation)
        _pad_before_pooling(module.operation)
        converter.set_signature(module.operation, signature_name=SIGNATURE, input_names=[INPUT], output_names=[OUTPUT])
        config = converter.ConvertToTFLConfig()
        config.model_origin_framework = "JAX"
        config.unsafe_fuse_dynamic_shaped_broadcast = True
        merged = converter.merge_modules([module])
        converter.run_convert_to_tfl_passes(merged, passmanager.PassManager(), config)
        data = converter.export_flatbuffer_to_bytes(merged.operation)
    pathlib.Path(output_path).write_bytes(_with_metadata(data, pathlib.Path(metadata_path).read_bytes()))


def _pad_before_pooling(operation: Any) -> None:
    """Separates the padding from those window reductions that pad some axes and not others.

    litert-converter 0.5.0 turns them into poolings that pad every axis, which have a larger result.
    """
    from litert_converter.mlir import ir

    for inner in [inner for region in operation.regions for block in region for inner in block]:
        _pad_before_pooling(inner.operation)
    if operation.name != "stablehlo.reduce_window" or "padding" not in operation.attributes:
        return
    padding = np.array(operation.attributes["padding"])  # (axes, 2)
    if len(np.unique(padding[1:-1], axis=0)) == 1:
        return
    image, start = operation.operands
    kind = ir.RankedTensorType(image.type)
    shape = [int(size) for size in np.array(kind.shape) + padding.sum(axis=1)]
    ends = {
        "edge_padding_low": padding[:, 0],
        "edge_padding_high": padding[:, 1],
        "interior_padding": 0 * padding[:, 0],
    }
    with ir.InsertionPoint(operation), operation.location:
        padded = ir.Operation.create(
            "stablehlo.pad",
            results=[ir.RankedTensorType.get(shape, kind.element_type)],
            operands=[image, start],
            attributes={name: ir.DenseI64ArrayAttr.get([int(size) for size in end]) for name, end in ends.items()},
        )
    operation.operands[0] = padded.result
    del operation.attributes["padding"]


def _with_metadata(data: bytes, metadata: bytes) -> bytes:
    """Adds a metadata buffer to a float file; rewriting a quantized one like this would lose its weights."""
    import flatbuffers
    from litert_converter import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def quantize(float_path: str, images_path: str, output_path: str) -> None:
    """Quantizes weights per channel and activations per tensor, by the extremes over the images.

    The quantizer's own statistics are a moving average of the extremes of each image, which cuts off large logits.

    Args:
      float_path: the float file.
      images_path: an array of raw images, (images, *image_shape), in the dtype of the file's input.
      output_path: the file to write.
    """
    from litert_quantizer import qtyping, quantizer, recipe

    model = quantizer.Quantizer(float_path)
    model.load_quantization_recipe(recipe.static_wi8_ai8())
    names = qtyping.TFLOperationName
    for name in (names.INPUT, names.OUTPUT, names.MEAN):  # a mean in int8 would leave the logits 256 values
        model.update_quantization_recipe(".*", name, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    extremes = {}
    for image in np.load(images_path):
        found = model.calibrate({SIGNATURE: [{INPUT: image[None]}]}, num_threads=2)
        for tensor, new in found.items():
            old = extremes.get(tensor, new)
            extremes[tensor] = {
                **new,
                "min": np.minimum(old["min"], new["min"]),
                "max": np.maximum(old["max"], new["max"]),
            }
    model.quantize(extremes).export_model(output_path, overwrite=True)


if __name__ == "__main__":
    try:
        {"convert": convert, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
