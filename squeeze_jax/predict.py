"""Classifies photographs with published weights or with a network that you trained.

    python -m squeeze_jax.predict --weights compressed_SqueezeNet.net photographs/ tench.jpg 'more/*.png'
    python -m squeeze_jax.predict --weights runs/cifar10 --format json image.png
    python -m squeeze_jax.predict --weights runs/cifar10 --cam maps image.png
    python -m squeeze_jax.predict --weights runs/nodules --report nodule7.html nodule7/*.png

--weights is a weight file (see squeeze_jax.pretrained), the workdir of a run, the name of a network that comes with
this package, such as digits, or that is downloaded, such as torchvision/resnet18, or a file that squeeze_jax.export
wrote, which is run by its own runtime; it includes the preprocessing. A volume is a uint8 array in a .npy file. With
--report, all images are slices of one case. Images that are missing or cannot be read are reported and skipped; the
exit status is then 1.
"""

from squeeze_jax.files import make_folder, user_path
from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the imports below

import argparse
import csv
import dataclasses
import glob
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from squeeze_jax import commands
from squeeze_jax.data.listing import EXTENSIONS, is_left_behind
from squeeze_jax.errors import InputError
from squeeze_jax.export.exported import Exported
from squeeze_jax.export.formats import is_exported, open_exported
from squeeze_jax.network import ARRAY, Network, load
from squeeze_jax.pretrained.imagenet import readable
from squeeze_jax.runtime import compilation_cache
from squeeze_jax.tasks import Task


def find_images(arguments: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Expands files, folders (all images below them) and glob patterns to image paths, in the order given.

    Hidden files and folders below a folder, such as the "._" files of macOS, are left out.

    Raises:
      InputError: an argument gives no image.
    """
    found = []
    for argument in arguments:
        path = user_path(argument)
        if path.is_dir():
            images = _images_below(path)
        elif os.path.lexists(path):
            images = [path]
        else:
            images = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
        if not images:
            raise InputError(f"{argument} is not a file, a folder with images or a pattern that matches any image.")
        found += images
    return found


def _images_below(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the images below a folder, also in linked folders, sorted; each folder is entered once."""
    images, hidden, entered = [], [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder above
            subfolders.clear()
            continue
        entered.add(real)
        hidden += [pathlib.Path(folder, name) for name in (*subfolders, *files) if is_left_behind(name)]
        subfolders[:] = [name for name in subfolders if not is_left_behind(name)]
        names = [name for name in files if name.lower().endswith((*EXTENSIONS, ARRAY)) and not is_left_behind(name)]
        images += [pathlib.Path(folder, name) for name in names]
    if hidden:
        print(f"left out {len(hidden)} hidden file(s) and folder(s), such as {min(hidden)}", file=sys.stderr)
    return sorted(images)


def map_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns a name for the class activation map of each image, below the folder of the maps.

    The name is that of the image; where two images have one name, all keep their folders and suffixes.
    """
    files = {path: pathlib.Path(os.path.abspath(path)) for path in paths}
    if len({file.stem for file in files.values()}) == len(set(files.values())):
        return {path: f"{file.stem}.png" for path, file in files.items()}
    root = os.path.commonpath([file.parent for file in files.values()])
    return {path: f"{file.relative_to(root)}.png" for path, file in files.items()}


def read_images(
    network: Network, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads images in batches, with labels derived from the names of their folders. What cannot be read is named.

    Args:
      network: the network, which determines the image shape and the classes.
      paths: the image files.
      batch_size: the number of images in all batches but the last.

    Yields:
      Images, uint8 (batch, *image_shape), and labels, int (batch,); -1 if the folder is not named after a class.

    Raises:
      InputError: no image can be read.
    """
    classes = {name: i for i, name in enumerate(network.class_names)}
    images: list[np.ndarray] = []
    labels: list[int] = []
    skipped = 0
    for i, path in enumerate(paths, start=1):
        try:
            images.append(network.read_image(path))
            labels.append(classes.get(path.parent.name, -1))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            skipped += 1
        if images and (len(images) == batch_size or i == len(paths)):
            yield np.stack(images), np.array(labels)
            images, labels = [], []
    if skipped and skipped == len(paths):
        raise InputError(f"none of the {len(paths)} images can be read.")


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
    for number, path in enumerate(paths, start=1):
        try:
            batch.append((path, network.read_image(path)))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            unreadable.append(str(path))
        if batch and (len(batch) == batch_size or number == len(paths)):
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
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not text in UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if len(lines) != len(class_names):
        raise InputError(f"{path} has {len(lines)} lines; expected {len(class_names)}, one label per class.")
    ids = [line.split(maxsplit=1) for line in lines]
    return tuple(
        rest[1] if len(rest) == 2 and rest[0] == name else line
        for rest, name, line in zip(ids, class_names, lines, strict=True)
    )


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = commands.parser(__doc__)
    parser.add_argument("images", nargs="+", help="files, folders or glob patterns")
    parser.add_argument(
        "--weights", required=True, type=user_path, help="a weight file, a workdir, a name or an exported file"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument("--labels", type=user_path, help="file with one label per line, in the order of the classes")
    parser.add_argument(
        "--cam",
        type=user_path,
        metavar="DIR",
        help="folder for class activation maps; where two images have one name, all keep their folders and suffixes",
    )
    parser.add_argument("--cam_class", metavar="NAME", help="class of the maps; default: the most probable one")
    parser.add_argument("--report", type=user_path, metavar="FILE", help="HTML page about the images as one case")
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    _check(args)
    compilation_cache.enable()
    unreadable: list[str] = []
    paths = []
    for argument in args.images:
        try:
            paths += find_images([argument])
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            unreadable.append(argument)
    if not paths:
        raise InputError("there is no image to classify.")
    network = open_exported(args.weights) if is_exported(args.weights) else load(args.weights)
    if (args.cam or args.report) and isinstance(network, Exported):
        raise InputError(
            "--cam and --report need feature maps, which an exported file does not have; use what it was exported from."
        )
    labels = read_labels(args.labels, network.class_names) if args.labels else readable(network.class_names)
    network = dataclasses.replace(network, class_names=labels)
    names = map_names(paths)
    results, case = [], []
    try:
        for path, image, predicted in predictions(network, paths, args.batch_size, unreadable):
            results.append({"file": str(path), **network.task.describe(predicted)})
            if args.cam:
                picture = args.cam / names[path]
                make_folder(picture.parent)
                network.explain(picture, image, predicted, args.cam_class)
            if args.report:
                case.append((str(path), *_picture(network, image, predicted, args.cam_class), predicted))
        if case:
            network.task.report_case(args.report, *zip(*case, strict=True))
    finally:
        _print(results, network.task, args.format)
    return 1 if unreadable else 0


def _check(args: argparse.Namespace) -> None:
    """Raises InputError or FileError before anything is computed for what cannot be written."""
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}; expected at least 1.")
    if args.cam:
        make_folder(args.cam)
    if args.report:
        make_folder(args.report.parent)
        if args.report.is_dir():
            raise InputError(
                f"--report {args.report} is a folder; expected a file, such as {args.report / 'case.html'}."
            )


def _picture(network: Network, image: np.ndarray, predicted: Any, class_name: str | None) -> tuple[bytes, str]:
    """Returns the PNG of `Network.explain`, and its sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "map.png"
        note = network.explain(path, image, predicted, class_name)
        return path.read_bytes(), note


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
