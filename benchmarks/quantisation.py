"""Time to compress a network without training: second-order rounding beside weight sharing with bias correction.

    python benchmarks/quantisation.py --weights compressed_SqueezeNet.net --calibration photographs \\
        --size 340000 --rounds 1 --csv benchmarks/results/quantisation.csv

"trial" rounds all layers for one rate factor, with the Fisher information; "size" is the whole search for a size. Both
calibrate on twice as many images as the folder has. The programs take turns; compilation is included, because a
compression runs once.
"""

import functools
import sys
import time
from collections.abc import Callable

import report

from squeeze_jax import load
from squeeze_jax.compression.compressor import FIRST_RATE_FACTOR, Compressor
from squeeze_jax.compression.on_disk import DiskArray
from squeeze_jax.compression.report import BATCH
from squeeze_jax.compression.sharing import layer_bits
from squeeze_jax.files import user_path
from squeeze_jax.network import Network
from squeeze_jax.predict import find_images, read_images

PEER = "k-means, 6 bits"


def programs(network: Network, images: DiskArray, size: int) -> dict[str, Callable[[], Compressor]]:
    """Returns functions that compress the network, by name."""

    def run(*steps: Callable[[Compressor], None]) -> Compressor:
        compressor = Compressor(network, images)
        for step in steps:
            step(compressor)
        return compressor

    share = functools.partial(Compressor.share, bits=layer_bits(network.variables, 6), initialization="density")
    return {
        "trial": lambda: run(lambda c: c.round(FIRST_RATE_FACTOR)),
        "size": lambda: run(lambda c: c.round_to_size(size)),
        PEER: lambda: run(share, Compressor.correct_biases, lambda c: c.round_biases("int8")),
    }


def main() -> int:
    """Runs the benchmark."""
    parser = report.parser(__doc__)
    parser.add_argument("--weights", type=user_path, required=True, help="weight file or workdir")
    parser.add_argument("--calibration", type=user_path, required=True, help="folder of images")
    parser.add_argument("--size", type=int, default=340_000, help="bytes")
    args = parser.parse_args()
    network = load(args.weights)
    paths = find_images([str(args.calibration)])
    images = DiskArray.of(batch for batch, _ in read_images(network, paths, BATCH))
    found = programs(network, images, args.size)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    sizes = {}
    for _ in range(args.rounds):
        for name, program in found.items():
            start = time.perf_counter()
            compressor = program()
            seconds[name].append(time.perf_counter() - start)
            sizes[name] = compressor.stages[-1].bytes
    rows = [
        {"program": name, "images": len(images), "bytes": sizes[name]}
        | report.spread(times, "seconds", 1)
        | {"over_peer": report.ratio(times, seconds[PEER])}
        for name, times in seconds.items()
    ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
