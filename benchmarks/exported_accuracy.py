"""Accuracy of the exported files of one network beside its own, on photographs in folders of their class.

    pip install "squeeze_jax[export]" openvino nncf
    python benchmarks/exported_accuracy.py --weights compressed_SqueezeNet.net --calibration val1300 \\
        --evaluation imagenet_sample --csv benchmarks/results/exported_accuracy.csv

The int8 files are calibrated on the 200 images of --calibration that `python -m squeeze_jax.export` chooses, and judged
by the other ones; the float files are judged by all of them. Each file is judged by the images of --evaluation too.
A row has the accuracy of the file and of the network in JAX on the same images, the share of images with the same best
class, the largest difference of a logit, and the bytes of the file. A format whose package is missing is reported and
skipped. The results are deterministic.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
import report
from latency import channels_first, write_files

from squeeze_jax import load
from squeeze_jax.export.__main__ import choose_calibration
from squeeze_jax.export.comparison import BATCH, compare
from squeeze_jax.export.formats import open_exported
from squeeze_jax.files import user_path
from squeeze_jax.predict import find_images, read_images

FILES = {
    "ONNX Runtime": "net.onnx",
    "OpenVINO": "net.onnx",
    "LiteRT": "net.tflite",
    "jax.export": "net.jaxexport",
    "ONNX Runtime, int8": "int8.onnx",
    "OpenVINO, int8": "int8.xml",
    "LiteRT, int8": "int8.tflite",
}


@dataclasses.dataclass
class OpenVINO:
    """A file in OpenVINO's runtime, in float32 where it is not int8."""

    path: pathlib.Path

    def __post_init__(self) -> None:
        import openvino

        self.compiled = openvino.Core().compile_model(str(self.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Maps images, uint8 (batch, *spatial, channels), to logits, float32 (batch, classes)."""
        return self.compiled(channels_first(images))[0]


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=user_path, help="weight file or workdir")
    parser.add_argument(
        "--calibration", required=True, type=user_path, metavar="FOLDER", help="photographs in folders of their class"
    )
    parser.add_argument("--evaluation", type=user_path, metavar="FOLDER", help="other photographs")
    parser.add_argument("--csv", type=user_path, help="file for the table")
    args = parser.parse_args()
    network = load(args.weights)
    images = find_images([args.calibration])
    calibration, rest = choose_calibration(images, [])
    others = find_images([args.evaluation]) if args.evaluation else []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(network, np.concatenate([batch for batch, _ in read_images(network, calibration, BATCH)]), folder)
        rows = []
        for program, file in FILES.items():
            path = folder / file
            if not path.exists():
                print(f"{program}: skipped, because {file} was not written", file=sys.stderr)
                continue
            opened = OpenVINO(path) if program.startswith("OpenVINO") else open_exported(path)
            parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
            size = sum(part.stat().st_size for part in parts)
            for paths in filter(None, (rest if "int8" in program else images, others)):
                found = compare(network, opened, read_images(network, paths, BATCH))
                rows.append(
                    {"weights": args.weights.name, "program": program, "images": len(paths)}
                    | {"top1": found.file.top1 / len(paths), "top5": found.file.top5 / len(paths)}
                    | {"jax_top1": found.network.top1 / len(paths), "jax_top5": found.network.top5 / len(paths)}
                    | {"same_best_class": found.agreement, "largest_difference": float(f"{found.difference:.2g}")}
                    | {"bytes": size}
                )
        report.write(args.csv, rows, 1, key="weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
