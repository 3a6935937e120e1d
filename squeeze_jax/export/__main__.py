"""Exports a network to a file for another runtime.

    python -m squeeze_jax.export --weights compressed_SqueezeNet.net --output net.onnx
    python -m squeeze_jax.export --weights runs/cifar10 --output net.onnx --int8 --calibration photographs
    python -m squeeze_jax.export --weights runs/cifar10 --output demo/

The file contains the preprocessing after the crop, the class names and a description of the input. It is opened in its
own runtime and compared with the network before it replaces an existing file: on the images of --evaluation, or on
random ones. The file of an int8 network is compared on images that calibration did not see: those of --evaluation, or
the part of --calibration that is held out. Images count as labeled if their folder has the name of a class.

An output without a suffix is a folder with a page that classifies photographs in the browser, see
squeeze_jax.export.web.
"""

import pathlib
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from squeeze_jax import commands, console
from squeeze_jax.errors import InputError
from squeeze_jax.export import LARGEST_CHANGE, LARGEST_LOSS, PIXELS, SUFFIXES
from squeeze_jax.files import replaced, user_path

if TYPE_CHECKING:
    from squeeze_jax.export.comparison import Comparison
    from squeeze_jax.network import Network

CALIBRATION_IMAGES = 200
CALIBRATION_SHARE = 0.8  # of a folder with few images; the others are held out


def choose_calibration(paths: list[pathlib.Path], evaluation: list[pathlib.Path]) -> tuple[list, list]:
    """Chooses the images that calibrate, at random with a fixed seed.

    Args:
      paths: the images of the calibration folder.
      evaluation: the images to evaluate on; empty for those of `paths` that are not chosen.

    Returns:
      At most CALIBRATION_IMAGES images to calibrate with, and the others to evaluate on.

    Raises:
      InputError: no image is left to evaluate on.
    """
    count = min(CALIBRATION_IMAGES, len(paths) if evaluation else int(CALIBRATION_SHARE * len(paths)))
    chosen = sorted(np.random.default_rng(0).permutation(len(paths))[:count])
    calibration = [paths[i] for i in chosen]
    seen = {path.resolve() for path in calibration}
    rest = [path for path in evaluation or paths if path.resolve() not in seen]
    if not calibration or not rest:
        raise InputError(f"--calibration has {len(paths)} image(s), which leaves none to judge the file by; add more.")
    return calibration, rest


def export(
    network: "Network",
    output: pathlib.Path,
    *,
    pixels: str = "float32",
    calibration: list[pathlib.Path] | None = None,
    evaluation: list[pathlib.Path] | None = None,
    allow_loss: float | None = None,
) -> "Comparison":
    """Writes an exported file, which replaces an existing one after it has been compared with the network.

    Args:
      network: the network.
      output: the file; its suffix determines the format.
      pixels: the dtype of the images that the file takes, "float32" or "uint8".
      calibration: images to calibrate an int8 file with; None for a float file.
      evaluation: images to compare on; None for random ones.
      allow_loss: see `Comparison.check_int8`.

    Raises:
      ExportError: the network cannot be exported, or the file differs too much.
      FileError: the file cannot be written.
      InputError: an image cannot be read.
    """
    from squeeze_jax.export.comparison import BATCH, compare, random_images
    from squeeze_jax.export.formats import FORMATS
    from squeeze_jax.predict import read_images

    form = FORMATS[output.suffix]
    if calibration is None:
        with console.doing("exporting the network"):
            data = form.serialize(network, pixels)
    else:
        images = np.concatenate([images for images, _ in read_images(network, calibration, BATCH, "calibrating")])
        with console.doing(f"calibrating on {len(images)} images"):
            data = form.serialize_int8(network, images, pixels)
    with replaced(output) as temporary:
        temporary.write_bytes(data)
        batches = read_images(network, evaluation, BATCH, "comparing") if evaluation else [random_images(network)]
        comparison = compare(network, form.read(temporary), batches)
        print(comparison)
        if calibration is None:
            comparison.check_float()
        else:
            comparison.check_int8(allow_loss)
    return comparison


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("--weights", required=True, type=user_path, help="weight file or workdir")
    parser.add_argument(
        "--output", required=True, type=user_path, help=f"file, ending in {', '.join(SUFFIXES)}; or folder for a page"
    )
    parser.add_argument("--pixels", choices=PIXELS, default="float32", help="dtype of the images that the file takes")
    parser.add_argument("--int8", action="store_true", help="compute in 8-bit integers; needs --calibration")
    parser.add_argument("--calibration", type=user_path, metavar="FOLDER", help="images for the ranges of int8")
    parser.add_argument("--evaluation", type=user_path, metavar="FOLDER", help="images to compare on")
    parser.add_argument(
        "--allow_loss",
        type=float,
        help="what int8 may cost: points of top-1 accuracy on labeled images (default: "
        f"{LARGEST_LOSS:g}), else the percentage of changed predictions (default: {LARGEST_CHANGE:g})",
    )
    args = parser.parse_args()
    start = time.perf_counter()
    if not args.output.suffix:
        if args.int8 or args.calibration or args.evaluation:
            raise InputError("a page has a float network; --int8, --calibration and --evaluation are for files.")
        with console.doing(f"loading {args.weights}"):
            from squeeze_jax.export import web
            from squeeze_jax.network import load
            from squeeze_jax.runtime import compilation_cache

            compilation_cache.enable()
            network = load(args.weights)
        with console.doing("writing the page"):
            comparison = web.write(network, args.output)
        print(comparison)
        size = sum(path.stat().st_size for path in args.output.iterdir())
        print(f"{args.output}: {size:,} bytes; serve it by: python -m http.server --directory {args.output}")
        return 0
    if args.output.suffix not in SUFFIXES:
        raise InputError(f"--output {args.output} must end in {', '.join(SUFFIXES)}.")
    if not args.output.parent.is_dir():
        raise InputError(f"the folder of --output {args.output} does not exist; create it or use another one.")
    if args.int8 != (args.calibration is not None):
        raise InputError("--int8 and --calibration FOLDER go together.")
    with console.doing(f"loading {args.weights}"):
        from squeeze_jax.export.formats import FORMATS
        from squeeze_jax.network import load
        from squeeze_jax.predict import find_images
        from squeeze_jax.runtime import compilation_cache

        if args.int8 and not hasattr(FORMATS[args.output.suffix], "serialize_int8"):
            raise InputError(f"{args.output.suffix} files have no int8; use .onnx or .tflite.")
        compilation_cache.enable()
        evaluation = find_images([str(args.evaluation)]) if args.evaluation else []
        calibration = None
        if args.int8:
            calibration, evaluation = choose_calibration(find_images([str(args.calibration)]), evaluation)
            print(f"calibrated on {len(calibration)} images")
        network = load(args.weights)
    export(
        network,
        args.output,
        pixels=args.pixels,
        calibration=calibration,
        evaluation=evaluation,
        allow_loss=args.allow_loss,
    )
    seconds = time.perf_counter() - start
    print(f"{args.output}: {args.output.stat().st_size:,} bytes, read back and compared, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
