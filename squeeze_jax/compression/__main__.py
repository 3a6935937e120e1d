"""Compresses the file of a network, without labels or training.

    python -m squeeze_jax.compression --weights compressed_SqueezeNet.net --output net.sqz
    python -m squeeze_jax.compression --weights compressed_SqueezeNet.net --output net.sqz --size 340000 \\
        --calibration photographs --evaluation labeled
    python -m squeeze_jax.compression --weights runs/cifar10 --output net.sqz --bits 6 --biases int8

Without --size, --quality and --bits, the weights are stored without loss. With --size or --quality, weights become
integer multiples of one step per layer, rounded layer by layer so that the outputs on calibration images, which need no
labels, change as little as possible. With --bits, the weights of each layer share at most 2 ** bits - 1 values besides
0, and calibration images are used to correct the change in the mean output of each layer. The printed table has one row
per stage. Images of --evaluation count as labeled if their folder has the name of a class. The file is read back and
compared with the network before it replaces an existing one.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

import argparse
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from squeeze_jax import commands, console, tables
from squeeze_jax.compression import BIAS_FORMS, INITIALIZATIONS, NORM_FORMS
from squeeze_jax.errors import InputError, SqueezeJaxError
from squeeze_jax.files import user_path

if TYPE_CHECKING:
    from squeeze_jax.network import Network

LAYOUTS = ("sqz", "net")


def parse_bits(text: str, network: "Network") -> dict[str, int]:
    """Parses the option --bits.

    Args:
      text: a number of bits such as "6", with exceptions for single layers such as "6,conv1=8,fire2/squeeze1x1=7".
      network: the network whose layers are named.

    Returns:
      The number of bits of each layer, by name.

    Raises:
      InputError: the text cannot be parsed.
      ConfigError: an unknown layer, or a number of bits out of range.
    """
    from squeeze_jax.compression.sharing import layer_bits

    common, *others = text.split(",")
    try:
        pairs = (other.split("=") for other in others)
        named = {name: int(bits) for name, bits in pairs}
        return layer_bits(network.variables, layer_bits(network.variables, int(common)) | named)
    except SqueezeJaxError:
        raise
    except ValueError as error:
        raise InputError(f"--bits {text} is not valid; expected a value such as 6 or 6,conv1=8.") from error


def check(args: argparse.Namespace) -> tuple[str, bool]:
    """Returns the layout of the file, and whether the weights are rounded to a size or a quality.

    Raises:
      InputError: the arguments contradict each other, or the folder of --output does not exist.
    """
    layout = args.layout or args.output.suffix[1:]
    if args.output.suffix != f".{layout}" or layout not in LAYOUTS:
        raise InputError(f"--output {args.output} must end in {f'.{args.layout}' if args.layout else '.sqz or .net'}.")
    fitted = args.size is not None or args.quality is not None
    if (fitted or args.density is not None) and not args.calibration:
        raise InputError("--size, --quality and --density need images: --calibration FOLDER.")
    if fitted and layout != "sqz":
        raise InputError("--size and --quality write .sqz files; a .net file has codebooks: use --bits.")
    if fitted and args.biases not in (None, "int8"):
        raise InputError(f"--biases {args.biases} has no effect with --size or --quality, which round them to int8.")
    if not args.output.parent.is_dir():
        raise InputError(f"the folder of --output {args.output} does not exist; create it or use another one.")
    return layout, fitted


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, type=user_path, help="weight file or workdir")
    parser.add_argument("--output", required=True, type=user_path, help="output file, ending in .sqz or .net")
    parser.add_argument("--layout", choices=LAYOUTS, help="file format; default: determined by the suffix")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--size", type=int, metavar="BYTES", help="largest size of the file; needs --calibration")
    target.add_argument(
        "--quality",
        type=float,
        metavar="NATS",
        help="largest divergence from the original network, averaged over the calibration images, such as 0.02",
    )
    target.add_argument("--bits", help="bits per weight, 2 to 8; per layer: 6,conv1=8")
    parser.add_argument("--density", type=float, help="fraction of the weights that stay; needs --calibration")
    parser.add_argument(
        "--initialization",
        "--initialisation",  # the former spelling
        choices=INITIALIZATIONS,
        default="density",
        help="initial centroids of k-means",
    )
    parser.add_argument("--calibration", type=user_path, metavar="FOLDER", help="images, which need no labels")
    parser.add_argument(
        "--no_augmentation", action="store_true", help="do not calibrate on shifted and mirrored copies too"
    )
    parser.add_argument("--biases", choices=BIAS_FORMS, help="with --size and --quality always int8; default: float32")
    parser.add_argument("--batch_norm", choices=NORM_FORMS, default="float32")
    parser.add_argument("--evaluation", type=user_path, metavar="FOLDER", help="images to evaluate each stage on")
    parser.add_argument(
        "--stages", type=user_path, metavar="FOLDER", help="keeps results; a repeated command continues from them"
    )
    args = parser.parse_args()
    layout, fitted = check(args)
    with console.doing(f"loading {args.weights}"):
        from squeeze_jax.compression import report
        from squeeze_jax.compression.compressor import Compressor
        from squeeze_jax.compression.on_disk import DiskArray, check_room
        from squeeze_jax.network import load
        from squeeze_jax.predict import find_images, read_images
        from squeeze_jax.pretrained import deep_compression, sqz
        from squeeze_jax.runtime import compilation_cache

        compilation_cache.enable()
        calibration, evaluation = (find_images([str(p)]) if p else [] for p in (args.calibration, args.evaluation))
        network = load(args.weights)
    bits = parse_bits(args.bits, network) if args.bits else None
    net_bits = max(bits.values()) if bits else deep_compression.RELEASED_BITS

    def serialize(network: "Network", steps: Mapping[str, float]) -> bytes:
        if layout == "net":
            return deep_compression.serialize(network, net_bits)
        return sqz.serialize(network, steps=steps)

    with console.logging_to(None):
        scratch, images = args.output.parent, None
        if calibration:
            # Once as they are, and once more with their shifted copies.
            check_room("images", 3 * len(calibration) * math.prod(network.image_shape), scratch)
            images = DiskArray.of((batch for batch, _ in read_images(network, calibration, report.BATCH)), scratch)
        compressor = Compressor(
            network,
            images,
            augment=not args.no_augmentation,
            serialize=serialize,
            folder=args.stages,
            scratch=scratch,
        )
        if args.size is not None:
            compressor.round_to_size(args.size, args.density, args.batch_norm)
        elif args.quality is not None:
            compressor.round_to_divergence(args.quality, args.density)
        elif args.density is not None:
            compressor.prune(args.density)
        if bits is not None:
            compressor.share(bits, args.initialization)
            if calibration:
                compressor.correct_biases()
        if args.batch_norm != "float32":
            compressor.round_batch_norm(args.batch_norm)
        if (args.biases or "float32") != "float32" and not fitted:
            compressor.round_biases(args.biases)
        if not compressor.stages:
            compressor.keep()
    stages = compressor.stages
    if args.weights.is_file():
        stages.insert(0, report.Stage(args.weights.name, network, args.weights.stat().st_size))
    else:
        stages.insert(0, report.Stage("original", network, len(sqz.serialize(network))))
    answers = report.evaluate(stages, read_images(network, evaluation, report.BATCH)) if evaluation else None
    rows = report.rows(stages, answers)
    print(tables.markdown(list(rows[0]), [list(row.values()) for row in rows]))
    if layout == "net":
        deep_compression.save(stages[-1].network, args.output, net_bits)
    else:
        sqz.save(stages[-1].network, args.output, steps=compressor.steps)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes, read back and compared")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
