"""Calibration images of one source or of two, plain or cropped, judged on images of both that calibrated nothing.

    python -m experiments.compression_sources --weights compressed_SqueezeNet.net --first FOLDER --second FOLDER \\
        --output experiments/results --stages FOLDER

The images of each folder, which lie in folders with the names of their classes, are divided by the order of their file
names: every second one belongs to half 0, the others to half 1. "first 0" calibrates on half 0 of the first folder;
with "crops", the shifted copy of each image is one of a random part of it. Each row of NAME.csv is a file of about
--size bytes, judged on one half. A repeated command continues from --stages.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from squeeze_jax import commands, console, load
from squeeze_jax.compression import report
from squeeze_jax.compression.compressor import BYTES_SLOPE, Compressor
from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.compression.report import Stage
from squeeze_jax.files import make_folder
from squeeze_jax.network import Network
from squeeze_jax.predict import find_images, read_images
from squeeze_jax.runtime import compilation_cache
from squeeze_jax.tables import write_csv

Half = tuple[str, int]  # a source and half 0 or 1

# What calibrates, and whether the copies are crops. The first one is the usual case.
ARMS: tuple[tuple[tuple[Half, ...], bool], ...] = (
    ((("first", 0),), False),
    ((("second", 0),), False),
    ((("second", 1),), False),
    ((("first", 0), ("second", 0)), False),
    ((("first", 0),), True),
)
JUDGED: tuple[Half, ...] = (("first", 1), ("second", 0), ("second", 1))
RATE_FACTOR = 2.859e-7  # that of 338,733 bytes, calibrated on half 0 of ILSVRC2012's 1,300 images
CLOSE = 0.005  # a file whose size is further from --size is rounded once more
SMALLEST_CROP = 0.5  # the side of a crop, relative to that of the image


def crops(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random square part of each image at the size of the image, half of them as mirror images."""
    copies = []
    for image in images:
        side = round(len(image) * rng.uniform(SMALLEST_CROP, 1))
        top, left = rng.integers(len(image) - side + 1, size=2)
        part = Image.fromarray(image[top : top + side, left : left + side]).resize(image.shape[1::-1])
        copies.append(np.asarray(part)[:, :: rng.choice([-1, 1])])
    return np.stack(copies)


def calibration(network: Network, paths: list[pathlib.Path], cropped: bool, scratch: pathlib.Path) -> DiskArray:
    """Reads images; with `cropped`, followed by a crop of each."""
    rng = np.random.default_rng(0)

    def parts() -> Iterator[np.ndarray]:
        for change in (np.asarray, lambda images: crops(images, rng))[: 1 + cropped]:
            for images, _ in read_images(network, paths, report.BATCH):
                yield change(images)

    return DiskArray.of(parts(), scratch)


def compress(compressor: Compressor, size: int) -> tuple[float, Stage]:
    """Rounds to about `size` bytes; returns the rate factor and the stage."""
    compressor.round(RATE_FACTOR)
    ratio = compressor.stages[-1].bytes / size
    if abs(ratio - 1) <= CLOSE:
        return RATE_FACTOR, compressor.stages[-1]
    factor = float(f"{RATE_FACTOR * math.exp(-math.log(ratio) / BYTES_SLOPE):.4g}")
    compressor.round(factor)
    return factor, compressor.stages[-1]


def rows_of(network: Network, halves: dict[Half, list[pathlib.Path]], args: argparse.Namespace) -> Iterator[dict]:
    """Compresses and judges; yields the rows of the table."""
    for sources, cropped in ARMS[: args.arms]:
        paths = [path for half in sources for path in halves[half]]
        images = calibration(network, paths, cropped, args.output)
        compressor = Compressor(network, images, augment=not cropped, folder=args.stages, scratch=args.output)
        factor, stage = compress(compressor, args.size)
        for half in JUDGED:
            if half in sources:
                continue
            batches = read_images(network, halves[half], report.BATCH)
            sums = report.evaluate([Stage("original", network, 0), stage], batches)
            row: dict[str, Any] = {
                "calibration": " + ".join(f"{name} {half}" for name, half in sources) + ", crops" * cropped,
                "images": len(paths),
                "rate_factor": factor,
                "bytes": stage.bytes,
                "judged": f"{half[0]} {half[1]}",
                "judged_images": sums[1].images,
                "original_top1": sums[0].top1 / sums[0].images,
                "top1": sums[1].top1 / sums[1].images,
                "gained": sums[1].gained,
                "lost": sums[1].lost,
                "agreement": sums[1].agree / sums[1].images,
                "divergence": sums[1].divergence / sums[1].images,
            }
            yield row


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="weight file or workdir")
    parser.add_argument("--first", required=True, type=pathlib.Path, help="folder of labeled images")
    parser.add_argument("--second", required=True, type=pathlib.Path, help="folder of labeled images")
    parser.add_argument("--size", type=int, default=338_733, help="bytes of each file, roughly")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="only the first so many")
    parser.add_argument("--stages", type=pathlib.Path, help="folder of results that a repeated command uses")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the CSV")
    parser.add_argument("--name", default="compression_sources", help="name of the CSV")
    args = parser.parse_args()
    compilation_cache.enable()
    network = load(args.weights)
    halves = {}
    for name in ("first", "second"):
        paths = sorted(find_images([str(getattr(args, name))]), key=lambda path: path.name)
        halves |= {(name, half): paths[half::2] for half in range(2)}
    make_folder(args.output)
    rows: list[dict[str, Any]] = []
    with console.logging_to(None):
        for row in rows_of(network, halves, args):
            rows.append(row)
            write_csv(args.output / f"{args.name}.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
