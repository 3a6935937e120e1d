"""Exports networks to files for other runtimes, and runs such files."""

SUFFIXES = (".onnx", ".tflite", ".jaxexport")
PIXELS = ("float32", "uint8")  # dtypes of the images that a file may take
LARGEST_LOSS = 1.0  # points of top-1 accuracy that an int8 file may lose
LARGEST_CHANGE = 10.0  # percent of the predictions that an int8 file may change, where there are no labels
