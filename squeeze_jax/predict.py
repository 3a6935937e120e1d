"""Classifies photographs with published weights or with a network that you trained.

    python -m squeeze_jax.predict --weights compressed_SqueezeNet.net photographs/ tench.jpg 'more/*.png'
    python -m squeeze_jax.predict --weights runs/cifar10 --format json image.png
    python -m squeeze_jax.predict --weights runs/cifar10 --cam maps image.png
    python -m squeeze_jax.predict --weights runs/nodules --report nodule7.html nodule7/*.png

--weights is a weight file (see squeeze_jax.pretrained), the workdir of a run, the name of a network that comes with
this package, such as digits, or that is downloaded, such as torchvision/resnet18, or a file that squeeze_jax.export
wrote, which is run by its own runtime; it includes the preprocessing. A volume is a uint8 array in a .npy file. With
--report, all images are slices of one case. Images that cannot be read are reported and skipped; the exit status is
then 1.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

import argparse
import csv
import dataclasses
import glob
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from squeeze_jax import commands
from squeeze_jax.data.listing import EXTENSIONS
from squeeze_jax.errors import InputError
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import is_exported, open_exported
from squeeze_jax.network import ARRAY, Network, load
from squeeze_jax.runtime import compilation_cache
from squeeze_jax.tasks import Task


def find_images(arguments: list[str]) -> list[pathlib.Path]:
    """Expands files, folders (all images below them) and glob patterns to image paths, in the order given.

    Raises:
      InputError: an argument gives no image.
    """
    found = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*EXTENSIONS, ARRAY))
        elif path.exists():
            images = [path]
        else:
            images = sorted(map(pathlib.Path, glob.glob(argument, recursive=True)))
        if not images:
            raise InputError(f"{argument} is not a file, a folder with images or a pattern that matches any image.")
        found += images
    return found


def read_images(
    network: Network, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads images in batches, with labels derived from the names of their folders.

    Args:
      network: the network, which determines the image shape and the classes.
      paths: the image files.
      batch_size: the number of images in all batches but the last.

    Yields:
      Images, uint8 (batch, *image_shape), and labels, int (batch,); -1 if the folder is not named after a class.
    """
    classes = {name: i for i, name in enumerate(network.class_names)}
    for first in range(0, len(paths), batch_size):
        part = paths[first : first + batch_size]
        labels = np.array([classes.get(path.parent.name, -1) for path in part])
        yield np.stack([network.read_image(path) for path in part]), labels


def predictions(
    network: Network | Exported, paths: list[pathlib.Path], batch_size: int, unreadable: list[str]
) -> Iterator:
    """Yields (path, image, prediction) for every readable image.

    Args:
      network: the network.
      paths: the image files.
      batch_size: images per call of the network.
      unreadable: the paths of images that cannot be read are appended to this list.
    """
    batch: list[tuple[pathlib.Path, np.ndarray]] = []
    for path in paths:
        try:
            batch.append((path, network.read_image(path)))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            unreadable.append(str(path))
        if batch and (len(batch) == batch_size or path == paths[-1]):
            # The last batch is padded, so that it does not need another compilation.
            images = np.stack([image for _, image in batch])
            filled = np.resize(images, (min(batch_size, len(paths)), *images.shape[1:]))
            predicted = network.predict(filled)
            for i, (file, image) in enumerate(batch):
                yield file, image, jax.tree.map(lambda leaf, i=i: leaf[i], predicted)
            batch = []


def read_labels(path: pathlib.Path, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Reads one label per line, in the order of the classes; a leading WordNet id is dropped.

    Raises:
      InputError: the file cannot be read, or its number of lines differs from the number of classes.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(lines) != len(class_names):
        raise InputError(f"{path} has {len(lines)} lines; expected {len(class_names)}, one label per class.")
    ids = [line.split(maxsplit=1) for line in lines]
    return tuple(
        rest[1] if len(rest) == 2 and rest[0] == name else line
        for rest, name, line in zip(ids, class_names, lines, strict=True)
    )


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="files, folders or glob patterns")
    parser.add_argument(
        "--weights", required=True, type=pathlib.Path, help="a weight file, a workdir, a name or an exported file"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument("--labels", type=pathlib.Path, help="file with one label per line, in the order of the classes")
    parser.add_argument("--cam", type=pathlib.Path, metavar="DIR", help="folder for class activation maps")
    parser.add_argument("--report", type=pathlib.Path, metavar="FILE", help="HTML page about the images as one case")
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    compilation_cache.enable()
    unreadable: list[str] = []
    paths = find_images(args.images)
    network = open_exported(args.weights) if is_exported(args.weights) else load(args.weights)
    if (args.cam or args.report) and isinstance(network, Exported):
        raise InputError(
            "--cam and --report need feature maps, which an exported file does not have; use what it was exported from."
        )
    if args.labels:
        network = dataclasses.replace(network, class_names=read_labels(args.labels, network.class_names))
    results, case = [], []
    for path, image, predicted in predictions(network, paths, args.batch_size, unreadable):
        results.append({"file": str(path), **network.task.describe(predicted)})
        if args.cam:
            args.cam.mkdir(parents=True, exist_ok=True)
            network.explain(args.cam / f"{path.stem}.png", image, predicted)
        if args.report:
            case.append((str(path), _picture(network, image, predicted), predicted))
    if case:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        network.task.report_case(args.report, *zip(*case, strict=True))
    _print(results, network.task, args.format)
    return 1 if unreadable else 0


def _picture(network: Network, image: np.ndarray, predicted: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "map.png"
        network.explain(path, image, predicted)
        return path.read_bytes()


def _print(results: list[dict[str, Any]], task: Task, form: str) -> None:
    if form == "json":
        print(json.dumps(results, indent=2))
        return
    lists = [(result["file"], rows) for result in results for name, rows in result.items() if name != "file"]
    if form == "csv":
        rows = [{"file": file, "rank": i, **row} for file, rows in lists for i, row in enumerate(rows, start=1)]
        columns = dict.fromkeys(key for row in rows for key in row) or ["file"]
        writer = csv.DictWriter(sys.stdout, list(columns))
        writer.writeheader()
        writer.writerows(rows)
        return
    for file, rows in lists:
        print(file)
        for row in rows:
            print(f"  {task.line(row)}")


if __name__ == "__main__":
    sys.exit(commands.run(main))
