"""Makes a network's file small, without labels or training.

    python -m squeeze_jax.compression --weights compressed_SqueezeNet.net --output net.sqz
    python -m squeeze_jax.compression --weights runs/cifar10 --output net.sqz --bits 6 --biases int8 \
        --calibration photographs --evaluation labelled

Without --bits the weights stay as they are, to the bit. With it each layer's weights share 2 ** bits - 1 values beside
0. Calibration images, which need no labels, correct what that does to the mean output of each layer. The table has a
row for each stage; images of --evaluation are labelled where their folder has the name of a class. The file is read
back and compared before it gets its name.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from squeeze_jax import commands, tables
from squeeze_jax.compression import report
from squeeze_jax.compression.bias_correction import correct_biases
from squeeze_jax.compression.report import Stage
from squeeze_jax.compression.rounding import BIAS_FORMS, NORM_FORMS, round_batch_norm, round_biases
from squeeze_jax.compression.sharing import INITIALISATIONS, layer_bits, share
from squeeze_jax.errors import InputError, SqueezeJaxError
from squeeze_jax.network import Network, load
from squeeze_jax.predict import find_images
from squeeze_jax.pretrained import deep_compression, sqz
from squeeze_jax.runtime import compilation_cache

LAYOUTS = ("sqz", "net")


def compress(
    network: Network,
    serialise: Callable[[Network, dict[str, float]], bytes],
    *,
    bits: dict[str, int] | None,
    initialisation: str,
    calibration: np.ndarray | None,
    biases: str,
    batch_norm: str,
) -> tuple[list[Stage], dict[str, float]]:
    """The stages of a network, and the steps of what is multiples of one.

    Args:
      network: the original.
      serialise: makes a file of a network and its steps.
      bits: of each layer by its name; None leaves the weights.
      initialisation: see `share`.
      calibration: raw images that correct the biases; None for no correction.
      biases, batch_norm: see `round_biases` and `round_batch_norm`.
    """
    stages: list[Stage] = []
    steps: dict[str, float] = {}

    def stage(name: str, variables: Any) -> None:
        nonlocal network
        network = dataclasses.replace(network, variables=variables)
        stages.append(Stage(name, network, len(serialise(network, steps))))

    original = network
    if bits is not None:
        stage(f"{initialisation} weight sharing", share(network.variables, bits, initialisation))
    if calibration is not None:
        stage(f"bias correction, {len(calibration)} images", correct_biases(network, original, calibration))
    if batch_norm != "float32":
        stage(f"batch norm in {batch_norm}", round_batch_norm(network.variables, batch_norm))
    if biases != "float32":
        variables, steps = round_biases(network.variables, biases)
        stage(f"biases in {biases}", variables)
    if not stages:
        stage("coded without loss", network.variables)
    return stages, steps


def read_images(network: Network, paths: list[pathlib.Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of images, uint8, and of labels, -1 where the folder does not have the name of a class."""
    classes = {name: i for i, name in enumerate(network.class_names)}
    for first in range(0, len(paths), report.BATCH):
        part = paths[first : first + report.BATCH]
        labels = np.array([classes.get(path.parent.name, -1) for path in part])
        yield np.stack([network.read_image(path) for path in part]), labels


def parse_bits(text: str, network: Network) -> dict[str, int]:
    """Bits of each layer by its name, from "6", or from "6,conv1=8,fire2/squeeze1x1=7".

    Raises:
      InputError: another text.
      ConfigError: a layer that there is not, or bits out of range.
    """
    common, *others = text.split(",")
    try:
        pairs = (other.split("=") for other in others)
        named = {name: int(bits) for name, bits in pairs}
        return layer_bits(network.variables, layer_bits(network.variables, int(common)) | named)
    except SqueezeJaxError:
        raise
    except ValueError as error:
        raise InputError(f"--bits {text} is not understood; expected such as 6, or 6,conv1=8.") from error


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="a weight file or a workdir")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the file, ending in .sqz or .net")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the file; by default what its name ends in")
    parser.add_argument("--bits", help="of a weight, 2 to 8; more for some layers: 6,conv1=8")
    parser.add_argument("--initialisation", choices=INITIALISATIONS, default="density", help="of k-means")
    parser.add_argument("--calibration", type=pathlib.Path, metavar="FOLDER", help="images that correct the biases")
    parser.add_argument("--biases", choices=BIAS_FORMS, default="float32")
    parser.add_argument("--batch_norm", choices=NORM_FORMS, default="float32")
    parser.add_argument("--evaluation", type=pathlib.Path, metavar="FOLDER", help="images that the table is about")
    args = parser.parse_args()
    layout = args.layout or args.output.suffix[1:]
    if args.output.suffix != f".{layout}" or layout not in LAYOUTS:
        raise InputError(f"--output {args.output} must end in {f'.{args.layout}' if args.layout else '.sqz or .net'}.")
    if not args.output.parent.is_dir():
        raise InputError(f"the folder of --output {args.output} is not there; make it, or name another.")
    compilation_cache.enable()
    calibration, evaluation = (find_images([str(p)]) if p else [] for p in (args.calibration, args.evaluation))
    network = load(args.weights)
    bits = parse_bits(args.bits, network) if args.bits else None
    net_bits = max(bits.values()) if bits else deep_compression.RELEASED_BITS

    def serialise(network: Network, steps: dict[str, float]) -> bytes:
        if layout == "net":
            return deep_compression.serialise(network, net_bits)
        return sqz.serialise(network, steps=steps)

    stages, steps = compress(
        network,
        serialise,
        bits=bits,
        initialisation=args.initialisation,
        calibration=np.concatenate([images for images, _ in read_images(network, calibration)])
        if calibration
        else None,
        biases=args.biases,
        batch_norm=args.batch_norm,
    )
    if args.weights.is_file():
        stages.insert(0, Stage(args.weights.name, network, args.weights.stat().st_size))
    else:
        stages.insert(0, Stage("original", network, len(sqz.serialise(network))))
    answers = report.evaluate(stages, read_images(network, evaluation)) if evaluation else None
    rows = report.rows(stages, answers)
    print(tables.markdown(list(rows[0]), [list(row.values()) for row in rows]))
    if layout == "net":
        deep_compression.save(stages[-1].network, args.output, net_bits)
    else:
        sqz.save(stages[-1].network, args.output, steps=steps)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes, read back and compared")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
