"""Accuracy against bytes: second-order rounding beside weight sharing and 8-bit rounding, without training.

    python -m experiments.compression_curve --weights compressed_SqueezeNet.net --calibration FOLDER \\
        --evaluation FOLDER --output experiments/results --name compression_curve

Each row of NAME.csv is a `.sqz` file, with its bytes and its accuracy on the labeled images of --evaluation, whose
folders have the names of the classes. NAME.png shows the divergence from the original network. No image may be in both
folders. --stages FOLDER keeps results, so that a stopped command continues.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import numpy as np

from squeeze_jax import commands, console, load, plotting
from squeeze_jax.compression import report
from squeeze_jax.compression.compressor import Compressor
from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.compression.report import Stage
from squeeze_jax.compression.rounding import round_to_int8
from squeeze_jax.compression.sharing import layer_bits
from squeeze_jax.files import make_folder, user_path
from squeeze_jax.network import Network
from squeeze_jax.predict import find_images, read_images
from squeeze_jax.runtime import compilation_cache
from squeeze_jax.tables import write_csv

# File sizes of 1.0 in the SqueezeNet paper (section 3.2) in bytes; the paper gives megabytes and the same accuracy.
PAPER = {"8-bit file of the paper": 660_000, "6-bit file of the paper": 470_000}
SHARED_BITS = (4, 5, 6)


def round_kernels(network: Network) -> tuple[dict, dict[str, float]]:
    """Rounds each kernel to 8 bits: multiples of its largest magnitude divided by 127. Returns variables and steps."""
    leaves = flax.traverse_util.flatten_dict(network.variables, sep="/")
    steps = {}
    for name in [name for name in leaves if name.endswith("/kernel")]:
        leaves[name], steps[name] = round_to_int8(np.asarray(leaves[name]))
    return flax.traverse_util.unflatten_dict(leaves, sep="/"), steps


def files(network: Network, images: DiskArray, args: argparse.Namespace) -> list[tuple[str, str, Stage]]:
    """Returns method, setting and last stage of each file."""

    def compressed(compress: Callable[[Compressor], Any]) -> Stage:
        compressor = Compressor(network, images, folder=args.stages, scratch=args.output)
        compress(compressor)
        return compressor.stages[-1]

    def share(bits: int) -> Stage:
        def compress(compressor: Compressor) -> None:
            compressor.share(layer_bits(network.variables, bits), "density")
            compressor.correct_biases()
            compressor.round_biases("int8")

        return compressed(compress)

    def round_to_8_bits(compressor: Compressor) -> None:
        compressor.add("8-bit rounding", *round_kernels(network))
        compressor.round_biases("int8")

    found = [("lossless", "", compressed(Compressor.keep)), ("8-bit rounding", "", compressed(round_to_8_bits))]
    found += [("k-means", f"{bits} bits", share(bits)) for bits in SHARED_BITS]
    rounding = Compressor(network, images, folder=args.stages, scratch=args.output)
    for rate_factor in args.rate_factors:
        rounding.round(rate_factor)
        found.append(("second-order", f"{rate_factor:g}", rounding.stages[-1]))
    return found


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, type=user_path, help="weight file or workdir")
    parser.add_argument("--calibration", required=True, type=user_path, help="folder of images")
    parser.add_argument("--evaluation", required=True, type=user_path, help="folder of labeled images")
    parser.add_argument("--rate_factors", type=float, nargs="+", default=[1e-8, 1e-7, 2e-7, 3e-7, 4e-7, 8e-7, 2e-6])
    parser.add_argument("--stages", type=user_path, help="folder of results that a repeated command uses")
    parser.add_argument("--output", required=True, type=user_path, help="folder of the CSV and the plot")
    parser.add_argument("--name", default="compression_curve", help="name of the files")
    args = parser.parse_args()
    compilation_cache.enable()
    network = load(args.weights)
    calibration, evaluation = (find_images([str(folder)]) for folder in (args.calibration, args.evaluation))
    make_folder(args.output)
    images = DiskArray.of((batch for batch, _ in read_images(network, calibration, report.BATCH)), args.output)
    with console.logging_to(None):
        found = files(network, images, args)
    stages = [Stage("original", network, 0), *(stage for _, _, stage in found)]
    rows = []
    for (method, setting, stage), sums in zip(
        found, report.evaluate(stages, read_images(network, evaluation, report.BATCH))[1:], strict=True
    ):
        rows.append(
            {
                "method": method,
                "setting": setting,
                "bytes": stage.bytes,
                "images": sums.images,
                "top1": sums.top1 / sums.images,
                "top5": sums.top5 / sums.images,
                "gained": sums.gained,
                "lost": sums.lost,
                "deviation": math.sqrt(sums.gained + sums.lost),
                "agreement": sums.agree / sums.images,
                "divergence": sums.divergence / sums.images,
            }
        )
    write_csv(args.output / f"{args.name}.csv", rows)
    plot(rows, args.output / f"{args.name}.png")
    return 0


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws divergence against kilobytes, with the sizes of the paper's files as vertical lines."""
    with plotting.figure(path, width=6.5, height=4) as (_, ((axis,),)):
        methods = dict.fromkeys(row["method"] for row in rows if row["divergence"] > 1e-6)
        for index, method in enumerate(methods):
            points = sorted((row["bytes"] / 1000, row["divergence"]) for row in rows if row["method"] == method)
            axis.plot(*zip(*points, strict=True), label=plotting.plain(method), **plotting.points(index))
        for (label, size), style in zip(PAPER.items(), ("--", ":"), strict=True):
            axis.axvline(size / 1000, color="gray", linestyle=style, label=label)
        plotting.log_scale(axis, "y")
        axis.set(xlabel="size of the file (kB)", ylabel="divergence from the original (nats)")


if __name__ == "__main__":
    sys.exit(commands.run(main))
