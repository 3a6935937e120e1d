"""Classifies photographs with published or own weights.

    python -m squeeze_jax.predict --weights compressed_SqueezeNet.net photographs/ tench.jpg 'more/*.png'
    python -m squeeze_jax.predict --weights runs/cifar10 --format json image.png
    python -m squeeze_jax.predict --weights runs/cifar10 --cam maps image.png

The weights are a file (see squeeze_jax.pretrained) or the workdir of a run; the preprocessing comes with them. Images
that cannot be read are named and left out, and the exit status is 1 at the end.
"""

from squeeze_jax.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before what follows is imported

import argparse
import csv
import glob
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from squeeze_jax import compilation_cache, writers
from squeeze_jax import run as run_lib
from squeeze_jax.checkpoints import CheckpointError
from squeeze_jax.config import ConfigError
from squeeze_jax.data import decode
from squeeze_jax.data.folder import EXTENSIONS
from squeeze_jax.loading import load
from squeeze_jax.parallel import compile_often
from squeeze_jax.pretrained import WeightError

BEST = 5


def find_images(arguments: list[str]) -> list[pathlib.Path]:
    """Files, the images below folders, and what globs match, in that order.

    Raises:
      ValueError: nothing there.
    """
    found = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
        elif path.exists():
            images = [path]
        else:
            images = sorted(map(pathlib.Path, glob.glob(argument, recursive=True)))
        if not images:
            raise ValueError(f"{argument} is no file, no folder with images and no pattern that matches any.")
        found += images
    return found


def read_image(path: pathlib.Path, network: run_lib.Run) -> np.ndarray:
    """The image as the network evaluates it: uint8 of `network.image_shape`.

    Raises:
      OSError, ValueError: it cannot be read, or has not the shape that the network needs.
    """
    crop = run_lib.crop_of(network.config)
    channels = network.image_shape[-1]
    stored = path.read_bytes()
    image = decode.decode(stored, channels) if crop is None else crop.for_evaluation(stored, channels)
    if image.shape != network.image_shape:
        raise ValueError(f"it has shape {image.shape}; the network takes {network.image_shape}")
    return image


def predictions(network: run_lib.Run, paths: list[pathlib.Path], batch_size: int, unreadable: list[str]) -> Iterator:
    """(path, image, probabilities) of every readable image; the others are named and appended to `unreadable`."""
    batch: list[tuple[pathlib.Path, np.ndarray]] = []
    for path in paths:
        try:
            batch.append((path, read_image(path, network)))
        except (OSError, ValueError) as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
            unreadable.append(str(path))
        if batch and (len(batch) == batch_size or path == paths[-1]):
            # The last batch is filled up, so that it needs no compilation of its own.
            images = np.stack([image for _, image in batch])
            filled = np.resize(images, (min(batch_size, len(paths)), *images.shape[1:]))
            for (file, image), probabilities in zip(batch, network.predict(filled), strict=False):
                yield file, image, probabilities
            batch = []


def best_classes(probabilities: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:BEST]
    return [{"class": int(i), "label": labels[i], "probability": float(probabilities[i])} for i in order]


def read_labels(path: pathlib.Path, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """A label a line, in the order of the classes; a WordNet id before it is left away.

    Raises:
      ValueError: another number of lines than classes.
    """
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if len(lines) != len(class_names):
        raise ValueError(f"{path} has {len(lines)} lines; expected {len(class_names)}, a label a class.")
    ids = [line.split(maxsplit=1) for line in lines]
    return tuple(
        rest[1] if len(rest) == 2 and rest[0] == name else line
        for rest, name, line in zip(ids, class_names, lines, strict=True)
    )


def activation_maps(network: run_lib.Run) -> Callable[[np.ndarray], np.ndarray]:
    """What maps an image to conv10's map of each class: its class activation maps (Zhou et al. 2016)."""
    preprocessing = run_lib.preprocessing_of(network.config)

    @compile_often
    def maps(variables, images):
        return network.model.apply(variables, preprocessing.evaluate(images), method="features")["conv10"]

    return lambda image: np.asarray(maps(network.variables, image[None]))[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="files, folders or patterns")
    parser.add_argument("--weights", required=True, type=pathlib.Path, help="a weight file or a workdir")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument("--labels", type=pathlib.Path, help="a label a line, in the order of the classes")
    parser.add_argument("--cam", type=pathlib.Path, metavar="DIR", help="draws class activation maps there")
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    compilation_cache.enable()
    unreadable: list[str] = []
    try:
        paths = find_images(args.images)
        network = load(args.weights)
        labels = read_labels(args.labels, network.class_names) if args.labels else network.class_names
        maps_of = activation_maps(network)
        results = []
        for path, image, probabilities in predictions(network, paths, args.batch_size, unreadable):
            results.append({"file": str(path), "top5": best_classes(probabilities, labels)})
            if args.cam:
                args.cam.mkdir(parents=True, exist_ok=True)
                best = results[-1]["top5"][0]["class"]
                writers.draw_overlay(args.cam / f"{path.stem}.png", image, maps_of(image)[..., best])
    except (ConfigError, CheckpointError, WeightError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    _print(results, args.format)
    return 1 if unreadable else 0


def _print(results: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(results, indent=2))
        return
    rows = [{"file": r["file"], "rank": i, **best} for r in results for i, best in enumerate(r["top5"], start=1)]
    if form == "csv":
        writer = csv.DictWriter(sys.stdout, ("file", "rank", "class", "label", "probability"))
        writer.writeheader()
        writer.writerows(rows)
        return
    for result in results:
        print(result["file"])
        for best in result["top5"]:
            print(f"  {best['probability']:6.1%}  {best['label']} ({best['class']})")


if __name__ == "__main__":
    sys.exit(main())
